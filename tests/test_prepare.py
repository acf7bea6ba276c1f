"""Catalogues from strangers: every row is kept or counted, whatever the file holds and whenever the machine stops."""
import csv
import functools
import gzip
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from nursery import Nursery

from fitmatch.catalogue import FitmatchError, escape_formula, load_catalogue, normalised_title, unescape_formula, write_csv
from fitmatch.prepare import _hashes, _heard, _judge_all, _titles_compared, prepare
from fitmatch import sources
from fitmatch.sources import SCHEMA, TableStream, convert_rows, label_from_levels, label_product, label_rule, make_plan, read_source, read_triples, stream_table

# the peak of this program alone: getrusage also counts the process it was forked from
PEAK = "peak = next((int(l.split()[1])/1000 for l in open('/proc/self/status') if l.startswith('VmHWM')), 0)\n"
PREPARE = "import json, sys\nfrom fitmatch.prepare import prepare\ns = prepare(sys.argv[1], sys.argv[2], progress=False, processes=int(sys.argv[3]))\nprint(json.dumps(s))"
URL = "https://m.media-amazon.com/images/I/{}.jpg"


@functools.cache
def nursery(): return Nursery("import fitmatch.prepare")


def child(source, out, processes=1, limit=120):
    "The summary of `prepare` in a process of its own"
    done = nursery().run(PREPARE, source, out, processes, timeout=limit)
    assert done.returncode == 0, done.stderr[-1500:]
    return json.loads(done.stdout)


