"""Addresses and servers that mean harm. Nothing here leaves this machine: servers are on loopback, resolvers are made up."""
import functools
import multiprocessing
import queue
import resource
import shutil
import socket
import ssl
import subprocess
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpcore
import pytest

from fitmatch.web import MAX_BYTES, Web, WebRefused, check_url, is_public, retrying

SHOPS = ("images-na.ssl-images-amazon.com", "media-amazon.com")
PUBLIC = "52.84.12.7"

# No test here may depend on how busy the machine is: what must end does so where the other side would go on for PATIENCE seconds.
PATIENCE = 120

# helpers, for test_download.py as well

def wait_until(true):
    "Waits for something that will happen; fails when it does not"
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(.005)

class Loopback:
    "A server on this machine that answers each connection with `answer(connection, path)` and counts"
    def __init__(self, answer, family=socket.AF_INET):
        self.answer, self.connections, self.paths, self.now, self.most, self.lock = answer, 0, [], 0, 0, threading.Lock()
        self.peers, self.live = set(), 0   # ports that ever connected; connections being served
        self.listener = socket.create_server(("127.0.0.1" if family == socket.AF_INET else "::1", 0), family=family, backlog=200)
        self.port = self.listener.getsockname()[1]
        self.url = f"http://shop.example:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try: connection, peer = self.listener.accept()
            except OSError: return
            with self.lock: self.connections += 1; self.live += 1; self.peers.add(peer[1])
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with connection:
            connection.settimeout(PATIENCE)
            try:
                while head := self._head(connection):
                    path = head.split()[1].decode()
                    with self.lock: self.paths.append(path); self.now += 1; self.most = max(self.most, self.now)
                    try: again = self.answer(connection, path)
                    finally:
                        with self.lock: self.now -= 1
                    if not again: return
            except (OSError, IndexError): return  # the client has gone, as it should
            finally:
                with self.lock: self.live -= 1

    def settle(self):
        "Waits until all that clients, ended by now, had asked is answered: connections are accepted in their order, ours is the last"
        with socket.create_connection(self.listener.getsockname()[:2]) as last: ours = last.getsockname()[1]
        wait_until(lambda: ours in self.peers and self.live == 0)

    @staticmethod
    def _head(connection):
        "What the client says, up to the empty line; whatever comes first where it speaks TLS"
        head = b""
        while b"\r\n\r\n" not in head:
            got = connection.recv(65536)
            if not got: return b""
            if not head and got[:1] == b"\x16": return b"GET tls HTTP/1.1\r\n"
            head += got
        return head

    def __enter__(self): return self
    def __exit__(self, *_): self.listener.close()


def reply(connection, body=b"", status=200, headers=()):
    "An ordinary answer; the connection stays open"
    lines = [f"HTTP/1.1 {status} x", f"Content-Length: {len(body)}", *headers]
    connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    return True


def leads_to(*addresses):
    "A resolver that gives these addresses for every name"
    def resolver(host, port, **_):
        return [(socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port, 0, 0) if ":" in a else (a, port)) for a in addresses]
    return resolver


def shop_web(port, **more):
    "A client that reaches a loopback server under the name shop.example"
    return Web("shop.example", **{**dict(http=True, ports=(port,), resolver=leads_to("127.0.0.1"), private=True), **more})


CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["pytest", "httpcore", "fitmatch.images"])

def _call(pipe, function, arguments):
    try: pipe.send((True, function(*arguments)))
    except BaseException as e: pipe.send((False, f"{type(e).__name__}: {e}"))


def in_child(function, *arguments, timeout=3*PATIENCE):
    "What a function gives in a process of its own; fails when that process crashes, raises or hangs"
    ours, theirs = CHILDREN.Pipe(duplex=False)
    process = CHILDREN.Process(target=_call, args=(theirs, function, arguments))
    process.start(); theirs.close()
    try:
        assert ours.poll(timeout), f"still busy after {timeout} s: {arguments}"
        try: fine, result = ours.recv()
        except EOFError: process.join(5); raise AssertionError(f"the child ended with {process.exitcode}: {arguments}") from None
    finally: process.kill(); process.join()
    assert fine, result
    return result

# URLs

