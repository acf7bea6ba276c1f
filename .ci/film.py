"""Films the demo for the README: `fitmatch app` on the bundled wardrobe, played by a hand that can be seen. `make film` runs it."""
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from fitmatch.images import data_uri
from fitmatch.wardrobe import draw_product, draw_wardrobe

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "nbs" / "images"
COMMAND = [sys.executable, "-c", "from fitmatch.cli import main; main()"]
WIDTH, HEIGHT, TICK = 860, 830, 80       # pixels; milliseconds from one frame to the next while something moves
LIMIT = 3_000_000                        # bytes

HAND = """() => {
  document.body.insertAdjacentHTML('beforeend', `<div id="film-hand" style="position:fixed;z-index:99999;pointer-events:none;left:0;top:0">
    <div id="film-ring" style="position:absolute;left:-15px;top:-15px;width:30px;height:30px;border-radius:50%;background:#0072B255;opacity:0"></div>
    <img id="film-photo" style="position:absolute;left:10px;top:14px;width:76px;border-radius:6px;box-shadow:0 2px 10px #0007;display:none">
    <svg width="22" height="28" viewBox="0 0 22 28" style="position:relative;left:-2px;top:-2px"><path d="M2 2 L2 22 L7 17.5 L11 26 L15 24 L11 16 L18 16 Z" fill="#111" stroke="#fff" stroke-width="1.6"/></svg></div>
    <div id="film-words" style="position:fixed;z-index:99998;left:0;right:0;bottom:0;padding:10px 18px;background:#17202aF2;color:#fff;font:600 17px/1.3 system-ui,sans-serif;pointer-events:none"></div>`);
}"""


@contextmanager
def served(workspace, log):
    "The address of `fitmatch app`; ended with everything it started"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with open(log, "wb") as out:
        server = subprocess.Popen([*COMMAND, "app", "--workspace", str(workspace), "--port", str(port), "--no-browser"], stdout=out, stderr=subprocess.STDOUT,
                                  env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True)
    try:
        for _ in range(240):
            if server.poll() is not None: raise SystemExit(f"the demo ended: {Path(log).read_text()[-2000:]}")
            try: urllib.request.urlopen(f"http://127.0.0.1:{port}/voila/static/voila.js", timeout=2).close(); break
            except OSError: time.sleep(.25)
        else: raise SystemExit(f"no answer: {Path(log).read_text()[-2000:]}")
        yield f"http://127.0.0.1:{port}/"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


class Film:
    "Frames of a page, each with the milliseconds it stays; the clock is the film's own, so a slow machine makes no slow film"
    def __init__(self, page):
        self.page, self.frames, self.at = page, [], (WIDTH * .55, HEIGHT * .5)
        page.evaluate(HAND)
        self.place(*self.at)

    def place(self, x, y):
        self.at = (x, y)
        self.page.mouse.move(x, y)
        self.page.evaluate("([x, y]) => { const h = document.getElementById('film-hand'); h.style.left = x + 'px'; h.style.top = y + 'px'; }", [x, y])

    def frame(self, stays=TICK):
        "What is seen now; what has not changed stays longer"
        picture = Image.open(BytesIO(self.page.screenshot())).convert("RGB")
        if self.frames and self.frames[-1][0].tobytes() == picture.tobytes(): self.frames[-1][1] += stays
        else: self.frames.append([picture, stays])

    def say(self, words): self.page.evaluate("w => { document.getElementById('film-words').textContent = w; }", words)

    def go(self, x, y, steps=8, drag=None):
        "Moves the hand there, slow at both ends; `drag` is done at each step"
        (x0, y0), ease = self.at, lambda t: t*t*(3 - 2*t)
        for i in range(1, steps + 1):
            self.place(x0 + (x - x0)*ease(i/steps), y0 + (y - y0)*ease(i/steps))
            if drag: drag()
            self.frame()

    def to(self, locator, steps=8, along=.5):
        "Moves the hand to an element, to the part `along` of its width"
        box = locator.bounding_box()
        self.go(box["x"] + box["width"]*along, box["y"] + box["height"]*.6, steps)

    def tap(self, click=True):
        "A click that can be seen"
        ring = lambda opacity: self.page.evaluate("o => { document.getElementById('film-ring').style.opacity = o; }", opacity)
        ring(1)
        self.frame(160)
        if click: self.page.mouse.click(*self.at)
        ring(0)
        self.frame()

    def cards(self): return self.page.locator(".fm-tiles figure:visible").evaluate_all("all => all.map(e => e.innerText + (e.querySelector('img') || {}).src)")

    def settle(self, before=None, stays=900):
        "Waits until the cards are others than `before` and all their pictures are there"
        for _ in range(400):
            if self.cards() and self.cards() != before: break
            self.page.wait_for_timeout(50)
        else: raise SystemExit("the cards stayed as they were: has the demo changed?")
        self.page.wait_for_function("[...document.images].every(i => i.complete)")
        self.page.wait_for_timeout(250)
        self.frame(stays)

    def slide(self, name, fraction, steps=7):
        "Drags the handle of a slider, and follows what the page does"
        slider = self.page.locator(".widget-slider", has_text=name)
        self.to(slider.locator(".noUi-handle"))
        track = slider.locator(".noUi-base").bounding_box()
        self.page.mouse.down()
        self.go(track["x"] + track["width"]*fraction, self.at[1], steps, drag=lambda: self.page.wait_for_timeout(260))
        self.page.mouse.up()


