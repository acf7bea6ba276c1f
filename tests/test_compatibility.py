"""The learned matcher: learns a planted rule, answers for what is unknown, survives the disk, refuses in words."""
import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from fitmatch.catalogue import Catalogue, FitmatchError, select
from fitmatch.compatibility import AgainstAll, PairNetwork, KnownPairs, score_pairs_with, with_wrong_answers
from fitmatch.features import Featurizer, ItemFeatures
from fitmatch.match import MATCH_COLUMNS, Compatibility, precision_curve, threshold_for_precision

STYLES = ("boho", "sport", "formal")


def planted_shop(seed=0, n=240):
    "Products of three styles; tops, bottoms and shoes of one style are bought together, pictures show the style"
    draw = np.random.default_rng(seed)
    style, label = draw.integers(0, 3, n), np.array(["tops", "bottoms", "shoes"], dtype=object)[draw.integers(0, 3, n)]
    asins = np.array([f"B{i:03}" for i in range(n)], dtype=object)
    likes = (style[:, None] == style[None]) & (label[:, None] != label[None]) & (draw.random((n, n)) < .2)
    products = pd.DataFrame({"asin": asins, "title": [f"{STYLES[s]} thing {draw.integers(40)}" for s in style], "image": "x.jpg", "ground_truth": label,
                             "also_buy": [asins[row].tolist() for row in likes], "group": [f"g{i}" for i in range(n)]})
    X = (np.eye(3)[style] @ draw.normal(size=(3, 12)) + draw.normal(0, .3, (n, 12))).astype(np.float32)
    return Catalogue(products, "."), X, style


@pytest.fixture(scope="module")
def shop(): return planted_shop()


@pytest.fixture(scope="module")
def fitted(shop):
    catalogue, X, _ = shop
    return Compatibility(n_models=2).fit(X, catalogue)


def judged(shop, seed=1, n=2000):
    "Pairs of different labels, and whether they are of one style"
    catalogue, _, style = shop
    pairs = np.random.default_rng(seed).integers(0, len(style), (n, 2))
    label = catalogue.products["ground_truth"].to_numpy()
    pairs = pairs[label[pairs[:, 0]] != label[pairs[:, 1]]]
    return pairs, style[pairs[:, 0]] == style[pairs[:, 1]]


def test_it_learns_the_planted_rule_and_says_how_sure_it_is(shop, fitted):
    pairs, truth = judged(shop)
    p = fitted.predict_proba(pairs)
    assert roc_auc_score(truth, p[:, 1]) > .95 and np.allclose(p.sum(axis=1), 1)
    assert p[truth, 1].mean() > .6 > .4 > p[~truth, 1].mean()


@pytest.mark.parametrize("columns, pictures", [((), True), (("title",), False), (("title",), True)])
def test_any_part_may_be_missing(shop, columns, pictures):
    catalogue, X, style = shop
    matcher = Compatibility(columns=columns, n_models=1).fit(X if pictures else None, catalogue)
    pairs, truth = judged(shop)
    assert roc_auc_score(truth, matcher.predict_proba(pairs)[:, 1]) > .9


def test_products_without_a_picture_and_without_words_are_answered(shop):
    catalogue, X, style = shop
    X, products = X.copy(), catalogue.products.copy()
    X[::5] = np.nan
    products.loc[1::5, "title"] = None
    matcher = Compatibility(n_models=1).fit(X, Catalogue(products, "."))
    pairs, truth = judged(shop)
    for some in (pairs[:, 0] % 5 == 0, pairs[:, 0] % 5 == 1): assert roc_auc_score(truth[some], matcher.predict_proba(pairs[some])[:, 1]) > .85


def test_a_rerun_gives_the_same_numbers_to_the_last_digit(shop, fitted):
    catalogue, X, _ = shop
    again = Compatibility(n_models=2).fit(X, catalogue)
    pairs, _ = judged(shop)
    assert np.array_equal(again.decision_function(pairs), fitted.decision_function(pairs)) and again.threshold_ == fitted.threshold_
    assert not np.array_equal(Compatibility(n_models=2, random_state=1).fit(X, catalogue).decision_function(pairs), fitted.decision_function(pairs))


def test_without_direction_a_goes_with_b_as_b_with_a(shop, fitted):
    pairs, _ = judged(shop)
    assert np.allclose(fitted.decision_function(pairs), fitted.decision_function(pairs[:, ::-1]), atol=1e-4)
    catalogue, X, _ = shop
    directed = Compatibility(n_models=1, symmetric=False).fit(X, catalogue)
    assert np.abs(directed.decision_function(pairs) - directed.decision_function(pairs[:, ::-1])).max() > .01


