"""Encoders: fidelity to what they wrap, stored reference outputs, and one clear line for everything that does not fit."""
import os
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

import fitmatch.encoders as encoders
from fitmatch.catalogue import FitmatchError
from fitmatch.encoders import (BUNDLED, FashionCNN, FashionNet, encoder_info, encoder_table, list_encoders, load_encoder, network_table,
                               save_encoder)
from fitmatch.images import open_image

SMALL = ("resnet18", "squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5", "densenet121", "regnet_y_400mf", "alexnet")

# what `sketch` gives for the pictures below; printed by running this file
REFERENCE_SHA256 = "1d1580f30332f2c61b1c9b11900a68b1f852d9d8a922b40e37d988a84ac30ffc"
REFERENCE = np.array([[ 0.2549, -0.0291,  0.1605,  0.1235,  0.0724,  0.1217,  0.0737, -0.1973],
                      [ 0.568 , -0.2126, -0.2927, -0.0573,  0.4837, -0.159 , -0.2446, -0.7386],
                      [ 0.2661,  0.0559,  0.2657,  0.1214,  0.0208,  0.0548, -0.0231, -0.1422],
                      [ 0.2439,  0.0182, -0.0418,  0.1271,  0.1341, -0.0886,  0.0645, -0.1333],
                      [ 0.6244, -0.1534,  0.1529,  0.1435,  0.3339,  0.1077, -0.2536,  0.0354],
                      [ 0.6431, -0.4202,  0.1088,  0.0666,  0.1735, -0.031 , -0.3244,  0.2691]])


def pictures(n=6):
    "Deterministic pictures with shapes in them: discs, stripes and gradients, of different sides"
    made = []
    for i in range(n):
        h, w = 150 + 11*i, 190 - 7*i
        y, x = np.mgrid[:h, :w].astype(np.float32)
        disc = ((x - w/2)**2 + (y - h/2)**2 < (20 + 8*i)**2).astype(np.float32)
        stripes = (np.floor((x + i*y)/13) % 2)
        rgb = np.stack([disc*(40 + 30*i), stripes*200*(i % 2) + disc*50, 255*x/w*(1 - disc)], -1)
        made.append(Image.fromarray(rgb.clip(0, 255).astype(np.uint8)))
    return made


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    "Small networks with random weights that one can know again"
    folder, files = tmp_path_factory.mktemp("weights"), {}
    for name in SMALL:
        torch.manual_seed(len(name))
        files[name] = folder/f"{name}.safetensors"
        save_file({k: v.contiguous() for k, v in encoders._backbone(name).state_dict().items()}, files[name])
    return files


def centred_cosine(A, B):
    A, B = A - A.mean(0), B - B.mean(0)
    return (A*B).sum(1)/(np.linalg.norm(A, axis=1)*np.linalg.norm(B, axis=1))


def message(call, *args, **kwargs):
    with pytest.raises(FitmatchError) as e: call(*args, **kwargs)
    text = str(e.value)
    assert "\n" not in text and len(text) < 500
    return text


# ---- the bundled encoder
def sketch(X):
    "Eight sums over the 256 numbers with fixed cosine weights: enough to notice any change, short enough to read"
    return X @ np.cos(np.outer(np.arange(X.shape[1]) + .5, np.arange(1, 9))*np.pi/X.shape[1]).astype(np.float32)


def test_the_bundled_encoder_gives_its_stored_outputs():
    encoder = load_encoder()
    assert encoder.weights_sha256 == REFERENCE_SHA256, "new weights need new reference outputs: python tests/test_encoders.py prints them"
    X = encoder(pictures())
    assert X.shape == (6, 256) and X.dtype == np.float32
    np.testing.assert_allclose(sketch(X), REFERENCE, atol=2e-3*np.abs(REFERENCE).max())


def test_the_bundled_files_are_small_and_agree():
    import json
    notes = json.loads(BUNDLED.with_suffix(".json").read_text())
    assert BUNDLED.stat().st_size == notes["bytes"] < 3_000_000
    assert notes["sha256"] == load_encoder().weights_sha256 == encoders.file_sha256(BUNDLED)
    info = encoder_info("fitmatch-cnn")
    assert (info.dim, info.input_size, info.parameters) == (256, notes["input_size"], notes["parameters"])
    assert BUNDLED.with_suffix(".md").exists()


def test_one_by_one_and_in_a_batch_are_the_same():
    encoder = load_encoder()
    images = pictures()
    np.testing.assert_allclose(np.concatenate([encoder([i]) for i in images]), encoder(images), atol=1e-4)
    assert encoder([]).shape == (0, 256)