def product(draw, i, n):
    "One dirty product in the shape of the 2018 metadata"
    pick = lambda *values: values[draw.integers(len(values))]
    return dict(asin=pick(f"B{i:06}", f"B{i:06}", f"B{i:06}", f"B{draw.integers(n):06}", None, i, ""), title=pick(f"Women's linen dress number {i//3}", "Boot", None, ["a", "b"], 7, "var aPageStart = (new Date()).getTime();", "Café &amp; co\u202e"),
        imageURLHighRes=pick([URL.format(i)], [URL.format(i//2)]*3, URL.format(i), [], None, "", 5, [None, 3]), imageURL=pick([], [URL.format("low")], None),
        also_buy=pick([f"B{j:06}" for j in draw.integers(0, n, 5)], None, "B000001", [3, None, "B000002"], {}), also_view=pick([], ["B000003"], ""), price=pick("$3.99", "$5.50 - $11.00", "", None, 5, ".a{}"),
        category=pick(["Clothing, Shoes & Jewelry", "Women", "Dresses", "Imported"], [], None, "Men > Shoes", [["Shoes"], 3], 4), brand=pick("Acme", None, 3), description=["long"]*3)


@pytest.mark.parametrize("seed", range(12))
def test_stream_and_memory_agree_and_counts_add_up(seed, tmp_path, monkeypatch):
    "The same products, groups, edges and refusals, in bounded memory or all at once"
    draw = np.random.default_rng(seed)
    lines = [json.dumps(product(draw, i, 400)).encode() for i in range(400)]
    for i in range(0, 400, 37): lines[i] = [b"{broken", b"\xff\xfe{}", b"[1, 2]", b'{"asin": NaN}', b"3"][draw.integers(5)]
    file = tmp_path/"meta.json.gz"
    file.write_bytes(gzip.compress(b"\n".join(lines)))
    whole = TableStream.batches
    monkeypatch.setattr(TableStream, "batches", lambda self, size=50, share=(0, 1): whole(self, 50, share))     # many batches, so that doubles meet across them
    summary = prepare(file, tmp_path/"w", progress=False)
    stream, memory = load_catalogue(tmp_path/"w"), read_source(file)
    assert summary["rows"] == 400 == summary["products"] + sum(summary["refused"].values())
    assert stream.products["asin"].tolist() == memory.products["asin"].tolist() and stream.refused() == memory.refused()
    for column in ("title", "category", "ground_truth", "group", "also_buy", "also_view", "imageURLHighRes"):
        assert stream.products[column].tolist() == memory.products[column].tolist(), column
    assert (stream.n_edges(), stream.dropped_edges) == (memory.n_edges(), memory.dropped_edges) == (summary["edges"], summary["dropped_edges"])
    assert stream.quarantine["line"].notna().all() and set(stream.quarantine["line"].astype(int)) <= set(range(1, 401))
    assert not stream.products["title"].map(lambda t: t is not None and "aPageStart" in t).any()


ODD = [None, "", " ", 0, 7, 1.5, float("nan"), True, [], {}, "B1", " B1 ", "B\u00e41", "a\ud800b", "a\x00b", "two  words", "x"*3000, "caf\u00e9", "R&amp;D", "(new) <b>", "var aPageStart = (", "['B1', 'B2']", '["B1"]', "B1 B2", "{'also_bought': ['B7']}",
       ["B1"], ["B1", "B1", "B2"], ["B1", None, 3], [""], ["a b"], [["B1"]], ["a\ud800"], {"also_bought": ["B1", "B2"], "also_viewed": "B3"}, "http://x/1.jpg", "HTTP://x/2.jpg", ["http://x/1.jpg", "http://x/1.jpg"], ["http://x/1.jpg", "ftp://x"],
       [" http://x/3.jpg "], ["http://x/" + "y"*2048], ["http://x/\u00e9.jpg"], "$3.99", "$5 - $7", ["Women", "Dresses"], [["Clothing", "Men"], ["Shoes"]], "Men > Shoes", "tops"]


@pytest.mark.parametrize("seed", range(20))
def test_whole_columns_are_converted_as_cell_by_cell(seed):
    "The quick way over columns gives what the functions of one cell give, whatever stands in a cell; half of the columns hold one kind of thing"
    draw = np.random.default_rng(seed)
    names = ["asin", "title", "image", "imageURLHighRes", "imageURL", "also_buy", "also_view", "related", "category", "price", "brand", *(["ground_truth"] if seed % 3 == 0 else [])]
    usual = dict(asin="B5", title="Linen shirt", image=None, imageURLHighRes=["https://x/5.jpg", "https://x/6.jpg"], imageURL=[], also_buy=["B1", "B5", "B2"], also_view=[], related=None, category=["Women", "Dresses"], price="$2", brand="Acme", ground_truth="tops")
    odd = set(draw.choice(names, len(names)//2, replace=False)) if seed else set()
    rows = [tuple(ODD[draw.integers(len(ODD))] if name in odd and draw.random() < .5 else usual[name] for name in names) for _ in range(300)]
    plan, rules = make_plan(names), Counter()
    by_name = [dict(zip(plan.sources, row)) for row in [tuple(r[names.index(s)] for s in plan.sources) for r in rows]]
    found = dict(zip([*SCHEMA.names, *plan.extra], convert_rows([tuple(r.values()) for r in by_name], plan, rules)))
    first = lambda row, *keys: next((row[k] for k in keys if row[k] or row[k] == 0), row[keys[-1]])
    for i, row in enumerate(by_name):
        key, title, (text, _, label) = sources._key(row["asin"]), sources._title(row["title"]), sources._category_of(row["category"])
        low, high = sources._price(row["price"])
        expected = dict(asin=key, title=title, image=sources._picture_file(row["image"]), imageURLHighRes=sources._urls(row["imageURLHighRes"]) or sources._urls(row["imageURL"]) or sources._urls(row["image"]), category=text, price=low, price_high=high,
            ground_truth=sources._extra(row["ground_truth"]) if "ground_truth" in row else label or label_product((), title)[1], brand=sources._extra(row["brand"]))
        for ours, relation in (("also_buy", "also_bought"), ("also_view", "also_viewed")): expected[ours] = [k for k in sources._keys(first(row, ours, "related"), relation) if k != key]
        for name, value in expected.items(): assert found[name][i].as_py() == value, (name, row)


def test_what_is_decoded_later_is_checked_at_once(tmp_path):
    lines = [r'{"asin": "B1", "category": ["a\ud800"], "imageURLHighRes": ["https://x/1.jpg"]}', r'{"asin": "B2", "imageURLHighRes": [], "imageURL": ["https://x/\ud800.jpg"]}', '{"asin": "B3", "imageURLHighRes": [], "imageURL": ["https://x/3.jpg"], "category": ["Men", "Shoes"]}',
             '{"asin": "B4", "imageURLHighRes": ["https://x/4.jpg"], "imageURL": ' + "["*5000 + "]"*5000 + '}', '{"asin": "B5", "imageURL": "https://x/5.jpg"}', r'{"asin": "B6\ud800", "imageURL": "https://x/5.jpg"}']
    (tmp_path/"s.json").write_text("\n".join(lines))
    summary = prepare(tmp_path/"s.json", tmp_path/"w", progress=False)
    products = load_catalogue(tmp_path/"w").products
    assert products["asin"].tolist() == ["B3", "B5"] and products["ground_truth"].tolist() == ["shoes", None]
    assert products["imageURLHighRes"].tolist() == [["https://x/3.jpg"], ["https://x/5.jpg"]]
    assert summary["refused"] == {"not JSON": 4}


def test_hashes_and_titles_of_columns():
    draw = np.random.default_rng(0)
    letters = list("ab Z_-&9.\t\x00\x7f\u00e9\u00df\ufb01\u3000")
    texts = ["".join(draw.choice(letters, draw.integers(0, 30))) for _ in range(3000)] + ["y"*n for n in range(1, 300)] + ["y"*200 + "z", ""]
    for some in (texts, [t for t in texts if t.isascii()]): assert _titles_compared(pa.array(some)).to_pylist() == [normalised_title(t) for t in some]
    hashed = dict(zip(texts, _hashes(pa.array(texts))))
    assert len(set(hashed.values())) == len(hashed) and hashed[""] == 0
    order = draw.permutation(len(texts))
    assert [hashed[texts[i]] for i in order] == [h for part in np.array_split(order, 50) for h in _hashes(pa.array([texts[i] for i in part]))]     # whatever stands beside a text
    assert _hashes(pa.array([None, "a", None])[1:]).tolist() == [hashed["a"] if "a" in hashed else _hashes(pa.array(["a"]))[0], 0] and len(_hashes(pa.array([], pa.string()))) == 0


def many_lines(file, n=20_000, seed=1):
    "A file of dirty products"
    draw = np.random.default_rng(seed)
    file.write_bytes(gzip.compress(b"\n".join(json.dumps(product(draw, i, n)).encode() for i in range(n)), 1))
    return file


def test_the_number_of_processes_does_not_matter(tmp_path):
    file = many_lines(tmp_path/"meta.json.gz")
    for n in (1, 2, 3):
        summary = prepare(file, tmp_path/f"w{n}", progress=False, processes=n)
        assert summary["rows"] == 20_000 == summary["products"] + sum(summary["refused"].values())
        for name in ("catalogue.parquet", "quarantine.parquet"): assert (tmp_path/f"w{n}"/name).read_bytes() == (tmp_path/"w1"/name).read_bytes()


def test_a_reading_process_that_dies_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_STRETCH", 16)
    file = many_lines(tmp_path/"meta.json.gz")
    whole = [(j.stretch, j.rows, j.good.to_pybytes()) for j in _judge_all(file, None, 1)]
    broken, stream = [], _judge_all(file, None, 2)
    for i, judged in enumerate(stream):
        broken.append((judged.stretch, judged.rows, judged.good.to_pybytes()))
        if i == 0: [os.kill(child.pid, signal.SIGKILL) for child in multiprocessing.active_children()]
    assert broken == whole and len({s for s, *_ in whole}) > 3 and not multiprocessing.active_children()


def test_a_reading_process_may_die_in_the_middle_of_an_answer(tmp_path):
    file = many_lines(tmp_path/"meta.json.gz")
    ours, theirs = multiprocessing.Pipe(duplex=False)
    os.write(theirs.fileno(), (1000).to_bytes(4, "big") + b"half an answer")  # what a pipe holds of a message of 1,000 bytes
    theirs.close()
    whole = [(j.stretch, j.rows, j.good.to_pybytes()) for j in _judge_all(file, None, 1)]
    assert [(j.stretch, j.rows, j.good.to_pybytes()) for j in _heard(file, None, (0, 1), ours)] == whole


def test_a_broken_double_does_not_push_out_a_sound_row(tmp_path):
    rows = [dict(asin="B1", title="var aPageStart = (new Date()).getTime();", imageURLHighRes=[URL], brand="x", price="$1", category=["a"]), dict(asin="B1", title="Hat", imageURLHighRes=[URL])]
    (tmp_path/"s.json").write_text("\n".join(map(json.dumps, rows)))
    assert prepare(tmp_path/"s.json", tmp_path/"w", progress=False)["refused"] == {"title is page code": 1}


HOSTILE = {
    "bomb of JSON": lambda f: _gzip(f, b'{"asin": "B1", "title": "', b"a"*(1 << 20), 600),
    "bomb of empty lines": lambda f: _gzip(f, b"", b"\n"*(1 << 20), 100),
    "bomb of small objects": lambda f: _gzip(f, b"", b"{}\n"*(1 << 18), 600),
    "a line of 100 MB": lambda f: _gzip(f, b'{"asin": "B1", "title": "', bytes(range(32, 127))*11_000, 100, b'"}\n{"asin": "B2", "imageURL": ["https://x/1.jpg"]}\n'),
    "bad UTF-8": lambda f: f.write_bytes(gzip.compress(b'{"asin": "B\xff"}\n{"asin": "B2", "imageURL": ["https://x/1.jpg"]}\n\xc3\x28\n')),
    "deep nesting": lambda f: f.write_bytes(gzip.compress(b'{"asin": ' + b"["*200_000 + b"]"*200_000 + b'}\n{"title": ' + b'{"a":'*100_000 + b'1' + b"}"*100_000 + b'}\n{"asin": "B2", "imageURL": ["https://x/1.jpg"]}\n')),
    "deep literals": lambda f: f.write_bytes(gzip.compress(b"{'asin': " + b"-"*200_000 + b"1}\n{'asin': " + b"("*100_000 + b")"*100_000 + b"}\n{'asin': 'B2', 'imUrl': 'https://x/1.jpg'}\n" + b"{'a': " + b"[-"*90_000 + b"}\n" + b"{'a': '" + b"\\x41"*900_000)),
    "NaN literals": lambda f: f.write_bytes(gzip.compress(b'{"asin": "B1", "price": NaN}\n{"asin": "B3", "price": -Infinity}\n{"asin": "B2", "imageURL": ["https://x/1.jpg"]}\n')),
    "broken off": lambda f: f.write_bytes(gzip.compress(b'{"asin": "B2", "imageURL": ["https://x/1.jpg"]}\n'*3 + np.random.default_rng(0).bytes(300_000))[:-1000]),
    "NUL bytes": lambda f: f.write_bytes(gzip.compress(b'\x00'*300_000 + b'\n{"asin": "B2", "imageURL": ["https://x/1.jpg"]}\n')),
}


def _gzip(file, head, block, times, tail=b""):
    with gzip.open(file, "wb", compresslevel=1) as f:
        f.write(head)
        for _ in range(times): f.write(block)
        f.write(tail)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_metadata(name, tmp_path, figure):
    file = tmp_path/"meta.json.gz"
    HOSTILE[name](file)
    before = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", "import sys\nfrom fitmatch.cli import run_command_line\ncode = run_command_line(sys.argv[1:])\n" + PEAK + "print(peak)\nsys.exit(code)",
                           "prepare", str(file), "--out", str(tmp_path/"w"), "--json"], capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert done.returncode in (0, 2) and "Traceback" not in done.stderr and "bug in fitmatch" not in done.stderr, done.stderr[-800:]
    megabytes = float(lines[-1])
    if done.returncode == 0:
        found = json.loads(lines[0])
        assert found["rows"] == found["products"] + sum(found["refused"].values()) and found["refused"]
    else: found = {"refused": done.stderr.strip().splitlines()[-1][-120:]}
    figure(f"hostile metadata, {name}: {found['refused']} in {time.perf_counter() - before:.1f} s with {megabytes:.0f} MB")
    assert 50 < megabytes < 300


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_random_moments_the_rerun_equals_an_unbroken_run(processes, tmp_path, figure):
    draw = np.random.default_rng(processes)
    file = many_lines(tmp_path/"meta.json.gz")
    whole = child(file, tmp_path/"whole", processes)
    begin = time.perf_counter()
    child(file, tmp_path/"timed", processes)
    seconds = time.perf_counter() - begin
    killed = 0
    for _ in range(30):
        moment, (ours, theirs), begin = draw.uniform(0, seconds), os.pipe(), time.perf_counter()
        with open(theirs, "wb") as out: process = nursery().start(PREPARE, file, tmp_path/"broken", processes, stdout=out, stderr=out)
        with open(ours, "rb") as said:
            try: process.wait(moment); seconds = time.perf_counter() - begin     # quicker than when it was timed
            except subprocess.TimeoutExpired: killed += process.kill()
            assert process.wait() in (0, -signal.SIGKILL), said.read()
            said.read()                                  # ends when the last of its processes has ended: none is left behind
    again = child(file, tmp_path/"broken", processes)
    figure(f"reading with {processes} process{'es' if processes > 1 else ''} killed at {killed} of 30 random moments: the rerun equals an unbroken run")
    assert killed >= 10
    assert {k: v for k, v in again.items() if k not in ("seconds",)} == {k: v for k, v in whole.items() if k not in ("seconds",)}
    for name in ("catalogue.parquet", "quarantine.parquet"): assert (tmp_path/"broken"/name).read_bytes() == (tmp_path/"whole"/name).read_bytes()
    assert sorted(p.name for p in (tmp_path/"broken").iterdir()) == ["catalogue.parquet", "prepare.json", "quarantine.parquet"]


@pytest.mark.alone
def test_the_original_projects_table_loads_quickly(tmp_path, figure):
    "52,456 rows, six columns, lists as Python literals"
    draw, n = np.random.default_rng(0), 52_456
    asins = np.array([f"B{i:09}" for i in range(n)])
    targets = asins[draw.integers(0, n, (n, 8))]
    pd.DataFrame({"asin": asins, "title": [f"Women's Long Sleeve Shirt number {i} & more" for i in range(n)], "imageURLHighRes": [str([URL.format(i)]*2) for i in range(n)], "also_buy": [str(list(map(str, t))) for t in targets],
                  "category": [str(["Clothing, Shoes & Jewelry", "Women", "Tops"])]*n, "ground_truth": ["tops"]*n}).to_csv(tmp_path/"shop.csv", index=False)
    begin = time.perf_counter()
    catalogue = read_source(tmp_path/"shop.csv")
    seconds = time.perf_counter() - begin
    figure(f"a table of 52,456 rows in the original project's shape: loaded in {seconds:.2f} s")
    assert len(catalogue) == n and catalogue.n_edges() > 8*n*0.99 and seconds < 6


def test_csv_with_every_kind_of_wrong_row(tmp_path):
    rows = ["asin,title,imageURL,also_buy", f"B1,\"two\nlines\",{URL},\"['B2']\"", "B2,short", f"B3,x,{URL},", f"B4,{'x'*300},{URL},,,,", "", f"B\udcff,bad,{URL},", f"B5,last,{URL},\"['B1', 'B3']\""]
    (tmp_path/"s.csv").write_bytes(("\ufeff" + "\n".join(rows)).encode("utf-8", "surrogateescape"))
    summary = prepare(tmp_path/"s.csv", tmp_path/"w", progress=False)
    back = load_catalogue(tmp_path/"w")
    assert back.products["asin"].tolist() == ["B1", "B3", "B5"] and back.products["also_buy"].tolist() == [[], [], ["B1", "B3"]] and summary["dropped_edges"] == 1
    assert summary["refused"] == {"bad UTF-8": 1, "wrong number of fields": 2} and back.quarantine["line"].tolist() == [4, 6, 8]


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl", "csv.gz"])
def test_columns_are_mapped(suffix, tmp_path):
    frame = pd.DataFrame({"sku": ["1", "2"], "name": ["Wool hat", "Boot"], "photo": [URL.format(1), URL.format(2)], "goes": ["['2']", ""], "size": ["L", "44"]})
    file = tmp_path/f"shop.{suffix}"
    {"parquet": frame.to_parquet, "jsonl": lambda f: frame.to_json(f, orient="records", lines=True)}.get(suffix, lambda f: frame.to_csv(f, index=False))(file)
    catalogue = read_source(file, columns={"asin": "sku", "title": "name", "imageURLHighRes": "photo", "also_buy": "goes"})
    assert catalogue.products["asin"].tolist() == ["1", "2"] and catalogue.n_edges() == 1 and catalogue.products["size"].tolist() == ["L", "44"]
    assert catalogue.products["ground_truth"].tolist() == ["accessories", "shoes"]
    with pytest.raises(FitmatchError, match="no column 'nope'"): stream_table(file, {"asin": "nope"})


def test_formulas_are_escaped_and_come_back(tmp_path):
    draw = np.random.default_rng(0)
    alphabet = list("=+-@\t'| a1\"\n,")
    texts = ["".join(draw.choice(alphabet, draw.integers(1, 6))) for _ in range(2000)]
    assert [unescape_formula(escape_formula(t)) for t in texts] == texts
    write_csv(pd.DataFrame({"asin": texts, "also_buy": [["=1", "B2"]]*2000}), tmp_path/"out.csv")
    cells = [c for row in list(csv.reader(open(tmp_path/"out.csv", newline="", encoding="utf-8")))[1:] for c in row]
    assert len(cells) == 4000 and not any(c.lstrip(" '\n")[:1] in set("=+-@|") and not c.startswith("'") for c in cells)


def test_real_metadata_of_2018(real_data, tmp_path, figure):
    summary = prepare(real_data("amazon-2018-sample", "meta_AMAZON_FASHION.csv"), tmp_path/"w", progress=False)
    assert summary["rows"] == 700 == summary["products"] + sum(summary["refused"].values()) and summary["refused"] == {"title is page code": 5}
    labelled = sum(summary["labels"].values())
    figure(f"Amazon 2018 sample: {summary['products']} of 700 kept, {labelled} labelled by {len(summary['rules'])} rules, {summary['unlabelled']} without")
    assert labelled > 0.9*695 and summary["columns"]["price"] > 600


def test_labels_agree_with_a_reader(real_data, figure):
    "Rules against labels given one by one, on the half that was not looked at when the rules were written"
    checked = [line.split(",") for line in (Path(__file__).parent/"labels_checked.csv").read_text().split()[1:]]
    import hashlib
    label = {key: answer for key, answer, half in checked if half == "held-out" and answer != "?"}
    hashed = lambda asin: hashlib.sha256(asin.encode()).hexdigest()[:12]
    titles = read_source(real_data("amazon-2018-sample", "meta_AMAZON_FASHION.csv")).products
    found = {hashed(a): label_rule(t)[1] for a, t in zip(titles["asin"], titles["title"])}
    graph = read_source(real_data("amazon-2014-graph")).products
    paths = {hashed(a): label_from_levels(tuple(c.split(" | ")))[1] for a, c in zip(graph["asin"], graph["category"])}
    for name, answers in (("titles of 2018", found), ("category paths of 2014", paths)):
        both = [(answers[k], label[k]) for k in label if k in answers]
        share = np.mean([a == b for a, b in both])
        figure(f"label rules, {name}: {share:.3f} of {len(both)} agree with a reader, {sum(a is None for a, _ in both)} left without a label")
        assert len(both) > 130 and share > 0.88


def test_real_graph_and_fashionvc(real_data):
    graph = read_source(real_data("amazon-2014-graph"))
    assert len(graph) == 23_033 and graph.n_edges() == 254_264 and graph.n_edges() + graph.dropped_edges == 1_413_142 and graph.products["ground_truth"].notna().mean() > 0.9
    items = read_source(real_data("fashionvc"))
    assert set(items.products["ground_truth"]) == {"tops", "bottoms"} and items.products["also_buy"].map(len).sum() > 10_000
    assert len(read_triples(real_data("fashionvc", "valid_ijk_shuffled_811.txt"))) == 6213
