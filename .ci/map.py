"""Draws the map of the README, light and dark: the bundled wardrobe, each dot a product, pictures where there is room for them."""
from io import BytesIO
from pathlib import Path

from matplotlib.text import Text
from PIL import Image

from fitmatch.embed import embed
from fitmatch.encoders import load_encoder
from fitmatch.explore import map_picture
from fitmatch.images import check_images
from fitmatch.wardrobe import draw_wardrobe

TARGET = Path(__file__).resolve().parent.parent / "nbs" / "images"
INK = {"light": "#1f2328", "dark": "#f0f6fc"}


def save(figure, theme):
    "The figure without its paper, its words in the page's ink"
    for text in figure.findobj(Text): text.set_color(INK[theme])
    buffer = BytesIO()
    figure.savefig(buffer, dpi=150, transparent=True, bbox_inches="tight", pad_inches=.05)
    Image.open(buffer).save(TARGET / f"map-{theme}.webp", quality=80, method=6)


if __name__ == "__main__":
    wardrobe = check_images(draw_wardrobe(), progress=False)
    X = embed(wardrobe, load_encoder("fitmatch-cnn"), progress=False)
    figure = map_picture(X, wardrobe, method="tsne", pictures=110, side=26, size=(9.6, 4.8))
    figure.axes[0].set(xlabel="", ylabel="")   # axes of t-SNE mean nothing
    for theme in INK: save(figure, theme)
    print(f"drew map-light.webp and map-dark.webp of {len(wardrobe):,} products")
