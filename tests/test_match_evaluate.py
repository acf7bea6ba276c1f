"""The also-buy rule against a twin written in loops, and AUC with its interval."""
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from fitmatch.catalogue import Catalogue
from fitmatch.evaluate import auc_interval, category_prior_scorer, evaluate_matching, item_groups, matching_task, random_negatives
from fitmatch.match import AlsoBuyMatcher, choose_threshold, score_pairs


def shop(draw, n=60, edges=200, groups=40):
    "A catalogue of random purchases between random groups, and random vectors"
    asins = np.array([f"B{i:03}" for i in range(n)], dtype=object)
    also_buy = [[] for _ in range(n)]
    for a, b in draw.integers(0, n, (edges, 2)):
        if a != b and asins[b] not in also_buy[a]: also_buy[a].append(asins[b])
    products = pd.DataFrame({"asin": asins, "image": "x.jpg", "also_buy": also_buy, "ground_truth": draw.choice(["tops", "bottoms", "shoes"], n),
                             "group": draw.integers(0, groups, n).astype(str)})
    return Catalogue(products, "."), draw.normal(size=(n, 8)).astype(np.float32)


def rule_in_loops(X, catalogue, q, k=5):
    "{match: (score, similarity)} of product `q`, as one would write it on a blackboard"
    V = X.astype(np.float64)/np.linalg.norm(X, axis=1, keepdims=True)
    products = catalogue.products
    others = [i for i in range(len(X)) if products["group"][i] != products["group"][q]]
    near = sorted(others, key=lambda i: (-(V[i]*V[q]).sum(), i))[:k]
    found = {}
    for via in near:
        for asin in products["also_buy"][via]:
            j = int(products.index[products["asin"] == asin][0])
            if products["group"][j] != products["group"][q] and asin not in found: found[asin] = ((V[j]*V[q]).sum(), (V[via]*V[q]).sum(), products["asin"][via])
    return found


@pytest.mark.parametrize("seed", range(20))
def test_rule_equals_its_twin(seed):
    draw = np.random.default_rng(seed)
    catalogue, X = shop(draw)
    matcher = AlsoBuyMatcher(threshold=0.1).fit(X, catalogue)
    queries = draw.choice(len(X), 5, replace=False)
    table = matcher.match(X[queries], catalogue.products["asin"].to_numpy()[queries])
    for q in queries:
        rows = table[table["query"] == catalogue.products["asin"][q]]
        twin = rule_in_loops(X, catalogue, q)
        assert set(rows["match"]) == set(twin)
        for row in rows.itertuples():
            score, similarity, via = twin[row.match]
            assert abs(row.score - score) < 1e-5 and abs(row.similarity - similarity) < 1e-5 and row.via == via
            assert row.decision == ("matching" if row.score >= 0.1 else "skip")


def test_photos_from_outside_are_not_products():
    catalogue, X = shop(np.random.default_rng(1))
    matcher = AlsoBuyMatcher().fit(X, catalogue)
    similarity, index = matcher.neighbours(X[:3])
    assert index[:, 0].tolist() == [0, 1, 2] and np.allclose(similarity[:, 0], 1)      # nothing is left out
    named = matcher.neighbours(X[:3], catalogue.products["asin"][:3])[1]
    assert all(item_groups(catalogue)[named[i]].tolist().count(item_groups(catalogue)[i]) == 0 for i in range(3))


def test_wrong_answers_share_the_category_unless_asked_otherwise():
    catalogue, X = shop(np.random.default_rng(3), n=200, edges=600, groups=150)
    task = matching_task(catalogue, X)
    label, half = catalogue.products["ground_truth"].to_numpy(), len(task.truth)//2
    assert (label[task.candidate[:half]] == label[task.candidate[half:]]).all()
    prior = category_prior_scorer(task)(task.query, task.candidate)
    assert prior[:half].tolist() == prior[half:].tolist()
    easy = random_negatives(task)
    assert (easy.candidate[:half] == task.candidate[:half]).all() and (label[easy.candidate[:half]] != label[easy.candidate[half:]]).any()


@pytest.mark.parametrize("seed", range(10))
def test_auc_is_scikit_learns_with_ties(seed):
    draw = np.random.default_rng(seed)
    truth, scores = draw.random(200) < .3, draw.integers(0, 12, 200)/4
    found = auc_interval(scores, truth, draw.integers(0, 50, 200), n_resamples=200)
    assert np.isclose(found["auc"], roc_auc_score(truth, scores)) and found["low"] <= found["auc"] <= found["high"]


def test_interval_covers_what_it_says():
    "Of 200 samples of a scorer with a known AUC, about 95 % of the intervals hold it"
    draw, truth_auc, held = np.random.default_rng(0), 0.7602, 0                              # Φ(1/√2) for unit normals one apart
    for _ in range(200):
        truth = np.repeat([True, False], 60)
        found = auc_interval(draw.normal(size=120) + truth, truth, np.tile(np.arange(60), 2), n_resamples=300, random_state=int(draw.integers(1 << 30)))
        held += found["low"] <= truth_auc <= found["high"]
    assert 180 <= held <= 200


def test_every_scorer_is_measured_on_the_same_pairs():
    catalogue, X = shop(np.random.default_rng(5), n=200, edges=800, groups=150)
    results = evaluate_matching(matching_task(catalogue, X))
    assert results["n"].nunique() == 1 and (results["low"] <= results["auc"]).all() and (results["auc"] <= results["high"]).all()
    assert results.loc["category prior", "auc"] == 0.5


def test_threshold_by_trying_all():
    draw = np.random.default_rng(0)
    for _ in range(50):
        scores, truth = draw.integers(0, 10, 40)/10, draw.random(40) < .4
        if truth.all() or not truth.any(): continue
        j = lambda t: (scores[truth] >= t).mean() - (scores[~truth] >= t).mean()
        assert np.isclose(j(choose_threshold(scores, truth)), max(map(j, scores)))


def test_skips_score_below_every_cosine():
    catalogue, X = shop(np.random.default_rng(7))
    scores = score_pairs(AlsoBuyMatcher().fit(X, catalogue), X[:4], np.repeat(np.arange(4), 60), np.tile(np.arange(60), 4), catalogue.products["asin"][:4])
    assert ((scores == -1) | (np.abs(scores) <= 1)).all() and (scores == -1).any() and (scores > -1).any()
