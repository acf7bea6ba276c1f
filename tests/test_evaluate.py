"""Measuring matching: splits and leaks on random graphs, metrics against torchmetrics and against all orders, bad input."""
from dataclasses import replace
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torchmetrics.classification import BinaryCalibrationError
from torchmetrics.retrieval import RetrievalMRR, RetrievalNormalizedDCG, RetrievalRecall

from fitmatch.catalogue import FitmatchError
from fitmatch.evaluate import (METRICS, PARTS, REGIMES, SCORERS, _calibration_measure, _pair_measure, ask, auc_interval, by_category_pair, by_warmth, compare_matchers, cosine_scorer, counted_pairs, evaluate_matching, find_groups, find_leaks, fitb_shares, full_rankings, interval,
                               known_part, list_diversity, matching_task, matching_tasks, measure_scorer, plot_scoreboard, popularity_scorer, purchase_pairs, random_scorer,
                               rank_rows, readable, resample_groups, scoreboard, split_counts, split_edges, split_items, task_leaks, top_chances, training_examples)
from test_match_evaluate import shop

constant = lambda task: lambda query, candidate: np.zeros(len(query))


@pytest.fixture(scope="module")
def big():
    "A shop large enough for every figure to exist in every regime"
    return shop(np.random.default_rng(3), n=300, edges=3000, groups=220)


# Splits and leaks

@pytest.mark.parametrize("seed", range(200))
def test_no_split_leaks(seed):
    draw = np.random.default_rng(seed)
    catalogue, X = shop(draw, n=int(draw.integers(20, 80)), edges=int(draw.integers(50, 400)), groups=int(draw.integers(8, 60)))
    catalogue.products["title"] = [f"the same four words {i}" for i in draw.integers(0, 100, len(catalogue))]
    catalogue.products["image_sha256"] = [f"{i:064x}" for i in draw.integers(0, 150, len(catalogue))]
    X[draw.integers(0, len(X), 4)] = X[draw.integers(0, len(X), 4)]
    groups = find_groups(catalogue, X)
    part = split_items(catalogue, groups, random_state=seed) if groups.max() > 1 else None
    if part is None: return
    assert all(len(set(part[groups == g])) == 1 for g in set(groups)) and set(part) == set(PARTS)
    pairs = purchase_pairs(catalogue)
    assert sum(split_counts(pairs, part).values()) == len(pairs)
    for regime, against in (("warm", "train"), ("cold", "test")):
        try: task = matching_task(catalogue, X, part=part, regime=regime, groups=groups, random_state=seed)
        except FitmatchError: continue                                                  # a graph with nothing to judge says so
        assert task_leaks(task) == []
        assert find_leaks(catalogue, part == "train", part == "test", task.train_pairs, np.column_stack([task.query, task.candidate])[task.truth], groups, X) == []
        assert (part[task.query] == "test").all() and (part[task.candidate] == against).all() and (part[task.train_pairs] == "train").all()
        known = {tuple(p) for p in pairs}
        assert all((tuple(sorted(p)) in known) == t for p, t in zip(zip(task.query, task.candidate), task.truth))


def test_the_checker_names_every_planted_leak():
    catalogue, X = shop(np.random.default_rng(0), n=40, edges=100, groups=10**6)
    products = catalogue.products
    products["title"], products["image_sha256"] = [f"a title of four words {i}" for i in range(40)], [f"{i:064x}" for i in range(40)]
    train, test = np.arange(20), np.arange(20, 40)
    look = lambda catalogue=catalogue, train=train, test=test, **more: find_leaks(catalogue, train, test, **more)
    planted = lambda column, value: replace(catalogue, products=products.assign(**{column: [value if i in (3, 25) else v for i, v in enumerate(products[column])]}))
    assert look(X=X) == []
    assert look(test=[*test, 3]) == ["product B003 is in train and is judged"]
    assert look(planted("group", "g")) == ["group of variants g: B003 is in train and B025 is judged"]
    both = {column: look(planted(column, value), groups=np.arange(40)) for column, value in (("image_sha256", "f"*64), ("title", "four words the same"))}
    assert both["image_sha256"] == ["picture ffffffffffff: B003 is in train and B025 is judged"]
    assert both["title"] == ["title four words the same: B003 is in train and B025 is judged"]
    for twin in (X[3], X[3] + 1e-5):
        assert look(X=np.vstack([X[:25], twin[None], X[26:]])) == ["vectors nearly the same: B003 is in train and B025 is judged"]
    pairs = lambda known, judged, **more: find_leaks(catalogue, train_pairs=known, test_pairs=judged, **more)
    assert pairs([[1, 30]], [[30, 1]]) == ["the purchase B030 with B001 is judged and known"]
    variants = np.where(np.arange(40) == 31, 30, np.arange(40))
    assert pairs([[1, 30]], [[1, 31]], groups=variants) == ["the purchase B001 with B031 is judged, and that of its variants, B001 with B030, is known"]
    assert find_leaks(catalogue, test=[30], train_pairs=[[1, 30], [1, 2]]) == ["the purchase B001 with B030 is known, and B030 is judged"]
    assert pairs([[1, 2], [3, 4]], [[1, 3], [2, 4]]) == []


