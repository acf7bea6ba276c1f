"""What the site and the wheel are made of: configuration, sidebar, colours, pictures, stored outputs, packaging."""
import ast
import base64
import configparser
import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path

import nbformat
import numpy as np
import pytest
import yaml
from nbconvert import HTMLExporter
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/"nbs"
NOTEBOOKS = sorted(p for p in NBS.rglob("*.ipynb") if not {".ipynb_checkpoints", "_proc"} & set(p.parts))
NAMES = [p.relative_to(NBS).as_posix() for p in NOTEBOOKS]
QUARTO = yaml.safe_load((ROOT/"_quarto.yml").read_text(encoding="utf-8"))


def script(name):
    "A script of .ci as a module"
    spec = importlib.util.spec_from_file_location(name, ROOT/".ci"/f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(path): return json.loads(path.read_text(encoding="utf-8"))["cells"]
def source(cell): return "".join(cell["source"])


def leaves(contents):
    "Every page a sidebar or navbar leads to, in order"
    for item in contents:
        if isinstance(item, str): yield item
        elif "contents" in item: yield from leaves(item["contents"])
        else: yield item["href"]


# the site

def test_sidebar_has_every_notebook_once():
    listed = [t for t in leaves(yaml.safe_load((NBS/"sidebar.yml").read_text())["website"]["sidebar"]["contents"]) if not t.startswith("http")]
    assert all((NBS/page).exists() for page in listed)
    assert sorted(page for page in listed if page.endswith(".ipynb")) == NAMES, "type 'make sidebar'"
    assert (ROOT/"nbs"/"sidebar.yml").read_text() == script("sidebar").sidebar(), "type 'make sidebar'"


def test_no_two_pages_have_one_address():
    "nbdev names a page without the number of its notebook: 10b_compare.ipynb and compare.qmd would both be compare.html, and Quarto stops"
    stems = [re.sub(r"^\d+[a-z]?_", "", p.stem) for p in NBS.glob("*.*") if p.suffix in (".ipynb", ".qmd")]
    assert len(set(stems)) == len(stems), sorted(s for s in stems if stems.count(s) > 1)


def test_navbar_and_pictures_are_there():
    site = QUARTO["website"]
    local = [*leaves(site["navbar"]["left"]), site["favicon"], site["image"], site["navbar"]["logo"], *QUARTO["project"]["resources"]]
    missing = [t for t in local if not (NBS/t).exists()]
    if missing and not (NBS/"tutorials").exists(): missing.remove("tutorials/01_sixty_seconds.ipynb")
    assert not missing
    assert Image.open(NBS/site["image"]).size == (1200, 630)
    themes = [t for theme in QUARTO["format"]["html"]["theme"].values() for t in theme if t.endswith(".scss")]
    assert themes and all((NBS/t).exists() for t in themes)
    assert QUARTO["metadata-files"] == ["nbdev.yml", "sidebar.yml"] and (NBS/"_quarto.yml").resolve() == ROOT/"_quarto.yml"


def test_a_link_to_colab_is_added_once():
    links = script("code_links")
    front = links.with_link("---\ntitle: x\n\n---\n\n", "tutorials/x.ipynb")
    head = yaml.safe_load(front.strip().strip("-"))
    assert head["title"] == "x" and head["code-links"][0]["href"].endswith("/blob/main/nbs/tutorials/x.ipynb")
    assert links.with_link(front, "tutorials/x.ipynb") == front


def test_links_to_colab_are_written_as_lines(tmp_path):
    "Quarto shows a first cell that is one text on the page, instead of reading it"
    (tmp_path/"x.ipynb").write_text(json.dumps({"cells": [{"cell_type": "raw", "source": ["---\n", "title: x\n", "---\n"]}]}))
    assert script("code_links").add_links(tmp_path) == ["x.ipynb"]
    lines = cells(tmp_path/"x.ipynb")[0]["source"]
    assert isinstance(lines, list) and lines[-1] == "---\n" and all(line.endswith("\n") and line.count("\n") == 1 for line in lines)


def test_signatures_on_the_site_hold_no_links():
    plain, link = script("code_links").plain_code, "[`embed`](https://fitmatch.github.io/fitmatch/embed.html#embed)"
    assert plain(f"See {link}.\n\n```python\ndef f(\n    x, # as for {link}, {link}\n)\n```\n\nand {link}\n") == f"See {link}.\n\n```python\ndef f(\n    x, # as for `embed`, `embed`\n)\n```\n\nand {link}\n"


@pytest.mark.parametrize("name", NAMES)
def test_no_link_within_a_link(name):
    "nbdev makes a link of every public name in backticks, also of one that stands in a link's words"
    inside = [words for cell in cells(NBS/name) if cell["cell_type"] == "markdown" for words in re.findall(r"\[`(\w+)`\]\([\w/.#-]+\)", source(cell))]
    assert not inside, "leave the link out: nbdev makes one"


@pytest.mark.parametrize("name", NAMES)
def test_first_cell_is_title_and_quote_alone(name):
    "nbdev makes the page's head of it and drops whatever else stands there"
    first = [line for line in source(cells(NBS/name)[0]).splitlines() if line.strip()]
    assert first[0].startswith("# ") and len(first) > 1 and all(line.startswith(">") for line in first[1:]), "give what follows a cell of its own"


@pytest.mark.parametrize("name", [n for n in NAMES if re.match(r"\d\d\w?_", n)])
def test_a_heading_is_followed_by_words(name):
    "A page of the reference says why before it shows code"
    pages = [(c, source(c).strip()) for c in cells(NBS/name)]
    bare = [text.splitlines()[-1] for (c, text), (after, _) in zip(pages, pages[1:]) if c["cell_type"] == "markdown" and re.match("#{2,} ", text.splitlines()[-1]) and after["cell_type"] == "code"]
    assert bare == []


def luminance(colour):
    "WCAG 2.2"
    rgb = np.array([int(colour[i:i + 2], 16) for i in (1, 3, 5)])/255
    return np.where(rgb <= .04045, rgb/12.92, ((rgb + .055)/1.055)**2.4) @ [.2126, .7152, .0722]


def contrast(a, b):
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + .05)/(dark + .05)


