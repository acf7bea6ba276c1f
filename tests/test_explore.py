"""fitmatch.projection, mappage and explore: what the notebooks do not tell: oracles, edge cases, hostile titles; the map in a browser is in browser/test_map.py"""
import base64
import itertools
import json
import re
import sys
import tracemalloc
import types
import warnings
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.linalg import subspace_angles
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness

from fitmatch.catalogue import FitmatchError, clean
from fitmatch.compare import compare_maps, neighbour_overlap
from fitmatch.explore import (PALETTE, assign_labels, catalogue_map, cluster, cluster_curve, cluster_galleries, cluster_rows, cluster_scores,
                              cluster_summary, gallery, label_styles, map_html, map_picture, plot_cluster_curve, plotly_text, reduce, sample_rows,
                              script_json, thumbnails)
from fitmatch.livemap import CatalogueMap
from fitmatch.mappage import pack_pictures, picture_sheets, repacked
from fitmatch.projection import trust

HOSTILE = ["<script>window.PWNED=1</script>", "</script><img src=x onerror=window.PWNED=1>", r"$\frac{a}{b}$ now $5", "%{x} 50%", "{{7*7}}",
           "\"quotes' `tick`", "<b>bold</b><a href='javascript:alert(1)'>x</a>", "x"*300, "日本語 😀", "<!--", "]]>", "&lt;b&gt;"]

@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    "Forty pictures of noise, twelve of them with hostile titles"
    root, rng = tmp_path_factory.mktemp("shop"), np.random.default_rng(0)
    rows = []
    for i in range(40):
        Image.fromarray(rng.integers(0, 255, (80, 64, 3), dtype=np.uint8)).save(root/f"{i}.png")
        rows.append(dict(asin=f"A{i}", title=f"plain product {i}", image=f"{i}.png", ground_truth=["tops", "shoes", "<b>%{x}$a$</b>", None][i % 4]))
    found = clean(pd.DataFrame(rows), root, labels=None)
    titles = [*HOSTILE, *found.products["title"][len(HOSTILE):]]                # afterwards: `clean` refuses some of them, a page must not rely on that
    return replace(found, products=found.products.assign(title=titles))

@pytest.fixture(scope="module")
def X(): return np.random.default_rng(1).normal(size=(40, 6)).astype(np.float32)

# reduce

@pytest.mark.parametrize("shape", [(50, 8), (8, 50), (30, 30)])
def test_pca_is_the_singular_value_decomposition(shape):
    X = np.random.default_rng(0).normal(size=shape)*np.linspace(5, 1, shape[1])
    found = reduce(X)
    U, S, _ = np.linalg.svd(X - X.mean(0), full_matrices=False)
    assert np.allclose(np.abs(found.points), np.abs(U[:, :3]*S[:3]), atol=1e-3)
    assert np.allclose(found.explained_variance_ratio, (S**2/(S**2).sum())[:3])
    assert found.reconstruction_error == pytest.approx(1 - (S**2)[:3].sum()/(S**2).sum())
    assert found.points.dtype == np.float32 and np.array_equal(found.points, reduce(X).points)

def test_pca_of_three_dimensions_loses_nothing():
    assert reduce(np.random.default_rng(0).normal(size=(20, 3))).reconstruction_error == pytest.approx(0, abs=1e-9)

@pytest.mark.parametrize("X", [np.ones((2, 9)), np.ones((9, 2)), np.ones(5), np.empty((0, 5)), np.array([[1., 2, 3], [np.nan, 1, 1], [1, 1, np.inf]])])
def test_pca_refuses_what_it_cannot_reduce(X):
    with pytest.raises(FitmatchError): reduce(X)

