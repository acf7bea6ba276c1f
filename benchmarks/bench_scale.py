"""A catalogue that does not fit into memory: its index built and searched, beside exact search.

    python benchmarks/bench_scale.py [--vectors 1000000] [--kinds IVF_PQ,IVF_SQ] [--made clustered] [--queries 500] [--recall .95] [--exact] [--folder DIR]

Prints Markdown. Vectors are made up, 512 numbers, and written to a store batch by batch: `clustered` are a thousand kinds of products that differ in 48 directions, each with a spread of its own,
nothing below zero, as a network's global average would give them; `noise` are random directions, which no catalogue is and for which no index can be good. Queries are further draws, no rows of the
store. Every step is a process of its own, whose highest memory (VmHWM) is read at its end. `--exact` also holds all vectors in memory, for comparison. What was made is deleted."""
import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

DIM, BATCH, DIRECTIONS, KINDS = 512, 50_000, 48, 1000


def made(how: str, n: int, seed: int = 0):
    "Batches (b, DIM) float32; the same n and seed give the same vectors. Other seeds: other products of the same kinds"
    world, rng = np.random.default_rng(0), np.random.default_rng([1, seed])
    axes, kinds = world.standard_normal((DIRECTIONS, DIM), np.float32)/DIRECTIONS**.5, world.standard_normal((KINDS, DIRECTIONS), np.float32)
    for i in range(0, n, BATCH):
        m = min(BATCH, n - i)
        noise = rng.standard_normal((m, DIM), np.float32)
        if how == "noise": yield noise; continue
        place = kinds[rng.integers(0, KINDS, m)] + .6*rng.standard_normal((m, DIRECTIONS), np.float32)
        yield np.maximum(place @ axes + .15*noise, 0)


def memory() -> float:
    "The most this process ever held, in MB"
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])/1024


def times(ask, Q) -> tuple:  # p50 and p99 in ms, what was found
    "One query at a time, after ten to get warm"
    for q in Q[:10]: ask(q[None])
    seconds, found = [], []
    for q in Q:
        start = time.perf_counter()
        found.append(ask(q[None])[1][0])
        seconds.append(time.perf_counter() - start)
    return 1e3*np.percentile(seconds, 50), 1e3*np.percentile(seconds, 99), np.array(found)


def write(folder, args) -> dict:
    from fitmatch.embed import EmbeddingStore
    store, n, start = EmbeddingStore(folder, SimpleNamespace(info=SimpleNamespace(name="made-up", dim=DIM), weights_sha256="0")), 0, time.perf_counter()
    with store.writing():
        for X in made(args.made, args.vectors):
            store.add([f"B{i:09}" for i in range(n, n + len(X))], [None]*len(X), X)
            n += len(X)
    return dict(seconds=time.perf_counter() - start)


def build(folder, args) -> dict:
    from fitmatch.vectorindex import build_index, open_store
    return build_index(open_store(folder), recall=args.recall, kind=args.kinds)


def search(folder, args) -> dict:
    from fitmatch.similar import NearestItems
    from fitmatch.vectorindex import open_store
    Q, start = next(made(args.made, args.queries, seed=1)), time.perf_counter()
    items = NearestItems(10, exact_below=0).fit(open_store(folder))
    opened = time.perf_counter() - start
    p50, p99, found = times(items.kneighbors, Q)
    truth = np.load(Path(folder)/"truth.npy")
    return dict(p50=p50, p99=p99, seconds=opened, recall=float(np.mean([len({*a} & {*b})/10 for a, b in zip(found, truth)])))


def blocks(folder, args) -> dict:
    from fitmatch.similar import nearest_in_store
    from fitmatch.vectorindex import StoreView, open_store
    Q, view = next(made(args.made, args.queries, seed=1)), StoreView(open_store(folder))
    start = time.perf_counter()
    np.save(Path(folder)/"truth.npy", nearest_in_store(view, Q, 10)[1])
    together = time.perf_counter() - start
    p50, p99, _ = times(lambda q: nearest_in_store(view, q, 10), Q[:5])
    return dict(p50=p50, p99=None, seconds=together)


