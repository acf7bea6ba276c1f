"""Draws the picture at the top of the README, light and dark, out of a real answer on the bundled wardrobe."""
import sys
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from fitmatch.embed import embed
from fitmatch.encoders import load_encoder
from fitmatch.images import check_images
from fitmatch.match import Compatibility
from fitmatch.wardrobe import draw_product, draw_wardrobe

TARGET = Path(__file__).resolve().parent.parent / "nbs" / "images"
INK = {"light": ("#1f2328", "#59636e", "#0072B2"), "dark": ("#f0f6fc", "#9198a1", "#56B4E9")}


def best_of_each_label(wardrobe, matches, n=5):
    "The best match of each label, best first"
    label = dict(zip(wardrobe.products["asin"], wardrobe.products["ground_truth"]))
    matches = matches.assign(label=[label[a] for a in matches["match"]])
    return matches.drop_duplicates("label").head(n)


def draw(wardrobe, photo, near, matches, theme):
    "One photo, its nearest products, its matches"
    ink, quiet, accent = INK[theme]
    products = wardrobe.products.set_index("asin")

    def picture(asin, size=300):
        "The product drawn anew, larger than the wardrobe keeps it"
        r = products.loc[asin]
        return np.asarray(draw_product(r["silhouette"], r["style"], r["color"], r["pattern"], r["seed"], size))

    fig = plt.figure(figsize=(11.6, 4.3), dpi=150)
    grid = fig.add_gridspec(2, 8, left=.01, right=.99, top=.91, bottom=.07, hspace=.42, wspace=.12)

    def tile(place, asin, caption, colour):
        ax = fig.add_subplot(place)
        ax.imshow(picture(asin), interpolation="lanczos")
        ax.set_xticks([]); ax.set_yticks([])
        for spine in ax.spines.values(): spine.set(edgecolor=colour, linewidth=1.6)
        ax.set_xlabel(caption, color=colour, fontsize=9.5, labelpad=4)
        return ax

    tile(grid[:, :3], photo, "your photo", ink)
    for j, (asin, similarity) in enumerate(near):
        ax = tile(grid[0, 3 + j], asin, f"cosine {similarity:.2f}", quiet)
        if not j: ax.set_title("looks like it", loc="left", color=ink, fontsize=12, pad=7)
    for j, match in enumerate(matches.itertuples()):
        ax = tile(grid[1, 3 + j], match.match, f"{match.decision}  {match.score:.2f}", accent if match.decision == "matching" else quiet)
        if not j: ax.set_title("goes with it, learned from what was bought together", loc="left", color=ink, fontsize=12, pad=7)
    buffer = BytesIO()
    fig.savefig(buffer, transparent=True)
    plt.close(fig)
    Image.open(buffer).save(TARGET / f"hero-{theme}.webp", quality=88, method=6)   # a seventh of the PNG's bytes


if __name__ == "__main__":
    wardrobe = check_images(draw_wardrobe(), progress=False)
    X = embed(wardrobe, load_encoder("fitmatch-cnn"), progress=False)
    asins = wardrobe.products["asin"].to_numpy()
    matcher = Compatibility().fit(X, wardrobe)
    shirts = np.flatnonzero((wardrobe.products["silhouette"] == "shirt") & (wardrobe.products["pattern"] == "checks"))
    q = int(shirts[int(sys.argv[1]) if sys.argv[1:] else 0])
    similarity, index = matcher.neighbours(X[[q]], [asins[q]])
    matches = best_of_each_label(wardrobe, matcher.match(X[[q]], [asins[q]], top=len(X)))
    TARGET.mkdir(exist_ok=True)
    for theme in INK: draw(wardrobe, asins[q], list(zip(asins[index[0]], similarity[0])), matches, theme)
    print(f"drew hero-light.webp and hero-dark.webp for {asins[q]}")
