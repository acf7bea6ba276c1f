"""The same stages on a Ray cluster: two machines of one processor each, played by this one. The same answers, whatever dies on the way."""
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fitmatch.catalogue import FitmatchError, save_catalogue, select
from fitmatch.embed import EmbeddingStore, embed
from fitmatch.encoders import load_encoder
from fitmatch.engine import Cluster, Stage, _check_answer, _check_workers, pick_engine, placed, start_ray, stream
from fitmatch.images import check_images, download
from fitmatch.prepare import prepare
from fitmatch.similar import NearestItems
from fitmatch.wardrobe import draw_wardrobe
from test_download import pictures_below, shop, stock

FAULTS = int(os.environ.get("FITMATCH_FAULTS", 4))  # kills of a worker, and half as many of the driver; twenty take some minutes
N = 240
MACHINE = dict(num_cpus=1, object_store_memory=2**28, include_dashboard=False)


@pytest.fixture(scope="module")
def fleet():
    "A Ray cluster of two machines with one processor each; this process is its driver"
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'fitmatch[scale]'")
    from ray.cluster_utils import Cluster as LocalCluster
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    for attempt in range(3):  # Ray gives a machine thirty seconds to start, which is little where others compute
        machines, patch = LocalCluster(), pytest.MonkeyPatch()
        try: [machines.add_node(**MACHINE) for _ in range(2)]; break
        except Exception:
            machines.shutdown()
            if attempt == 2: raise
    patch.setenv("RAY_ADDRESS", machines.address)
    try:
        start_ray()
        yield machines
    finally:
        patch.undo(); ray.shutdown(); machines.shutdown()


@pytest.fixture(autouse=True)
def patience():
    "A pipeline that stands still fails here, and does not wait for ever"
    def give_up(*_): raise TimeoutError("no end in sight")
    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(300 if FAULTS <= 4 else 1800)
    yield
    signal.alarm(0); signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory): return check_images(draw_wardrobe(N, dirty=False, root=tmp_path_factory.mktemp("fleet")), progress=False)


@pytest.fixture(scope="module")
def pixels(): return load_encoder("pixels", device="cpu")


@pytest.fixture(scope="module")
def unbroken(catalogue, pixels): return embed(catalogue, pixels, progress=False, engine="local")


def workers(name): # process numbers
    "Ray's processes that run a stage of this name"
    found = []
    for entry in Path("/proc").iterdir():
        try: command = (entry/"cmdline").read_bytes().decode(errors="replace")
        except (OSError, ValueError): continue
        if entry.name.isdigit() and command.startswith("ray::") and name in command: found.append(int(entry.name))
    return found


def is_whole(folder, encoder, catalogue, expected):
    "Whether a store has each product once, with the vector it should have"
    asins, X = EmbeddingStore(folder, encoder).to_numpy()
    order = np.argsort(catalogue.products["asin"].to_numpy(dtype=object))
    return asins.tolist() == catalogue.products["asin"].to_numpy(dtype=object)[order].tolist() and np.allclose(X, expected[order], atol=1e-4)


# which engine

def test_engine_by_argument_or_environment(monkeypatch):
    monkeypatch.delenv("FITMATCH_ENGINE", raising=False)
    assert pick_engine() == "local" and pick_engine("ray") == "ray"
    monkeypatch.setenv("FITMATCH_ENGINE", "ray")
    assert pick_engine() == "ray" and pick_engine("local") == "local"
    monkeypatch.setenv("FITMATCH_ENGINE", "abacus")
    with pytest.raises(FitmatchError, match="--engine local"): pick_engine()


