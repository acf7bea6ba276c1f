"""Real input, where it is at hand: phone photos and a judged match set."""
import json
import subprocess
import sys
from pathlib import Path

COMMAND = str(Path(sys.executable).parent/"fitmatch")
MEASURED = "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr); sys.exit(code)"


def measured(*arguments):
    "(JSON, peak memory in MB) of a command"
    done = subprocess.run([sys.executable, "-c", MEASURED, COMMAND, *map(str, arguments), "--json"], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout), int(done.stderr.strip().splitlines()[-1])/1000


def test_clothes_photos(real_data, real_weights, tmp_path):
    weights = real_weights("squeezenet1_1.safetensors")
    summary, megabytes = measured("run", real_data("clothes-cc0", "train"), "--out", tmp_path/"w", "--encoder", "squeezenet1_1", "--weights", weights)
    print(f"\nclothes photos: MLP {summary['mlp_accuracy']:.3f}, {summary['seconds']['total']:.0f} s, {megabytes:.0f} MB")
    assert summary["products"] == 3068 and summary["dim"] == 512 and summary["mlp"]["parameters"] == 32832 + 2080 + 33*10
    assert summary["mlp_accuracy"] >= 0.78 and summary["mlp_accuracy"] > summary["mlp"]["majority"]
    assert "no also_buy" in summary["matching"]["left_out"]
    assert megabytes < 2000 and Path(summary["report"]).stat().st_size < 15_000_000


def test_evaluate_images(real_data, real_weights):
    found, _ = measured("evaluate", "images", "--train", real_data("clothes-cc0", "train"), "--test", real_data("clothes-cc0", "validation"),
                        "--encoder", "squeezenet1_1", "--weights", real_weights("squeezenet1_1.safetensors"))
    print(f"\nvalidation: MLP {found['mlp_accuracy']:.3f} {found['mlp_interval']}, kMeans {found['kmeans_accuracy']:.3f}")
    assert found["mlp_accuracy"] >= 0.80 and found["n_test"] == 341
    assert {"mlp_accuracy", "kmeans_accuracy", "ari", "nmi"} <= set(found)


def test_indico_goes_all_the_way_to_matching(real_data, real_weights, tmp_path):
    summary, _ = measured("run", real_data("indico-matching"), "--out", tmp_path/"w", "--encoder", "squeezenet1_1", "--weights", real_weights("squeezenet1_1.safetensors"))
    assert summary["products"] == 105 and summary["edges"] == 281
    assert "auc" in summary["matching"] and summary["matching"]["leaks"] == 0
    shirt = next((tmp_path/"w"/"images"/"training_shirts").glob("*.jpg"))
    answer, _ = measured("match", shirt, "--workspace", tmp_path/"w")
    assert answer["matches"] and all(m["match"].startswith("pants-") for m in answer["matches"])