def test_every_leak_of_a_random_split_is_named():
    draw = np.random.default_rng(1)
    catalogue, _ = shop(draw, n=60, edges=200, groups=20)
    groups, part = find_groups(catalogue), draw.choice(["train", "test"], 60)
    split = {g for g in set(groups) if len(set(part[groups == g])) == 2}
    assert len(find_leaks(catalogue, part == "train", part == "test")) == len(split) > 5


def test_groups_are_connected_through_others():
    catalogue, X = shop(np.random.default_rng(0), n=6, edges=5, groups=10**6)
    products = catalogue.products
    products["group"] = ["a", "a", "b", "c", None, None]
    products["image_sha256"] = ["1", "2", "2", "3", None, None]
    products["title"] = [None, None, None, "four words of title", "Four words, of title!", None]
    assert find_groups(catalogue).tolist() == [0, 0, 0, 1, 1, 2] and find_groups(catalogue, titles=False).tolist() == [0, 0, 0, 1, 2, 3]
    X[5] = X[0]*1.00001
    assert find_groups(catalogue, X).tolist() == [0, 0, 0, 1, 1, 0]


def test_many_near_copies_are_one_group():
    "More copies than neighbours are asked for, in a chain of which only the next are near"
    catalogue, X = shop(np.random.default_rng(0), n=200, edges=10, groups=10**6)
    X[50:150] = X[50] + np.random.default_rng(1).normal(scale=1e-3, size=(100, 8))
    found = find_groups(catalogue, X)
    assert len(set(found[50:150])) == 1 and len(set(found)) == 101
    assert len(set(find_groups(catalogue, np.ones_like(X)))) == 1                        # no direction at all, and all the same


def test_split_shares_and_seeds(big):
    catalogue, _ = big
    parts = [split_items(catalogue, random_state=s) for s in (0, 0, 1)]
    assert (parts[0] == parts[1]).all() and (parts[0] != parts[2]).any()
    groups = find_groups(catalogue)
    of_group = pd.Series(parts[0]).groupby(groups).first().value_counts(normalize=True)
    assert of_group.round(2).to_dict() == {"train": .7, "test": .2, "valid": .1}
    pairs = purchase_pairs(catalogue)
    assert pd.Series(split_edges(pairs)).value_counts(normalize=True).round(2).to_dict() == {"train": .7, "test": .2, "valid": .1}


# Wrong answers

@pytest.mark.parametrize("regime", REGIMES)
def test_wrong_answers_are_wrong_and_of_the_category(big, regime):
    catalogue, X = big
    task = matching_task(catalogue, X, regime=regime)
    label, known = catalogue.products["ground_truth"].to_numpy(), {tuple(p) for p in np.sort(task.groups[purchase_pairs(catalogue)], axis=1)}
    k = len(task.right)
    wrong, four = task.candidate[k:], task.options[(task.options >= 0).all(axis=1)]
    assert (label[wrong] == label[task.right]).all() and (label[four] == label[four[:, :1]]).all() and all(len(set(row)) == 4 for row in four)
    for q, rows in zip(task.query, np.column_stack([task.options[:, 1:], task.random_candidate, wrong])):
        for row in rows[rows >= 0]: assert tuple(sorted((task.groups[q], task.groups[row]))) not in known and task.groups[q] != task.groups[row] and task.pool[row]
    assert (label[task.random_candidate] != label[task.right]).mean() > .3
    assert len(four) > .9*k and task.counts["judged"] == k


