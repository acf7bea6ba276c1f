"""Downloads from a loopback shop: hostile keys, kills, interruptions, retries."""
import errno
import hashlib
import io
import json
import os
import shlex
import signal
import socket
import sqlite3
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import fitmatch.images
from fitmatch.catalogue import SUFFIXES, Catalogue, FitmatchError, clean, load_catalogue, save_catalogue
from fitmatch.cli import run_command_line
from fitmatch.images import AMAZON_HOSTS, check_images, download, download_report, download_status, open_image, picture_urls
from fitmatch.web import WebRefused, check_url
from test_web import CHILDREN, PATIENCE, Loopback, in_child, reply, shop_web, wait_until


def picture(n):
    "A PNG or JPEG file, another for each number"
    y, x = np.mgrid[:24, :24]
    pixels = np.stack([x*10, y*10, np.full_like(x, n % 251), ], axis=-1).astype(np.uint8)
    pixels[n//251 % 24, n % 24] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG" if n % 2 else "JPEG")
    return buffer.getvalue()


def stock(folder, urls, asins=None):
    "A saved workspace of products that have only addresses"
    frame = pd.DataFrame({"asin": asins or [f"B{i:04}" for i in range(len(urls))], "imageURLHighRes": urls})
    return save_catalogue(clean(frame, folder, pictures="optional"), folder)


def shop(slow=0, lost=()):
    "A server of pictures by number: /7.jpg; numbers in `lost` are not there"
    def answer(connection, path):
        n = int(path[1:].split(".")[0])
        time.sleep(slow)
        return reply(connection, status=404) if n in lost else reply(connection, picture(n))
    return Loopback(answer)


def files_below(folder): return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}
def pictures_below(folder): return {name: digest for name, digest in files_below(folder/"images").items() if name.endswith(SUFFIXES)}

# what is fetched

def test_pictures_are_named_by_their_content(tmp_path):
    with shop() as server, shop_web(server.port) as web:
        stock(tmp_path, [[f"{server.url}/{i}.gif"] for i in (1, 2, 1, 3)])         # the suffix of the address says nothing
        catalogue, status = download(tmp_path, web=web, progress=False)
    assert sorted(server.paths) == ["/1.gif", "/2.gif", "/3.gif"]                  # one of them serves two products
    assert status["reason"].tolist() == ["ok"]*4 and status["tries"].sum() == 3
    for i, n in enumerate((1, 2, 1, 3)):
        digest = hashlib.sha256(picture(n)).hexdigest()
        assert status["file"][i] == catalogue.products["image"][i] == f"images/{digest[:2]}/{digest}.{'png' if n % 2 else 'jpg'}"
        assert catalogue.image_path(i).read_bytes() == picture(n) and status["sha256"][i] == digest and status["bytes"][i] == len(picture(n))
    assert status["when"].str.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ").all()
    assert load_catalogue(tmp_path).products["image"].tolist() == catalogue.products["image"].tolist()
    assert len(check_images(catalogue, progress=False)) == 4


def test_three_addresses_are_tried(tmp_path):
    with shop(lost=range(100, 200)) as server, shop_web(server.port) as web:
        many = [f"{server.url}/{n}.jpg" for n in (100, 101, 102, 1)]
        stock(tmp_path, [many[:2] + many[3:], many, [many[3], many[0]]])
        catalogue, status = download(tmp_path, web=web, progress=False, threads=1)
    assert status["reason"].tolist() == ["ok", "status 404", "ok"] and status["url"].tolist() == [many[3], many[0], many[3]]
    assert catalogue.products["image"][1] is None and len(catalogue) == 3
    assert Counter(server.paths) == {"/100.jpg": 1, "/101.jpg": 1, "/1.jpg": 1, "/102.jpg": 1}


