"""Forty texts that try to be more than text, in everything that fitmatch shows; and pictures, of which only the pixels are shown"""
import ast
import base64
import html
import io
import json
import os
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import matplotlib.text
import numpy as np
import pandas as pd
import pytest
from fitmatch import cli
from fitmatch.cards import csv_link, notice, read_csv_link, reproducing_code
from fitmatch.catalogue import FitmatchError, write_csv
from fitmatch.evaluate import plot_scoreboard
from fitmatch.explore import catalogue_map, cluster_galleries, gallery, map_html, thumbnails
from fitmatch.outfits import Outfit, explain
from fitmatch.report import report_html
from fitmatch.widgets import ClusterBrowser, EncoderCompare, MatchDemo, OutfitDemo, ThresholdExplorer
from hostile import PAYLOADS, Page, make_results, make_shop
from PIL import Image, PngImagePlugin

HARMLESS = "quite harmless"


def saying(payload): return lambda text, i=0: f"{payload} {text}"


def tables(shop):
    "What an outfit and an explanation show in a notebook"
    labels, matcher, asins = shop.catalogue.labels, shop.matchers["also-buy rule"], shop.catalogue.products["asin"]
    pieces = pd.DataFrame({"part": labels, "asin": asins[:3], "title": shop.catalogue.products["title"][:3], "locked": False, "score": .5})
    pairs = pd.DataFrame({"first": labels[0], "second": labels[1:], "score": .5})
    return {"outfit's table": Outfit(asins[5], pieces, pairs, .5, None, ())._repr_html_(), "explanation": explain(matcher, asins[0], asins[1])._repr_html_()}


def refusals(shop, payload):
    "Messages that repeat what was given"
    demo = MatchDemo(shop, curves={})
    demo.bring(f"{payload}.jpg", b"no picture")
    unknown = MatchDemo(shop, curves={})
    unknown.pick(f"{payload} unknown")
    return {"refused photo": demo.message.value, "unknown product": unknown.message.value, "notice": notice(payload), "error": notice(FitmatchError(payload))}


def surfaces(shop, payload):
    "Everything the demos, tables, maps and messages write as HTML"
    match, outfit, clusters = MatchDemo(shop, curves={}), OutfitDemo(shop, parts=shop.catalogue.labels), ClusterBrowser(shop, k=3)
    match.show_code.value = True
    pages = {"cards": match.cards.value, "gain": match.gain.value, "code": match.listing.value, "link": match.link.value}
    match.controls.matcher.value = list(shop.matchers)[1]
    match.controls.category.value = shop.catalogue.labels[0]
    pages |= {"second": match.static(), "second gain": match.worth(), "second code": match.listing.value}
    lonely, compare = MatchDemo(replace(shop, matchers={})), EncoderCompare(shop, {shop.catalogue.labels[0]: shop.X, shop.catalogue.labels[1]: -shop.X})
    points = np.random.default_rng(0).normal(size=(len(shop.catalogue), 2))
    drawn = catalogue_map(points, shop.catalogue, color={"label": "ground_truth", f"{payload} view": "category"}, dims=2)
    return pages | {"outfit": outfit.static(), "clusters": clusters.static(), "scores": clusters.score.value, "thresholds": ThresholdExplorer({payload: f"{payload} is why"}).static(), "encoders": compare.static(),
                    "alone": lonely.static(), "why": lonely.worth(), "map": map_html(drawn, thumbnails(shop.catalogue), plotlyjs=False)} | tables(shop) | refusals(shop, payload)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "Function giving (every surface, shop, results) of a payload, made once"
    known = {}
    def make(payload):
        if payload not in known:
            folder = tmp_path_factory.mktemp("shown")
            shop, results = make_shop(folder, n=12, say=saying(payload)), make_results(folder, saying(payload), n=26)
            known[payload] = surfaces(shop, payload) | {"report": re.sub(r"<script>.*?</script>", "<script></script>", report_html({**results, "heatmap": None}), flags=re.S)}, shop, results
        return known[payload]
    return make


@pytest.mark.parametrize("name", PAYLOADS)
def test_no_text_becomes_an_element_or_an_attribute(made, name):
    good, bad = made(HARMLESS)[0], made(PAYLOADS[name])[0]
    assert len(PAYLOADS) >= 40 and good.keys() == bad.keys()
    for surface in good: assert Page(bad[surface]).shape() == Page(good[surface]).shape() and good[surface], surface


