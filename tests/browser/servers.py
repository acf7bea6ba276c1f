"""Servers that end with the test, and what a page of theirs shows"""
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from watched import watched

ROOT = Path(__file__).resolve().parents[2]
ARTEFACTS = ROOT/"tests"/"artefacts"
COMMAND = [sys.executable, "-c", "from fitmatch.cli import main; main()"]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def served(command, url, log, **variables):
    "A server that answers at `url`; ended with everything it started"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **{k: str(v) for k, v in variables.items()}}
    with open(log, "wb") as out: server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True, cwd=Path(log).parent)
    try:
        for _ in range(240):
            if server.poll() is not None: pytest.fail(f"the server ended: {Path(log).read_text()[-2000:]}")
            try: urllib.request.urlopen(url, timeout=2).close(); break
            except OSError: time.sleep(.25)
        else: pytest.fail(f"no answer at {url}: {Path(log).read_text()[-2000:]}")
        yield server
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try: os.killpg(server.pid, number)
            except ProcessLookupError: break
            try: server.wait(10)
            except subprocess.TimeoutExpired: continue


def visit(browser, url, width=1280, scheme="light", ready=".fm-tiles figure", timeout=90_000):
    "A page with its cards; `seen` notes dialogs, errors and whoever else was asked for something"
    page = watched(browser, lambda address: address.startswith(("data:", "blob:", "about:")) or "//127.0.0.1:" in address, width, scheme, has_touch=width < 500)
    page.goto(url, timeout=timeout)
    if ready: page.wait_for_selector(ready, timeout=timeout)
    return page


@contextmanager
def notebook_in_jupyterlab(browser, folder, name, ready, width=1280, **variables):
    "The page of the notebook `folder/notebooks/name` in a JupyterLab of its own, all cells run from the menu"
    news, port = folder/"settings"/"@jupyterlab"/"apputils-extension", free_port()
    news.mkdir(parents=True)
    (news/"notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.token=t", f"--ServerApp.port={port}", f"--ServerApp.root_dir={folder/'notebooks'}", "--LabApp.extension_manager=readonly"]
    folders = dict(JUPYTER_CONFIG_DIR=folder/"config", JUPYTERLAB_SETTINGS_DIR=folder/"settings", JUPYTERLAB_WORKSPACES_DIR=folder/"workspaces")
    with served(command, f"http://127.0.0.1:{port}/api?token=t", folder/"lab.log", **folders, **variables):
        page = visit(browser, f"http://127.0.0.1:{port}/lab/tree/{name}?token=t&reset", width, ready=".jp-Notebook .jp-Cell")
        page.wait_for_selector("text=/Python 3.*\\| Idle/", timeout=60_000)
        page.wait_for_timeout(1500)                                         # a click before this often gets a dialog that asks for a kernel
        for _ in range(3):                                                  # the menu is sometimes drawn before it does anything
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
            page.wait_for_timeout(1500)
            for dialog in page.locator(".jp-Dialog .jp-mod-accept").all(): dialog.click()      # which kernel: the one it offers
            if page.locator(".jp-InputPrompt", has_text="*").count() or page.locator(ready).count(): break
        page.wait_for_selector(ready, state="visible", timeout=60_000)
        yield page


def snap(page, name):
    "A screenshot among the artefacts"
    ARTEFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTEFACTS/f"{name}.png", full_page=True)


def cards(page): return page.locator(".fm-tiles figure:visible").evaluate_all("all => all.map(e => e.innerText + (e.querySelector('img') || {}).src)")


def n_matching(texts): return sum("✓ matching" in text for text in texts)


def asked(page): return page.locator(".fm-ask:visible img").first.get_attribute("src")


def until(page, read, ready, timeout=20_000):
    "What `read(page)` gives, once it is ready: a page redraws in several steps, so what is waited for is what is wanted, not the first change"
    end = time.time() + timeout/1000
    while time.time() < end:
        now = read(page)
        if now and ready(now): return now
        page.wait_for_timeout(50)
    raise AssertionError(f"the page did not become what was waited for; at the end: {str(now)[:600]}")


def assert_harmless(page):
    "No dialog, no error, nobody asked, no markup out of a text"
    page.wait_for_timeout(300)
    assert page.seen == [] and page.evaluate("window.PWNED") is None
    assert page.locator(".fm-cards script, .fm-cards iframe, .fm-cards svg, .fm-cards input, .fm-cards a, .fm-cards [onerror], .fm-cards [onmouseover], .fm-cards [onload]").count() == 0