@pytest.mark.parametrize("kind", ["float32", "float64", "far from zero", "in order"])
def test_pca_in_pieces_is_scikit_learns(kind):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(9001, 70)) @ np.diag(np.linspace(3, 1, 70)) + (500 if kind == "far from zero" else 0)
    if kind == "in order": X = X[X[:, 0].argsort()]*np.linspace(.1, 10, 9001)[:, None]  # no part is like another
    X = X.astype(np.float64 if kind == "float64" else np.float32)
    found, expected = reduce(X), PCA(3, svd_solver="full").fit(X.astype(np.float64))
    angle = np.degrees(subspace_angles(found.model.components_.T, expected.components_.T)).max()
    assert angle < (1e-6 if kind == "float64" else .01)
    assert np.allclose(found.points, expected.transform(X), atol=2e-3) and found.points.dtype == np.float32
    for name in ("explained_variance_", "explained_variance_ratio_", "singular_values_", "noise_variance_", "n_components_", "n_samples_", "n_features_in_"):
        assert np.allclose(getattr(found.model, name), getattr(expected, name), rtol=1e-4), name
    assert np.allclose(found.model.inverse_transform(found.points), expected.inverse_transform(expected.transform(X)), atol=5e-3)

def test_pca_of_float32_makes_no_copy_of_the_table():
    X = np.random.default_rng(0).normal(size=(60_000, 64)).astype(np.float32)
    tracemalloc.start()
    reduce(X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < X.nbytes/2

@pytest.mark.parametrize("method", ["tsne", "umap"])
def test_maps_of_neighbours_are_repeatable_and_keep_neighbours(method):
    if method == "umap": pytest.importorskip("umap")
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(150, 5)) + 8*np.eye(5)[np.arange(150) % 5]) @ rng.normal(size=(5, 64))
    found = reduce(X, 2, method)
    assert np.array_equal(found.points, reduce(X, 2, method).points) and found.points.dtype == np.float32
    assert found.explained_variance_ratio is None and np.isnan(found.reconstruction_error)
    assert found.trust == trust(X, found.points) > .9
    if method == "umap": assert (found.points != reduce(X, 2, method, random_state=1).points).any()

def test_umap_places_new_products_and_tsne_says_that_it_cannot():
    X = np.random.default_rng(0).normal(size=(60, 20))
    with pytest.raises(FitmatchError, match="only the products"): reduce(X, 2, "tsne").transform(X[:3])
    pytest.importorskip("umap")
    assert reduce(X, 2, "umap").transform(X[:3]).shape == (3, 2)

def test_a_missing_umap_is_named_with_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(FitmatchError, match=r"pip install 'fitmatch\[maps\]'"): reduce(np.random.default_rng(0).normal(size=(30, 8)), 2, "umap")

def test_trust_is_scikit_learns_and_needs_neighbours():
    rng = np.random.default_rng(0)
    X, points = rng.normal(size=(90, 7)), rng.normal(size=(90, 2))
    assert trust(X, points, 5) == pytest.approx(trustworthiness(X, points, n_neighbors=5, metric="cosine"))
    assert trust(X, X, 5) < 1 and trust(X/np.linalg.norm(X, axis=1)[:, None], X/np.linalg.norm(X, axis=1)[:, None], 5) == 1 and np.isnan(trust(X[:2], points[:2]))

# clusters

@pytest.mark.parametrize("spread", [0, .5, 3])
def test_clusters_are_no_worse_than_ten_runs_on_everything(spread):
    ratios = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        X = rng.normal(size=(2000, 96)) + spread*rng.normal(size=(11, 96))[rng.integers(0, 11, 2000)]
        inertia = sum(((X[labels == c] - X[labels == c].mean(0))**2).sum() for labels in [cluster(X.astype(np.float32), random_state=seed)] for c in range(7))
        ratios.append(inertia/KMeans(7, n_init=10, random_state=seed).fit(X).inertia_)
    assert np.median(ratios) < 1 + 1e-4 and max(ratios) < 1.005

def test_fewer_different_products_than_clusters_are_grouped_all_the_same():
    X = np.random.default_rng(0).normal(size=(3, 128)).astype(np.float32)[np.arange(600) % 3]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                           # scikit-learn says that there are only three
        assert len(set(cluster(X, k=7))) == 3

def test_clusters_are_ordered_by_size_and_the_same_every_time(X):
    labels = cluster(X, k=5, random_state=3)
    assert (np.diff(np.bincount(labels)) <= 0).all() and set(labels) == set(range(5))
    assert np.array_equal(labels, cluster(X, k=5, random_state=3))

