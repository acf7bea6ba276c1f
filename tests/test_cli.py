"""The command as a user types it: figures on the way through, and one clear line for every mistake."""
import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from nursery import Nursery
from PIL import Image

COMMAND = str(Path(sys.executable).parent/"fitmatch")


@functools.cache
def nursery(): return Nursery("import fitmatch.cli, fitmatch.pipeline, fitmatch.train")


def typed(*arguments):
    "The finished process of the command `fitmatch …` as a user types it"
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=600)


def fitmatch(*arguments):
    "The same, in a fork of a process that has imported it all"
    return nursery().run("from fitmatch.cli import main; main()", *arguments)


def mistake(*arguments, run=fitmatch):
    "The one line a user's mistake gets; anything else fails the test"
    done = run(*arguments)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    complaints = [line for line in lines if line.startswith("fitmatch: ")]
    assert len(complaints) == 1, done.stderr
    return complaints[0]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    "A workspace made by the command from twelve pictures, with its JSON"
    folder = tmp_path_factory.mktemp("cli")
    for label, colour in (("shirts", "#b03030"), ("shoes", "#3040b0")):
        for i in range(6):
            path = folder/"photos"/label/f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.new("RGB", (48, 48), colour)
            image.paste((20*i, 200, 40), (2*i, 5, 2*i + 12, 30 + i))
            image.save(path)
    done = typed("run", folder/"photos", "--out", folder/"workspace", "--json")
    assert done.returncode == 0, done.stderr
    return folder/"workspace", json.loads(done.stdout)


def test_run_prints_one_json_object(workspace):
    path, summary = workspace
    assert summary["products"] == 12 and summary["encoder"] == "fitmatch-cnn" and summary["dim"] == 256
    assert set(summary["kmeans"]) == {"k", "accuracy", "ari", "nmi"} and summary["kmeans"]["k"] == 2
    assert len(summary["pca_explained_variance"]) == 3 and 0 <= summary["mlp_accuracy"] <= 1
    assert "no also_buy" in summary["matching"]["left_out"]
    assert Path(summary["report"]).stat().st_size < 15_000_000
    kept = {p.name for p in path.iterdir()}
    assert {"catalogue.parquet", "quarantine.parquet", "images", "embeddings.lance", "models", "neighbours.parquet", "report.html", "run.json"} <= kept
    assert not list(path.rglob("*.pkl")) and not list(path.rglob("*.partial"))


def test_demo_json(demo_run):
    _, summary = demo_run
    matching = summary["matching"]
    low, high = matching["interval"]
    assert low <= matching["auc"] <= high and matching["leaks"] == 0
    assert {"random", "popularity", "category prior", "cosine", "pair features", "oracle"} == set(matching["baselines"])
    assert sum(summary["refused"].values()) > 0, "the wardrobe has dirty rows on purpose"
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_match_without_also_buy_gives_neighbours(workspace):
    path, _ = workspace
    photo = next((path/"images").rglob("*.png"))
    done = fitmatch("match", photo, "--workspace", path, "-k", 3, "--json")
    answer = json.loads(done.stdout)
    assert done.returncode == 0 and len(answer["neighbours"]) == 3 and answer["matches"] == [] and "no also_buy" in answer["note"]


def test_match_with_also_buy(demo_run):
    path, summary = demo_run
    photo = sorted((path/"images").rglob("*.jpg"))[0]
    answer = json.loads(fitmatch("match", photo, "--workspace", path, "--json").stdout)
    assert answer["threshold"] == summary["matching"]["threshold"]
    assert set(answer["matches"][0]) == {"query", "via", "match", "similarity", "score", "decision"}
    assert all((m["decision"] == "matching") == (m["score"] >= answer["threshold"]) for m in answer["matches"])
    strict = json.loads(fitmatch("match", photo, "--workspace", path, "--threshold", 1.01, "--json").stdout)
    assert {m["decision"] for m in strict["matches"]} == {"skip"}


def test_help_is_quick_and_complete():
    done = typed("--help")
    assert done.returncode == 0 and all(name in done.stdout for name in ("demo", "run", "match", "evaluate", "encoders", "app"))


# Bad input, one by one

def test_empty_folder(tmp_path):
    (tmp_path/"photos").mkdir()
    assert "is empty" in mistake("run", tmp_path/"photos", "--out", tmp_path/"w", run=typed)
    assert not (tmp_path/"w").exists()


def test_folder_without_pictures(tmp_path):
    (tmp_path/"photos").mkdir()
    (tmp_path/"photos"/"list.xlsx").touch()
    assert "no pictures" in mistake("run", tmp_path/"photos", "--out", tmp_path/"w")


def test_missing_source(tmp_path):
    assert "does not exist" in mistake("run", tmp_path/"nowhere", "--out", tmp_path/"w")