@pytest.mark.parametrize("nodes,cpus,gpus", [(1, 1, 0), (1, 2, 0), (2, 1, 0), (3, 1, 0), (4, 2, 0), (1, 16, 0), (8, 96, 0), (1, 2, 1), (2, 8, 8), (1, 3, 0)])
def test_a_class_never_takes_every_processor(nodes, cpus, gpus):
    class Net: pass
    cluster = Cluster(nodes, nodes*cpus, gpus, cpus)
    for of in (Stage(Net, gpu=True), Stage(Net)):
        net, hands = placed(of, cluster), placed(Stage(len), cluster)
        a_node_holds = int(cpus//net["num_cpus"]) if net.get("num_cpus") else 99
        left = [cpus - net.get("num_cpus", 0)*min(a_node_holds, max(0, net["size"] - k*a_node_holds)) for k in range(nodes)]  # the workers crowd on the first nodes
        assert net["size"] >= 1 and max(left) >= hands["num_cpus"] - 1e-9 and net.get("num_cpus", 0) <= cpus


# trouble before anything begins

def test_without_ray_the_extra_is_named(tmp_path):
    code = "import sys; sys.modules['ray'] = None\nfrom fitmatch.cli import run_command_line as run\nsys.exit(run(['prepare', 'table.csv', '--out', 'w', '--engine', 'ray']))"
    (tmp_path/"table.csv").write_text("asin,title\nB1,shirt\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.strip() == "fitmatch: engine 'ray' needs Ray: type pip install 'fitmatch[scale]', or --engine local" and not done.stdout


def test_a_cluster_that_does_not_answer(tmp_path):
    "One line, and soon: nobody there, no address, somebody who says nothing, and somebody else"
    def speak(server):
        with server.accept()[0] as c: c.recv(99); c.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with socket.create_server(("127.0.0.1", 0)) as dumb, socket.create_server(("127.0.0.1", 0)) as web:
        threading.Thread(target=speak, args=(web,), daemon=True).start()
        silent, other = (f"127.0.0.1:{s.getsockname()[1]}" for s in (dumb, web))
        for address, says in (("ray://somewhere:10001", "is no host and port"), ("shop", "is no host and port"), ("127.0.0.1:1", "Connection refused"), (silent, "timed out"), (other, "what answers there is not Ray")):
            begin = time.monotonic()
            with pytest.raises(FitmatchError, match=says): _check_answer(address, patience=.5)
            assert time.monotonic() - begin < 5
    (tmp_path/"table.csv").write_text("asin,title\nB1,shirt\n")
    done = subprocess.run([sys.executable, "-c", "from fitmatch.cli import main; main()", "prepare", "table.csv", "--out", "w", "--engine", "ray"], cwd=tmp_path, env={**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("fitmatch: no Ray cluster answers at 127.0.0.1:1") and done.stderr.count("\n") == 1 and not (tmp_path/"w"/"catalogue.parquet").exists()


def test_machines_with_another_fitmatch(fleet, monkeypatch):
    "They are found before anything begins, and named"
    import ray

    import fitmatch
    nodes, here = [n for n in ray.nodes() if n["Alive"]], os.getpid()
    _check_workers(ray, nodes)
    with monkeypatch.context() as patch:
        patch.setattr(fitmatch, "__version__", "0.0.1")                              # the workers have imported theirs themselves
        with pytest.raises(FitmatchError, match=r"Ray node \S+ has fitmatch \S+ on Python \S+, here it is 0.0.1 .* pip install 'fitmatch\[scale\]==0.0.1' there"): _check_workers(ray, nodes)
    def nothing_there():
        if os.getpid() != here: raise ImportError("No module named 'fitmatch'")
        return "0.1.0", "3.11"
    monkeypatch.setattr("fitmatch.engine._about_here", nothing_there)
    with pytest.raises(FitmatchError, match="cannot load fitmatch .*No module named 'fitmatch'"): _check_workers(ray, nodes)


def test_a_worker_with_other_weights(fleet, catalogue, pixels, monkeypatch):
    "What arrives there is summed up there, and compared with what was sent"
    monkeypatch.setattr("fitmatch.embed.state_sha256", lambda _: "f"*64)  # the workers have imported theirs themselves
    with pytest.raises(FitmatchError, match=r"a worker has other weights of pixels \(\w{12}, not ffffffffffff\): look at that machine's memory") as caught: embed(select(catalogue, np.arange(20)), pixels, progress=False, engine="ray")
    assert "\n" not in str(caught.value)


# the same answers

def test_a_command_gives_the_same_figures(fleet, tmp_path):
    "`fitmatch run`, which takes every stage: with Ray as a setting and without"
    save_catalogue(draw_wardrobe(120, root=tmp_path/"drawn"), tmp_path/"shop")
    found = []
    for engine in ("local", "ray"):
        done = subprocess.run([sys.executable, "-c", "from fitmatch.cli import main; main()", "run", tmp_path/"shop", "--json", "--out", tmp_path/engine], env={**os.environ, "FITMATCH_ENGINE": engine}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append({name: value for name, value in json.loads(done.stdout).items() if name not in ("seconds", "report")})
        assert (("ray: 2 machines" in done.stderr) == (engine == "ray")), done.stderr
    assert found[0] == found[1] and found[0]["products"] > 100


def test_reading_gives_the_same_bytes(fleet, tmp_path, figure):
    "A table with every kind of bad line, in several stretches"
    draw, source = np.random.default_rng(0), tmp_path/"shop.json"
    lines = []
    for i in range(30_000):
        row = {"asin": f"B{draw.integers(25_000):09}", "title": f"{draw.choice(['Red', 'Blue'])} {draw.choice(['shirt', 'boot', 'scarf'])} number {i}", "imageURLHighRes": [f"https://m.media-amazon.com/{i}.jpg"]*(i % 9 > 0),
               "also_buy": [f"B{n:09}" for n in draw.integers(25_000, size=3)], "category": ["Clothing", "Women", "Tops"], "filler": "x"*500}
        lines.append(json.dumps(row).encode() if i % 50 else [b"{", b'{"asin": "\xff"}', b"[1]", b"null", b'{"asin": "B1", "title": "<script>"}'][i//50 % 5])
    source.write_bytes(b"\n".join(lines))
    here, there = (prepare(source, tmp_path/engine, progress=False, engine=engine) for engine in ("local", "ray"))
    assert here["rows"] == len(lines) and len(here["refused"]) >= 4 and {k: v for k, v in here.items() if k != "seconds"} == {k: v for k, v in there.items() if k != "seconds"}
    for name in ("catalogue.parquet", "quarantine.parquet"): assert (tmp_path/"local"/name).read_bytes() == (tmp_path/"ray"/name).read_bytes()
    from fitmatch.sources import stream_table
    figure(f"engine ray: {here['rows']} lines in {len(list(stream_table(source).stretches()))} stretches, {here['products']} products, {sum(here['refused'].values())} refused: catalogue and quarantine byte for byte those of engine local")


def test_pictures_and_vectors_are_the_same(fleet, catalogue, unbroken, pixels, tmp_path, figure):
    (catalogue.root/"broken.jpg").write_bytes(b"not a picture")
    broken = catalogue.products.copy()
    broken.loc[7, "image"] = "broken.jpg"
    from dataclasses import replace
    here, there = (check_images(replace(catalogue, products=broken), progress=False, engine=engine) for engine in ("local", "ray"))
    assert here.products.equals(there.products) and here.quarantine.equals(there.quarantine) and len(here) == N - 1
    cnn, worst = load_encoder("fitmatch-cnn", device="cpu"), {}
    for encoder in (pixels, cnn):
        A, B = embed(catalogue, encoder, progress=False, engine="local"), embed(catalogue, encoder, EmbeddingStore(tmp_path, encoder), progress=False, engine="ray")
        worst[encoder.info.name] = float(abs(A - B).max())
        same = [NearestItems(n_neighbors=10).fit(X).kneighbors()[1] for X in (A, B)]
        assert worst[encoder.info.name] <= 1e-4 and np.array_equal(*same) and is_whole(tmp_path, encoder, catalogue, A)
    figure(f"engine ray: {N} pictures, vectors differ by {worst} at most, top-10 the same")


def test_refused_pictures_are_the_same(fleet, tmp_path):
    "Pieces with no refused picture beside pieces with some: each is looked at by itself"
    drawn = draw_wardrobe(600, dirty=False, root=tmp_path/"shop")
    for row, data in ((300, b""), (301, b"no picture"), (599, b"\xff\xd8\xff")): (drawn.root/drawn.products["image"][row]).write_bytes(data)
    here, there = (check_images(drawn, progress=False, engine=engine) for engine in ("local", "ray"))
    assert here.products.equals(there.products) and here.quarantine.equals(there.quarantine) and sum(here.refused().values()) == 3


def test_downloads_are_the_same(fleet, tmp_path, figure):
    def client(port):  # made here so that it travels as it is: the workers know nothing of this file
        def make():
            import socket

            from fitmatch.web import Web
            return Web("shop.example", http=True, ports=(port,), private=True, resolver=lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))])
        return make
    kept = {}
    for engine in ("local", "ray"):
        with shop(lost=range(40, 50)) as server:
            stock(tmp_path/engine, [[f"{server.url}/{n % 60}.jpg"] for n in range(90)] + [["ftp://shop.example/1.jpg"], [], [f"{server.url}/41.jpg", f"{server.url}/3.jpg"]])
            web = client(server.port)() if engine == "local" else client(server.port)
            found, status = download(tmp_path/engine, web=web, progress=False, threads=4, engine=engine)
            assert sorted(server.paths) == sorted(f"/{n}.jpg" for n in range(60))                     # each address once, though thirty are shared
            again = download(tmp_path/engine, web=web, progress=False, engine=engine)[1]
            assert len(server.paths) == 60 and again["reason"].tolist() == status["reason"].tolist()    # and what is there is not asked for again
            kept[engine] = (found.products["image"].tolist(), status["reason"].tolist(), status["sha256"].tolist(), pictures_below(tmp_path/engine), [u.replace(server.url, "") if u else u for u in status["url"]])
    assert kept["local"] == kept["ray"] and kept["ray"][1].count("ok") == 81
    figure("engine ray: 93 products downloaded, 60 addresses asked once each, the same pictures and outcomes as engine local")


def test_a_pipeline_that_would_starve_goes_on(fleet):
    "More pieces than processors, a class that holds a processor, and results that are taken slowly"
    class Slow:
        def __call__(self, rows): time.sleep(.02); return rows
    def feed(rows): yield from ({"n": rows["n"][i:i + 1], "ballast": np.zeros((1, 2**18), np.uint8)} for i in range(len(rows["n"])))
    import pyarrow as pa
    seen = []
    for piece in stream([pa.table({"n": range(i, i + 4)}) for i in range(0, 64, 4)], [Stage(feed), Stage(Slow, rows=2)], start_ray()):
        seen.extend(piece["n"].tolist()); time.sleep(.01)
    assert sorted(seen) == list(range(64))


# whatever dies

def kill_when(condition, kill, done, patience=60):
    "A thread that kills once the condition holds"
    def watch():
        begin = time.monotonic()
        while not condition():
            if time.monotonic() - begin > patience: return
            time.sleep(.005)
        kill(); done.append(True)
    thread = threading.Thread(target=watch, daemon=True); thread.start()
    return thread


def test_a_worker_dies(fleet, catalogue, unbroken, pixels, tmp_path, figure):
    "kill -9 of a worker that computes, or of one that opens pictures: the run itself ends as if nothing had happened"
    draw, killed = random.Random(0), []
    for k in range(FAULTS):
        name, wait, over = ("_Network", "decode")[k % 2], draw.uniform(0, .3), threading.Event()
        def hunt(name=name, wait=wait, over=over):
            "Kills the first worker of that name that is seen after a while; one that opens pictures lives for moments only"
            while not workers(name) and not over.wait(.002): pass
            time.sleep(wait)
            while not over.wait(.002):
                for pid in workers(name)[:1]:
                    try: os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError: continue
                    killed.append(name); return
        thread = threading.Thread(target=hunt, daemon=True); thread.start()
        store = EmbeddingStore(tmp_path/str(k), pixels)
        assert np.allclose(embed(catalogue, pixels, store, batch_size=8, shard=16, progress=False, engine="ray"), unbroken, atol=1e-4)
        over.set(); thread.join(5)
        assert is_whole(tmp_path/str(k), pixels, catalogue, unbroken)
    assert set(killed) == {"_Network", "decode"}
    figure(f"engine ray, kill -9 of {len(killed)} workers ({killed.count('_Network')} that compute, {killed.count('decode')} that decode): {FAULTS} of {FAULTS} runs identical, nothing twice, nothing lost")


DRIVER = """
import sys
from fitmatch.catalogue import load_catalogue
from fitmatch.embed import EmbeddingStore, embed
from fitmatch.encoders import load_encoder
encoder = load_encoder("pixels", device="cpu")
embed(load_catalogue(sys.argv[1]), encoder, EmbeddingStore(sys.argv[2], encoder), batch_size=4, shard=4, progress=False, engine="ray")
"""


def test_the_driver_dies(fleet, catalogue, unbroken, pixels, tmp_path, figure):
    "kill -9 of the process that commits; the same call, on a cluster or here, goes on from what was committed"
    from fitmatch.catalogue import save_catalogue
    save_catalogue(catalogue, tmp_path/"shop")
    draw, left = random.Random(1), []
    for k in range(max(1, FAULTS//2)):
        folder = tmp_path/str(k)
        driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path/"shop"), str(folder)], stderr=subprocess.DEVNULL)
        commits = lambda folder=folder: len(list(folder.glob("embeddings.lance/*.lance/_versions/*")))
        while commits() < 3 and driver.poll() is None: time.sleep(.005)
        time.sleep(draw.uniform(0, .1))
        driver.kill(); driver.wait()
        left.append(len(EmbeddingStore(folder, pixels).known()))
        assert np.allclose(embed(catalogue, pixels, EmbeddingStore(folder, pixels), progress=False, engine=("ray", "local")[k % 2]), unbroken, atol=1e-4)
        assert is_whole(folder, pixels, catalogue, unbroken)
    assert any(0 < n < N for n in left)
    figure(f"engine ray, kill -9 of {len(left)} drivers after {left} of {N} vectors: each second run identical, nothing twice, nothing lost")


def test_a_machine_dies(fleet, catalogue, unbroken, pixels, tmp_path):
    "Two classes sat on three processors; on the two that are left functions still find room"
    extra, gone = fleet.add_node(**MACHINE), []
    kill_when(lambda: workers("_Network"), lambda: fleet.remove_node(extra, allow_graceful=False), gone)
    assert np.allclose(embed(catalogue, pixels, EmbeddingStore(tmp_path/"w", pixels), batch_size=8, shard=16, progress=False, engine="ray"), unbroken, atol=1e-4)
    assert gone and is_whole(tmp_path/"w", pixels, catalogue, unbroken)


def test_a_disk_is_full(fleet, catalogue, unbroken, pixels, tmp_path):
    disk = tmp_path/"disk"; disk.mkdir()
    if not shutil.which("mount") or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=150k", "tmpfs", str(disk)], capture_output=True).returncode: pytest.skip("a small disk can only be mounted by root")
    try:
        with pytest.raises(FitmatchError, match="disk is full"): embed(catalogue, pixels, EmbeddingStore(disk/"w", pixels), batch_size=8, shard=8, progress=False, engine="ray")
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        assert np.allclose(embed(catalogue, pixels, EmbeddingStore(disk/"w", pixels), progress=False, engine="ray"), unbroken, atol=1e-4) and is_whole(disk/"w", pixels, catalogue, unbroken)
    finally: subprocess.run(["umount", str(disk)], check=True)


def test_a_picture_that_breaks_is_named(fleet, catalogue, pixels, tmp_path):
    some = select(catalogue, np.arange(20))
    (tmp_path/"images").mkdir()
    for image in some.products["image"]:
        (tmp_path/image).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(some.root/image, tmp_path/image)
    from dataclasses import replace
    moved = replace(some, root=tmp_path)
    (tmp_path/some.products["image"][3]).write_bytes(b"gone bad")
    with pytest.raises(FitmatchError, match="not a picture") as caught: embed(moved, pixels, progress=False, engine="ray")
    assert Path(some.products["image"][3]).name in str(caught.value) and "\n" not in str(caught.value)