def test_colours_of_both_themes_can_be_read():
    assert np.isclose(contrast("#ffffff", "#000000"), 21) and contrast("#777777", "#ffffff") < 4.5
    for name in ("theme.scss", "theme-dark.scss"):
        c = dict(re.findall(r"^\$([\w-]+):\s*(#\w{6})", (NBS/name).read_text(), re.M))
        pairs = [("body-color", "body-bg"), ("link-color", "body-bg"), ("navbar-fg", "navbar-bg"), ("navbar-hl", "navbar-bg"), ("code-color", "code-bg"), ("footer-fg", "body-bg"),
                 ("toc-color", "body-bg"), ("sidebar-fg", "sidebar-bg"), ("sidebar-hl", "sidebar-bg")]
        assert {p: round(contrast(c[p[0]], c[p[1]]), 1) for p in pairs if contrast(c[p[0]], c[p[1]]) < 4.5} == {}


@pytest.mark.parametrize("name", NAMES)
def test_badges_lead_to_existing_notebooks(name):
    text = "".join(map(source, cells(NBS/name)))
    for path in re.findall(r"colab\.research\.google\.com/github/fitmatch/fitmatch/blob/main/([^\s)\"]+)", text): assert (ROOT/path).exists(), f"{name} has a badge for {path}"


@pytest.mark.parametrize("name", NAMES)
def test_links_between_pages_find_their_anchor(name):
    def slug(heading): return re.sub(r"[^\w\s-]", "", heading.strip().lower()).replace(" ", "-")
    for cell in cells(NBS/name):
        if cell["cell_type"] != "markdown": continue
        for page, anchor in re.findall(r"\]\(([\w./]+\.ipynb)#([\w-]+)\)", source(cell)):
            headings = re.findall(r"^#+ (.+)$", "\n".join(source(c) for c in cells((NBS/name).parent/page) if c["cell_type"] == "markdown"), re.M)
            assert anchor.lower() in map(slug, headings), f"{name} links to {page}#{anchor}"


@pytest.mark.parametrize("name", NAMES)
def test_images_of_the_prose_say_what_they_show(name):
    "Those in Markdown and those in HTML a cell made"
    texts = [re.sub(r"`[^`]*`", "", source(c)) for c in cells(NBS/name) if c["cell_type"] == "markdown"] + ["".join(o.get("data", {}).get("text/html", "")) for _, _, o in stored(NBS/name)]
    for text in texts:
        text = re.sub(r"<script\b.*?</script>", "", text, flags=re.S)
        assert not re.search(r"!\[\s*\]\(", text), f"{name} has a picture without words"
        named_beside = '<img class="fm-via"'                                # the small picture on a card: the words below it say "via"
        bad = [tag[:90] for tag in re.findall(r"<img\b[^>]*>", text) if not (tag.startswith(named_beside) and 'alt=""' in tag) and not re.search(r"""\balt=(?:"[^"]+"|'[^']+')""", tag)]
        assert not bad, bad[:3]


