"""The embedding store under fire: kill -9, a full disk, two writers, flipped bytes, short memory.

A nursery process imports the package once and forks a child for each run, because importing takes longer than embedding forty small pictures."""
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

import fitmatch.embed as module
from fitmatch.catalogue import FitmatchError
from fitmatch.embed import EmbeddingStore, _WriterLock, embed, encode_images, fast
from fitmatch.encoders import Encoder, load_encoder
from fitmatch.images import check_images
from fitmatch.sources import read_folder

N = 40

NURSERY = """
import os, sys, warnings
import lancedb
import fitmatch.embed as module
from fitmatch.catalogue import FitmatchError
from fitmatch.encoders import load_encoder
from fitmatch.images import check_images
from fitmatch.sources import read_folder
catalogue, encoder = check_images(read_folder(sys.argv[1]), progress=False), load_encoder("pixels", device="cpu")
warnings.simplefilter("ignore")  # lancedb says that forking is dangerous once it has worked, which it has not here
print("ready", flush=True)
for line in sys.stdin:
    if line == "reap\\n":
        try:
            while True: os.wait()
        except ChildProcessError: print("reaped", flush=True); continue
    workspace, patience = line.rstrip("\\n").split("\\t")
    if os.fork(): continue
    module.LOCK_PATIENCE = float(patience)
    os.write(1, f"started {os.getpid()}\\n".encode())
    try:
        module.embed(catalogue, encoder, module.EmbeddingStore(workspace, encoder), batch_size=2, shard=2, progress=False)
        os.write(1, f"done {os.getpid()}\\n".encode())
    except FitmatchError as e: os.write(1, f"refused {os.getpid()} {e}\\n".encode())
    except BaseException as e: os.write(1, f"broke {os.getpid()} {type(e).__name__} {e}\\n".encode())
    os._exit(0)
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, draw = tmp_path_factory.mktemp("faults")/"photos", np.random.default_rng(0)
    folder.mkdir()
    for i in range(N): Image.fromarray(draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder/f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def catalogue(pictures): return check_images(read_folder(pictures), progress=False)


@pytest.fixture(scope="module")
def encoder(): return load_encoder("pixels", device="cpu")


@pytest.fixture(scope="module")
def unbroken(catalogue, encoder): return embed(catalogue, encoder, progress=False)


@pytest.fixture(scope="module")
def nursery(pictures):
    "Function starting a run into a workspace; `line()` gives what the runs say, `reap()` the lines until all have ended"
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", NURSERY, str(pictures)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    assert process.stdout.readline() == "ready\n"
    def start(workspace, patience=3.0): process.stdin.write(f"{workspace}\t{patience}\n")
    start.line = lambda: process.stdout.readline().rstrip("\n")
    def reap():
        process.stdin.write("reap\n")
        return list(iter(start.line, "reaped"))
    start.reap = reap
    yield start
    process.stdin.close()
    process.wait(timeout=30)
    process.stdout.close()


def is_whole(catalogue, encoder, workspace, unbroken):
    "The store holds every product once, with the vectors of an unbroken run"
    asins, X = EmbeddingStore(workspace, encoder).to_numpy()
    order = np.argsort(catalogue.products["asin"].to_numpy())
    return list(asins) == sorted(set(asins)) and len(asins) == len(catalogue) and np.array_equal(X, unbroken[order])


@pytest.mark.alone
def test_killed_at_fifty_moments(nursery, catalogue, encoder, unbroken, tmp_path, figure):
    "Each run into a new store is killed somewhere on its way; what it left is sound, and a second run completes it"
    for name in ("first", "measured"):
        nursery(tmp_path/name)
        assert nursery.line().startswith("started")
        start = time.perf_counter()
        assert nursery.line().startswith("done")
    whole, draw, left, position = time.perf_counter() - start, random.Random(0), [], dict(zip(catalogue.products["asin"], range(N)))
    for i in range(50):
        workspace = tmp_path/str(i)
        nursery(workspace)
        pid = int(nursery.line().removeprefix("started "))
        time.sleep(draw.uniform(0, whole))
        os.kill(pid, signal.SIGKILL)  # nobody has waited for it yet, so the number is still its own
        assert not any(line.startswith(("broke", "refused")) for line in nursery.reap())
        asins, X = EmbeddingStore(workspace, encoder).to_numpy()
        assert len(asins) == len(set(asins)) and np.array_equal(X, unbroken[[position[a] for a in asins]].reshape(X.shape))
        left.append(len(asins))
        assert np.array_equal(embed(catalogue, encoder, EmbeddingStore(workspace, encoder), batch_size=2, shard=2, progress=False), unbroken)
        assert is_whole(catalogue, encoder, workspace, unbroken)
        shutil.rmtree(workspace)
    figure(f"store, kill -9 at 50 random moments: 0 vectors lost, 0 twice, 50 of 50 second runs identical; at the kill {sum(0 < n < N for n in left)} stores were part full, "
           f"{left.count(0)} empty, {left.count(N)} full")
    assert sum(0 < n < N for n in left) >= 5


def test_two_writers_twenty_times(nursery, catalogue, encoder, unbroken, tmp_path, figure):
    outcomes = Counter()
    for i in range(20):
        workspace, waits = tmp_path/str(i), i % 2
        for _ in range(2): nursery(workspace, 10 if waits else 0)
        lines = [line for line in nursery.reap() if not line.startswith("started")]
        assert len(lines) == 2 and not any(line.startswith("broke") for line in lines), lines
        for line in lines:
            outcomes[line.split()[0], waits] += 1
            if line.startswith("refused"): assert re.search(r"process \d+ on \S+ is writing .*: wait until it has ended", line) or "another process" in line, line
        assert is_whole(catalogue, encoder, workspace, unbroken)
    figure(f"store, two writers 20 times: 0 duplicates; of 20 second writers that do not wait {outcomes['refused', 0]} were refused, of 20 that do {outcomes['refused', 1]}")
    assert outcomes["done", 1] == 20 and outcomes["done", 0] >= 10


def test_a_store_that_somebody_creates_at_this_moment(tmp_path, encoder):
    "Looked for before it was there, and its files after: no damage"
    class Late:
        uri, schema, asked = str(tmp_path/"embeddings.lance"), module._schema(encoder), 0
        def open_table(self, name):
            self.asked += 1
            if self.asked == 1:
                module.connect_lance(tmp_path/"embeddings.lance").create_table(name, schema=self.schema)
                raise ValueError(f"Table '{name}' was not found")
            return module.connect_lance(tmp_path/"embeddings.lance").open_table(name)
    late = Late()
    assert module._open_or_create(late, "pixels", late.schema).schema.equals(late.schema) and late.asked == 2


def test_readers_do_not_wait(catalogue, encoder, unbroken, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOCK_PATIENCE", 0)
    store = EmbeddingStore(tmp_path, encoder)
    embed(catalogue, encoder, store, progress=False)
    with store.writing():
        assert len(EmbeddingStore(tmp_path, encoder).known()) == N
        assert np.array_equal(embed(catalogue, encoder, EmbeddingStore(tmp_path, encoder), progress=False), unbroken)
        with pytest.raises(FitmatchError, match=f"process {os.getpid()} on .* wait until it has ended"): EmbeddingStore(tmp_path, encoder).add(["new"], ["h"], unbroken[:1])
    assert EmbeddingStore(tmp_path, encoder).add(["new"], ["h"], unbroken[:1]) is None


FLIPS = """
import random, sys
from collections import Counter
from pathlib import Path
import numpy as np
from fitmatch.catalogue import FitmatchError
from fitmatch.embed import EmbeddingStore
from fitmatch.encoders import load_encoder
encoder, root, draw = load_encoder("pixels", device="cpu"), Path(sys.argv[1]), random.Random(int(sys.argv[2]))
asins, X = EmbeddingStore(root, encoder).to_numpy()
known = EmbeddingStore(root, encoder).known()
files = sorted(p for p in root.rglob("*") if p.is_file() and p.stat().st_size)
for _ in range(int(sys.argv[3])):
    # half of them by size, half by file, so that the small files that say what there is get their share
    file = draw.choices(files, [p.stat().st_size for p in files])[0] if draw.random() < .5 else draw.choice(files)
    whole, bit = file.read_bytes(), 1 << draw.randrange(8)
    at = draw.randrange(len(whole))
    file.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1:])
    try:
        found, Y = EmbeddingStore(root, encoder).to_numpy()
        same = list(found) == list(asins) and np.array_equal(X, Y) and EmbeddingStore(root, encoder).known() == known
        outcome = "harmless" if same else "wrong"
    except FitmatchError as e: outcome = "caught"
    except BaseException as e: outcome = f"bare {type(e).__name__}"
    print(outcome, file.suffix, at, bit, len(whole), flush=True)
    file.write_bytes(whole)