def test_what_is_no_picture_is_refused(tmp_path):
    buffer = io.BytesIO(); Image.new("RGB", (60, 60), "white").save(buffer, "GIF")
    bodies = {"/page": b"<html>sign in</html>", "/blank": buffer.getvalue(), "/half": picture(2)[:-200], "/big": b"x"*3_000_000, "/dot": b"GIF89a\x01\x00\x01\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x01D\x00;"}
    names = {"/page": "not a picture", "/blank": "placeholder", "/half": "corrupt picture", "/big": "too many bytes", "/dot": "too small", "/packed": "encoded response"}
    answer = lambda connection, path: reply(connection, bodies.get(path, picture(1)), headers=["Content-Encoding: br"] if path == "/packed" else [])
    with Loopback(answer) as server, shop_web(server.port, max_bytes=2_000_000) as web:
        urls = [[server.url + path] for path in names] + [[f"{server.url}/images/G/01/x-site/icons/no-img-sm.gif"], ["https://m.media-amazon.com/images/I/01RmK+J4pJL.gif"], ["ftp://shop.example/1.jpg"], [], [f"{server.url}/é.jpg"]]
        stock(tmp_path, urls)
        catalogue, status = download(tmp_path, web=web, progress=False)
        assert status["reason"].tolist() == [*names.values(), "placeholder", "placeholder", "scheme not allowed", "no address", "url not allowed"]
        assert catalogue.products["image"].isna().all() and not pictures_below(tmp_path) and not status["temporary"].any()
        assert sorted(server.paths) == sorted(names)
        report = download_report(status)
        assert dict(zip(report["reason"], report["products"]))["placeholder"] == 3 and report["products"].sum() == len(urls)
        refused = check_images(catalogue, progress=False)
        assert len(refused) == 0 and refused.refused() == {"no picture": len(urls)}
        download(tmp_path, web=web, progress=False)
        assert len(server.paths) == len(names)                                     # final answers are not asked for again
        download(tmp_path, web=web, progress=False, again=True)
        assert len(server.paths) == 2*len(names)                                   # unless wanted


def test_old_amazon_addresses_are_asked_encrypted(tmp_path):
    assert picture_urls(["http://ecx.images-amazon.com/images/I/41x.jpg"]) == ["https://images-na.ssl-images-amazon.com/images/I/41x.jpg"]
    assert picture_urls(["http://G-ecx.images-amazon.com/a", "http://m.media-amazon.com/b"]) == ["https://images-na.ssl-images-amazon.com/a", "https://m.media-amazon.com/b"]
    for url in ("http://evil.example/ecx.images-amazon.com", "http://ecx.images-amazon.com.evil.example/a", "https://ecx.images-amazon.com/a"): assert picture_urls([url]) == [url]
    asked = []
    class Shelf:
        def get(self, url): asked.append(url); raise WebRefused("status 404")
        def close(self): pass
    stock(tmp_path, [["http://ecx.images-amazon.com/images/I/41x.jpg"]])
    download(tmp_path, web=Shelf(), progress=False)
    download(tmp_path, web=Shelf(), progress=False, http=True, again=True)
    assert asked == ["https://images-na.ssl-images-amazon.com/images/I/41x.jpg", "http://ecx.images-amazon.com/images/I/41x.jpg"]


def test_only_the_shops_hosts_are_asked_by_default(tmp_path, monkeypatch):
    looked_up = []
    def resolver(host, port, *_, **__): looked_up.append(host); raise socket.gaierror(-3, "no network in this test")
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    urls = ["https://evil.example/1.jpg", "https://169.254.169.254/1.jpg", "file:///etc/passwd", "https://m.media-amazon.com.evil.example/1.jpg", "https://m.media-amazon.com/images/I/1.jpg"]
    stock(tmp_path, [[u] for u in urls])
    _, status = download(tmp_path, progress=False, retries=0)
    assert status["reason"].tolist() == ["host not allowed", "host not allowed", "scheme not allowed", "host not allowed", "name not found"]
    assert looked_up == ["m.media-amazon.com"] and status["temporary"].tolist() == [False]*4 + [True]
    for name in ("m.media-amazon.com", "images-na.ssl-images-amazon.com", "ecx.images-amazon.com"): assert check_url(f"https://{name}/1.jpg", AMAZON_HOSTS).host == name

# what a second run asks for

def test_a_second_run_asks_only_for_what_is_missing(tmp_path):
    closed = [True]
    def answer(connection, path):
        n = int(path[1:].split(".")[0])
        return reply(connection, status=503 if closed[0] else 200, body=b"" if closed[0] else picture(n)) if n >= 8 else reply(connection, picture(n)) if n < 6 else reply(connection, status=410)
    with Loopback(answer) as server, shop_web(server.port) as web:
        stock(tmp_path, [[f"{server.url}/{i}.jpg"] for i in range(10)])
        first, status = download(tmp_path, web=web, progress=False, retries=0)
        assert Counter(status["reason"]) == {"ok": 6, "status 410": 2, "status 503": 2} and first.products["image"].isna().sum() == 4
        before = pictures_below(tmp_path); server.paths.clear(); closed[0] = False
        gone = first.image_path(0); cut = first.image_path(1)
        gone.unlink(); cut.write_bytes(cut.read_bytes()[:50])                      # one is lost, one is no longer whole
        again, status = download(tmp_path, web=web, progress=False)
        assert sorted(server.paths) == ["/0.jpg", "/8.jpg", "/9.jpg"]              # a picture that the catalogue names and that is there is not opened again
        cut.unlink(); server.paths.clear()
        again, status = download(tmp_path, web=web, progress=False)
        assert server.paths == ["/1.jpg"] and Counter(status["reason"]) == {"ok": 8, "status 410": 2}
        assert before.items() <= pictures_below(tmp_path).items() and len(pictures_below(tmp_path)) == 8


