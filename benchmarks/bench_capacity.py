"""What one product costs at each stage, in seconds of one processor and in bytes; the page "Capacity" multiplies it.

    python benchmarks/bench_capacity.py PHOTOS     # a folder of photos; keeps benchmarks/capacity.json

ResNet-18 has random weights here: they cost what trained ones cost. Seconds are processor time (user and system, children too), not the clock's: the machine may be busy with other things.
"""
import argparse
import datetime
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fitmatch.catalogue import load_catalogue, select
from fitmatch.embed import EmbeddingStore, embed
from fitmatch.encoders import load_encoder
from fitmatch.images import check_images
from fitmatch.prepare import prepare
from fitmatch.similar import NearestItems
from fitmatch.sources import read_folder

sys.path.insert(0, str(Path(__file__).parent))
from bench_read import generate
from run import machine


def processor():
    "Seconds of processor time so far, of this process and of those it has waited for"
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def cost(work, n, rounds=3):
    "Least processor time of a few rounds, divided by n"
    found = []
    for _ in range(rounds):
        before = processor(); work(); found.append(processor() - before)
    return min(found)/n


def size(folder): return sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())


def reading(folder, n=100_000):
    "Lines of metadata into a clean table"
    source, k = folder/"shop.json.gz", iter(range(9))
    generate(source, n)
    seconds = cost(lambda: prepare(source, folder/f"read{next(k)}", progress=False), n)
    done = folder/"read0"
    kept = len(load_catalogue(done).products)
    memory = subprocess.run([sys.executable, "-c", "import sys, resource\nfrom fitmatch.catalogue import load_catalogue\nused = lambda: int(open('/proc/self/statm').read().split()[1])*resource.getpagesize()\n"
                             "before = used(); catalogue = load_catalogue(sys.argv[1]); print((used() - before)/len(catalogue))", str(done)], capture_output=True, text=True, check=True).stdout
    return dict(seconds_line=seconds, products_line=kept/n, bytes_product=size(done)/kept, memory_product=float(memory))


def resnet18(folder):
    "A file of random weights"
    from safetensors.torch import save_file
    from torchvision.models import resnet18
    save_file({k: v.contiguous() for k, v in resnet18(weights=None).state_dict().items()}, folder/"resnet18.safetensors")
    return folder/"resnet18.safetensors"


def pictures(photos, folder):
    "Opening, embedding with the small network and with ResNet-18; bytes of a picture"
    catalogue = read_folder(photos)
    n, opened = len(catalogue), check_images(catalogue, progress=False)
    found = dict(pictures=n, bytes_picture=float(np.mean([opened.image_path(i).stat().st_size for i in range(len(opened))])), seconds_open=cost(lambda: check_images(catalogue, progress=False), n, 2))
    for name, path in {"fitmatch-cnn": None, "resnet18": resnet18(folder)}.items():
        encoder, some = load_encoder(name, weights=path, device="cpu"), select(opened, np.arange(min(len(opened), 600)))
        embed(select(opened, np.arange(64)), encoder, progress=False)                                # what is built once
        found[f"seconds_embed_{name}"] = cost(lambda encoder=encoder, some=some: embed(some, encoder, progress=False), len(some), 2)
    return found


def vectors(folder, n=20_000, d=512):
    "Bytes of a stored vector, seconds of a comparison"
    draw = np.random.default_rng(0)
    X = (draw.normal(size=(200, d)).repeat(n//200, 0) + draw.normal(size=(n, d))).astype(np.float32)
    store = EmbeddingStore(folder/"vectors", _named(d))
    before = processor()
    with store.writing():
        for s in range(0, n, 4096): store.add([f"B{i:09}" for i in range(s, min(n, s + 4096))], [None]*len(X[s:s + 4096]), X[s:s + 4096])
    seconds = (processor() - before)/n
    return dict(dim=d, seconds_store=seconds, bytes_vector=size(folder/"vectors")/n, seconds_pair=cost(lambda: NearestItems(n_neighbors=10).fit(X).kneighbors(), n*n))


def _named(d):
    "Something that says whose vectors these are"
    from dataclasses import replace
    encoder = load_encoder("pixels", device="cpu")
    encoder.info = replace(encoder.info, name=f"random-{d}", dim=d)
    return encoder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("photos", type=Path)
    args = parser.parse_args()
    begin = time.time()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        found = {**reading(folder), **pictures(args.photos, folder), **vectors(folder)}
    found = dict(command="python benchmarks/bench_capacity.py PHOTOS", date=datetime.date.today().isoformat(), machine=machine(), wall_seconds=round(time.time() - begin), cores=os.cpu_count(),
                 **{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in found.items()})
    (Path(__file__).parent/"capacity.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
