"The category classifier: scikit-learn's conventions, the original project's figures, fair splits, honest intervals, and what is refused"
import errno
import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from fitmatch.catalogue import FitmatchError
from fitmatch.classify import (CategoryClassifier, _drawing, _Slopes, accuracy_interval, category_loss, mlp, plot_confusion,
                               plot_history, split_for_training)


def blobs(n=300, d=16, labels=("shoes", "tops", "bottoms"), seed=0):
    "Separable, non-negative vectors with text labels"
    rng = np.random.default_rng(seed)
    y = np.array(labels)[np.arange(n) % len(labels)]
    centres = np.random.default_rng(1).uniform(0, 3, (len(labels), d))
    return np.abs(centres[np.arange(n) % len(labels)] + .5*rng.normal(size=(n, d))).astype(np.float32), y


@pytest.fixture(scope="module")
def fitted():
    (X, y), (X_val, y_val) = blobs(), blobs(90, seed=5)
    return CategoryClassifier(epochs=8).fit(X, y, X_val, y_val), X, y


def test_the_original_projects_network():
    X, y = np.random.default_rng(0).normal(size=(70, 512)), np.arange(70) % 7
    model = CategoryClassifier(epochs=1).fit(X, y)
    assert model.n_parameters_ == 35_143 == 32_832 + 2_080 + 231
    assert [tuple(p.shape) for p in model.network_.parameters()] == [(64, 512), (64,), (32, 64), (32,), (7, 32), (7,)]


def test_it_learns_and_tells_how_it_went(fitted):
    model, X, y = fitted
    assert model.score(X, y) > .95
    assert list(model.history_) == ["epoch", "loss", "accuracy", "val_loss", "val_accuracy"] and model.history_["epoch"].tolist() == list(range(1, 9))
    last = model.history_.iloc[-1]
    assert last["accuracy"] == pytest.approx(model.score(X, y)) and last["loss"] == pytest.approx(-np.log(model.predict_proba(X)[np.arange(300), np.searchsorted(model.classes_, y)]).mean(), abs=1e-4)
    assert model.history_["loss"].iloc[-1] < model.history_["loss"].iloc[0]


def test_probabilities_belong_to_the_classes(fitted):
    model, X, y = fitted
    p = model.predict_proba(X)
    assert p.shape == (300, 3) and p.dtype == np.float32 and model.classes_.tolist() == ["bottoms", "shoes", "tops"]
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(model.classes_[p.argmax(axis=1)], model.predict(X))
    assert model.predict(X[:0]).shape == (0,) and model.predict_proba(X[:0]).shape == (0, 3)


def test_scikit_learns_conventions():
    X, y = blobs(90)
    model = CategoryClassifier(hidden=(8,), epochs=2)
    assert clone(model).get_params() == model.get_params()
    assert model.fit(X, y) is model
    with pytest.raises(Exception, match="not fitted"): CategoryClassifier().predict(X)
    search = GridSearchCV(make_pipeline(FunctionTransformer(), CategoryClassifier(epochs=2)), {"categoryclassifier__hidden": [(4,), (8, 4)]}, cv=2).fit(X, y)
    assert 0 <= search.best_score_ <= 1
    numbers = CategoryClassifier(epochs=2).fit(X, np.arange(90) % 3)
    assert numbers.predict(X).dtype.kind == "i"
    series = CategoryClassifier(epochs=2).fit(pd.DataFrame(X), pd.Series(y))
    np.testing.assert_array_equal(series.predict_proba(X), CategoryClassifier(epochs=2).fit(X, y).predict_proba(X))


def test_one_seed_one_network_and_nobody_is_disturbed():
    X, y = blobs(100)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    a = CategoryClassifier(epochs=3).fit(X, y)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    b = CategoryClassifier(epochs=3).fit(X, y)
    c = CategoryClassifier(epochs=3, random_state=1).fit(X, y)
    for name, tensor in a.network_.state_dict().items(): assert torch.equal(tensor, b.network_.state_dict()[name])
    assert not np.array_equal(a.predict_proba(X), c.predict_proba(X))


