"""Draws the pictures of the slides; `--render FOLDER` also writes slides.html and slides.pptx with pandoc, where Quarto is not at hand. `make slides` runs it."""
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from fitmatch.wardrobe import draw_wardrobe

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "nbs" / "images"
TARGET = IMAGES / "slides"
INK, QUIET, ACCENT, WARM = "#1f2328", "#59636e", "#0072B2", "#D55E00"

STAGES = [("a source", "shop export\nAmazon metadata\nfolder of photos\ndrawn wardrobe"), ("catalogue", "one table\nevery refused row\nwith its reason"), ("vectors", "own CNN\nResNet-18\ntimm, open_clip\ntitles"),
          ("knowledge", "PCA, kMeans, map\nMLP: category\ncosine, kNN\nwhat goes with what"), ("answers", "photo → products\nphoto → whole look\nreport, widgets, app\nevaluation")]


def diagram(path):
    "The way the data takes, one box a stage"
    fig = plt.figure(figsize=(12.4, 2.9), dpi=110)
    ax = fig.add_axes([0, 0, 1, 1])
    for i, (name, inside) in enumerate(STAGES):
        x = i * 2.9
        ax.add_patch(FancyBboxPatch((x, 0), 2.15, 2.2, boxstyle="round,pad=0.04,rounding_size=.12", facecolor="#eef5fa" if i < 4 else "#fdf0e6", edgecolor=ACCENT if i < 4 else WARM, linewidth=1.8))
        ax.text(x + 1.075, 1.9, name, ha="center", va="center", fontsize=16, weight="bold", color=INK)
        ax.text(x + 1.075, .82, inside, ha="center", va="center", fontsize=11.5, color=INK, linespacing=1.6)
        if i: ax.annotate("", (x - .06, 1.1), (x - .69, 1.1), arrowprops=dict(arrowstyle="-|>", color=QUIET, linewidth=2, mutation_scale=20))
    for i, word in enumerate(("clean", "embed", "learn", "match")): ax.text(i*2.9 + 2.525, 1.26, word, ha="center", fontsize=11.5, color=QUIET, style="italic")
    ax.set(xlim=(-.1, 13.9), ylim=(-.12, 2.35))
    ax.axis("off")
    fig.savefig(path, bbox_inches="tight", facecolor="white")
    plt.close(fig)


def matching_rows(readme):
    "(who, AUC, low, high) of the README's table of matching, best first"
    rows = re.findall(r"^\| (.+?) \| \**(0\.\d+)\** \| (0\.\d+) to (0\.\d+) \|$", readme, re.M)
    names = [re.sub(r"\s*\(.*\)|[*`\\]", "", name).strip() for name, *_ in rows]
    return [(name, *map(float, figures)) for name, (_, *figures) in zip(names, rows)]


def chart(rows, path):
    "AUC with its interval, one line for each who answers"
    fig, ax = plt.subplots(figsize=(11.6, 4.6), dpi=110)
    for y, (name, auc, low, high) in enumerate(rows):
        colour = WARM if name.startswith("learned") else QUIET if name.startswith("oracle") else ACCENT
        ax.plot([low, high], [y, y], color=colour, linewidth=7, alpha=.35, solid_capstyle="round")
        ax.plot(auc, y, "o", color=colour, markersize=10)
        ax.text(high + .012, y, f"{auc:.3f}", va="center", fontsize=15, color=colour, weight="bold")
    ax.axvline(.5, color=QUIET, linestyle=":", linewidth=1.4)
    ax.set_yticks(range(len(rows)), [name for name, *_ in rows], fontsize=15, color=INK)
    ax.set(xlim=(.46, .93), xlabel="AUC, with its 95 % interval")
    ax.xaxis.label.set(fontsize=14, color=QUIET)
    ax.tick_params(axis="x", labelsize=13)
    ax.invert_yaxis()
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    fig.savefig(path, bbox_inches="tight", facecolor="white")
    plt.close(fig)


def wardrobe_sheet(path, across=9, down=4, size=132):
    "Products of the wardrobe, side by side"
    wardrobe = draw_wardrobe(dirty=False)
    rows = np.linspace(0, len(wardrobe) - 1, across*down).astype(int)
    sheet = Image.new("RGB", (across*size, down*size), "white")
    for i, row in enumerate(rows): sheet.paste(Image.open(wardrobe.image_path(row)).convert("RGB").resize((size - 6, size - 6), Image.Resampling.LANCZOS), (i % across * size + 3, i//across*size + 3))
    sheet.save(path, quality=88)


def on_white(source, path):
    "The hero picture for formats that know no WebP"
    picture = Image.open(source).convert("RGBA")
    Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB").save(path, quality=90)


def render(folder):
    "What Quarto would make, as far as pandoc knows it"
    if not shutil.which("pandoc"): raise SystemExit("pandoc is not on the path: https://pandoc.org/installing.html, or use Quarto")
    folder.mkdir(parents=True, exist_ok=True)
    source, resources = str(ROOT/"nbs"/"slides.qmd"), ["-f", "markdown-implicit_figures", "--resource-path", str(ROOT/"nbs")]
    subprocess.run(["pandoc", source, *resources, "-t", "revealjs", "-s", "--slide-level=2", "--embed-resources", "-V", "width=1280", "-V", "height=720", "-V", "theme=white", "-V", "center=false",
                    *([f"--variable=revealjs-url={sys.argv[3]}"] if sys.argv[3:] else []), "--css", str(ROOT/"nbs"/"slides.css"), "-o", str(folder/"slides.html")], check=True)
    subprocess.run(["pandoc", source, *resources, "-t", "pptx", "--slide-level=2", "--reference-doc", str(ROOT/"nbs"/"slides-reference.pptx"), "-o", str(folder/"slides.pptx")], check=True)
    print(f"wrote slides.html and slides.pptx into {folder}")


if __name__ == "__main__":
    TARGET.mkdir(parents=True, exist_ok=True)
    diagram(TARGET/"framework.png")
    rows = matching_rows((ROOT/"README.md").read_text(encoding="utf-8"))
    if len(rows) < 5: raise SystemExit("the README's table of matching is not where it was")
    chart(rows, TARGET/"matching.png")
    wardrobe_sheet(TARGET/"wardrobe.jpg")
    on_white(IMAGES/"hero-light.webp", TARGET/"hero.jpg")
    print("drew framework.png, matching.png, wardrobe.jpg and hero.jpg")
    if sys.argv[1:2] == ["--render"]: render(Path(sys.argv[2]))
