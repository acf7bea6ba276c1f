"Search past memory: blocks of a store, its index and what it finds, neighbours on both engines, vectors in other databases"
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from fitmatch.catalogue import Catalogue, FitmatchError, read_table
from fitmatch.embed import EmbeddingStore
from fitmatch.neighbours import neighbours
from fitmatch.similar import NearestItems, nearest_in_store
from fitmatch.vectorexport import export_vectors, shown_address
from fitmatch.vectorindex import (INDEX, StoreView, build_index, describe_index, index_candidates, index_report, open_store, plan_index, stored_blocks, take_rows,
                                  true_cosines)

D = 32


def encoder(name="made-up", weights="a1", dim=D): return SimpleNamespace(info=SimpleNamespace(name=name, dim=dim), weights_sha256=weights)


def vectors(n, seed=0, kinds=40):
    "In kinds, with sixty copies of one, and thirty that differ only in length"
    rng = np.random.default_rng(seed)
    X = (rng.normal(size=(n, D)) + rng.normal(size=(kinds, D))[rng.integers(0, kinds, n)]).astype(np.float32)
    X[rng.permutation(n)[:60]] = X[0]
    X[rng.permutation(n)[:30]] = X[1]*rng.integers(1, 5, (30, 1))
    return X


def filled(folder, n=5000, commits=3):
    store = EmbeddingStore(folder, encoder())
    X, asins = vectors(n), np.array([f"B{i:05}" for i in np.random.default_rng(1).permutation(n)])
    with store.writing():
        for rows in np.array_split(np.arange(n), commits): store.add(asins[rows], [None]*len(rows), X[rows])
    return store


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A workspace with an index, and what was reported of it; not to be changed"
    folder = tmp_path_factory.mktemp("indexed")
    return folder, build_index(filled(folder), sample=300)


@pytest.fixture
def shop(made, tmp_path):
    "A copy of it, with which one may do as one likes"
    shutil.copytree(made[0], tmp_path/"shop")
    return tmp_path/"shop"


def oracle(Q, X, k, itself=False):
    "Every cosine in double precision, sorted by cosine, then by row"
    lengths = lambda A: np.sqrt((A.astype(float)**2).sum(1))
    cosines = np.stack([(q*X.astype(float)).sum(1) for q in Q.astype(float)])/(lengths(Q)[:, None]*lengths(X))
    if itself: np.fill_diagonal(cosines, -np.inf)
    index = np.lexsort((np.broadcast_to(np.arange(len(X)), cosines.shape), -cosines), axis=1)[:, :k]
    return np.take_along_axis(cosines, index, 1), index


