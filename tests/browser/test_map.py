"""The map as people meet it: a file from disk, on a laptop and a phone, light and dark; two encoders side by side; and a lasso that reaches Python in JupyterLab"""
import csv
import io
import time
from dataclasses import replace

import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from servers import notebook_in_jupyterlab, snap
from test_apps import needs
from watched import watched

from fitmatch.catalogue import clean
from fitmatch.compare import compare_maps
from fitmatch.explore import catalogue_map, map_html
from fitmatch.mappage import pack_pictures, picture_sheets
from fitmatch.similar import NearestItems

HOSTILE = ["<script>window.PWNED=1</script>", "</script><img src=x onerror=window.PWNED=1>", r"$\frac{a}{b}$ now $5", "%{x} 50% %{customdata}", "{{7*7}}", "\"quotes' `tick` &quot; &#34;",
           "<b>bold</b><a href='javascript:alert(1)'>x</a>", "=HYPERLINK(\"http://evil.example\")", "日本語 😀", "<!--", "]]>", "&lt;b&gt; &amp;amp; &mu;", "-2+3,\"x\"", "<br>two<br>lines", "@SUM(A1)"]
N = 40

def words_of(catalogue, row):
    "The label, empty where there is none"
    label = catalogue.products["ground_truth"].iloc[row]
    return label if isinstance(label, str) else ""


def colour(i): return 40 + 5*i, 230 - 4*i, 60 + 90*(i % 3)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    "Forty products, each with a colour of its own on the left half of its picture"
    root, rows = tmp_path_factory.mktemp("shop"), []
    for i in range(N):
        picture = Image.new("RGB", (80, 80), colour(i))
        picture.paste((250, 250, 250), (40, 0, 80, 80))
        picture.save(root/f"{i}.png")
        rows.append(dict(asin=f"A{i}", title=f"plain product {i}", image=f"{i}.png", ground_truth=["tops", "shoes", "<b>%{x}$a$ &quot;\"</b>", None][i % 4]))
    found = clean(pd.DataFrame(rows), root, labels=None)
    return replace(found, products=found.products.assign(title=[*HOSTILE, *found.products["title"][len(HOSTILE):]], ground_truth=pd.Series([r["ground_truth"] for r in rows], dtype=object)))