def test_watching_held_out_products_changes_nothing():
    (X, y), (X_val, y_val) = blobs(100), blobs(40, seed=3)
    alone, watched = CategoryClassifier(epochs=3).fit(X, y), CategoryClassifier(epochs=3).fit(X, y, 100*X_val, y_val)
    np.testing.assert_array_equal(alone.predict_proba(X), watched.predict_proba(X))
    np.testing.assert_array_equal(alone.mean_, watched.mean_)
    assert alone.history_["val_loss"].isna().all() and watched.history_["val_loss"].notna().all()


def test_losses_are_those_of_keras():
    logits, targets = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)).double(), torch.eye(5)[torch.arange(20) % 5].double()
    p = logits.softmax(1).numpy()
    t = targets.numpy()
    assert category_loss(logits, targets).item() == pytest.approx(-np.log(p[t == 1]).mean())
    assert category_loss(logits, targets, "binary").item() == pytest.approx(-(t*np.log(p) + (1 - t)*np.log(1 - p)).mean(axis=1).mean())
    assert torch.isfinite(category_loss(torch.tensor([[200., -200.]]), torch.tensor([[0., 1.]]), "binary"))
    X, y = blobs(120)
    assert CategoryClassifier(loss="binary").fit(X, y).score(X, y) > .95


@pytest.mark.parametrize("sizes", [(20, 7), (20, 8, 7), (30, 16, 8, 2)])
@pytest.mark.parametrize("n", [1, 50])
@pytest.mark.parametrize("loss", ["categorical", "binary"])
def test_the_gradient_is_autograds(sizes, n, loss):
    x, targets = torch.randn(n, sizes[0], generator=torch.Generator().manual_seed(0)), torch.eye(sizes[-1])[torch.arange(n) % sizes[-1]]*.9 + .1/sizes[-1]
    layers = mlp(sizes, dropout=.4).train()
    with torch.no_grad():
        for p in layers.parameters(): p += .1                 # biases too
    slopes = _Slopes(layers)
    with _drawing(layers, 1, "cpu"): expected = torch.autograd.grad(category_loss(layers(x), targets, loss), layers.parameters())
    with _drawing(layers, 1, "cpu"), torch.no_grad(): slopes(x, targets, loss)
    torch.testing.assert_close(slopes.weights.grad, torch.cat([g.ravel() for g in expected]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, dict(loss="binary", dropout=0., label_smoothing=0., lr_decay=False, power=1.)])
def test_training_is_that_of_autograd_and_adam(changes):
    X, y = blobs(200)
    model = CategoryClassifier(epochs=3, **changes).fit(X, y)
    seed = int(np.random.RandomState(42).randint(2**31 - 1))
    layers, order = mlp((16, 64, 32, 3), model.dropout, seed).train(), torch.Generator().manual_seed(seed)
    x, targets = model.network_[0](torch.from_numpy(X)), torch.eye(3)[np.searchsorted(model.classes_, y)]*(1 - model.label_smoothing) + model.label_smoothing/3
    optimiser = torch.optim.Adam(layers.parameters(), lr=model.lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 21 if model.lr_decay else 10**12)
    with _drawing(layers, seed, "cpu"):
        for _ in range(3):
            for rows in torch.randperm(200, generator=order).split(32):
                optimiser.zero_grad()
                category_loss(layers(x[rows]), targets[rows], model.loss).backward()
                optimiser.step()
                decay.step()
    for ours, theirs in zip(model.network_.parameters(), layers.parameters()): torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_the_fitted_network_can_be_trained_further():
    X, y = blobs(60)
    network = CategoryClassifier(epochs=1).fit(X, y).network_
    network(torch.from_numpy(X)).square().mean().backward()
    assert all(p.is_leaf and p.requires_grad and p.grad.abs().sum() > 0 for p in network.parameters())


def test_tables_that_cannot_be_written_to_are_fine(recwarn):
    X, y = blobs(60)
    expected = CategoryClassifier(epochs=1).fit(X, y).predict_proba(X)
    X.flags.writeable = False
    np.testing.assert_array_equal(CategoryClassifier(epochs=1).fit(X, y).predict_proba(X), expected)
    assert not recwarn.list