@pytest.mark.parametrize("symmetric", [True, False])
def test_all_at_once_scores_as_pair_by_pair(symmetric):
    draw = np.random.default_rng(3)
    words = draw.integers(0, 31, (50, 6))
    for row in words: row[np.concatenate([[False], np.sort(row)[1:] == np.sort(row)[:-1]])] = 30
    words = np.array([[*dict.fromkeys(w for w in row if w < 30)] + [30]*(6 - len({w for w in row if w < 30})) for row in words])
    items = ItemFeatures(words, ((words < 30)*.4).astype(np.float32), draw.normal(size=(50, 5)).astype(np.float32), draw.integers(0, 4, (50, 2)))
    network = PairNetwork(np.arange(1, 31)*90, 5, [3, 3], rank=4, symmetric=symmetric)
    with torch.no_grad():
        for p in network.parameters(): p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    q, c = np.repeat(np.arange(50), 50), np.tile(np.arange(50), 50)
    pairwise = score_pairs_with(network, items.take(q), items.take(c), block=77).reshape(50, 50)
    assert np.allclose(AgainstAll(network, items).scores(items), pairwise, atol=1e-3)
    plain = np.array([[_by_hand(network, items, i, j) for j in range(8)] for i in range(8)])
    assert np.allclose(pairwise[:8, :8], plain, atol=1e-3)


def _by_hand(network, items, i, j):
    "The formula of the chapter, word by word"
    P, r, w = lambda k: network.project(*(torch.from_numpy(a[[k]]) for a in (items.words, items.weights, items.picture)))[0].detach().numpy(), network.rank, network.words.shape[0] - 1
    a, b = P(i), P(j)
    score = a[:r] @ b[r:2*r] + b[-1] + (a[r:2*r] @ b[:r] + a[-1] if network.symmetric else 0)
    for t, T in enumerate(network.tables):
        T, u, v = T.detach().numpy(), items.values[i, t], items.values[j, t]
        score += T[u, v] + (T[v, u] if network.symmetric else 0)
    both = set(items.words[i]) & set(items.words[j]) - {w}
    return score + sum(float(network.shared[network.rarity[word]]) for word in both)


def test_wrong_answers_are_of_the_label_and_wrong(shop):
    catalogue, _, _ = shop
    label = pd.factorize(catalogue.products["ground_truth"])[0]
    row = {a: i for i, a in enumerate(catalogue.products["asin"])}
    pairs = np.array([(i, row[a]) for i, t in enumerate(catalogue.products["also_buy"]) for a in t])
    purchases = KnownPairs(pairs, np.arange(len(label)), label, np.arange(len(label)))
    query, candidate, truth = with_wrong_answers(pairs, purchases)
    k, known = truth.sum(), {frozenset(p) for p in pairs.tolist()}
    assert k == len(pairs) and (label[candidate[:k]] == label[candidate[k:]]).all() and (query[:k] == query[k:]).all()
    assert not any(frozenset((int(q), int(c))) in known or q == c for q, c in zip(query[k:], candidate[k:]))


def test_matches_are_tidy_and_leave_out_what_they_must(shop, fitted):
    catalogue, X, _ = shop
    asins = catalogue.products["asin"].to_numpy()
    table = fitted.match(X[:4], asins[:4], top=7)
    assert tuple(table) == MATCH_COLUMNS and len(table) == 28 and not (table["query"] == table["match"]).any()
    assert table.groupby("query")["score"].apply(lambda s: s.is_monotonic_decreasing).all()
    wanted = np.where(table["score"] >= fitted.threshold_, "matching", np.where(table["score"] < fitted.skip_below_, "skip", "unsure"))
    assert (table["decision"] == wanted).all() and fitted.skip_below_ <= fitted.threshold_
    bought = dict(zip(asins, map(set, catalogue.products["also_buy"])))
    spoken = table[table["via"].notna()]
    assert len(spoken) and all(m in bought[v] for v, m in zip(spoken["via"], spoken["match"])) and table["similarity"].isna().equals(table["via"].isna())
    label = catalogue.products.set_index("asin")["ground_truth"]
    assert set(label[fitted.match(X[:4], category="shoes")["match"]]) == {"shoes"}
    first = fitted.match(X[:40], asins[:40], top=1)
    assert (label[first["query"]].to_numpy() != label[first["match"]].to_numpy()).all()      # nobody bought two of one label


def test_products_nobody_bought_are_suggested(shop, fitted):
    catalogue, X, style = planted_shop(seed=5, n=60)
    products = catalogue.products.assign(also_buy=[[] for _ in range(60)], asin=[f"N{i}" for i in range(60)])
    fresh, pictures = Catalogue(products, "."), shop[1]
    matcher = Compatibility(n_models=1).fit(pictures, shop[0])
    table = matcher.index(None, fresh).match(products=pd.DataFrame({"title": ["boho thing"], "ground_truth": ["tops"]}), queries=["an idea"], top=10)
    assert (style[[int(m[1:]) for m in table["match"]]] == 0).all() and table["via"].isna().all()


