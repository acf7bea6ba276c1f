"""Pictures made to break decoders, each opened in a process of its own with 2 GB and ten seconds."""
import io
import json
import os
import resource
import signal
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from fitmatch.images import BLANK_LEVELS, FORMATS, MAX_PIXELS, ImageRefused, _keep_picture, is_placeholder_url, map_ahead, open_image
from fitmatch.wardrobe import draw_wardrobe
from test_web import in_child

REASONS = {"not a picture", "corrupt picture", "too large", "too small", "placeholder"}


def _open(source):
    "(mode and size, or the reason), peak memory in MB, seconds"
    resource.setrlimit(resource.RLIMIT_AS, (2_000_000_000, 2_000_000_000))
    start = time.monotonic()
    try: image = open_image(source); result = [image.mode, *image.size]; open_image(source, max_side=64)
    except ImageRefused as e: result = e.reason
    return result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024, time.monotonic() - start


def _open_each(files):
    "`_open` of each file in a fork of its own; a number where the fork was ended by a signal (14 is the alarm) or an error"
    answers = []
    for name in FORMATS: open_image(encoded(picture(), name))       # Pillow loads its decoders once, here
    for file in files:
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL); signal.alarm(10)
            os.write(theirs, json.dumps(_open(file)).encode()); os._exit(0)
        os.close(theirs)
        with os.fdopen(ours, "rb") as pipe: said = pipe.read()
        code = os.waitpid(pid, 0)[1]
        answers.append(json.loads(said) if code == 0 else [code, 0, 0])
    return answers


def test_hostile_pictures_are_opened_or_refused(real_data, figure):
    files = sorted(str(p) for p in real_data("hostile-images", "images").rglob("*") if p.is_file())
    answers, memory, seconds = zip(*in_child(_open_each, files, timeout=11*len(files)))
    broken = [(file, a) for file, a in zip(files, answers) if isinstance(a, int)]
    assert not broken, broken
    reasons = [a for a in answers if isinstance(a, str)]
    figure(f"hostile pictures: {len(files)} tried, {len(files) - len(reasons)} opened, {len(reasons)} refused, most memory {max(memory):.0f} MB, longest {max(seconds):.2f} s: { {r: reasons.count(r) for r in sorted(set(reasons))} }")
    assert set(reasons) <= REASONS and all(a[0] == "RGB" and a[1]*a[2] <= MAX_PIXELS for a in answers if not isinstance(a, str))
    assert reasons and len(reasons) < len(files)


