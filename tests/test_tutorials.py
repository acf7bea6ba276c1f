"""The tutorials keep what each of them promises at its top. Quick and static: nothing is executed here."""
import json
import re
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS = sorted(p for p in (ROOT/"nbs"/"tutorials").glob("*.ipynb"))
NAMES = ["01_sixty_seconds", "02_original_project", "03_your_catalogue", "04_colab_gpu", "05_train_the_cnn", "06_learn_and_measure",
         "07_outfits", "08_indico", "09_play", "10_fleet"]
each = pytest.mark.parametrize("path", TUTORIALS, ids=[p.stem for p in TUTORIALS])


def cells(path):
    "(kind, source, outputs) of every cell"
    return [(c["cell_type"], "".join(c["source"]), c.get("outputs", [])) for c in json.loads(path.read_text(encoding="utf-8"))["cells"]]


def code(path):
    return [source for kind, source, _ in cells(path) if kind == "code"]


def repository():
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT/"settings.ini")
    return f"{settings['DEFAULT']['user']}/{settings['DEFAULT']['repo']}", settings["DEFAULT"]["branch"]


def test_all_are_there_in_order():
    assert [p.stem for p in TUTORIALS] == NAMES


@each
def test_begins_with_title_line_badge_and_time(path):
    (kind, title, _), (_, first, _) = cells(path)[:2]
    name, branch = repository()
    assert kind == "markdown" and re.match(r"# \S.*\n> \S", title)
    badge = f'<a href="https://colab.research.google.com/github/{name}/blob/{branch}/{path.relative_to(ROOT).as_posix()}"><img src="https://colab.research.google.com/assets/colab-badge.svg" alt="Open in Colab"></a>'
    assert badge in first
    assert "**What you will have:**" in first and re.search(r"\*\*How long it takes:\*\* .*\d+ seconds", first)


@each
def test_installs_only_where_fitmatch_is_missing(path):
    install = [s for s in code(path) if "pip install" in s]
    assert len(install) == 1 and install[0] == code(path)[0], "one install cell, before everything else"
    name, _ = repository()
    assert re.search(r'if importlib\.util\.find_spec\("fitmatch"\) is None:\n    !\{sys\.executable\} -m pip install -q "fitmatch(\[\w+\])? @ git\+https://github\.com/' + name + '"', install[0])


@each
def test_needs_no_nbdev(path):
    for source in code(path):
        assert "nbdev" not in source and "show_doc" not in source
        assert not re.search(r"#\| *(export|default_exp)", source)


@each
def test_has_one_switch_to_own_data(path):
    all_cells = cells(path)
    switches = [i for i, (kind, source, _) in enumerate(all_cells) if kind == "code" and re.search(r"^SOURCE = ", source, re.M)]
    assert len(switches) == 1 and re.search(r"^SOURCE = None +# or \"", all_cells[switches[0]][1], re.M)
    assert "**Your own data.**" in all_cells[switches[0] - 1][1]
    assert any(re.search(r"\bSOURCE\b", source) for kind, source, _ in all_cells[switches[0] + 1:] if kind == "code"), "nothing asks the switch"


@each
def test_what_is_skipped_is_said_to_be(path):
    said = False
    for kind, source, outputs in cells(path):
        if kind == "markdown": said = bool(re.search(r"network|Colab|[Nn]ot run in tests", source))
        elif re.search(r"#\| *eval: *false", source):
            assert said, f"say above that this cell is skipped, and why: {source[:80]}"
            assert outputs == [], "a skipped cell holds no output"


@each
def test_figures_are_described_and_need_no_kernel(path):
    for _, source, outputs in cells(path):
        for output in outputs:
            data = output.get("data", {})
            assert "application/vnd.jupyter.widget-view+json" not in data, "take live widgets out of the stored outputs: the static picture beside them stays"
            if any(k.startswith("image/") for k in data): assert re.match(r'#\| fig-alt: "[^"]{20,}"', source), f"describe the figure of: {source[:80]}"
            for image in re.findall(r"<img[^>]*>", "".join(data.get("text/html", ""))): assert "alt=" in image


@each
def test_examples_are_checked(path):
    assert sum("assert " in source for source in code(path)) >= min(3, len(code(path))//6)
