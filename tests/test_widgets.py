"""fitmatch.cards and fitmatch.widgets without a browser: both ipywidgets, hostile text, another matcher, a large shop"""
import base64
import io
import re
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from fitmatch.cards import Shop, held_out_scores, open_shop, read_csv_link, threshold_curve
from fitmatch.catalogue import FitmatchError, save_catalogue, select
from fitmatch.evaluate import also_buy_scorer, matching_task
from fitmatch.match import Compatibility
from fitmatch.outfits import build_outfit, explain_each, mmr
from fitmatch.prepare import write_json
from fitmatch.widgets import ClusterBrowser, EncoderCompare, MatchDemo, OutfitDemo, ThresholdExplorer, threshold_for
from hostile import PAYLOADS, make_shop
from PIL import Image


@pytest.fixture(scope="module")
def shop(tmp_path_factory): return make_shop(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory): return make_shop(tmp_path_factory.mktemp("bad"), say=lambda text, i: f"{text} {list(PAYLOADS.values())[i % len(PAYLOADS)]}")


@pytest.fixture(scope="module")
def drawn(): return open_shop(n_products=240)


def descriptions(widget):
    "Every description below a widget"
    if hasattr(widget, "description"): yield widget.description
    for child in getattr(widget, "children", ()): yield from descriptions(child)


def test_descriptions_are_text_under_either_ipywidgets(hostile):
    "ipywidgets 7 puts a description into the page as HTML"
    import ipywidgets
    outfit = OutfitDemo(hostile, parts=hostile.catalogue.labels)
    texts = [text for demo in (outfit, MatchDemo(hostile, curves={}), ClusterBrowser(hostile)) for text in descriptions(demo.ui)]
    shown = [text for text in texts if text.startswith("keep tops")]
    assert len(shown) == 1 and (("<script>" in shown[0]) if ipywidgets.__version__ >= "8" else ("&lt;script&gt;" in shown[0] and not any("<" in text for text in texts)))


# uploads, in the shapes of both ipywidgets

def shapes(name, data):
    return ({name: {"metadata": {"name": name, "size": len(data)}, "content": data}}, ({"name": name, "size": len(data), "type": "", "content": memoryview(data)},))


def test_a_photo_comes_from_either_ipywidgets(drawn):
    answers = []
    for value in shapes("mine.jpg", drawn.catalogue.image_path(4).read_bytes()):
        demo = MatchDemo(drawn, curves={})
        demo.upload._changed({"new": value})
        answers.append((demo.photo, demo.cards.value, demo.message.value))
    assert answers[0] == answers[1] and answers[0][0] == "mine.jpg" and answers[0][2] == "" and "Your photo" in answers[0][1]


def bomb():
    "A PNG of 30,000 × 30,000 pixels in some kilobytes"
    buffer = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("name, make, words", [("a.pdf", lambda: b"%PDF-1.7", "not a picture"), ("a.heic", lambda: b"\0\0\0\x18ftypheic" + bytes(32), "Most Compatible"), ("a.avif", lambda: b"\0\0\0\x18ftypavif" + bytes(32), "AVIF"),
                                               ("a.jpg", lambda: b"\xff\xd8\xff" + bytes(26_000_000), "at most 25 MB"), ("bomb.png", bomb, "megapixels"), ("a.svg", lambda: b"<svg onload='alert(1)'/>", "not a picture"), ("", lambda: b"", "empty")])
def test_a_refused_upload_says_why_and_changes_nothing(drawn, name, make, words):
    demo, data = MatchDemo(drawn, curves={}), make()
    before = demo.cards.value, demo.code()
    for value in shapes(name, data):
        demo.upload._changed({"new": value})
        assert words in demo.message.value and "Traceback" not in demo.message.value and (demo.cards.value, demo.code()) == before
    demo.controls.threshold.value = .9
    assert demo.message.value == ""


