"""fitmatch.report: every section alone, hostile text everywhere, and the page in a real browser"""
import io
import os
import re

import numpy as np
import pandas as pd
import pytest
from fitmatch.catalogue import FitmatchError, clean
from fitmatch.explore import cluster, cluster_curve, reduce
from fitmatch.report import RESULTS, figure_picture, report, report_html
from hostile import PAYLOADS, Page, make_results
from PIL import Image
from watched import watched


@pytest.fixture(scope="module")
def results(tmp_path_factory): return make_results(tmp_path_factory.mktemp("good"), lambda text: text)

@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    "The same, where every text carries an attack; still different texts stay different"
    place = {}
    attacks = list(PAYLOADS.values())
    def say(text): return f"{text} {attacks[place.setdefault(text, len(place)) % len(attacks)]}"
    return make_results(tmp_path_factory.mktemp("bad"), say)

@pytest.fixture(scope="module")
def page(results): return report_html(results)

def outside_scripts(html):
    "The page without its scripts, in single spaces"
    return " ".join(re.sub(r"<script[^>]*>.*?</script>", "", html, flags=re.DOTALL).split())

# sections

def test_the_page_is_whole(page):
    parsed = Page(page)
    assert len(page) < 15e6 and len(parsed.all("h1")) == 1 and len(parsed.all("section")) == 11 and parsed.all("html") == [{"lang": "en"}]
    anchors = {a["href"][1:] for a in parsed.all("a")}
    assert anchors <= {attrs["id"] for _, attrs in parsed.elements if "id" in attrs} and len(anchors) == 11
    assert all("alt" in img for img in parsed.all("img")) and all(th.get("scope") in ("col", "row") for th in parsed.all("th"))

def test_the_page_asks_nobody(page):
    for tag, attrs in Page(page).elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert attrs.get(name, "#").startswith(("#", "data:image/")), (tag, attrs)
    assert "url(" not in outside_scripts(page) and "@import" not in outside_scripts(page)
    policy = next(m["content"] for m in Page(page).all("meta") if m.get("http-equiv"))
    assert "default-src 'none'" in policy and policy.count("sha256-") == 2 and "script-src 'unsafe" not in policy

@pytest.mark.parametrize("key", [k for k in RESULTS if k != "catalogue"])
def test_each_input_may_be_missing_and_each_may_stand_alone(results, key):
    without, alone = ({k: v for k, v in results.items() if k != key}, {k: results[k] for k in ("catalogue", key)})
    for some in (without, alone, {**results, key: None}): assert len(Page(report_html(some)).all("h1")) == 1

@pytest.mark.parametrize("key, sentence", [("reduction", "map is left out"), ("clusters", "clusters are left out"), ("curve", "no curve"), ("heatmap", "heatmap is left out"),
                                           ("scoreboard", "scoreboard is left out"), ("matching", "matching score is left out"), ("seconds", "Times are left out")])
def test_what_is_missing_is_said(results, page, key, sentence):
    assert sentence not in page and sentence in report_html({**results, key: None})

def test_the_callers_reason_wins(results):
    page = report_html({**results, "matching": "matching is left out: the source has no also_buy", "matches": None, "neighbours": None,
                        "left_out": {"matches": "No product was asked for."}})
    assert "Matching is left out: the source has no also_buy" in page and "No product was asked for." in page

def test_neighbours_without_matches_still_head_the_page(results):
    page = outside_scripts(report_html({**results, "matches": None}))
    assert "looks like" in page and "what looks like them" in page and "✓" not in page

def test_the_original_project_is_quoted_once(results):
    board = pd.DataFrame({"encoder": ["mine", "theirs"], "mlp": [.9, .83], "kmeans": [.4, .24], "quoted": [False, True]})
    assert outside_scripts(report_html({**results, "scoreboard": board})).count(">quoted<") == 1
    page = outside_scripts(report_html({**results, "scoreboard": board.set_index("encoder")[["mlp", "kmeans"]]}))
    assert page.count(">quoted<") == 1 and "the original project" in page and "0.83" in page and "0.24" in page

def test_the_threshold_is_shown_by_the_first_that_fell_below(results, page):
    first = outside_scripts(page).split("<main>")[0]
    assert first.count("✓ matching") == 0 and first.count(">skip<") == 6     # the first ten all fall below
    better = results["matches"].assign(decision=["matching"]*8 + ["skip"]*2 + ["skip"]*20)
    first = outside_scripts(report_html({**results, "matches": better})).split("<main>")[0]
    assert first.count("✓ matching") == 5 and first.count(">skip<") == 1

def test_figures_come_in_two_inks_and_are_left_alone(results):
    figure = results["heatmap"]
    shown = figure_picture(figure, "alt")
    svg = __import__("base64").b64decode(shown["picture"].split(",")[1]).decode()
    assert "prefers-color-scheme:dark" in svg and shown["alt"] == "alt" and not shown["plain"]
    assert figure.axes[0].title.get_color() in ("black", (0, 0, 0, 1)) and not hasattr(figure, "alt")
    buffer = io.BytesIO(); Image.linear_gradient("L").resize((8, 8)).save(buffer, "PNG")
    assert figure_picture(buffer.getvalue(), "alt")["plain"]

