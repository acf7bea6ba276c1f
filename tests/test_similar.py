"Exact neighbours against a patient double-precision twin, on inputs made to tie; and what is refused"
import sys
import tracemalloc
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone

from fitmatch import similar
from fitmatch.catalogue import LABELS, FitmatchError
from fitmatch.similar import (IndexedItems, NearestItems, cosine_similarity, heatmap, mean_similarity_by_label, normalise, sample_by_label,
                              similarity_blocks)


def by_patience(Q, X, k, itself):
    "Every cosine in double precision, sorted by cosine, then by row"
    Q, X = Q.astype(np.float64), X.astype(np.float64)
    q_length, x_length = np.sqrt((Q**2).sum(1)), np.sqrt((X**2).sum(1))
    cosines = np.stack([(q*X).sum(1) for q in Q])/(q_length[:, None]*x_length)
    if itself: np.fill_diagonal(cosines, -np.inf)
    index = np.stack([np.lexsort((np.arange(len(X)), -row))[:k] for row in cosines])
    return np.take_along_axis(cosines, index, 1).astype(np.float32), index


def troublesome(rng):
    "A random table of a random troublesome kind"
    n, d = int(rng.integers(2, 130)), int(rng.choice([1, 2, 3, 7, 16, 64, 200]))
    kind = rng.choice(["random", "copies", "coarse", "equal", "nearly equal", "collapsed", "one-hot", "scaled", "signed zeros", "tiny and huge"])
    X = rng.normal(size=(n, d))
    if kind == "copies": X = X[rng.integers(0, max(1, n//4), n)]
    if kind == "coarse": X = rng.integers(-1, 2, (n, d)) + .5
    if kind == "equal": X = np.repeat(X[:1], n, axis=0)
    if kind == "nearly equal": X = X[:1] + 1e-7*rng.normal(size=(n, d))
    if kind == "collapsed": X = 10 + .01*X
    if kind == "one-hot": X = np.eye(max(n, d))[:n]
    if kind == "scaled": X = X[rng.integers(0, max(1, n//4), n)]*rng.integers(1, 5, (n, 1))
    if kind == "signed zeros": X = np.where(rng.random((n, d)) < .5, rng.choice([0., -0.], (n, d)), rng.integers(1, 3, (n, d))); X[:, 0] = 1
    if kind == "tiny and huge": X = X*10.**rng.integers(-30, 15, (n, 1))
    dtype = rng.choice([np.float32, np.float32, np.float64])
    X = X.astype(dtype)
    X[~X.any(axis=1)] = 1
    return X


@pytest.mark.parametrize("seed", range(250))
def test_neighbours_are_exactly_those_of_the_twin(seed):
    rng = np.random.default_rng(seed)
    X = troublesome(rng)
    k, block = int(rng.integers(1, len(X))), int(rng.choice([1, 3, 64, 1024]))
    items = NearestItems(n_neighbors=k, block=block, device="cpu").fit(X)
    similarity, index = items.kneighbors()
    expected, rows = by_patience(X, X, k, itself=True)
    np.testing.assert_array_equal(index, rows)
    np.testing.assert_array_equal(similarity, expected)
    assert similarity.dtype == np.float32 and index.dtype == np.int64 and similarity.shape == index.shape == (len(X), k)
    Q = np.concatenate([X[rng.integers(0, len(X), 3)], rng.normal(size=(2, X.shape[1])).astype(X.dtype)])
    similarity, index = items.kneighbors(Q, n_neighbors=len(X))
    expected, rows = by_patience(Q, X, len(X), itself=False)
    np.testing.assert_array_equal(index, rows)
    np.testing.assert_array_equal(similarity, expected)


def test_coarser_arithmetic_still_gives_exact_neighbours():
    X = np.random.default_rng(0).normal(size=(500, 48)).astype(np.float32) + 2
    expected = by_patience(X, X, 5, itself=True)[1]
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("high", "medium"):
            torch.set_float32_matmul_precision(precision)
            np.testing.assert_array_equal(NearestItems().fit(X).kneighbors()[1], expected)
    finally: torch.set_float32_matmul_precision(before)


def test_margin_covers_the_error_of_single_precision():
    rng = np.random.default_rng(0)
    for d in (2, 64, 512, 2048):
        X = np.abs(rng.normal(size=(300, d)))
        single, double = normalise(X), X/np.linalg.norm(X, axis=1, keepdims=True)
        S = torch.from_numpy(single)
        error = np.abs((S @ S.T).numpy() - (torch.from_numpy(double) @ torch.from_numpy(double.copy()).T).numpy()).max()
        assert 2*error < similar._margin(d)


COARSE = [flag for flag, has in (("bf16", similar.best_precision(torch.device("cpu")) == "bfloat16"), ("int8", similar._cpu_has("_is_vnni_supported"))) if has]


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("kind", COARSE)
def test_coarse_arithmetic_finds_the_same_neighbours(seed, kind, monkeypatch):
    "Small tables are left to single precision; here nothing is small, and either way is taken for any number of queries"
    used, ways = [], similar._ways
    monkeypatch.setattr(similar, "_SMALL", 0)
    monkeypatch.setattr(similar, "_ways", lambda items, n_queries: ways(items, 65 if kind == "bf16" else 1))
    for name, way in ((name, getattr(similar, name)) for name in ("_bf16_scores", "_int8_scores")):
        monkeypatch.setattr(similar, name, lambda *args, f=way, name=name: (used.append(name[1:5]), f(*args))[1])
    rng = np.random.default_rng(seed)
    X = troublesome(rng)
    for table in (X, 10.**rng.integers(-15, 15)*X):
        k = int(rng.integers(1, min(len(X), 12)))
        similarity, index = NearestItems(n_neighbors=k, block=int(rng.choice([1, 16, 64, 1024])), device="cpu").fit(table).kneighbors()
        expected, rows = by_patience(table, table, k, itself=True)
        np.testing.assert_array_equal(index, rows)
        np.testing.assert_array_equal(similarity, expected)
    assert set(used) <= {kind} and (used or X.shape[1] == 1)


@pytest.mark.skipif("int8" not in COARSE, reason="this processor has no VNNI")
def test_products_of_whole_numbers_are_exact():
    "A private function of PyTorch, and one that goes wrong for d = 1, where it is not used"
    rng = np.random.default_rng(0)
    for n in (1, 26, 1000):
        for d in (2, 3, 64, 200, 511, 512, 2048):
            for m in (1, 2, 4):
                A, B = (torch.from_numpy(rng.choice([-127, 127], (rows, d)).astype(np.int8)) for rows in (n, m))
                assert torch.equal(torch._int_mm(A, B.T).long(), A.long() @ B.long().T)


@pytest.mark.parametrize("make", [lambda rng, n, d: rng.normal(size=(n, d)), lambda rng, n, d: np.abs(rng.normal(size=(n, d))) + 1, lambda rng, n, d: rng.exponential(size=(n, d))**4,
                                  lambda rng, n, d: np.eye(d)[rng.integers(0, d, n)] + 1e-3, lambda rng, n, d: 1 + 1e-6*rng.normal(size=(n, d))])
@pytest.mark.parametrize("d", [1, 3, 64, 512, 2048])
def test_errors_stay_within_their_bounds(make, d):
    X = make(np.random.default_rng(d), 300, d).astype(np.float32)
    lengths = similar._lengths(X)
    true = X.astype(np.float64)/lengths[:, None]
    true = torch.from_numpy(true) @ torch.from_numpy(true.copy()).T
    q, centre = torch.from_numpy(normalise(X)), torch.from_numpy(normalise(X).mean(0))
    ways = [similar._fp32_scores(q, q), similar._bf16_scores(q, *similar._rounded(X, lengths))]
    if "int8" in COARSE and d > 1: ways.append(similar._int8_scores(q, centre, *similar._quantised(X, lengths, centre)))
    for scores, error, rounding in ways:
        off = (scores.double() - true).abs() - error - rounding*(true.abs() + error)
        assert off.max() < 0
        worst = (scores.double() - true).abs().max().item()
        assert error + rounding < 100*worst + 1e-2                # a bound that rules nothing out would be no use


def test_candidates_hold_everything_within_the_error():
    rng = np.random.default_rng(0)
    for dtype in (torch.float32, torch.bfloat16):
        for n in (5, 37, 700, 5000):
            v, true = int(rng.integers(1, 5)), rng.random((40, n))*rng.choice([1, .1, .01], (40, 1))
            computed = torch.from_numpy(true + rng.uniform(-.002, .002, true.shape)).to(dtype)
            queries, rows, cols, crowded = similar._candidates(computed, .002 + 1e-6, 2.**-8 if dtype == torch.bfloat16 else 0., v)
            assert sorted([*queries, *crowded]) == list(range(40))
            for row, query in enumerate(queries):
                found = cols[rows == row]
                assert len(set(found)) == len(found) and set(np.argsort(-true[query])[:v]) <= set(found)


def test_read_only_vectors_and_many_threads_are_fine(monkeypatch):
    monkeypatch.setattr(similar, "_SMALL", 0)
    X = np.random.default_rng(0).normal(size=(3000, 24)).astype(np.float32)
    expected, threads = NearestItems().fit(X.copy()).kneighbors(), torch.get_num_threads()
    X.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = NearestItems(block=50).fit(X).kneighbors()
    for a, b in zip(found, expected): np.testing.assert_array_equal(a, b)
    assert torch.get_num_threads() == threads


def test_one_repeated_picture_and_a_collapsed_encoder_need_little_memory():
    rng = np.random.default_rng(0)
    for X in (np.ones((30_000, 32), np.float32), (1 + 1e-7*rng.normal(size=(3000, 32))).astype(np.float32)):
        tracemalloc.start()
        index = NearestItems(device="cpu").fit(X).kneighbors()[1]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 150e6
        assert index.shape == (len(X), 5)
    assert NearestItems().fit(np.ones((3000, 2))).kneighbors()[1][[0, 2, 2999]].tolist() == [[1, 2, 3, 4, 5], [0, 1, 3, 4, 5], [0, 1, 2, 3, 4]]


def test_an_index_finds_what_it_promises_with_exact_cosines():
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(4000, 24)) + 3*rng.normal(size=(50, 24))[rng.integers(0, 50, 4000)]).astype(np.float32)
    X[100:140] = X[100]                                           # copies are found too
    fast, exact = IndexedItems(n_neighbors=5, recall=.97).fit(X), NearestItems(n_neighbors=5).fit(X)
    assert .97 <= fast.recall_ <= 1 and fast.probes_ < fast.index_.nlist == int(2*len(fast.vectors_)**.5)
    for Q in (None, X[:200] + .1):
        (similarity, index), (best, rows) = fast.kneighbors(Q), exact.kneighbors(Q)
        assert np.mean([len({*a} & {*b})/5 for a, b in zip(index, rows)]) > .95
        same = index == rows
        np.testing.assert_array_equal(similarity[same], best[same])
        assert (similarity <= best).all() and (np.diff(similarity) <= 0).all()
    np.testing.assert_array_equal(fast.kneighbors(X[:9])[1], IndexedItems(n_neighbors=5, recall=.97).fit(X).kneighbors(X[:9])[1])
    np.testing.assert_array_equal(fast.kneighbors(X[:3], n_neighbors=4000)[1], exact.kneighbors(X[:3], n_neighbors=4000)[1])
    np.testing.assert_array_equal(IndexedItems(recall=1).fit(X[:300]).kneighbors()[1], exact.fit(X[:300]).kneighbors()[1])
    assert clone(fast).get_params() == dict(n_neighbors=5, recall=.97, n_heaps=None, random_state=0, block=1024, device=None)
    with pytest.raises(FitmatchError, match="recall=0"): IndexedItems(recall=0).fit(X)


def test_an_index_without_faiss_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(FitmatchError, match="fitmatch.index"): IndexedItems().fit(np.eye(9))


def test_scikit_learns_conventions():
    items = NearestItems(n_neighbors=3, block=7)
    assert clone(items).get_params() == items.get_params() == dict(n_neighbors=3, block=7, device=None, exact_below=200_000)
    X = np.random.default_rng(0).normal(size=(20, 4))
    assert items.fit(X) is items and items.n_features_in_ == 4 and items.n_samples_fit_ == 20
    with pytest.raises(Exception, match="not fitted"): NearestItems().kneighbors()
    similarity, index = items.kneighbors(X[:0])
    assert similarity.shape == index.shape == (0, 3)
    before = X.copy()
    items.kneighbors(X)
    np.testing.assert_array_equal(X, before)


@pytest.mark.parametrize("X, words", [
    (np.array([[1., 2], [0, 0]]), "zero (first: row 1)"),
    (np.array([[1., np.nan], [1, 1]]), "not finite (first: row 0)"),
    (np.array([[1., 1], [np.inf, 1]]), "not finite (first: row 1)"),
    (np.array([[1e300, 1e300]]), "not finite"),
    (np.ones(3), "table (n, d)"),
    (np.ones((3, 0)), "table (n, d)"),
    (np.array([["a", "b"]]), "real numbers"),
    (np.array([[1j, 2]]), "real numbers"),
    ([[1, 2], [3]], "table (n, d)"),
])
def test_vectors_without_a_direction_are_refused(X, words):
    for refuses in (normalise, NearestItems().fit, cosine_similarity):
        with pytest.raises(FitmatchError) as e: refuses(X)
        assert words in str(e.value)


def test_questions_without_an_answer_are_refused():
    with pytest.raises(FitmatchError, match="empty"): NearestItems().fit(np.ones((0, 3)))
    items = NearestItems().fit(np.eye(4))
    with pytest.raises(FitmatchError, match="5 neighbours wanted, but there are 3 other products"): items.kneighbors()
    with pytest.raises(FitmatchError, match="there are 4 products"): items.kneighbors(np.eye(4))
    for k in (0, -1, 5):
        with pytest.raises(FitmatchError, match="choose 1 to"): items.kneighbors(np.eye(4), n_neighbors=k)
    with pytest.raises(FitmatchError, match="one encoder"): items.kneighbors(np.ones((1, 3)), n_neighbors=1)
    with pytest.raises(FitmatchError, match="one encoder"): cosine_similarity(np.ones((2, 3)), np.ones((2, 4)))


def test_matrix_whole_and_in_blocks():
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(50, 8)), rng.normal(size=(30, 8))
    expected = normalise(A).astype(float) @ normalise(B).astype(float).T
    np.testing.assert_allclose(cosine_similarity(A, B), expected, atol=1e-6)
    pieces = list(similarity_blocks(A, B, block=16))
    assert [s.start for s, _ in pieces] == [0, 16, 32, 48] and all(block.shape == (s.stop - s.start, 30) for s, block in pieces)
    np.testing.assert_allclose(np.concatenate([block for _, block in pieces]), expected, atol=1e-6)
    assert cosine_similarity(A).max() <= 1 and np.allclose(np.diag(cosine_similarity(A)), 1)
    with pytest.raises(FitmatchError, match="NearestItems"): cosine_similarity(np.ones((10_000, 1)), np.ones((5_001, 1)))


def test_mean_similarity_by_label_is_the_mean_of_the_matrix():
    X, labels = np.random.default_rng(0).normal(size=(60, 5)), np.array(["a", "b", "c"])[np.arange(60) % 3]
    table, S = mean_similarity_by_label(X, labels), cosine_similarity(X).astype(float)
    for a in "abc":
        for b in "abc":
            block = S[np.ix_(labels == a, labels == b)]
            expected = block[~np.eye(20, dtype=bool)].mean() if a == b else block.mean()
            assert np.isclose(table.loc[a, b], expected, atol=1e-6)
    lonely = mean_similarity_by_label(X[:3], ["a", "a", None])
    assert list(lonely) == ["a", "unlabelled"] and np.isnan(lonely.loc["unlabelled", "unlabelled"])
    with pytest.raises(FitmatchError, match="2 labels for 3 products"): mean_similarity_by_label(X[:3], ["a", "b"])


def test_heatmap_sample_is_balanced_sorted_and_reproducible():
    labels = np.array(["shoes"]*90 + ["tops"]*5 + ["dresses"]*5, dtype=object)
    rows = sample_by_label(labels, sample=20, random_state=1)
    assert pd.Series(labels[rows]).value_counts().to_dict() == {"shoes": 10, "tops": 5, "dresses": 5}
    assert list(dict.fromkeys(labels[rows])) == [label for label in LABELS if label in set(labels)]
    np.testing.assert_array_equal(rows, sample_by_label(labels, sample=20, random_state=1))
    assert not np.array_equal(rows, sample_by_label(labels, sample=20, random_state=2))


@pytest.mark.parametrize("n, labels", [(1, ["tops"]), (3, [None]*3), (80, list("abcdefgh")*10), (200, [1, 2]*100), (70, [f"label {i}" for i in range(70)])])
def test_heatmap_draws_any_catalogue(n, labels):
    fig = heatmap(np.random.default_rng(0).normal(size=(n, 6)), labels)
    fig.canvas.draw()
    assert fig.axes[0].get_title(loc="left").startswith(f"{min(n, 60)} of {n}")


def test_heatmap_refuses_what_does_not_fit():
    with pytest.raises(FitmatchError, match="1 labels for 2 products"): heatmap(np.eye(2), ["a"])
    with pytest.raises(FitmatchError, match="zero"): heatmap(np.zeros((2, 2)), ["a", "b"])
