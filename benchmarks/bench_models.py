"""Neighbours, PCA, kMeans and the classifier, each against its peers, in turn and in one run.

    python benchmarks/bench_models.py [--only topk,query,pca,kmeans,mlp,growth] [--items 52456] [--rounds 3] [--million 1000000]

Prints Markdown. Vectors are made up: 512 numbers, 200 groups, nothing below zero, as a network's global average would give them.
The time of a row is the median of the rounds; the last column is the median of the ratios of single rounds. Peers: faiss-cpu, scikit-learn, NumPy, PyTorch."""
import argparse
import importlib
import json
import math
import os
import resource
import subprocess
import sys
import time
import warnings

import numpy as np

# what a work needs is imported there, so that `growth` measures its memory and no other's

DIM, SEED = 512, 0


def table(n: int, seed: int = SEED) -> np.ndarray:  # (n, DIM) float32
    "Made-up embeddings, a piece at a time so that making them needs no more memory than they do"
    rng = np.random.default_rng(seed)
    X, centres = np.empty((n, DIM), np.float32), 2*rng.standard_normal((200, DIM), dtype=np.float32)
    for i in range(0, n, 4096):
        m = min(4096, n - i)
        X[i:i + m] = np.maximum(rng.standard_normal((m, DIM), dtype=np.float32) + centres[rng.integers(0, 200, m)], 0)
    return X