def test_any_mode_of_picture_is_taken():
    encoder = load_encoder()
    modes = [pictures(1)[0].convert(mode) for mode in ("RGB", "L", "RGBA", "P", "CMYK")]
    assert np.isfinite(encoder(modes)).all()


# ---- FashionCNN
def test_fashion_cnn_is_the_printed_table():
    table = network_table(FashionCNN(), 64)
    assert table[table.kind == "Conv2d"].weights.tolist() == [1_728, 36_864, 2_048, 102_400, 8_192, 409_600]
    assert table[table.kind == "Conv2d"].output.tolist() == ["64 × 64 × 64"]*2 + ["32 × 32 × 32", "128 × 32 × 32", "64 × 16 × 16", "256 × 16 × 16"]
    assert all(m.bias is None for m in FashionCNN().modules() if isinstance(m, torch.nn.Conv2d))
    kinds = [type(m).__name__ for m in FashionCNN().block1]
    assert kinds == ["Conv2d", "Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d", "Dropout2d"]


@pytest.mark.parametrize("network", [FashionCNN, FashionNet])
def test_our_networks_take_any_size_and_uint8(network):
    net = network().eval()
    for size in (32, 50, 64): assert net(torch.zeros(2, 3, size, size, dtype=torch.uint8)).shape == (2, 256)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("network", [FashionCNN, FashionNet])
def test_saved_networks_come_back(tmp_path, network, half):
    torch.manual_seed(1)
    net = network().eval()
    path = save_encoder(net, tmp_path/"own.safetensors", 48, half=half)
    encoder = load_encoder("fitmatch-cnn", weights=path)
    assert encoder.info.input_size == 48 and encoder.info.weights == "own.safetensors"
    with torch.inference_mode(): straight = net(torch.stack([encoder.preprocess(i) for i in pictures()])).numpy()
    np.testing.assert_allclose(encoder(pictures()), straight, atol=5e-3 if half else 1e-5)


def test_saving_twice_gives_the_same_bytes(tmp_path):
    net = FashionCNN()
    assert len({encoders.file_sha256(save_encoder(net, tmp_path/f"{i}.safetensors", 32)) for i in range(6)}) == 1


# ---- torchvision
@pytest.mark.parametrize("name", SMALL)
def test_torchvision_features_are_those_under_the_head(name, weights):
    encoder = load_encoder(name, weights=weights[name])
    model = encoders._backbone(name).eval()
    state = model.state_dict()  # MNASNet wants its version beside the tensors
    state.update(encoders.read_weights(weights[name]))
    model.load_state_dict(state)
    batch = torch.stack([encoder.preprocess(i) for i in pictures(3)])
    with torch.inference_mode():
        maps = {"resnet18": lambda: torch.nn.Sequential(*list(model.children())[:-2])(batch), "alexnet": lambda: model.features(batch),
                "squeezenet1_1": lambda: model.features(batch), "mobilenet_v3_small": lambda: model.features(batch),
                "densenet121": lambda: model.features(batch).relu()}
        if name in maps: np.testing.assert_allclose(encoder.encode(batch), maps[name]().mean((2, 3)).numpy(), rtol=1e-3, atol=1e-4)
        head = {"mobilenet_v3_small": "classifier", "shufflenet_v2_x0_5": "fc", "mnasnet0_5": "classifier", "densenet121": "classifier",
                "regnet_y_400mf": "fc", "resnet18": "fc"}.get(name)
        if head: np.testing.assert_allclose(getattr(model, head)(torch.from_numpy(encoder.encode(batch))), model(batch), rtol=1e-3, atol=1e-3)
    assert encoder.info.dim == encoder.encode(batch).shape[1] == encoder_info(name).dim


def test_every_torchvision_classification_network_is_listed():
    assert set(torchvision.models.list_models(module=torchvision.models)) <= set(list_encoders())
    assert list_encoders("resnet1*") == ["resnet101", "resnet152", "resnet18"] and list_encoders("img2vec:dense*")
    table = encoder_table("resnet?8")
    assert table.loc["resnet18", ["dim", "input_size"]].tolist() == [512, 224] and table.notna().all().all()


@pytest.mark.parametrize("name,dim", [("vit_b_32", 768), ("swin_t", 768), ("convnext_tiny", 768), ("maxvit_t", 512), ("efficientnet_b0", 1280),
                                      ("vgg11", 512), ("googlenet", 1024), ("inception_v3", 2048), ("mobilenet_v2", 1280), ("vit_h_14", 1280)])
def test_dimensions_are_known_without_weights(name, dim): assert encoder_info(name).dim == dim


