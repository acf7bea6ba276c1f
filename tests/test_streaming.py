"""Learning from vectors that stay on disk: the same as from memory, in bounded memory, and what goes wrong on the way"""
import gc
import json
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from fitmatch import embed as embedding, explore
from fitmatch.catalogue import Catalogue, FitmatchError
from fitmatch.classify import CategoryClassifier
from fitmatch.embed import EmbeddingStore, StoredVectors
from fitmatch.explore import cluster, cluster_curve, reduce
from fitmatch.match import AlsoBuyMatcher, Compatibility

N, D, K = 1000, 96, 5

class Tiny:
    "Just enough of an encoder for a store"
    def __init__(self, dim=D): self.info, self.weights_sha256 = type("Info", (), {"name": "tiny", "dim": dim}), "00"

@pytest.fixture(scope="module")
def X():
    rng = np.random.default_rng(0)
    return (rng.standard_normal((N, D), np.float32) + .7*rng.standard_normal((K, D), np.float32)[np.arange(N) % K] + 2).astype(np.float32)

@pytest.fixture(scope="module")
def catalogue():
    "Products of five kinds; i is bought with the next kind's product of the same fives"
    asins = [f"A{i:05}" for i in range(N)]
    edges = [[asins[i + 1]] if i % K < K - 1 else [] for i in range(N)]
    return Catalogue(pd.DataFrame({"asin": asins, "title": [f"product {i % 40}" for i in range(N)], "also_buy": edges, "ground_truth": [f"kind {i % K}" for i in range(N)]}), Path("nowhere"))

@pytest.fixture(scope="module")
def store(tmp_path_factory, X, catalogue):
    "Written in another order than the catalogue's, in several commits, one product replaced"
    store, order = EmbeddingStore(tmp_path_factory.mktemp("shop"), Tiny()), np.random.default_rng(1).permutation(N)
    asins = catalogue.products["asin"].to_numpy(dtype=object)
    store.add(asins[order[:9]], ["old"]*9, np.ones((9, D)))
    for rows in np.array_split(order, 3): store.add(asins[rows], ["h"]*len(rows), X[rows])
    return store

@pytest.fixture()
def stored(store, catalogue, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "_PIECE", 100*D)  # so that small tables have many pieces
    with StoredVectors(store, catalogue.products["asin"], tmp_path) as stored: yield stored

# the table

def test_rows_are_those_of_the_store_in_the_catalogue_s_order(stored, X):
    mask, rows = np.arange(N) % 7 == 0, np.random.default_rng(2).integers(-N, N, 300)
    assert stored.shape == X.shape and len(stored) == N and stored.size == X.size and stored.block == 100
    for some in (slice(None), slice(5, 900, 7), slice(None, None, -1), rows, mask, 17, -1, []): assert np.array_equal(stored[some], X[some])
    assert np.array_equal(np.concatenate([x for _, x in stored.blocks()]), X) and max(len(x) for _, x in stored.blocks()) == 100
    assert all(np.array_equal(x, X[s]) for s, x in stored.blocks()) and np.array_equal(np.asarray(stored), X)
    assert np.asarray(stored, dtype=np.float64).dtype == np.float64
    for chosen in (rows, mask, slice(3, 90)):
        part = stored.select(chosen)
        assert np.array_equal(part[:], X[chosen]) and np.array_equal(part.select([2, 0, 2])[:], X[chosen][[2, 0, 2]])
        assert np.array_equal(np.asarray(part), X[chosen]) and np.array_equal(part[1:4], X[chosen][1:4])
    with pytest.raises(IndexError): stored[N]

def test_what_is_given_out_changes_nothing(stored, X):
    stored[3][:] = 0
    stored[:][3] = 0
    with pytest.raises(ValueError, match="read-only"): np.asarray(stored)[3] = 0
    assert np.array_equal(stored[3], X[3])

# equality with memory

def test_the_classifier_is_the_same_to_the_bit(stored, X, catalogue):
    y, train = catalogue.products["ground_truth"].to_numpy(), np.arange(N) % 3 > 0
    one = CategoryClassifier(epochs=4).fit(X[train], y[train], X[~train], y[~train])
    other = CategoryClassifier(epochs=4).fit(stored.select(train), y[train], stored.select(~train), y[~train])
    for name, weights in one.network_.state_dict().items(): assert (weights == other.network_.state_dict()[name]).all(), name
    assert np.allclose(one.history_, other.history_, atol=1e-6) and one.history_["val_accuracy"].iloc[-1] > .8
    assert np.allclose(one.predict_proba(X), other.predict_proba(stored), atol=1e-6) and (other.predict(stored) == one.predict(X)).all()
    with pytest.raises(FitmatchError, match="96 numbers, but this classifier was fitted on 50"): CategoryClassifier(epochs=1).fit(X[:, :50], y).predict(stored)