@pytest.mark.parametrize("name", NAMES)
def test_page_is_under_three_megabytes(name):
    exporter = HTMLExporter(template_name="basic")
    assert len(exporter.from_notebook_node(nbformat.read(NBS/name, as_version=4))[0].encode()) < 3_000_000


# stored outputs

def stored(path):
    "(cell number, cell, output) of every output"
    return [(i, c, o) for i, c in enumerate(cells(path)) if c["cell_type"] == "code" for o in c["outputs"]]


def pictures(path):
    "(cell number, picture) of every picture in the outputs, those inside HTML too"
    for i, _, output in stored(path):
        data = output.get("data", {})
        raw = ["".join(v) for k, v in data.items() if k in ("image/png", "image/jpeg")]
        raw += re.findall(r"data:image/(?:png|jpeg|webp);base64,([\w+/=]+)", "".join(data.get("text/html", "")))
        for r in raw: yield i, Image.open(BytesIO(base64.b64decode(r)))


def fingerprint(picture):
    "256 bits: is each of 16 × 16 places darker than the next; None for a picture with nothing on it"
    grey = np.asarray(picture.convert("L").resize((17, 16)), int)
    return None if grey.std() < 8 else grey[:, 1:] > grey[:, :-1]


def test_no_picture_of_the_data_folder_is_shown(real_data):
    folder = real_data("clothes-cc0")
    known = [f for f in (fingerprint(Image.open(p)) for p in sorted(folder.rglob("*.jpg"))[::3]) if f is not None]
    assert len(known) > 100
    table = np.array([f.ravel() for f in known])
    def far(picture):
        f = fingerprint(picture)
        return 256 if f is None else int((table != f.ravel()).sum(1).min())
    one = Image.open(sorted(folder.rglob("*.jpg"))[0])
    small = BytesIO(); one.convert("RGB").resize((96, 96)).save(small, "JPEG", quality=60)
    assert far(Image.open(small)) < 32, "the check must know a thumbnail"
    found = [(n, i, far(p)) for n, path in zip(NAMES, NOTEBOOKS, strict=True) for i, p in pictures(path) if far(p) < 32]
    assert found == []


RUN = """
import sys, nbformat
from nbconvert.preprocessors import ExecutePreprocessor
nb = nbformat.read(sys.argv[1], 4)
ExecutePreprocessor(timeout=300, store_widget_state=False).preprocess(nb, {"metadata": {"path": sys.argv[2]}})
nbformat.write(nb, sys.argv[3])
"""


def shown(path):
    "The texts a notebook stores; addresses in memory and times differ from run to run"
    texts = ["".join(o.get("text") or o.get("data", {}).get("text/plain", "")) for _, _, o in stored(path)]
    return re.sub(r"0x[0-9a-f]+", "0x", "".join(texts))


@pytest.mark.parametrize("name", ["00_catalogue.ipynb", "08a_features.ipynb"])
def test_outputs_are_those_of_a_fresh_run(name, tmp_path):
    fresh = tmp_path/"fresh.ipynb"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", RUN, str(NBS/name), str(NBS), str(fresh)], capture_output=True, text=True, env=env, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    assert shown(fresh) == shown(NBS/name), "run the notebook from top to bottom and commit"
    for (i, old), (_, new) in zip(pictures(NBS/name), pictures(fresh), strict=True):
        assert old.size == new.size and np.abs(np.asarray(old.convert("RGB"), int) - np.asarray(new.convert("RGB"), int)).mean() < 3, f"cell {i} draws another picture now"


# the package

def public_names(module):
    "What a module exports"
    return re.findall(r"'(\w+)'", re.search(r"^__all__ = \[(.*?)\]", module.read_text(encoding="utf-8"), re.M | re.S)[1])


def test_every_public_symbol_has_an_example():
    used = "\n".join(source(c) for p in NOTEBOOKS for c in cells(p) if c["cell_type"] == "code" and not re.search(r"^#\|\s*(?:export|exporti|hide)\b", source(c), re.M))
    used = set(re.findall(r"\w+", re.sub(r"^\s*(?:from .*|import .*)$", "", used, flags=re.M)))
    modules = {p.stem: ROOT/"fitmatch"/(re.sub(r"^\d+\w?_", "", p.stem) + ".py") for p in NOTEBOOKS if p.parent == NBS and re.match(r"\d\d", p.stem)}
    unused = [f"{name}: {n}" for name, module in modules.items() if module.exists() for n in public_names(module) if n not in used]
    assert unused == [], "show what it does, in a cell that is not exported, or make it private"