def test_of_a_large_catalogue_ten_thousand_are_measured():
    X, y = blobs(10_050, d=4)
    model = CategoryClassifier(hidden=(), epochs=1, batch_size=500).fit(X, y)
    assert model.history_["accuracy"].iloc[0] == pytest.approx(model.score(X, y), abs=.01)


def test_constant_and_negative_inputs_are_fine():
    X, y = blobs(120)
    X = np.column_stack([X - 2, np.full(120, .1, np.float32), np.zeros(120, np.float32)])
    model = CategoryClassifier().fit(X, y)
    assert np.isfinite(model.predict_proba(X)).all() and model.score(X, y) > .95
    assert np.isfinite(model.predict_proba(1e30*X)).all()


def test_saved_and_loaded_it_answers_the_same(fitted, tmp_path):
    model, X, _ = fitted
    written = model.save(tmp_path/"models"/"category.v1", encoder="pixels", weights_sha256="ab12")
    assert written.name == "category.v1.safetensors" and sorted(p.name for p in written.parent.iterdir()) == ["category.v1.json", "category.v1.safetensors"]
    for path in (tmp_path/"models"/"category.v1", written):
        kept = CategoryClassifier.load(path, encoder="pixels", weights_sha256="ab12")
        np.testing.assert_array_equal(kept.predict_proba(X), model.predict_proba(X))
        np.testing.assert_array_equal(kept.predict(X), model.predict(X))
    assert kept.get_params() == model.get_params() and kept.encoder_ == "pixels" and kept.n_parameters_ == model.n_parameters_
    pd.testing.assert_frame_equal(kept.history_, model.history_)
    whole = CategoryClassifier(epochs=1).fit(X, np.arange(300) % 2, ).save(tmp_path/"numbers")
    kept = CategoryClassifier.load(whole)
    assert kept.predict(X).dtype.kind == "i" and kept.history_["val_loss"].isna().all()


def test_another_encoder_is_refused(fitted, tmp_path):
    fitted[0].save(tmp_path/"m", encoder="pixels", weights_sha256="ab12")
    with pytest.raises(FitmatchError, match="trained with encoder pixels, not resnet18"): CategoryClassifier.load(tmp_path/"m", encoder="resnet18")
    with pytest.raises(FitmatchError, match="trained with weights_sha256 ab12, not cd34"): CategoryClassifier.load(tmp_path/"m", encoder="pixels", weights_sha256="cd34")
    fitted[0].save(tmp_path/"unknown")
    with pytest.raises(FitmatchError, match="not recorded"): CategoryClassifier.load(tmp_path/"unknown", encoder="pixels")


def test_damaged_models_are_refused(fitted, tmp_path):
    path = fitted[0].save(tmp_path/"m")
    about, data, note = tmp_path/"m.json", path.read_bytes(), json.loads((tmp_path/"m.json").read_text())
    def refused(match="not a classifier"):
        with pytest.raises(FitmatchError, match=match): CategoryClassifier.load(path)
    path.write_bytes(data[:-3] + b"abc"); refused("damaged")
    path.write_bytes(data[:100]); refused("damaged")
    path.write_bytes(data)
    for spoil in ({"classes": ["a"]}, {"parameters": {"hidden": [3]}}, {"parameters": {"nonsense": 1}}, {"history": 3}, {"classes": {"a": 1}}):
        about.write_text(json.dumps(note | spoil)); refused()
    for text in ("", "[]", "null", "{}", "\x00"): about.write_text(text); refused()
    about.unlink(); refused("no classifier at")
    with pytest.raises(Exception, match="not fitted"): CategoryClassifier().save(tmp_path/"unfitted")


def test_a_full_disk_is_one_clear_line_and_keeps_the_old_model(fitted, tmp_path, monkeypatch):
    model, X, _ = fitted
    model.save(tmp_path/"m")
    before = (tmp_path/"m.json").read_bytes()
    def full(*_, **__): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(FitmatchError, match="the disk is full"): CategoryClassifier(epochs=1).fit(X, np.arange(300) % 2).save(tmp_path/"m")
    monkeypatch.undo()
    assert (tmp_path/"m.json").read_bytes() == before and len(list(tmp_path.iterdir())) == 2
    np.testing.assert_array_equal(CategoryClassifier.load(tmp_path/"m").predict(X), model.predict(X))


