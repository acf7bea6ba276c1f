"""Pictures a second from JPEG files to stored vectors, against img2vec_pytorch one at a time.

    python benchmarks/bench_embed.py PHOTOS [--pictures 1024] [--rounds 3] [--weights resnet18.safetensors]

PHOTOS is a folder of JPEGs. Without `--weights` ResNet-18 has random weights: the time is the same. Every way takes its turn in every round, each
between two turns of img2vec on a part of the pictures, and the factors are medians over the rounds. On a machine that does other things besides, the
clock flatters us: img2vec's many small steps wait for each other. Then OMP_NUM_THREADS=1 and the factor of processor time say what is certain. An runtime that is not installed is left out. Prints a Markdown table."""
import argparse
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

import fitmatch.encoders as encoders
from fitmatch.catalogue import FitmatchError, select
from fitmatch.embed import EmbeddingStore, _cpu_flags, embed, fast
from fitmatch.encoders import load_encoder
from fitmatch.images import check_images
from fitmatch.sources import read_folder

WAYS = [("resnet18", "torch", "float32"), ("resnet18", "torch", "bfloat16"), ("resnet18", "onnxruntime", "float32"), ("resnet18", "openvino", "float32"),
        ("resnet18", "openvino", "bfloat16"), ("resnet18", "auto", "auto"), ("fitmatch-cnn", "auto", "auto"), ("fitmatch-cnn", "torch", "bfloat16")]


def peak() -> float:
    "Most memory so far, GB. `getrusage` would count the parent's where this process was started by another"
    status = Path("/proc/self/status")
    if status.exists(): return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])/1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e6


def img2vec(weights: Path):
    "Function embedding files one at a time with img2vec_pytorch's ResNet-18"
    from img2vec_pytorch import Img2Vec
    with encoders.provided_weights(encoders.read_weights(weights)): extractor = Img2Vec(cuda=False, model="resnet18")
    return lambda paths: np.stack([extractor.get_vec(Image.open(path).convert("RGB")) for path in paths])


def rate(work, n: int) -> float:
    "Pictures a second"
    return n/timed(work)[0]


def timed(work) -> tuple:
    "(seconds on the clock, seconds of processor time on all cores)"
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu


def stored(catalogue, encoder, runtime, precision):
    "Embeds into a new store"
    with tempfile.TemporaryDirectory() as folder: return embed(catalogue, encoder, EmbeddingStore(folder, encoder), progress=False, runtime=runtime, precision=precision)


def fidelity(X, exact) -> float:
    "The least centred cosine between rows"
    A, B = X - X.mean(0), exact - exact.mean(0)
    return float(((A*B).sum(1)/np.linalg.norm(A, axis=1)/np.linalg.norm(B, axis=1)).min())


def growth(args, weights):
    "One row: seconds for a quarter, half and all of the pictures, in turn"
    encoder = load_encoder(args.growth, weights=weights if args.growth == "resnet18" else None, device="cpu")
    catalogue, built, before = check_images(read_folder(args.photos), progress=False), fast(encoder), peak()
    sizes = [args.pictures//4, args.pictures//2, args.pictures]
    rounds = [[k/rate(lambda: stored(select(catalogue, np.arange(k)), encoder, "auto", "auto"), k) for k in sizes] for _ in range(args.rounds + 1)][1:]
    seconds = np.median(rounds, axis=0)
    print(f"| {args.growth} | {built.runtime} | {built.precision} | " + " | ".join(f"{s:.1f}" for s in seconds) + f" | {np.polyfit(np.log(sizes), np.log(seconds), 1)[0]:.2f} | {peak():.2f} ({before:.2f}) |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--pictures", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", type=int, default=64, help="pictures for img2vec in each turn")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--growth", choices=("resnet18", "fitmatch-cnn"), help="only how time grows with the pictures, for one encoder")
    args = parser.parse_args()
    folder = tempfile.TemporaryDirectory()
    weights = args.weights or Path(folder.name)/"resnet18.safetensors"
    if args.weights is None:
        torch.manual_seed(0)
        save_file({k: v.contiguous() for k, v in encoders._backbone("resnet18").state_dict().items()}, weights)
    if args.growth: growth(args, weights); sys.exit()
    catalogue = check_images(read_folder(args.photos), progress=False)
    catalogue = select(catalogue, np.arange(min(args.pictures, len(catalogue))))
    paths, n = [catalogue.image_path(i) for i in range(len(catalogue))], len(catalogue)
    loaded = {"resnet18": load_encoder("resnet18", weights=weights, device="cpu"), "fitmatch-cnn": load_encoder("fitmatch-cnn", device="cpu")}
    theirs, some, ways = img2vec(weights), paths[:args.peer], []
    theirs(some[:8])
    exact = {name: stored(select(catalogue, np.arange(min(n, 200))), encoder, "torch", "float32") for name, encoder in loaded.items()}
    for name, runtime, precision in WAYS:
        try:
            start = time.perf_counter()
            built = fast(loaded[name], runtime, precision)
            first = stored(select(catalogue, np.arange(min(n, 200))), loaded[name], runtime, precision)
            ways.append((name, runtime, precision, built, time.perf_counter() - start, fidelity(first, exact[name])))
        except FitmatchError as e: print(f"left out: {e}")
    flags = [flag for flag in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if _cpu_flags().get(flag)]
    print(f"{n:,} JPEGs of {Path(args.photos).name}, {platform.machine()} with {', '.join(flags)}, {torch.get_num_threads()} threads, torch {torch.__version__}, {args.rounds} rounds\n", flush=True)

    rates, peers = {way[:3]: [] for way in ways}, {way[:3]: [] for way in ways}
    for _ in range(args.rounds):
        for name, runtime, precision, *_ in ways:
            before, ours, after = timed(lambda: theirs(some)), timed(lambda: stored(catalogue, loaded[name], runtime, precision)), timed(lambda: theirs(some))
            rates[name, runtime, precision].append(np.array(ours)/n)
            peers[name, runtime, precision].append((np.array(before) + np.array(after))/2/len(some))
    print("| encoder | runtime | precision | pictures/s | img2vec beside it | factor (least to most) | processor time a picture, ms | img2vec's | factor | least centred cosine to float32 |\n|---|---|---|---|---|---|---|---|---|---|")
    for name, runtime, precision, built, _, cosine in ways:
        ours, peer = np.array(rates[name, runtime, precision]), np.array(peers[name, runtime, precision])
        factor, (clock, cpu), (their_clock, their_cpu) = peer/ours, np.median(ours, axis=0), np.median(peer, axis=0)
        chosen = f"{built.runtime} (auto)" if runtime == "auto" else runtime
        print(f"| {name} | {chosen} | {built.precision} | {1/clock:.0f} | {1/their_clock:.1f} | {np.median(factor[:, 0]):.1f} ({factor[:, 0].min():.1f} to {factor[:, 0].max():.1f}) | "
              f"{cpu*1e3:.1f} | {their_cpu*1e3:.1f} | {np.median(factor[:, 1]):.1f} | {cosine:.5f} |", flush=True)

    print("\n| encoder | runtime | precision | " + " | ".join(f"{k} pictures, s" for k in (n//4, n//2, n)) + " | exponent | peak memory (before), GB |\n|---|---|---|---|---|---|---|---|", flush=True)
    for name in loaded:
        command = [sys.executable, __file__, str(args.photos), "--pictures", str(n), "--weights", str(weights), "--rounds", str(args.rounds), "--growth", name]
        subprocess.run(command, check=True)  # memory is of a process, so each has its own