GOOD = ["https://m.media-amazon.com/images/I/61yko2LDYUL._AC_UL1500_.jpg", "https://images-na.ssl-images-amazon.com/images/I/41%2Bx.jpg", "HTTPS://M.Media-Amazon.COM/a.jpg",
        "https://media-amazon.com", "https://media-amazon.com:443/a.jpg?size=3#top", "https://media-amazon.com/@a:b"]
HOSTILE = [
    # other protocols
    "file:///etc/passwd", "file://media-amazon.com/etc/passwd", "ftp://media-amazon.com/a.jpg", "data:image/png;base64,iVBORw0KGgo=", "javascript:alert(1)", "gopher://media-amazon.com:70/_x",
    "dict://media-amazon.com:11211/stat", "ldap://media-amazon.com/", "jar:https://media-amazon.com!/", "http://media-amazon.com/a.jpg", "//media-amazon.com/a.jpg", "media-amazon.com/a.jpg", "https:media-amazon.com",
    # other hosts that look alike
    "https://evil.example/", "https://media-amazon.com.evil.example/", "https://evilmedia-amazon.com/", "https://media-amazon.com@evil.example/", "https://evil.example#@media-amazon.com/",
    "https://evil.example?@media-amazon.com/", "https://evil.example\\@media-amazon.com/", "https://media-amazon.com%2eevil.example/", "https://media-amazon.com%00.evil.example/",
    "https://m\u0435dia-amazon.com/", "https://media\uff0eamazon.com/", "https://xn--mdia-amazon-7ij.com/", "https://xn--80ak6aa92e.media-amazon.com/", "https://media-amazon.com./", "https://.media-amazon.com/",
    "https://media-amazon..com/", "https://-.media-amazon.com/", "https://a_b.media-amazon.com/", f"https://{'a'*64}.media-amazon.com/", f"https://{'a.'*130}media-amazon.com/",
    # user names, ports
    "https://user:secret@media-amazon.com/", "https://user@media-amazon.com/", "https://@media-amazon.com/", "https://media-amazon.com:22/", "https://media-amazon.com:80/", "https://media-amazon.com:/",
    "https://media-amazon.com:0443/", "https://media-amazon.com:443:443/", "https://media-amazon.com:-1/", "https://media-amazon.com:99999999/", "https://media-amazon.com:\u0664\u0664\u0663/",
    # this machine, in all its spellings
    "https://127.0.0.1/", "https://127.1/", "https://2130706433/", "https://0177.0.0.1/", "https://0x7f.0.0.1/", "https://0x7f000001/", "https://127.0.0.0x1/", "https://0/", "https://[::1]/", "https://[::ffff:127.0.0.1]/",
    "https://[fe80::1%25eth0]/", "https://[::1/", "https://169.254.169.254/latest/meta-data/", "https://\u2460\u2461\u2466.0.0.1/", "https://localhost/", "https://LOCALHOST/", "https://a.localhost/",
    "https://localhost.localdomain/", "https://printer.local/", "https://metadata.google.internal/", "https://1.0.0.127.in-addr.arpa/",
    # characters and shapes
    "", " https://media-amazon.com/", "https://media-amazon.com/a b", "https://media-amazon.com/\r\nHost: evil.example", "https://media-\tamazon.com/", "https://media-amazon.com/\x00", "https://media-amazon.com\x7f/",
    "\x01https://media-amazon.com/", "https://media-amazon.com/\u202egpj.exe", "https://", "https:///etc/passwd", "https://?media-amazon.com", "https://#media-amazon.com", "https://media-amazon.com/" + "a"*2048, "https://\ud800.com/",
    None, 7, 2130706433, b"https://media-amazon.com/", ["https://media-amazon.com/"], {"url": "https://media-amazon.com/"}, float("nan"), True]


