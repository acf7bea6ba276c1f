"""A catalogue whose vectors stay on disk, through the stages that `fitmatch run` takes after embedding: how much memory each needs, and how long.

    python benchmarks/bench_run.py [--products 200000] [--folder DIR] [--in-memory]

Prints Markdown. Vectors are those of `bench_scale.py --made clustered`, 512 numbers; seven labels, and four purchases of every tenth product. Memory is what the process holds of its own (RssAnon) at most during a stage, less what it held before:
files that are mapped do not count, the system takes their pages back when it needs them. `--in-memory` does the same with an array, for comparison."""
import argparse
import os
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from bench_scale import DIM, write


def own_memory() -> float:
    "MB"
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1])/1024


def measured(do) -> tuple:  # what it gave, MB it grew by at most, seconds
    before, most, on = own_memory(), [0.], [True]
    def watch():
        while on[0]:
            most[0] = max(most[0], own_memory())
            time.sleep(.005)
    thread, start = threading.Thread(target=watch), time.perf_counter()
    thread.start()
    try: given = do()
    finally:
        on[0] = False
        thread.join()
    return given, max(0., most[0] - before), time.perf_counter() - start


def catalogue_of(n: int, folder):
    "Products with labels and purchases: those of one kind of product go with those of the next"
    from fitmatch.catalogue import Catalogue
    rng, asins = np.random.default_rng(3), np.array([f"B{i:09}" for i in range(n)], object)
    bought = [asins[rng.integers(0, n, 4)].tolist() if i % 10 == 0 else [] for i in range(n)]
    labels = np.array(["tops", "bottoms", "shoes", "bags", "hats", "coats", "dresses"])[np.arange(n) % 7]
    return Catalogue(pd.DataFrame({"asin": asins, "title": [f"product number {i}" for i in range(n)], "also_buy": bought, "ground_truth": labels}), folder)


def stages(catalogue, X, folder):
    "What `run` does after embedding, one after the other"
    from fitmatch.evaluate import find_groups
    from fitmatch.explore import cluster, cluster_curve, reduce
    from fitmatch.match import AlsoBuyMatcher, Compatibility
    from fitmatch.pipeline import classify_stage, example_matches, match_stage, save_neighbours
    from fitmatch.similar import heatmap
    truth, learned = catalogue.products["ground_truth"].to_numpy(dtype=object), []
    yield "PCA", lambda: reduce(X, n_components=3)
    yield "kMeans for 2 to 12 clusters", lambda: cluster_curve(X, ks=range(2, 13))
    yield "kMeans", lambda: cluster(X, k=7)
    yield "MLP, trained and judged", lambda: classify_stage(catalogue, X)
    yield "heatmap", lambda: heatmap(X, truth)
    yield "which products are one article", lambda: find_groups(catalogue, X)
    yield "matching, learned and measured beside its baselines", lambda: match_stage(catalogue, X)
    yield "the also-buy rule", lambda: AlsoBuyMatcher().fit(X, catalogue)
    yield "`Compatibility`, on all purchases", lambda: learned.append(Compatibility().fit(X, catalogue))
    yield "examples for the page", lambda: example_matches(catalogue, X, learned[0])
    yield "five neighbours of every product", lambda: save_neighbours(catalogue, X, Path(folder)/"neighbours.parquet")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--products", type=int, default=200_000)
    parser.add_argument("--folder", help="where store and scratch file are made; default: a temporary folder")
    parser.add_argument("--in-memory", action="store_true", help="an array instead of vectors on disk")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        from fitmatch.embed import StoredVectors
        from fitmatch.vectorindex import open_store
        write(folder, SimpleNamespace(vectors=args.products, made="clustered"))
        catalogue = catalogue_of(args.products, Path(folder))
        X, load = StoredVectors(open_store(folder), catalogue.products["asin"], folder), os.getloadavg()[0]
        if args.in_memory: X = X[:]
        print(f"### {args.products:,} × {DIM}, {4e-6*X.size:,.0f} MB of vectors, {'in memory' if args.in_memory else 'on disk'}", "", "| stage | memory grew by at most | seconds |", "|---|---|---|", sep="\n")
        for name, do in stages(catalogue, X, folder):
            _, grew, seconds = measured(do)
            print(f"| {name} | {grew:,.0f} MB | {seconds:.1f} |", flush=True)
        print(f"\nLoad {load:.1f} before, {os.getloadavg()[0]:.1f} after.")