def drop(page, path):
    "Drops a file on the field beside the button, as a hand would"
    transfer = page.evaluate_handle("([bytes, name]) => { const t = new DataTransfer(); t.items.add(new File([new Uint8Array(bytes)], name, {type: 'image/jpeg'})); return t; }",
                                    [list(path.read_bytes()), path.name])
    page.locator("[ondrop]").dispatch_event("drop", {"dataTransfer": transfer})


def switch(film, button, stays):
    "Presses a matcher's button"
    film.to(button)
    before = film.cards()
    film.tap()
    film.settle(before, stays)


def play(film, photo):
    "The scenes"
    page = film.page
    show = page.locator("select").nth(1)
    film.say("fitmatch app — what goes with this piece of clothing?")
    film.frame(1400)

    film.say("Find a product by its words")
    film.to(page.get_by_placeholder("words of a title"), along=.3)
    film.tap()
    before = film.cards()
    for letter in "checked shirt":
        page.keyboard.type(letter)
        film.frame()
    film.settle(before, 1200)

    rule, learned = (page.get_by_role("button", name=name, exact=True) for name in ("also-buy rule", "learned"))
    if "mod-active" in (learned.get_attribute("class") or ""):            # which one a demo begins with may change
        film.say("By the original rule: what was bought with the products that look like it")
        switch(film, rule, 1100)
    film.say("By what was learned from purchases: what goes with it")
    switch(film, learned, 1500)

    film.say("The chart says what the threshold buys: how many are right, how many are found")
    film.slide("threshold", .9)
    film.settle(stays=1500)
    film.slide("threshold", .55, steps=4)
    film.settle(stays=500)

    film.say("Bring a photo: it does not leave this machine")
    film.go(WIDTH - 30, HEIGHT - 90, 5)
    page.evaluate("s => { const i = document.getElementById('film-photo'); i.src = s; i.style.display = 'block'; }", data_uri(photo.read_bytes()))
    film.frame(400)
    film.to(page.locator("[ondrop]"), 10)
    film.frame(240)
    before = film.cards()
    page.evaluate("document.getElementById('film-photo').style.display = 'none'")
    drop(page, photo)
    film.settle(before, 1800)

    film.say("… and which shoes go with it?")
    film.to(show)
    film.tap(click=False)                # the list of a <select> is drawn by the system, outside the page
    before = film.cards()
    show.select_option(label="shoes")
    film.settle(before, 2400)


def unseen_photo(folder):
    "A drawn photo of a product that is not in the shop"
    products = draw_wardrobe(120, random_state=7, dirty=False, root=Path(folder) / "others").products
    r = products[(products["ground_truth"] == "dresses") & (products["color"] == "rust")].iloc[0]
    path = Path(folder) / "holiday.jpg"
    draw_product(r["silhouette"], r["style"], r["color"], r["pattern"], r["seed"], 400).save(path, quality=92)
    return path


def write_gif(frames, path):
    "One palette for all frames, no dithering: what has not changed costs nothing, and text stays crisp"
    every = [f for f, stays in frames if stays >= 400]
    sheet = Image.fromarray(np.concatenate([np.asarray(f)[::2, ::2] for f in every]))
    palette = sheet.quantize(255, method=Image.Quantize.MEDIANCUT)
    flat = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f, _ in frames]
    flat[0].save(path, save_all=True, append_images=flat[1:], duration=[stays for _, stays in frames], loop=0, optimize=False, disposal=1)


def record(workspace, folder):
    "The frames of the whole film"
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    photo = unseen_photo(folder)
    with served(workspace, Path(folder) / "app.log") as url, sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-lcd-text"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(url, timeout=120_000)
        page.wait_for_selector(".fm-tiles figure", timeout=90_000)
        page.wait_for_timeout(800)
        page.add_style_tag(content=".jp-RenderedMarkdown { display: none }")     # the heading: the README has its own
        page.wait_for_timeout(300)
        film = Film(page)
        play(film, photo)
        browser.close()
    return film.frames


def main():
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(sys.argv[1]) if sys.argv[1:] else Path(folder) / "workspace"
        if not workspace.exists(): subprocess.run([*COMMAND, "demo", "--out", str(workspace)], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        frames = record(workspace, folder)
    TARGET.mkdir(exist_ok=True)
    path = TARGET / "film.gif"
    write_gif(frames, path)
    frames[-1][0].save(TARGET / "film-poster.webp", quality=86, method=6)
    size = path.stat().st_size
    print(f"filmed {sum(stays for _, stays in frames)/1000:.1f} s in {len(frames)} frames: {path.name}, {size:,} bytes")
    if size > LIMIT: raise SystemExit(f"more than {LIMIT:,} bytes")


if __name__ == "__main__": main()