def test_a_learned_suggestion_says_why_and_is_explained_once(drawn, monkeypatch):
    demo, asked = MatchDemo(drawn), []
    assert demo.controls.matcher.value == "learned"
    monkeypatch.setattr("fitmatch.cards.explain_each", lambda matcher, query, matches: asked.append(len(matches)) or explain_each(matcher, query, matches))
    demo.bring("me.jpg", drawn.catalogue.image_path(0).read_bytes())
    assert demo.cards.value.count("learned: ") == 12 and asked == [12]
    demo.controls.threshold.value = 1                                           # the same products, now below the line
    assert "learned: " not in demo.cards.value and demo.cards.value.count("against it: ") >= 10 and sum(asked) == 12
    demo.controls.k.value = 9
    assert "of 9 look-alikes" in demo.cards.value and "of 5" not in demo.cards.value
    demo.controls.matcher.value = "also-buy rule"
    assert "learned: " not in demo.cards.value and "via " in demo.cards.value


def test_only_pixels_are_kept_of_a_photo(drawn):
    image = Image.open(drawn.catalogue.image_path(2))
    exif = image.getexif(); exif[0x010E] = "somebody's name"
    buffer = io.BytesIO(); image.save(buffer, "JPEG", exif=exif, comment=b"somebody's place")
    demo = MatchDemo(drawn, curves={})
    demo.bring("me.jpg", buffer.getvalue())
    shown = base64.b64decode(demo.query["picture"].partition("base64,")[2])
    assert b"somebody" in buffer.getvalue() and b"somebody" not in shown and not Image.open(io.BytesIO(shown)).getexif()


@pytest.mark.parametrize("again", ["list", "button"])
def test_the_product_chosen_before_a_photo_can_be_asked_about_again(drawn, again):
    demo, data = MatchDemo(drawn), drawn.catalogue.image_path(0).read_bytes()
    first = demo.product
    demo.bring("me.jpg", data)
    assert demo.photo == "me.jpg" and demo.picker.results.value is None
    if again == "list": demo.picker.results.value = first
    else: demo.picker.offer([drawn.row[first], 3])
    assert demo.photo is None and demo.product == first and "You asked about" in demo.cards.value


def test_our_own_mistake_is_said_in_words(shop, monkeypatch):
    demo = MatchDemo(shop, curves={})
    before = demo.cards.value
    monkeypatch.setattr("fitmatch.widgets.choose", lambda *a, **k: 1/0)
    demo.controls.threshold.value = .8
    assert "bug in fitmatch (ZeroDivisionError" in demo.message.value and demo.cards.value == before
    assert demo.static()


# matchers, thresholds and code

def test_two_matchers_are_switched(shop):
    demo = MatchDemo(shop)
    first = demo.matches
    demo.controls.matcher.value = "popular"
    assert list(demo.controls.matcher.options) == ["also-buy rule", "popular"] and not demo.matches.equals(first) and demo.matches["via"].isna().all()
    assert "via" not in re.sub(r"<style>.*?</style>", "", demo.cards.value, flags=re.S).replace("fm-via", "") and demo.message.value == ""
    exec(demo.code(), space := {"shop": shop})
    assert space["selection"].equals(demo.selection)


def test_held_out_scores_are_those_of_the_evaluation(drawn):
    scores, truth = held_out_scores(drawn, drawn.matchers["also-buy rule"])
    task = matching_task(drawn.catalogue, drawn.X, "test")
    theirs = also_buy_scorer(task)(task.query, task.candidate)
    assert np.array_equal(truth, task.truth) and np.allclose(np.nan_to_num(scores, nan=-1), theirs, atol=1e-6) and (theirs > -1).any()


def test_the_threshold_says_what_an_oracle_counts():
    draw = np.random.default_rng(3)
    scores, truth = draw.random(500), draw.random(500) < .5
    scores[::7] = np.nan
    for row in threshold_curve(scores, truth).sample(20, random_state=0).itertuples():
        said = [t for s, t in zip(scores, truth) if s >= row.threshold]
        assert row.suggested == len(said) and row.recall == pytest.approx(sum(said)/truth.sum()) and (not said or row.precision == pytest.approx(sum(said)/len(said)))
    curve = threshold_curve(np.r_[np.full(50, .9), np.full(50, .3)], np.r_[np.ones(50, bool), np.zeros(50, bool)])
    assert threshold_for(curve, .99) == pytest.approx(.31) and threshold_for(curve, .5) == 0


