"""fitmatch.explore: what the notebook does not tell: oracles, edge cases, hostile titles, and the map in a real browser"""
import itertools
import json
import re
import tracemalloc
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

from fitmatch.catalogue import FitmatchError, clean
from fitmatch.explore import (PALETTE, assign_labels, catalogue_map, cluster, cluster_curve, cluster_galleries, cluster_rows, cluster_scores,
                              cluster_summary, gallery, label_styles, map_html, plot_cluster_curve, plotly_text, reduce, sample_rows,
                              script_json, thumbnails)

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

# the map

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

@pytest.mark.parametrize("change", [dict(color="no such column"), dict(color=[1, 2]), dict(dims=4), dict(points=np.zeros((3, 3))), dict(points=np.zeros((40, 2)))])
def test_the_map_refuses_what_does_not_fit(catalogue, X, change):
    with pytest.raises(FitmatchError): catalogue_map(**{"points": reduce(X), "catalogue": catalogue, **change})

def test_map_html_refuses_a_foreign_figure():
    import plotly.graph_objects as go
    with pytest.raises(FitmatchError, match="catalogue_map"): map_html(go.Figure())

class _Tags(HTMLParser):
    def __init__(self, page): super().__init__(); self.tags = []; self.feed(page)
    def handle_starttag(self, tag, attrs): self.tags.append(tag)

def test_hostile_titles_add_no_element(catalogue, X):
    page = map_html(catalogue_map(reduce(X), catalogue), thumbnails(catalogue))
    tags = _Tags(page).tags
    assert tags.count("script") == 2 and tags.count("img") == 1 and not {"b", "a"} & set(tags)
    pack = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)[1])
    assert [title for _, title in pack["items"]][:3] == HOSTILE[:3]
    assert json.loads(script_json(HOSTILE)) == HOSTILE and not set("<>&") & set(script_json(HOSTILE))

# in a browser

def _open(browser, path, width=1280, scheme="light", extra=""):
    "A page with the map drawn, and what it did on the way"
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    page.seen = []
    page.on("dialog", lambda d: (page.seen.append("dialog"), d.dismiss()))
    page.on("pageerror", lambda e: page.seen.append(str(e)))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else page.seen.append(r.url))
    if extra: page.add_init_script(extra)
    page.goto(path.as_uri())
    page.wait_for_selector(".fm-map[data-drawn]", timeout=60_000)
    return page

@pytest.fixture(scope="module")
def maps(catalogue, X, tmp_path_factory):
    "The map as a file, in three dimensions and in two"
    folder, thumbs = tmp_path_factory.mktemp("maps"), thumbnails(catalogue, thumb_size=48)
    views = {"label": "ground_truth", "cluster": cluster(X, k=4)}
    for dims in (2, 3): (folder/f"{dims}.html").write_text(map_html(catalogue_map(reduce(X), catalogue, color=views, dims=dims), thumbs, plotlyjs=True, full=True))
    return folder

def test_pointing_at_a_dot_shows_the_product(browser, maps):
    page = _open(browser, maps/"2.html")
    dots = page.locator(".fm-plot .scatterlayer .trace").first.locator("path.point")
    row = page.evaluate("document.querySelector('.fm-plot').data[0].customdata")
    title = lambda: page.locator(".fm-title").inner_text()
    wanted = page.evaluate("JSON.parse(document.querySelector('.fm-map script').textContent).items.map(i => i[1])")
    for place in (0, 2):
        box = dots.nth(place).bounding_box()
        page.mouse.move(box["x"] + box["width"]/2, box["y"] + box["height"]/2)
        page.wait_for_timeout(200)
        assert title() == wanted[row[place]]
        assert page.locator(".fm-frame img").get_attribute("src").startswith("data:image/webp")
    page.mouse.click(box["x"] + box["width"]/2, box["y"] + box["height"]/2)      # pins: another dot changes nothing
    page.wait_for_timeout(400)
    other = dots.nth(0).bounding_box()
    page.mouse.move(other["x"] + other["width"]/2, other["y"] + other["height"]/2)
    page.wait_for_timeout(200)
    assert title() == wanted[row[2]] and page.seen == []

