"""Gives every notebook's page an "Open in Colab" link. Quarto runs this in the folder of processed notebooks before it renders them."""
import json
import sys
from pathlib import Path

COLAB = "https://colab.research.google.com/github/fitmatch/fitmatch/blob/main/nbs/"


def with_link(front, path):
    "The front matter with a link to the notebook in Colab; it has one already on a second run"
    if "code-links:" in front: return front
    link = f"code-links:\n  - text: Open in Colab\n    icon: play-circle\n    href: {COLAB}{path}\n"
    head, mark, rest = front.rstrip().rpartition("---")
    return f"{head.rstrip()}\n{link}{mark}{rest}\n"


def add_links(folder):
    "Writes the link into the first cell of every notebook below the folder; gives the pages it is on"
    done = []
    for file in sorted(folder.rglob("*.ipynb")):
        path = file.relative_to(folder).as_posix()
        if path.startswith(("_docs/", ".")): continue
        notebook = json.loads(file.read_text(encoding="utf-8"))
        first = notebook["cells"][0]
        if first["cell_type"] != "raw" or not "".join(first["source"]).startswith("---"):
            sys.exit(f"{path} has no front matter: its first cell must be '# title' and '> one line'")
        front = with_link("".join(first["source"]), path)
        if front != "".join(first["source"]):
            first["source"] = front.splitlines(keepends=True)           # Quarto writes what is not a list of lines onto the page
            file.write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        done.append(path)
    return done


if __name__ == "__main__":
    print(f"{len(add_links(Path.cwd()))} pages can be opened in Colab")
