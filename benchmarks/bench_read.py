"""Reading a large catalogue of strangers: fitmatch prepare beside what one would write with other tools.

    pip install duckdb polars
    python benchmarks/bench_read.py [products ...]        # default 100000 300000 1000000

Every way reads the same generated file (JSON lines, gzip, the field mix of Amazon's 2018 metadata) and makes the same table: one row a key, no row without
a picture's address or with page code for a title, titles unescaped, both kinds of edges inside the catalogue, prices as numbers, a label from fitmatch's own rules, groups of the same title
or picture. "duckdb, 6 columns" makes only the original project's six. None but fitmatch says which row was refused, where and why. Each runs in a process of its own, in turn, on the same machine.
"""
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SHARED = '''
import html, json, re, sys, time, unicodedata
import numpy as np
from fitmatch.catalogue import connected_groups, is_page_code, normalised_title
from fitmatch.sources import label_product, parse_price
FILE, OUT = sys.argv[1:3]
FIELDS = ["asin", "title", "category", "imageURLHighRes", "imageURL", "also_buy", "also_view", "price", "brand"]
UNSEEN = re.compile("[\\u0000-\\u001f\\u007f-\\u009f\\u00ad\\u200b-\\u200f\\u202a-\\u202e\\u2060-\\u206f\\ufeff\\ue000-\\uf8ff]")
def tidy(t): return " ".join(UNSEEN.sub("", unicodedata.normalize("NFC", html.unescape(t))).split()) or None if isinstance(t, str) else None
def labels(categories, titles):
    memo, out = {}, []
    for c, t in zip(categories, titles):
        key = tuple(c) if c is not None else ()
        if key not in memo: memo[key] = label_product(key, None)[1]
        out.append(memo[key] or label_product((), t)[1])
    return out
'''
FINISH = '''
def finish(frame):
    "pandas frame with FIELDS -> the clean table, and the refused rows with their reasons"
    some = lambda v: v is not None and len(v) > 0
    frame["imageURLHighRes"] = [a if some(a) else b if some(b) else None for a, b in zip(frame["imageURLHighRes"], frame.pop("imageURL"))]
    frame["title"] = [t if is_page_code(t) else tidy(t) for t in frame["title"]]
    frame["ground_truth"] = labels(frame["category"], frame["title"])
    frame["price"], frame["price_high"] = zip(*frame["price"].map(parse_price))
    for name in ("also_buy", "also_view"): frame[name] = [[t for t in dict.fromkeys(e) if t != a] if some(e) else [] for a, e in zip(frame["asin"], frame[name])]
    reason = np.select([frame["asin"].isna(), frame["imageURLHighRes"].isna(), frame["title"].map(is_page_code)], ["no asin", "no picture", "title is page code"], "")
    filled = sum(frame[c].map(lambda v: some(v) if isinstance(v, (list, str, np.ndarray)) else v is not None and v == v).astype(int) for c in frame)
    again = frame.assign(filled=filled)[reason == ""].sort_values("filled", ascending=False, kind="stable")
    reason[again.index[again["asin"].duplicated()]] = "duplicate asin"
    frame.loc[reason != "", ["asin", "title"]].assign(reason=reason[reason != ""]).to_parquet(OUT + ".quarantine")
    frame = frame[reason == ""]
    known = set(frame["asin"])
    for name in ("also_buy", "also_view"): frame[name] = [[t for t in e if t in known] for e in frame[name]]
    frame["category"] = [" | ".join(c) if some(c) else None for c in frame["category"]]
    frame["group"] = connected_groups([normalised_title(t) for t in frame["title"]], [u[0] for u in frame["imageURLHighRes"]])
    frame.to_parquet(OUT)
    return len(frame)
'''
READ = '''
import duckdb, pandas as pd
db = duckdb.connect()
db.execute("set enable_progress_bar=false")
db.execute(f\"\"\"create table everything as select asin, title, category, case when len(imageURLHighRes) > 0 then imageURLHighRes else imageURL end as urls, also_buy, also_view, price, brand
    from read_json('{FILE}', format='newline_delimited', ignore_errors=true, columns={{asin: 'VARCHAR', title: 'VARCHAR', category: 'VARCHAR[]', imageURLHighRes: 'VARCHAR[]', imageURL: 'VARCHAR[]',
        also_buy: 'VARCHAR[]', also_view: 'VARCHAR[]', price: 'VARCHAR', brand: 'VARCHAR'}})\"\"\")
def by_category(table):
    kinds = db.execute(f"select distinct category from {table}").fetchall()
    db.register("categories", pd.DataFrame({"key": [" | ".join(c or []) for c, in kinds], "label": [label_product(tuple(c or ()), None)[1] for c, in kinds]}))
def by_title(table):
    rest = db.execute(f"select rid, title from {table} join categories on coalesce(array_to_string(category, ' | '), '') = key where label is null").df()
    db.register("own", rest.assign(own=[label_product((), t if isinstance(t, str) else None)[1] for t in rest["title"]])[["rid", "own"]])
LABEL, JOINS = "coalesce(c.label, o.own)", "left join categories c on coalesce(array_to_string(r.category, ' | '), '') = c.key left join own o using (rid)"
'''
WAYS = {
    "fitmatch": "from fitmatch.prepare import prepare\nn = prepare(FILE, OUT + '.d', progress=False)['products']",
    "json loop": FINISH + '''
import gzip, pandas as pd
rows = []
for line in gzip.open(FILE):
    try: o = json.loads(line)
    except ValueError: continue
    if isinstance(o, dict): rows.append([o.get(f) for f in FIELDS])
n = finish(pd.DataFrame(rows, columns=FIELDS))''',
    "pandas, chunked": FINISH + '''
import pandas as pd
n = finish(pd.concat([chunk[FIELDS] for chunk in pd.read_json(FILE, lines=True, chunksize=20_000, dtype=False)], ignore_index=True))''',
    "polars": FINISH + '''
import polars as pl
L = pl.List(pl.String)
schema = dict(asin=pl.String, title=pl.String, category=L, imageURLHighRes=L, imageURL=L, also_buy=L, also_view=L, price=pl.String, brand=pl.String)
n = finish(pl.scan_ndjson(FILE, schema=schema, ignore_errors=True).select(FIELDS).collect().to_pandas())''',
    "duckdb": READ + '''
marked = db.execute("select rowid as rid, title from everything where title like '%&%'").df()
marked["plain"] = [html.unescape(t) for t in marked["title"]]
PRICES = "[replace(p, ',', '')::double for p in regexp_extract_all(price, '[0-9][0-9,]*([.][0-9]{1,2})?')[:2]]"
TITLE = "nullif(trim(regexp_replace(regexp_replace(nfc_normalize(coalesce(m.plain, e.title)), '[\\\\p{Cf}\\\\p{Cs}\\\\p{Co}]', '', 'g'), '[[:space:][:cntrl:]]+', ' ', 'g')), '')"
PAGE = " or ".join(f"contains(e.title, '{sign}')" for sign in ("getTime()", "aPageStart", "<script", "<!doctype", "<html", "function(", "document.write", "window.ue"))
db.execute(f\"\"\"create table tidied as select e.rowid as rid, asin, {TITLE} as title, category, urls, list_filter(also_buy, lambda t: t <> asin) as also_buy, list_filter(also_view, lambda t: t <> asin) as also_view,
    list_min({PRICES}) as price, list_max({PRICES}) as price_high, brand, case when asin is null then 'no asin' when coalesce(len(urls), 0) = 0 then 'no picture' when {PAGE} then 'title is page code' end as reason
    from everything e left join marked m on e.rowid = m.rid\"\"\")
by_category("tidied"); by_title("tidied")
FILLED = "(title is not null)::int + (coalesce(len(also_buy), 0) > 0)::int + (coalesce(len(also_view), 0) > 0)::int + (coalesce(len(category), 0) > 0)::int + (price is not null)::int * 2 + (coalesce(brand, '') <> '')::int"
db.execute(f\"\"\"create table judged as select r.* exclude (reason), {LABEL} as ground_truth, coalesce(reason, case when row_number() over
    (partition by asin, reason is null order by {FILLED} + ({LABEL} is not null)::int desc, rid) > 1 then 'duplicate asin' end) as reason from tidied r {JOINS}\"\"\")
db.execute(f"copy (select asin, left(title, 80) as title, reason from judged where reason is not null order by rid) to '{OUT}.quarantine' (format parquet)")
db.execute("create table raw as select * exclude (reason) from judged where reason is null")
keys = db.execute("select rid, trim(regexp_replace(lower(title), '[^a-z0-9_]+', ' ', 'g')) as words, urls[1] as url from raw order by rid").df()
groups = pd.DataFrame({"rid": keys["rid"], "group": connected_groups([w if isinstance(w, str) and w.count(" ") > 2 else None for w in keys["words"]], keys["url"].tolist())})
inside = lambda name: f\"\"\"(select rid, list(t order by place) as {name} from (select rid, t, min(place) as place from (select rid, unnest({name}) as t, generate_subscripts({name}, 1) as place from raw) e
    where t in (select asin from raw) group by rid, t) group by rid)\"\"\"
db.execute(f\"\"\"copy (select r.asin, title, urls as imageURLHighRes, coalesce(i.also_buy, []) as also_buy, coalesce(v.also_view, []) as also_view, array_to_string(category, ' | ') as category, ground_truth, brand,
        price, price_high, g.group from raw r left join {inside('also_buy')} i using (rid) left join {inside('also_view')} v using (rid) left join groups g using (rid) order by rid) to '{OUT}' (format parquet)\"\"\")
n = db.execute(f"select count(*) from '{OUT}'").fetchone()[0]''',
    "duckdb, 6 columns": READ + '''
db.execute(\"\"\"create table raw as select distinct on (asin) asin as rid, asin, title, category, urls, also_buy from everything where asin is not null and coalesce(len(urls), 0) > 0 and coalesce(title, '') not like '%getTime()%'\"\"\")
by_category("raw"); by_title("raw")
TITLE = "trim(regexp_replace(replace(replace(r.title, '&amp;', '&'), '&quot;', chr(34)), '[[:space:]]+', ' ', 'g'))"
inside = "(select e.asin, list(distinct e.t) as also_buy from (select asin, unnest(also_buy) as t from raw) e semi join raw r on e.t = r.asin where e.t <> e.asin group by 1)"
db.execute(f\"\"\"copy (select r.asin, {TITLE} as title, urls as imageURLHighRes, coalesce(i.also_buy, []) as also_buy, array_to_string(category, ' | ') as category, {LABEL} as ground_truth
    from raw r left join {inside} i using (asin) {JOINS}) to '{OUT}' (format parquet)\"\"\")
n = db.execute(f"select count(*) from '{OUT}'").fetchone()[0]''',
}
TIMED = "\nprint(json.dumps(dict(n=n, seconds=time.perf_counter() - begin)))"


