"""Runs the benchmarks and keeps RESULTS.md: `make bench`, or

    python benchmarks/run.py [--only read,embed,topk,query,pca,kmeans,mlp,growth,scale,run,same] [--photos FOLDER] [--rounds 3]

Every part is a process of its own; what it prints goes between two markers of RESULTS.md, under the machine, the versions and the command. What stands outside
the markers is written by hand and stays. A part that fails, or whose peers are not installed, leaves the old figures and is named at the end."""
import argparse
import datetime
import importlib.metadata as metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE/"RESULTS.md"
MODELS = ("topk", "query", "pca", "kmeans", "mlp", "growth")
PEERS = {"read": "pandas pyarrow msgspec duckdb polars", "embed": "torch torchvision img2vec_pytorch openvino onnxruntime", "topk": "torch faiss-cpu scikit-learn numpy",
         "query": "torch faiss-cpu numpy", "pca": "scikit-learn numpy scipy", "kmeans": "scikit-learn numpy", "mlp": "torch scikit-learn", "growth": "torch scikit-learn numpy",
         "scale": "lancedb torch numpy", "run": "lancedb torch scikit-learn numpy", "same": "ray lancedb torch"}
LONG = ("scale", "run", "same") # a quarter of an hour and more: only when it is named


def machine() -> str:
    "The processor, its cores, the memory and the system, in words"
    try: name = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError): name = platform.processor() or platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE")*os.sysconf("SC_PHYS_PAGES")/2**30 if hasattr(os, "sysconf") else 0
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    return f"{name}, {os.cpu_count()} cores, {memory:.0f} GB, {platform.system()}, Python {platform.python_version()}{load}"


def versions(names: str) -> str:
    found = []
    for name in names.split():
        try: found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError: found.append(f"{name} missing")
    return ", ".join(found)


def command(part: str, args) -> list:
    "What is run for a part: script and arguments, relative to the project"
    if part in MODELS: return ["benchmarks/bench_models.py", "--only", part, "--rounds", str(args.rounds)]
    if part == "embed": return ["benchmarks/bench_embed.py", args.photos or "PHOTOS", "--rounds", str(args.rounds)]
    if part == "scale": return ["benchmarks/bench_scale.py", "--vectors", "1000000", "--kinds", "IVF_PQ,IVF_SQ", "--exact"]
    if part in ("run", "same"): return [f"benchmarks/bench_{part}.py"]
    return ["benchmarks/bench_read.py", "100000", "300000"]


def put(part: str, text: str):
    "Text between the markers of a part; a part that has none yet goes to the end"
    page, begin, end = RESULTS.read_text(encoding="utf-8"), f"<!-- bench:{part} -->", f"<!-- /bench:{part} -->"
    block = f"{begin}\n{text}\n{end}"
    if begin in page: page = page[:page.index(begin)] + block + page[page.index(end) + len(end):]
    else: page = f"{page.rstrip()}\n\n{block}\n"
    RESULTS.write_text(page, encoding="utf-8")


def measure(part: str, args) -> str|None:
    "Runs a part and keeps what it prints; why not, where it fails"
    line = command(part, args)
    if part == "embed" and not args.photos: return "needs a folder of photos: make bench PHOTOS=folder"
    threads = f", OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}" if "OMP_NUM_THREADS" in os.environ else ""
    about = f"`python {shlex.join(line)}`{threads}, {datetime.date.today()}: {machine()}; {versions(PEERS[part])}"
    done = subprocess.run([sys.executable, *line], cwd=HERE.parent, stdout=subprocess.PIPE, text=True)
    if done.returncode: return f"ended with {done.returncode}"
    said = done.stdout.strip()
    print(said, flush=True)
    if part == "read": said = f"### Reading, as measured last\n\n```\n{said}\n```"
    if args.photos: about, said = (text.replace(str(args.photos), "PHOTOS") for text in (about, said))
    put(part, f"{said}\n\n{about}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(part for part in PEERS if part not in LONG), help="which, separated by commas")
    parser.add_argument("--photos", help="folder of JPEGs for bench_embed.py")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    unknown = set(args.only.split(",")) - set(PEERS)
    if unknown: parser.error(f"unknown part {', '.join(sorted(unknown))}: choose from {', '.join(PEERS)}")
    failed = {part: why for part in args.only.split(",") if (why := measure(part, args))}
    for part, why in failed.items(): print(f"{part}: {why}; the figures in RESULTS.md are the old ones", file=sys.stderr)
    sys.exit(bool(set(failed) - {"embed"}))