def test_principal_components_are_the_same_to_the_bit(stored, X):
    assert np.array_equal(reduce(stored).points, reduce(X).points) and cluster_curve(stored, ks=(3, 5)).equals(cluster_curve(X, ks=(3, 5)))

@pytest.mark.parametrize("k", [1, K, 9])
def test_lloyd_from_the_same_start_is_scikit_learn_s(stored, X, k):
    start = X[np.random.default_rng(k).choice(N, k, replace=False)]
    theirs = KMeans(k, init=start, n_init=1).fit(X)
    labels, inertia = explore._lloyd(stored, start)
    assert np.array_equal(labels, theirs.labels_) and inertia == pytest.approx(theirs.inertia_, rel=1e-5)

def test_a_centre_that_loses_its_products_finds_others(stored, X):
    start = np.concatenate([X[:3], np.full((2, D), 1e3, np.float32)])
    labels, inertia = explore._lloyd(stored, start)
    assert len(set(labels)) == 5 and inertia == pytest.approx(KMeans(5, init=start, n_init=1).fit(X).inertia_, rel=1e-3)

def test_kmeans_is_that_of_memory_and_from_a_sample_as_good(stored, X, monkeypatch):
    assert np.array_equal(cluster(stored, K), cluster(X, K))
    monkeypatch.setattr(explore, "_START_ROWS", 300)
    assert adjusted_rand_score(cluster(stored, K), np.arange(N) % K) > .99 and np.array_equal(cluster(stored, K), cluster(stored, K))
    with pytest.raises(FitmatchError, match="choose k from 1 to 1000"): cluster(stored, N + 1)

@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_fewer_different_products_than_clusters(tmp_path):
    store = EmbeddingStore(tmp_path, Tiny(70))
    store.add(asins := [f"A{i}" for i in range(90)], ["h"]*90, np.repeat(np.eye(70)[:2], 45, axis=0))
    assert len(set(cluster(StoredVectors(store, asins, tmp_path), 4))) == 2

def test_the_matchers_learn_and_answer_the_same(stored, X, catalogue):
    few = dict(n_models=1, settings=dict(epochs=2))
    one, other = Compatibility(**few).fit(X, catalogue), Compatibility(**few).fit(stored, catalogue)
    pairs = np.random.default_rng(0).integers(0, N, (500, 2))
    assert np.allclose(one.history_, other.history_, atol=.002) and abs(one.auc_ - other.auc_) < .002
    assert np.allclose(one.predict_proba(pairs), other.predict_proba(pairs), atol=.005) and np.corrcoef(one.decision_function(pairs), other.decision_function(pairs))[0, 1] > .9999
    ask = [(m.match(X[:4], catalogue.products["asin"][:4], top=5), m.neighbours(X[:40], catalogue.products["asin"][:40])) for m in (one, other)]
    assert ask[0][0]["match"].tolist() == ask[1][0]["match"].tolist() and all(np.array_equal(a, b) for a, b in zip(ask[0][1], ask[1][1]))
    assert isinstance(other.items_.picture, np.memmap) and not isinstance(one.items_.picture, np.memmap)
    assert AlsoBuyMatcher().fit(stored, catalogue).match(X[:9]).equals(AlsoBuyMatcher().fit(X, catalogue).match(X[:9]))

def test_neighbours_with_copies_on_the_border_of_two_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "_PIECE", 10*D)
    X = np.repeat(np.random.default_rng(0).standard_normal((9, D), np.float32), 7, axis=0)
    catalogue = Catalogue(pd.DataFrame({"asin": [f"A{i:02}" for i in range(63)], "also_buy": [["A03"] if i == 9 else [] for i in range(63)]}), tmp_path)
    store = EmbeddingStore(tmp_path, Tiny())
    store.add(catalogue.products["asin"], ["h"]*63, X)
    stored = StoredVectors(store, catalogue.products["asin"], tmp_path)
    one, other = (AlsoBuyMatcher(n_neighbors=20).fit(vectors, catalogue).neighbours(X[::5], catalogue.products["asin"][::5]) for vectors in (X, stored))
    assert all(np.array_equal(a, b) for a, b in zip(one, other))

