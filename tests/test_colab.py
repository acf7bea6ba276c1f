"""Installing fitmatch on Colab moves none of the packages Colab brings, and works with those versions."""
import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What people meet on Colab where it is far from the newest; pytz and ipython_genutils are needed by the two of them that are old.
COLAB = ("ipywidgets==7.7.1", "plotly==5.24.1", "pandas==2.2.3", "scikit-learn==1.6.1", "numpy==2.1.3", "pyarrow==18.1.0", "scipy==1.16.3", "pytz", "ipython_genutils")
NOTEBOOKS = ("00_catalogue", "08a_features", "11a_cards", "12_widgets")


def requirements():
    "The runtime requirements, as settings.ini names them"
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT/"settings.ini", encoding="utf-8")
    return settings["DEFAULT"]["requirements"].split()


def pins(text):
    "Package → version, of lines name==version; names as PyPI compares them"
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in re.findall(r"^([\w.-]+)==([^\s;+]+)", text, re.M)}


def resolve(wanted, preinstalled, folder):
    "(what pip would install beside what Colab has, what uv says against it)"
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None: pytest.skip("uv is not installed: pip install uv")
    (folder/"wanted.in").write_text("\n".join(wanted))
    done = subprocess.run([uv, "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--python-version", "3.13", "--constraint", str(preinstalled), str(folder/"wanted.in")],
                          capture_output=True, text=True, timeout=300)
    return pins(done.stdout), done.stderr if done.returncode else ""


@pytest.fixture(scope="module")
def preinstalled(real_data): return real_data("colab-requirements-2026-08.txt")


def test_colab_keeps_what_it_has(preinstalled, tmp_path, figure):
    there = pins(preinstalled.read_text())
    assert there["ipywidgets"] == "7.7.1" and len(there) > 500
    found, refused = resolve(requirements(), preinstalled, tmp_path)
    assert not refused, refused
    assert {n: (v, there[n]) for n, v in found.items() if n in there and v != there[n]} == {}
    named = {re.split(r"[<>=!~]", r)[0].replace("_", "-").lower() for r in requirements()}
    assert named <= set(found)
    figure(f"Colab: fitmatch brings {len(set(found) - set(there))} packages it has not ({', '.join(sorted(set(found) - set(there)))}) and moves none of its {len(there)}")


@pytest.mark.parametrize("impossible", ["ipywidgets>=8"])
def test_a_requirement_that_would_move_something_is_noticed(preinstalled, tmp_path, impossible):
    assert "unsatisfiable" in resolve([*requirements(), impossible], preinstalled, tmp_path)[1]


RUN = """
import sys
from pathlib import Path
from nbdev.test import test_nb
import importlib.metadata as m
seen = {n: m.version(n) for n in ("ipywidgets", "plotly", "pandas", "scikit-learn")}
assert seen == dict(r.split("==") for r in sys.argv[1].split()), seen
for name in sys.argv[2:]: print(name, *test_nb(Path("nbs", name + ".ipynb").resolve(), [], []))
"""


def test_notebooks_run_on_the_versions_of_colab(overlay):
    done = subprocess.run([sys.executable, "-c", RUN, " ".join(COLAB[:4]), *NOTEBOOKS], cwd=ROOT, env=overlay(*COLAB), capture_output=True, text=True, timeout=600)
    assert [line.split()[:2] for line in done.stdout.splitlines() if line.startswith(NOTEBOOKS)] == [[n, "True"] for n in NOTEBOOKS], done.stdout[-1500:] + done.stderr[-3000:]


def test_widgets_work_on_the_versions_of_colab(overlay):
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/test_widgets.py", "-k", "not quick"], cwd=ROOT, env=overlay(*COLAB), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and re.search(r"\b\d+ passed", done.stdout), done.stdout[-3000:]