def test_corrupt_picture_among_good_ones(photo_folder, tmp_path):
    good = photo_folder/"shirts"/"0.png"
    (photo_folder/"shirts"/"half.png").write_bytes(good.read_bytes()[:200])
    (photo_folder/"shirts"/"renamed.jpg").write_text("%PDF-1.7 not a picture")
    done = fitmatch("run", photo_folder, "--out", tmp_path/"w", "--json")
    summary = json.loads(done.stdout)
    assert done.returncode == 0 and summary["products"] == 12
    assert summary["refused"] == {"corrupt picture": 1, "not a picture": 1}


def test_only_corrupt_pictures(tmp_path):
    (tmp_path/"photos").mkdir()
    for i in range(4): (tmp_path/"photos"/f"{i}.jpg").write_text("no")
    assert "usable pictures" in mistake("run", tmp_path/"photos", "--out", tmp_path/"w")


def test_photo_that_is_no_picture(workspace, tmp_path):
    path, _ = workspace
    letter = tmp_path/"letter.jpg"
    letter.write_text("Dear Sir or Madam")
    done = fitmatch("match", letter, "--workspace", path)
    assert done.returncode == 2 and done.stderr.count("fitmatch: ") == 1 and "not a picture" in done.stderr and "Traceback" not in done.stderr


def test_good_photos_are_answered_beside_a_bad_one(workspace, tmp_path):
    path, _ = workspace
    photo = next((path/"images").rglob("*.png"))
    done = fitmatch("match", photo, tmp_path/"gone.jpg", "--workspace", path, "--json")
    answer = json.loads(done.stdout)
    assert done.returncode == 2 and len(answer["neighbours"]) == 5 and list(answer["refused"]) == [str(tmp_path/"gone.jpg")]


def test_unknown_encoder_suggests_the_nearest(photo_folder, tmp_path):
    line = mistake("run", photo_folder, "--out", tmp_path/"w", "--encoder", "resnet81")
    assert "resnet18" in line and "fitmatch" in line


def test_weights_that_do_not_fit(photo_folder, tmp_path, real_weights):
    line = mistake("run", photo_folder, "--out", tmp_path/"w", "--encoder", "resnet18", "--weights", real_weights("squeezenet1_1.safetensors"))
    assert "squeezenet1_1.safetensors" in line
    assert not (tmp_path/"w").exists()


def test_weights_that_are_no_weights(photo_folder, tmp_path):
    (tmp_path/"w.safetensors").write_bytes(b"nonsense")
    assert "w.safetensors" in mistake("run", photo_folder, "--out", tmp_path/"w", "--encoder", "resnet18", "--weights", tmp_path/"w.safetensors")


def test_workspace_of_another_encoder(workspace):
    path, _ = workspace
    before = (path/"run.json").read_bytes()
    assert "another folder" in mistake("run", path.parent/"photos", "--out", path, "--encoder", "pixels")
    assert (path/"run.json").read_bytes() == before


def test_workspace_of_another_source(workspace, photo_folder):
    path, _ = workspace
    assert "holds the products of" in mistake("run", photo_folder, "--out", path)


def test_no_workspace(workspace, tmp_path):
    photo = next((workspace[0]/"images").rglob("*.png"))
    assert "no fitmatch workspace" in mistake("match", photo, "--workspace", tmp_path)


def test_out_is_a_file(photo_folder, tmp_path):
    (tmp_path/"w").write_text("in the way")
    assert "is a file" in mistake("run", photo_folder, "--out", tmp_path/"w")
    assert (tmp_path/"w").read_text() == "in the way"


def test_mistyped_option(photo_folder):
    assert "--out" in mistake("run", photo_folder)
    assert "No such option" in mistake("run", photo_folder, "--uot", "w")


def _mounted(folder, options):
    "A small disk of its own; skips where this user may not mount one"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True) if shutil.which("mount") else None
    if done is None or done.returncode: pytest.skip("a small disk can only be mounted by root")
    return folder


def test_full_disk_loses_nothing(photo_folder, tmp_path):
    disk = _mounted(tmp_path/"disk", "size=200k")
    try:
        (disk/"mine.txt").write_text("precious")
        line = mistake("run", photo_folder, "--out", disk/"w")
        assert "the disk is full" in line
        assert (disk/"mine.txt").read_text() == "precious" and not list(disk.rglob("*.partial"))
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)       # some space is freed
        done = fitmatch("run", photo_folder, "--out", disk/"w", "--json")
        assert done.returncode == 0 and json.loads(done.stdout)["products"] == 12          # and the same command goes on
    finally: subprocess.run(["umount", str(disk)], check=True)


def test_read_only_disk(photo_folder, tmp_path):
    disk = _mounted(tmp_path/"disk", "ro")
    try: assert "read-only" in mistake("run", photo_folder, "--out", disk/"w")
    finally: subprocess.run(["umount", str(disk)], check=True)