def picture(mode="RGB", size=(64, 48)):
    "A gradient with a bright corner"
    y, x = np.mgrid[:size[1], :size[0]]
    image = Image.fromarray(np.stack([x*255//size[0], y*255//size[1], (x + y) % 256], axis=-1).astype(np.uint8))
    image.paste((255, 255, 0), (0, 0, 16, 12))
    return image.convert(mode)


def encoded(image, name, **how):
    buffer = io.BytesIO()
    image.save(buffer, name, **how)
    return buffer.getvalue()


def claiming(width, height):
    "A small PNG whose header claims any size, with a sound checksum"
    data = bytearray(encoded(picture(), "PNG"))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize("width, height, reason", [(60_000, 60_000, "too large"), (5001, 5000, "too large"), (5000, 5000, "corrupt picture"), (2**31 - 1, 1, "too large"), (7, 64, "too small"), (0, 64, "not a picture")])
def test_the_size_is_read_before_anything_is_decoded(width, height, reason):
    result, megabytes, _ = in_child(_open, claiming(width, height))
    assert result == reason or (result in REASONS and width in (0, 2**31 - 1)), result
    assert megabytes < 500


def test_a_gif_of_many_pictures_gives_its_first():
    data = encoded(picture().quantize(255), "GIF", save_all=True, append_images=[picture().rotate(90*i).quantize(255) for i in range(1, 4)]*5)
    image = open_image(data)
    assert image.size == (64, 48) and np.abs(np.asarray(image, dtype=int) - np.asarray(picture(), dtype=int)).mean() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_picture_upright(orientation):
    turned = {1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
              6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270}[orientation]
    stored, exif = picture() if turned is None else picture().transpose(turned), Image.Exif()
    exif[0x0112] = orientation
    for name in ("JPEG", "PNG", "WEBP"):
        image = open_image(encoded(stored, name, exif=exif, **({"quality": 95} if name != "PNG" else {})))
        assert image.size == (64, 48) and min(image.getpixel((4, 4))[:2]) > 200 and image.getpixel((4, 4))[2] < 90, name


@pytest.mark.parametrize("kind", ["CMYK", "CMYK without Adobe's mark", "YCCK"])
def test_the_inks_of_a_printers_jpeg_are_not_inverted(kind):
    data = encoded(picture("CMYK"), "JPEG", quality=95)
    at = data.index(b"\xff\xee"); length = int.from_bytes(data[at + 2:at + 4], "big")
    if kind == "CMYK without Adobe's mark": data = data[:at] + data[at + 2 + length:]
    if kind == "YCCK":  # the same inks, as luma and chroma: cyan, magenta and yellow are encoded as red, green and blue would be
        inks = np.asarray(picture("CMYK"))
        ycc = np.asarray(Image.fromarray(np.ascontiguousarray(inks[..., :3])).convert("YCbCr"))
        raw = encoded(Image.fromarray(np.dstack([255 - ycc, inks[..., 3]]), "CMYK"), "JPEG", quality=95, subsampling=0)
        at = raw.index(b"\xff\xee"); data = raw[:at + 2 + length - 1] + b"\x02" + raw[at + 2 + length:]
    for max_side in (None, 32):
        image = np.asarray(open_image(data, max_side), dtype=int)
        straight = np.asarray(picture().resize(image.shape[1::-1], Image.Resampling.BOX), dtype=int)
        assert np.abs(image - straight).mean() < 14, kind


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("colour", ["white", "black", "#e8e8e8"])
def test_one_single_colour_is_a_placeholder(name, colour):
    with pytest.raises(ImageRefused) as refused: open_image(encoded(Image.new("RGB", (40, 40), colour), name))
    assert refused.value.reason == "placeholder"
    assert open_image(Image.new("RGB", (40, 40), colour)).size == (40, 40)      # a picture in memory is the caller's own


@pytest.mark.parametrize("name, how", [("JPEG", dict(quality=95)), ("JPEG", dict(quality=40)), ("PNG", {}), ("WEBP", dict(quality=80))], ids=["fine JPEG", "coarse JPEG", "PNG", "WebP"])
@pytest.mark.parametrize("grey", [2, 128, 246])
def test_a_few_greys_of_noise_are_a_placeholder_and_a_faint_garment_is_not(name, how, grey):
    wall = grey + np.random.default_rng(0).integers(-2, 3, (200, 160, 1)).repeat(3, axis=2)
    with pytest.raises(ImageRefused, match="placeholder"): open_image(encoded(Image.fromarray(wall.clip(0, 255).astype(np.uint8)), name, **how))
    wall[60:140, 40:120] += 40 if grey < 128 else -40
    for max_side in (None, 64): assert open_image(encoded(Image.fromarray(wall.clip(0, 255).astype(np.uint8)), name, **how), max_side)


def test_no_photo_of_a_garment_is_taken_for_a_placeholder(real_data, figure):
    photos = sorted(p for folder in ("clothes-cc0", "indico-matching") for p in real_data(folder).rglob("*.jpg"))
    spans = list(map_ahead(lambda path: max(high - low for low, high in open_image(path, max_side=64).getextrema()), photos))
    figure(f"placeholders: none of {len(photos):,} photos refused; the flattest spans {min(spans)} levels at reduced scale, refused are {BLANK_LEVELS} and less")
    assert len(photos) > 3000 and min(spans) > 4*BLANK_LEVELS


def test_no_drawn_garment_is_taken_for_a_placeholder(tmp_path):
    wardrobe = draw_wardrobe(200, size=96, root=tmp_path, dirty=False)
    for max_side in (None, 24): assert all(open_image(wardrobe.image_path(i), max_side) for i in range(len(wardrobe)))


def test_the_two_pictures_of_an_mpo_are_one_jpeg(tmp_path):
    data = encoded(picture(), "MPO", save_all=True, append_images=[picture().rotate(180)])      # what some phones and cameras call .jpg
    assert data[:2] == b"\xff\xd8" and open_image(data).getpixel((4, 4))[2] < 90
    assert _keep_picture(data, tmp_path)["file"].endswith(".jpg")


def test_nothing_but_transparency_is_a_placeholder():
    clear = picture("RGBA"); clear.putalpha(0)
    with pytest.raises(ImageRefused, match="placeholder"): open_image(encoded(clear, "PNG"))
    clear.putpixel((20, 20), (9, 9, 9, 255))
    assert open_image(encoded(clear, "PNG")).getpixel((0, 0)) == (255, 255, 255)


def test_placeholders_are_known_by_name():
    amazon = "https://m.media-amazon.com/images"
    for url in (f"{amazon}/I/01RmK+J4pJL.gif", f"{amazon}/I/01RmK%2BJ4pJL._SX38_.jpg?x=1", f"{amazon}/I/01MKUOLsA5L._SL500_.gif", "http://g-ecx.images-amazon.com/images/G/01/x-site/icons/no-img-sm.gif",
                "https://images-na.ssl-images-amazon.com/images/G/03/nav2/dp/no-image-avail-img-map._V192545771_AA300_.gif"): assert is_placeholder_url(url), url
    for url in (f"{amazon}/I/61yko2LDYUL._AC_.jpg", f"{amazon}/G/01/shoes/boot.jpg", "https://shop.example/no-image-of-this-shirt-is-fake.jpg", "", None, 7): assert not is_placeholder_url(url), url