def test_a_category_with_one_item_is_dropped_and_counted(big):
    catalogue, X = big
    part = split_items(catalogue)
    label = np.array(["tops"]*len(catalogue), dtype=object)
    pairs = purchase_pairs(catalogue)
    crossing = pairs[(part[pairs[:, 0]] == "test") & (part[pairs[:, 1]] == "train")]
    label[crossing[0, 1]] = "hats"                                                       # the only one, and bought with a judged photo
    alone = replace(catalogue, products=catalogue.products.assign(ground_truth=label))
    task = matching_task(alone, X, part=part)
    asked = {(a, b) for a, b in np.concatenate([pairs, pairs[:, ::-1]]) if part[a] == "test" and b == crossing[0, 1] and task.groups[a] != task.groups[b]}
    assert task.counts["no_wrong_answer"] == len(asked) >= 1 and crossing[0, 1] not in task.right
    assert task.dropped == task.counts["touched_and_dropped"] + task.counts["no_wrong_answer"]


def test_labels_missing_or_of_one_kind(big):
    catalogue, X = big
    for value in (None, "tops"):
        plain = replace(catalogue, products=catalogue.products.assign(ground_truth=pd.Series([value]*len(catalogue), dtype=object)))
        table = scoreboard(matching_task(plain, X), n_resamples=0)
        assert table.loc["category prior", "auc"] == .5 and table["auc"].notna().all()


# Scorers

@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("regime", REGIMES)
def test_a_scorer_says_the_same_however_it_is_asked(big, name, regime):
    task = matching_task(*big, regime=regime)
    score = SCORERS[name](task)
    whole = ask(score, task.query, task.candidate)
    order = np.random.default_rng(0).permutation(len(whole))[:200]
    assert np.allclose(whole[order], ask(score, task.query[order], task.candidate[order], block=17), atol=1e-6)
    assert np.allclose(whole, ask(SCORERS[name](task), task.query, task.candidate))


@pytest.mark.parametrize("name", ["popularity", "category prior", "also-buy rule", "pair features"])
def test_no_scorer_looks_at_judged_purchases(big, name):
    "The same scores when all purchases but the known ones are rewritten"
    catalogue, X = big
    task = matching_task(catalogue, X)
    asins, inside = catalogue.products["asin"].to_numpy(), task.part == "train"
    row = {a: i for i, a in enumerate(asins)}
    strangers = [[a for a in targets if inside[i] and inside[row[a]]] for i, targets in enumerate(catalogue.products["also_buy"])]
    blind = replace(task, catalogue=replace(catalogue, products=catalogue.products.assign(also_buy=strangers)))
    assert (ask(SCORERS[name](task), task.query, task.candidate) == ask(SCORERS[name](blind), task.query, task.candidate)).all()


@pytest.mark.parametrize("name", ["pair features", "also-buy rule"])
def test_no_scorer_learns_from_judged_vectors(big, name):
    "Only the pair's own vectors matter: other test vectors may be anything"
    task = matching_task(*big)
    one = task.query[0]
    X = np.where(((task.part == "train") | (np.arange(len(task.part)) == one))[:, None], task.X, 100.)
    mine = task.query == one
    scores = [ask(SCORERS[name](t), task.query[mine], task.candidate[mine]) for t in (task, replace(task, X=X))]
    assert np.allclose(*scores, atol=1e-6)


def test_what_the_rule_may_know_of_an_edge_split(big):
    task = matching_task(*big, regime="edges")
    known = known_part(task)
    assert len(known) == len(task.catalogue) and {tuple(p) for p in purchase_pairs(known)} == {tuple(p) for p in task.train_pairs}
    q, c, truth = training_examples(task)
    pairs = {tuple(p) for p in task.train_pairs}
    assert all(((a, b) in pairs or (b, a) in pairs) == t for a, b, t in zip(q, c, truth))


def test_a_coin_depends_on_pair_and_seed_only(big):
    task = matching_task(*big)
    a, b = np.divmod(np.arange(300*300), 300)
    tossed, other = random_scorer(task)(a, b), random_scorer(task, 1)(a, b)
    assert (tossed == random_scorer(task)(b, a)).all() and abs(np.corrcoef(tossed, other)[0, 1]) < .01
    assert 0 <= tossed.min() and tossed.max() < 1 and abs(np.histogram(tossed, 10)[0]/len(a) - .1).max() < .01


# Metrics