def test_source_pictures_are_left_alone(photo_folder, tmp_path):
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in photo_folder.rglob("*.png")}
    assert fitmatch("run", photo_folder, "--out", tmp_path/"w", "--json").returncode == 0
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in photo_folder.rglob("*.png")} == before


def test_out_inside_the_source_is_refused(photo_folder):
    assert "inside the source" in mistake("run", photo_folder, "--out", photo_folder/"w")


def test_an_encoder_of_ones_own(tmp_path, photo_folder):
    "Trained on a folder, then used"
    own = tmp_path/"mine.safetensors"
    done = fitmatch("train-encoder", "--data", photo_folder, "--out", own, "--views", 6, "--epochs", 1, "--wardrobes", "", "--work", tmp_path/"work")
    assert done.returncode == 0, done.stderr
    assert f"next       fitmatch run photos/ --weights {own}" in done.stdout and "wardrobe label" in done.stdout
    notes = json.loads(own.with_suffix(".json").read_text())
    assert notes["network"] == "FashionCNN" and notes["pictures"] == {"photos": 12, "views": 72} and notes["bytes"] == own.stat().st_size
    done = fitmatch("run", photo_folder, "--weights", own, "--out", tmp_path/"w", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["dim"] == 256


@pytest.mark.parametrize("options,says", [(("--wardrobes", "one"), "whole numbers"), (("--wardrobes", "0"), "seed 0"), (("--network", "VGG"), "FashionCNN or FashionNet"),
                                          (("--teacher", "none.safetensors"), "no weights file"), (("--epochs", "0"), "epochs")])
def test_mistakes_of_a_training(photo_folder, tmp_path, options, says):
    assert says in mistake("train-encoder", "--data", photo_folder, "--out", tmp_path/"x.safetensors", "--work", tmp_path/"w", *options)
    assert not (tmp_path/"x.safetensors").exists()


# The app: what is started, for whom, and what is said

@pytest.fixture
def started(monkeypatch):
    "What the command would have become"
    import os
    calls = []
    monkeypatch.setattr(os, "execve", lambda file, command, variables: calls.append((command, variables)) or sys.exit(0))
    monkeypatch.delenv("FITMATCH_WORKSPACE", raising=False)
    return calls


def app(*arguments):
    from fitmatch.cli import run_command_line
    with pytest.raises(SystemExit): run_command_line(["app", *map(str, arguments)])


@pytest.mark.parametrize("flags, address", [((), "--Voila.ip=127.0.0.1"), (("--streamlit",), "--server.address=127.0.0.1")])
def test_app_listens_to_this_machine_only(started, capsys, monkeypatch, flags, address):
    monkeypatch.setenv("FITMATCH_WORKSPACE", "left over")
    app(*flags)
    command, variables = started[0]
    assert address in command and Path(command[3] if not flags else command[4]).is_file() and "FITMATCH_WORKSPACE" not in variables
    said = capsys.readouterr()
    assert "http://127.0.0.1:" in said.out and said.err == ""


def test_app_says_when_others_can_see_it(started, capsys):
    app("--host", "0.0.0.0", "--port", "9000", "--no-browser")
    assert "--Voila.ip=0.0.0.0" in started[0][0] and "--no-browser" in started[0][0]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "everyone who reaches this machine" in said and "0.0.0.0" in said


def test_app_without_its_server(capsys, monkeypatch):
    import importlib.util
    from fitmatch.cli import run_command_line
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run_command_line(["app"]) == 2 and "pip install 'fitmatch[app]'" in capsys.readouterr().err


def test_app_passes_on_what_was_typed(started, demo_run, monkeypatch):
    "The page's server works in another folder: it opens the real path and shows the one that was typed"
    from fitmatch.cards import MAX_UPLOAD, open_shop
    workspace, _ = demo_run
    monkeypatch.chdir(workspace.parent)
    app("--workspace", workspace.name)
    command, variables = started[0]
    assert variables["FITMATCH_WORKSPACE"] == str(workspace.resolve()) and variables["FITMATCH_TYPED"] == workspace.name
    assert f"--Voila.tornado_settings={{'websocket_max_message_size': {MAX_UPLOAD + 10**6}}}" in command and variables["FITMATCH_UPLOAD"]
    for name in ("FITMATCH_WORKSPACE", "FITMATCH_TYPED"): monkeypatch.setenv(name, variables[name])
    assert open_shop(variables["FITMATCH_WORKSPACE"]).code == f"shop = open_shop({workspace.name!r})"
    assert open_shop(workspace.name).code == f"shop = open_shop({workspace.name!r})"


def test_app_of_no_workspace(tmp_path):
    assert "is no fitmatch workspace" in mistake("app", "--workspace", tmp_path)
