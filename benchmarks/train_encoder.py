"""Trains the weights that come with fitmatch, from the CC0 clothes photos and drawn wardrobes.

    python benchmarks/train_encoder.py --data clothes-cc0 --teacher mobilenet_v1_075_224.safetensors

Writes fitmatch-cnn.safetensors (16-bit) and fitmatch-cnn.json (recipe, figures, learning curves) into --out. A killed run goes on
from --work, where pictures, views and the teacher's maps are kept too.
"""
import argparse
import hashlib
import json
import os
import time
from pathlib import Path

# glibc gives every large block back to the system at once and takes it anew for the next batch: twice as slow on small machines
if "MALLOC_TRIM_THRESHOLD_" not in os.environ:
    import sys
    os.environ |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_TOP_PAD_": "67108864"}
    os.execv(sys.executable, [sys.executable, *sys.argv])

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fitmatch.encoders import (FashionCNN, FashionNet, file_sha256, load_encoder, load_uint8, network_table, save_encoder, train_encoder)
from fitmatch.images import check_images, map_ahead, open_image
from fitmatch.wardrobe import draw_wardrobe

QUESTIONS = {"label": "ground_truth", "silhouette": "silhouette", "style": "style", "colour": "color", "pattern": "pattern"}
TEACHER_SIDE = 160


class MobileNetV1:
    "The teacher: MobileNetV1, width 0.75 (Howard et al. 2017), with BatchNorm folded into the convolutions"
    strides = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)

    def __init__(self, path):
        w = load_file(path)
        def folded(name, kernel):
            gain = w[f"{name}_bn.gamma"]/torch.sqrt(w[f"{name}_bn.moving_variance"] + 1e-3)
            return ((kernel*gain.view(-1, 1, 1, 1)).contiguous(memory_format=torch.channels_last),
                    w[f"{name}_bn.beta"] - w[f"{name}_bn.moving_mean"]*gain)
        self.first = folded("conv1", w["conv1.kernel"])
        self.blocks = [(stride, folded(f"conv_dw_{i}", w[f"conv_dw_{i}.depthwise_kernel"]), folded(f"conv_pw_{i}", w[f"conv_pw_{i}.kernel"]))
                       for i, stride in enumerate(self.strides, 1)]

    @torch.inference_mode()
    def __call__(self, x): # (n, 3, 160, 160) of 0 to 1 -> (n, 768, 5, 5)
        x = (x*2 - 1).contiguous(memory_format=torch.channels_last)
        x = F.relu6(F.conv2d(F.pad(x, (0, 1, 0, 1)), *self.first, stride=2))
        for stride, depthwise, pointwise in self.blocks:
            x = F.pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
            x = F.relu6(F.conv2d(x, *depthwise, stride=stride, groups=x.shape[1]))
            x = F.relu6(F.conv2d(x, *pointwise))
        return x


def view(x, g, smallest, whole):
    "(n, 3, s, s) uint8 -> (n, 3, 160, 160) of 0 to 1: cropped, turned a little, mirrored, relit; or the whole picture"
    n, x = len(x), x.float()/255
    if whole: return F.interpolate(x, size=(TEACHER_SIDE,)*2, mode="bilinear", antialias=True)
    def between(low, high, *shape): return torch.empty(n, *shape).uniform_(low, high, generator=g)
    area, ratio = between(smallest, 1), between(-.29, .29).exp()
    w, h = (area*ratio).sqrt().clamp(max=1), (area/ratio).sqrt().clamp(max=1)
    flip = torch.where(between(0, 1) < .5, -1., 1.)
    turn = (torch.randn(n, generator=g)*.08).clamp(-.25, .25)
    affine = torch.stack([w*flip*turn.cos(), -h*turn.sin(), between(-1, 1)*(1 - w),
                          w*flip*turn.sin(), h*turn.cos(), between(-1, 1)*(1 - h)], 1).view(n, 2, 3)
    x = F.grid_sample(x, F.affine_grid(affine, (n, 3) + (TEACHER_SIDE,)*2, align_corners=False), padding_mode="reflection", align_corners=False)
    light, contrast, colour = between(.7, 1.3, 1, 1, 1), between(.75, 1.25, 1, 1, 1), between(.7, 1.3, 1, 1, 1)
    x = x*light
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean)*contrast + mean
    grey = x.mean(1, keepdim=True)
    return ((x - grey)*colour + grey).clamp(0, 1)