def whole(folder, args) -> dict:
    from fitmatch.similar import NearestItems
    from fitmatch.vectorindex import open_store
    Q, start = next(made(args.made, args.queries, seed=1)), time.perf_counter()
    items = NearestItems(10, exact_below=args.vectors + 1).fit(open_store(folder))
    opened = time.perf_counter() - start
    p50, p99, found = times(items.kneighbors, Q)
    assert (found == np.load(Path(folder)/"truth.npy")).all(), "the two exact searches differ"
    return dict(p50=p50, p99=p99, seconds=opened)


STEPS = dict(write=write, blocks=blocks, build=build, search=search, whole=whole)


def step(name: str, folder: str, args, **more) -> dict:
    "What a step says, run in a process of its own"
    given = {**vars(args), **more}
    done = subprocess.run([sys.executable, __file__, "--step", name, "--folder", folder, "--given", json.dumps(given)], stdout=subprocess.PIPE, text=True)
    if done.returncode: sys.exit(f"{name} ended with {done.returncode}")
    said = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{name}: {said}", file=sys.stderr, flush=True)
    return said


def table(folder: str, args) -> list:
    "The Markdown"
    n, load = args.vectors, os.getloadavg()[0]
    written, exact = step("write", folder, args), step("blocks", folder, args)
    lines = [f"### {n:,} × {DIM} in a store, {args.made}: ten nearest", "",
             "| search | index built in s | index MB | most memory, building | most memory, searching | opened in s | p50 ms | p99 ms | recall@10 |", "|---|---|---|---|---|---|---|---|---|"]
    notes = []
    for kind in filter(None, args.kinds.split(",")):
        built = step("build", folder, args, kinds=kind)
        found = step("search", folder, args)
        lines.append(f"| `{built['kind']}`, re-ranked | {built['seconds']:.0f} + {built['seconds_measured']:.0f} | {built['bytes']/1e6:.0f} | {built['memory']:,.0f} MB | {found['memory']:,.0f} MB | {found['seconds']:.1f} | {found['p50']:.3g} | {found['p99']:.3g} | {found['recall']:.4f} |")
        low, high = built["interval"]
        notes.append(f"`{built['kind']}` opens {built['probes']} of {built['partitions']} partitions and compares {10*built['refine'] + 11} candidates; {built['recall']:.4f} ({low:.4f} to {high:.4f}) of the neighbours of {built['sample']} of its own products were found when it was built.")
    if args.exact:
        held = step("whole", folder, args)
        lines.append(f"| exact, in memory | | | | {held['memory']:,.0f} MB | {held['seconds']:.1f} | {held['p50']:.3g} | {held['p99']:.3g} | 1 |")
    lines.append(f"| exact, from the store in blocks | | | | {exact['memory']:,.0f} MB | | {exact['p50']:,.0f} | | 1 |")
    return [*lines, "", *notes, f"Seconds of building: the index, and measuring its recall. {args.queries} queries, one at a time; all of them together, exactly and from the store: {exact['seconds']:.0f} s. "
            f"Written in {written['seconds']:.0f} s with {written['memory']:,.0f} MB. Load {load:.1f} before, {os.getloadavg()[0]:.1f} after."]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--kinds", default="auto", help="of index, with commas")
    parser.add_argument("--made", default="clustered", choices=["clustered", "noise"])
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--recall", type=float, default=.95)
    parser.add_argument("--exact", action="store_true", help="also hold all vectors in memory")
    parser.add_argument("--folder", help="where the store is made; default: a temporary folder")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--given", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        said = STEPS[args.step](args.folder, SimpleNamespace(**json.loads(args.given)))
        print(json.dumps(said | dict(memory=memory())))
    else:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder: print("\n".join(table(folder, args)))
