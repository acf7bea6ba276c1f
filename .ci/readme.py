"""README.md has one source, nbs/index.ipynb. Writes it anew, or with --check says whether it has drifted."""
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTICE = "<!-- Written from nbs/index.ipynb by `make readme`: edit the notebook, not this file. -->\n\n"


def code_block(cell):
    "A code cell as fenced Python, with the text it printed; directives, hidden cells and those without echo are left out"
    source = "".join(cell["source"])
    if re.search(r"^#\|\s*(?:hide|echo:\s*false)", source, re.M):
        return ""
    source = "\n".join(line for line in source.splitlines() if not line.startswith("#|"))
    texts = ["".join(o.get("text") or o.get("data", {}).get("text/plain", "")) for o in cell["outputs"]]
    shown = "".join(f"\n```\n{t.rstrip()}\n```\n" for t in texts if t.strip())
    return f"```python\n{source.strip()}\n```\n{shown}"


def readme(notebook=ROOT / "nbs" / "index.ipynb"):
    "The README's text: links are turned from the notebook's folder to the project's top"
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    parts = ["".join(c["source"]) + "\n" if c["cell_type"] == "markdown" else code_block(c) for c in cells if c["cell_type"] != "raw"]
    text = "\n".join(p for p in parts if p.strip()).replace("```\n\n```python\n", "\n")  # cells that follow each other are one block
    text = re.sub(r'(\]\(|src="|srcset="|href=")(?!https?:|#|/|mailto:)', r"\1nbs/", text)
    return NOTICE + text.replace("https://github.com/fitmatch/fitmatch/blob/main/", "")


if __name__ == "__main__":
    target = ROOT / "README.md"
    if "--check" in sys.argv:
        same = target.read_text(encoding="utf-8") == readme()
        print("README.md is in sync" if same else "README.md has drifted from nbs/index.ipynb: type 'make readme'")
        sys.exit(not same)
    target.write_text(readme(), encoding="utf-8")
    print(f"wrote {target.name}")