@pytest.fixture(scope="module")
def X(): return np.random.default_rng(1).normal(size=(N, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def near(X): return NearestItems(6).fit(X).kneighbors()


@pytest.fixture(scope="module")
def pages(catalogue, X, near, tmp_path_factory):
    "Maps as files: a grid in two dimensions, three dimensions, and a comparison"
    folder, sheets, asins = tmp_path_factory.mktemp("maps"), picture_sheets(catalogue, tile=48), catalogue.products["asin"]
    views = {"label": "ground_truth", "cluster": np.arange(N) % 5}
    matches = pd.DataFrame([(asins[i], asins[(i + 1) % N], asins[(i + j) % N], .9, 1 - j/10, "matching" if j < 4 else "skip") for i in range(N) for j in range(2, 7)],
                           columns=["query", "via", "match", "similarity", "score", "decision"])
    grid = np.stack([np.arange(N) % 8, np.arange(N)//8], axis=1)
    points = {"2": grid, "3": np.column_stack([grid, np.arange(N) % 3])}
    for name, at in points.items():
        figure = catalogue_map(at, catalogue, views, dims=int(name), neighbours=near, matches=matches)
        (folder/f"{name}.html").write_text(map_html(figure, sheets, plotlyjs=True, full=True), encoding="utf-8")
    (folder/"compare.html").write_text(compare_maps({"one": X, "<i>other</i>": X[:, :4]}, catalogue, k=6, sheets=sheets, plotlyjs=True, full=True), encoding="utf-8")
    return folder


def open_map(browser, path, width=1280, scheme="light", extra=""):
    "A page from disk with its map drawn; `seen` notes what should not happen"
    page = watched(browser, lambda address: address.startswith(("file:", "data:", "blob:")), width, scheme)
    if extra: page.add_init_script(extra)
    page.goto(path.as_uri())
    page.wait_for_selector(".fm-map[data-drawn]", timeout=60_000)
    return page


def dot(page, row, which=0):
    "Where a product's dot is on the screen"
    return page.evaluate("""([row, which]) => { const p = document.querySelectorAll('.fm-plot')[which], {xaxis, yaxis} = p._fullLayout, box = p.getBoundingClientRect();
        for (const t of p.data) { const i = (t.visible === true ? t.customdata : []).indexOf(row); if (i >= 0) return [box.left + xaxis._offset + xaxis.l2p(t.x[i]), box.top + yaxis._offset + yaxis.l2p(t.y[i])]; } }""", [row, which])


def point_at(page, row, which=0):
    page.mouse.move(*dot(page, row, which), steps=2)
    page.wait_for_function("row => !document.querySelector('.fm-card').hidden && document.querySelector('.fm-card canvas').dataset.row === String(row)", arg=row, timeout=20_000)


def pixel(page, selector):
    "The colour in the left half of a picture"
    return page.locator(selector).evaluate("c => [...c.getContext('2d').getImageData(c.width/4, c.height/2, 1, 1).data].slice(0, 3)")


def lasso(page, rows, button="lasso", which=0):
    "Draws around these dots; a grid's step is more than 60 pixels"
    page.get_by_role("button", name={"lasso": "choose by drawing around", "box": "choose by drawing a box"}[button]).click()
    page.wait_for_function("([which, mode]) => document.querySelectorAll('.fm-plot')[which]._fullLayout.dragmode === mode", arg=[which, {"lasso": "lasso", "box": "select"}[button]])
    at = np.array([dot(page, row, which) for row in rows])
    (left, top), (right, bottom) = at.min(0) - 15, at.max(0) + 15
    page.mouse.move(left, top)
    page.mouse.down()
    for corner in [(right, top), (right, bottom), (left, bottom), (left, top)] if button == "lasso" else [(right, bottom)]: page.mouse.move(*corner, steps=6)
    page.mouse.up()
    page.wait_for_selector(".fm-chosen:visible")


def test_pointing_shows_the_product_and_a_click_pins_it(browser, pages, catalogue, near):
    page = open_map(browser, pages/"2.html")
    for row in (0, 5, 11, 21, 39):
        point_at(page, row)
        assert page.locator(".fm-card b").text_content() == page.locator(".fm-title").text_content() == catalogue.products["title"][row]
        label = words_of(catalogue, row) or "none"
        assert page.locator(".fm-card span").text_content() == f"A{row} · label: {label} · cluster: {row % 5}"
        for picture in (".fm-card canvas", ".fm-frame canvas"): assert np.abs(np.subtract(pixel(page, picture), colour(row))).max() < 16
        assert page.locator(".fm-frame canvas").get_attribute("aria-label") == catalogue.products["title"][row]
    point_at(page, 21)                                                           # Plotly clicks on what it hovered over within its last 50 ms, so a hand's pace is kept
    page.mouse.click(*dot(page, 21))
    point_at(page, 5)                                                            # the card follows the pointer, the panel stays
    assert page.locator(".fm-title").text_content() == catalogue.products["title"][21]
    nearest, goes = page.locator(".fm-list").all()
    rows = lambda box: box.locator("canvas").evaluate_all("all => all.map(c => Number(c.dataset.row))")
    assert rows(nearest) == near[1][21].tolist() and rows(goes) == [23, 24, 25, 26, 27]
    assert nearest.inner_text().split()[1:] == [f"{s:.2f}" for s in near[0][21]] and goes.inner_text().count("✓") == 2
    assert page.locator(".fm-pinned").count() == 1 and page.locator(".fm-near").count() == 6
    x, y = dot(page, 21)
    ring = page.locator(".fm-pinned").bounding_box()
    assert abs(ring["x"] + ring["width"]/2 - x) < 2 and abs(ring["y"] + ring["height"]/2 - y) < 2
    goes.locator("button").nth(2).press("Enter")                                 # by keyboard, from product to product
    assert page.locator(".fm-title").text_content() == catalogue.products["title"][25]
    page.locator(".fm-next").press("Escape")
    assert page.locator(".fm-ring").count() == 0 and page.seen == []


def test_hostile_texts_are_shown_as_they_are(browser, pages, catalogue):
    page = open_map(browser, pages/"2.html", extra="window.MathJax={version:'2.7',Hub:{Queue(){window.PWNED=2},config:{}},startup:{}}")
    page.locator(".fm-next").press("Enter")
    before = page.evaluate("document.querySelectorAll('*').length")
    for row in range(len(HOSTILE)):
        point_at(page, row)
        assert page.locator(".fm-card b").text_content() == HOSTILE[row]
        if row: page.locator(".fm-next").press("Enter")
        assert page.locator(".fm-title").text_content() == HOSTILE[row]
    names = page.locator(".fm-plot .legendtext").all_text_contents()
    assert "<b>%{x}$a$ &quot;\"</b>" in names and "no label" in names
    assert abs(page.evaluate("document.querySelectorAll('*').length") - before) < 9 and page.evaluate("window.PWNED") is None and page.seen == []


def test_plotly_itself_shows_texts_as_they_are(browser, catalogue, tmp_path):
    "The figure without the page, as a notebook shows it: Plotly's own hover label"
    figure = catalogue_map(np.stack([np.arange(N) % 8, np.arange(N)//8], axis=1), catalogue, dims=2)
    path = tmp_path/"plain.html"
    figure.write_html(path, include_plotlyjs=True, full_html=True, config={"displayModeBar": False})
    page = browser.new_context(viewport={"width": 1000, "height": 700}).new_page()
    page.goto(path.as_uri())
    page.wait_for_selector(".plotly-graph-div .main-svg")
    page.evaluate("document.querySelector('.plotly-graph-div').className += ' fm-plot'")
    for row in range(len(HOSTILE)):
        page.mouse.move(*dot(page, row), steps=2)
        page.wait_for_function("text => [...document.querySelectorAll('.hovertext .nums')].map(e => e.textContent.replaceAll('\u200b', '')).join('|') === text", arg=HOSTILE[row])
    assert page.evaluate("window.PWNED") is None


@pytest.mark.parametrize("button", ["lasso", "box"])
def test_a_lasso_chooses_and_the_choice_can_be_taken_away(browser, pages, catalogue, button):
    page = open_map(browser, pages/"2.html")
    page.evaluate("document.addEventListener('fitmatch:selection', e => { window.told = e.detail.rows; })")
    rows = [0, 1, 2, 8, 9, 10] if button == "lasso" else [4, 5, 6, 7, 12, 13, 14, 15]
    lasso(page, rows, button)
    assert page.evaluate("window.told") == sorted(rows) and f"{len(rows)} products chosen" in page.locator(".fm-chosen").inner_text()
    with page.expect_download() as download: page.get_by_role("button", name="download CSV").click()
    table = list(csv.reader(io.StringIO(download.value.path().read_text(encoding="utf-8-sig"))))
    risky = lambda text: "'" + text if text[0] in "=+-@%" else text
    assert table[0] == ["asin", "title", "label", "cluster"]
    assert table[1:] == [[f"A{r}", risky(catalogue.products["title"][r]), words_of(catalogue, r), str(r % 5)] for r in sorted(rows)]
    traces = "document.querySelector('.fm-plot').data.filter(t => t.visible === true)"
    before = page.evaluate(f"{traces}.map(t => t.name)")
    page.get_by_role("button", name="cluster").click()                           # another colouring, the same choice
    page.wait_for_function(f"before => {traces}.map(t => t.name).join() !== before.join()", arg=before)
    assert page.evaluate(f"{traces}.flatMap(t => t.selectedpoints.map(i => t.customdata[i])).sort((a, b) => a - b)") == sorted(rows)
    page.get_by_role("button", name="clear").click()
    assert page.evaluate("window.told") == [] and page.locator(".fm-chosen").is_hidden()
    page.locator(".fm-next").press("Enter")
    page.get_by_role("button", name="choose", exact=True).press("Enter")         # without a mouse
    assert page.evaluate("window.told.length") == 1 and page.seen == []


def test_three_dimensions_turn_and_can_be_made_flat(browser, pages, catalogue):
    page = open_map(browser, pages/"3.html")
    eye = "document.querySelector('.fm-plot')._fullLayout.scene._scene.getCamera().eye.x"
    start = page.evaluate(eye)
    page.get_by_role("button", name="nearer").click()
    page.wait_for_function(f"start => Math.abs({eye}/start - .8) < .01", arg=start)
    page.get_by_role("button", name="reset the view").click()
    page.wait_for_function(f"start => Math.abs({eye}/start - 1) < .01", arg=start)
    page.locator(".fm-next").press("Enter")
    page.wait_for_function("document.querySelector('.fm-plot').data.at(-1).x.length === 7")     # the pinned one and its nearest
    assert "no lasso" in page.locator(".fm-hint").text_content() and page.get_by_role("button", name="choose by drawing around").count() == 0
    box = page.locator(".fm-plot").bounding_box()
    for x, y in [(x, y) for y in np.linspace(.25, .75, 30) for x in np.linspace(.25, .75, 30)]:
        page.mouse.move(box["x"] + box["width"]*x, box["y"] + box["height"]*y)
        if page.locator(".fm-card").is_visible(): break
    assert page.locator(".fm-card").is_visible() and page.locator(".fm-card b").text_content() in set(catalogue.products["title"])
    page.get_by_role("button", name="flat").click()
    page.wait_for_function("document.querySelector('.fm-plot').data[0].type === 'scattergl'")
    page.get_by_role("button", name="choose by drawing around").wait_for()
    lasso(page, [0, 1, 8, 9])
    assert "4 products chosen" in page.locator(".fm-chosen").inner_text() and page.seen == []


@pytest.mark.parametrize("scheme, ink", [("light", "rgb(34, 34, 34)"), ("dark", "rgb(238, 238, 238)")])
def test_light_and_dark_on_a_phone(browser, pages, scheme, ink):
    for name in ("2", "compare"):
        page = open_map(browser, pages/f"{name}.html", width=390, scheme=scheme)
        page.locator(".fm-next").click()
        plot, panel = page.locator(".fm-plot").last.bounding_box(), page.locator(".fm-panel").bounding_box()
        assert panel["y"] >= plot["y"] + plot["height"] and page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.evaluate("document.querySelector('.fm-plot').layout.font.color") == ink
        snap(page, f"map-{name}-phone-{scheme}")
        other = "dark" if scheme == "light" else "light"
        page.emulate_media(color_scheme=other)
        page.wait_for_function("ink => document.querySelector('.fm-plot').layout.font.color !== ink", arg=ink)
        assert page.evaluate("document.querySelector('.fm-map').classList.contains('fm-dark')") == (other == "dark") and page.seen == []


def test_without_webgl_the_map_is_flat(browser, pages):
    page = open_map(browser, pages/"3.html", extra="const g = HTMLCanvasElement.prototype.getContext; HTMLCanvasElement.prototype.getContext = "
                    "function (kind, ...rest) { return /webgl/.test(kind) ? null : g.call(this, kind, ...rest); }")
    assert page.evaluate("document.querySelector('.fm-plot').data[0].type") == "scatter"
    point_at(page, 3)
    lasso(page, [16, 17, 24, 25])
    assert "4 products chosen" in page.locator(".fm-chosen").inner_text() and page.seen == []


def test_two_encoders_are_linked(browser, pages, X, near):
    page = open_map(browser, pages/"compare.html")
    point_at(page, 7, which=1)
    rings = page.locator(".fm-hovered")
    assert rings.count() == 2
    for which in (0, 1):
        box, (x, y) = rings.nth(which).bounding_box(), dot(page, 7, which)
        assert abs(box["x"] + box["width"]/2 - x) < 2 and abs(box["y"] + box["height"]/2 - y) < 2
    page.mouse.click(*dot(page, 7, which=1))
    other = NearestItems(6).fit(X[:, :4]).kneighbors()[1]
    shared = set(near[1][7]) & set(other[7])
    assert page.locator(".fm-pinned").count() == 2 and f"{len(shared)} of 6 nearest" in page.locator(".fm-common").inner_text()
    assert set(page.locator(".fm-shared canvas").evaluate_all("all => all.map(c => Number(c.dataset.row))")) == shared
    overall = np.mean([len(set(a) & set(b))/6 for a, b in zip(near[1], other)])
    assert f"share {overall:.0%}" in page.locator(".fm-head").inner_text() and "<i>other</i>" in page.locator("figcaption").nth(1).inner_text()
    lasso(page, [7], which=0)
    both = page.evaluate("[...document.querySelectorAll('.fm-plot')].map(p => p.data.flatMap(t => (t.selectedpoints || []).map(i => t.customdata[i])).sort((a, b) => a - b))")
    assert 7 in both[0] and both[0] == both[1]
    snap(page, "map-compare")
    assert page.seen == []


@pytest.mark.alone
def test_five_thousand_dots_do_not_lag(browser, catalogue, figure, tmp_path):
    rng, n = np.random.default_rng(0), 5000
    products = clean(pd.DataFrame(dict(asin=[f"B{i}" for i in range(n)], title=[f"shirt number {i}" for i in range(n)], image="0.png")), catalogue.root)
    sheets = pack_pictures([catalogue.image_path(i % N) for i in range(n)], tile=64)
    for dims in (2, 3):
        path = tmp_path/f"{dims}.html"
        path.write_text(map_html(catalogue_map(rng.normal(size=(n, dims)), products, np.arange(n) % 7, dims=dims), sheets, plotlyjs=True, full=True))
        begin = time.perf_counter()
        page = open_map(browser, path)
        drawn, box = time.perf_counter() - begin, page.locator(".fm-plot").bounding_box()
        page.evaluate("""() => { window.waits = []; let moved = 0; document.addEventListener('mousemove', () => { moved = performance.now(); }, true);
            new MutationObserver(() => window.waits.push(performance.now() - moved)).observe(document.querySelector('.fm-card b'), {childList: true}); }""")
        for x in np.linspace(.4, .6, 25):
            page.mouse.move(box["x"] + box["width"]*x, box["y"] + box["height"]*.42)
            page.wait_for_timeout(70)
        waits = page.evaluate("window.waits")
        figure(f"a map of 5,000 dots in {dims} dimensions, drawn by a processor: {drawn:.1f} s from file to dots, card {np.median(waits):.0f} ms after the pointer ({len(waits)} times)")
        assert len(waits) >= 5 and np.median(waits) < 250 and drawn < 20 and page.seen == []


NOTEBOOK = """import numpy as np
from fitmatch.livemap import CatalogueMap
from fitmatch.wardrobe import draw_wardrobe
shop = draw_wardrobe(30, dirty=False, root={root!r})
m = CatalogueMap(np.stack([np.arange(len(shop)) % 6, np.arange(len(shop))//6], axis=1), shop, plotlyjs=True)
m"""


def test_a_lasso_in_jupyterlab_reaches_python(browser, tmp_path):
    needs("jupyterlab")
    (tmp_path/"notebooks").mkdir()
    cells = [nbformat.v4.new_code_cell(NOTEBOOK.format(root=str(tmp_path/"shop"))), nbformat.v4.new_code_cell("print('chosen', sorted(m.rows), list(m.selection['asin']) == list(shop.products['asin'].iloc[m.rows]))")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path/"notebooks"/"map.ipynb")
    with notebook_in_jupyterlab(browser, tmp_path, "map.ipynb", ".fm-map[data-drawn]", width=1400) as page:
        lasso(page, [6, 7, 12, 13])
        assert "also in Python" in page.locator(".fm-chosen").inner_text()
        page.locator(".jp-CodeCell .jp-Editor").nth(1).click()
        page.keyboard.press("Control+Enter")
        page.wait_for_selector(".jp-OutputArea-output:has-text('chosen [6, 7, 12, 13] True')", timeout=30_000)
        snap(page, "map-lab")
        assert page.seen == []