# These say the same wherever they stand; `c` and `look` are the canvas and the look of every drawing
SAID_ONCE = {"self", "cls", "_", "random_state", "progress", "n_resamples", "confidence", "c", "look"}
MODULES = [p for p in sorted((ROOT/"fitmatch").glob("*.py")) if not p.name.startswith("_")]
CLASSES = {n.name for p in MODULES for n in ast.parse(p.read_text(encoding="utf-8")).body if isinstance(n, ast.ClassDef)}


def without_words(text, public):
    "Public functions, classes and methods of a module without a line that says what they are, and parameters without a comment, help text, or a class of ours as their type"
    lines = text.splitlines()
    def says(n): return "#" in re.sub(r"\"[^\"]*\"|'[^']*'", "", lines[n - 1])
    def of(f, name):
        if not ast.get_docstring(f) and not f.name.startswith("__") and not any(says(n) for n in range(f.lineno, f.body[0].lineno + 1)): yield name
        for x in [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs, *filter(None, (f.args.vararg, f.args.kwarg))]:
            kind = ast.unparse(x.annotation).strip("'").split("|")[0] if x.annotation else ""
            if not (x.arg in SAID_ONCE or kind in CLASSES or kind.startswith("Annotated[") or kind in ("JsonFlag", "EncoderName", "EngineName", "WeightsFile", "DataFolder", "_Workspace", "_OutWorkspace") or says(x.lineno)): yield f"{name}: {x.arg}"
    for node in ast.parse(text).body:
        if getattr(node, "name", None) not in public: continue
        if isinstance(node, ast.FunctionDef): yield from of(node, node.name)
        elif not ast.get_docstring(node): yield node.name
        for m in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(m, ast.FunctionDef) and (m.name == "__init__" or not m.name.startswith("_")): yield from of(m, f"{node.name}.{m.name}")


def test_every_public_symbol_says_what_it_is():
    assert list(without_words('def f(x, y=1): # both\n    "Adds"\n\ndef g(a:int,\n  b): "…"\n\nclass K:\n    def m(self): ...\n', {"f", "g", "K"})) == ["g: a", "g: b", "K", "K.m"]
    assert {p.stem: found for p in MODULES if (found := list(without_words(p.read_text(encoding="utf-8"), public_names(p))))} == {}, "a line below it, a comment behind each parameter"


def test_ruff_finds_no_bug():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "All checks passed" in done.stdout, done.stdout + done.stderr


def test_sdist_and_wheel_hold_what_runs(tmp_path):
    for kind in ("sdist", "bdist_wheel"):
        code = "import shutil, sys, subprocess; shutil.copytree(sys.argv[1], sys.argv[2], symlinks=True, ignore=shutil.ignore_patterns('.git', '.venv*', 'build', 'dist', '*.egg-info', '_*', '.pytest_cache'))"
        if kind == "sdist":
            copy = tmp_path/"copy"
            subprocess.run([sys.executable, "-c", code.replace("'_*', ", "'_proc', '_docs', '__pycache__', "), str(ROOT), str(copy)], check=True)
            subprocess.run([sys.executable, "setup.py", "-q", kind, "-d", str(tmp_path)], cwd=copy, check=True, capture_output=True, timeout=120)
            tarfile.open(next(tmp_path.glob("*.tar.gz"))).extractall(tmp_path/"unpacked", filter="data")
        else:     # a wheel is built from the sdist, as pip does
            subprocess.run([sys.executable, "setup.py", "-q", kind, "-d", str(tmp_path)], cwd=next((tmp_path/"unpacked").iterdir()), check=True, capture_output=True, timeout=120)
    inside = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    assert {"fitmatch/apps/match_demo.ipynb", "fitmatch/apps/streamlit_app.py", "fitmatch/apps/share/voila/templates/fitmatch/index.html.j2", "fitmatch/weights/fitmatch-cnn.safetensors",
            "fitmatch/weights/fitmatch-cnn.json", "fitmatch/sources.json"} <= inside
    assert {f"fitmatch/{p.name}" for p in (ROOT/"fitmatch").glob("*.py")} <= inside and not [n for n in inside if n.startswith(("tests", "nbs", "benchmarks"))]


def test_versions_agree():
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT/"settings.ini", encoding="utf-8")
    version = settings["DEFAULT"]["version"]
    assert yaml.safe_load((ROOT/"CITATION.cff").read_text())["version"] == version
    assert f"## {version}" in (ROOT/"CHANGELOG.md").read_text() and f'"{version}"' in (ROOT/"fitmatch"/"__init__.py").read_text()
    assert all(re.search(r">=\d", r) for r in settings["DEFAULT"]["requirements"].split()), "a lower bound says what was tried"