def generate(path, n, seed=0, broken=.001):
    "Products in the shape and field mix of the 2018 metadata, about 1.2 kB each; a share of the lines is broken"
    draw = np.random.default_rng(seed)
    words = "Women Men Cotton Slim Fit Dress Shirt Leather Boots Casual Summer Jacket Sneakers Running Vintage Floral Print Long Sleeve Black Blue Navy Red Classic Denim Jean Sandal Hat Scarf Skirt Shorts Watch Band Necklace Sterling Silver Ring Hoodie Sweater &amp;".split()
    kinds = [["Women", "Clothing", "Dresses", "Casual"], ["Men", "Shoes", "Athletic", "Running"], ["Women", "Jewelry", "Rings"], ["Men", "Clothing", "Shirts", "T-Shirts"], ["Women", "Clothing", "Jeans"], ["Men", "Clothing", "Jackets & Coats"], ["Novelty & More"]]
    bullets = ["Imported", "Machine Wash", "100% Cotton", "Rubber sole", "Hand wash only"]
    say = lambda k: " ".join(words[i] for i in draw.integers(0, len(words), k))
    asins = lambda most: [f"B{i:09}" for i in draw.integers(0, n, draw.integers(0, most))] if draw.random() < .4 else []
    with gzip.open(path, "wt", compresslevel=4) as f:
        for i in range(n):
            if draw.random() < broken: f.write('{"asin": "half a li\n'); continue
            url = f"https://images-na.ssl-images-amazon.com/images/I/{draw.integers(10**9)}"
            many = int(draw.integers(0, 5))
            f.write(json.dumps({"category": ["Clothing, Shoes & Jewelry", *kinds[draw.integers(len(kinds))], *bullets[:draw.integers(0, 4)]], "tech1": "", "description": [say(draw.integers(5, 50))], "fit": "", "title": say(draw.integers(4, 14)),
                "also_buy": asins(12), "image": [], "tech2": "", "brand": say(1), "feature": [say(8) for _ in range(draw.integers(0, 5))], "rank": "12,345 in Clothing, Shoes & Jewelry (", "also_view": asins(12), "details": {"Shipping Weight:": "8 ounces"},
                "main_cat": "<img src='x'/>", "similar_item": "", "date": "5 star", "price": f"${draw.integers(1, 99)}.99", "asin": f"B{int(draw.integers(n)) if draw.random() < .01 else i:09}", "imageURL": [f"{url}{k}._SR38,50_.jpg" for k in range(many)], "imageURLHighRes": [f"{url}{k}.jpg" for k in range(many)]}) + "\n")


