"""Training: it learns, repeats, goes on after an interruption, and says what it cannot do."""
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import fitmatch.train as train
from fitmatch.catalogue import FitmatchError
from fitmatch.encoders import FashionNet, load_encoder, read_weights
from fitmatch.images import check_images
from fitmatch.sources import read_folder
from fitmatch.train import MobileNetV1, Projection, Recipe, gather_views, load_teacher, load_uint8, random_view, train_encoder, train_encoder_files


def message(call, *args, **kwargs):
    with pytest.raises(FitmatchError) as e: call(*args, **kwargs)
    text = str(e.value)
    assert "\n" not in text and len(text) < 500
    return text


def toy(n=48, size=32):
    "Dark and bright squares: a question that a few steps can answer"
    g = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 2
    return (torch.rand(n, 3, size, size, generator=g)*80 + y.view(-1, 1, 1, 1)*150).to(torch.uint8), y.numpy()


def test_training_lowers_the_loss_and_repeats():
    x, y = toy()
    runs = [train_encoder(x, {"bright": y}, size=32, epochs=3, batch_size=16, random_state=3, progress=False) for _ in range(2)]
    history = runs[0][1]
    assert history.loss.iloc[-1] < history.loss.iloc[0]
    assert history.equals(runs[1][1])
    assert all(torch.equal(a, b) for a, b in zip(runs[0][0].state_dict().values(), runs[1][0].state_dict().values()))


def test_a_resumed_run_ends_as_an_unbroken_one(tmp_path):
    x, y = toy()
    class Killed(Exception): pass
    epochs = iter(range(1, 9))
    def kill_after_two(network):
        if next(epochs) == 3: raise Killed
        return {}
    settings = dict(size=32, epochs=4, batch_size=16, progress=False)
    straight, h1 = train_encoder(x, {"b": y}, **settings)
    with pytest.raises(Killed): train_encoder(x, {"b": y}, checkpoint=tmp_path/"c.safetensors", evaluate=kill_after_two, **settings)
    resumed, h2 = train_encoder(x, {"b": y}, checkpoint=tmp_path/"c.safetensors", **settings)
    assert h2.epoch.tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(h1.loss, h2.loss, rtol=1e-4)
    for a, b in zip(straight.state_dict().values(), resumed.state_dict().values()): torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert "4 epochs, not 5" in message(train_encoder, x, {"b": y}, checkpoint=tmp_path/"c.safetensors", **(settings | {"epochs": 5}))


@pytest.mark.parametrize("shape", [(12,), (12, 3, 3)])
def test_a_teacher_of_vectors_or_maps_with_gaps(shape):
    x, y = toy()
    teacher = np.random.default_rng(0).normal(size=(len(x), *shape)).astype(np.float32)
    teacher[::3] = np.nan
    targets = {"b": np.where(np.arange(len(x)) % 4, y, -1)}
    _, history = train_encoder(x, targets, teacher, FashionNet(), size=32, epochs=2, batch_size=16, zoom=1, progress=False)
    assert np.isfinite(history.to_numpy()).all() and "loss_relation" in history
    assert ("loss_places" in history) == (len(shape) == 3)


