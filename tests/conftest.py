"""What the tests share: the folders of real data, and a workspace made once."""
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


from s3 import s3, s3_gate  # noqa: F401  (fixtures)


def _folder(variable, *parts):
    root = os.environ.get(variable)
    if not root: pytest.skip(f"{variable} is not set: it names a folder of real data that is no part of the project")
    path = Path(root, *parts)
    if not path.exists(): pytest.skip(f"{variable} has no {'/'.join(parts)}")
    return path


@pytest.fixture
def figure(request):
    "Function noting a measured line, printed when all tests are done"
    return lambda line: request.node.user_properties.append(("figure", line))


def pytest_terminal_summary(terminalreporter):
    reports = [r for some in terminalreporter.stats.values() for r in some if getattr(r, "when", None) == "call"]
    lines = [line for r in reports for name, line in r.user_properties if name == "figure"]
    if not lines: return
    terminalreporter.section("measured")
    for line in lines: terminalreporter.write_line(line)


def pytest_configure(config):
    config.addinivalue_line("markers", "alone: measures time, so nothing else is tested meanwhile")
    if getattr(config.option, "numprocesses", None):  # two workers share the processors: a thread that has nothing to do shall not spin
        for name, value in (("OMP_WAIT_POLICY", "PASSIVE"), ("OPENBLAS_NUM_THREADS", "1")): os.environ.setdefault(name, value)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    "With `-n 2` two tests run at a time, but one marked `alone` waits until the other has ended, and the next ones wait for it"
    if not hasattr(item.config, "workerinput"): return (yield)
    import fcntl
    alone = item.get_closest_marker("alone") is not None
    with open(__file__) as gate, open(Path(__file__).with_name("hostile.py")) as room:     # any two files serve as locks
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        try: return (yield)
        finally: fcntl.flock(room, fcntl.LOCK_UN)                                           # in words: a test may have forked a process that holds the file open


@pytest.fixture(scope="session")
def real_data():
    "Function giving a path below FITMATCH_DATA; skips with the reason where it is absent"
    return lambda *parts: _folder("FITMATCH_DATA", *parts)


@pytest.fixture(scope="session")
def real_weights():
    "Function giving a path below FITMATCH_WEIGHTS; skips with the reason where it is absent"
    return lambda *parts: _folder("FITMATCH_WEIGHTS", *parts)


@pytest.fixture(scope="session")
def overlay(tmp_path_factory):
    "Function giving the environment of a process in which these requirements stand before what is installed"
    made, root = {}, Path(__file__).resolve().parent.parent
    def env(*requirements):
        if requirements not in made:
            target, uv = tmp_path_factory.mktemp("overlay"), shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
            ways = [[uv, "pip", "install", "--python", sys.executable]]*(uv is not None) + [[sys.executable, "-m", "pip", "install"]]          # uv takes a fifth of the time
            for way in ways:
                done = subprocess.run([*way, "--quiet", "--no-deps", "--target", str(target), *requirements], capture_output=True, text=True, timeout=600)
                if done.returncode == 0: break
            if done.returncode and not os.environ.get("CI"): pytest.skip(f"pip cannot install {' '.join(requirements)}: {done.stderr.strip().splitlines()[-1]}")
            assert done.returncode == 0, done.stderr
            made[requirements] = target
        return {**os.environ, "PYTHONPATH": os.pathsep.join([str(made[requirements]), str(root)])}
    return env


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory):
    "(workspace, summary) of a demo on a small wardrobe"
    from fitmatch.pipeline import demo
    workspace = tmp_path_factory.mktemp("demo")/"workspace"
    return workspace, demo(workspace, n_products=240, progress=False)


@pytest.fixture(scope="session")
def hostile_workspace(tmp_path_factory):
    "A workspace of 140 products; every title, category and label carries an attack"
    from dataclasses import replace

    from fitmatch.catalogue import save_catalogue
    from fitmatch.encoders import load_encoder
    from fitmatch.images import check_images
    from fitmatch.prepare import write_json
    from fitmatch.wardrobe import draw_wardrobe
    from hostile import PAYLOADS
    folder = tmp_path_factory.mktemp("hostile")
    catalogue = check_images(draw_wardrobe(140, dirty=False, root=folder/"drawn"), progress=False)
    attacks = [attack[:400] for attack in PAYLOADS.values()]
    attack = lambda texts: [f"{text} {attacks[i % len(attacks)]}" for i, text in enumerate(texts)]
    labels = {label: f"{label} {attacks[i]}" for i, label in enumerate(catalogue.labels)}
    products = catalogue.products.assign(title=attack(catalogue.products["title"]), category=attack(catalogue.products["category"]), ground_truth=catalogue.products["ground_truth"].map(labels))
    save_catalogue(replace(catalogue, products=products, labels=tuple(labels.values())), folder/"workspace")
    encoder = load_encoder("fitmatch-cnn")
    write_json(folder/"workspace"/"run.json", {"encoder": encoder.info.name, "weights_sha256": encoder.weights_sha256, "matching": {"threshold": .5}})
    return folder/"workspace"


@pytest.fixture(scope="module")
def browser():
    "Chromium with software WebGL; skips with the reason where there is none"
    if importlib.util.find_spec("playwright") is None: pytest.skip("playwright is not installed: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None: pytest.skip("no chromium on this machine: apt install chromium")
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"])
        yield browser
        browser.close()


@pytest.fixture
def photo_folder(tmp_path):
    "Twelve textured pictures in two sub-folders"
    draw = np.random.default_rng(0)
    for label, tint in (("shirts", (200, 60, 60)), ("shoes", (60, 60, 200))):
        for i in range(6):
            path = tmp_path/"photos"/label/f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = draw.integers(-50, 50, (48, 48, 1))
            Image.fromarray((np.array(tint) + noise).clip(0, 255).astype(np.uint8)).save(path)
    return tmp_path/"photos"