def test_clusters_find_three_heaps():
    truth = np.repeat(["tops", "shoes", "bags"], [30, 20, 10])
    X = np.random.default_rng(0).normal(size=(60, 4))*.01 + pd.factorize(truth)[0][:, None]*10
    assert cluster_scores(cluster(X, k=3), truth) == {"accuracy": 1, "ari": 1, "nmi": pytest.approx(1)}
    assert assign_labels(cluster(X, k=3), truth) == {0: "tops", 1: "shoes", 2: "bags"}
    assert cluster_curve(X, ks=(2, 3, 4))["silhouette"].idxmax() == 1

@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [3, 4, 6])
def test_accuracy_is_the_best_over_all_assignments(seed, k):
    rng = np.random.default_rng(seed)
    labels, truth = rng.integers(0, k, 40), rng.choice(["a", "b", "c", "d"], 40)
    names = np.array(["a", "b", "c", "d"] + ["-"]*max(0, k - 4))
    best = max((truth == np.array(names[list(order)])[labels]).mean() for order in itertools.permutations(range(len(names)), k))
    assert cluster_scores(labels, truth)["accuracy"] == pytest.approx(best)

def test_missing_labels_do_not_count():
    whole = cluster_scores([0, 0, 1, 1], ["a", "b", "b", "b"])
    assert cluster_scores([0, 0, 1, 1, 1, 0], ["a", "b", "b", "b", None, np.nan]) == whole
    with pytest.raises(FitmatchError, match="ground_truth"): cluster_scores([0, 1], [None, np.nan])
    with pytest.raises(FitmatchError, match="fit"): cluster_scores([0, 1], ["a"])

def test_summary_counts_everyone_and_purity_only_the_labelled():
    summary = cluster_summary([0, 0, 0, 1], ["a", "b", "a", None])
    assert summary["size"].tolist() == [3, 1] and summary["purity"][0] == pytest.approx(2/3) and summary["label"].isna().tolist() == [False, True]

def test_curve_keeps_to_its_samples(X):
    curve = cluster_curve(X, ks=range(2, 100), most=20, sample=10)
    assert curve["k"].tolist() == list(range(2, 20)) and curve.attrs == {"rows": 20, "silhouette_rows": 10}
    with pytest.raises(FitmatchError, match="at least 3"): cluster_curve(X[:2])

def test_samples_are_sorted_distinct_and_repeatable():
    rows = sample_rows(1000, 50, 1)
    assert len(set(rows)) == 50 and (np.diff(rows) > 0).all() and np.array_equal(rows, sample_rows(1000, 50, 1))
    assert sample_rows(3, 50).tolist() == [0, 1, 2]
    assert all(len(r) <= 4 for r in cluster_rows([0]*9 + [1]*2, n=4).values())

def test_seven_labels_keep_their_colours():
    styles = label_styles("abcdefg")
    assert len({c for c, _ in styles.values()}) == len({s for _, s in styles.values()}) == 7
    assert len(set(PALETTE)) == len(PALETTE) == 8

# pictures

def test_galleries_draw_hostile_titles_and_missing_pictures(catalogue, X):
    before = plt.get_fignums()
    catalogue.root.joinpath("39.png").rename(catalogue.root/"moved")
    try:
        for figure in (gallery(catalogue, range(40), title="$5 and $6"), gallery(catalogue, [39]), cluster_galleries(catalogue, cluster(X, k=3), n=4),
                       plot_cluster_curve(cluster_curve(X), k=99)): figure.canvas.draw()
        assert thumbnails(catalogue, [39]) == [""]
    finally: (catalogue.root/"moved").rename(catalogue.root/"39.png")
    assert plt.get_fignums() == before
    with pytest.raises(FitmatchError): gallery(catalogue, [])

def test_thumbnails_keep_to_the_budget(catalogue):
    large, small = thumbnails(catalogue), thumbnails(catalogue, budget=60_000)
    assert len(large) == len(small) == 40 and sum(map(len, small)) <= 60_000 < sum(map(len, large))
    assert thumbnails(catalogue, []) == []