def test_blocks_and_rows_are_those_of_the_store(made):
    store = open_store(made[0])
    (asins, X), view = store.to_numpy(), StoreView(store)
    assert view.keys().tolist() == asins.tolist() and view.keys([7, 3]).tolist() == asins[[7, 3]].tolist()
    for size in (777, 4999, 10_000):
        blocks = list(stored_blocks(view, size))
        assert [len(rows) for rows, _ in blocks] == [size]*(5000//size) + [5000 % size]*(5000 % size > 0)
        assert sorted(np.concatenate([rows for rows, _ in blocks])) == list(range(5000)) and all((np.diff(rows) > 0).all() for rows, _ in blocks)
        assert all(np.array_equal(found, X[rows]) for rows, found in blocks)
    rows = np.random.default_rng(0).permutation(5000)[:99]
    assert np.array_equal(take_rows(view, rows), X[rows]) and take_rows(view, []).shape == (0, D)


@pytest.mark.parametrize("kind", ["IVF_FLAT", "IVF_PQ"])
def test_the_recall_that_is_reported_is_the_recall_that_is_measured(shop, made, kind):
    "Again, by every cosine in double precision; a neighbour counts when it is as near as the tenth"
    store = open_store(shop)
    report = made[1] if kind == "IVF_FLAT" else build_index(store, kind=kind, sample=200)
    view, X = StoreView(store), store.to_numpy()[1]
    sample, shares = np.sort(np.random.default_rng(0).permutation(5000)[:report["sample"]]), []
    for row in sample:
        near = true_cosines(X[row], X); near[row] = -1
        rows, found = index_candidates(view, X[row], 10*report["refine"] + 11, report["probes"])
        assert np.array_equal(found, X[rows])
        shares.append(min(10, (true_cosines(X[row], found)[rows != row] >= np.sort(near)[-10] - 1e-12).sum())/10)
    assert report["recall"] == pytest.approx(np.mean(shares)) and report["interval"][0] >= .95 and report["interval"][0] < report["recall"] < report["interval"][1]
    assert report["kind"] == kind and 1 <= report["probes"] <= report["partitions"] == 71 and json.loads(next(shop.rglob("*.index.json")).read_text()) == json.loads(json.dumps(report))
    if kind == "IVF_PQ": assert report["options"]["num_bits"] == 4 and "4 bits" in report["why"] and report["refine"] > 1


def test_a_store_is_searched_exactly_below_and_by_its_index_above(made):
    store = open_store(made[0])
    asins, X = store.to_numpy()
    exact, fast = NearestItems(10).fit(store), NearestItems(10, exact_below=5000).fit(store)
    assert exact.search_ == "exact: all 5,000 products are compared" and fast.search_.startswith("index: IVF_FLAT") and "recall@10" in fast.search_
    assert exact.asins_.tolist() == fast.asins_.tolist() == asins.tolist() and fast.n_features_in_ == D and fast.n_samples_fit_ == 5000
    Q = np.concatenate([X[:150], X[200:250] + .1*np.random.default_rng(3).normal(size=(50, D)).astype(np.float32)])
    (similarity, index), (best, rows) = fast.kneighbors(Q), exact.kneighbors(Q)
    expected = oracle(Q, X, 10)
    np.testing.assert_array_equal(rows, expected[1])
    np.testing.assert_array_equal(best, expected[0].astype(np.float32))
    assert similarity.dtype == np.float32 and index.dtype == np.int64 and index.shape == (200, 10)
    for q, i, s in zip(Q, index, similarity):
        cosines = true_cosines(q, X[i])
        assert np.array_equal(cosines.astype(np.float32), s) and np.array_equal(np.lexsort((i, -cosines)), np.arange(10)), "exact cosines, best first, ties by lower row"
    assert (similarity >= best[:, -1:]).mean() > .93
    with pytest.raises(FitmatchError, match="one encoder"): fast.kneighbors(np.ones((1, 3)))
    with pytest.raises(FitmatchError, match="zero"): fast.kneighbors(np.zeros((1, D)))
    assert clone(fast).get_params()["exact_below"] == 5000


def test_the_index_answers_for_every_product_and_for_any_k(tmp_path):
    store = filled(tmp_path, 1300)
    build_index(store, kind="IVF_FLAT", sample=100)
    X = store.to_numpy()[1]
    fast = NearestItems(3, exact_below=100).fit(store)
    index = fast.kneighbors()[1]
    assert index.shape == (1300, 3) and (index != np.arange(1300)[:, None]).all()
    assert (index[:, 0] == NearestItems(1).fit(X).kneighbors()[1][:, 0]).mean() > .9
    for k in (1000, 1300): np.testing.assert_array_equal(fast.kneighbors(X[:2], n_neighbors=k)[1], oracle(X[:2], X, k)[1])
    with pytest.raises(FitmatchError, match="choose 1 to 1299"): fast.kneighbors(n_neighbors=1300)


def test_exact_search_from_the_store_is_that_of_memory(made):
    store = open_store(made[0])
    X = store.to_numpy()[1]
    Q = np.concatenate([X[:70], X[[0, 1]]*3])
    expected = oracle(Q, X, 70)
    for block in (1100, 100_000):
        for queries in (slice(None), slice(68, None)):
            cosines, rows = nearest_in_store(StoreView(store), Q[queries], 70, block)
            np.testing.assert_array_equal(rows, expected[1][queries])
            np.testing.assert_array_equal(cosines, expected[0][queries])
    with pytest.raises(FitmatchError, match="choose 1 to 5000"): nearest_in_store(StoreView(store), Q, 5001)


def test_products_that_came_later_are_found(shop):
    store, old = open_store(shop), StoreView(open_store(shop))
    new = vectors(200, seed=9)
    store.add([f"C{i:03}" for i in range(200)], [None]*200, new)
    report = index_report(store)
    assert report["stale"] and report["unindexed"] == 200 and report["rows_now"] == 5200 and "built for 5,000 products, now 5,200, 200 of them came later" in describe_index(report)
    fast = NearestItems(1, exact_below=100).fit(store)
    similarity, index = fast.kneighbors(new[60:90])
    assert (similarity == 1).all() and {*fast.asins_[index[:, 0]]} <= {*map("C{:03}".format, range(200))}
    assert len(old) == 5000 and "C000" not in old.keys()          # who looks at an older version goes on seeing it
    assert build_index(store, sample=100)["rows"] == 5200 and not index_report(store)["stale"]


def test_a_product_with_a_new_picture_is_found_by_it(shop):
    store = open_store(shop)
    asin, new = store.to_numpy()[0][17], np.full((1, D), 50., np.float32)
    store.add([asin], ["another picture"], new)
    assert NearestItems(1, exact_below=100).fit(store).kneighbors(new) == (pytest.approx(1.), 17)


def test_damage_is_noticed_and_mended(shop):
    "A report that is cut off, an index whose files are gone, vectors that were changed"
    store, report = open_store(shop), next(shop.rglob("*.index.json"))
    whole = report.read_text()
    for text in (whole[:50], "[]", '{"kind": "IVF_FLAT"}'):
        report.write_text(text)
        with pytest.raises(FitmatchError, match="fitmatch index"): NearestItems(exact_below=9).fit(store)
    report.write_text(whole)
    shutil.rmtree(next(shop.rglob("_indices")))
    with pytest.raises(FitmatchError, match="build the index anew with  fitmatch index"): NearestItems(exact_below=9).fit(open_store(shop)).kneighbors(np.ones((1, D)))
    build_index(open_store(shop), sample=100)
    X = store.to_numpy()[1]
    assert NearestItems(exact_below=9).fit(open_store(shop)).kneighbors(X[:1])[1][0, 0] == oracle(X[:1], X, 1)[1]
    report.unlink()
    assert index_report(store) is None and NearestItems(exact_below=9).fit(store).report_["kind"] == "IVF_FLAT" and report.exists()
    for file in shop.rglob("data/*.lance"):
        data = bytearray(file.read_bytes())
        data[5000:9000:40] = bytes(100)
        file.write_bytes(data)
    with pytest.raises(FitmatchError, match="damaged"): list(stored_blocks(StoreView(open_store(shop))))


def test_what_is_too_small_is_searched_exactly_and_says_so(tmp_path):
    store = filled(tmp_path, 300)
    report = build_index(store)
    assert report["kind"] == "none" and report["recall"] == 1 and "searched exactly" in describe_index(index_report(store)) and INDEX not in {i.name for i in store._table.list_indices()}
    assert NearestItems(exact_below=10).fit(store).search_.startswith("exact")
    for wrong, words in ((dict(kind="IVF_PQ"), "1,024"), (dict(kind="HNSW"), "unknown kind"), (dict(k=300), "choose 1 to 299"), (dict(recall=0), "recall=0"), (dict(engine="abacus"), "abacus")):
        with pytest.raises(FitmatchError, match=words): build_index(store, **wrong)
    poor = build_index(store, kind="IVF_SQ", recall=1, sample=50)              # the lower end of an interval is never 1
    assert poor["probes"] == poor["partitions"] and "though 1 was wanted" in describe_index(poor)
    forced = build_index(store, kind="IVF_FLAT", sample=50)
    assert forced["kind"] == "IVF_FLAT" and forced["partitions"] == 17 and NearestItems(exact_below=10).fit(store).search_.startswith("index")
    assert [plan_index(n, 512)[0] for n in (4095, 4096, 65_536)] == ["none", "IVF_FLAT", "IVF_PQ"]


def test_other_vectors_are_refused(made, shop):
    with pytest.raises(FitmatchError, match="not of made-up"): EmbeddingStore(shop, encoder(weights="b2"))
    with pytest.raises(FitmatchError, match="no embeddings"): open_store(shop/"elsewhere")
    with pytest.raises(FitmatchError, match="holds embeddings of made-up"): open_store(shop, "resnet18")
    EmbeddingStore(shop, encoder("another", dim=8)).add(["B1"], [None], np.ones((1, 8)))
    with pytest.raises(FitmatchError, match="another, made-up"): open_store(shop)
    (shop/"run.json").write_text('{"encoder": "another"}')
    assert open_store(shop).dim == 8 and open_store(shop, "made-up").dim == D and index_report(open_store(shop)) is None


# all pairs

@pytest.fixture(scope="module")
def cluster():
    "Ray with two processors on this machine"
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'fitmatch[scale]'")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).resolve().parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    for attempt in (1, 2, 3):                                      # a busy machine may not start it within the half minute that Ray waits
        try: ray.init(address="local", num_cpus=2, object_store_memory=2**28, include_dashboard=False, log_to_driver=False, configure_logging=False); break
        except Exception:
            ray.shutdown()
            if attempt == 3: raise
    yield ray
    ray.shutdown()


def test_neighbours_are_those_of_the_oracle_and_a_run_goes_on(tmp_path, monkeypatch):
    store = filled(tmp_path, 1500)
    asins, X = store.to_numpy()
    done, out = neighbours(store, k=7, engine="local", block=400, progress=False), tmp_path/"neighbours.parquet"
    table = read_table(out).to_pandas()
    cosines, index = oracle(X, X, 7, itself=True)
    assert (table["asin"] == np.repeat(asins, 7)).all() and (table["rank"] == np.tile(np.arange(1, 8), 1500)).all()
    assert (table["neighbour"] == asins[index.ravel()]).all() and (table["similarity"] == cosines.ravel().astype(np.float32)).all()
    assert done | dict(seconds=0, path="") == dict(path="", products=1500, k=7, engine="local", blocks=4, computed=4, seconds=0)
    import fitmatch.neighbours as module
    computed, whole = [], module.block_neighbours
    def interrupted(view, start, stop, k):
        if len(computed) == 2: raise KeyboardInterrupt
        computed.append(start)
        return whole(view, start, stop, k)
    monkeypatch.setattr(module, "block_neighbours", interrupted)
    before = out.read_bytes()
    with pytest.raises(KeyboardInterrupt): neighbours(store, k=7, engine="local", block=400, progress=False)
    assert out.read_bytes() == before and len(list((tmp_path/"neighbours.parts").glob("*.parquet"))) == 2   # the old answer stands until there is a new one
    monkeypatch.setattr(module, "block_neighbours", whole)
    assert neighbours(store, k=7, engine="local", block=400, progress=False)["computed"] == 2 and out.read_bytes() == before and not (tmp_path/"neighbours.parts").exists()
    computed.clear()
    monkeypatch.setattr(module, "block_neighbours", interrupted)
    with pytest.raises(KeyboardInterrupt): neighbours(store, k=7, engine="local", block=400, progress=False)
    monkeypatch.setattr(module, "block_neighbours", whole)
    store.add(["A0"], [None], X[:1])                               # finished blocks belong to a catalogue that is no more
    assert neighbours(store, k=7, engine="local", block=400, progress=False)["computed"] == 4
    again = read_table(out).to_pandas()
    assert len(again) == 1501*7 and again["neighbour"].iloc[:7].tolist() == [*np.array(["A0", *asins])[oracle(X[:1], np.concatenate([X[:1], X]), 8)[1][0][1:]]]


def test_a_version_that_is_gone_is_named(made):
    with pytest.raises(FitmatchError, match="does not keep version 777"): StoreView(open_store(made[0]), 777)


def test_more_neighbours_than_products(tmp_path):
    store = filled(tmp_path, 100)
    assert neighbours(store, k=500, engine="local", progress=False)["k"] == 99
    assert read_table(tmp_path/"neighbours.parquet").to_pandas().groupby("asin")["neighbour"].nunique().eq(99).all()
    for wrong in (dict(k=0), dict(engine="abacus"), dict(block=0)):
        with pytest.raises(FitmatchError): neighbours(store, **wrong)


def test_a_cluster_writes_the_same_bytes(made, cluster, tmp_path):
    store = open_store(made[0])
    for engine in ("local", "ray"): assert neighbours(store, k=4, engine=engine, block=1300, out=tmp_path/f"{engine}.parquet", progress=False)["computed"] == 4
    assert (tmp_path/"local.parquet").read_bytes() == (tmp_path/"ray.parquet").read_bytes()


def test_a_cluster_builds_the_index(shop, cluster):
    pytest.importorskip("lance_ray")
    store = open_store(shop)
    report = build_index(store, sample=100, engine="ray")
    assert report["engine"] == "ray" and report["interval"][0] >= .95 and report["bytes"] > 1e5 and index_report(store)["unindexed"] == 0
    assert NearestItems(10, exact_below=9).fit(store).search_.startswith("index: IVF_FLAT")


# other databases

ATTACK = "'; DROP TABLE products; -- <script>alert(1)</script> {{7*7}} \u202e {\"$ne\": 1}"


@pytest.fixture
def catalogue(tmp_path):
    "300 products in a store, of which one has a title that no database should act upon"
    store = filled(tmp_path/"ws", 300)
    asins, X = store.to_numpy()
    titles = [ATTACK if i == 5 else None if i == 6 else f"shirt {i}" for i in range(300)]
    products = pd.DataFrame(dict(asin=asins, title=titles, category="tops", ground_truth=["tops", None, "shoes"]*100))
    return store, X, Catalogue(products, tmp_path, pd.DataFrame(), 0, ("tops", "shoes"))


def qdrant_top(client, name, q):
    return [(p.payload, p.score) for p in client.query_points(name, q.tolist(), limit=10).points]


def milvus_top(client, name, q):
    client.load_collection(name)
    return [(h["entity"], h["distance"]) for h in client.search(name, [q.tolist()], limit=10, output_fields=["asin", "title", "category", "label", "encoder"])[0]]


@pytest.mark.parametrize("to", ["qdrant", "milvus"])
def test_other_databases_find_what_we_find(to, catalogue, tmp_path):
    client = pytest.importorskip("qdrant_client").QdrantClient(":memory:") if to == "qdrant" else pytest.importorskip("pymilvus").MilvusClient(str(tmp_path/"milvus.db"))
    (store, X, shop), top = catalogue, dict(qdrant=qdrant_top, milvus=milvus_top)[to]
    said = export_vectors(store, to, client, shop, batch=128, progress=False)
    assert said["sent"] == said["products"] == 300 and said["others"] == 0 and said["collection"] == "fitmatch_made_up"
    asins = store.to_numpy()[0]
    row_of, shares = {asin: i for i, asin in enumerate(asins)}, []
    wanted = lambda column, i: None if pd.isna(value := shop.products[column][i]) else value
    for row in (5, 6, *range(200, 220)):
        cosines, found = oracle(X[[row]], X, 300)[0][0], top(client, said["collection"], X[row])
        rows = [row_of[about["asin"]] for about, _ in found]
        np.testing.assert_allclose([score for _, score in found], true_cosines(X[row], X[rows]), atol=2e-6)
        shares.append(np.mean([score >= cosines[9] - 2e-6 for _, score in found]))           # copies tie: any of them will do
        assert all(about["category"] == "tops" and about["encoder"] == "made-up a1" and (about["title"] or None) == wanted("title", i) for i, (about, _) in zip(rows, found))
        if cosines[1] < .99: assert rows[0] == row and (found[0][0]["label"] or None) == wanted("ground_truth", row)
    assert np.mean(shares) == 1 if to == "qdrant" else np.mean(shares) > .9                   # Milvus has an index of its own, which misses some
    assert export_vectors(store, to, client, shop, batch=100, progress=False)["sent"] == 0
    shop.products.loc[9, "title"] = "renamed"
    store.add([asins[8], "NEW"], [None]*2, np.ones((2, D)))
    again = export_vectors(store, to, client, shop, progress=False)
    assert (again["sent"], again["unchanged"], again["others"]) == (3, 298, 0)
    for other in (EmbeddingStore(tmp_path/"o1", encoder(weights="b2")), EmbeddingStore(tmp_path/"o2", encoder(dim=8))):
        other.add(["B1"], [None], np.ones((1, other.dim)))
        with pytest.raises(FitmatchError, match="--collection"): export_vectors(other, to, client, progress=False)
    client.close()


def test_secrets_and_missing_clients(catalogue, monkeypatch):
    store = catalogue[0]
    monkeypatch.setenv("QDRANT_API_KEY", "k3y0fmine")
    with pytest.raises(FitmatchError) as e: export_vectors(store, "qdrant", "https://me:pa55word@127.0.0.1:9/x?api_key=s3cret", progress=False)
    assert "127.0.0.1:9" in str(e.value) and not any(secret in str(e.value) for secret in ("pa55word", "s3cret", "k3y0fmine", "me:"))
    assert shown_address("http://u:p@[::1]:80/x") == "http://[::1]:80" and shown_address("a/b.db") == "a/b.db"
    for module, to, words in (("qdrant_client", "qdrant", "pip install qdrant-client"), ("pymilvus", "milvus", "pip install 'pymilvus")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(FitmatchError, match=words): export_vectors(store, to, "somewhere", progress=False)
    with pytest.raises(FitmatchError, match="pinecone"): export_vectors(store, "pinecone", "x", progress=False)
    with pytest.raises(FitmatchError, match="letters"): export_vectors(store, "qdrant", ":memory:", collection="a; b", progress=False)
