"""fitmatch.style: every figure has its words and both inks, and stays a figure"""
import io
import re
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from PIL import Image

from fitmatch.catalogue import FitmatchError
from fitmatch.classify import confusion_html, plot_confusion, plot_history
from fitmatch.evaluate import plot_calibration, plot_precision_recall, plot_scoreboard, precision_recall_band, reliability
from fitmatch.explore import cluster_curve, plot_cluster_curve, verdict
from fitmatch.similar import heatmap
from fitmatch.style import INK, NIGHT, PALETTE, Picture, as_seen_with, colour_distance, finish, in_our_look, subplots
from fitmatch.wardrobe import draw_wardrobe


def figures():
    draw = np.random.default_rng(0)
    truth, scores = np.arange(60) % 2 > 0, draw.random(60)
    epochs = np.arange(1, 5)
    history = pd.DataFrame(dict(epoch=epochs, loss=1/epochs, accuracy=1 - .5/epochs, val_loss=1.1/epochs, val_accuracy=[.5, .7, .8, .8]))
    passes = pd.DataFrame(dict(epoch=[1, 2, 1, 2], loss=[2., 1, 2, 1], auc=[.5, .7, .6, .7], model=[0, 0, 1, 1]))
    board = pd.DataFrame({"auc": [.6], "auc_low": [.5], "auc_high": [.7]}, index=["rule $5 and $6"])
    yield from (plot_history(history), plot_history(passes), plot_history(history.assign(val_loss=np.nan, val_accuracy=np.nan)), plot_confusion(["a", "b", "$"], ["a", "a", "$"]))
    yield from (plot_precision_recall(scores, truth, threshold=.5), plot_calibration(scores, truth), plot_scoreboard(board, ("auc",)), plot_cluster_curve(cluster_curve(draw.normal(size=(20, 3)))))
    yield heatmap(draw.normal(size=(9, 4)), [None]*4 + ["$a$"]*5)


def test_every_plot_says_what_it_shows_and_knows_the_night():
    before = set(plt.get_fignums())
    for figure in figures():
        svg = figure.svg()
        assert isinstance(figure, Picture) and isinstance(figure, Figure) and len(figure.alt) > 20
        assert INK not in svg.split("</style>", 1)[1] and "prefers-color-scheme:dark" in svg and "<script" not in svg
        buffer = io.BytesIO()
        figure.savefig(buffer)                                             # an ordinary figure too
        assert Image.open(buffer).convert("L").getpixel((1, 1)) > 250
    assert set(plt.get_fignums()) == before


def test_texts_of_a_figure_reach_no_page():
    figure, axis = subplots()
    axis.set_title("</title><script>alert(1)</script>")
    html = finish(figure, '"><script>alert(1)</script>').html()
    assert "<script" not in html and html.count("<img") == 1 and "&quot;&gt;&lt;script" in html


def test_drawn_without_our_look_it_is_inked_all_the_same():
    plain, axis = plt.subplots()
    axis.plot([1, 2]); axis.set_title("title"); axis.legend(["one"])
    svg = finish(plain, "A line").svg()
    plt.close(plain)
    texts = re.findall(r'<g id="text_\d+">\s*<g style="fill: var', svg)
    assert len(texts) >= 4 and plain.__class__ is Figure


@pytest.mark.parametrize("installed", [False, True])
def test_what_our_font_lacks_is_drawn_in_another_that_is_there(tmp_path, monkeypatch, recwarn, installed):
    font, shape = FontBuilder(1000, isTTF=True), TTGlyphPen(None)
    for x, y in ((0, 0), (0, 700), (700, 700)): (shape.lineTo if x or y else shape.moveTo)((x, y))
    shape.closePath()
    font.setupGlyphOrder([".notdef", "clothes"])
    font.setupCharacterMap({ord("服"): "clothes"})
    font.setupGlyf({".notdef": shape.glyph(), "clothes": shape.glyph()})
    font.setupHorizontalMetrics({".notdef": (800, 0), "clothes": (800, 0)})
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Noto Sans CJK SC", "styleName": "Regular", "psName": "Wide"})
    font.setupOS2(); font.setupPost(); font.save(tmp_path/"wide.ttf")
    monkeypatch.setattr(fontManager, "ttflist", [known for known in fontManager.ttflist if known.name.startswith("DejaVu")])
    if installed: fontManager.addfont(tmp_path/"wide.ttf")
    with in_our_look():
        figure, axis = subplots()
        axis.set_title("a 服")
    assert ("Wide" in figure.svg()) == installed and any("Glyph" in str(w.message) for w in recwarn) != installed


def test_an_alt_text_is_asked_for():
    with pytest.raises(FitmatchError, match="alt text"): finish(subplots()[0], "")


