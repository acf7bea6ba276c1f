"""Draws logo, favicon and social card into nbs/images. The card shows the README's picture: `make brand` draws it anew when that has changed."""
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from PIL import Image

TARGET = Path(__file__).resolve().parent.parent / "nbs" / "images"
LEFT, RIGHT, INK, QUIET = "#0072B2", "#E69F00", "#1f2328", "#59636e"
# Half a shirt, from the neck down the seam, the hem, the side, the sleeve, the shoulder; in a box of 64.
HALF = [(30.2, 15), (30.2, 57), (16, 57), (16, 32), (10, 36), (2, 24), (15, 9), (22, 7)]
NECK = (25, 13.5)


def halves():
    "The two halves of a shirt that fit each other"
    return HALF, [(64 - x, y) for x, y in HALF]


def svg():
    "The logo: readable at 16 pixels, on light and on dark"
    neck = [NECK, (64 - NECK[0], NECK[1])]
    paths = [f'<path d="M{" L".join(f"{x:g} {y:g}" for x, y in half)} Q{nx:g} {ny:g} {half[0][0]:g} {half[0][1]:g} Z" fill="{c}" stroke="{c}"/>'
             for half, (nx, ny), c in zip(halves(), neck, (LEFT, RIGHT))]
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64" viewBox="0 0 64 64" role="img" aria-label="fitmatch"><title>fitmatch</title>'
            f'<g stroke-width="2" stroke-linejoin="round">{"".join(paths)}</g></svg>\n')


def draw_logo(ax):
    "The same on a figure"
    for half, nx, colour in zip(halves(), (NECK[0], 64 - NECK[0]), (LEFT, RIGHT)):
        points = [*half, (nx, NECK[1]), half[0]]
        codes = [Outline.MOVETO, *[Outline.LINETO]*(len(half) - 1), Outline.CURVE3, Outline.CURVE3]
        ax.add_patch(PathPatch(Outline(points, codes), facecolor=colour, edgecolor=colour, linewidth=.5, joinstyle="round"))
    ax.set(xlim=(0, 64), ylim=(64, 0), aspect="equal")
    ax.axis("off")


def favicon(size=180):
    "The logo as a PNG, for browsers that show no SVG and for home screens"
    fig = plt.figure(figsize=(size/100, size/100), dpi=100)
    draw_logo(fig.add_axes((0, 0, 1, 1)))
    fig.savefig(TARGET / "favicon.png", transparent=True)
    plt.close(fig)


def card():
    "1200 × 630: what a link to the site looks like where it is shared"
    fig = plt.figure(figsize=(12, 6.3), dpi=100, facecolor="white")
    draw_logo(fig.add_axes((.035, .785, .1, .17)))
    fig.text(.145, .885, "fitmatch", fontsize=40, weight="bold", color=INK, va="center")
    fig.text(.147, .805, "What goes with this piece of clothing?", fontsize=19, color=QUIET, va="center")
    hero = Image.open(TARGET / "hero-light.webp").convert("RGBA")
    ax = fig.add_axes((.03, .02, .94, .72))
    ax.imshow(np.asarray(Image.alpha_composite(Image.new("RGBA", hero.size, "white"), hero)), interpolation="lanczos")
    ax.axis("off")
    fig.savefig(TARGET / "card.png")
    plt.close(fig)
    Image.open(TARGET / "card.png").convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(TARGET / "card.png", optimize=True)


if __name__ == "__main__":
    (TARGET / "logo.svg").write_text(svg(), encoding="utf-8")
    favicon()
    card()
    print("drew logo.svg, favicon.png and card.png")
