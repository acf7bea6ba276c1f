"""The same photos embedded by this machine's threads and by Ray on this machine, in turn: what the engine costs once it runs.

    python benchmarks/bench_engine.py PHOTOS [--pictures 3000] [--rounds 3] [--encoder resnet18]

Ray's workers start anew for each run and import PyTorch; "started after" is the time until the first vectors. The rate is counted from there to the end, for both alike; "whole run" is all of it.
ResNet-18 has random weights: they cost what trained ones cost. Prints a Markdown table."""
import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from fitmatch.catalogue import select
from fitmatch.embed import _by_ray, _by_threads
from fitmatch.encoders import load_encoder
from fitmatch.engine import start_ray
from fitmatch.images import check_images
from fitmatch.sources import read_folder

from bench_capacity import resnet18
from run import machine


def run(way, catalogue, encoder):
    "(seconds to the first vectors, pictures a second from there on, seconds in all)"
    begin, times, rows = time.perf_counter(), [], []
    for some, _ in way(catalogue, encoder, None, "torch", "float32")[1](np.arange(len(catalogue))):
        times.append(time.perf_counter()); rows.append(len(some))
    assert sum(rows) == len(catalogue)
    return times[0] - begin, sum(rows[1:])/(times[-1] - times[0]), times[-1] - begin


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("photos", type=Path); parser.add_argument("--pictures", type=int, default=3000); parser.add_argument("--rounds", type=int, default=3); parser.add_argument("--encoder", default="resnet18")
    args = parser.parse_args()
    catalogue = check_images(read_folder(args.photos), progress=False)
    catalogue = select(catalogue, np.arange(min(args.pictures, len(catalogue))))
    with tempfile.TemporaryDirectory() as folder: encoder = load_encoder(args.encoder, weights=resnet18(Path(folder)) if args.encoder == "resnet18" else None, device="cpu")
    print(f"{len(catalogue)} pictures, {args.encoder}, float32; {machine()}; {start_ray()}\n", flush=True)
    ways, found = {"threads": _by_threads, "Ray": _by_ray}, {"threads": [], "Ray": []}
    for way in ways.values(): run(way, select(catalogue, np.arange(200)), encoder)   # what is built once
    for _ in range(args.rounds):
        for name, way in ways.items(): found[name].append(run(way, catalogue, encoder))
    print("| who | started after, s | pictures/s | whole run, s | time a picture, × threads |\n|---|---|---|---|---|")
    for name, values in found.items():
        started, rate, whole = np.median(values, axis=0)
        ratio = np.median([a[1]/b[1] for a, b in zip(found["threads"], values)])
        print(f"| {name} | {started:.1f} | {rate:.0f} | {whole:.1f} | {ratio:.2f} |")