def random_rankings(draw, rows=60, columns=80, ties=False):
    S = draw.integers(0, 5, (rows, columns)).astype(float) if ties else draw.permuted(np.tile(np.arange(columns)/columns, (rows, 1)), axis=1)
    R = draw.random((rows, columns)) < .08
    R[np.arange(rows), draw.integers(0, columns, rows)] = True
    return S, R


@pytest.mark.parametrize("seed", range(10))
def test_rankings_are_torchmetrics_without_ties(seed):
    S, R = random_rankings(np.random.default_rng(seed))
    found = {key: v.mean() for key, v in rank_rows(S, R).items()}
    flat = torch.tensor(S.ravel()), torch.tensor(R.ravel()), torch.arange(len(S)).repeat_interleave(S.shape[1])
    theirs = {"recall@10": RetrievalRecall(top_k=10), "recall@50": RetrievalRecall(top_k=50), "mrr": RetrievalMRR(), "ndcg@10": RetrievalNormalizedDCG(top_k=10)}
    for key, metric in theirs.items(): assert np.isclose(found[key], metric(flat[0], flat[1].long() if key.startswith("ndcg") else flat[1], indexes=flat[2]).item(), atol=1e-6), key


@pytest.mark.parametrize("seed", range(30))
def test_rankings_with_ties_are_the_mean_over_all_orders(seed):
    draw = np.random.default_rng(seed)
    s, right, kept = draw.integers(0, 3, 6).astype(float), draw.random(6) < .5, draw.random(6) < .8
    right[0] = kept[0] = True
    right &= kept
    s[~kept] = np.nan
    items, each = np.flatnonzero(kept), []
    orders = {order for order in permutations(items) if all(s[a] >= s[b] for a, b in zip(order, order[1:]))}
    for order in orders:
        place = [i for i, item in enumerate(order) if right[item]]
        worth = sum(1/np.log2(2 + i) for i in place if i < 2)/sum(1/np.log2(2 + i) for i in range(min(2, len(place))))
        each.append([sum(i < 2 for i in place)/len(place), sum(i < 4 for i in place)/len(place), 1/(1 + place[0]), worth])
    found = rank_rows(s[None], right[None], k=(2, 4))
    assert np.allclose([found[key][0] for key in ("recall@2", "recall@4", "mrr", "ndcg@2")], np.mean(each, axis=0))
    chances = np.array([np.mean([item in order[:2] for order in orders]) for item in range(6)])
    assert np.allclose(top_chances(s[None], 2)[0], chances)
    V = draw.normal(size=(6, 3))
    V /= np.linalg.norm(V, axis=1, keepdims=True)
    if len(items) > 1: assert np.isclose(list_diversity(top_chances(s[None], 2), V)[0], 1 - np.mean([V[o[0]] @ V[o[1]] for o in orders]), atol=1e-6)


@pytest.mark.parametrize("ties", [False, True])
def test_auc_and_precision_are_scikit_learns_on_every_sample(ties):
    draw = np.random.default_rng(0)
    truth, groups = draw.random(200) < .4, draw.integers(0, 40, 200)
    scores = draw.integers(0, 8, 200)*1. if ties else draw.normal(size=200)
    W = resample_groups(40, 20)
    auc, precision = _pair_measure(scores, truth, groups)(W)
    for j in range(20):
        weight = W[groups, j]
        assert np.isclose(auc[j], roc_auc_score(truth, scores, sample_weight=weight), atol=1e-5)
        assert np.isclose(precision[j], average_precision_score(truth, scores, sample_weight=weight), atol=1e-5)


def test_calibration_error_is_torchmetrics():
    draw = np.random.default_rng(0)
    p = draw.random(500)
    truth = draw.random(500) < p**2
    ours = _calibration_measure(p, truth, np.arange(500), 500)(np.ones((500, 1)))[0][0]
    assert np.isclose(ours, BinaryCalibrationError(n_bins=10, norm="l1")(torch.tensor(p), torch.tensor(truth).long()).item(), atol=1e-6)


def test_fitb_ties_count_their_share():
    draw = np.random.default_rng(0)
    scores = draw.integers(0, 3, (100, 4))*1.
    lucky = np.mean([(scores + 1e-6*draw.random((100, 4))).argmax(axis=1) == 0 for _ in range(4000)], axis=0)
    assert abs(fitb_shares(scores) - lucky).max() < .04