def check(folder, n=20_000):
    "Every way, but the one that makes six columns only, makes the same table"
    import pandas as pd
    file = Path(folder)/"check.json.gz"
    generate(file, n, broken=0)
    tables = {}
    for name in WAYS:
        if name.endswith("6 columns"): continue
        out = Path(folder)/f"check-{name[:4]}.parquet"
        said = run(WAYS[name], file, out)
        assert isinstance(said, dict), f"{name}: {said}"
        tables[name] = pd.read_parquet(f"{out}.d/catalogue.parquet" if name == "fitmatch" else out).sort_values("asin", ignore_index=True)
    ours = tables.pop("fitmatch")
    for name, theirs in tables.items():
        for column in ("asin", "title", "category", "ground_truth", "brand"): assert theirs[column].fillna("").tolist() == ours[column].fillna("").tolist(), (name, column)
        for column in ("imageURLHighRes", "also_buy", "also_view"): assert theirs[column].map(list).tolist() == ours[column].map(list).tolist(), (name, column)
        assert theirs[["price", "price_high"]].astype(float).equals(ours[["price", "price_high"]]), name
        pairs = pd.DataFrame({"ours": ours["group"], "theirs": theirs["group"]}).drop_duplicates()
        assert pairs["ours"].is_unique and pairs["theirs"].is_unique, (name, "group")
    print(f"{', '.join(tables)} make the table that fitmatch makes ({len(ours):,} products of {n:,} rows)")


