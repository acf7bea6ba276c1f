"""Ways to get at the rows of an embedding store: time a row, and how much memory of its own the process takes meanwhile.

    python benchmarks/bench_rows.py [--products 150000] [--dim 512] [--folder FOLDER]

Random numbers are written to a store and read back in each way, by a fresh process each. "cold": the page cache was told to forget the file first. Prints a Markdown table. Linux only."""
import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from fitmatch.embed import EmbeddingStore, _checksums

COLUMNS, STEP = ["asin", "image_sha256", "checksum", "vector"], 2048
WAYS = {"take": "32 rows at random, asked of the store", "cold": "32 rows at random, from a mapped file, cold", "warm": "the same, warm",
        "stream": "all rows in order, one stream", "pieces": f"all rows in order, {STEP:,} at a time"}


def anonymous() -> float:  # MB
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1])/1024


def opened(folder: Path, dim: int) -> EmbeddingStore:
    class Encoder: info, weights_sha256 = type("Info", (), {"name": "made-up", "dim": dim}), "00"
    return EmbeddingStore(folder, Encoder)


def write(folder: Path, n: int, dim: int):
    store, rng = opened(folder, dim), np.random.default_rng(0)
    numbers = np.memmap(folder/"rows.f32", np.float32, "w+", shape=(n, dim))
    with store.writing():
        for i in range(0, n, 10_000):
            numbers[i:i + 10_000] = X = rng.standard_normal((min(10_000, n - i), dim), np.float32)
            asins, hashes = [f"A{j:08}" for j in range(i, i + len(X))], [""]*len(X)
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), dim)
            store._table.add(pa.table({"asin": asins, "image_sha256": hashes, "checksum": _checksums(asins, hashes, X), "vector": vectors}, schema=store.schema))
    numbers.flush()


def read(way: str, folder: Path, n: int, dim: int) -> int:  # rows read
    rng, table = np.random.default_rng(1), opened(folder, dim)._table
    if way == "take": return sum(len(table.take_offsets(rng.integers(0, n, 32).tolist()).select(["vector"]).to_arrow()) for _ in range(200))
    if way in ("cold", "warm"):
        rows = np.asarray(np.memmap(folder/"rows.f32", np.float32, "r", shape=(n, dim)))
        return sum(len(rows[rng.integers(0, n, 32)]) for _ in range(2000))
    if way == "stream": return sum(len(batch) for batch in table.search().select(COLUMNS).limit(None).to_batches(STEP))
    return sum(len(table.search().select(COLUMNS).limit(STEP).offset(i).to_arrow()) for i in range(0, n, STEP))


def measure(way: str, folder: Path, n: int, dim: int) -> tuple:  # microseconds a row, MB
    opened(folder, dim)._table.search().select(["asin"]).limit(10).to_arrow()
    with open(folder/"rows.f32", "rb") as file:
        if way == "cold": os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before, peak, on = anonymous(), [0.], [True]
    def watch():
        while on[0]: peak[0] = max(peak[0], anonymous()); time.sleep(.002)
    thread = threading.Thread(target=watch)
    thread.start()
    begin = time.perf_counter()
    rows = read(way, folder, n, dim)
    seconds = time.perf_counter() - begin
    on[0] = False
    thread.join()
    return 1e6*seconds/rows, max(0, peak[0] - before)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--products", type=int, default=150_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.way: return print(*measure(asked.way, asked.folder, asked.products, asked.dim))
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        write(Path(folder), asked.products, asked.dim)
        print(f"{asked.products:,} vectors of {asked.dim} numbers, {4*asked.products*asked.dim/1e6:,.0f} MB, {os.cpu_count()} cores\n\n| | time a row | memory |\n|---|---|---|")
        for way, words in WAYS.items():
            done = subprocess.run([sys.executable, __file__, "--products", str(asked.products), "--dim", str(asked.dim), "--folder", folder, "--way", way], capture_output=True, text=True, check=True)
            microseconds, memory = map(float, done.stdout.split())
            print(f"| {words} | {microseconds:.1f} µs | {memory:.0f} MB |", flush=True)


if __name__ == "__main__": main()
