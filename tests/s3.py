"""A bucket on this machine: an S3-compatible server in a process of its own, and before it a gate that can fail, be slow or be silent."""
import http.client
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}, says the test</Message></Error>"
CODES = {500: "InternalError", 503: "SlowDown", 403: "AccessDenied"}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Gate(ThreadingHTTPServer):
    "Passes requests on to `target` and does to them what `faults` says"
    daemon_threads, request_queue_size = True, 128

    def __init__(self, target): # port of the server behind it
        super().__init__(("127.0.0.1", 0), _Passing)
        self.target, self.lock, self.asked = target, threading.Lock(), []
        self.well()

    def well(self): self.faults, self.injected = dict(every=0, statuses=(500,), lost=0, cut=0, slow=0., slow_every=1, deny=False, match=""), 0

    def fail(self, **faults): # every: n-th request is refused; lost: the n-th is done, but the answer is an error; cut: it ends in the middle; slow: seconds, of the slow_every-th; match: only addresses that hold it
        self.well()
        self.faults.update(faults)
        self.counter, self.injected = itertools.count(1), 0

    @property
    def url(self): return f"http://127.0.0.1:{self.server_port}"


class _Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass

    def _body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""): return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16): parts.append(self.rfile.read(size)); self.rfile.readline()
        while self.rfile.readline().strip(): pass
        return b"".join(parts)

    def _answer(self, status, headers, body, cut=False):
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"): self.send_header(name, value)
        length = dict((n.lower(), v) for n, v in headers).get("content-length") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(body[:len(body)//2] if cut else body)
        if cut: self.close_connection = True

    def _refuse(self, status): self._answer(status, [("Content-Type", "application/xml")], ERROR.format(code=CODES[status]).encode())

    def _pass(self):
        body, gate, faults = self._body(), self.server, self.server.faults
        gate.asked.append((self.command, self.path))
        n = next(gate.counter) if any(faults[name] for name in ("every", "lost", "cut", "slow")) and faults["match"] in self.path else 0
        if faults["deny"]: return self._refuse(403)
        if n and faults["slow"] and n % faults["slow_every"] == 0: time.sleep(faults["slow"])
        status = faults["statuses"][n % len(faults["statuses"])]
        if n and faults["every"] and n % faults["every"] == 0:
            with gate.lock: gate.injected += 1
            return self._refuse(status)
        upstream = http.client.HTTPConnection("127.0.0.1", gate.target, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in ("transfer-encoding", "content-length", "connection", "expect")}
            upstream.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
            answer = upstream.getresponse()
            got = answer.read()
        finally: upstream.close()
        if n and faults["lost"] and n % faults["lost"] == 0:
            with gate.lock: gate.injected += 1
            return self._refuse(status)
        cut = bool(n and faults["cut"] and n % faults["cut"] == 0 and got)
        with gate.lock: gate.injected += cut
        self._answer(answer.status, answer.getheaders(), got, cut)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass


@pytest.fixture(scope="session")
def s3_gate():
    "A `Gate` before an S3 server of the session"
    for package in ("moto", "flask", "s3fs", "upath"): pytest.importorskip(package)
    port = free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    gate = Gate(port)
    threading.Thread(target=gate.serve_forever, daemon=True).start()
    try:
        for _ in range(600):
            try: socket.create_connection(("127.0.0.1", port), timeout=1).close(); break
            except OSError: time.sleep(.05)
        assert server.poll() is None
        yield gate
    finally:
        server.kill(); server.wait()
        gate.shutdown(); gate.server_close()


_NAMES = itertools.count()


@pytest.fixture
def s3(s3_gate, monkeypatch):
    "Address of an empty bucket; AWS's variables say where it is. `s3.gate` is what stands before it"
    for name in [n for n in os.environ if n.startswith("AWS_")]: monkeypatch.delenv(name)
    for name, value in dict(AWS_ENDPOINT_URL=s3_gate.url, AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test", AWS_REGION="us-east-1", AWS_EC2_METADATA_DISABLED="true",
                            NO_PROXY="127.0.0.1,localhost", no_proxy="127.0.0.1,localhost").items(): monkeypatch.setenv(name, value)
    s3_gate.well()
    from fitmatch.catalogue import workspace_path
    name = f"bucket-{os.getpid()}-{next(_NAMES)}"
    workspace_path(f"s3://{name}").fs.call_s3("create_bucket", Bucket=name)
    yield Bucket(f"s3://{name}", s3_gate)
    s3_gate.well()


class Bucket(str):
    "The address of a bucket, with the gate before it"
    def __new__(cls, address, gate):
        self = super().__new__(cls, address)
        self.gate = gate
        return self