def test_hostile_urls_are_refused_and_nothing_is_connected(monkeypatch, figure):
    connected, resolved, reasons = [], [], []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: connected.append(address))
    resolver = lambda host, port, **_: resolved.append(host) or leads_to(PUBLIC)(host, port)
    for url in GOOD: assert check_url(url, SHOPS).host.endswith("amazon.com")
    for hosts in (SHOPS, None):
        web = Web(hosts, resolver=resolver)
        for url in HOSTILE:
            if hosts is None and isinstance(url, str) and url.startswith(("https://evil", "https://media-amazon.com.evil")): continue  # any *name* is allowed there
            with pytest.raises(WebRefused) as refused: web.get(url)
            assert refused.value.reason in ("url not allowed", "scheme not allowed", "host not allowed", "port not allowed"), (url, refused.value)
            assert not refused.value.temporary and str(refused.value).isprintable() and len(str(refused.value)) < 400
            reasons.append(refused.value.reason)
    assert connected == [] and resolved == []
    monkeypatch.undo()
    counts = {r: reasons.count(r) for r in sorted(set(reasons))}
    figure(f"hostile URLs: {len(HOSTILE)} written, {len(reasons)} tried, {len(reasons)} refused, {len(connected)} connections: {counts}")
    assert len(HOSTILE) >= 40 and len(set(map(repr, HOSTILE))) == len(HOSTILE)


def test_http_and_ports_are_allowed_only_when_asked_for():
    assert str(check_url("http://media-amazon.com/a", SHOPS, http=True)) == "http://media-amazon.com/a"
    assert check_url("https://media-amazon.com:8443/a", SHOPS, ports=(8443,)).port == 8443
    assert check_url("https://www.anything.museum", None).target == "/" and check_url("https://a.example?x=1", "a.example").target == "/?x=1"
    with pytest.raises(WebRefused, match="port"): check_url("http://media-amazon.com:443/", SHOPS, http=True)
    with pytest.raises(WebRefused, match="host"): check_url("https://media-amazon.com/", ())

# addresses

PRIVATE = ["127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "100.64.0.1", "100.127.255.255", "192.0.0.8", "192.0.2.1",
           "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.9", "192.88.99.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "::1", "::", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::8.8.8.8",
           "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1", "2002:7f00:1::", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:2::1", "2001:10::1", "2001:db8::1", "3fff::1",
           "fc00::1", "fd12:3456::1", "fe80::1", "fe80::1%eth0", "2600::1%1", "fec0::1", "ff02::1", "100::1", "5f00::1", "1::1", "127.1", "0x7f.0.0.1", "2130706433", " 8.8.8.8", "8.8.8.8 ", "", "name", None, 134744072]

def test_only_the_open_internet_is_public():
    for address in PRIVATE: assert not is_public(address), address
    for address in (PUBLIC, "8.8.8.8", "172.15.0.1", "172.32.0.1", "100.63.0.1", "100.128.0.1", "198.17.0.1", "223.255.255.1", "2600:9000::1", "2a00:1450::1", "2001:4860:4860::8888"): assert is_public(address), address


@contextmanager
def both_families():
    "Servers on 127.0.0.1 and, where this machine has it, ::1"
    answer = lambda connection, path: reply(connection, b"a secret")
    with Loopback(answer) as four:
        try: six = Loopback(answer, socket.AF_INET6)
        except OSError: six = None
        try: yield [s for s in (four, six) if s]
        finally: six and six.__exit__()


@pytest.fixture
def routed(monkeypatch):
    "Routes the made-up public address to a loopback port; notes every address that is connected to"
    wires, went = {}, []
    real = httpcore.SyncBackend.connect_tcp
    def connect_tcp(self, host, port, *rest, **more):
        went.append(host)
        return real(self, "127.0.0.1", wires[port], *rest, **more) if host == PUBLIC else real(self, host, port, *rest, **more)
    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", connect_tcp)
    return wires, went