def test_a_file_without_a_head_or_with_another_is_enough(tmp_path, weights):
    state, images = encoders.read_weights(weights["resnet18"]), pictures(2)
    whole = load_encoder("resnet18", weights=weights["resnet18"])
    bare = {k: v for k, v in state.items() if not k.startswith("fc.")}
    for head in ({}, {"fc.weight": torch.zeros(7, 512), "fc.bias": torch.zeros(7)}):
        save_file(bare | head, tmp_path/"other.safetensors")
        other = load_encoder("resnet18", weights=tmp_path/"other.safetensors")
        np.testing.assert_array_equal(other(images), whole(images))
        assert other.weights_sha256 != whole.weights_sha256
        np.testing.assert_array_equal(load_encoder("img2vec:resnet18", weights=tmp_path/"other.safetensors").encode(torch.zeros(1, 3, 224, 224)),
                                      load_encoder("img2vec:resnet18", weights=weights["resnet18"]).encode(torch.zeros(1, 3, 224, 224)))


def test_the_checksum_of_a_download_is_of_its_tensors(monkeypatch, tmp_path, weights):
    state = encoders.read_weights(weights["resnet18"])
    monkeypatch.setattr(encoders, "_is_reachable", lambda url: True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with encoders.provided_weights(state): first, second = load_encoder("resnet18"), load_encoder("img2vec:resnet18")
    assert first.weights_sha256 == second.weights_sha256 == encoders.state_sha256(state)
    assert "ResNet18_Weights" in first.info.weights


# ---- img2vec
@pytest.mark.parametrize("name", ["resnet18", "resnet", "alexnet", "densenet", "densenet121"])
def test_img2vec_is_img2vec(name, weights):
    from img2vec_pytorch import Img2Vec
    network = {"resnet": "resnet18", "densenet": "densenet121"}.get(name, name)
    encoder = load_encoder(f"img2vec:{name}", weights=weights[network])
    with encoders.provided_weights(encoders.read_weights(weights[network])): original = Img2Vec(model=name)
    images = pictures(3)
    theirs = np.stack([original.get_vec(image) for image in images])
    ours = encoder(images)
    assert ours.shape == theirs.shape == (3, encoder.info.dim) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4*np.abs(theirs).max())


def test_our_resnet18_is_img2vecs(weights):
    ours, theirs = load_encoder("resnet18", weights=weights["resnet18"]), load_encoder("img2vec:resnet18", weights=weights["resnet18"])
    batch = torch.stack([theirs.preprocess(image) for image in pictures()])
    assert centred_cosine(ours.encode(batch), theirs.encode(batch)).min() > .9999


def test_providing_weights_ends_with_its_block(weights):
    before = torchvision.models.WeightsEnum.get_state_dict
    load_encoder("img2vec:resnet18", weights=weights["resnet18"])
    assert torchvision.models.WeightsEnum.get_state_dict is before


# ---- pixels
def test_pixels_are_means_of_tiles():
    encoder = load_encoder("pixels")
    X = encoder([Image.new("RGB", (80, 80), "black"), Image.new("RGB", (50, 90), (255, 0, 0))])
    assert X.shape == (2, 192) and (X[0] > 0).all()
    assert np.allclose(X[1].reshape(3, 64), [[1.]]*1 + [[1/256]]*2)


# ---- what does not fit, in one line
def test_unknown_names_get_the_nearest():
    assert "did you mean resnet18" in message(load_encoder, "resnet81") and "list_encoders()" in message(load_encoder, "ResNet_18")
    assert "fitmatch-cnn" in message(load_encoder, "fitmatchcnn") and "list_encoders()" in message(load_encoder, "§§§§")


def test_weights_that_do_not_fit_say_what_they_are(weights):
    text = message(load_encoder, "resnet18", weights=weights["squeezenet1_1"])
    assert "does not fit resnet18" in text and "missing" in text and "looks like squeezenet1_1" in text
    assert "looks like fitmatch-cnn" in message(load_encoder, "resnet18", weights=BUNDLED)
    assert "looks like resnet18" in message(load_encoder, "fitmatch-cnn", weights=weights["resnet18"])
    assert "looks like" in message(load_encoder, "img2vec:resnet18", weights=weights["alexnet"])


def test_a_tensor_of_another_shape_is_named(tmp_path, weights):
    state = encoders.read_weights(weights["resnet18"]) | {"conv1.weight": torch.zeros(64, 1, 7, 7)}
    save_file(state, tmp_path/"grey.safetensors")
    assert "conv1.weight is (64, 1, 7, 7), not (64, 3, 7, 7)" in message(load_encoder, "resnet18", weights=tmp_path/"grey.safetensors")


