"""Parity with img2vec_pytorch: the batched way and the fast way give the vectors that it gives one picture at a time.

Cosines are taken after centring: without, different pictures of a random network have 0.99 already, and the test would prove nothing.
The network is a ResNet-18 with fixed random weights whose BatchNorm statistics were taken from photos, as a trained network's are."""
import io
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import fitmatch.encoders as encoders
from fitmatch.embed import MARGIN, _is_installed, _reduced_side, encode_images, fast, open_for, taken_apart
from fitmatch.encoders import load_encoder
from fitmatch.images import ImageRefused, open_image

N = 200


def centred(A, B):
    "(n, n) cosines between the rows of A and of B, each table less its own mean"
    A, B = (X - X.mean(0) for X in (A.astype(np.float64), B.astype(np.float64)))
    return (A/np.linalg.norm(A, axis=1, keepdims=True)) @ (B/np.linalg.norm(B, axis=1, keepdims=True)).T


def overlap(A, B, k=10):
    "Share of each picture's k nearest that two tables have in common, by centred cosine"
    def near(X):
        similarity = centred(X, X.copy())
        np.fill_diagonal(similarity, -2)
        return np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return np.mean([len({*a} & {*b})/k for a, b in zip(near(A), near(B))])


@pytest.fixture(scope="module")
def photos(real_data):
    "200 photos, evenly from the ten classes"
    paths = sorted(real_data("clothes-cc0", "train").rglob("*.jpg"))
    return [paths[i] for i in np.linspace(0, len(paths) - 1, N).astype(int)]


@pytest.fixture(scope="module")
def resnet18(photos, tmp_path_factory):
    "File of a ResNet-18 with random weights and true BatchNorm statistics"
    torch.manual_seed(0)
    network, preprocess = encoders._backbone("resnet18"), encoders.get_model_weights("resnet18").DEFAULT.transforms()
    for m in network.modules():
        if isinstance(m, torch.nn.BatchNorm2d): m.momentum = None
    with torch.inference_mode(): network.train()(torch.stack([preprocess(open_image(path, 256)) for path in photos[::10]]))
    path = tmp_path_factory.mktemp("parity")/"resnet18.safetensors"
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def theirs(resnet18, photos):
    "(Img2Vec, its vectors of the photos, opened in full and taken one at a time)"
    from img2vec_pytorch import Img2Vec
    with encoders.provided_weights(encoders.read_weights(resnet18)): extractor = Img2Vec(cuda=False, model="resnet18")
    return extractor, np.stack([extractor.get_vec(open_image(path)) for path in photos])


def test_batches_with_the_same_preprocessing(theirs, resnet18, photos, figure):
    extractor, one_by_one = theirs
    encoder = load_encoder("resnet18", weights=resnet18, device="cpu")
    ours = np.concatenate([encoder.encode(torch.stack([extractor.transforms(open_image(path)) for path in photos[i:i + 64]])) for i in range(0, N, 64)])
    similarity = centred(ours, one_by_one)
    figure(f"parity, ResNet-18 of {N} photos, same preprocessing: centred cosine at least {similarity.diagonal().min():.6f}, top-10 overlap {overlap(ours, one_by_one):.4f}")
    assert similarity.diagonal().min() >= .9999


def test_the_fast_way(theirs, resnet18, photos, figure):
    encoder = load_encoder("img2vec:resnet18", weights=resnet18, device="cpu")
    ours = np.concatenate(list(encode_images(encoder, photos)))
    similarity, shared = centred(ours, theirs[1]), overlap(ours, theirs[1])
    others = similarity[~np.eye(N, dtype=bool)]
    figure(f"parity, ResNet-18 of {N} photos, fast way: centred cosine at least {similarity.diagonal().min():.5f}, median {np.median(similarity.diagonal()):.5f}, "
           f"top-10 overlap {shared:.4f}; different photos: 99th percentile {np.quantile(others, .99):.3f}, plain cosine {np.median(_plain(theirs[1])):.3f}")
    assert similarity.diagonal().min() >= .999 and shared >= .98
    assert np.quantile(others, .99) < .9, "the network does not tell photos apart, so parity would prove nothing"


def _plain(X):
    X = X/np.linalg.norm(X, axis=1, keepdims=True)
    return (X @ X.copy().T)[~np.eye(len(X), dtype=bool)]