def test_a_catalogue_that_grows_asks_for_the_new_ones(tmp_path):
    with shop() as server, shop_web(server.port) as web:
        first, _ = download(stock(tmp_path, [[f"{server.url}/{i}.jpg"] for i in range(3)]), web=web, progress=False)
        more = pd.concat([first.products, pd.DataFrame({"asin": ["N1", "N2"], "imageURLHighRes": [[f"{server.url}/2.jpg"], [f"{server.url}/3.jpg"]]})], ignore_index=True)
        server.paths.clear()
        grown, status = download(clean(more, tmp_path, pictures="optional"), web=web, progress=False)
    assert server.paths == ["/3.jpg"] and grown.products["image"].notna().all() and len(status) == 5     # the third picture was there already


def test_notes_of_a_stranger_name_no_file_outside(tmp_path):
    (tmp_path/"secret.jpg").write_bytes(picture(9))
    workspace = tmp_path/"w"
    with shop() as server, shop_web(server.port) as web:
        stock(workspace, [[f"{server.url}/1.jpg"], [f"{server.url}/2.jpg"]])
        download(workspace, web=web, progress=False)
        with sqlite3.connect(workspace/"downloads.sqlite") as db: db.execute("update downloads set file = '../secret.jpg', bytes = ?", [len(picture(9))])
        stock(workspace, [[f"{server.url}/1.jpg"], [f"{server.url}/2.jpg"]])
        catalogue, status = download(workspace, web=web, progress=False)
    assert all(str(f).startswith("images/") for f in catalogue.products["image"]) and len(server.paths) == 4


def test_a_damaged_table_is_one_clear_line(tmp_path):
    stock(tmp_path, [[]])
    (tmp_path/"downloads.sqlite").write_bytes(b"SQLite format 3\0" + b"\xff"*5000)
    with pytest.raises(FitmatchError, match="downloads.sqlite cannot be used") as e: download(tmp_path, progress=False)
    assert "\n" not in str(e.value) and "fitmatch download" in str(e.value)

# hostile keys

NASTY = ["../../../escaped", "/etc/cron.d/x", "..\\..\\x", "C:\\Windows\\x", "CON", "aux.jpg", "a\x00b", "x"*5000, "é"*300, "\u202egpj.exe", "a\nb\r\nc", "'; drop table downloads; --", "\" or 1=1", "%2e%2e%2f", "~root", "$(touch x)",
         "`touch x`", "-rf", ".", "..", "...", " ", "images/../../x", "a/b/c/d", "//host/share", "file:///x", "null", "None", "nan", "=cmd|' /C calc'!A0", "<script>", "\u0000", "\ufeff", "💥", "name\u0301", "*?[]", "{}", "?", "%s%n", "1e999"]

def _download_watched(workspace, port):
    "(reasons, every path that Python wrote to, requests), of a download in this process"
    wrote = []
    def watch(event, arguments):
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT): wrote.append(str(arguments[0]))
        if event in ("os.rename", "os.link", "os.symlink"): wrote.append(str(arguments[1]))
        if event in ("os.mkdir", "os.remove", "sqlite3.connect"): wrote.append(str(arguments[0]))
    sys.addaudithook(watch)
    with shop_web(port, per_host=16) as web: catalogue, status = download(workspace, web=web, progress=False, retries=1)
    return status["asin"].tolist(), Counter(status["reason"]), wrote, catalogue.products["image"].tolist()


