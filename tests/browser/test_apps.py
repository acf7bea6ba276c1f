"""The demos as people meet them: JupyterLab, Voila and Streamlit, with a shop whose every text is an attack"""
import csv
import importlib.util
import shutil
import time

import pytest
from servers import COMMAND, ROOT, asked, assert_harmless, cards, free_port, n_matching, notebook_in_jupyterlab, served, snap, until, visit


def needs(*modules):
    for name in modules:
        if importlib.util.find_spec(name) is None: pytest.skip(f"{name} is not installed: pip install 'fitmatch[app]'")


def drop(page, path):
    "Drops a file on the field beside the button, as a hand would"
    data = list(path.read_bytes())
    transfer = page.evaluate_handle("([bytes, name]) => { const t = new DataTransfer(); t.items.add(new File([new Uint8Array(bytes)], name, {type: 'image/jpeg'})); return t; }", [data, path.name])
    page.locator("[ondrop]").dispatch_event("drop", {"dataTransfer": transfer})


def upload(page, path):
    with page.expect_file_chooser() as chooser: page.get_by_role("button", name="upload a photo").click()
    chooser.value.set_files(path)


def steps_up(page, handle, before):
    "The cards once ten steps of the threshold have left fewer that match; a page just drawn may be deaf for a moment, so it is moved once more when nothing came of it"
    for wait in (6_000, 20_000):
        for _ in range(10): handle.press("PageUp")
        try: return until(page, cards, lambda now: n_matching(now) < n_matching(before), wait)
        except AssertionError:
            if wait == 20_000: raise
            handle.press("Home")


def play(page, photo, tmp_path):
    "Moves the sliders, brings photos, takes the selection away: each time the page must follow"
    first = cards(page)
    assert len(first) == 12 and any("✓ matching" in text for text in first)
    handle = page.locator(".widget-slider", has_text="threshold").locator(".noUi-handle")
    handle.focus()
    begin = time.perf_counter()
    steps_up(page, handle, first)
    seconds = time.perf_counter() - begin
    question = asked(page)                                                  # the cards may still follow the slider, so the question's picture is looked at
    products = page.locator(".widget-dropdown:has(label:text-is('product')) select")
    products.select_option(index=2)
    until(page, asked, lambda now: now != question)
    products.select_option(index=0)
    until(page, asked, lambda now: now == question)
    upload(page, photo)
    page.wait_for_selector(".fm-step:visible:has-text('Your photo')")
    by_button = cards(page)
    page.get_by_role("button", name="another one").click()
    page.wait_for_selector(".fm-step:visible:has-text('You asked about')")
    drop(page, photo)
    page.wait_for_selector(".fm-step:visible:has-text('Your photo')")
    assert cards(page) == by_button
    (tmp_path/"notes.jpg").write_bytes(b"this is no picture, whatever its name says")
    upload(page, tmp_path/"notes.jpg")
    page.wait_for_selector("[role=alert]:has-text('not a picture')")
    assert cards(page) == by_button
    with page.expect_download() as download: page.get_by_text("download as CSV").click()
    with open(download.value.path(), encoding="utf-8-sig", newline="") as file: assert len(list(csv.reader(file))) == len(by_button) + 1
    page.get_by_label("show me the code").check()
    page.wait_for_selector("pre:has-text('open_shop')")
    return seconds


def test_jupyterlab(browser, hostile_workspace, photo, tmp_path, figure):
    needs("jupyterlab")
    (tmp_path/"notebooks").mkdir()
    shutil.copy(ROOT/"apps"/"match_demo.ipynb", tmp_path/"notebooks")
    with notebook_in_jupyterlab(browser, tmp_path, "match_demo.ipynb", ".fm-tiles figure", FITMATCH_WORKSPACE=hostile_workspace) as page:
        snap(page, "lab")
        figure(f"JupyterLab: ten steps of the threshold until fewer cards match {play(page, photo, tmp_path):.2f} s")
        static = "div[class^=fm-][class$=-static]"                          # a picture for when there is no kernel
        assert page.locator(static).count() == 1 and not page.locator(static).is_visible()
        assert_harmless(page)


def test_voila(browser, hostile_workspace, photo, tmp_path, figure):
    needs("voila")
    port = free_port()
    command = [*COMMAND, "app", "--workspace", str(hostile_workspace), "--port", str(port), "--no-browser"]
    with served(command, f"http://127.0.0.1:{port}/voila/static/voila.js", tmp_path/"voila.log"):
        page = visit(browser, f"http://127.0.0.1:{port}/")
        page.wait_for_timeout(500)
        snap(page, "voila")
        figure(f"Voila: ten steps of the threshold until fewer cards match {play(page, photo, tmp_path):.2f} s")
        assert_harmless(page)
        phone = visit(browser, f"http://127.0.0.1:{port}/?theme=dark", width=390, scheme="dark")
        phone.wait_for_timeout(500)
        snap(phone, "voila-phone-dark")
        assert phone.evaluate("document.documentElement.scrollWidth") == 390
        ink = phone.locator(".fm-cards").first.evaluate("e => getComputedStyle(e).color.match(/\\d+/g).slice(0, 3).map(Number)")
        assert sum(ink) > 500, "light text on a dark page"
        assert_harmless(phone)


def test_streamlit(browser, hostile_workspace, photo, tmp_path):
    needs("streamlit")
    port = free_port()
    command = [*COMMAND, "app", "--streamlit", "--workspace", str(hostile_workspace), "--port", str(port), "--no-browser"]
    with served(command, f"http://127.0.0.1:{port}/_stcore/health", tmp_path/"streamlit.log"):
        page = visit(browser, f"http://127.0.0.1:{port}/")
        first = cards(page)
        steps_up(page, page.get_by_role("slider", name="threshold"), first)
        page.wait_for_timeout(1000)                                         # ten steps of the slider are ten runs of the page
        page.locator("input[type=file]").set_input_files(photo)
        page.wait_for_selector(".fm-step:visible:has-text('Your photo')")
        snap(page, "streamlit-matches")
        (tmp_path/"notes.jpg").write_bytes(b"no picture")
        page.locator("input[type=file]").set_input_files(tmp_path/"notes.jpg")
        page.wait_for_selector("[role=alert]:has-text('not a picture')")
        for name, ready in (("Outfit", "text=A look, piece by piece"), ("Scoreboard", "[data-testid=stVegaLiteChart]"), ("Map", "iframe")):
            page.locator("[role=radiogroup] label", has_text=name).click()
            page.wait_for_selector(ready, timeout=60_000)
            if name == "Map": page.frame_locator("iframe").locator(".fm-map[data-drawn]").wait_for(timeout=60_000)
            page.locator("[data-stale=true]").wait_for(state="detached")
            page.wait_for_timeout(500)
            snap(page, f"streamlit-{name.lower()}")
        assert_harmless(page)
        phone = visit(browser, f"http://127.0.0.1:{port}/", width=390)
        snap(phone, "streamlit-phone")
        assert phone.evaluate("document.documentElement.scrollWidth") == 390
