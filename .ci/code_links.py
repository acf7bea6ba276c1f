"""Gives every notebook's page an "Open in Colab" link, and takes nbdev's links out of code. Quarto runs this in the folder of processed notebooks before it renders them."""
import json
import re
import sys
from pathlib import Path

COLAB = "https://colab.research.google.com/github/fitmatch/fitmatch/blob/main/nbs/"


def with_link(front, path):
    "The front matter with a link to the notebook in Colab; it has one already on a second run"
    if "code-links:" in front: return front
    link = f"code-links:\n  - text: Open in Colab\n    icon: play-circle\n    href: {COLAB}{path}\n"
    head, mark, rest = front.rstrip().rpartition("---")
    return f"{head.rstrip()}\n{link}{mark}{rest}\n"


def plain_code(text):
    "Markdown whose fenced blocks name things without linking them: nbdev links what stands in backticks, in a signature's comments too, where it is no link but noise"
    return re.sub(r"^```.*?^```", lambda block: re.sub(r"\[(`[\w.]+`)\]\(https?://[^)\s]+\)", r"\1", block[0]), text, flags=re.M | re.S)


def clean_code(cell):
    "`plain_code` for what a cell shows"
    for output in cell.get("outputs", []):
        if "text/markdown" in output.get("data", {}): output["data"]["text/markdown"] = plain_code("".join(output["data"]["text/markdown"])).splitlines(keepends=True)


def add_links(folder):
    "Writes the link into the first cell of every notebook below the folder, and cleans its code; gives the pages it is on"
    done = []
    for file in sorted(folder.rglob("*.ipynb")):
        path = file.relative_to(folder).as_posix()
        if path.startswith(("_docs/", ".")): continue
        notebook = json.loads(file.read_text(encoding="utf-8"))
        first = notebook["cells"][0]
        if first["cell_type"] != "raw" or not "".join(first["source"]).startswith("---"):
            sys.exit(f"{path} has no front matter: its first cell must be '# title' and '> one line'")
        first["source"] = with_link("".join(first["source"]), path).splitlines(keepends=True)           # Quarto writes what is not a list of lines onto the page
        for cell in notebook["cells"]: clean_code(cell)
        file.write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        done.append(path)
    return done


if __name__ == "__main__":
    print(f"{len(add_links(Path.cwd()))} pages can be opened in Colab")
