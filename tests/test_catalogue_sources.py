"""Tables and files written by strangers: everything is kept or counted, nothing escapes its folder."""
import json
import string

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fitmatch.catalogue import COLUMNS, FitmatchError, clean, load_catalogue, refuse, save_catalogue, select
from fitmatch.images import ImageRefused, check_images, open_image
from fitmatch.sources import read_folder, read_indico, read_source, read_table_file


@pytest.mark.parametrize("seed", range(30))
def test_rows_in_are_rows_kept_or_refused(seed, tmp_path):
    "Random dirt: the counts add up, keys are unique, edges stay inside"
    draw = np.random.default_rng(seed)
    (tmp_path/"a.jpg").touch()
    pick = lambda *values: [values[i] for i in draw.integers(0, len(values), 60)]
    frame = pd.DataFrame({"asin": pick("B1", "B2", "B3", "B4", "", None, 7, np.nan), "title": pick("x", None, 3, "y\u202e", ["a", "b"]),
        "image": pick("a.jpg", "a.jpg", "b.jpg", "../a.jpg", "/a.jpg", None, 5), "also_buy": pick(["B1", "B2"], None, "B1", [None, "B3"], float("nan"), ["B9"]),
        "ground_truth": pick("tops", "shoes", None, "spaceships", np.nan), "extra": draw.integers(0, 9, 60)})
    catalogue = clean(frame, tmp_path)
    products = catalogue.products
    assert len(products) + len(catalogue.quarantine) == 60 == len(products) + sum(catalogue.refused().values())
    assert products["asin"].is_unique and set(COLUMNS) <= set(products) and "extra" in products
    known = set(products["asin"])
    assert all(set(t) <= known - {a} and len(set(t)) == len(t) for a, t in zip(products["asin"], products["also_buy"]))


@pytest.mark.parametrize("image", ["../x.jpg", "a/../../x.jpg", "/etc/passwd", "\\\\server\\x.jpg", "..\\x.jpg", "C:\\x.jpg", "a\x00.jpg"])
def test_no_picture_outside_the_folder(image, tmp_path):
    (tmp_path/"in").mkdir()
    (tmp_path/"x.jpg").touch()
    catalogue = clean(pd.DataFrame({"asin": ["B1"], "image": [image]}), tmp_path/"in")
    assert len(catalogue) == 0 and set(catalogue.refused()) <= {"picture outside the folder", "no picture"}


def test_save_and_load_round_trip(photo_folder, tmp_path):
    catalogue = check_images(read_folder(photo_folder), progress=False)
    saved = save_catalogue(catalogue, tmp_path/"w")
    back = load_catalogue(tmp_path/"w")
    assert back.labels == catalogue.labels and len(back) == 12
    assert back.products["asin"].tolist() == catalogue.products["asin"].tolist() and back.products["group"].tolist() == saved.products["group"].tolist()
    assert all(back.image_path(i).read_bytes() == catalogue.image_path(i).read_bytes() for i in range(12))


def test_damaged_table_is_noticed(photo_folder, tmp_path):
    save_catalogue(read_folder(photo_folder), tmp_path)
    whole = (tmp_path/"catalogue.parquet").read_bytes()
    for offset in range(4, len(whole) - 4, max(1, len(whole)//200)):
        damaged = bytearray(whole)
        damaged[offset] ^= 0x20
        (tmp_path/"catalogue.parquet").write_bytes(damaged)
        try: back = load_catalogue(tmp_path)
        except FitmatchError: continue
        same = read_folder(photo_folder)                                                                    # an unused byte of the footer
        assert back.products["asin"].tolist() == same.products["asin"].tolist() and back.labels == same.labels and set(COLUMNS) <= set(back.products), offset


def test_refuse_and_select_count(photo_folder):
    catalogue = read_folder(photo_folder)
    less = refuse(catalogue, {catalogue.products["asin"][0]: ("corrupt picture", "x")})
    assert len(less) == 11 and less.refused() == {"corrupt picture": 1}
    assert select(catalogue, [3, 1]).products["asin"].tolist() == catalogue.products["asin"][[3, 1]].tolist()


def test_pictures_with_the_same_pixels_share_a_group(photo_folder):
    image = Image.open(photo_folder/"shirts"/"0.png")
    image.save(photo_folder/"shirts"/"copy.bmp")
    catalogue = check_images(read_folder(photo_folder), progress=False)
    group = dict(zip(catalogue.products["asin"], catalogue.products["group"]))
    assert group["shirts/copy.bmp"] == group["shirts/0.png"] and len(set(group.values())) == 12


def test_random_bytes_never_open(tmp_path):
    draw = np.random.default_rng(0)
    heads = [b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"RIFF\x00\x00\x00\x00WEBP", b"GIF89a", b"BM", b""]
    for i in range(300):
        with pytest.raises(ImageRefused): open_image(heads[i % len(heads)] + draw.bytes(int(draw.integers(0, 400))))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_mode_becomes_rgb(mode):
    image = Image.new(mode, (20, 10))
    assert open_image(image).mode == "RGB" and open_image(image).size == (20, 10)


def test_indico_layout(tmp_path):
    for name in ("training_shirts/7.jpg", "training_shirts/8.jpg", "training_pants/1.jpg"):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 20)).save(tmp_path/name)
    labels = tmp_path/"clothes_match_labeled_data_1.txt"
    labels.write_text("7: [1, 4]\n\n8: []\n")
    catalogue = read_source(tmp_path)
    assert catalogue.n_edges() == 1 and catalogue.dropped_edges == 1 and set(catalogue.products["ground_truth"]) == {"tops", "bottoms"}
    labels.write_text("7: __import__('os').system('touch pwned')\n")
    with pytest.raises(FitmatchError, match="line 1"): read_indico(tmp_path)
    assert not (tmp_path/"pwned").exists()


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_catalogue_files(suffix, photo_folder):
    rows = [{"asin": "001", "image": "shirts/0.png", "also_buy": ["002"], "ground_truth": "tops"}, {"asin": "002", "image": "shoes/1.png", "also_buy": [], "ground_truth": "shoes"}]
    file = photo_folder/f"shop{suffix}"
    frame = pd.DataFrame(rows)
    {".csv": lambda: frame.to_csv(file, index=False), ".parquet": lambda: frame.to_parquet(file)}.get(suffix, lambda: file.write_text("\n".join(map(json.dumps, rows))))()
    catalogue = read_table_file(file)
    assert catalogue.products["asin"].tolist() == ["001", "002"] and catalogue.n_edges() == 1


@pytest.mark.parametrize("content", ["", "asin\n", "title,image\nx,y\n", "\x00\x01", "asin,image\n\"unclosed", string.printable])
@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet", ".xlsx"])
def test_files_that_are_no_catalogue(content, suffix, tmp_path):
    file = tmp_path/f"shop{suffix}"
    file.write_text(content)
    with pytest.raises(FitmatchError) as e: read_source(file)
    assert "shop" in str(e.value)


def test_a_folder_with_somebody_elses_parquet(tmp_path, photo_folder):
    pd.DataFrame({"asin": ["1"], "image": ["shirts/0.png"]}).to_parquet(photo_folder/"catalogue.parquet")
    with pytest.raises(FitmatchError, match="give the file"): read_source(photo_folder)
    assert len(read_source(photo_folder/"catalogue.parquet")) == 1