def test_private_addresses_are_never_connected(routed, figure):
    wires, went = routed
    inside = [[a] for a in PRIVATE if isinstance(a, str)] + [[PUBLIC, "127.0.0.1"], ["127.0.0.1", PUBLIC], [PUBLIC, "::1"], [PUBLIC, PUBLIC, "::ffff:127.0.0.1"], [f"52.84.12.{i}" for i in range(200)] + ["10.0.0.1"]]
    with both_families() as victims:
        ports = tuple(v.port for v in victims)
        for addresses in inside:
            for port in ports:
                web = Web(None, http=True, ports=ports, resolver=leads_to(*addresses))
                with pytest.raises(WebRefused) as refused: web.get(f"http://shop.example:{port}/")
                assert refused.value.reason in ("private address", "name not found"), addresses
        assert went == []
        # redirects: the first server is "public", where it leads to is not
        names = {"shop.example": [PUBLIC], "mixed.example": [PUBLIC, "127.0.0.1"], "six.example": ["::1"], "mapped.example": ["::ffff:127.0.0.1"]}
        resolver = lambda host, port, **_: leads_to(*names.get(host, ["127.0.0.1"]))(host, port)
        hosts = ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "0", "[::1]", "[::ffff:127.0.0.1]", "localhost", "a.localhost", "inside.example", "mixed.example", "six.example", "mapped.example", "user@inside.example"]
        targets = [f"http://{host}:{port}/" for host in hosts for port in ports] + [f"//inside.example:{ports[0]}/", f"\\\\127.0.0.1:{ports[0]}/", f"ht\ttp://127.0.0.1:{ports[0]}/", "file:///etc/passwd", "//[", "https://shop.example@127.0.0.1/"]
        with Loopback(lambda connection, path: reply(connection, status=302, headers=[f"Location: {targets[int(path[1:])]}"])) as shop:
            wires[shop.port] = shop.port
            with Web(None, http=True, ports=(*ports, shop.port), resolver=resolver) as web:
                for i, target in enumerate(targets):
                    with pytest.raises(WebRefused) as refused: web.get(f"{shop.url}/{i}")
                    assert not refused.value.temporary or refused.value.reason in ("name not found", "not http"), (target, refused.value)
            assert len(shop.paths) == len(targets)
        assert set(went) == {PUBLIC} and sum(v.connections for v in victims) == 0
        figure(f"private addresses: {len(inside)*len(ports)} resolvers and {len(targets)} redirects led inside, {sum(v.connections for v in victims)} connections to it")
        assert shop_web(ports[0]).get(f"http://shop.example:{ports[0]}/")[0] == b"a secret"     # the servers do answer who may ask
        assert victims[0].connections == 1


def test_a_name_that_turns_inwards_is_looked_up_once_for_each_connection(routed, figure):
    wires, went = routed
    turns = [PUBLIC, "127.0.0.1", PUBLIC, "10.0.0.1"]
    asked = []
    def resolver(host, port, **_):
        asked.append(host)
        return leads_to(turns[len(asked) - 1])(host, port)
    with both_families() as victims, Loopback(lambda connection, path: reply(connection, b"bye", headers=["Connection: close"]) and False) as shop:
        wires[victims[0].port] = shop.port                                       # the public address is the shop, on the same port number
        with Web(None, http=True, ports=(victims[0].port,), resolver=resolver) as web:
            url = f"http://shop.example:{victims[0].port}/"
            got = []
            for _ in turns:
                try: got.append(web.get(url)[0])
                except WebRefused as e: got.append(e.reason)
        figure(f"rebinding: {got}, {victims[0].connections} connections inside, {len(asked)} look-ups for {len(turns)} requests")
        assert got == [b"bye", "private address", b"bye", "private address"] and went == [PUBLIC, PUBLIC]
        assert victims[0].connections == 0 and len(asked) == len(turns)


def test_proxies_of_the_environment_are_not_used(monkeypatch):
    with Loopback(lambda connection, path: reply(connection, b"the shop")) as shop, Loopback(lambda connection, path: reply(connection, b"the proxy")) as proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}"); monkeypatch.setenv(name.upper(), f"http://127.0.0.1:{proxy.port}")
        assert shop_web(shop.port).get(f"{shop.url}/")[0] == b"the shop" and proxy.connections == 0

# servers that mean harm

def _drip(connection, start, piece, pause=.05):
    connection.sendall(start)
    while True: connection.sendall(piece); time.sleep(pause)

def _hold(connection): connection.recv(1)   # says nothing until the client goes

OK, GZIP = b"HTTP/1.1 200 OK\r\n", b"gzip\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
MEGABYTE = b"x"*1_000_000

@functools.cache
def bomb():
    "200 MB of zeros in 200 kB"
    pack = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(pack.compress(bytes(1_000_000)) for _ in range(200)) + pack.flush()