def test_from_a_bucket_all_is_read_once_and_no_row_by_itself(s3, X, catalogue, tmp_path, monkeypatch):
    bucket = s3
    monkeypatch.setattr(embedding, "_PIECE", 300*D)
    store, asins, y = EmbeddingStore(bucket + "/shop", Tiny()), catalogue.products["asin"].to_numpy(dtype=object), catalogue.products["ground_truth"].to_numpy()
    store.add(asins, ["h"]*N, X)
    with StoredVectors(store, asins[::-1], tmp_path) as stored:
        bucket.gate.asked.clear()
        model = CategoryClassifier(epochs=1).fit(stored, y[::-1])
        assert np.array_equal(stored[:], X[::-1]) and not bucket.gate.asked  # nothing more is asked of the bucket
    assert np.allclose(model.predict_proba(X), CategoryClassifier(epochs=1).fit(X[::-1], y[::-1]).predict_proba(X), atol=1e-6)

# what goes wrong

def test_a_store_that_lacks_products_says_so_and_what_to_type(store, catalogue, tmp_path):
    with pytest.raises(FitmatchError, match=r"2 of 4 products have no vector in .*embeddings.lance \(first: B9\): embed\(catalogue, encoder, store\)"):
        StoredVectors(store, ["A00001", "B9", "A00002", "B1"], tmp_path)
    for asins in ([], ["A00001", "A00001"]):
        with pytest.raises(FitmatchError, match="at least one, and each once"): StoredVectors(store, asins, tmp_path)

def test_damaged_and_lost_rows_are_found(tmp_path, X):
    store, asins = EmbeddingStore(tmp_path, Tiny()), [f"A{i}" for i in range(50)]
    store.add(asins, ["h"]*50, X[:50])
    rows = store._table.to_arrow()
    file = next(p for p in tmp_path.rglob("*.lance") if p.is_file() and X[7].tobytes()[:64] in p.read_bytes())
    whole = file.read_bytes()
    at = whole.index(X[7].tobytes()[:64]) + 11
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1:])
    with pytest.raises(FitmatchError, match="damaged"): StoredVectors(EmbeddingStore(tmp_path, Tiny()), asins, tmp_path)
    file.write_bytes(whole)
    assert np.array_equal(StoredVectors(store, asins, tmp_path)[:], X[:50]) and len(rows) == 50
    store._table.delete("asin = 'A7'")  # behind the store's back, then an old seal
    seal = json.loads(store._seal.read_text())
    store._seal.write_text(json.dumps(seal | {"version": store._table.version}))
    with pytest.raises(FitmatchError, match="damaged"): StoredVectors(store, asins[:3], tmp_path)

def test_a_full_scratch_disk_says_so(store, catalogue, tmp_path):
    disk = tmp_path/"disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=260k", "tmpfs", str(disk)], capture_output=True).returncode: pytest.skip("a small disk can only be mounted by root")
    try:
        with pytest.raises(FitmatchError, match=r"1,000 x 96 numbers takes 0.4 MB, but the disk of .* has 0.3 MB left: .*FITMATCH_CACHE"): StoredVectors(store, catalogue.products["asin"], disk)
        with StoredVectors(store, catalogue.products["asin"][:600], disk) as fits:  # 0.23 MB
            with pytest.raises(FitmatchError, match="0.0 MB left"): np.asarray(fits.select(slice(400)))
        gc.collect()
        StoredVectors(store, catalogue.products["asin"][400:], disk)[0]
    finally: subprocess.run(["umount", "-l", str(disk)], check=True)

def test_a_disk_that_fills_up_while_the_copy_is_made(store, catalogue, tmp_path, monkeypatch):
    def full(*_): raise OSError(28, "No space left on device")
    monkeypatch.setattr(embedding.os, "posix_fallocate", full, raising=False)
    with pytest.raises(FitmatchError, match="disk is full. Free some space or choose another folder"): StoredVectors(store, catalogue.products["asin"], tmp_path)

def test_nothing_is_left_behind_not_even_by_a_process_that_is_killed(store, catalogue, tmp_path):
    scratch = tmp_path/"scratch"
    stored = StoredVectors(store, catalogue.products["asin"], scratch)
    part = stored.select(slice(5))
    assert list(scratch.iterdir()) == [] and str(scratch) in Path("/proc/self/maps").read_text()
    stored.close()
    for use in (lambda: stored[0], lambda: np.asarray(stored), lambda: stored.select([0])):
        with pytest.raises(FitmatchError, match="were closed: make StoredVectors"): use()
    assert part[0].any()
    del part
    gc.collect()
    assert str(scratch) not in Path("/proc/self/maps").read_text()