def enlarged(path, i, width, height):
    "A large JPEG of a small photo, with noise as of a camera's sensor so that there is something fine to lose"
    pixels = np.asarray(open_image(path).resize((width, height), Image.Resampling.LANCZOS), np.float32)
    pixels += np.random.default_rng(i).normal(0, 6, (height, width, 1)).astype(np.float32)
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def test_the_fast_way_where_it_reduces(resnet18, photos, figure, tmp_path):
    """The photos are 400 pixels wide and are never reduced. Made large enough they are, at the smallest scale that is allowed: the worst case.
    Twice: with torchvision's initial weights, and with true BatchNorm statistics, where single photos react to the finest detail."""
    torch.manual_seed(0)
    save_file({k: v.contiguous() for k, v in encoders._backbone("resnet18").state_dict().items()}, tmp_path/"initial.safetensors")
    files = [enlarged(path, i, 1792, 2384) for i, path in enumerate(photos[::2])]
    assert _reduced_side(files[0], MARGIN*224) == 896
    networks = {"initial": load_encoder("img2vec:resnet18", weights=tmp_path/"initial.safetensors", device="cpu"),
                "calibrated": load_encoder("img2vec:resnet18", weights=resnet18, device="cpu")}
    whole = torch.stack([networks["initial"].preprocess(open_image(f)) for f in files])
    for name, encoder in networks.items():
        straight, ours = np.concatenate([encoder.encode(part) for part in whole.split(50)]), np.concatenate(list(encode_images(encoder, files)))
        similarity, shared = centred(ours, straight).diagonal(), overlap(ours, straight)
        figure(f"parity, ResNet-18 ({name} weights) of {len(files)} photos enlarged to 1792 × 2384, fast way at half scale: centred cosine "
               f"median {np.median(similarity):.5f}, least {similarity.min():.5f}, top-10 overlap {shared:.4f}")
        assert np.median(similarity) >= .999 and shared >= .98
        assert similarity.min() >= (.998 if name == "initial" else .98)


@pytest.mark.parametrize("size,expected", [((400, 533), None), ((1792, 2384), 896), ((1791, 2384), None), ((1792, 2385), None), ((3584, 4768), 896), ((1792, 7168), 896),
                                           ((896, 9000), None), ((2384, 1792), 896)])
def test_what_is_reduced(size, expected, tmp_path):
    Image.linear_gradient("L").resize(size).convert("RGB").save(tmp_path/"p.jpg"); Image.new("RGB", (64, 64)).save(tmp_path/"p.png")
    assert _reduced_side(tmp_path/"p.jpg", 896) == _reduced_side((tmp_path/"p.jpg").read_bytes(), 896) == expected
    if expected: assert min(open_image(tmp_path/"p.jpg", max_side=expected).size) == expected
    for other in (tmp_path/"p.png", tmp_path/"none.jpg", b"", b"no picture", Image.new("RGB", (4000, 4000))): assert _reduced_side(other, 8) is None


def test_the_fast_way_with_real_weights(real_weights, photos, figure):
    "SqueezeNet 1.1: files decoded at reduced scale and in batches, against whole pictures one at a time through torchvision"
    path = real_weights("squeezenet1_1.safetensors")
    encoder = load_encoder("squeezenet1_1", weights=path, device="cpu")
    network = encoders._backbone("squeezenet1_1").eval()
    network.load_state_dict(encoders.read_weights(path))
    preprocess = encoders.get_model_weights("squeezenet1_1").DEFAULT.transforms()
    with torch.inference_mode(): straight = np.stack([network.features(preprocess(open_image(p))[None]).mean((2, 3))[0].numpy() for p in photos])
    ours = np.concatenate(list(encode_images(encoder, photos)))
    similarity, shared = centred(ours, straight), overlap(ours, straight)
    figure(f"parity, SqueezeNet 1.1 with real weights, {N} photos, fast way: centred cosine at least {similarity.diagonal().min():.5f}, top-10 overlap {shared:.4f}")
    assert similarity.diagonal().min() >= .999 and shared >= .98


def ways():
    "Runtimes and precisions that a processor can be asked for"
    return [("torch", "float32"), ("torch", "bfloat16"), ("onnxruntime", "float32"), ("openvino", "float32"), ("openvino", "bfloat16"), ("auto", "auto")]


@pytest.fixture(scope="module")
def loaded(resnet18, real_weights, photos):
    "Function giving an encoder and its vectors of the photos, taken without any of what makes it fast"
    @cache
    def load(network):
        encoder = load_encoder(network, weights=resnet18 if network == "resnet18" else real_weights(f"{network}.safetensors"), device="cpu")
        return encoder, np.concatenate([encoder.encode(torch.stack([encoder.preprocess(open_image(p)) for p in photos[i:i + 50]])) for i in range(0, N, 50)])
    return load