def test_diversity_is_the_textbook_rule():
    draw = np.random.default_rng(0)
    V, scores = draw.normal(size=(25, 4)), draw.random(25)
    V /= np.linalg.norm(V, axis=1, keepdims=True)
    scaled, taken = (scores - scores.min())/np.ptp(scores), [int(scores.argmax())]
    while len(taken) < 8: taken.append(max((i for i in range(25) if i not in taken), key=lambda i: .6*scaled[i] - .4*max(0, *(V[i] @ V[j] for j in taken))))
    assert mmr(scores, V, .4, 8).tolist() == taken


def test_selection_and_its_csv_agree(drawn):
    demo = MatchDemo(drawn, n=5)
    demo.controls.category.value = "shoes"
    table = pd.read_csv(io.BytesIO(read_csv_link(demo.link.value)))
    assert table["match"].tolist() == demo.selection["match"].tolist() and set(table["label"]) <= {"shoes"} and np.allclose(table["score"], demo.selection["score"])


def test_code_of_a_photo_runs(drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = drawn.catalogue.image_path(5).read_bytes()
    (tmp_path/"mine's.jpg").write_bytes(data)
    demo = MatchDemo(drawn, curves={})
    demo.bring("mine's.jpg", data)
    exec(demo.code(), space := {})
    pd.testing.assert_frame_equal(space["selection"], demo.selection)


def test_the_learned_matcher_is_what_a_demo_begins_with(drawn):
    demo = MatchDemo(drawn)
    learned = drawn.matchers["learned"]
    assert demo.controls.matcher.value == "learned" and demo.controls.threshold.value == pytest.approx(learned.threshold_, abs=.006)
    assert "pairs kept aside" in demo.gain.value and demo.selection["score"].iat[0] == pytest.approx(learned.match(drawn.X[:1], [demo.product], top=1)["score"].iat[0])
    demo.controls.matcher.value = "also-buy rule"
    assert demo.controls.threshold.value == .5 and demo.message.value == ""
    exec(demo.code(), space := {})
    assert space["selection"].equals(demo.selection)


def test_a_look_of_the_learned_matcher(drawn):
    "Against what it is made of: a locked piece stays, the look is one that `build_outfit` finds, and each reroll goes well together"
    demo, learned = OutfitDemo(drawn), drawn.matchers["learned"]
    first = dict(demo.look)
    best = build_outfit(learned, drawn.X[[0]], demo.wanted())
    assert first == dict(zip(best.pieces["part"], best.pieces["asin"])) and set(first) == set(demo.wanted())
    demo.locks["shoes"].value = True
    looks = []
    for _ in range(4):
        demo.again.click()
        looks.append(tuple(demo.look.values()))
        assert demo.look["shoes"] == first["shoes"] and demo.message.value == ""
        scores = [score_parts_together(learned, drawn, demo.look)]
        assert scores[0] > .3
    assert len(set(looks)) > 1


def score_parts_together(learned, shop, look):
    "Mean probability of all pairs of a look"
    rows = [shop.row[asin] for asin in look.values()]
    return learned.predict_proba([(a, b) for a in rows for b in rows if a < b])[:, 1].mean()


# shops

def test_a_workspace_opens_as_it_was_made(drawn, tmp_path):
    save_catalogue(drawn.catalogue, tmp_path/"w")
    with pytest.raises(FitmatchError, match="was not finished"): open_shop(tmp_path/"w")
    write_json(tmp_path/"w"/"run.json", {"encoder": "fitmatch-cnn", "weights_sha256": drawn.encoder.weights_sha256, "matching": {"threshold": .61}})
    opened = open_shop(tmp_path/"w")
    assert np.allclose(opened.X, drawn.X, atol=1e-5) and opened.matchers["also-buy rule"].threshold == .61 and MatchDemo(opened).controls.threshold.value == .61
    exec(opened.code, space := {"open_shop": open_shop})
    assert len(space["shop"].catalogue) == len(opened.catalogue)
    write_json(tmp_path/"w"/"run.json", {"encoder": "fitmatch-cnn", "weights_sha256": "0"*64})
    with pytest.raises(FitmatchError, match="here are weights"): open_shop(tmp_path/"w")
    with pytest.raises(FitmatchError, match="no fitmatch workspace"): open_shop(tmp_path)


def test_a_shop_without_purchases_or_labels_shows_what_looks_alike(shop):
    products = shop.catalogue.products.assign(also_buy=[[] for _ in range(len(shop.catalogue))], ground_truth=None)
    bare = Shop(replace(shop.catalogue, products=products), shop.X, {}, note="nobody has said what goes with what")
    demo, outfit, clusters, thresholds = MatchDemo(bare), OutfitDemo(bare), ClusterBrowser(bare), ThresholdExplorer(bare)
    assert "Looks like it" in demo.cards.value and bare.note[1:] in demo.gain.value and all(d.message.value == "" for d in (demo, outfit, clusters, thresholds))
    exec(demo.code(), space := {"shop": bare})
    assert space["selection"].equals(demo.selection)


def test_a_look_of_the_shops_own_labels(shop):
    products = shop.catalogue.products.assign(ground_truth=["skirt", "t-shirt", "shoes", "hat"]*15)
    own = Shop(replace(shop.catalogue, products=products, labels=("hat", "shoes", "skirt", "t-shirt")), shop.X, shop.matchers)
    look = OutfitDemo(own, product=shop.catalogue.products["asin"][0]).look
    assert list(look) == ["hat", "shoes", "t-shirt"] and all(products["ground_truth"][own.row[asin]] == part for part, asin in look.items())


def test_a_tiny_shop(shop):
    rows = np.arange(3)
    few = Shop(select(shop.catalogue, rows), shop.X[rows], {})
    assert MatchDemo(few).message.value == "" and ClusterBrowser(few).message.value == "" and EncoderCompare(few, {"a": few.X}).message.value == ""


def test_each_demo_leaves_a_picture_without_a_kernel(shop, monkeypatch):
    shown = []
    monkeypatch.setattr("fitmatch.widgets.display", lambda value, raw=False: shown.append(value))
    MatchDemo(shop, curves={})._ipython_display_()
    live, static = shown
    assert live["application/vnd.jupyter.widget-view+json"]["model_id"] and "kernel" in live["text/plain"]
    assert static.data.count("<img") > 12 and ":has(" in static.data and "<script" not in static.data


# speed

@pytest.mark.alone
@pytest.mark.parametrize("name", ["also-buy rule", "learned"])
def test_redraw_of_a_large_shop_is_quick(tmp_path, figure, name):
    shop = make_shop(tmp_path, n=5000, d=256)
    if name == "learned": shop.matchers = {name: Compatibility(settings={"epochs": 1}).fit(shop.X, shop.catalogue)}
    demo, seconds, work = MatchDemo(shop, curves={}), {}, {}
    def timed(name, change):
        demo.redraw(); begin, busy = time.perf_counter(), time.process_time(); change()
        seconds[name], work[name] = time.perf_counter() - begin, time.process_time() - busy
    for i in range(5):
        timed(f"threshold {i}", lambda: setattr(demo.controls.threshold, "value", .1 + i/10))
        timed(f"diversity {i}", lambda: setattr(demo.controls.diversity, "value", .1 + i/10))
        timed(f"k {i}", lambda: setattr(demo.controls.k, "value", 6 + i))
        timed(f"product {i}", lambda: demo.pick(shop.catalogue.products["asin"][100 + i]))
        timed(f"words {i}", lambda: setattr(demo.picker.words, "value", f"title {i + 7}"))
    kinds, work = (pd.Series(taken).groupby(lambda name: name.split()[0]).median() for taken in (seconds, work))
    figure(f"MatchDemo, 5,000 products, {name}, from slider to redraw: " + ", ".join(f"{kind} {1000*s:.0f} ms" for kind, s in kinds.items()))
    assert demo.message.value == "" and work.max() < .2                      # processor seconds of all threads: the machine may be busy with something else