def projection(teacher, pictures, n_components=192):
    "Mean, scale and main directions of what the teacher sees: maps of 192 channels are cheaper to keep than 768"
    maps = torch.cat([teacher(view(pictures[i:i + 8], None, 1, True)) for i in range(0, len(pictures), 40)])
    rows = maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])
    mean, scale = rows.mean(0), rows.std(0) + .05
    directions = torch.linalg.svd((rows - mean)/scale, full_matrices=False)[2][:n_components]
    return {"mean": mean, "scale": scale, "directions": directions.contiguous()}


def make_views(pictures, teacher, p, size, seed, smallest, whole):
    "One view of every picture at training size, and the teacher's maps of that very view"
    g, views, maps = torch.Generator().manual_seed(seed), [], []
    for i in range(0, len(pictures), 8):
        x = view(pictures[i:i + 8], g, smallest, whole)
        seen = (teacher(x) - p["mean"].view(1, -1, 1, 1))/p["scale"].view(1, -1, 1, 1)
        maps.append(torch.einsum("nchw,dc->ndhw", seen, p["directions"]).half().contiguous())
        views.append((F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)*255).round().byte())
    return {"views": torch.cat(views), "maps": torch.cat(maps)}


def kept(path, make):
    "Tensors from a file, made and written when it is not there yet"
    if not path.exists():
        started = time.time()
        save_file(make(), path)
        print(f"{path.name}: {time.time() - started:.0f} s", flush=True)
    return load_file(path)


def photos_of(folder):
    paths = sorted(p for p in Path(folder).glob("*/*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    names = sorted({p.parent.name for p in paths})
    return paths, np.array([names.index(p.parent.name) for p in paths])


def sound_wardrobe(seed):
    "A drawn wardrobe without its broken pictures"
    return check_images(draw_wardrobe(random_state=seed), progress=False)


def codes(products, names):
    return {q: np.array([names[q].index(v) for v in products[column]]) for q, column in QUESTIONS.items()}


def gather(args, teacher):
    "(pictures uint8, targets, teacher's maps) of all views"
    paths, classes = photos_of(args.data/"train")
    photos = kept(args.work/"photos.safetensors", lambda: {"x": load_uint8(paths, 256)})["x"]
    p = kept(args.work/"projection.safetensors", lambda: projection(teacher, photos))
    parts = [(kept(args.work/f"photos-{args.store}-{v}.safetensors",
                   lambda: make_views(photos, teacher, p, args.store, 2000 + v, .3, v == 0)), {"photo": classes}) for v in range(args.views)]
    shops = {seed: sound_wardrobe(seed) for seed in args.wardrobes}
    names = {q: sorted({v for shop in shops.values() for v in shop.products[column]}) for q, column in QUESTIONS.items()}
    for seed, shop in shops.items():
        drawn = kept(args.work/f"wardrobe-{seed}.safetensors", lambda: {"x": load_uint8([shop.image_path(i) for i in range(len(shop))], 160)})["x"]
        for v in range(args.wardrobe_views):
            made = kept(args.work/f"wardrobe-{seed}-{args.store}-{v}.safetensors",
                        lambda: make_views(drawn, teacher, p, args.store, 3000 + 10*seed + v, .6, v == 0))
            parts.append((made, codes(shop.products, names)))
    answers = lambda part, q: part[1].get(q, np.full(len(part[0]["views"]), -1))
    return (torch.cat([part[0]["views"] for part in parts]), {q: np.concatenate([answers(part, q) for part in parts]) for q in ("photo", *QUESTIONS)},
            torch.cat([part[0]["maps"] for part in parts]).numpy())


def scores(A, a, B, b):
    "Accuracy on B of simple classifiers fitted on A"
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=.03, max_iter=1000)).fit(A, a)
    return {"logistic": round(float(linear.score(B, b)), 4),
            "knn10_cosine": round(float(KNeighborsClassifier(10, metric="cosine").fit(A, a).score(B, b)), 4)}


def in_batches(encoder, images):
    ready = list(map_ahead(lambda path: encoder.preprocess(open_image(path, max_side=2*encoder.info.input_size)), images))
    return np.concatenate([encoder.encode(torch.stack(ready[i:i + 32])) for i in range(0, len(ready), 32)])