def test_payloads_are_shown_as_they_are(made):
    for name in ("script", "jinja", "escaped", "mathematics", "markdown link"):
        seen = made(PAYLOADS[name])[0]
        for surface in ("cards", "outfit", "encoders", "alone", "report", "refused photo"): assert html.escape(PAYLOADS[name]).replace("&quot;", "&#34;").replace("&#x27;", "&#39;") in seen[surface].replace("&#x27;", "&#39;").replace("&quot;", "&#34;"), (name, surface)


def test_mathematics_is_left_alone_in_a_notebook(made):
    "JupyterLab and nbviewer typeset `$…$` in every output that does not say no"
    for surface in ("cards", "gain", "outfit", "clusters", "encoders", "alone", "why", "outfit's table", "explanation"):
        within = [attrs for _, attrs in Page(made(PAYLOADS["mathematics"])[0][surface]).elements if "mathjax_ignore" in attrs.get("class", "") and "tex2jax_ignore" in attrs["class"]]
        assert within, surface


def test_the_surfaces_in_a_browser(browser, made):
    "The same comparison with the elements that a browser makes, and nothing may open, run or be asked for"
    page = browser.new_page()
    seen = []
    page.on("dialog", lambda d: (seen.append(d.message), d.dismiss()))
    page.on("request", lambda r: None if r.url.startswith(("data:", "about:", "blob:")) else seen.append(r.url))
    dom = "() => [...document.querySelectorAll('body *')].map(e => e.tagName + ' ' + e.getAttributeNames().sort().join()).join('\\n')"
    def shape(pages):
        page.set_content("<body>" + "".join(f"<div>{text}</div>" for surface, text in pages.items() if surface not in ("report", "map")))
        return page.evaluate(dom)
    good = shape(made(HARMLESS)[0])
    assert good.count("\n") > 400
    for name, payload in PAYLOADS.items():
        assert shape(made(payload)[0]) == good, name
    assert seen == [] and page.evaluate("window.PWNED") is None


def test_plotly_shows_text_as_text(made):
    "Plotly reads tags, `$…$` and `%{…}` in labels: none of them is left"
    for name, payload in PAYLOADS.items():
        shop = made(payload)[1]
        figure = catalogue_map(np.random.default_rng(0).normal(size=(12, 2)), shop.catalogue, color={payload: "ground_truth", "other": "category"}, dims=2)
        for trace in figure.data:
            for text in (trace.name, *trace.text): assert not re.search(r"[<>$]|%\{", text), name
            assert trace.hovertemplate == "%{text}<extra></extra>"
        for axis in (figure.layout.xaxis, figure.layout.yaxis): assert re.fullmatch(r"(PC|axis) \d", axis.title.text)


# files and code that are taken away

@pytest.mark.parametrize("name", PAYLOADS)
def test_code_and_csv_hold_the_text_and_nothing_more(made, tmp_path, name):
    payload, shop = PAYLOADS[name], replace(made(HARMLESS)[1], code=f"shop = open_shop({PAYLOADS[name]!r})")
    for given in (dict(product=payload), dict(photo=payload), dict(product="A", matcher=payload, category=payload)):
        tree = ast.parse(reproducing_code(shop, **given, threshold=.5))
        texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        assert len(tree.body) == 5 and texts.count(payload) == sum(value == payload for value in given.values()) + 1 and reproducing_code(shop, **given).isprintable() is False
        assert all(line.isprintable() for line in reproducing_code(shop, **given).splitlines())
    table = pd.DataFrame({payload: [payload, "x"], "score": [.5, .6]})
    write_csv(table, tmp_path/"t.csv")
    for data in (read_csv_link(csv_link(table)).decode("utf-8-sig"), (tmp_path/"t.csv").read_bytes().decode()):
        back = pd.read_csv(io.StringIO(data, newline=""), dtype=str, keep_default_na=False)
        assert back.shape == (2, 2) and back["score"].tolist() == ["0.5", "0.6"]
        for cell in (back.columns[0], back.iloc[0, 0]): assert cell.lstrip("'")[:1] not in tuple("=+-@\t|%") or cell.startswith("'")


# figures