def run(code, file, out):
    "The way's own figures, or the last line of its error"
    done = subprocess.run([sys.executable, "-c", SHARED + "begin = time.perf_counter()\n" + code + TIMED, str(file), str(out)], capture_output=True, text=True)
    return done.stderr.strip().splitlines()[-1][:120] if done.returncode else json.loads(done.stdout.splitlines()[-1])


def megabytes(pid):
    "Memory of a process and all it has started; what they share counts once"
    total, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        try:
            total += next(int(l.split()[1]) for l in open(f"/proc/{one}/smaps_rollup") if l.startswith("Pss:"))/1000
            waiting += [int(c) for t in os.listdir(f"/proc/{one}/task") for c in open(f"/proc/{one}/task/{t}/children").read().split()]
        except (OSError, StopIteration): pass  # it has ended
    return total


def peak(code, file, out):
    "The most memory, looked at twenty times a second, in a run of its own that is not timed"
    process, most = subprocess.Popen([sys.executable, "-c", SHARED + "begin = 0\n" + code, str(file), str(out)], stderr=subprocess.DEVNULL), 0
    while process.poll() is None: most = max(most, megabytes(process.pid)); time.sleep(.05)
    return most


def compare(file, n, ways, rounds):
    "Prints a row for each way; (names of those that stopped, median seconds and peak memory of fitmatch)"
    out, found = iter(file.parent/f"{file.name}-{i}.parquet" for i in range(1000)), {name: [] for name in ways}
    for _ in range(rounds):
        for name in ways:
            if found[name] is None: continue
            said = run(WAYS[name], file, next(out))
            if isinstance(said, dict): found[name].append(said)
            else: print(f"{name:16} stopped: {said}"); found[name] = None
    for name, runs in found.items():
        if not runs: continue
        seconds, memory = np.median([r["seconds"] for r in runs]), peak(WAYS[name], file, next(out))
        ratio = np.median([theirs["seconds"]/mine["seconds"] for theirs, mine in zip(runs, found["fitmatch"])])
        print(f"{name:16} {seconds:6.2f} s  {n/seconds:9,.0f} rows/s  {memory:6.0f} MB  {runs[0]['n']:,} products  {ratio:5.2f} × the time of fitmatch", flush=True)
        if name == "fitmatch": ours = seconds, memory
    return [name for name, runs in found.items() if not runs], ours


def main(sizes, rounds=3):
    "Prints a table for each size, and how fitmatch grows"
    grown, stopped = {}, []
    with tempfile.TemporaryDirectory() as folder:
        check(folder)
        for n in sizes:
            for broken, ways in ((.001, list(WAYS)), (0, None)):
                if ways is None and (not stopped or n != sorted(sizes)[len(sizes)//2]): continue  # once is enough
                file = Path(folder)/f"meta{n}-{broken}.json.gz"
                generate(file, n, broken=broken)
                print(f"\n{n:,} products, {file.stat().st_size/1e6:.0f} MB gz, {'one line in a thousand' if broken else 'no line'} is broken; {os.cpu_count()} cores, median of {rounds} runs in turn")
                stopped, ours = compare(file, n, ways or ["fitmatch", *stopped], rounds)
                if broken: grown[n] = ours
                file.unlink()
    if len(grown) > 1:
        exponent = np.polyfit(np.log(list(grown)), np.log([s for s, _ in grown.values()]), 1)[0]
        print(f"\nfitmatch from {min(grown):,} to {max(grown):,} products: time grows with the power {exponent:.2f}, memory from {grown[min(grown)][1]:.0f} to {grown[max(grown)][1]:.0f} MB")


if __name__ == "__main__": main([int(a) for a in sys.argv[1:]] or [100_000, 300_000, 1_000_000])