def test_five_thousand_pictures_fit_into_a_page(catalogue, figure):
    "Crops of one texture, all different, and costlier than photographs"
    rng, n = np.random.default_rng(0), 5000
    texture = Image.fromarray(rng.integers(0, 255, (220, 220, 3), dtype=np.uint8)).resize((3300, 3300), Image.Resampling.BICUBIC)
    corners = rng.integers(0, 3100, (n, 2))
    sheets = pack_pictures([texture.crop((x, y, x + 190, y + 144)) for x, y in corners.tolist()])
    assert len(set(sheets.places)) == len({tuple(c) for c in corners.tolist()}) and sheets.tile >= 48 and 4e6 < len(sheets) <= 5.5e6
    products = clean(pd.DataFrame(dict(asin=[f"B{i:09d}" for i in range(n)], title=[f"Women's product {i} with a title of quite ordinary length, blue" for i in range(n)], image="0.png")), catalogue.root)
    near = rng.random((n, 8)), rng.integers(0, n, (n, 8))
    matches = pd.DataFrame({"query": np.repeat(products.products["asin"], 8), "match": products.products["asin"].to_numpy()[near[1].ravel()], "score": .5, "decision": "matching"})
    views = {"label": np.arange(n) % 7, "cluster": np.arange(n) % 5}
    page = map_html(catalogue_map(rng.normal(size=(n, 3)), products, views, neighbours=near, matches=matches), sheets, plotlyjs=True, full=True)
    figure(f"a map of 5,000 products, pictures of {sheets.tile} pixels, nearest and matches: {len(page.encode())/1e6:.1f} MB")
    assert len(page.encode()) < 12e6

def test_pictures_are_encoded_anew_and_once(catalogue):
    sheets = picture_sheets(catalogue, [0, 1, 0], tile=64)
    assert sheets.places == [0, 1, 0] and sheets.sizes == [51, 64, 51, 64]
    raw = catalogue.image_path(0).read_bytes()
    evil = "data:image/png;base64," + base64.b64encode(raw + b"<script>PWNED</script>").decode()
    again = repacked([evil, "", "data:image/svg+xml;base64," + base64.b64encode(b"<svg onload='alert(1)'/>").decode()])
    assert again.places == [0, -1, -1] and b"PWNED" not in base64.b64decode(again.uris[0].partition(",")[2]) and again.uris[0].startswith("data:image/webp;")
    with pytest.raises(FitmatchError, match="do not fit"): map_html(catalogue_map(np.zeros((40, 3)), catalogue), sheets)

# the map

def test_links_are_row_numbers_whoever_computed_them(catalogue):
    asins = catalogue.products["asin"].to_numpy()
    near = pd.DataFrame({"query": [asins[1], asins[1], "gone", asins[2], asins[1]], "neighbour": [asins[5], asins[6], asins[3], "gone", asins[5]], "similarity": [.9, .8, .7, .6, .5]})
    matches = pd.DataFrame({"query": [asins[0]]*20, "via": asins[1], "match": asins[10:30], "similarity": .5, "score": np.linspace(1, .1, 20), "decision": ["matching"]*5 + ["skip"]*15})
    meta = catalogue_map(np.zeros((40, 2)), catalogue, dims=2, neighbours=near, matches=matches).layout.meta
    nearest, goes = meta["links"]
    assert nearest["rows"][1] == [5, 6] and nearest["scores"][1] == [90, 80] and sum(map(len, nearest["rows"])) == 2 and nearest["yes"] is None
    assert goes["rows"][0] == list(range(10, 18)) and goes["yes"][0] == [1]*5 + [0]*3                           # eight at most
    both = np.array([[.9, .8]]*40), np.array([[3, -1]]*40)
    assert catalogue_map(np.zeros((40, 2)), catalogue, dims=2, neighbours=both).layout.meta["links"][0]["rows"] == [[3]]*40
    with pytest.raises(FitmatchError, match="do not fit"): catalogue_map(np.zeros((40, 2)), catalogue, dims=2, neighbours=(both[0][:3], both[1][:3]))

def test_embeddings_are_reduced_and_the_loss_is_said(catalogue, X):
    figure = catalogue_map(X, catalogue, method="tsne", dims=2)
    assert "Trustworthiness" in figure.layout.meta["note"] and "mean little" in figure.layout.meta["note"] and "no unit" in figure.layout.xaxis.title.text
    assert "Trustworthiness" in catalogue_map(X, catalogue).layout.meta["note"] and figure.data[0].type == "scattergl"

