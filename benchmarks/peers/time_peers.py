"""Seconds from the command to a picture in the browser, side by side; with --hostile, titles that are attacks. See nbs/alternatives.qmd

    python benchmarks/peers/time_peers.py WORKSPACE --python atlas=…/bin/python gradio=…/bin/python fiftyone=…/bin/python
"""
import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from playwright.sync_api import sync_playwright

from fitmatch.catalogue import load_catalogue, save_catalogue
from fitmatch.cards import open_shop

HERE = Path(__file__).resolve().parent
ATTACK = "<img src=x onerror=alert(1)>"
FITMATCH = [sys.executable, "-c", "from fitmatch.cli import main; main()"]
READY = {"fitmatch app": ".fm-tiles figure", "fitmatch report": ".fm-map[data-drawn]", "atlas": "canvas", "gradio": ".js-plotly-plot .scatterlayer, .js-plotly-plot canvas", "fiftyone": "[data-cy=looker], [data-cy*=looker] canvas"}
CHROMIUM = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"]


def write_files(workspace, folder, hostile):
    "The same products, pictures and vectors for everybody"
    shop = open_shop(workspace)
    c = shop.catalogue
    table = c.products[["asin", "title", "ground_truth", "also_buy"]].reset_index(drop=True)
    if hostile: table["title"] = [f"{title} {ATTACK}" for title in table["title"]]
    if hostile: shutil.copytree(workspace, folder/"hostile"); hostile_workspace(folder/"hostile", table)
    paths = [Path(c.image_path(i)).resolve() for i in range(len(c))]
    for path in paths: shutil.copy(path, folder)
    table = table.assign(vector=list(shop.X), path=[str(folder/p.name) for p in paths], also_buy=[list(a) for a in table["also_buy"]])
    table.to_parquet(folder/"wardrobe.parquet")
    table.drop(columns=["path", "also_buy"]).assign(image=[{"bytes": p.read_bytes()} for p in paths]).to_parquet(folder/"atlas.parquet")


def hostile_workspace(workspace, table):
    "fitmatch meets the same titles: a demo's folder whose table and report hold them"
    catalogue = load_catalogue(workspace)
    products = catalogue.products.assign(title=table["title"].to_numpy())
    save_catalogue(replace(catalogue, products=products), workspace)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def command(name, python, workspace, folder, port):
    if name == "fitmatch app": return [*FITMATCH, "app", "--workspace", str(workspace), "--port", str(port), "--no-browser"]
    if name == "atlas": return [str(Path(python).with_name("embedding-atlas")), str(folder/"atlas.parquet"), "--image", "image", "--vector", "vector", "--port", str(port), "--host", "127.0.0.1"]
    return [python, str(HERE/f"{name}_app.py"), str(folder), str(port)]


def wander(page):
    "Moves over the page and clicks here and there, as somebody looking around would"
    for y in range(60, 840, 90):
        for x in range(60, 1260, 75): page.mouse.move(x, y)
        page.wait_for_timeout(60)
    for x, y in ((400, 240), (640, 430), (300, 650)):
        page.mouse.click(x, y)
        page.wait_for_timeout(700)
        page.keyboard.press("Escape")
    return page.locator("img[onerror], img[src=x]").count()


def measure(name, python, workspace, folder, browser, shots, hostile):
    "(seconds to the first picture, what was seen: dialogs, requests to others, width on a phone)"
    port, seen, log = free_port(), [], folder/f"{name}.log"
    url = (Path(workspace)/"report.html").resolve().as_uri() if name == "fitmatch report" else f"http://127.0.0.1:{port}/"
    page = browser.new_context(viewport={"width": 1280, "height": 860}).new_page()
    page.on("dialog", lambda d: (seen.append(d.message), d.dismiss()))
    page.on("request", lambda r: None if r.url.startswith(("data:", "blob:", "file:", "about:")) or "127.0.0.1" in r.url or "localhost" in r.url else seen.append(r.url))
    begin = time.perf_counter()
    server = None if name == "fitmatch report" else subprocess.Popen(command(name, python, workspace, folder, port), stdout=open(log, "wb"), stderr=subprocess.STDOUT, start_new_session=True)
    try:
        while server:
            if server.poll() is not None: return None, [log.read_text()[-600:]]
            try: urllib.request.urlopen(url, timeout=2).close(); break
            except OSError: time.sleep(.1)
            if time.perf_counter() - begin > 150: return None, [log.read_text()[-600:]]
        page.goto(url, timeout=120_000)
        try: page.wait_for_selector(READY[name], state="attached", timeout=90_000)
        except Exception as e: seen.append(f"not ready: {type(e).__name__}")
        seconds = time.perf_counter() - begin
        page.wait_for_timeout(4000)
        if name == "atlas" and page.get_by_text("WebGPU is unavailable").count(): seen.append("this browser has no WebGPU: no map")
        if shots: page.screenshot(path=Path(shots)/f"{name.replace(' ', '-')}.png")
        if hostile:
            markup = wander(page)
            seen.append(f"{markup} pictures made out of a title")
            if shots: page.screenshot(path=Path(shots)/f"{name.replace(' ', '-')}-hostile.png")
        page.set_viewport_size({"width": 390, "height": 844})
        page.wait_for_timeout(800)
        seen.append(f"{page.evaluate('document.documentElement.scrollWidth')} px wide at 390")
        if shots: page.screenshot(path=Path(shots)/f"{name.replace(' ', '-')}-phone.png")
        return seconds, seen
    finally:
        page.context.close()
        if server:
            for number in (signal.SIGTERM, signal.SIGKILL):
                try: os.killpg(server.pid, number)
                except ProcessLookupError: break
                try: server.wait(15)
                except subprocess.TimeoutExpired: continue


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("workspace")
    parser.add_argument("--python", nargs="*", default=[], help="NAME=PATH of each peer's interpreter")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--hostile", action="store_true", help="each title holds an attack")
    parser.add_argument("--peers-only", action="store_true")
    parser.add_argument("--shots", help="folder for screenshots")
    a = parser.parse_args()
    ours = () if a.peers_only else ("fitmatch app",) if a.hostile else ("fitmatch app", "fitmatch report")   # the report is written before; tests/test_report.py attacks it
    who = {**dict.fromkeys(ours, sys.executable), **dict(p.split("=", 1) for p in a.python)}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        write_files(a.workspace, Path(folder), a.hostile)
        workspace = Path(folder)/"hostile" if a.hostile else a.workspace
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM)
        print(f"load {os.getloadavg()[0]:.1f}, fitmatch {version('fitmatch')}")
        for _ in range(a.rounds):
            for name, python in who.items():
                seconds, seen = measure(name, python, workspace, Path(folder), browser, a.shots, a.hostile)
                print(f"{name:16} {'—' if seconds is None else f'{seconds:.1f} s'}  {'; '.join(sorted(set(seen)))}", flush=True)


if __name__ == "__main__": main()