def in_turn(ways: dict, rounds: int) -> tuple:  # {name: seconds of each round}, {name: what the last round gave}
    "Every way once a round, each round beginning with another"
    seconds, found, names = {name: [] for name in ways}, {}, list(ways)
    for r in range(rounds):
        for name in names[r % len(names):] + names[:r % len(names)]:
            start = time.perf_counter()
            found[name] = ways[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds, found


def rows(seconds: dict, notes: dict = {}, unit: str = "s") -> list:
    "A Markdown table; the first way is ours"
    ours = seconds[next(iter(seconds))]
    scale = 1e3 if unit == "ms" else 1
    lines = [f"| who | {unit} | × the time of fitmatch | |", "|---|---|---|---|"]
    for name, taken in seconds.items():
        ratio = np.median(np.array(taken)/np.array(ours))
        lines.append(f"| {name} | {scale*np.median(taken):.3g} | {ratio:.2f} | {notes.get(name, '')} |")
    return lines


def flat(X):
    import faiss
    index = faiss.IndexFlatIP(X.shape[1])
    index.add(X)
    return index


def topk(n: int, rounds: int, **_) -> list:
    import torch
    from sklearn.neighbors import NearestNeighbors
    from fitmatch.embed import best_precision
    from fitmatch.similar import NearestItems
    X, k, share = table(n), 10, 8
    some = np.arange(0, n, share)
    def fitmatch(): return NearestItems(n_neighbors=k).fit(X).kneighbors()
    def faiss_flat():
        directions = X/np.linalg.norm(X, axis=1, keepdims=True)
        return flat(directions).search(directions, k + 1)
    def sklearn(): return NearestNeighbors(n_neighbors=k + 1, algorithm="brute", metric="cosine").fit(X).kneighbors(X[some])
    seconds, found = in_turn({"**fitmatch** `NearestItems`": fitmatch, "faiss `IndexFlatIP`": faiss_flat, "scikit-learn brute, cosine": sklearn}, rounds)
    seconds["scikit-learn brute, cosine"] = [share*s for s in seconds["scikit-learn brute, cosine"]]
    some = some[::max(1, len(some)//500)]
    exact = NearestNeighbors(n_neighbors=k + 1, algorithm="brute", metric="cosine").fit(X.astype(np.float64)).kneighbors(X[some].astype(np.float64), return_distance=False)
    def same(index): return np.mean([set(index[i]) == set(row[row != i][:k]) for i, row in zip(some, exact)])
    ours = found["**fitmatch** `NearestItems`"][1]
    theirs = np.array([row[row != i][:k] for i, row in enumerate(found["faiss `IndexFlatIP`"][1])])
    way = "bfloat16 candidates" if best_precision(torch.device("cpu")) == "bfloat16" else "float32 candidates (no bf16 in this processor)"
    notes = {"**fitmatch** `NearestItems`": f"{way}, decided in float64; the {k} of float64 for {same(ours):.1%} of {len(some)} products",
             "faiss `IndexFlatIP`": f"the {k} of float64 for {same(theirs):.1%}", "scikit-learn brute, cosine": f"every {share}th product asked, time × {share}"}
    return [f"### The ten nearest of all pairs, {n:,} × {DIM}", "", *rows(seconds, notes), "", memory_of("topk", n), "", whole_matrix(n)]


def child(work: str, n: int) -> list:
    "Seconds, and the most memory in MB before and after, of one work of fitmatch in a fresh process"
    return json.loads(subprocess.run([sys.executable, __file__, "--alone", work, "--items", str(n)], capture_output=True, text=True, check=True).stdout)


def memory_of(work: str, n: int) -> str:
    _, before, peak = child(work, n)
    return f"The most memory that a process doing only this with fitmatch held: {peak:,.0f} MB, {before:,.0f} MB of it before it began (libraries and the vectors)."


def whole_matrix(n: int) -> str:
    "What the original project did, in a process of its own: the matrix of all cosines"
    code = ("import sys, time, numpy as np; from sklearn.metrics.pairwise import cosine_similarity; X = np.random.default_rng(0).random((int(sys.argv[1]), 512), dtype=np.float32);"
            "t = time.perf_counter(); S = cosine_similarity(X); print(f'{time.perf_counter() - t:.1f}')")
    said = []
    for size in (n, 20_000):
        free = os.sysconf("SC_AVPHYS_PAGES")*os.sysconf("SC_PAGE_SIZE")
        if size*size*4*1.1 > free: said.append(f"{size:,}: not tried, needs {size*size*4/1e9:.0f} GB of memory"); continue
        try: done = subprocess.run([sys.executable, "-c", code, str(size)], capture_output=True, text=True, timeout=900)
        except subprocess.TimeoutExpired: said.append(f"{size:,}: not done in 15 minutes"); continue
        said.append(f"{size:,}: " + (f"{done.stdout.strip()} s for the matrix alone, {size*size*4/1e9:.1f} GB" if done.returncode == 0 else f"the process ended with {done.returncode}"))
    return "The original project's `cosine_similarity(X)`, the matrix of all pairs: " + "; ".join(said) + "."


def query(n: int, rounds: int, million: int, **_) -> list:
    from fitmatch.similar import IndexedItems, NearestItems
    lines = []
    for size in dict.fromkeys((n, million)):
        if not size: continue
        X = table(size)
        for s in range(0, size, 4096): X[s:s + 4096] /= np.linalg.norm(X[s:s + 4096], axis=1, keepdims=True)
        rng = np.random.default_rng(1)
        photos = np.maximum(X[rng.permutation(size)[:200]] + .01*rng.standard_normal((200, DIM), dtype=np.float32), 0)
        photos /= np.linalg.norm(photos, axis=1, keepdims=True)
        exact = NearestItems(n_neighbors=10).fit(X)
        ways = {"**fitmatch** `NearestItems`, exact": lambda q: exact.kneighbors(q)[1], "NumPy `X @ q`, `argpartition`": lambda q: np.argpartition(X @ q[0], -10)[None, -10:]}
        start = time.perf_counter()
        index = IndexedItems(n_neighbors=10).fit(X)
        made = time.perf_counter() - start
        ways["**fitmatch** `IndexedItems`"] = lambda q: index.kneighbors(q)[1]
        theirs = flat(X)
        ways["faiss `IndexFlatIP`"] = lambda q: theirs.search(q, 10)[1]
        true = [set(row) for row in exact.kneighbors(photos)[1]]
        for way in ways.values(): way(photos[:1])
        taken = {name: [] for name in ways}
        hits = {name: [] for name in ways}
        for r in range(rounds):
            for name, way in ways.items():                       # each in its own block
                block = []
                for i in range(len(photos)):
                    start = time.perf_counter()
                    found = way(photos[i:i + 1])
                    block.append(time.perf_counter() - start)
                    if not r: hits[name].append(len(true[i] & set(found[0]))/10)
                taken[name].append(block)
        def cell(name): return np.median(taken[name])*1e3, np.quantile(taken[name], .99)*1e3
        ours = np.median(taken["**fitmatch** `NearestItems`, exact"], axis=1)
        lines += ["", f"### One photo against {size:,}", "", "| who | p50 ms | p99 ms | p50 ÷ that of exact fitmatch | recall@10 |", "|---|---|---|---|---|"]
        for name in ways:
            p50, p99 = cell(name)
            lines.append(f"| {name} | {p50:.3g} | {p99:.3g} | {np.median(np.median(taken[name], axis=1)/ours):.2f} | {np.mean(hits[name]):.4f} |")
        lines += ["", f"`IndexedItems` was made in {made:.0f} s and opens {index.probes_} of {index.index_.nlist} heaps; on 500 products of its own it found {index.recall_:.4f}. {len(photos)} photos, {rounds} rounds."]
        del X, exact, index, theirs, ways
    return lines[1:]


def pca(n: int, rounds: int, **_) -> list:
    from scipy.linalg import subspace_angles
    from sklearn.decomposition import PCA
    from fitmatch.explore import reduce
    X = table(n)
    def original(): model = PCA(); return model.fit_transform(X)[:, :3], model
    seconds, found = in_turn({"**fitmatch** `reduce`": lambda: reduce(X), "scikit-learn `PCA()`, then slice": original}, rounds)
    exact = PCA(3, svd_solver="covariance_eigh").fit(X.astype(np.float64)).components_
    def angle(axes): return np.degrees(subspace_angles(axes.T.astype(np.float64), exact.T)).max()
    notes = {"**fitmatch** `reduce`": f"largest principal angle to float64 {angle(found['**fitmatch** `reduce`'].model.components_):.1e}°",
             "scikit-learn `PCA()`, then slice": f"{angle(found['scikit-learn `PCA()`, then slice'][1].components_[:3]):.1e}°"}
    return [f"### PCA to 3 dimensions, {n:,} × {DIM}", "", *rows(seconds, notes)]


def kmeans(n: int, rounds: int, **_) -> list:
    from sklearn.cluster import KMeans
    from fitmatch.explore import _kmeans
    X, seed = table(n), iter(range(10**6))
    inertia = {}
    def ours(): m = _kmeans(X, 7, next(seed)); inertia.setdefault("**fitmatch** `cluster`", []).append(m.inertia_)
    def theirs(): m = KMeans(7, n_init=10, random_state=next(seed)).fit(X); inertia.setdefault("scikit-learn `KMeans(7, n_init=10)`", []).append(m.inertia_)
    seconds, _ = in_turn({"**fitmatch** `cluster`": ours, "scikit-learn `KMeans(7, n_init=10)`": theirs}, rounds)
    return [f"### kMeans, k = 7, {n:,} × {DIM}", "", *rows(seconds, {name: "inertia " + ", ".join(f"{v:.6g}" for v in values) for name, values in inertia.items()})]


def mlp(n: int, rounds: int, **_) -> list:
    import torch
    from sklearn.neural_network import MLPClassifier
    from fitmatch.classify import CategoryClassifier
    rng = np.random.default_rng(0)
    centres, m = .16*rng.standard_normal((7, DIM), dtype=np.float32), n + n//4
    y = rng.integers(0, 7, m)
    X = np.maximum(rng.standard_normal((m, DIM), dtype=np.float32) + centres[y], 0)
    train, test = (X[:n], y[:n]), (X[n:], y[n:])
    def ours(): return CategoryClassifier(epochs=5, batch_size=128, power=1., dropout=0., label_smoothing=0., lr_decay=False, random_state=0).fit(*train).score(*test)
    def sklearn():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                      # not converged after five epochs, as wanted
            return MLPClassifier((64, 32), batch_size=128, max_iter=5, alpha=0, random_state=0).fit(*train).score(*test)
    def loader():
        torch.manual_seed(0)
        batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*map(torch.from_numpy, train)), batch_size=128, shuffle=True)
        network = torch.nn.Sequential(torch.nn.Linear(DIM, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 7))
        optimiser = torch.optim.Adam(network.parameters())
        for _ in range(5):
            for x, label in batches:
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(network(x), label).backward()
                optimiser.step()
        with torch.inference_mode(): return (network(torch.from_numpy(test[0])).argmax(1).numpy() == test[1]).mean()
    seconds, found = in_turn({"**fitmatch** `CategoryClassifier`": ours, "a DataLoader loop": loader, "scikit-learn `MLPClassifier`": sklearn}, rounds)
    return [f"### The classifier, 5 epochs on {n:,} × {DIM}, batches of 128", "", *rows(seconds, {name: f"held-out accuracy {accuracy:.4f}" for name, accuracy in found.items()})]


def job(work: str, X: np.ndarray):
    "What is timed, and how often"
    if work in ("topk", "query"):
        from fitmatch.similar import NearestItems
        if work == "topk": return lambda: NearestItems(n_neighbors=10).fit(X).kneighbors(), 1
        items = NearestItems(n_neighbors=10).fit(X)
        items.kneighbors(X[:1])
        return lambda: items.kneighbors(X[1:2]), 101
    if work == "mlp":
        from fitmatch.classify import CategoryClassifier
        y = np.random.default_rng(0).integers(0, 7, len(X))
        return lambda: CategoryClassifier(epochs=5, batch_size=128, power=1., dropout=0., label_smoothing=0., lr_decay=False).fit(X, y), 1
    from fitmatch.explore import _kmeans, reduce
    return (lambda: reduce(X)) if work == "pca" else lambda: _kmeans(X, 7, 0), 1


def high_water() -> float:  # MB
    "The most memory this program held. Linux' ru_maxrss would count the parent before it became this program, so /proc is asked where there is one"
    try: return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])/1e3
    except OSError: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e3


