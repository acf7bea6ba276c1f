"""The whole way on odd sources: tiny, unlabelled, strangely named, and twice."""
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fitmatch.catalogue import FitmatchError, load_catalogue
from fitmatch.pipeline import evaluate_images, match_photos, run


def textured(path, seed, tint=(120, 120, 120)):
    "A picture of its own"
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-60, 60, (40, 40, 3))
    Image.fromarray((np.array(tint) + noise).clip(0, 255).astype(np.uint8)).save(path)


def without_times(summary):
    return {k: v for k, v in summary.items() if k != "seconds"}


@pytest.mark.parametrize("n", [3, 4, 9])
def test_a_few_unlabelled_pictures(n, tmp_path):
    for i in range(n): textured(tmp_path/"photos"/f"{i}.png", i)
    summary = run(tmp_path/"photos", tmp_path/"w", encoder="pixels", progress=False)
    assert summary["products"] == n and summary["mlp_accuracy"] is None and len(summary["notes"]) == 2
    assert (tmp_path/"w"/"report.html").is_file()


def test_two_pictures_are_too_few(tmp_path):
    for i in range(2): textured(tmp_path/"photos"/f"{i}.png", i)
    with pytest.raises(FitmatchError, match="at least 3"): run(tmp_path/"photos", tmp_path/"w", encoder="pixels", progress=False)


def test_pictures_that_are_all_the_same(tmp_path):
    for i in range(8): textured(tmp_path/"photos"/f"{'ab'[i % 2]}"/f"{i}.png", 0)
    summary = run(tmp_path/"photos", tmp_path/"w", encoder="pixels", progress=False)
    assert summary["products"] == 8 and load_catalogue(tmp_path/"w").products["group"].nunique() == 1


def test_strange_names_stay_text(tmp_path):
    names = ["<script>alert(1)</script>", "$\\frac{1}{2}$", "%{x}", "ünïcödé 服", "it's \"quoted\""]
    for i, name in enumerate(names):
        for j in range(4): textured(tmp_path/"photos"/name.replace("/", "∕")/f"{j}.png", 10*i + j, (40*i, 120, 200 - 40*i))
    summary = run(tmp_path/"photos", tmp_path/"w", encoder="pixels", progress=False)
    page = (tmp_path/"w"/"report.html").read_text(encoding="utf-8")
    assert summary["products"] == 20 and len(summary["labels"]) == 5
    assert "<script>alert" not in page


@pytest.fixture
def shop(tmp_path):
    "A catalogue file with purchases: tops go with the shoes of their colour"
    rows = []
    for i in range(40):
        for label, base in (("tops", 60), ("shoes", 160)):
            textured(tmp_path/"shop"/f"{label}{i}.png", 100*i + base, (base, 250 if i % 2 else 20, 80))
            other = "shoes" if label == "tops" else "tops"
            rows.append(dict(asin=f"{label}{i}", image=f"{label}{i}.png", ground_truth=label, also_buy=[f"{other}{(i + 2*k) % 40}" for k in range(4)]))
    pd.DataFrame(rows).to_json(tmp_path/"shop"/"shop.jsonl", orient="records", lines=True)
    return tmp_path/"shop"/"shop.jsonl"


def test_catalogue_file_goes_all_the_way_to_matches(shop, tmp_path):
    summary = run(shop, tmp_path/"w", encoder="pixels", progress=False)
    matching = summary["matching"]
    assert summary["products"] == 80 and matching["leaks"] == 0 and matching["interval"][0] <= matching["auc"] <= matching["interval"][1]
    assert matching["baselines"]["category prior"]["auc"] == 0.5
    answer = match_photos([shop.parent/"tops3.png"], tmp_path/"w")
    bought = dict(zip(*(load_catalogue(tmp_path/"w").products[c] for c in ("asin", "also_buy"))))
    assert len(answer["matches"]) and all(m.match in bought[m.via] for m in answer["matches"].itertuples())
    assert set(answer["matches"]["via"]) <= set(answer["neighbours"]["neighbour"])
    assert len(answer["neighbours"]) == 5 and answer["threshold"] == matching["threshold"]


def test_the_same_source_gives_the_same_figures(shop, tmp_path):
    first = without_times(run(shop, tmp_path/"a", encoder="pixels", progress=False))
    second = without_times(run(shop, tmp_path/"b", encoder="pixels", progress=False))
    again = without_times(run(shop, tmp_path/"a", encoder="pixels", progress=False))
    for other in (second, again): assert {**other, "report": first["report"]} == first
    assert (tmp_path/"a"/"neighbours.parquet").read_bytes() == (tmp_path/"b"/"neighbours.parquet").read_bytes()
    assert json.loads((tmp_path/"a"/"run.json").read_text())["matching"] == first["matching"]