@pytest.mark.parametrize("name", ["mathematics", "mathematics, round", "script", "formula"])
def test_figures_draw_text_as_text(made, name):
    payload, shop = PAYLOADS[name], made(PAYLOADS[name])[1]
    rows = range(4)
    board = pd.DataFrame({"auc": [.7], "auc_low": [.6], "auc_high": [.8]}, index=[payload])
    for figure in (gallery(shop.catalogue, rows, title=payload), cluster_galleries(shop.catalogue, np.arange(12) % 3, n=2), plot_scoreboard(board)):
        figure.canvas.draw()
        for text in figure.findobj(matplotlib.text.Text):
            if "$" in text.get_text(): assert not text.get_parse_math() or text.get_text().count("$") == text.get_text().count(r"\$"), text.get_text()


def test_figures_with_labels_on_their_axes_draw_text_as_text(made):
    from fitmatch.classify import plot_confusion
    from fitmatch.similar import heatmap
    shop = made(PAYLOADS["mathematics"])[1]
    labels = shop.catalogue.products["ground_truth"].to_numpy(dtype=object)
    pieces = pd.DataFrame({"part": shop.catalogue.labels, "asin": shop.catalogue.products["asin"][:3], "locked": False, "score": .5})
    names = ["photo", *shop.catalogue.labels]
    pairs = pd.DataFrame([(a, b, .5) for i, a in enumerate(names) for b in names[i + 1:]], columns=["first", "second", "score"])
    outfit = Outfit(shop.catalogue.products["asin"][5], pieces, pairs, .5, None, (), catalogue=shop.catalogue)
    for figure in (heatmap(shop.X, labels, order=list(shop.catalogue.labels)), plot_confusion(labels, labels), outfit.plot()):
        figure.canvas.draw()
        assert not any("$" in text.get_text() and text.get_parse_math() for text in figure.findobj(matplotlib.text.Text))


# the command

@pytest.mark.parametrize("name", PAYLOADS)
def test_a_terminal_is_not_steered(capsys, name):
    payload = PAYLOADS[name]
    def printed(text):
        near = pd.DataFrame({"query": text, "neighbour": [f"{text} A", "B"], "similarity": [.9, .8]})
        matches = pd.DataFrame({"query": text, "via": [f"{text} A"], "match": f"{text} B", "similarity": .9, "score": .8, "decision": "matching"})
        answer = dict(matches=matches, neighbours=near, own={text: f"{text} A"}, refused={}, threshold=.5, note=None)
        cli._print_matches(answer, 5)
        cli._print_matches(answer | dict(note=text), 5)
        cli._print_json(cli._match_json(answer))
        cli.show(cli.describe_prepared(dict(columns={text: 1}, products=1, rows=2, refused={text: 1}, edges=0, dropped_edges=0, labels={text: 1}, unlabelled=0, rules={text: 1}, seconds=1.)))
        cli.run_command_line(["match", f"{text}.jpg", "--workspace", f"{text} nowhere"])
        return capsys.readouterr()
    good, bad = printed(HARMLESS), printed(payload)
    for kept, shown in zip(good, bad):
        assert shown.count("\n") == kept.count("\n") and all(line.isprintable() for line in shown.split("\n"))
    line = next(line for line in bad.out.split("\n") if line.startswith('{"matches"'))
    assert json.loads(line)["neighbours"][0]["query"] == payload


def test_a_name_that_is_no_text_is_printed(hostile_workspace, tmp_path, capsys):
    name = os.fsdecode(bytes(tmp_path) + b"/mine \xff\x1b[2J.png")
    try: shutil.copy(next((hostile_workspace/"images").rglob("*.jpg")), name)
    except OSError: pytest.skip("no such names on this disk")
    assert cli.run_command_line(["match", name, "--workspace", str(hostile_workspace)]) == 0
    assert "\\udcff\\x1b[2J.png is the picture of" in capsys.readouterr().out


# Streamlit