def test_files_that_are_no_weights(tmp_path):
    assert "no weights file" in message(load_encoder, "resnet18", weights=tmp_path/"none.safetensors")
    assert "no weights file" in message(load_encoder, "resnet18", weights=tmp_path)
    torch.save({"w": torch.zeros(1)}, tmp_path/"model.pt")
    assert "pickle" in message(load_encoder, "resnet18", weights=tmp_path/"model.pt")
    torch.save({"w": torch.zeros(1)}, tmp_path/"old.pt", _use_new_zipfile_serialization=False)
    assert "pickle" in message(load_encoder, "resnet18", weights=tmp_path/"old.pt")
    for name, content in {"empty": b"", "text": b"hello, I am a text", "cut": BUNDLED.read_bytes()[:5000]}.items():
        (tmp_path/name).write_bytes(content)
        assert "not a sound safetensors file" in message(load_encoder, "fitmatch-cnn", weights=tmp_path/name)
    assert "no weights" in message(load_encoder, "pixels", weights=BUNDLED)


def test_unknown_devices():
    assert "unknown device" in message(load_encoder, "pixels", device="toaster")
    if not torch.cuda.is_available(): assert "CUDA" in message(load_encoder, "pixels", device="cuda")


# ---- offline
def test_offline_is_one_line_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(encoders.urllib.request, "urlopen", lambda *a, **k: (_ for _ in ()).throw(OSError("no network")))
    for name in ("resnet18", "img2vec:resnet18"):
        assert "cannot be reached" in message(load_encoder, name) and "fitmatch-cnn" in message(load_encoder, name)


@pytest.mark.alone
def test_a_server_that_never_answers_is_left(monkeypatch, tmp_path):
    "A real socket that accepts and says nothing, and a name look-up that hangs"
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(encoders, "PATIENCE", .5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0)); silent.listen()
        started = time.time()
        assert not encoders._is_reachable(f"http://127.0.0.1:{silent.getsockname()[1]}/x.pth")
    def hangs(*args, **kwargs): time.sleep(3); raise OSError
    monkeypatch.setattr(encoders.urllib.request, "urlopen", hangs)
    assert "cannot be reached" in message(load_encoder, "resnet18")
    assert time.time() - started < 2.5


def test_a_download_that_breaks_off_and_a_damaged_one(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(encoders, "_is_reachable", lambda url: True)
    def breaks(self, *args, **kwargs): raise TimeoutError("timed out")
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", breaks)
    assert "cannot be reached" in message(load_encoder, "resnet18")
    monkeypatch.undo()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    kept = Path(torch.hub.get_dir())/"checkpoints"/"resnet18-f37072fd.pth"
    kept.parent.mkdir(parents=True); kept.write_bytes(b"half a file")
    assert "damaged: remove that file" in message(load_encoder, "resnet18")
    assert socket.getdefaulttimeout() is None


# ---- real weights, real photos
@pytest.fixture(scope="module")
def data():
    folder = Path(os.environ.get("FITMATCH_DATA", Path(__file__).parents[2]/"shared"/"data"))
    if not (folder/"clothes-cc0").exists(): pytest.skip(f"no clothes photos in {folder} (set FITMATCH_DATA)")
    return folder


def test_squeezenet_knows_clothes(data):
    from sklearn.linear_model import LogisticRegression
    path = data.parent/"weights"/"squeezenet1_1.safetensors"
    if not path.exists(): pytest.skip(f"no weights {path}")
    encoder = load_encoder("squeezenet1_1", weights=path)
    assert encoder.weights_sha256.startswith("0b91b9e2")
    photos = [(p, folder.name) for folder in sorted((data/"clothes-cc0"/"validation").iterdir()) if folder.name in ("shoes", "pants", "hat")
              for p in sorted(folder.glob("*"))[:12]]
    X, y = encoder([open_image(p, 512) for p, _ in photos]), np.array([name for _, name in photos])
    assert LogisticRegression(max_iter=300).fit(X[::2], y[::2]).score(X[1::2], y[1::2]) > .8


def test_the_bundled_encoder_knows_clothes(data):
    "Neighbours among photos that it never saw: far above the share of the largest class"
    from sklearn.neighbors import KNeighborsClassifier
    photos = [(p, folder.name) for folder in sorted((data/"clothes-cc0"/"validation").iterdir()) for p in sorted(folder.glob("*"))]
    encoder = load_encoder()
    X = np.concatenate([encoder([open_image(p, 2*encoder.info.input_size) for p, _ in photos[i:i + 32]]) for i in range(0, len(photos), 32)])
    y = np.array([name for _, name in photos])
    assert KNeighborsClassifier(5, metric="cosine").fit(X[::2], y[::2]).score(X[1::2], y[1::2]) > .5


if __name__ == "__main__":
    print(f'REFERENCE_SHA256 = "{load_encoder().weights_sha256}"\nREFERENCE = np.array({np.array2string(sketch(load_encoder()(pictures())), separator=", ", precision=4, max_line_width=140)})')
