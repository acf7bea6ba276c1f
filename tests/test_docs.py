"""The site without Quarto: package, notebooks, README and pages agree with each other."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts and "_proc" not in p.parts)
NAMES = [str(p.relative_to(ROOT/"nbs")) for p in NOTEBOOKS]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="session")
def copy(tmp_path_factory):
    "A copy of the project in which nbdev may write"
    target = tmp_path_factory.mktemp("copy")/"fitmatch"
    shutil.copytree(ROOT, target, symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv*", "_proc", "_docs", "*.egg-info", "fitmatch-demo", "__pycache__"))
    return target


def nbdev(command, *arguments, cwd):
    "Runs one of nbdev's commands in the copy"
    env = {**os.environ, "PYTHONPATH": str(cwd)}
    done = subprocess.run([str(BIN/command), *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def contents(folder, pattern):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob(pattern)) if not {"__pycache__", ".ipynb_checkpoints", "_proc"} & set(p.parts)}


def test_package_is_what_the_notebooks_export(copy):
    before = contents(ROOT/"fitmatch", "*.py")
    nbdev("nbdev_export", cwd=copy)
    after = contents(copy/"fitmatch", "*.py")
    assert sorted(before) == sorted(after)
    assert [n for n in before if before[n] != after[n]] == [], "type 'nbdev_export' and commit"


def test_notebooks_are_clean(copy):
    nbdev("nbdev_clean", cwd=copy)
    before, after = contents(ROOT/"nbs", "*.ipynb"), contents(copy/"nbs", "*.ipynb")
    assert [n for n in before if before[n] != after[n]] == [], "type 'nbdev_clean' and commit"


def test_readme_is_the_index():
    done = subprocess.run([sys.executable, ROOT/".ci"/"readme.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def outputs(notebook):
    "(cell number, output) of every stored output"
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [(i, o) for i, c in enumerate(cells) if c["cell_type"] == "code" for o in c["outputs"]]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=NAMES)
def test_notebooks_hold_no_widget_state(notebook):
    "It is large, differs from run to run, and shows nothing that a static picture does not"
    assert "widgets" not in json.loads(notebook.read_text(encoding="utf-8"))["metadata"], "execute with --ExecutePreprocessor.store_widget_state=False"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=NAMES)
def test_stored_outputs_can_be_published(notebook):
    assert notebook.stat().st_size < 1_000_000
    for cell, output in outputs(notebook):
        text = json.dumps({k: v for k, v in output.get("data", {}).items() if not k.startswith("image/")}) + json.dumps(output.get("text", ""))
        assert output["output_type"] != "error", f"cell {cell} ended in an error"
        assert output.get("name") != "stderr", f"cell {cell} wrote to stderr: {text[:200]}"
        assert not re.search(r"(?<![\w.])/(?:home|root|tmp|work|Users|content)/", text), f"cell {cell} shows a path of one machine"
        assert "it/s]" not in text, f"cell {cell} holds a progress bar"
        assert not output.get("data") or set(output["data"]) - {"application/vnd.jupyter.widget-view+json"}, f"cell {cell} needs a kernel to be seen"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=NAMES)
def test_every_picture_has_an_alt_text(notebook):
    for cell, output in outputs(notebook):
        data = output.get("data", {})
        assert "text/html" in data or not {"image/png", "image/jpeg"} & set(data), f"cell {cell} shows a bare picture: end it with fitmatch.style.finish(figure, alt) or photograph(image, alt)"
        for image in re.findall(r"<img\b[^>]*>", "".join(data.get("text/html", ""))): assert re.search(r"\balt=", image), f"cell {cell}: {image[:60]}"


@pytest.fixture(scope="session")
def pages():
    "Every notebook as HTML"
    exporter = HTMLExporter(template_name="lab", embed_images=False)
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    return {name: exporter.from_notebook_node(nbformat.read(path, as_version=4))[0] for name, path in zip(NAMES, NOTEBOOKS)}


@pytest.mark.parametrize("name", NAMES)
def test_page_renders(pages, name):
    assert "Unable to display output" not in pages[name]
    assert re.search(r"<h1[^>]*>", pages[name]), "a page needs a title"


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(pages, name):
    page = (ROOT/"nbs"/name).parent
    for target in re.findall(r'<(?:a|img)[^>]+(?:href|src)="([^"]+)"', pages[name]):
        if re.match(r"(?:https?:|data:|mailto:|attachment:)", target): continue
        path, _, anchor = target.partition("#")
        assert not path or (page/path).exists(), f"{name} links to {target}, which is not there"
        if not path and anchor: assert f'id="{anchor}"' in pages[name], f"{name} has no anchor {anchor}"


def test_readme_links_lead_somewhere():
    text = (ROOT/"README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"", text):
        target = "".join(target)
        if not re.match(r"(?:https?:|#|mailto:)", target): assert (ROOT/target.partition("#")[0]).exists(), f"README.md links to {target}"


def test_nbdev_processes_every_page(copy):
    code = "from nbdev.serve import proc_nbs; print(proc_nbs(force=True, n_workers=0))"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy/"nbs", env={**os.environ, "PYTHONPATH": str(copy)}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "imports and other code" not in done.stderr, "nbdev runs cells that mix imports with code: give the imports a cell of their own"
    made = {p.name for p in (copy/"_proc").rglob("*.ipynb")}
    assert {Path(n).name for n in NAMES} <= made


def test_modules_import_only_from_lower_numbers():
    number = {re.sub(r"^\d+\w?_", "", p.stem): p.stem.partition("_")[0] for p in NOTEBOOKS if p.parent == ROOT/"nbs" and re.match(r"\d\d", p.stem)}
    for module, own in number.items():
        imported = re.findall(r"^\s*from (?:fitmatch)?\.(\w+) import", (ROOT/"fitmatch"/f"{module}.py").read_text(encoding="utf-8"), re.M)
        assert imported or own == "00", f"{module} imports nothing of ours: is the pattern right?"
        for other in imported:
            assert number[other] < own, f"{module} ({own}) imports {other} ({number[other]})"


@pytest.mark.alone
def test_import_is_quick():
    code = "import time; t = time.perf_counter(); import fitmatch; s = time.perf_counter() - t; import sys; assert not {'torch', 'pandas', 'numpy'} & set(sys.modules); print(s)"
    seconds = min(float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) for _ in range(3))
    assert seconds < 0.5
