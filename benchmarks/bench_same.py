"""The commands of every chapter on this machine and on Ray: the same figures?

    python benchmarks/bench_same.py [--data DIR] [--only demo,wardrobe,…]

Prints Markdown. Each command is run twice in fresh workspaces, with FITMATCH_ENGINE=local and =ray, and what it prints with `--json` is compared number by number; seconds, rates, places and numbers of commits are left out. `--data` (default: FITMATCH_DATA) is the
folder of the public data sets; commands whose data are not there are left out and named. Without RAY_ADDRESS each command starts a small cluster of its own, whose start is in its seconds."""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LEFT_OUT = {"seconds", "pictures_per_second", "report", "path", "engine", "workspace", "source", "out", "rows_per_second", "version"}


def commands(data: Path, folder: Path) -> list:
    "(name, what must be there, arguments); a workspace is `folder`"
    clothes, w = data/"clothes-cc0", folder/"w"
    return [("demo", None, ["demo", "--out", folder/"d"]),
            ("run", clothes, ["run", clothes/"train", "--labels", "folders", "--out", w]),
            ("prepare", data/"amazon-2018-sample", ["prepare", data/"amazon-2018-sample"/"meta_AMAZON_FASHION.csv", "--out", folder/"p"]),
            ("prepare FashionVC", data/"fashionvc", ["prepare", data/"fashionvc", "--out", folder/"f"]),
            ("prepare a folder", clothes, ["prepare", clothes/"train", "--labels", "folders", "--out", folder/"e"]),
            ("embed", clothes, ["embed", folder/"e"]),
            ("index", clothes, ["index", folder/"e"]),
            ("neighbours", clothes, ["neighbours", folder/"e"]),
            ("match", clothes, ["match", next(iter(sorted((clothes/"validation").rglob("*.jp*g"))), "none"), "--workspace", w]),
            ("evaluate images", clothes, ["evaluate", "images", "--train", clothes/"train", "--test", clothes/"validation"]),
            ("evaluate wardrobe", None, ["evaluate", "wardrobe", "--products", "1200"]),
            ("evaluate indico", data/"indico-matching", ["evaluate", "indico", "--data", data/"indico-matching"]),
            ("evaluate fashionvc", data/"fashionvc", ["evaluate", "fashionvc", "--data", data/"fashionvc"]),
            ("evaluate amazon-graph", data/"amazon-2014-graph", ["evaluate", "amazon-graph", "--data", data/"amazon-2014-graph"])]


def figures(value, name="") -> dict:
    "{where: number or text} of everything in a JSON value"
    if isinstance(value, dict): return {k: v for key, part in value.items() if key not in LEFT_OUT for k, v in figures(part, f"{name}.{key}").items()}
    if isinstance(value, list): return {k: v for i, part in enumerate(value) for k, v in figures(part, f"{name}[{i}]").items()}
    return {name: value}


def asked(arguments, engine: str, folder) -> tuple:  # figures, seconds
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", "from fitmatch.cli import main; main()", *map(str, arguments), "--json"], env={**os.environ, "FITMATCH_ENGINE": engine}, capture_output=True, text=True)
    if done.returncode: sys.exit(f"{' '.join(map(str, arguments))} with engine {engine} ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return figures(json.loads(done.stdout.replace(str(folder), "W"))), time.perf_counter() - start


def compared(one: dict, other: dict) -> str:
    "In words"
    if one.keys() != other.keys(): return f"not the same: {sorted(one.keys() ^ other.keys())[:3]}"
    numbers = [k for k in one if isinstance(one[k], float) and isinstance(other[k], float)]
    texts = [k for k in one if k not in set(numbers) and one[k] != other[k]]
    if texts: return f"not the same: {texts[0]} is {one[texts[0]]!r} and {other[texts[0]]!r}"
    most = max((abs(one[k] - other[k]) for k in numbers), default=0)
    return f"the same, {len(one)} figures" if most == 0 else f"{len(one)} figures, the largest difference {most:.1e}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("FITMATCH_DATA", "no-such-folder")))
    parser.add_argument("--only", default="", help="names, with commas")
    args = parser.parse_args()
    print("| `fitmatch …` | figures | local, s | Ray, s |", "|---|---|---|---|", sep="\n")
    left = []
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        pairs = zip(commands(args.data, Path(one)), commands(args.data, Path(other)))
        for (name, needs, here), (_, _, there) in pairs:
            if args.only and name not in args.only.split(","): continue
            if needs and not needs.exists(): left.append(name); continue
            (a, t), (b, u) = asked(here, "local", one), asked(there, "ray", other)
            print(f"| {name} | {compared(a, b)} | {t:.1f} | {u:.1f} |", flush=True)
    print(f"\n{'Left out, their data are not there: ' + ', '.join(left) + '. ' if left else ''}Load {os.getloadavg()[0]:.1f} at the end.")
