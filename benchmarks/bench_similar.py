"""Time and memory of the exact five nearest neighbours of every product.

    python benchmarks/bench_similar.py [--items 52456] [--dim 512] [--kind clusters|random|copies|collapsed] [--peer]

`--peer` also asks scikit-learn's brute force for the first 2,000 products, in double precision, and compares the neighbours."""
import argparse
import resource
import time

import numpy as np
import torch

from fitmatch.similar import NearestItems


def vectors(kind: str, n: int, d: int) -> np.ndarray:
    "Made-up embeddings, as a network's global average would give them: no number below zero"
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d), dtype=np.float32)
    if kind == "clusters": X += 2*rng.standard_normal((200, d), dtype=np.float32)[rng.integers(0, 200, n)]
    if kind == "copies": X = X[rng.integers(0, n//10, n)]
    if kind == "collapsed": X = 1 + 1e-4*X
    return np.maximum(X, 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=52_456)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--kind", choices=("clusters", "random", "copies", "collapsed"), default="clusters")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peer", action="store_true")
    args = parser.parse_args()
    X = vectors(args.kind, args.items, args.dim)
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e6
    before, start, cpu = peak(), time.perf_counter(), time.process_time()
    items = NearestItems(n_neighbors=5, device=args.device).fit(X)
    fitted = time.perf_counter()
    similarity, index = items.kneighbors()
    print(f"{args.items:,} x {args.dim} {args.kind}, {torch.get_num_threads()} threads, {args.device}: fit {fitted - start:.1f} s, neighbours {time.perf_counter() - fitted:.1f} s "
          f"({time.process_time() - cpu:.1f} s of processor time in all), peak {peak():.2f} GB ({before:.2f} GB before)")
    if args.peer:
        from sklearn.neighbors import NearestNeighbors
        some = X[:2000].astype(np.float64)
        start = time.perf_counter()
        distance, found = NearestNeighbors(n_neighbors=6, algorithm="brute", metric="cosine").fit(X.astype(np.float64)).kneighbors(some)
        same = np.mean([set(row) == set(theirs[theirs != i][:5]) for i, (row, theirs) in enumerate(zip(index[:2000], found))])
        print(f"scikit-learn, float64, 2,000 queries: {time.perf_counter() - start:.1f} s; the same five for {same:.2%} of them (it breaks ties as they fall), "
              f"cosines differ by at most {np.abs(1 - distance[:, 1:] - similarity[:2000]).max():.1e}")