def test_a_thousand_hostile_keys_write_nothing_outside(tmp_path, figure):
    asins = [f"{nasty}{i//len(NASTY) or ''}" for i, nasty in zip(range(1000), NASTY*1000)]
    assert len(set(asins)) == 1000
    workspace = tmp_path/"deep"/"er"/"w"
    with shop() as server:
        frame = pd.DataFrame({"asin": asins, "imageURLHighRes": [[f"{server.url}/{i}.jpg?{i}"] for i in range(1000)], "image": None, "also_buy": [[]]*1000, "title": None, "category": None, "ground_truth": None})
        save_catalogue(Catalogue(frame, workspace), workspace)
        known, reasons, wrote, images = in_child(_download_watched, workspace, server.port)
    outside = [path for path in wrote if not f"{os.path.abspath(path)}{os.sep}".startswith(f"{workspace}{os.sep}")]
    written = sorted(files_below(tmp_path))
    figure(f"hostile keys: 1,000 asins, {len(known)} with a status, {reasons['ok']} pictures, {len(set(wrote))} paths written to, {len(outside)} outside the workspace")
    assert known == asins and reasons == {"ok": 1000} and len(server.paths) == 1000
    assert outside == [] and len(set(wrote)) >= 1000
    assert {p for p in written if "/images/" not in p} == {f"deep/er/w/{name}" for name in ("catalogue.parquet", "quarantine.parquet", "downloads.sqlite")}
    assert {p.removeprefix("deep/er/w/") for p in written if "/images/" in p} == set(images)
    assert load_catalogue(workspace).products["asin"].tolist() == asins

# kills and interruptions

PRODUCTS, LOST = 200, {17, 18, 120}

def start(function, *arguments):
    "A process of its own"
    process = CHILDREN.Process(target=function, args=arguments)
    process.start()
    return process


def _download(workspace, port):
    with shop_web(port, deadline=PATIENCE, stall=PATIENCE) as web: download(workspace, web=web, progress=False, threads=8)


def _outcome(workspace):
    "What must be the same whether a download was broken off or not"
    status = download_status(workspace)[["asin", "url", "reason", "file", "bytes", "sha256"]].sort_values("asin", ignore_index=True)
    return status, pictures_below(workspace), load_catalogue(workspace).products["image"].tolist()


def test_kill_at_thirty_moments_ends_like_an_unbroken_run(tmp_path, figure):
    draw = np.random.default_rng(0)
    repeated = asked_in_all = finished = 0
    kills = []                                                                            # how many products had been noted at each
    with shop(slow=.01, lost=LOST) as server:
        urls = [[f"{server.url}/{n}.jpg"] for n in range(PRODUCTS)]
        stock(tmp_path/"whole", urls)
        _download(tmp_path/"whole", server.port)
        table, pictures, images = _outcome(tmp_path/"whole")
        assert len(pictures) == PRODUCTS - len(LOST)
        while len(kills) < 30:
            workspace = tmp_path/f"broken{finished}"
            stock(workspace, urls)
            done = 0
            while len(kills) < 30 and done < PRODUCTS:
                server.settle(); server.paths.clear()
                process = start(_download, workspace, server.port)
                seen = draw.integers(0, 100 if len(kills) % 4 else 8)                     # the moment: so many requests seen, and a little later; at none of them the process has only begun
                wait_until(lambda: len(server.paths) >= min(seen, PRODUCTS - done) or process.exitcode is not None)
                process.join(draw.uniform(0, .05)); process.kill(); process.join(PATIENCE)
                assert process.exitcode in (0, -signal.SIGKILL)
                server.settle()                                                           # what it had asked is answered, or has failed
                asked, before, done = len(server.paths), done, len(download_status(workspace))
                assert done - before <= asked <= PRODUCTS - before, "asked again for what was noted as done"
                repeated, asked_in_all = max(repeated, asked - (done - before)), asked_in_all + asked
                for name, digest in pictures_below(workspace).items(): assert pictures[name] == digest    # half a picture never has a picture's name
                if process.exitcode == 0: break
                kills.append(done)
            server.paths.clear()
            process = start(_download, workspace, server.port); process.join(PATIENCE)    # the last run of this workspace is left in peace
            assert process.exitcode == 0 and len(server.paths) == PRODUCTS - done
            asked_in_all += len(server.paths)
            pd.testing.assert_frame_equal(_outcome(workspace)[0], table)
            assert _outcome(workspace)[1:] == (pictures, images)
            finished += 1
    figure(f"kill -9: {len(kills)} kills, with {min(kills)} to {max(kills)} of {PRODUCTS} products noted, in {finished} downloads that all ended like the unbroken one; "
           f"at most {repeated} answers lost by a kill, {asked_in_all/finished:.0f} requests a download")
    assert len(kills) == 30 and len(set(kills)) >= 5 and repeated <= 8 + 4*8              # a batch of notes, and what was under way


