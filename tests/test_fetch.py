"""Fetching public data: resumed, checked, and unpacked where it belongs."""
import gzip
import hashlib
import http.server
import io
import socket
import tarfile
import threading

import pytest

from fitmatch.catalogue import FitmatchError
from fitmatch.fetch import fetch, fetch_file, list_sources, unpack
from fitmatch.web import Web

CONTENT = bytes(range(251))*8000


class Server(http.server.BaseHTTPRequestHandler):
    "Breaks off after `self.server.piece` bytes of each answer; honours Range unless told otherwise"
    def do_GET(self):
        self.server.asked.append(self.headers.get("Range"))
        wanted = self.headers.get("Range") if self.server.ranges and self.headers.get("If-Range") == self.server.etag else None
        start = int(wanted[6:-1]) if wanted else 0
        body = self.server.content[start:]
        self.send_response(206 if wanted else 200)
        if wanted: self.send_header("Content-Range", f"bytes {start}-{len(self.server.content) - 1}/{len(self.server.content)}")
        self.send_header("ETag", self.server.etag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:self.server.piece])
        self.close_connection = True

    def log_message(self, *_): pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.asked, server.content, server.piece, server.ranges, server.etag = [], CONTENT, 900_000, True, '"v1"'
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_address[1]
    server.url = f"http://data.example.com:{port}/x"
    server.web = Web(None, http=True, ports=(port,), private=True, resolver=lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))])
    yield server
    server.web.close(); server.shutdown(); server.server_close()


def test_goes_on_where_it_stopped(server, tmp_path, monkeypatch, figure):
    monkeypatch.setattr("fitmatch.web.time.sleep", lambda s: None)
    with pytest.raises(FitmatchError, match="goes on where it stopped"): fetch_file([server.url], tmp_path/"x", web=server.web, progress=False, retries=0)
    assert not (tmp_path/"x").exists() and (tmp_path/"x.part").stat().st_size == 900_000
    fetch_file([server.url], tmp_path/"x", hashlib.sha256(CONTENT).hexdigest(), server.web, progress=False, retries=1)
    assert (tmp_path/"x").read_bytes() == CONTENT and server.asked == [None, "bytes=900000-", "bytes=1800000-"]
    fetch_file([server.url], tmp_path/"x", hashlib.sha256(CONTENT).hexdigest(), server.web, progress=False)
    assert len(server.asked) == 3      # what is there and right is not asked for
    figure(f"fetch: {len(CONTENT):,} bytes over a server that breaks off every 900,000, in {len(server.asked)} requests")


def test_another_version_is_not_glued_on(server, tmp_path):
    with pytest.raises(FitmatchError): fetch_file([server.url], tmp_path/"x", web=server.web, progress=False, retries=0)
    server.content, server.etag, server.piece = CONTENT[::-1], '"v2"', 10**9
    assert fetch_file([server.url], tmp_path/"x", web=server.web, progress=False).read_bytes() == CONTENT[::-1]


def test_wrong_content_is_deleted_and_a_mirror_asked(server, tmp_path):
    server.piece = 10**9
    with pytest.raises(FitmatchError, match="not the file that was expected"): fetch_file([server.url], tmp_path/"x", "0"*64, server.web, progress=False)
    assert not list(tmp_path.iterdir())
    good = fetch_file(["http://data.example.com:1/x", server.url], tmp_path/"x", hashlib.sha256(CONTENT).hexdigest(), server.web, progress=False, retries=0)
    assert good.read_bytes() == CONTENT


def test_archives_stay_in_their_folder(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in ("top/a.txt", "top/sub/b.txt", "top/../../evil.txt", "other/c.txt"):
            member = tarfile.TarInfo(name); member.size = 2
            tar.addfile(member, io.BytesIO(b"hi"))
        link = tarfile.TarInfo("top/link"); link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    archive = tmp_path/"in"/"a.tar.gz"
    archive.parent.mkdir()
    archive.write_bytes(buffer.getvalue())
    with pytest.raises(FitmatchError, match="cannot be unpacked"): unpack(archive, tmp_path/"in"/"out", "top/")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.tar.gz", "in"]
    archive.write_bytes(gzip.compress(b"no archive"))
    with pytest.raises(FitmatchError, match="delete it and fetch again"): unpack(archive, tmp_path/"in"/"out", "top/")


def test_every_source_says_what_it_is(real_data):
    for name, notes in list_sources().items():
        assert notes["about"] and notes["licence"] and notes["cite"] and notes["files"], name
    for name in ("fashionvc", "amazon-2014-graph"):
        for file in list_sources()[name]["files"]:
            assert hashlib.sha256(real_data(name, file["path"]).read_bytes()).hexdigest() == file["sha256"], file["path"]


def test_a_source_comes_out_as_a_folder(server, tmp_path, monkeypatch):
    server.piece = 10**9
    files = [{"path": f"{n}.txt", "urls": [server.url], "sha256": hashlib.sha256(CONTENT).hexdigest()} for n in "ab"]
    monkeypatch.setattr("fitmatch.fetch.source_notes", lambda name: {"files": files})
    assert fetch("x", tmp_path/"x", server.web, progress=False) == tmp_path/"x" and sorted(p.name for p in (tmp_path/"x").iterdir()) == ["a.txt", "b.txt"]