def test_evaluate_images_takes_shared_pictures_out_of_training(tmp_path):
    for side, seeds in (("train", range(10)), ("test", range(8, 12))):
        for seed in seeds:
            for label, tint in (("a", (200, 60, 60)), ("b", (60, 60, 200))): textured(tmp_path/side/label/f"{seed}.png", seed, tint)
    found = evaluate_images(tmp_path/"train", tmp_path/"test", encoder="pixels", progress=False)
    assert found["also_in_test"] == 4 and found["n_train"] == 16 and found["n_test"] == 8
    assert found["mlp_accuracy"] == 1 and found["kmeans_accuracy"] == 1 and found["majority"] == 0.5


def test_evaluate_images_with_an_unknown_label(tmp_path):
    for side, labels in (("train", "ab"), ("test", "abc")):
        for label in labels:
            for i in range(4): textured(tmp_path/side/label/f"{i}{side}.png", i + 50*(side == "test"))
    with pytest.raises(FitmatchError, match="labels that .* lacks: c"): evaluate_images(tmp_path/"train", tmp_path/"test", encoder="pixels", progress=False)


def test_a_source_may_be_named_in_two_ways(tmp_path, monkeypatch):
    for i in range(4): textured(tmp_path/"photos"/f"{i}.png", i)
    run(tmp_path/"photos", tmp_path/"w", encoder="pixels", progress=False)
    monkeypatch.chdir(tmp_path/"photos")
    assert run(".", "../w", encoder="pixels", progress=False)["products"] == 4
    assert "photos" in (tmp_path/"w"/"report.html").read_text(encoding="utf-8")


def test_a_products_own_photo_is_no_answer_to_itself(demo_run, tmp_path):
    workspace, _ = demo_run
    products = load_catalogue(workspace).products
    at = int(np.flatnonzero(products["also_buy"].map(len) > 2)[0])
    own, copy, other = workspace/products["image"][at], tmp_path/"renamed.jpg", workspace/products["image"][at + 1]
    copy.write_bytes(own.read_bytes())
    group = set(products["asin"][products["group"] == products["group"][at]])
    for matcher in ("rule", "learned"):
        answer = match_photos([own, other, copy], workspace, matcher=matcher)
        assert answer["own"] == {str(own): products["asin"][at], str(other): products["asin"][at + 1], str(copy): products["asin"][at]}
        for table, columns in ((answer["matches"], ("via", "match")), (answer["neighbours"], ("neighbour",))):
            assert table["query"].drop_duplicates().tolist() == [str(own), str(other), str(copy)]
            mine, again = (table[table["query"] == str(photo)].drop(columns="query").reset_index(drop=True) for photo in (own, copy))
            assert len(mine) and mine.equals(again) and not group & {asin for column in columns for asin in mine[column]}
        assert answer["neighbours"].groupby("query").size().tolist() == [5, 5, 5]


def test_vectors_that_stay_on_disk_give_the_same_run(shop, tmp_path, monkeypatch):
    from fitmatch import embed as embedding, pipeline
    seen, analyse = [], pipeline._analyse
    monkeypatch.setattr(pipeline, "_analyse", lambda catalogue, X, *more: (seen.append(X), analyse(catalogue, X, *more))[1])
    found = []
    for memory in (embedding._memory(), 0):
        monkeypatch.setattr(embedding, "_memory", lambda memory=memory: memory)
        summary = run(shop, tmp_path/f"w{memory}", encoder="fitmatch-cnn", progress=False)
        answer = match_photos([next((tmp_path/"shop").glob("*.png"))], tmp_path/f"w{memory}")
        assert summary["matching"].pop("learned")["auc"] > .6                # its own test allows for rounding
        found.append((without_times(summary) | {"report": None}, pd.read_parquet(tmp_path/f"w{memory}"/"neighbours.parquet"), answer["matches"], answer["neighbours"]))
    assert [type(X).__name__ for X in seen] == ["ndarray", "StoredVectors"]
    (one, near, matches, nearest), (other, *tables) = found
    assert one == other and len(matches)
    for a, b in zip((near, matches, nearest), tables): pd.testing.assert_frame_equal(a, b)