def test_disk_and_back(shop, fitted, tmp_path):
    catalogue, X, _ = shop
    fitted.save(tmp_path/"m", encoder="fitmatch-cnn", weights_sha256="ab")
    again = Compatibility.load(tmp_path/"m.safetensors", encoder="fitmatch-cnn", weights_sha256="ab").index(X, catalogue)
    assert again.match(X[:3]).equals(fitted.match(X[:3])) and again.get_params() == fitted.get_params() and len(again.history_) == len(fitted.history_)
    for wrong in (dict(encoder="resnet18"), dict(weights_sha256="cd")):
        with pytest.raises(FitmatchError, match="embed with that one"): Compatibility.load(tmp_path/"m", **wrong)
    with pytest.raises(FitmatchError, match="numbers a picture"): again.match(X[:1, :5])
    data = bytearray((tmp_path/"m.safetensors").read_bytes())
    for at in np.random.default_rng(0).integers(0, len(data), 25):
        spoiled = bytearray(data)
        spoiled[at] ^= 0x10
        (tmp_path/"m.safetensors").write_bytes(spoiled)
        with pytest.raises(FitmatchError, match="damaged"): Compatibility.load(tmp_path/"m")
    (tmp_path/"m.safetensors").write_bytes(data)
    note = json.loads((tmp_path/"m.json").read_text())
    for change, message in ((dict(format="fitmatch compatibility 9"), "upgrade"), (dict(format="fitmatch classifier 1"), "no compatibility"), (dict(scales=None), "not a matcher"), (dict(words=[]), "not a matcher")):
        (tmp_path/"m.json").write_text(json.dumps(note | change))
        with pytest.raises(FitmatchError, match=message): Compatibility.load(tmp_path/"m")
    with pytest.raises(FitmatchError, match="no matcher at"): Compatibility.load(tmp_path/"nothing")


def _with(catalogue, **columns): return Catalogue(catalogue.products.assign(**columns), ".")


@pytest.mark.parametrize("spoil, message", [
    (lambda c, X: (X, _with(c, also_buy=[[] for _ in range(len(c))])), "nothing to learn from"),
    (lambda c, X: (X[:9], c), "9 embeddings for 240"),
    (lambda c, X: (np.where(np.arange(12) == 3, np.nan, X), c), "holds NaN"),
    (lambda c, X: (np.full_like(X, np.inf), c), "Inf"),
    (lambda c, X: (np.full_like(X, np.nan), c), "no picture vector"),
    (lambda c, X: (X, _with(c, ground_truth=[f"k{i}" for i in range(len(c))])), "each category has one product"),
])
def test_what_cannot_be_learned_from_is_refused_in_words(shop, spoil, message):
    catalogue, X, _ = shop
    with pytest.warns() if "each" in message else _nothing(), pytest.raises(FitmatchError, match=message): Compatibility(n_models=1).fit(*spoil(catalogue, X))


class _nothing:
    def __enter__(self): return self
    def __exit__(self, *_): return False


def test_questions_that_cannot_be_answered(shop, fitted):
    catalogue, X, _ = shop
    for call, message in ((lambda: fitted.decision_function([[0, 999]]), "row 999 of 240"), (lambda: fitted.decision_function([[-1, 0]]), "row -1"), (lambda: fitted.match(X[:1], category="hats"), "no product has the category hats"),
                          (lambda: fitted.match(queries=["nobody"]), "nothing is known of nobody"), (lambda: Compatibility().fit(X, catalogue, part=np.array(["train"])), "1 parts for 240")):
        with pytest.raises(FitmatchError, match=message): call()


def test_few_purchases_warn_that_the_probabilities_are_too_sure(shop):
    catalogue, X, _ = shop
    few = select(catalogue, np.arange(len(catalogue)) < 14)
    with pytest.warns(UserWarning, match="too sure"): Compatibility(n_models=1).fit(X[:14], few)


def test_a_threshold_for_a_precision_is_the_lowest_that_has_it():
    draw = np.random.default_rng(4)
    for _ in range(30):
        truth = draw.random(80) < .5
        scores = np.round(truth + draw.normal(0, 1, 80), 1)
        threshold, reached = threshold_for_precision(scores, truth, .6, least=5)
        fine = [t for t in np.unique(scores) if (scores >= t).sum() >= 5 and truth[scores >= t].mean() >= .6]
        assert threshold == min(fine) and reached == truth[scores >= threshold].mean()
    curve = precision_curve(scores, truth)
    assert curve["recall"].is_monotonic_increasing and curve["recall"].iloc[-1] == 1 and curve["kept"].iloc[-1] == 80
    with pytest.warns(UserWarning, match="no threshold"): threshold_for_precision(np.arange(40.), np.arange(40) < 20, .9)
    for wrong in (dict(scores=np.array([np.nan, 1]), truth=[True, False]), dict(scores=np.arange(4.), truth=np.arange(4) > 1, precision=0)):
        with pytest.raises(FitmatchError): threshold_for_precision(**wrong)


def test_words_are_kept_by_count_and_read_anywhere():
    products = pd.DataFrame({"title": ["Röd skirt", "rod Skirt!", "lamp"], "category": ["A | Tops", "A | Tops", None]})
    featurizer = Featurizer(min_products=2).fit(products)
    assert set(featurizer.words_) == {"title=rod", "title=skirt", "category=a", "category=tops"}
    items = featurizer.transform(products)
    assert (items.weights[2] == 0).all() and np.allclose(items.weights[:2].max(axis=1), .5) and items.values[2].tolist() == [len(v) for v in featurizer.values_]
