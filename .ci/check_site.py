"""Looks at the rendered site: `python .ci/check_site.py _docs`. What it finds wrong is printed, page by page."""
import re
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGEST = 3_000_000


def faults(page, folder, anchors):
    "What is wrong with one page, in words"
    html = page.read_text(encoding="utf-8").replace("&quot;", '"')              # a page may hold another one
    if page.stat().st_size > LARGEST: yield f"{page.stat().st_size/1e6:.1f} MB"
    if "Unable to display output" in html: yield "an output that needs a kernel"
    if re.search(r'/edit/\w+/nbs/[^"]+\.ipynb"', html) and "colab.research.google.com" not in html: yield "no link to Colab"
    for tag in re.findall(r"<img\b[^>]*>", html):
        beside_words = re.search(r'class="(?:navbar-logo|(?:fm-)?via)\b', tag)    # which say the same: its text is empty, so that nobody hears it twice
        if not re.search(r'alt="[^"]+"', tag) and not beside_words: yield f"an image without alt text: {tag[:80]}"
    for target in re.findall(r'<a\b[^>]*\bhref="([^"]+)"', html):
        url = urlsplit(target)
        if url.scheme or url.netloc or target == "#": continue
        path = unquote(url.path)
        file = page if not path else folder / path.removeprefix("/fitmatch/") if path.startswith("/") else page.parent / path
        file = file / "index.html" if file.is_dir() else file
        if not file.exists(): yield f"leads to {target}, which is not there"
        elif url.fragment and file.suffix == ".html" and unquote(url.fragment) not in anchors(file): yield f"{file.name} has no anchor {url.fragment}"


def check(folder):
    "Every fault of every page, as (page, what)"
    known = {}
    def anchors(file):
        if file not in known: known[file] = set(re.findall(r'\b(?:id|name)="([^"]+)"', file.read_text(encoding="utf-8")))
        return known[file]
    return [(str(p.relative_to(folder)), what) for p in sorted(folder.rglob("*.html")) if "site_libs" not in p.parts for what in faults(p, folder, anchors)]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if not (folder/"index.html").exists(): sys.exit(f"{folder} has no index.html: is it a rendered site?")
    found = check(folder)
    for page, what in found: print(f"{page}: {what}")
    print(f"{len(list(folder.rglob('*.html')))} pages, {len(found)} faults")
    sys.exit(bool(found))