def _download_until_interrupted(workspace, port):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try: _download(workspace, port)
    except KeyboardInterrupt: sys.exit(130)


def test_an_interruption_ends_soon_and_loses_nothing(tmp_path, figure):
    awake = threading.Event()
    def answer(connection, path):
        n = int(path[1:].split(".")[0])
        if n >= 60: awake.wait(PATIENCE)                                                  # then the shop falls asleep
        return reply(connection, picture(n))
    with Loopback(answer) as server:
        stock(tmp_path, [[f"{server.url}/{n}.jpg"] for n in range(100)])
        process = start(_download_until_interrupted, tmp_path, server.port)
        wait_until(lambda: len(pictures_below(tmp_path)) == 60 and server.now == 8 or process.exitcode is not None)
        pressed = time.monotonic()
        os.kill(process.pid, signal.SIGINT); process.join(PATIENCE/2)
        seconds = time.monotonic() - pressed
        assert process.exitcode == 130                                                    # long before the shop wakes
        awake.set()
        figure(f"Ctrl-C while 8 answers are awaited: ended after {seconds:.2f} s, {len(download_status(tmp_path))} products noted, {len(pictures_below(tmp_path))} pictures")
        assert Counter(download_status(tmp_path)["reason"]) == {"ok": 60} and len(pictures_below(tmp_path)) == 60


def test_two_downloads_of_one_workspace_do_not_disturb_each_other(tmp_path):
    with shop(slow=.002) as server:
        stock(tmp_path, [[f"{server.url}/{n}.jpg"] for n in range(60)])
        both = [start(_download, tmp_path, server.port) for _ in range(2)]
        for process in both: process.join(PATIENCE)
    assert [process.exitcode for process in both] == [0, 0]
    assert Counter(download_status(tmp_path)["reason"]) == {"ok": 60} and len(pictures_below(tmp_path)) == 60
    assert load_catalogue(tmp_path).products["image"].notna().all() and not list(tmp_path.rglob("*.partial"))


def _note(workspace, gate, name):
    for turn in range(20):
        gate.wait(PATIENCE)
        for n in range(5):
            with fitmatch.images._downloads(workspace/f"w{turn}") as db: fitmatch.images._record(db, f"{name}-{n}", dict(reason="ok"))


def test_notes_of_processes_that_begin_together_are_all_kept(tmp_path):
    "The table is made, opened and closed by all at the same moment, again and again"
    gate = CHILDREN.Barrier(4)
    all_of_them = [start(_note, tmp_path, gate, name) for name in range(4)]
    for process in all_of_them: process.join(PATIENCE)
    assert [process.exitcode for process in all_of_them] == [0]*4
    assert [len(download_status(tmp_path/f"w{turn}")) for turn in range(20)] == [20]*20

# asking again, limits

def test_a_busy_shop_is_asked_again_and_a_missing_picture_is_not(tmp_path, figure):
    seen, lock = Counter(), threading.Lock()
    def answer(connection, path):
        with lock: seen[path] += 1; n = seen[path]
        if path == "/404": return reply(connection, status=404)
        if path == "/503" and n < 3: return reply(connection, status=503, headers=["Retry-After: 1"])
        if path == "/429" and n < 2: return reply(connection, status=429)
        if path == "/cut" and n < 2: connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\nabc"); return False
        return reply(connection, status=500) if path == "/500" else reply(connection, picture(len(path)))
    with Loopback(answer) as server, shop_web(server.port) as web:
        stock(tmp_path, [[server.url + path] for path in ("/404", "/503", "/429", "/cut", "/500")])
        start = time.monotonic()
        _, status = download(tmp_path, web=web, progress=False, retries=2)
        seconds = time.monotonic() - start
    figure(f"asking again: requests {dict(sorted(seen.items()))}, {seconds:.1f} s with 'Retry-After: 1' twice")
    assert status["reason"].tolist() == ["status 404", "ok", "ok", "ok", "status 500"] and status["tries"].tolist() == [1, 3, 2, 2, 3]
    assert seen == {"/404": 1, "/503": 3, "/429": 2, "/cut": 2, "/500": 3} and status["temporary"].tolist() == [False]*4 + [True]
    assert seconds >= 1.9


