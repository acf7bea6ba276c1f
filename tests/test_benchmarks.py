"""The benchmarks give the figures they promise, twice the same, and refuse in words."""
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from fitmatch.benchmarks import evaluate_amazon_graph, evaluate_fashionvc, evaluate_indico, triple_auc
from fitmatch.catalogue import FitmatchError
from fitmatch.cli import run_command_line

DATA = Path(os.environ.get("FITMATCH_DATA", "nowhere"))
needs = lambda name: pytest.mark.skipif(not (DATA/name).is_dir(), reason=f"FITMATCH_DATA has no {name}")


@needs("fashionvc")
def test_fashionvc_reaches_its_target_and_reruns_to_the_last_digit(tmp_path):
    found = evaluate_fashionvc(DATA/"fashionvc")
    print({k: found[k] for k in ("auc", "interval", "n", "seconds")})
    assert found["auc"] >= .74 and found["n"] == 6213 and found["interval"][0] < found["auc"] < found["interval"][1] and found["seconds"] < 300
    assert found["auc"] > max(f["auc"] for f in found["baselines"].values()) + .03 and found["baselines"]["popularity"]["auc"] < .4
    triples = next(DATA.glob("fashionvc/valid_ijk*.txt"))
    some = tmp_path/"test.txt"
    some.write_text("\n".join(triples.read_text().splitlines()[:500]))
    short = dict(n_models=1, settings=dict(epochs=1))
    one, two = (evaluate_fashionvc(DATA/"fashionvc", some, **short) for _ in range(2))
    assert one["auc"] == two["auc"] and one["n"] == 500 and one["judged"] == "test" and one["valid_auc"] == two["valid_auc"]


def test_fashionvc_without_its_files_says_what_is_missing(tmp_path, capsys):
    assert run_command_line(["evaluate", "fashionvc", "--data", str(tmp_path/"none")]) == 2
    assert "fitmatch:" in capsys.readouterr().err
    with pytest.raises(FitmatchError): evaluate_fashionvc(tmp_path)


@needs("indico-matching")
def test_indico_beats_the_prior_and_judges_further_shirts(tmp_path):
    found = evaluate_indico(DATA/"indico-matching", repeats=2)
    print({name: {k: round(v, 3) for k, v in found[name].items() if isinstance(v, float)} for name in ("A", "B", "prior", "unseen_trousers")})
    assert round(found["prior"]["label_accuracy"], 3) == .718 and found["prior"]["macro_auc"] == .5 and found["n"] == 500
    assert found["A"]["label_accuracy"] > .74 and found["A"]["macro_auc"] > .75 and found["B"]["macro_auc"] > .7
    lines = (DATA/"indico-matching"/"clothes_match_labeled_data_1.txt").read_text().splitlines()[:10]
    (tmp_path/"shirts").mkdir()
    (tmp_path/"labels.txt").write_text("\n".join(lines))
    for line in lines: shutil.copy(DATA/"indico-matching"/"training_shirts"/f"{line.partition(':')[0]}.jpg", tmp_path/"shirts")
    further = evaluate_indico(DATA/"indico-matching", test=tmp_path)
    assert further["n"] == 50 and {"label_accuracy", "macro_auc", "micro_auc"} <= set(further["A"]) & set(further["B"]) and further["A"]["micro_auc"] > .8
    with pytest.raises(FitmatchError, match="no name in both"): evaluate_indico(DATA/"indico-matching", test=tmp_path/"shirts")


def test_wardrobe_learned_beats_everything_but_the_oracle(capsys):
    assert run_command_line(["evaluate", "wardrobe", "--products", "500", "--seed", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    print({k: found[k] for k in ("auc", "oracle_auc", "seed_rule_auc", "cosine_auc", "prior_auc", "share_of_oracle", "seconds")})
    assert found["oracle_auc"] > found["auc"] > max(found["seed_rule_auc"], found["cosine_auc"], found["prior_auc"]) + .05
    assert found["lift_interval"][0] > 0 and {"learned: picture", "learned: title", "learned: picture and title"} == set(found["ablation"])


@needs("amazon-2014-graph")
def test_the_category_alone_wins_the_easy_table_and_nothing_else():
    found = evaluate_amazon_graph(DATA/"amazon-2014-graph", regimes=("cold",))
    rows = {row["scorer"]: row for row in found["rows"]}
    assert rows["category prior"]["random_auc"] > .88 and rows["category prior"]["same_category_auc"] == .5
    assert rows["learned"]["same_category_auc"] > .6 and found["interval"][0] > .55 and found["products"] == 23033


def test_triples_won_lost_and_tied():
    score = lambda q, c: np.array([0., 2, 1, 2])[c]
    assert triple_auc(score, np.array([[0, 1, 2], [0, 1, 3], [0, 2, 1], [0, 1, 2]]), n_resamples=20)["auc"] == .625