@pytest.mark.parametrize("runtime,precision", ways())
@pytest.mark.parametrize("network", ["resnet18", "squeezenet1_1"])
def test_runtimes_and_precisions(network, runtime, precision, loaded, photos, figure):
    "Against the network as it was loaded, on the very same pictures: float32 within 1e-4 of each vector, 16 bits at least 0.999 after centring"
    if not _is_installed(runtime): pytest.skip(f"{runtime} is not installed: pip install 'fitmatch[{'fast' if runtime == 'openvino' else runtime}]'")
    encoder, straight = loaded(network)
    ours = np.concatenate(list(encode_images(encoder, photos, runtime=runtime, precision=precision)))
    built, similarity = fast(encoder, runtime, precision), centred(ours, straight)
    furthest = (np.linalg.norm(ours - straight, axis=1)/np.linalg.norm(straight, axis=1)).max()
    figure(f"fidelity, {network} of {N} photos, {built.runtime} {built.precision}{' (auto)' if runtime == 'auto' else ''}: centred cosine at least {similarity.diagonal().min():.5f}, "
           f"top-10 overlap {overlap(ours, straight):.4f}, furthest vector {furthest:.1e}")
    assert similarity.diagonal().min() >= .999
    if built.precision == "float32": assert furthest < 1e-4


@pytest.mark.parametrize("name", ["resnet18", "fitmatch-cnn"])
def test_the_halves_of_a_preprocessing_give_the_whole(name, resnet18, photos, tmp_path):
    "Every byte of every photo, and of odd shapes"
    encoder = load_encoder(name, weights=None if name == "fitmatch-cnn" else resnet18, device="cpu")
    half = taken_apart(encoder)
    for image in [open_image(p) for p in photos[::10]] + [Image.effect_noise(size, 80).convert("RGB") for size in ((8, 500), (500, 8), (255, 257), (224, 224), (1000, 31))]:
        assert torch.allclose(half.numbers(half(image)[None])[0], encoder.preprocess(image), rtol=1e-5, atol=1e-4)


def test_a_preprocessing_of_another_kind_is_left_alone(resnet18):
    "Mirrored, another curve, another size, one colour; and img2vec, which resizes numbers and not bytes: not taken apart"
    assert taken_apart(load_encoder("img2vec:resnet18", weights=resnet18, device="cpu")) is None
    encoder = load_encoder("resnet18", weights=resnet18, device="cpu")
    own = encoder.preprocess
    for other in (lambda image: own(image).flip(2), lambda image: own(image).sqrt().nan_to_num(), lambda image: own(image.resize((50, 50))), lambda image: own(image)[:1].expand(3, -1, -1)):
        encoder.preprocess = other
        assert taken_apart(encoder) is None
    encoder.preprocess = own
    assert taken_apart(encoder).shorter == 256


def test_pictures_are_opened_as_before(photos, tmp_path):
    "Quickly or not: rotated, transparent, grey, palette, CMYK and reduced pictures come out the same; broken ones are refused in the same words"
    image = open_image(photos[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = {"rotated.jpg": dict(exif=exif), "plain.jpg": {}, "plain.png": {}, "plain.webp": {}, "plain.bmp": {}, "large.jpg": {}}
    for name, options in kinds.items(): (image.resize((1792, 2384)) if name == "large.jpg" else image).save(tmp_path/name, **options)
    for mode in ("L", "P", "RGBA", "LA", "CMYK", "1"): image.convert(mode).save(tmp_path/f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}")
    paths = [p for p in tmp_path.iterdir() if p.is_file()]
    for path in paths:
        for own in (0, 96):
            expected = np.asarray(open_image(path, max_side=own or _reduced_side(path, 896)))
            assert np.array_equal(open_for(path, 896, own), expected) and np.array_equal(open_for(path.read_bytes(), 896, own), expected), path.name
    (tmp_path/"cut.jpg").write_bytes((tmp_path/"plain.jpg").read_bytes()[:5000]); (tmp_path/"none.jpg").write_bytes(b""); (tmp_path/"text.jpg").write_text("no picture")
    Image.new("RGB", (300, 300), "teal").save(tmp_path/"blank.jpg"); Image.new("RGB", (7, 300)).save(tmp_path/"thin.png")
    for name in ("cut.jpg", "none.jpg", "text.jpg", "blank.jpg", "thin.png", "absent.jpg"):
        with pytest.raises(ImageRefused) as before: open_image(tmp_path/name)
        with pytest.raises(ImageRefused) as now: open_for(tmp_path/name, 896)
        assert str(before.value) == str(now.value)
