"""Writes nbs/sidebar.yml: every notebook once, in the order of the pipeline. `--check` only says whether it has drifted."""
import sys
from pathlib import Path

NBS = Path(__file__).resolve().parent.parent / "nbs"
CHAPTERS = {"The catalogue": "00 00a 01 01a 01b 01c 02 03 03a 03b", "Vectors": "04 04a 05 05a 05d 05e", "What the catalogue looks like": "05b 05c 06 07 08 08c",
            "What goes together": "08a 08b 09 09a", "How good it is": "10 10a 10b 11", "Playing and running": "11a 12 12a 13 14"}
REPO = "https://github.com/fitmatch/fitmatch/blob/main/"
PAGES = {"Capacity": "capacity.ipynb", "Slides": "slides.qmd", "fitmatch and its neighbours": "alternatives.qmd"}
MORE = {"Changes": "CHANGELOG.md", "Measured against others": "benchmarks/RESULTS.md", "Working on fitmatch": "CONTRIBUTING.md"}


def reference():
    "The modules' notebooks in chapters; a number no chapter knows ends in an error"
    found = {p.name.partition("_")[0]: p.name for p in sorted(NBS.glob("[0-9]*.ipynb"))}
    chapters = [(title, [found.pop(n) for n in numbers.split() if n in found]) for title, numbers in CHAPTERS.items()]
    if found: sys.exit(f"no chapter of {Path(__file__).name} has {', '.join(found.values())}: add its number to CHAPTERS")
    return chapters


def section(title, contents, indent=6):
    "A section of the sidebar; contents are lines already written"
    return [f"{' '*indent}- section: {title}", f"{' '*indent}  contents:", *contents]


def sidebar():
    "The text of sidebar.yml"
    lines = ["# Written by .ci/sidebar.py (`make sidebar`): change the order there.", "website:", "  sidebar:", "    contents:"]
    lines += ["      - {text: Home, href: index.ipynb}"]
    tutorials = sorted((NBS / "tutorials").glob("*.ipynb"))
    if tutorials: lines += section("Tutorials", [f"          - tutorials/{p.name}" for p in tutorials])
    chapters = [line for title, names in reference() for line in section(title, [f"              - {n}" for n in names], indent=10)]
    lines += section("Reference", chapters)
    own = [f"          - {{text: {text}, href: {page}}}" for text, page in PAGES.items()]
    lines += section("More", own + [f"          - {{text: {text}, href: '{REPO}{path}'}}" for text, path in MORE.items()])
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    target = NBS / "sidebar.yml"
    if "--check" in sys.argv:
        same = target.exists() and target.read_text(encoding="utf-8") == sidebar()
        print("sidebar.yml is in sync" if same else "sidebar.yml has drifted from the notebooks: type 'make sidebar'")
        sys.exit(not same)
    target.write_text(sidebar(), encoding="utf-8")
    print(f"wrote {target.name}")