print("end", len(files), flush=True)
"""


def test_flipped_bytes_all_over_the_store(catalogue, encoder, unbroken, tmp_path, figure, monkeypatch):
    "Two stores: one whose small files were merged, where most files are of old versions, and one where all are in use"
    outcomes, files = Counter(), 0
    for merged in (True, False):
        monkeypatch.setattr(module, "MANY_FRAGMENTS", 4 if merged else 1000)
        store = EmbeddingStore(tmp_path/str(merged), encoder)
        embed(catalogue, encoder, store, batch_size=4, shard=4, progress=False)
        store.add([catalogue.products["asin"].iloc[3]], ["another picture"], unbroken[5:6])  # leaves a deletion file
        done = subprocess.run([sys.executable, "-c", FLIPS, str(tmp_path/str(merged)), "0", "100"], capture_output=True, text=True)
        lines = done.stdout.splitlines()
        assert done.returncode == 0 and lines[-1].startswith("end"), f"the process died after {len(lines)} flips: {lines[-1:]} {done.stderr[-500:]}"
        assert all(line.startswith(("caught", "harmless")) for line in lines[:-1]), [line for line in lines if not line.startswith(("caught", "harmless"))]
        outcomes.update(line.split()[0] for line in lines[:-1])
        files += int(lines[-1].split()[1])
        assert EmbeddingStore(tmp_path/str(merged), encoder).to_numpy()[0].tolist() == sorted(catalogue.products["asin"])
    figure(f"store, a flipped byte at 200 offsets over its {files} files: {outcomes['caught']} caught, {outcomes['harmless']} in bytes that nobody needs, 0 unnoticed")
    assert outcomes.total() == 200 and outcomes["caught"] >= 40


@pytest.mark.parametrize("damage", [lambda seal: seal.write_text("{"), lambda seal: seal.write_bytes(b"\xff\xfe"), lambda seal: seal.write_text("[1]")])
def test_a_damaged_seal(catalogue, encoder, tmp_path, damage):
    embed(catalogue, encoder, EmbeddingStore(tmp_path, encoder), progress=False)
    damage(next((tmp_path/"embeddings.lance").glob("*.seal")))
    with pytest.raises(FitmatchError, match="damaged: delete"): EmbeddingStore(tmp_path, encoder).known()


def test_an_older_version_come_back(catalogue, encoder, tmp_path):
    "The newest manifest is lost, so that the table is one commit back: the seal knows"
    store = EmbeddingStore(tmp_path, encoder)
    embed(catalogue, encoder, store, progress=False)
    store.add(["one more"], ["h"], np.ones((1, 192)))
    newest = min((tmp_path/"embeddings.lance").rglob("*.manifest"), key=lambda p: p.name)  # named by how many versions are still possible
    newest.unlink()
    with pytest.raises(FitmatchError, match="checksums do not fit|damaged"): EmbeddingStore(tmp_path, encoder).to_numpy()


def test_a_table_of_an_earlier_layout(catalogue, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_LAYOUT", "crc32 of vector")
    EmbeddingStore(tmp_path, encoder)
    monkeypatch.undo()
    with pytest.raises(FitmatchError, match="earlier version of fitmatch: delete it and embed again"): EmbeddingStore(tmp_path, encoder)


def test_full_disk(catalogue, encoder, unbroken, tmp_path, figure):
    "Whatever the size of the disk: a clear message, what was committed is sound, and with some space the same call goes on"
    disk, fits = tmp_path/"disk", []
    disk.mkdir()
    for size in (60, 120, 180, 240, 300, 360):
        if not shutil.which("mount") or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)], capture_output=True).returncode:
            pytest.skip("a small disk can only be mounted by root")
        try:
            with pytest.raises(FitmatchError, match="disk is full"): embed(catalogue, encoder, EmbeddingStore(disk/"w", encoder), batch_size=1, shard=1, progress=False)
            subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
            fits.append(len(EmbeddingStore(disk/"w", encoder).known()))
            assert np.array_equal(embed(catalogue, encoder, EmbeddingStore(disk/"w", encoder), batch_size=1, shard=1, progress=False), unbroken)
            assert is_whole(catalogue, encoder, disk/"w", unbroken)
        finally: subprocess.run(["umount", str(disk)], check=True)
    figure(f"store, full disk at six sizes: after {', '.join(map(str, fits))} of {N} vectors; all sound, all went on")


def test_small_commits_are_merged(catalogue, encoder, unbroken, tmp_path):
    store = EmbeddingStore(tmp_path, encoder)
    embed(catalogue, encoder, store, batch_size=2, shard=2, progress=False)
    assert store._table.stats()["fragment_stats"]["num_fragments"] < 3 and is_whole(catalogue, encoder, tmp_path, unbroken)


def test_a_lock_that_cannot_be_made(tmp_path):
    (tmp_path/"l.lock").mkdir()
    with pytest.raises((FitmatchError, OSError)):
        with _WriterLock(tmp_path/"l.lock"): pass


@pytest.mark.parametrize("asins,hashes", [(["a", "a"], ["h", "h"]), (["a"], ["h", "h"]), (["a", "b"], ["h"])])
def test_keys_that_do_not_fit(encoder, tmp_path, asins, hashes):
    with pytest.raises(FitmatchError, match="each once"): EmbeddingStore(tmp_path, encoder).add(asins, hashes, np.ones((2, 192)))


class Cramped(torch.nn.Module):
    "Raises as a machine does that has memory for `most` pictures"
    def __init__(self, most, error): super().__init__(); self.most, self.error, self.weight = most, error, torch.nn.Parameter(torch.ones(1)); self.sizes = []
    def forward(self, x):
        self.sizes.append(len(x))
        if len(x) > self.most: raise self.error
        return x.flatten(1)*self.weight


@pytest.mark.parametrize("most", [1, 3, 7, 30])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), MemoryError(),
                                   RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. Error code 12")])
def test_short_memory(catalogue, encoder, unbroken, most, error):
    cramped = Encoder(encoder.info, Cramped(most, error), encoder.preprocess, "c", "cpu")
    cramped.__dict__["_fast"] = {("auto", "auto"): cramped}
    X = np.concatenate(list(encode_images(cramped, [catalogue.image_path(i) for i in range(N)], batch_size=16)))
    assert X.shape == (N, 192) and np.allclose(X, unbroken*256 - 1)
    tried = [size for size in cramped.network.sizes if size > most]
    assert len(tried) <= 5 and len(tried) == len(set(tried)), "a size that failed is not tried again"


def test_no_memory_at_all_and_other_errors(catalogue, encoder):
    paths = [catalogue.image_path(0)]*4
    none = Encoder(encoder.info, Cramped(0, MemoryError()), encoder.preprocess, "c", "cpu")
    none.__dict__["_fast"] = {("auto", "auto"): none}
    with pytest.raises(FitmatchError, match="not even one picture"): list(encode_images(none, paths))
    other = Encoder(encoder.info, Cramped(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied")), encoder.preprocess, "c", "cpu")
    other.__dict__["_fast"] = {("auto", "auto"): other}
    with pytest.raises(RuntimeError, match="mat1"): list(encode_images(other, paths))


def test_a_network_that_runs_nowhere_is_refused_in_one_line(encoder):
    never = Encoder(encoder.info, Cramped(0, RuntimeError("broken")), encoder.preprocess, "c", "cpu")
    with pytest.raises((FitmatchError, RuntimeError)): fast(never)