def measure(encoder, data):
    "What the encoder is worth on photos and on the wardrobe of seed 0, neither used for training except the photos of train/"
    (train, a), (test, b) = photos_of(data/"train"), photos_of(data/"validation")
    figures = {"photos_validation": scores(in_batches(encoder, train), a, in_batches(encoder, test), b)}
    shop = sound_wardrobe(0)
    rows = range(len(shop))
    started = time.time()
    X = in_batches(encoder, [shop.image_path(i) for i in rows])
    figures["wardrobe_images_per_second"] = round(len(X)/(time.time() - started), 1)
    products, group = shop.products, shop.products["group"].to_numpy()
    held = np.isin(group, np.random.default_rng(0).permutation(np.unique(group))[:len(np.unique(group))*2//5])
    for q, column in QUESTIONS.items():
        y = products[column].to_numpy()
        figures[f"wardrobe_{q}"] = scores(X[~held], y[~held], X[held], y[held])
    return figures


def main():
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    a.add_argument("--data", type=Path, default=Path(os.environ.get("FITMATCH_DATA", "."))/"clothes-cc0", help="folder with train/ and validation/; looked for in FITMATCH_DATA")
    a.add_argument("--teacher", type=Path, default=Path(os.environ.get("FITMATCH_WEIGHTS", "."))/"mobilenet_v1_075_224.safetensors")
    a.add_argument("--out", type=Path, default=Path(__file__).parent.parent/"fitmatch"/"weights")
    a.add_argument("--work", type=Path, default=Path.home()/".cache"/"fitmatch"/"train-encoder")
    a.add_argument("--network", choices=["FashionNet", "FashionCNN"], default="FashionNet")
    a.add_argument("--size", type=int, default=96, help="side of the pictures")
    a.add_argument("--store", type=int, default=96, help="side at which views are kept")
    a.add_argument("--views", type=int, default=10, help="views of each photo")
    a.add_argument("--wardrobes", type=int, nargs="*", default=[101, 102, 103], help="random_state of the drawn wardrobes; never 0")
    a.add_argument("--wardrobe-views", type=int, default=2)
    a.add_argument("--epochs", type=int, default=5, help="passes over all views")
    a.add_argument("--batch-size", type=int, default=64)
    a.add_argument("--lr", type=float, default=3e-3)
    a.add_argument("--places", type=float, default=2., help="weight of the teacher's maps")
    a.add_argument("--wardrobe", type=float, default=.5, help="weight of the wardrobe's label, silhouette, style and colour; half of it for the pattern")
    a.add_argument("--start", type=Path, help="weights of an earlier run to start from")
    a.add_argument("--photo", type=float, default=1., help="weight of the photos' classes")
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--only-measure", action="store_true", help="measure the weights in --out and write nothing")
    args = a.parse_args()
    torch.set_num_threads(args.threads)
    if args.only_measure:
        print(json.dumps(measure(load_encoder("fitmatch-cnn", args.out/"fitmatch-cnn.safetensors"), args.data), indent=1))
        return
    assert 0 not in args.wardrobes, "the wardrobe of seed 0 is for measuring"
    args.work.mkdir(parents=True, exist_ok=True)
    recipe = {k: v for k, v in vars(args).items() if k not in ("data", "teacher", "out", "work", "start", "only_measure", "threads")}
    if args.start: recipe["started_from"] = file_sha256(args.start)
    run = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:8]  # another recipe never goes on from this one's checkpoint
    images, targets, maps = gather(args, MobileNetV1(args.teacher))
    started = time.time()
    torch.manual_seed(0)
    network = load_encoder("fitmatch-cnn", args.start, "cpu").network if args.start else {"FashionNet": FashionNet, "FashionCNN": FashionCNN}[args.network]()
    weights = {q: args.wardrobe for q in QUESTIONS} | {"pattern": args.wardrobe/2, "places": args.places, "photo": args.photo}
    network, history = train_encoder(
        images, targets, maps, network.requires_grad_(True), size=args.size, epochs=args.epochs,
        batch_size=args.batch_size, lr=args.lr, zoom=1, loss_weights=weights,
        checkpoint=args.work/f"{args.network}-{run}.checkpoint.safetensors")
    path = save_encoder(network, args.out/"fitmatch-cnn.safetensors", args.size, half=True)
    encoder = load_encoder("fitmatch-cnn", path)
    notes = {"network": args.network, "input_size": args.size, "parameters": sum(p.numel() for p in network.parameters()),
             "multiplications": int(network_table(network, args.size).multiplications.sum()), "sha256": file_sha256(path), "bytes": path.stat().st_size,
             "pictures": {"photos": len(photos_of(args.data/"train")[0]), "views": len(images)}, "recipe": recipe,
             "training_seconds": round(time.time() - started), "figures": measure(encoder, args.data),
             "history": json.loads(history.round(4).to_json(orient="records"))}
    if args.start and args.start.with_suffix(".json").exists():
        before = json.loads(args.start.with_suffix(".json").read_text(encoding="utf-8"))
        notes["first_run"] = {k: before[k] for k in ("sha256", "pictures", "recipe", "training_seconds", "figures", "history")}
    path.with_suffix(".json").write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(notes["figures"], indent=1))


if __name__ == "__main__":
    main()