def test_full_rankings_against_loops(big):
    "Recall, MRR and coverage of the cosine, one photo and one category at a time"
    task = matching_task(*big)
    V, label, pairs = task.X/np.linalg.norm(task.X, axis=1, keepdims=True), task.catalogue.products["ground_truth"].to_numpy(), purchase_pairs(task.catalogue)
    bought = {g: set() for g in task.groups}
    for a, b in pairs: bought[task.groups[a]].add(task.groups[b]), bought[task.groups[b]].add(task.groups[a])
    recall, reciprocal, seen = [], [], set()
    for q, c in sorted({(q, label[r]) for q, r in zip(task.query, task.right)}):
        right = {r for p, r in zip(task.query, task.right) if p == q and label[r] == c}
        others = [i for i in np.flatnonzero(task.pool & (label == c)) if i in right or (task.groups[i] != task.groups[q] and task.groups[i] not in bought[task.groups[q]])]
        order = sorted(others, key=lambda i: -(V[q]*V[i]).sum())
        seen |= set(order[:10])
        recall.append(len(right & set(order[:10]))/len(right))
        reciprocal.append(1/(1 + min(order.index(r) for r in right)))
    photos, found, coverage = full_rankings(task, cosine_scorer(task))
    assert len(photos) == len(recall) and np.isclose(found["recall@10"].mean(), np.mean(recall)) and np.isclose(found["mrr"].mean(), np.mean(reciprocal))
    assert np.isclose(coverage, len(seen)/task.pool.sum())


@pytest.mark.parametrize("regime", REGIMES)
def test_without_opinion_there_is_chance_and_no_luck(big, regime):
    task = matching_task(*big, regime=regime)
    values, resampled = measure_scorer(task, constant(task), n_resamples=50)
    assert values["auc"] == values["auc_random"] == values["accuracy"] == .5 and values["fitb"] == .25
    assert (resampled["auc"] == .5).all() and interval(resampled["fitb"]) == (.25, .25)
    coins = np.mean([full_rankings(task, random_scorer(task, seed))[1]["recall@10"].mean() for seed in range(30)])
    assert abs(values["recall@10"] - coins) < .02


def test_cold_candidates_are_all_the_same_to_those_who_remember(big):
    table = scoreboard(matching_task(*big, regime="cold"), n_resamples=20)
    for name in ("popularity", "also-buy rule"):
        assert table.loc[name, ["auc", "auc_low", "auc_high", "auc_random", "accuracy"]].tolist() == [.5]*5 and table.loc[name, "fitb"] == .25


# Tables

def test_scoreboard_has_every_figure_within_its_interval(big):
    table = scoreboard(matching_task(*big), n_resamples=300)
    assert list(table.index) == list(SCORERS) and all(key in table for key in METRICS)
    for key in METRICS:
        rows = table[table[f"{key}_low"].notna()]
        assert ((rows[f"{key}_low"] - 1e-6 <= rows[key]) & (rows[key] <= rows[f"{key}_high"] + 1e-6)).all() or key == "ece", key
    assert table["brier"].notna().tolist() == [name == "pair features" for name in SCORERS]
    assert table.equals(scoreboard(matching_task(*big), n_resamples=300))                # to the last digit
    assert readable(table).shape[0] == len(SCORERS) and len(plot_scoreboard(table).axes) == 3


def test_scoreboard_without_vectors_says_what_is_missing(big):
    task = matching_task(big[0])
    table = scoreboard(task, n_resamples=10)
    assert list(table.index) == ["random", "popularity", "category prior"] and "diversity" not in table
    assert set(table.attrs["left_out"]) == {"cosine", "also-buy rule", "pair features"}
    with pytest.raises(FitmatchError, match="needs embeddings"): scoreboard(task, {"cosine": cosine_scorer})


def test_several_splits(big):
    tasks = matching_tasks(*big, seeds=range(3))
    chosen = {"popularity": popularity_scorer, "cosine": cosine_scorer}
    table, single = scoreboard(tasks, chosen, 100), [scoreboard(t, chosen, 0) for t in tasks]
    assert np.allclose(table["auc"], np.mean([t["auc"] for t in single], axis=0)) and (table["auc_spread"] > 0).all()
    assert table["n"].iloc[0] == sum(len(t.truth) for t in tasks)
    assert by_category_pair(tasks, chosen, 10, least=1).groupby("scorer")["n"].sum().unique().tolist() == [table["n"].iloc[0]]