HARM = {  # what the server does, for as long as it is listened to; what the client shall say of it
    "/endless-body": (lambda c: _drip(c, OK + b"\r\n", MEGABYTE, 0), "too many bytes"),
    "/endless-chunks": (lambda c: _drip(c, CHUNKED, b"f4240\r\n" + MEGABYTE + b"\r\n", 0), "too many bytes"),
    "/tiny-chunks": (lambda c: _drip(c, CHUNKED, b"1\r\nx\r\n"*10_000, 0), "deadline passed"),
    "/chunk-extension": (lambda c: _drip(c, CHUNKED + b"1;", MEGABYTE, 0), "not http"),
    "/endless-header": (lambda c: _drip(c, OK + b"X: ", MEGABYTE, 0), "not http"),
    "/many-headers": (lambda c: _drip(c, OK, b"X: y\r\n"*10_000, 0), "not http"),
    "/endless-continue": (lambda c: _drip(c, b"", b"HTTP/1.1 100 Continue\r\n\r\n"*1000, .005), "deadline passed"),
    "/drip-header": (lambda c: _drip(c, OK + b"X: ", b"x"), "deadline passed"),
    "/drip-body": (lambda c: _drip(c, OK + b"Content-Length: 100000\r\n\r\n", b"x"), "deadline passed"),
    "/drip-tls": (lambda c: _drip(c, b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc", b"x"), "deadline passed"),
    "/silent-tls": (_hold, "deadline passed"),
    "/silent": (_hold, "deadline passed"),
    "/huge-length": (lambda c: _drip(c, OK + b"Content-Length: 99999999999\r\n\r\n", MEGABYTE, 0), "too many bytes"),
    "/absurd-length": (lambda c: c.sendall(OK + b"Content-Length: " + b"9"*5000 + b"\r\n\r\nx"), "not http"),
    "/lying-length": (lambda c: _drip(c, OK + b"Content-Length: 1000\r\n\r\n", MEGABYTE, 0), "ok"),
    "/short-body": (lambda c: c.sendall(OK + b"Content-Length: 1000\r\n\r\nx"), "connection lost"),
    "/gzip-bomb": (lambda c: c.sendall(OK + b"Content-Encoding: " + GZIP + b"Content-Length: %d\r\n\r\n" % len(bomb()) + bomb()), "encoded response"),
    "/te-gzip-bomb": (lambda c: c.sendall(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n%x\r\n" % len(bomb()) + bomb() + b"\r\n0\r\n\r\n"), "not http"),
    "/garbage": (lambda c: c.sendall(b"\x00\xff"*1000), "not http"),
}
DEADLINE = 1.0

def _ask_all(port, paths):
    "({path: (reason, seconds)}, peak memory in MB), in a process of its own"
    took = {}
    for path in paths:
        scheme = "https" if path.endswith("-tls") else "http"
        ends_by_itself = path not in HARM or HARM[path][1] != "deadline passed"
        with shop_web(port, deadline=PATIENCE if ends_by_itself else DEADLINE) as web:
            if scheme == "https":   # through TLS the server sees no path, so it is told before
                with shop_web(port) as herald: herald.get(f"http://shop.example:{port}/next{path}")
            start = time.monotonic()
            try: web.get(f"{scheme}://shop.example:{port}{path}"); reason = "ok"
            except WebRefused as e: reason = e.reason
            took[path] = reason, time.monotonic() - start
    return took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024


def test_harmful_servers_end_in_time_and_memory(figure):
    bomb()                                                                          # its making takes a second, not the client's
    following = queue.SimpleQueue()
    def answer(connection, path):
        if path.startswith("/next"): following.put(path[5:]); return reply(connection)
        if path == "/small": return reply(connection, b"x"*1000)
        HARM[following.get(timeout=PATIENCE) if path == "tls" else path][0](connection)
    with Loopback(answer) as server:
        _, small = in_child(_ask_all, server.port, ["/small"])
        took, large = in_child(_ask_all, server.port, list(HARM))
    stopped = [seconds for reason, seconds in took.values() if reason == "deadline passed"]
    slowest = max(seconds for reason, seconds in took.values() if reason != "deadline passed")
    figure(f"harmful servers: {len(took)} kinds, {len(stopped)} stopped by a deadline of {DEADLINE:g} s after {max(stopped):.2f} s at most, {len(took) - len(stopped)} refused within {slowest:.2f} s, "
           f"memory +{large - small:.0f} MB over a small request, cap {MAX_BYTES/1e6:.0f} MB")
    assert {path: reason for path, (reason, _) in took.items()} == {path: reason for path, (_, reason) in HARM.items()}
    assert max(stopped) < PATIENCE/10, took                                         # they would have gone on for ever
    assert large - small < 50


def test_a_resolver_that_hangs_does_not_outlive_the_deadline(figure):
    free = threading.Event()
    web = Web(None, resolver=lambda *_, **__: free.wait(PATIENCE), deadline=.4)
    start = time.monotonic()
    with ThreadPoolExecutor(40) as pool:                                                # more than there are threads for look-ups
        refused = [f.exception() for f in [pool.submit(web.get, f"https://shop{n}.example/") for n in range(40)]]
    seconds = time.monotonic() - start
    free.set()
    figure(f"hanging resolver: 40 requests given up after {seconds:.2f} s with a deadline of 0.4 s")
    assert {r.reason for r in refused} == {"deadline passed"} and all(r.temporary for r in refused) and seconds < PATIENCE/10


def test_a_stalled_connection_is_given_up_before_the_deadline():
    with Loopback(lambda connection, path: _hold(connection)) as server, shop_web(server.port, deadline=PATIENCE, stall=.3) as web:
        with pytest.raises(WebRefused) as refused: web.get(f"{server.url}/")
        assert refused.value.reason == "stalled" and refused.value.temporary            # at the deadline it would be "deadline passed"


def test_closing_ends_requests_under_way():
    with Loopback(lambda connection, path: _hold(connection)) as server, shop_web(server.port, deadline=PATIENCE, stall=PATIENCE) as web, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(web.get, f"{server.url}/")
        wait_until(lambda: server.paths)
        web.close()
        assert asked.exception(PATIENCE/2).temporary                                    # long before the server or the deadline
        with pytest.raises(WebRefused, match="client closed"): web.get(f"{server.url}/")

# redirects, streams

def test_redirects_are_followed_three_times():
    answer = lambda connection, path: reply(connection, b"here") if path == "/0" else reply(connection, b"moved"*1000, 302, [f"Location: /{int(path[1:]) - 1}"])
    with Loopback(answer) as server, shop_web(server.port) as web:
        assert web.get(f"{server.url}/3")[::2] == (b"here", f"{server.url}/0")
        with pytest.raises(WebRefused, match="too many redirects"): web.get(f"{server.url}/4")
        assert server.paths == ["/3", "/2", "/1", "/0", "/4", "/3", "/2", "/1"]


def test_a_download_goes_on_where_it_was_broken_off():
    whole = bytes(range(256))*40
    def answer(connection, path):
        begin = int(path[1:])
        return reply(connection, whole[begin:], 206 if begin else 200, [f"Content-Range: bytes {begin}-{len(whole) - 1}/{len(whole)}"])
    with Loopback(answer) as server, shop_web(server.port, max_bytes=100) as web:
        with web.stream(f"{server.url}/0", max_bytes=len(whole)) as first: start = next(first.chunks)[:4000]
        with web.stream(f"{server.url}/{len(start)}", headers={"Range": f"bytes={len(start)}-"}, max_bytes=len(whole)) as rest:
            assert rest.status == 206 and rest.headers["content-range"].startswith("bytes 4000-")
            assert start + b"".join(rest.chunks) == whole
        with pytest.raises(WebRefused, match="status 206"): web.get(f"{server.url}/{len(start)}")   # a part where the whole was asked for
        with pytest.raises(WebRefused, match="too many bytes"): web.get(f"{server.url}/0")

# asking again

@pytest.mark.parametrize("script, requests, waited, result", [
    ([(503, ["Retry-After: 7"]), (200, [])], 2, [7], b"fine"),
    ([(429, ["Retry-After: 3"]), (429, []), (200, [])], 3, [3, None], b"fine"),
    ([(503, ["Retry-After: 99999"]), (200, [])], 2, [30], b"fine"),
    ([(503, ["Retry-After: soon"]), (200, [])], 2, [None], b"fine"),
    ([("reset", []), ("hang up", []), (200, [])], 3, [None, None], b"fine"),
    ([(404, [])], 1, [], "status 404"), ([(403, ["Retry-After: 1"])], 1, [], "status 403"), ([(410, [])], 1, [], "status 410"),
    ([(500, [])]*4, 4, [None]*3, "status 500"),
], ids=["503", "429", "patience ends", "odd date", "reset", "404", "403", "410", "always 500"])
def test_only_what_may_pass_is_asked_again(script, requests, waited, result):
    steps, slept = iter(script), []
    def answer(connection, path):
        status, headers = next(steps)
        if status == "reset": connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"); return False
        return status != "hang up" and reply(connection, b"fine" if status == 200 else b"", status, headers)
    with Loopback(answer) as server, shop_web(server.port) as web:
        try: got = retrying(lambda: web.get(f"{server.url}/")[0], sleep=slept.append)
        except WebRefused as e: got = e.reason
    assert got == result and len(server.paths) == requests and len(slept) == len(waited)
    for n, (expected, seconds) in enumerate(zip(waited, slept)):
        assert seconds == expected if expected else .25*2**n <= seconds <= .75*2**n


def test_retry_after_may_be_a_date():
    when = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 2000))
    with Loopback(lambda connection, path: reply(connection, status=503, headers=[f"Retry-After: {when}"])) as server, shop_web(server.port) as web:
        with pytest.raises(WebRefused) as refused: web.get(f"{server.url}/")
    assert refused.value.temporary and 2000 - PATIENCE < refused.value.retry_after <= 2000


def test_one_host_gets_so_many_connections_and_no_more(figure):
    three = threading.Barrier(3, timeout=PATIENCE)                            # nobody is answered before three ask at one time
    def answer(connection, path): three.wait(); time.sleep(.02); return reply(connection, b"x")
    with Loopback(answer) as server, shop_web(server.port, per_host=3, deadline=PATIENCE, stall=PATIENCE) as web, ThreadPoolExecutor(24) as pool:
        assert list(pool.map(lambda n: web.get(f"{server.url}/{n}")[0], range(60))) == [b"x"]*60
    figure(f"per-host limit 3: 24 threads, at most {server.most} requests at a time, {server.connections} connections for 60 requests")
    assert server.most == 3 and server.connections == 3                       # and they are used again


def test_waiting_for_a_free_connection_is_not_the_servers_fault():
    free, seconds = threading.Event(), 3
    def answer(connection, path):
        if path == "/slow": free.wait(PATIENCE)
        return reply(connection, b"x")
    with Loopback(answer) as server, shop_web(server.port, per_host=1, deadline=seconds) as web, ThreadPoolExecutor(2) as pool:
        def slow():
            with web.stream(f"{server.url}/slow", deadline=PATIENCE) as answer: return b"".join(answer.chunks)
        first = pool.submit(slow)
        wait_until(lambda: server.paths)
        second = pool.submit(web.get, f"{server.url}/quick")
        time.sleep(seconds + .5)                                              # longer than the second request may take
        assert server.paths == ["/slow"] and not second.done()
        free.set()
        assert first.result() == b"x" and second.result()[0] == b"x"

# certificates

def _certificate(folder, name):
    "(certificate, key) for a host, signed by itself"
    if shutil.which("openssl") is None: pytest.skip("no openssl on this machine: apt install openssl")
    cert, key = folder/f"{name}.pem", folder/f"{name}.key"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}",
                    "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


def test_the_certificate_is_checked_against_the_name_of_the_url(tmp_path):
    cert, key = _certificate(tmp_path, "shop.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); context.load_cert_chain(cert, key)
    seen = []
    context.sni_callback = lambda sock, name, _: seen.append(name)
    listener = socket.create_server(("127.0.0.1", 0)); port = listener.getsockname()[1]
    def serve():
        while True:
            try: raw, _ = listener.accept()
            except OSError: return
            try:
                with context.wrap_socket(raw, server_side=True) as connection: connection.recv(65536); reply(connection, b"sealed")
            except OSError: pass
    threading.Thread(target=serve, daemon=True).start()
    trusting = ssl.create_default_context(cafile=cert)
    ask = lambda host, tls: Web(None, ports=(port,), resolver=leads_to("127.0.0.1"), private=True, tls=tls).get(f"https://{host}:{port}/")[0]
    assert ask("shop.example", trusting) == b"sealed" and seen == ["shop.example"]      # the name is sent, although an address is connected
    for host, tls in (("other.example", trusting), ("shop.example", None)):
        with pytest.raises(WebRefused) as refused: ask(host, tls)
        assert refused.value.reason == "certificate not trusted" and not refused.value.temporary
    listener.close()