def test_streamlit_is_given_text_where_it_reads_markdown(hostile_workspace, monkeypatch):
    testing = pytest.importorskip("streamlit.testing.v1", reason="streamlit is not installed: pip install 'fitmatch[app]'")
    from fitmatch.cli import serving
    monkeypatch.setenv("FITMATCH_WORKSPACE", str(hostile_workspace))
    app = testing.AppTest.from_file(serving(True, "127.0.0.1", None, False)[0][4], default_timeout=240)
    app.run()
    tags = {"style", "div", "section", "p", "figure", "img", "figcaption", "span", "ol", "ul", "li", "br", "a", "svg", "polyline", "path", "g", "text"}
    for page in ("Matches", "Outfit", "Scoreboard"):
        app.radio[0].set_value(page).run()
        assert not app.exception
        reads_markdown = [e.value for kind in ("title", "caption", "markdown", "subheader", "header", "warning", "info") for e in getattr(app, kind)]
        reads_markdown += [e.label for kind in ("selectbox", "multiselect", "slider", "button", "radio", "text_input") for e in getattr(app, kind)] + [o for e in app.radio for o in e.options]
        assert reads_markdown and not any(payload[:8] in text for payload in PAYLOADS.values() for text in reads_markdown if len(payload) > 8)
        bodies = [e.proto.body for e in app.get("html")]
        assert bodies and {tag for body in bodies for tag, _ in Page(body).elements} <= tags
        assert not any(attribute.startswith("on") for body in bodies for _, attrs in Page(body).elements for attribute in attrs)


# pictures

SECRET = b"somebody's-secret-place-51.5N"


def marked(path, i):
    "A picture with a secret in every corner that is no pixel, and a page of HTML behind its end"
    image = Image.fromarray(np.random.default_rng(i).integers(0, 255, (48, 48, 3), dtype=np.uint8))
    exif = image.getexif(); exif[0x010E] = exif[0x9286] = SECRET.decode()
    if i % 2: notes = PngImagePlugin.PngInfo(); notes.add_text("Comment", SECRET.decode()); notes.add_itxt("XML:com.adobe.xmp", SECRET.decode()); extra = dict(format="PNG", pnginfo=notes)
    else: extra = dict(format="JPEG", comment=SECRET, xmp=SECRET)
    buffer = io.BytesIO(); image.save(buffer, exif=exif, icc_profile=SECRET*4, **extra)
    path.write_bytes(buffer.getvalue() + b"<script>alert('" + SECRET + b"')</script>")


def shown_pictures(page):
    "Every picture of a page, also those inside drawings"
    for kind, data in re.findall(r"data:image/([a-z+]+);base64,([A-Za-z0-9+/=]+)", page):
        data = base64.b64decode(data)
        if kind == "svg+xml": yield from shown_pictures(data.decode())
        else: yield data


def test_only_pixels_of_a_picture_are_shown(tmp_path):
    shop, results = make_shop(tmp_path, n=12), make_results(tmp_path, saying(HARMLESS), n=26)
    for path in {shop.catalogue.image_path(i) for i in range(12)} | {results["catalogue"].image_path(i) for i in range(26)}: marked(path, int(path.stem) % 2 if path.suffix == ".png" else 0)
    photo = (tmp_path/"3.png").read_bytes()
    assert photo.count(SECRET) >= 3 and (tmp_path/"2.jpg").read_bytes().count(SECRET) >= 4
    demo = MatchDemo(shop, curves={})
    shop.encoder = SimpleNamespace()                                        # what a photo looks like is not asked here
    pages = surfaces(shop, HARMLESS) | {"report": report_html(results)}
    from fitmatch.cards import accept_photo
    from fitmatch.images import data_uri, thumbnail
    pages["upload"] = data_uri(thumbnail(accept_photo(photo), size=240))
    for figure in (gallery(shop.catalogue, range(8)), cluster_galleries(shop.catalogue, np.arange(12) % 3, n=2)):
        buffer = io.BytesIO(); figure.savefig(buffer, format="png"); pages[f"figure {id(figure)}"] = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    found = [data for page in pages.values() for data in shown_pictures(page)]
    assert len(found) > 60 and demo.cards.value
    for page in pages.values():
        for drawing in re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", page): assert SECRET not in (inside := base64.b64decode(drawing)) and b"<script" not in inside
    for data in found:
        assert SECRET not in data and b"<script" not in data
        opened = Image.open(io.BytesIO(data))
        assert not opened.getexif() and not opened.info.get("icc_profile") and not {"comment", "xmp", "Comment"} & set(opened.info)
    assert not any(SECRET.decode() in page for page in pages.values())
