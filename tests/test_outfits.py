"""Suggestions, outfits and explanations against twins in loops, exhaustive search and the score itself."""
import warnings
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fitmatch.catalogue import Catalogue, FitmatchError
from fitmatch.encoders import load_encoder
from fitmatch.match import AlsoBuyMatcher, Compatibility
from fitmatch.outfits import (build_outfit, collapse_duplicates, diversify, explain, lean_towards, more_like, one_per_category, product_groups,
                              product_labels, score_parts, suggest, where_it_looked, without)

PARTS = ["bottoms", "shoes", "accessories"]
NASTY = "<script>alert('x')</script> $x$ & <b>"


def shop(seed=0, n=80, d=12):
    "Random products of four labels that are bought by a hidden colour, with titles nobody should trust"
    draw = np.random.default_rng(seed)
    label, colour, group = draw.choice(["tops", *PARTS], n), draw.integers(0, 4, n), draw.integers(0, n*3//4, n)
    label = np.array([label[group == g][0] for g in group], dtype=object)
    asins = np.array([f"B{i:03}" for i in range(n)], dtype=object)
    fits = (colour[:, None] == colour[None]) & (label[:, None] != label[None]) & (draw.random((n, n)) < .5)
    X = np.abs(draw.normal(size=(n, d)) + np.eye(d)[colour]*2).astype(np.float32)
    products = pd.DataFrame({"asin": asins, "image": "x.jpg", "title": [f"{NASTY} shade{c}" for c in colour], "brand": NASTY, "also_buy": [list(asins[row]) for row in fits],
                             "ground_truth": label, "group": group.astype(str), "color": [f"shade{c}" for c in colour]})
    return X, Catalogue(products, Path("."))


@pytest.fixture(scope="module")
def fitted():
    "(X, catalogue, {name: matcher})"
    X, catalogue = shop()
    quick = dict(settings=dict(epochs=3, batch_size=64), n_models=2, rank=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                                    # so few held-out pairs give rough probabilities, which is said elsewhere
        return X, catalogue, {"rule": AlsoBuyMatcher().fit(X, catalogue), "learned": Compatibility(**quick).fit(X, catalogue),
                              "one way": Compatibility(symmetric=False, **quick).fit(X, catalogue), "words": Compatibility(**quick).fit(None, catalogue)}


def random_matches(draw, asins, queries=3, rows=25):
    "A table as a matcher would give it"
    found = []
    for q in range(queries):
        score = -np.sort(-draw.random(rows).round(2))                       # ties, too
        found += [(q, None, m, np.nan, s, "matching") for m, s in zip(draw.choice(asins, rows, replace=False), score)]
    return pd.DataFrame(found, columns=["query", "via", "match", "similarity", "score", "decision"])


def picks_in_loops(scores, V, k, diversity):
    "Maximal marginal relevance as one would write it on a blackboard"
    left, picked, lowest, span = list(range(len(scores))), [], min(scores), (max(scores) - min(scores)) or 1
    scores = [(s - lowest)/span for s in scores]
    while left and len(picked) < k:
        worth = [(1 - diversity)*scores[i] - diversity*max([0., *(float(V[i] @ V[j]) for j in picked)]) for i in left]
        best = max(range(len(left)), key=lambda a: (round(worth[a], 6), -left[a]))
        picked.append(left.pop(best))
    return picked


@pytest.mark.parametrize("seed", range(15))
def test_diversify_equals_its_twin(seed):
    draw = np.random.default_rng(seed)
    asins = np.array([f"B{i}" for i in range(60)], dtype=object)
    vectors = draw.normal(size=(60, 5)); vectors = pd.DataFrame(vectors/np.linalg.norm(vectors, axis=1, keepdims=True), index=asins)
    matches, diversity = random_matches(draw, asins), float(draw.random())
    got = diversify(matches, vectors, k=8, diversity=diversity)
    for q, block in matches.groupby("query"):
        twin = picks_in_loops(block["score"].tolist(), vectors.loc[block["match"]].to_numpy(), 8, diversity)
        assert got[got["query"] == q]["match"].tolist() == block["match"].iloc[twin].tolist()
    assert diversify(matches, vectors, k=25, diversity=0).equals(matches)
    assert list(got.columns) == list(matches.columns)


@pytest.mark.parametrize("seed", range(10))
def test_duplicates_collapse_to_the_best(seed):
    draw = np.random.default_rng(seed)
    asins = np.array([f"B{i}" for i in range(60)], dtype=object)
    vectors = draw.normal(size=(60, 3)); vectors = pd.DataFrame(vectors/np.linalg.norm(vectors, axis=1, keepdims=True), index=asins)
    groups, matches = pd.Series(draw.integers(0, 40, 60), index=asins), random_matches(draw, asins)
    kept = collapse_duplicates(matches, vectors, groups, limit=.9)
    for q, block in matches.groupby("query"):
        mine = kept[kept["query"] == q]
        V = vectors.loc[mine["match"]].to_numpy()
        assert mine["stands_for"].sum() == len(block) and not groups[mine["match"]].duplicated().any()
        assert ((V @ V.copy().T)[np.triu_indices(len(V), 1)] < .9).all()
        for row in block.itertuples():                                      # each dropped one has a better double that stayed
            if row.match in set(mine["match"]): continue
            better = mine[mine["score"] >= row.score]["match"]
            assert any(groups[m] == groups[row.match] or vectors.loc[m] @ vectors.loc[row.match] >= .9 for m in better)
    assert collapse_duplicates(kept, vectors, groups, limit=.9).equals(kept)
    assert (collapse_duplicates(matches)["stands_for"] == 1).all()


def test_categories_and_exclusion():
    draw = np.random.default_rng(0)
    asins = np.array([f"B{i}" for i in range(60)], dtype=object)
    matches, labels = random_matches(draw, asins), pd.Series(draw.choice(["a", "b", None], 60), index=asins, dtype=object)
    each = one_per_category(matches, labels)
    for q, block in matches.groupby("query"):
        expected = block.assign(label=block["match"].map(labels)).dropna(subset="label").groupby("label")["score"].max()
        mine = each[each["query"] == q]
        assert dict(zip(mine["match"].map(labels), mine["score"])) == expected.to_dict()
    groups = pd.Series(draw.integers(0, 20, 60), index=asins)
    left = without(matches, ["B3", "never heard of"], groups)
    assert set(left["match"]) == {m for m in matches["match"] if groups[m] != groups["B3"]}
    assert set(without(matches, "B3")["match"]) == set(matches["match"]) - {"B3"}


@pytest.mark.parametrize("seed", range(5))
def test_leaning_is_rocchio_for_a_cosine(seed):
    draw = np.random.default_rng(seed)
    asins, X, q = np.array([f"B{i}" for i in range(40)], dtype=object), draw.normal(size=(40, 6)).astype(np.float32), draw.normal(size=(1, 6)).astype(np.float32)
    V = pd.DataFrame(X/np.linalg.norm(X, axis=1, keepdims=True), index=asins)
    matches = pd.DataFrame({"query": 0, "match": asins, "score": V.to_numpy() @ (q[0]/np.linalg.norm(q))})
    moved = more_like(q, X[:3], X[5:6])
    assert np.isclose(np.linalg.norm(moved), np.linalg.norm(q), rtol=1e-5)
    assert lean_towards(matches, V, asins[:3], asins[5:6])["match"].tolist() == asins[np.argsort(-(V.to_numpy() @ moved[0]), kind="stable")].tolist()
    assert np.allclose(more_like(q), q, atol=1e-6)
    assert (V.to_numpy()[:3] @ moved[0]).mean()/np.linalg.norm(q) > (V.to_numpy()[:3] @ q[0]).mean()/np.linalg.norm(q)


@pytest.mark.parametrize("name", ["rule", "learned", "one way", "words"])
def test_suggestions_keep_every_wish(fitted, name):
    X, catalogue, matchers = fitted
    matcher, queries = matchers[name], catalogue.products["asin"][:4].tolist()
    Q = None if name == "words" else X[:4]
    groups, labels = product_groups(matcher), product_labels(matcher, catalogue)
    full = matcher.match(Q, queries) if name == "rule" else matcher.match(Q, queries, top=len(X))
    plain = suggest(matcher, Q, queries, collapse=False, top=5)
    assert plain.equals(full.groupby("query", sort=False).head(5).reset_index(drop=True))
    out, liked, disliked = full["match"][0], full["match"][1], full["match"][2]
    got = suggest(matcher, Q, queries, category=["shoes", "bottoms"], exclude=[out], liked=[liked], disliked=disliked, diversity=.5, top=6, catalogue=catalogue)
    assert len(got) and not {liked, disliked} & set(got["match"]) and groups[out] not in set(groups[got["match"]])
    assert set(labels[got["match"]]) <= {"shoes", "bottoms"} and got.groupby("query").size().max() <= 6 and "relevance" not in got
    assert all(groups[q] not in set(groups[block["match"]]) for q, block in got.groupby("query"))
    known = full.set_index(["query", "match"])["score"]                     # scores stay what the matcher said
    assert np.allclose(got["score"], [known[q, m] for q, m in zip(got["query"], got["match"])])
    each = suggest(matcher, Q, queries, one_per_category=True, catalogue=catalogue)
    assert not pd.DataFrame({"q": each["query"], "l": labels[each["match"]].to_numpy()}).duplicated().any()


def every_outfit(matcher, asin, catalogue, parts):
    "The best total of all outfits, pair by pair through the matcher's public face"
    row = {a: i for i, a in enumerate(matcher.asins_)}
    learned, labels = isinstance(matcher, Compatibility), catalogue.products["ground_truth"].to_numpy()
    n = len(row)
    if learned:
        pairs = np.array(list(product(range(n), repeat=2)))
        odds = matcher.decision_function(pairs).reshape(n, n)
        S = np.log(1/(1 + np.exp(-(odds + odds.T)/2)))
    else: S = matcher.X_ @ matcher.X_.copy().T
    own = matcher.groups_[row[asin]]
    candidates = [[i for i in range(n) if labels[i] == part and matcher.groups_[i] != own] for part in parts]
    totals = {pieces: np.mean([S[a, b] for a, b in combinations((row[asin], *pieces), 2)]) for pieces in product(*candidates)}
    best = max(totals, key=totals.get)
    return (np.exp(totals[best]) if learned else totals[best]), matcher.asins_[list(best)].tolist()


@pytest.mark.parametrize("name", ["rule", "learned", "one way", "words"])
@pytest.mark.parametrize("query", [0, 7])
def test_a_wide_beam_is_exhaustive_search(fitted, name, query):
    _, catalogue, matchers = fitted
    asin = catalogue.products["asin"][query]
    total, pieces = every_outfit(matchers[name], asin, catalogue, PARTS)
    outfit = build_outfit(matchers[name], asin, PARTS, width=10**6, catalogue=catalogue)
    assert np.isclose(outfit.total, total, atol=1e-5) and (outfit.pieces["asin"].tolist() == pieces or name == "words")
    narrow = build_outfit(matchers[name], asin, PARTS, width=3, catalogue=catalogue)
    assert narrow.total <= outfit.total + 1e-9 and len(outfit.pairs) == 6
    matrix = outfit.matrix().to_numpy()
    assert np.array_equal(matrix, matrix.T, equal_nan=True) and np.isfinite(matrix[~np.eye(4, dtype=bool)]).all()


def test_locked_pieces_stay_and_rerolls_differ(fitted):
    _, catalogue, matchers = fitted
    matcher, asin = matchers["learned"], catalogue.products["asin"][0]
    shoe = catalogue.products["asin"][catalogue.products["ground_truth"] == "shoes"].iloc[-1]
    outfit, seen = build_outfit(matcher, asin, PARTS, locked={"shoes": shoe}, catalogue=catalogue), set()
    free = build_outfit(matcher, asin, PARTS, width=200)
    for _ in range(4):
        assert outfit.pieces["asin"][1] == shoe and outfit.pieces["locked"].tolist() == [False, True, False] and outfit.total <= free.total + 1e-9
        designs = tuple(matcher.groups_[[np.flatnonzero(matcher.asins_ == a)[0] for a in outfit.pieces["asin"]]])
        assert designs not in seen
        seen.add(designs)
        after = outfit.reroll()
        assert after.total <= outfit.total + 1e-9
        outfit = after
    drawn = [build_outfit(matcher, asin, PARTS, random_state=s).pieces["asin"].tolist() for s in (1, 1, 2, 3, 4)]
    assert drawn[0] == drawn[1] and len(set(map(tuple, drawn))) > 1
    assert shoe not in build_outfit(matcher, asin, PARTS, exclude=[shoe]).pieces["asin"].tolist()


@pytest.mark.parametrize("name", ["learned", "one way", "words"])
def test_parts_add_up_to_the_score(fitted, name):
    X, catalogue, matchers = fitted
    matcher = matchers[name]
    pairs = np.random.default_rng(0).integers(0, len(catalogue), (60, 2))
    sums = [score_parts(matcher, matcher.items_.take([a]), matcher.items_.take([b]))["share"].sum() for a, b in pairs]
    assert np.allclose(sums, matcher.decision_function(pairs), atol=1e-4)
    for a, b in pairs[:10]:
        why = explain(matcher, matcher.asins_[a], matcher.asins_[b])
        assert np.isclose(why.lift/(1 + np.exp(-why.log_odds)), why.score, atol=2e-3)


def test_explanation_of_a_photo_from_outside(fitted):
    X, catalogue, matchers = fitted
    matcher = matchers["learned"]
    why = explain(matcher, X[0]*1.1, matcher.asins_[9])
    assert np.isclose(why.score, matcher.probabilities(X[[0]]*np.float32(1.1))[0, 9], atol=1e-5)
    assert not why.parts["photo"].str.startswith("title=").any()


def test_witnesses_are_those_who_bought(fitted):
    X, catalogue, matchers = fitted
    bought = dict(zip(catalogue.products["asin"], catalogue.products["also_buy"]))
    group = dict(zip(catalogue.products["asin"], catalogue.products["group"]))
    for name in ("rule", "learned"):
        for match in catalogue.products["asin"][20:40]:
            why = explain(matchers[name], "B000", match)
            for row in why.neighbours.itertuples():
                assert row.bought_with_it == (match in bought[row.neighbour]) and group[row.neighbour] != group["B000"]
                assert row.with_variants == sum(group[a] == group[match] and a != match for a in bought[row.neighbour])
            assert why.together == (match in bought["B000"] or "B000" in bought[match])
    table = matchers["rule"].match(X[:1], ["B000"])
    why = explain(matchers["rule"], "B000", table["match"][0])
    assert np.isclose(why.score, table["score"][0]) and why.decision == table["decision"][0] and why.neighbours["bought_with_it"].any()


def test_shop_text_is_escaped(fitted):
    _, catalogue, matchers = fitted
    outfit = build_outfit(matchers["learned"], "B000", PARTS, catalogue=catalogue)
    why = explain(matchers["learned"], "B000", "B009")
    assert outfit.pieces["title"].str.contains("<script>").all() and "<script>" in "".join(why.parts["photo"])   # it is there to be escaped
    for page in (outfit._repr_html_(), why._repr_html_()): assert "<script>" not in page and "&lt;script&gt;" in page
    why.plot().canvas.draw(); outfit.plot().canvas.draw()                   # "$" is no formula, a missing picture a grey tile


def test_bad_input_is_explained(fitted):
    X, catalogue, matchers = fitted
    matcher, top = matchers["learned"], catalogue.products["asin"][catalogue.products["ground_truth"] == "tops"].iloc[0]
    for message, call in {
        "unknown part 'hats'": lambda: build_outfit(matcher, "B000", ["hats"]),
        "no product can be the dresses": lambda: build_outfit(matcher, "B000", ["dresses"]),
        "once": lambda: build_outfit(matcher, "B000", ["shoes", "shoes"]),
        "name each part": lambda: build_outfit(matcher, "B000", []),
        "but it is tops": lambda: build_outfit(matcher, "B000", PARTS, locked={"shoes": top}),
        "no product 'nobody'": lambda: build_outfit(matcher, "B000", PARTS, locked={"shoes": "nobody"}),
        "add it to parts": lambda: build_outfit(matcher, "B000", PARTS, locked={"tops": top}),
        "no product 'B999'": lambda: build_outfit(matcher, "B999", PARTS),
        "one at a time": lambda: build_outfit(matcher, X[:2], PARTS),
        "width=0": lambda: build_outfit(matcher, "B000", PARTS, width=0),
        "keeps no labels": lambda: build_outfit(matchers["rule"], "B000", PARTS),
        "give plot": lambda: build_outfit(matcher, "B000", PARTS).plot(),
        "limit=2": lambda: collapse_duplicates(matcher.match(X[:1]), limit=2),
        "diversity=-1": lambda: suggest(matcher, X[:1], diversity=-1),
        "top=0": lambda: suggest(matcher, X[:1], top=0),
        "no product 'B998'": lambda: suggest(matcher, X[:1], liked=["B998"]),
        "among the disliked": lambda: suggest(matcher, X[:1], liked=["B001"], disliked=["B001"]),
        "no product has the category hats": lambda: suggest(matchers["rule"], X[:1], category="hats", catalogue=catalogue),
        "no product 'B997'": lambda: explain(matcher, "B000", "B997"),
        "no parts to draw": lambda: explain(matchers["rule"], "B000", "B001").plot(),
    }.items():
        with pytest.raises(FitmatchError, match=message): call()


def test_where_it_looked_finds_the_patch_that_counts():
    "The slope of a cosine with a product that has one bright channel is in the photo where that channel is bright"
    from PIL import Image
    encoder, noise = load_encoder("fitmatch-cnn"), np.random.default_rng(0).integers(100, 156, (96, 144, 3))
    picture = Image.fromarray(noise.astype(np.uint8))
    X, catalogue = shop(d=encoder.info.dim)
    rule = AlsoBuyMatcher().fit(X, catalogue)
    heat = where_it_looked(rule, encoder, picture, "B004")
    assert heat.heat.shape == (96, 144) and 0 <= heat.heat.min() and heat.heat.max() <= 1 and heat.maps.max() == pytest.approx(1)
    assert heat.overlay().size == (144, 96)
    import torch
    V = rule.X_[4]                                                          # by hand: the maps, weighted by the slope of the cosine
    with torch.inference_mode(): maps = encoder.network.maps(encoder.preprocess(picture)[None])[0].numpy().astype(float)
    v = maps.mean((1, 2)); length = np.linalg.norm(v)
    slope = V/length - v*(V @ v)/length**3
    cam = np.maximum((slope[:, None, None]*maps).sum(0), 0)
    assert np.allclose(heat.maps, cam/cam.max(), atol=1e-4)


@pytest.mark.parametrize("name", ["pixels", "titles"])
def test_encoders_without_maps_say_so(name):
    encoder = type("Named", (), {"info": type("Info", (), {"name": "titles", "dim": 12})})() if name == "titles" else load_encoder(name)
    X, catalogue = shop(d=encoder.info.dim)
    from PIL import Image
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8))
    with pytest.raises(FitmatchError, match="keeps no maps"): where_it_looked(AlsoBuyMatcher().fit(X, catalogue), encoder, picture, "B000")
    other, smaller = load_encoder("fitmatch-cnn"), shop(d=7)
    with pytest.raises(FitmatchError, match="load the encoder it was fitted with"): where_it_looked(AlsoBuyMatcher().fit(*smaller), other, picture, "B000")