@pytest.mark.parametrize("X, y, words", [
    ([[1., np.nan], [1, 1]], ["a", "b"], "first: row 0"),
    ([[1., 1], [np.inf, 1]], ["a", "b"], "first: row 1"),
    ([[1., 1], [1e300, 1]], ["a", "b"], "first: row 1"),
    ([1., 2], ["a", "b"], "table (n, d)"),
    ([[1], [2, 3]], ["a", "b"], "table (n, d)"),
    ([["x"], ["y"]], ["a", "b"], "real numbers"),
    ([[1.], [2]], ["a"], "labels of shape (1,) for 2 products"),
    ([[1.], [2]], ["a", None], "first: row 1"),
    ([[1.], [2]], [np.nan, 1.], "first: row 0"),
    ([[1.], [2]], np.array(["a", 1], dtype=object), "several types"),
    ([[1.], [2]], ["a", "a"], "at least two labels"),
    (np.empty((0, 2)), [], "at least two labels"),
])
def test_what_cannot_be_learned_from_is_refused(X, y, words):
    with pytest.raises(FitmatchError) as e: CategoryClassifier().fit(X, y)
    assert words in str(e.value)


def test_questions_that_do_not_fit_are_refused(fitted):
    model, X, y = fitted
    with pytest.raises(FitmatchError, match="of 15 numbers, but this classifier was fitted on 16"): model.predict(X[:, :15])
    with pytest.raises(FitmatchError, match="not finite"): model.predict_proba(np.full((1, 16), np.nan))
    with pytest.raises(FitmatchError, match="'hats', which no training product has"): CategoryClassifier().fit(X, y, X[:1], ["hats"])
    with pytest.raises(FitmatchError, match="fitted on 16"): CategoryClassifier().fit(X, y, X[:1, :3], y[:1])
    for held_out in ((X, None), (None, y)):
        with pytest.raises(FitmatchError, match="both"): CategoryClassifier().fit(X, y, *held_out)


@pytest.mark.parametrize("parameter, value", [("loss", "hinge"), ("epochs", 0), ("batch_size", 0), ("lr", 0), ("dropout", 1.), ("label_smoothing", -.1), ("power", 0),
                                              ("hidden", (0,)), ("hidden", (2.5,)), ("hidden", 64), ("epochs", "5"), ("lr", None)])
def test_parameters_that_make_no_sense_are_refused(parameter, value):
    with pytest.raises(FitmatchError, match=parameter): CategoryClassifier(**{parameter: value}).fit(*blobs(30))


def test_a_small_catalogue_is_gone_through_more_often():
    for n, epochs in ((60, 100), (1200, 40), (3200, 20)):
        assert CategoryClassifier(hidden=()).fit(*blobs(n, d=3)).epochs_ == epochs
    assert len(CategoryClassifier(epochs=5).fit(*blobs(60)).history_) == 5


def test_no_hidden_layer_and_one_product_a_batch():
    X, y = blobs(30)
    assert CategoryClassifier(hidden=(), batch_size=1, epochs=2).fit(X, y).n_parameters_ == 16*3 + 3
    CategoryClassifier(hidden=[4], batch_size=29, epochs=1).fit(X, y)


# --- splits

def test_split_without_groups_is_the_original_projects():
    y = np.random.default_rng(0).choice(["a", "b", "c"], 200)
    for got, expected in zip(split_for_training(y), train_test_split(np.arange(200), test_size=.4, stratify=y, shuffle=True, random_state=42)):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("seed", range(20))