def alone(work: str, n: int):
    "One work in this process: seconds, and the largest memory before and after, as JSON"
    X, peak, taken = table(n), high_water, []
    importlib.import_module({"mlp": "fitmatch.classify", "topk": "fitmatch.similar", "query": "fitmatch.similar"}.get(work, "fitmatch.explore"))
    before = peak()
    work, times = job(work, X)
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    print(json.dumps([np.median(taken), before, peak()]))


def growth(n: int, rounds: int, largest: int, **_) -> list:
    "How time and memory of fitmatch grow, every figure from a fresh process"
    names = {"topk": "ten nearest of all pairs", "query": "one photo, exact", "pca": "PCA", "kmeans": "kMeans", "mlp": "classifier"}
    lines = ["### How it grows", "", "| work | products | s | exponent | peak of the process, MB | of it before the work (libraries and vectors) |", "|---|---|---|---|---|---|"]
    for work, name in names.items():
        last = None
        for size in dict.fromkeys((5000, n, largest if work == "topk" else n)):
            runs = [child(work, size) for _ in range(rounds if size <= n else 1)]
            seconds, before, peak = np.median([r[0] for r in runs]), max(r[1] for r in runs), max(r[2] for r in runs)
            exponent = f"{math.log(seconds/last[1])/math.log(size/last[0]):.2f}" if last else ""
            lines.append(f"| {name} | {size:,} | {seconds:.3g} | {exponent} | {peak:,.0f} | {before:,.0f} |")
            last = size, seconds
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="topk,query,pca,kmeans,mlp,growth", help="which, separated by commas")
    parser.add_argument("--items", type=int, default=52_456)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--million", type=int, default=1_000_000, help="the larger catalogue of `query`; 0 leaves it out")
    parser.add_argument("--largest", type=int, default=200_000, help="the largest catalogue of `growth`, for the ten nearest")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone: alone(args.alone, args.items)
    else:
        for name in args.only.split(","):
            print("\n".join([*globals()[name](n=args.items, rounds=args.rounds, million=args.million, largest=args.largest), ""]), flush=True)