def test_cards_give_their_reason(results):
    table = results["matches"].assign(reason=["bought with 2 of 5 <look-alikes>"] + [None]*(len(results["matches"]) - 1))
    first = outside_scripts(report_html({**results, "matches": table})).split("<main>")[0]
    assert "bought with 2 of 5 &lt;look-alikes&gt;" in first and "via " in first

def test_clusters_are_judged_in_words(results, page):
    assert "mixed: bad" in page and "nearer to pure than the whole catalogue" in " ".join(page.split())
    whole = report_html({**results, "clusters": pd.factorize(results["catalogue"].products["ground_truth"])[0]})
    assert "shoes: good" in whole and "mixed: bad" not in whole

def test_without_pictures_the_matrix_is_a_table(results):
    some = {**results, "judged": None}
    assert "popovertarget" not in report_html(some) and 'class="confusion"' in report_html(some)

def test_an_unlabelled_catalogue_makes_a_page(results, tmp_path):
    for i in range(5): Image.linear_gradient("L").resize((20, 20 + i)).save(tmp_path/f"{i}.png")
    catalogue = clean(pd.DataFrame({"asin": list("abcde"), "image": [f"{i}.png" for i in range(5)]}), tmp_path)
    X = np.random.default_rng(0).normal(size=(5, 2))
    page = report_html(dict(catalogue=catalogue, reduction=reduce(X, 2), clusters=cluster(X, 2), curve=cluster_curve(X)))
    assert "fm-map" in page and "drag to turn" not in page and "5 products." in page

# writing

def test_a_key_nobody_reads_is_named(results):
    with pytest.raises(FitmatchError, match="did you mean 'matches'"): report_html({**results, "matchs": 1})
    with pytest.raises(FitmatchError, match="catalogue"): report_html({})

def test_the_file_is_whole_or_not_there(results, tmp_path):
    small = {"catalogue": results["catalogue"]}
    path = report(small, tmp_path/"new folder"/"report.html")
    assert path.read_text(encoding="utf-8") == report_html(small) and [p.name for p in path.parent.iterdir()] == ["report.html"]
    (tmp_path/"file").write_text("x")
    with pytest.raises(FitmatchError, match="cannot write"): report(small, tmp_path/"file"/"report.html")

@pytest.mark.skipif(not os.path.exists("/dev/full") or not hasattr(os, "geteuid"), reason="no such device here")
def test_a_failed_write_leaves_the_old_page(results, tmp_path, monkeypatch):
    path = tmp_path/"report.html"
    path.write_text("old")
    def full(*args): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FitmatchError, match="full"): report({"catalogue": results["catalogue"]}, path)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1

# in a browser

def _open(browser, path, width, scheme):
    "The report with its map drawn, and all it did that it should not"
    page = watched(browser, lambda address: address.startswith(("data:", "blob:")) or address == path.as_uri(), width, scheme)
    page.goto(path.as_uri())
    page.wait_for_selector(".fm-map[data-drawn]", timeout=60_000)
    return page

@pytest.mark.parametrize("width, scheme", [(1280, "light"), (1280, "dark"), (390, "light")])
def test_the_hostile_report_in_a_browser(browser, hostile, page, tmp_path, width, scheme):
    path = report(hostile, tmp_path/"report.html")
    shown = _open(browser, path, width, scheme)
    benign = _open(browser, report_file(tmp_path/"benign.html", page), width, scheme)
    for view in (shown, benign):
        for details in view.locator("details").all(): details.locator("summary").click()
        for _ in range(12): view.locator(".fm-next").click()
        view.wait_for_timeout(400)
    count = "[...document.querySelectorAll('main *, header *, footer *')].filter(e => !e.closest('.fm-plot')).length"
    assert shown.evaluate(count) == benign.evaluate(count)
    assert shown.evaluate("window.PWNED") is None and shown.seen == [] and benign.seen == []
    assert shown.evaluate("document.documentElement.scrollWidth") == width
    luminance = shown.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number).reduce((a, b) => a + b)/3")
    assert (luminance < 40) if scheme == "dark" else (luminance > 220)
    for picture in shown.locator("#similarity img, #scores img").all():
        picture.scroll_into_view_if_needed()
        corner = np.asarray(Image.open(io.BytesIO(picture.screenshot())).convert("L"))[2, 2]
        assert corner < 60 if scheme == "dark" else corner > 240
    cell = shown.locator(".fm-confusion td > button").first               # with the keyboard, as with a mouse or finger
    cell.focus(); shown.keyboard.press("Enter")
    panel = shown.locator(".fm-pop:popover-open")
    box = panel.bounding_box()
    assert panel.count() == 1 and panel.locator("img").count() and panel.locator("img").first.evaluate("e => e.decode().then(() => e.naturalWidth)") > 1
    assert box["x"] >= 0 and box["x"] + box["width"] <= width and cell.bounding_box()["height"] >= 40
    shown.keyboard.press("Escape")
    assert panel.count() == 0 and shown.evaluate("window.PWNED") is None

def report_file(path, html):
    path.write_text(html, encoding="utf-8")
    return path


def test_learned_suggestions_say_so_and_need_no_neighbour(results):
    table = results["matches"].copy()
    table["via"] = None
    table["similarity"] = np.nan
    page = report_html({**results, "matches": table, "learned": True, "score_name": "probability"})
    assert "learned from purchases" in page and "via " not in re.sub(r"<style>.*?</style>|<script.*?</script>", "", page, flags=re.S).split("</header>")[0].split("goes with")[-1]