def test_vectors_on_disk_are_not_sent_to_other_processes(stored):
    with pytest.raises(FitmatchError, match=r"cannot be sent or pickled: save what was learned with its .save\(\)"): pickle.dumps(stored)

# memory

MEASURED = textwrap.dedent('''
    import sys, threading, time
    from pathlib import Path
    import numpy as np, pandas as pd, pyarrow as pa
    from fitmatch.catalogue import Catalogue
    from fitmatch.classify import CategoryClassifier
    from fitmatch.embed import EmbeddingStore, StoredVectors, _checksums
    from fitmatch.explore import cluster
    from fitmatch.match import Compatibility
    n, d, folder, found = 80_000, 640, Path(sys.argv[1]), {}
    class Tiny: info, weights_sha256 = type("Info", (), {"name": "tiny", "dim": d}), "00"
    def anonymous(): return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1])/1024
    def grown(name, do):
        "Runs it and notes by how many MB the memory of the process's own grew meanwhile, at most"
        before, peak, on = anonymous(), [0], [True]
        def watch():
            while on[0]: peak[0] = max(peak[0], anonymous()); time.sleep(.002)
        thread = threading.Thread(target=watch); thread.start()
        result = do()
        on[0] = False; thread.join()
        found[name] = peak[0] - before
        return result
    store, rng = EmbeddingStore(folder, Tiny), np.random.default_rng(0)
    asins, kind = np.array([f"A{i:06}" for i in range(n)], object), np.arange(n) % 7
    centres, small = .4*rng.standard_normal((7, d), np.float32), rng.standard_normal((300, d), np.float32)
    with store.writing():
        for i in range(0, n, 8000):
            s, X = slice(i, i + 8000), rng.standard_normal((8000, d), np.float32) + centres[kind[i:i + 8000]]
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), d)
            store._table.add(pa.table({"asin": asins[s].tolist(), "image_sha256": ["h"]*8000, "checksum": _checksums(asins[s], ["h"]*8000, X), "vector": vectors}, schema=store.schema))
    bought = [[asins[(i*7919 + 13) % 4000]] if i < 4000 else [] for i in range(n)]
    catalogue = Catalogue(pd.DataFrame({"asin": asins, "also_buy": bought, "ground_truth": np.array(list("abcdefg"))[kind]}), folder)
    y, mlp = catalogue.products["ground_truth"].to_numpy(), CategoryClassifier(epochs=1, batch_size=256)
    mlp.fit(small, kind[:300]); cluster(small, 2)  # what is loaded at the first use is not what is measured
    del X, vectors
    stored = grown("read", lambda: StoredVectors(store, asins, folder))
    right = (grown("MLP", lambda: mlp.fit(stored, y)).predict(stored[:5000]) == y[:5000]).mean()
    clusters = grown("kMeans", lambda: cluster(stored))
    purity = pd.crosstab(clusters, y).max(axis=1).sum()/n
    grown("Compatibility", lambda: Compatibility(n_models=1, settings=dict(epochs=1)).fit(stored, catalogue))
    X = store.to_numpy()[1]
    grown("MLP in memory", lambda: mlp.fit(X, y))
    print(*(f"{name}={value:.0f}" for name, value in found.items()), f"right={right:.3f}", f"purity={purity:.3f}", sep=";")
''')

@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says how much memory is a process's own")
def test_205_mb_of_vectors_are_learned_from_in_less_than_70(tmp_path, figure):
    done = subprocess.run([sys.executable, "-c", MEASURED, str(tmp_path)], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    found = {name: float(value) for name, value in (part.split("=") for part in done.stdout.strip().splitlines()[-1].split(";"))}
    figure("from 205 MB of vectors on disk, memory grew by at most " + ", ".join(f"{name} {found[name]:.0f} MB" for name in ("read", "MLP", "kMeans", "Compatibility", "MLP in memory")))
    assert max(found[name] for name in ("MLP", "kMeans", "Compatibility")) < 70 < 180 < found["MLP in memory"]
    assert found["read"] < 110  # most of it is what Lance keeps for the next question; 1,000,000 x 512 numbers, 2 GB, took 207
    assert found["right"] > .99 and found["purity"] > .99