def test_overlap_is_counted_product_by_product(catalogue, X):
    rng = np.random.default_rng(0)
    a, b, c = (np.array([rng.permutation(40)[:6] for _ in range(40)]) for _ in range(3))
    assert neighbour_overlap([a, b, c]).tolist() == [len(set(p) & set(q) & set(r))/6 for p, q, r in zip(a, b, c)]
    page = compare_maps({"<b>one</b>": X, "other": X[:, ::-1]}, catalogue)
    assert "share 100%" in page and "<b>one" not in page

def test_the_drawing_takes_hostile_titles_and_labels(catalogue, X):
    figure = map_picture(X, catalogue)
    figure.canvas.draw()
    assert len(figure.axes[0].artists) > 5

def test_colab_tells_the_selection_by_a_callback(catalogue, X, monkeypatch):
    registered = {}
    google, colab, output = (types.ModuleType(name) for name in ("google", "google.colab", "google.colab.output"))
    google.colab, colab.output, output.register_callback = colab, output, registered.__setitem__
    for module in (google, colab, output): monkeypatch.setitem(sys.modules, module.__name__, module)
    chosen, shown = CatalogueMap(X, catalogue), []
    monkeypatch.setattr("fitmatch.livemap.display", lambda thing, **more: shown.append(thing))
    chosen._ipython_display_()
    assert len(shown) == 1 and list(registered) == [chosen.channel] and f'"channel":"{chosen.channel}"' in shown[0].data   # no widget
    registered[chosen.channel]([3, 1, 99, "x"])
    assert chosen.selection["asin"].tolist() == ["A1", "A3"] and CatalogueMap(X, catalogue).channel != chosen.channel

def test_every_product_is_on_the_map_once_a_view(catalogue, X):
    figure = catalogue_map(reduce(X), catalogue, color={"label": "ground_truth", "cluster": cluster(X, k=4)})
    meta = figure.layout.meta
    for view in ("label", "cluster"):
        traces = [figure.data[i] for i in meta["views"][view]["traces"]]
        assert sorted(row for t in traces for row in t.customdata) == list(range(40)) and len(meta["views"][view]["values"]) == 40
    assert [t.name for t in figure.data if t.visible][-1] == "no label" and meta["items"][0] == ["A0", HOSTILE[0]]
    assert "PC 1" in figure.layout.scene.xaxis.title.text

def test_plotly_sees_no_markup_of_its_own(catalogue, X):
    figure = catalogue_map(reduce(X), catalogue)
    for text in [plotly_text(t) for t in HOSTILE] + [t for trace in figure.data for t in [trace.name, *trace.text]]:
        assert not set("<>$%{") & set(text.replace("&#123;", "")), text

@pytest.mark.parametrize("change", [dict(color="no such column"), dict(color=[1, 2]), dict(dims=4), dict(X=np.zeros((3, 3))), dict(X=np.zeros((40, 2)))])
def test_the_map_refuses_what_does_not_fit(catalogue, X, change):
    with pytest.raises(FitmatchError): catalogue_map(**{"X": reduce(X), "catalogue": catalogue, **change})

def test_map_html_refuses_a_foreign_figure():
    import plotly.graph_objects as go
    with pytest.raises(FitmatchError, match="catalogue_map"): map_html(go.Figure())

class _Tags(HTMLParser):
    def __init__(self, page): super().__init__(); self.tags = []; self.feed(page)
    def handle_starttag(self, tag, attrs): self.tags.append(tag)

def test_hostile_titles_add_no_element(catalogue, X):
    page = map_html(catalogue_map(reduce(X), catalogue), thumbnails(catalogue))
    tags = _Tags(page).tags
    assert tags.count("script") == 2 and tags.count("img") == 0 and tags.count("b") == 1 and "a" not in tags       # the card's own <b>
    pack = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)[1])
    assert [title for _, title in pack["items"]][:3] == HOSTILE[:3]
    assert json.loads(script_json(HOSTILE)) == HOSTILE and not set("<>&") & set(script_json(HOSTILE))