def test_split_with_groups_leaks_nothing(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(200, 600))
    groups = rng.integers(0, n//3, n)
    y = np.array(["a", "b", "c", "d"])[(groups*7919) % 11 % 4]        # a group has one label
    train, test = split_for_training(y, [f"g{g}" for g in groups], random_state=seed)
    assert not set(groups[train]) & set(groups[test])
    assert sorted([*train, *test]) == list(range(n))
    assert abs(len(test)/n - .4) < .05
    for label in "abcd": assert abs((y[test] == label).mean() - (y == label).mean()) < .05


def test_a_missing_group_is_a_group_of_its_own():
    y, groups = np.array(["a", "b"]*50), np.array([None]*90 + ["x"]*10, dtype=object)
    train, test = split_for_training(y, groups)
    assert 30 <= len(test) <= 50 and (set(range(90, 100)) <= set(train) or set(range(90, 100)) <= set(test))


def test_a_label_that_cannot_be_on_both_sides_is_learned_not_measured():
    y = np.array(["a"]*10 + ["b"]*10 + ["c"])
    with pytest.warns(UserWarning, match="not measured: c"): train, test = split_for_training(y)
    assert 20 in train and len(train) + len(test) == 21
    for seed in range(10):
        y, groups = np.array(["a"]*20 + ["b"]*20 + ["c"]*4), np.array([*range(40), 99, 99, 99, 99])
        with pytest.warns(UserWarning, match="not measured: c"): train, test = split_for_training(y, groups, random_state=seed)
        assert {40, 41, 42, 43} <= set(train)


def test_splits_that_cannot_be_are_refused():
    for y in (["a", "b"], ["a", "a", "b", "b"], []):
        with pytest.raises(FitmatchError, match="too few"): split_for_training(y, test_size=.1)
    with pytest.raises(FitmatchError, match="too few"): split_for_training(["a", "b"]*10, groups=["g"]*20)
    with pytest.raises(FitmatchError, match="1 groups for 4"): split_for_training(["a", "b"]*2, groups=["g"])
    with pytest.raises(FitmatchError, match="no label"): split_for_training(["a", None])
    for size in (0, 1, -1, 1.5):
        with pytest.raises(FitmatchError, match="test_size"): split_for_training(["a", "b"]*10, test_size=size)


# --- intervals

def test_interval_without_groups_is_the_plain_bootstrap():
    rng = np.random.default_rng(0)
    hit = rng.random(400) < .8
    accuracy, low, high = accuracy_interval(np.ones(400), hit.astype(float))
    slow = hit[rng.integers(0, 400, (20_000, 400))].mean(axis=1)
    assert accuracy == hit.mean() and np.allclose((low, high), np.quantile(slow, (.025, .975)), atol=.006)


def test_interval_over_groups_is_wider_when_groups_stand_or_fall_together():
    hit = np.repeat(np.random.default_rng(0).random(80) < .7, 5)
    groups = np.repeat(np.arange(80), 5)
    _, low, high = accuracy_interval(np.ones(400), hit.astype(float))
    accuracy, wide_low, wide_high = accuracy_interval(np.ones(400), hit.astype(float), groups)
    assert wide_low < low < accuracy < high < wide_high
    rng = np.random.default_rng(1)
    slow = np.quantile([hit.reshape(80, 5)[rng.integers(0, 80, 80)].mean() for _ in range(5000)], (.025, .975))
    assert np.allclose((wide_low, wide_high), slow, atol=.015)
    assert accuracy_interval(np.ones(400), hit.astype(float), groups) == (accuracy, wide_low, wide_high)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        low, high = accuracy_interval(np.ones(300), (rng.random(300) < .8).astype(float), random_state=trial)[1:]
        covered += low <= .8 <= high
    assert covered/300 > .9


def test_intervals_of_nothing_are_refused():
    for y, p, g in (([], [], None), ([1], [1, 2], None), ([1, 2], [1, 2], [1])):
        with pytest.raises(FitmatchError): accuracy_interval(y, p, g)


# --- pictures

def test_pictures_are_drawn(fitted):
    model, X, y = fitted
    for fig in (plot_history(model.history_), plot_history(CategoryClassifier(epochs=1).fit(X, y).history_)): fig.canvas.draw()
    fig = plot_confusion(y, model.predict(X), labels=["tops", "bottoms", "shoes", "hats"])
    fig.canvas.draw()
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["tops", "bottoms", "shoes"]
    plot_confusion(np.arange(30), np.arange(30)[::-1]).canvas.draw()