def test_the_buttons_walk_through_hostile_titles(browser, catalogue, maps):
    page = _open(browser, maps/"3.html")
    before = page.evaluate("document.querySelectorAll('*').length")
    for title in catalogue.products["title"][:len(HOSTILE)]:
        page.locator(".fm-next").press("Enter")
        page.wait_for_timeout(50)
        assert page.locator(".fm-title").text_content() == (title if len(title) <= 120 else title[:119] + "…")
    assert page.evaluate("document.querySelectorAll('*').length") == before and page.evaluate("window.PWNED") is None and page.seen == []
    ring = page.evaluate("(d => [d.x.length, d.z.length])(document.querySelector('.fm-plot').data.at(-1))")
    assert ring == [1, 1]

def test_plotly_writes_hostile_labels_as_text(browser, maps):
    page = _open(browser, maps/"2.html", extra="window.MathJax={version:'2.7',Hub:{Queue(){window.PWNED=2},config:{}},startup:{}}")
    assert "<b>%{x}$a$</b>" in page.locator(".fm-plot .legend").text_content()
    assert page.evaluate("window.PWNED") is None

def test_a_three_dimensional_dot_can_be_pointed_at(browser, maps):
    page = _open(browser, maps/"3.html")
    box, titles = page.locator(".fm-plot").bounding_box(), set()
    for x, y in itertools.product(np.linspace(.3, .7, 24), np.linspace(.25, .7, 16)):
        page.mouse.move(box["x"] + box["width"]*x, box["y"] + box["height"]*y)
        titles.add(page.locator(".fm-title").text_content())
        if len(titles) > 1: break
    assert len(titles) > 1 and page.seen == []

def test_views_zoom_and_theme(browser, maps):
    page = _open(browser, maps/"3.html")
    eye = "document.querySelector('.fm-plot')._fullLayout.scene._scene.getCamera().eye.x"
    start = page.evaluate(eye)
    page.get_by_role("button", name="nearer").click()
    page.wait_for_timeout(300)
    assert page.evaluate(eye) == pytest.approx(.8*start, rel=.01)
    page.get_by_role("button", name="reset the view").click()
    page.wait_for_timeout(300)
    assert page.evaluate(eye) == pytest.approx(start, rel=.01)
    shown = lambda: page.evaluate("document.querySelector('.fm-plot').data.map(t => t.visible !== false)")
    first = shown()
    page.get_by_role("button", name="cluster").click()
    page.wait_for_timeout(300)
    assert [a != b for a, b in zip(first, shown())][:-1] == [True]*(len(first) - 1) and shown()[-1]
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(500)
    assert page.evaluate("document.querySelector('.fm-plot').layout.font.color") == "rgb(238, 238, 238)" and page.seen == []

def test_on_a_phone_the_panel_goes_under_the_plot(browser, maps):
    page = _open(browser, maps/"3.html", width=390, scheme="dark")
    plot, panel = page.locator(".fm-plot").bounding_box(), page.locator(".fm-panel").bounding_box()
    assert panel["y"] >= plot["y"] + plot["height"] and page.evaluate("document.documentElement.scrollWidth") == 390

def test_without_webgl_the_map_is_flat(browser, maps):
    page = _open(browser, maps/"3.html", extra="const g = HTMLCanvasElement.prototype.getContext; HTMLCanvasElement.prototype.getContext = "
                 "function (kind, ...rest) { return /webgl/.test(kind) ? null : g.call(this, kind, ...rest); }")
    assert page.evaluate("document.querySelector('.fm-plot').data[0].type") == "scatter" and page.seen == []
    page.locator(".fm-next").click()
    assert page.locator(".fm-title").text_content() == HOSTILE[0]