def test_seven_colours_can_be_told_apart_by_everybody():
    for kind in ("protanopia", "deuteranopia", "tritanopia"):
        assert min(colour_distance(as_seen_with(a, kind), as_seen_with(b, kind)) for a, b in combinations(PALETTE[:7], 2)) > 15
    def contrast(a, b):
        light = lambda c: np.array([.2126, .7152, .0722]) @ [(v/12.92 if v <= .04045 else ((v + .055)/1.055)**2.4) for v in (int(c[i:i + 2], 16)/255 for i in (1, 3, 5))]
        high, low = sorted((light(a), light(b)), reverse=True)
        return (high + .05)/(low + .05)
    assert contrast(INK, "#ffffff") > 7 and contrast(NIGHT[INK], NIGHT["#ffffff"]) > 7 and contrast("#6b645c", "#ffffff") > 4.5 and contrast(NIGHT["#6b645c"], NIGHT["#ffffff"]) > 4.5


def test_heatmap_has_pictures_up_to_forty():
    catalogue = draw_wardrobe(60, dirty=False)
    X, labels = np.random.default_rng(0).normal(size=(len(catalogue), 4)), catalogue.products["ground_truth"]
    with_pictures, too_many = heatmap(X, labels, catalogue=catalogue), heatmap(X, labels, sample=41, catalogue=catalogue)
    assert with_pictures.svg().count("<image") > 70 and too_many.svg().count("<image") < 5
    with pytest.raises(FitmatchError, match="embedded"): heatmap(X[:3], labels[:3], catalogue=catalogue)


def test_heatmap_pictures_stand_upright(tmp_path):
    from fitmatch.catalogue import clean
    two = np.zeros((40, 40, 3), np.uint8); two[:20, :, 0] = 255; two[20:, :, 2] = 255 # red above blue
    Image.fromarray(two).save(tmp_path/"a.png"); Image.fromarray(two).save(tmp_path/"b.png")
    catalogue = clean(pd.DataFrame(dict(asin=["a", "b"], image=["a.png", "b.png"], title=["a", "b"])), tmp_path)
    buffer = io.BytesIO()
    heatmap(np.eye(2), [None, None], catalogue=catalogue).savefig(buffer)
    pixels = np.asarray(Image.open(buffer).convert("RGB")).astype(int)
    red, blue = ((pixels[..., i] > 230) & (pixels[..., 2 - i] < 30) & (pixels[..., 1] < 30) for i in (0, 2))
    column = np.flatnonzero(red.any(axis=0))[0]
    assert np.flatnonzero(red[:, column])[0] < np.flatnonzero(blue[:, column])[0]


@pytest.mark.parametrize("purity, share, words", [(.75, .2, "shoes: good"), (.74, .2, "mostly shoes: fair"), (.49, .2, "mixed: bad"), (.9, .9, "mixed: bad"), (.94, .9, "mostly shoes: fair"), (1, 1, "shoes: good")])
def test_a_verdict_must_beat_the_catalogue(purity, share, words):
    assert verdict("shoes", purity, share) == words


def test_curves_agree_with_scikit_learn():
    from sklearn.metrics import average_precision_score, brier_score_loss
    draw = np.random.default_rng(1)
    truth = draw.random(500) < .4
    p = np.clip(truth*.3 + draw.random(500)*.7, 0, 1).round(2)
    assert precision_recall_band(p, truth, n_resamples=50).attrs["ap"] == pytest.approx(average_precision_score(truth, p))
    assert reliability(p, truth).attrs["brier"] == pytest.approx(brier_score_loss(truth, p))
    honest = draw.random(20_000)
    table = reliability(honest, draw.random(20_000) < honest, groups=np.arange(20_000)//4)
    assert table.attrs["ece"] < .02 and ((table["low"] <= table["predicted"]) & (table["predicted"] <= table["high"])).mean() >= .7


def test_the_band_knows_its_groups():
    "Copies of a pair tell nothing new: with their groups known the band is as wide as without them"
    draw = np.random.default_rng(2)
    truth = draw.random(80) < .5
    scores = truth*.5 + draw.random(80)
    width = lambda t: (t["high"] - t["low"]).mean()
    once, copied, naive = (width(precision_recall_band(np.repeat(scores, k), np.repeat(truth, k), g)) for k, g in ((1, None), (9, np.repeat(np.arange(80), 9)), (9, None)))
    assert copied == pytest.approx(once, rel=.15) and naive < .6*once


def test_confusion_cells_hold_their_pictures():
    catalogue = draw_wardrobe(30, dirty=False)
    truth = catalogue.products["ground_truth"].tolist()
    judged = pd.DataFrame(dict(asin=catalogue.products["asin"], truth=truth, predicted=["shoes"]*len(truth), probability=np.linspace(0, 1, len(truth))))
    html = confusion_html(judged, catalogue, catalogue.labels, n=2)
    cells = judged.groupby("truth").size()
    assert html.count("popover id=") == html.count("<td><button") == len(cells) and html.count("<img") == cells.clip(upper=2).sum()
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(set(ids)) == len(ids) and {t for t in re.findall(r'popovertarget="([^"]+)"', html)} == set(ids)