def test_the_better_matcher_is_above_in_most_samples(big):
    task = matching_task(*big)
    truth = {(q, c) for q, c in zip(task.query[task.truth], task.right)}
    better = lambda noise: lambda t: lambda q, c: np.array([(a, b) in truth for a, b in zip(q, c)]) + noise*random_scorer(t, 5)(q, c)
    good, better_still = better(4), better(3)
    found = compare_matchers(task, better_still, good)
    assert found["low"] > 0 and found["share_above"] > .99 and np.isclose(found["one"] - found["other"], found["difference"])
    back = compare_matchers(task, good, better_still)
    assert np.isclose(back["difference"], -found["difference"]) and np.isclose(back["low"], -found["high"], atol=1e-6)
    for metric in ("fitb", "recall@10", "ap"): assert compare_matchers(task, cosine_scorer, cosine_scorer, metric, 50)["share_above"] == .5


def test_paired_interval_covers_what_it_says():
    "Two scorers of the same worth: the interval of their difference holds 0 in about 95 of 100 samples"
    held, draw = 0, np.random.default_rng(0)
    for _ in range(300):
        truth, groups = np.repeat([True, False], 80), np.tile(np.arange(80), 2)
        W, common = resample_groups(80, 200, int(draw.integers(1 << 30))), draw.normal(size=160) + truth
        a, b = (_pair_measure(common + draw.normal(size=160), truth, groups, False)(W)[0] for _ in range(2))
        low, high = interval(a - b)
        held += low <= 0 <= high
    assert .91 <= held/300 <= .98


def test_breakdown_by_warmth(big):
    names = lambda regime: set(map(tuple, by_warmth(matching_task(*big, regime=regime), {"random": random_scorer}, 10, least=1)[["photo", "product"]].to_numpy()))
    assert names("cold") == {("cold", "cold")} and names("warm") <= {("cold", "warm"), ("cold", "cold")} and ("warm", "warm") in names("edges")
    table = by_warmth(matching_task(*big, regime="edges"), {"random": random_scorer}, 10, least=10**6)
    assert len(table) == 0 and table.attrs["too_few"] == len(matching_task(*big, regime="edges").right)


# Bad input

def test_edges_that_are_none_are_counted():
    catalogue, _ = shop(np.random.default_rng(0), n=5, edges=0, groups=10**6)
    catalogue.products["also_buy"] = [["B001", "B001", "B000", "GONE"], ["B000"], ["B003"], [], None]
    pairs, counts = counted_pairs(catalogue)
    assert pairs.tolist() == [[0, 1], [2, 3]]
    assert {k: counts[k] for k in ("entries", "unknown", "own", "doubled", "one_way", "pairs")} == dict(entries=6, unknown=1, own=1, doubled=2, one_way=1, pairs=2)


def test_clean_label():
    catalogue, _ = shop(np.random.default_rng(0), n=4, edges=0, groups=10**6)
    products = catalogue.products
    products["also_buy"], products["also_view"] = [["B001", "B002", "B003"], ["B002"], [], []], [[], [], ["B000"], ["GONE"]]
    products["ground_truth"] = ["tops", "tops", "shoes", None]
    assert purchase_pairs(catalogue).tolist() == [[0, 1], [0, 2], [0, 3], [1, 2]]
    assert purchase_pairs(catalogue, drop_viewed=True).tolist() == [[0, 1], [0, 3], [1, 2]]
    pairs, counts = counted_pairs(catalogue, True, True)
    assert pairs.tolist() == [[0, 3], [1, 2]] and (counts["viewed"], counts["same_category"], counts["pairs"]) == (1, 1, 2)
    catalogue.products["ground_truth"] = None
    assert len(purchase_pairs(catalogue, drop_same_category=True)) == 4                   # what has no label is of no known category


def test_a_task_on_the_clean_label_never_calls_a_purchase_wrong(big):
    catalogue, X = big
    clean, known = purchase_pairs(catalogue, drop_same_category=True), {tuple(p) for p in purchase_pairs(catalogue)}
    for regime in REGIMES:
        task = matching_task(catalogue, X, regime=regime, pairs=clean)
        label = catalogue.products["ground_truth"].to_numpy()
        assert (label[task.query] != label[task.candidate])[task.truth].all()
        assert not {tuple(sorted(p)) for p in zip(task.query[~task.truth], task.candidate[~task.truth])} & known