def test_training_from_files_and_too_few(tmp_path):
    for i in range(6):
        noise = np.random.default_rng(i).integers(0, 255, (30 + i, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path/f"{i}.png")
    paths = sorted(tmp_path.glob("*.png"))
    _, history = train_encoder(paths, {"odd": np.arange(6) % 2}, size=32, epochs=1, batch_size=3, progress=False)
    assert len(history) == 1
    assert "batch" in message(train_encoder, paths, {"odd": np.arange(6) % 2}, size=32, epochs=1, batch_size=64, progress=False)


@pytest.mark.parametrize("half", [False, True])
def test_both_precisions_learn_the_same_question(half):
    x, y = toy()
    network, history = train_encoder(x, {"bright": y}, size=32, epochs=3, batch_size=16, half=half, progress=False)
    assert history.loss.iloc[-1] < history.loss.iloc[0] and all(p.dtype == torch.float32 for p in network.parameters())


@pytest.mark.parametrize("batch_size", [48, 24, 16, 5])
def test_a_cycle_of_few_steps_is_no_trouble(batch_size):
    x, y = toy()
    assert np.isfinite(train_encoder(x, {"b": y}, size=32, epochs=1, batch_size=batch_size, progress=False)[1].loss).all()  # 1, 2, 3 and 9 steps
    if batch_size == 24: assert len(train_encoder(x, {"b": y}, size=32, epochs=5, batch_size=24, progress=False)[1]) == 5       # ten of them


# ---- teachers
def test_mobilenet_is_the_one_whose_weights_these_are(real_weights, real_data, figure):
    "Known by what it sees: its vectors tell kinds of clothes apart far better than chance, which wrong padding or scaling would spoil"
    from sklearn.linear_model import LogisticRegression
    teacher, _ = load_teacher(real_weights("mobilenet_v1_075_224.safetensors"))
    assert isinstance(teacher, MobileNetV1)
    paths = sorted(p for p in real_data("clothes-cc0", "validation").glob("*/*"))
    pictures = load_uint8(paths, 160)
    with torch.inference_mode(): X = torch.cat([teacher(random_view(pictures[i:i + 16], None)).mean((2, 3)) for i in range(0, len(pictures), 16)]).numpy()
    y = np.array([p.parent.name for p in paths])
    odd = np.arange(len(y)) % 2 == 1
    accuracy = LogisticRegression(C=1, max_iter=500).fit(X[~odd], y[~odd]).score(X[odd], y[odd])
    figure(f"MobileNetV1 as a teacher: {accuracy:.3f} on {odd.sum()} photos after {(~odd).sum()}")
    assert accuracy > .6


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18"])
def test_torchvision_networks_teach_maps(tmp_path, name):
    from fitmatch import encoders
    save_file({k: v.contiguous() for k, v in encoders._backbone(name).state_dict().items()}, tmp_path/"w.safetensors")
    teacher, _ = load_teacher(tmp_path/"w.safetensors")
    with torch.inference_mode(): maps = teacher(torch.rand(2, 3, 160, 160))
    assert maps.ndim == 4 and maps.shape[1] == 512
    network = load_encoder(name, tmp_path/"w.safetensors")
    with torch.inference_mode(): np.testing.assert_allclose(network.encode(teacher[0](torch.ones(1, 3, 64, 64))), teacher(torch.ones(1, 3, 64, 64)).mean((2, 3)), atol=1e-4)


def test_what_cannot_teach_says_so(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path/"x.safetensors")
    assert "cannot teach" in message(load_teacher, tmp_path/"x.safetensors")
    assert "no weights file" in message(load_teacher, tmp_path/"none.safetensors")
    assert "did you mean squeezenet1_1" in message(load_teacher, "squeezenet11")
    assert "keeps no maps" in message(load_teacher, "vit_b_16")
    (tmp_path/"p.safetensors").write_bytes(b"\x80\x04K\x01.        ")
    assert "pickle" in message(load_teacher, tmp_path/"p.safetensors")


def test_a_projection_keeps_the_main_directions():
    g = torch.Generator().manual_seed(1)
    maps = torch.randn(30, 4, 3, 3, generator=g) @ torch.randn(3, 3, generator=g)
    wide = torch.cat([maps, maps[:, :2] + .01*torch.randn(30, 2, 3, 3, generator=g)], 1)
    few = Projection(wide, 4)(wide)
    variance = few.permute(1, 0, 2, 3).flatten(1).var(1)
    whole = Projection(wide, 6)(wide).permute(1, 0, 2, 3).flatten(1).var(1)
    assert (variance.diff() < 0).all() and variance.sum() > .99*whole.sum()


# ---- recipes and folders
@pytest.mark.parametrize("wrong,says", [(dict(network="VGG"), "FashionCNN or FashionNet"), (dict(wardrobes=(3, 0)), "seed 0"), (dict(batch_size=0), "1 or more")])
def test_a_recipe_refuses_nonsense(wrong, says): assert says in message(Recipe, **wrong)


SMALL = Recipe(views=3, wardrobes=(), epochs=2, batch_size=6)


def test_views_are_made_once_and_answer_what_is_known(photo_folder, tmp_path, monkeypatch):
    photos = check_images(read_folder(photo_folder), progress=False)
    images, answers, maps = gather_views(photos, SMALL, None, tmp_path/"work", progress=False)
    assert images.shape == (36, 3, 32, 32) and images.dtype == torch.uint8 and maps is None
    assert answers["photo"].tolist() == pd_codes(photos)*3 and set(answers) == {"photo"}
    monkeypatch.setattr(train._Views, "make", lambda *a: pytest.fail("made twice"))
    again, _, _ = gather_views(photos, SMALL, None, tmp_path/"work", progress=False)
    assert torch.equal(images, again)


def pd_codes(photos):
    names = sorted(set(photos.products["ground_truth"]))
    return [names.index(name) for name in photos.products["ground_truth"]]


def test_a_killed_run_of_files_ends_as_an_unbroken_one(photo_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "measure_encoder", lambda *a, **k: {})
    straight = train_encoder_files(photo_folder, tmp_path/"a.safetensors", SMALL, work=tmp_path/"a", progress=False)
    save, saved = train._save_checkpoint, []
    def save_once(run, path):
        save(run, path); saved.append(run.epoch)
        if len(saved) == 1: raise KeyboardInterrupt
    monkeypatch.setattr(train, "_save_checkpoint", save_once)
    with pytest.raises(KeyboardInterrupt): train_encoder_files(photo_folder, tmp_path/"b.safetensors", SMALL, work=tmp_path/"b", progress=False)
    assert not (tmp_path/"b.safetensors").exists()
    resumed = train_encoder_files(photo_folder, tmp_path/"b.safetensors", SMALL, work=tmp_path/"b", progress=False)
    assert saved == [1, 2] and resumed["recipe"] == straight["recipe"] == asdict(SMALL)
    for name, tensor in read_weights(tmp_path/"a.safetensors").items():
        torch.testing.assert_close(tensor.float(), read_weights(tmp_path/"b.safetensors")[name].float(), rtol=2e-2, atol=2e-3)


def test_a_folder_without_kinds_says_what_to_do(photo_folder, tmp_path):
    assert "one a kind" in message(train_encoder_files, photo_folder/"shirts", tmp_path/"x.safetensors", SMALL, work=tmp_path/"w", progress=False)
    assert "smaller batch_size" in message(train_encoder_files, photo_folder, tmp_path/"x.safetensors", Recipe(views=1, wardrobes=(), epochs=1), work=tmp_path/"w", progress=False)


def test_pictures_that_are_judged_by_are_not_trained_on(photo_folder, tmp_path):
    import shutil
    shutil.copytree(photo_folder, tmp_path/"data"/"train")
    (tmp_path/"data"/"validation"/"shirts").mkdir(parents=True)
    shutil.copy(photo_folder/"shirts"/"0.png", tmp_path/"data"/"validation"/"shirts"/"again.png")
    photos, judged = train._photo_folders(tmp_path/"data")
    assert len(photos) == 11 and len(judged) == 1
