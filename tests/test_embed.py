"""The embedding store: only what is missing is computed, damaged bytes are noticed, other weights are refused. Faults of the machine: test_embed_faults.py."""
import numpy as np
import pytest
from PIL import Image

from fitmatch.catalogue import FitmatchError
from fitmatch.embed import EmbeddingStore, check_vectors, embed
from fitmatch.encoders import load_encoder
from fitmatch.images import check_images
from fitmatch.sources import read_folder


@pytest.fixture
def catalogue(photo_folder):
    return check_images(read_folder(photo_folder), progress=False)


def test_store_gives_back_what_was_computed(catalogue, tmp_path):
    encoder = load_encoder("pixels")
    X = embed(catalogue, encoder, progress=False)
    stored = embed(catalogue, encoder, EmbeddingStore(tmp_path, encoder), progress=False)
    again = embed(catalogue, encoder, EmbeddingStore(tmp_path, encoder), progress=False)
    assert np.array_equal(X, stored) and np.array_equal(X, again) and X.dtype == np.float32


def test_only_what_changed_is_computed_anew(catalogue, tmp_path, monkeypatch):
    encoder = load_encoder("pixels")
    embed(catalogue, encoder, EmbeddingStore(tmp_path, encoder), progress=False)
    Image.linear_gradient("L").resize((48, 48)).convert("RGB").save(catalogue.image_path(3))
    changed, seen = check_images(catalogue, progress=False), []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda batch: seen.append(len(batch)) or encode(batch))
    X = embed(changed, encoder, EmbeddingStore(tmp_path, encoder), progress=False)
    assert seen == [1] and np.array_equal(X, embed(changed, encoder, progress=False))


def test_flipped_bytes_are_noticed(catalogue, tmp_path):
    encoder, caught, tried = load_encoder("pixels"), 0, 0
    store = EmbeddingStore(tmp_path, encoder)
    X = embed(catalogue, encoder, store, progress=False)
    file = max((tmp_path/"embeddings.lance").rglob("*.lance"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    whole = file.read_bytes()
    vector = X[np.argsort(catalogue.products["asin"].to_numpy())][0].tobytes()
    start = whole.index(vector[:64])
    for offset in range(start, start + len(vector), 40):
        damaged = bytearray(whole)
        damaged[offset] ^= 0x10
        file.write_bytes(damaged)
        tried += 1
        try: EmbeddingStore(tmp_path, encoder).to_numpy()
        except FitmatchError as e: caught += "damaged" in str(e)
    file.write_bytes(whole)
    assert tried >= 19 and caught == tried
    assert len(EmbeddingStore(tmp_path, encoder).to_numpy()[0]) == len(catalogue)


@pytest.mark.parametrize("bad", [np.zeros((1, 4)), np.full((1, 4), np.nan), np.array([[1, 2, 3, np.inf]]), np.ones((1, 3)), np.ones(4)])
def test_vectors_nobody_can_use_are_refused(bad):
    with pytest.raises(FitmatchError): check_vectors(bad, ["B01"], 4)


def test_other_weights_under_the_same_name_are_refused(catalogue, tmp_path):
    encoder = load_encoder("pixels")
    embed(catalogue, encoder, EmbeddingStore(tmp_path, encoder), progress=False)
    encoder.weights_sha256 = "f"*64
    with pytest.raises(FitmatchError, match="another workspace"): EmbeddingStore(tmp_path, encoder)