def test_sentences(big):
    catalogue, X = big
    n, pairs, task = len(catalogue), purchase_pairs(catalogue), matching_task(catalogue, X)
    part = split_items(catalogue)
    nobody = replace(catalogue, products=catalogue.products.assign(also_buy=[[] for _ in range(n)]))
    twice = replace(catalogue, products=catalogue.products.assign(asin=["B000"]*n))
    gives = lambda value: {"mine": lambda t: lambda q, c: value(q)}
    for attempt, sentence in (
        (lambda: matching_task(nobody, X), "nobody bought two of these products together"),
        (lambda: purchase_pairs(twice), "stands twice"),
        (lambda: split_items(catalogue, groups=np.arange(5)), "5 groups for 300 products"),
        (lambda: split_items(catalogue, groups=np.zeros(n)), "only 1 different products"),
        (lambda: split_items(catalogue, valid=0), "leave a part empty"),
        (lambda: split_items(catalogue, valid=.6, test=.5), "leave a part empty"),
        (lambda: split_edges(pairs[:2]), "only 2 different purchases"),
        (lambda: matching_task(catalogue, X, part=np.full(n, "train")), "no products in the test part"),
        (lambda: matching_task(catalogue, X, part=np.full(n, "test")), "no products in the train part"),
        (lambda: matching_task(catalogue, X, part=np.full(n, "training")), "a part 'training'"),
        (lambda: matching_task(catalogue, X, part=part[:9]), "a split of 9 for 300"),
        (lambda: matching_task(catalogue, X, regime="hot"), "regime='hot'"),
        (lambda: matching_task(catalogue, X[:7]), "embeddings of shape"),
        (lambda: matching_task(catalogue, np.where(np.arange(n)[:, None] == 7, np.nan, X)), "first: row 7"),
        (lambda: matching_task(catalogue, X, pairs=[[0, n]]), "row 300 is out of range"),
        (lambda: matching_task(catalogue, X, pairs=[0, 1]), "pairs of rows"),
        (lambda: find_leaks(catalogue, train=[-1]), "row -1 is out of range"),
        (lambda: find_leaks(catalogue, train=[.5]), "row numbers are expected"),
        (lambda: find_leaks(catalogue, train=np.ones(4, bool)), "a mask of 4 for 300"),
        (lambda: find_leaks(catalogue, train_pairs=[[0, 1, 2]]), "pairs of rows"),
        (lambda: scoreboard(task, gives(lambda q: np.full(len(q), np.nan)), 0), "mine gave NaN"),
        (lambda: scoreboard(task, gives(lambda q: np.zeros((len(q), 2))), 0), "one number a pair"),
        (lambda: evaluate_matching(task, gives(lambda q: 0.)), "one number a pair"),
        (lambda: scoreboard([], n_resamples=0), "no task"),
        (lambda: compare_matchers(task, cosine_scorer, popularity_scorer, "coverage", 5), "was not measured for both"),
        (lambda: auc_interval(np.array([np.nan, 1]), [True, False], [0, 1]), "1 of 2 scores are NaN"),
        (lambda: auc_interval(np.ones(2), [True, True], [0, 1]), "AUC needs"),
    ):
        with pytest.raises(FitmatchError, match=sentence): attempt()


def test_probabilities_are_checked(big):
    def liar(task):
        score = lambda q, c: np.full(len(q), 1.5)
        score.gives_probabilities = True
        return score
    with pytest.raises(FitmatchError, match="says that it gives probabilities"): scoreboard(matching_task(*big), {"liar": liar}, 0)


def test_infinite_scores_are_ranks(big):
    task = matching_task(*big)
    far = scoreboard(task, {"far": lambda t: lambda q, c: np.where(c % 2, np.inf, -np.inf)}, 0)
    near = scoreboard(task, {"far": lambda t: lambda q, c: c % 2*1.}, 0)
    assert np.allclose(far[["auc", "recall@10", "mrr", "coverage"]], near[["auc", "recall@10", "mrr", "coverage"]])


def test_names_are_no_mathematics(big):
    fig = plot_scoreboard(scoreboard(matching_task(*big), {r"$\frac{1}{2}": constant, "<script>": constant}, 5))
    fig.canvas.draw()
    assert "&lt;script&gt;" in readable(scoreboard(matching_task(*big), {"<script>": constant}, 5))._repr_html_()