def test_a_host_gets_no_more_connections_than_allowed(tmp_path):
    four = threading.Barrier(4, timeout=PATIENCE)                                         # nobody is answered before four ask at one time
    def answer(connection, path): four.wait(); time.sleep(.02); return reply(connection, picture(int(path[1:-4])))
    with Loopback(answer) as server:
        stock(tmp_path, [[f"{server.url}/{n}.jpg"] for n in range(40)])
        with shop_web(server.port, per_host=4) as web: _, status = download(tmp_path, web=web, progress=False, threads=16)
    assert Counter(status["reason"]) == {"ok": 40} and server.most == 4


def test_a_full_disk_is_one_clear_line(tmp_path, monkeypatch):
    with shop() as server, shop_web(server.port) as web:
        stock(tmp_path, [[f"{server.url}/{n}.jpg"] for n in range(20)])
        real, left = Path.write_bytes, [5]
        def write_bytes(self, data):
            left[0] -= 1
            if left[0] < 0: raise OSError(errno.ENOSPC, "No space left on device")
            return real(self, data)
        monkeypatch.setattr(Path, "write_bytes", write_bytes)
        with pytest.raises(FitmatchError, match="the disk is full"): download(tmp_path, web=web, progress=False, threads=2)
        monkeypatch.undo()
    with shop() as server, shop_web(server.port) as web:
        stock(tmp_path, [[f"{server.url}/{n}.jpg"] for n in range(20)])
        catalogue, status = download(tmp_path, web=web, progress=False)
    assert set(status["reason"]) == {"ok"} and all(open_image(catalogue.image_path(i)) for i in range(20))


def test_the_progress_bar_is_on_stderr(tmp_path, capfd):
    with shop() as server, shop_web(server.port) as web:
        stock(tmp_path, [[f"{server.url}/{n}.jpg"] for n in range(3)])
        download(tmp_path, web=web, progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "download" in err and "3/3" in err


# the command

def typed(capsys, *arguments):
    "(exit code, standard output, standard error) of `fitmatch …`"
    code = run_command_line([str(a) for a in arguments])
    return code, *capsys.readouterr()


def test_prepare_then_download_as_typed(tmp_path, monkeypatch, capsys):
    with shop(lost={3}) as server:
        rows = ["sku,photo", *(f"B{n},{server.url}/{n}.jpg" for n in range(5)), "B5,https://stranger.example/1.jpg"]
        (tmp_path/"export.csv").write_text("\n".join(rows))
        code, out, _ = typed(capsys, "prepare", tmp_path/"export.csv", "--out", tmp_path/"my shop", "--columns", "asin=sku,imageURLHighRes=photo")
        assert code == 0 and shlex.split(out.splitlines()[-1]) == ["next", "fitmatch", "download", str(tmp_path/"my shop")]
        code, out, _ = typed(capsys, "download", tmp_path/"my shop", "--json")
        assert code == 0 and json.loads(out)["outcomes"] == [dict(reason="scheme not allowed", products=5, next_time="asked once it is allowed"), dict(reason="host not allowed", products=1, next_time="asked once it is allowed")]
        asked = []
        def web(hosts, http, **_): asked.append((hosts, http)); return shop_web(server.port)
        monkeypatch.setattr(fitmatch.images, "Web", web)
        code, out, err = typed(capsys, "download", tmp_path/"my shop", "--hosts", "shop.example", "--http", "--threads", 2)
        assert code == 0 and asked == [((*AMAZON_HOSTS, "shop.example"), True)] and out.startswith("4 of 6 products have a picture") and "status 404" in out and "--hosts" in out
        server.paths.clear()
        assert json.loads(typed(capsys, "download", tmp_path/"my shop", "--http", "--json")[1])["pictures"] == 4 and server.paths == []
        assert typed(capsys, "download", tmp_path/"my shop", "--http", "--again")[0] == 0 and server.paths == ["/3.jpg"]
        code, out, _ = typed(capsys, "prepare", tmp_path/"export.csv", "--out", tmp_path/"my shop", "--columns", "asin=sku,imageURLHighRes=photo", "--json")
        assert code == 0 and json.loads(out)["products"] == 6                      # one object and nothing else


def test_download_says_what_is_missing(tmp_path, capsys):
    code, out, err = typed(capsys, "download", tmp_path/"nowhere")
    assert code == 2 and out == "" and "no fitmatch workspace" in err and len(err.strip().splitlines()) == 1
