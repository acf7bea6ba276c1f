"""A workspace on a disk and in a bucket: the same tests for both, and what a bucket's server can do to us."""
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import fitmatch.catalogue
import fitmatch.embed
import fitmatch.images
from fitmatch.catalogue import (Catalogue, FitmatchError, clean, is_remote, is_there, lance_options, load_catalogue, place_file, read_bytes, read_table, save_catalogue,
                                select, workspace_path, write_table, writing)
from fitmatch.cards import open_shop
from fitmatch.classify import CategoryClassifier
from fitmatch.cli import run_command_line
from fitmatch.embed import EmbeddingStore, embed
from fitmatch.encoders import BUNDLED, FashionCNN, load_encoder, save_encoder
from fitmatch.images import check_images, download, download_status, open_image
from fitmatch.neighbours import neighbours
from fitmatch.pipeline import demo, match_photos, run
from fitmatch.prepare import prepare, read_notes
from fitmatch.sources import read_source
from fitmatch.vectorindex import build_index, index_report, open_store
from fitmatch.wardrobe import draw_wardrobe
from test_download import picture, shop, stock
from test_web import shop_web


@pytest.fixture(params=["disk", "s3"])
def place(request, tmp_path):
    "Where a workspace may be: a folder, or a prefix of a bucket"
    if request.param == "disk": yield str(tmp_path/"shop"); return
    yield request.getfixturevalue("s3") + "/some/shop"


@pytest.fixture(scope="module")
def wardrobe(): return check_images(draw_wardrobe(60), progress=False)


class Tiny:
    "An encoder of four numbers, for a store"
    def __init__(self, weights="a1", dim=4): self.info, self.weights_sha256 = SimpleNamespace(name="tiny:1", dim=dim), weights

def tiny_rows(n, start=0, worth=1.): return [f"B{i:02}" for i in range(start, start + n)], [f"h{i}" for i in range(n)], np.full((n, 4), worth, np.float32)
def same(a, b): return pd.testing.assert_frame_equal(a.reset_index(drop=True), b.reset_index(drop=True))

# paths

def test_what_is_typed_becomes_a_path(s3, monkeypatch, tmp_path):
    path = workspace_path(s3 + "/shop")
    assert is_remote(path) and str(path) == s3 + "/shop" and workspace_path(path) is path
    from pathlib import Path
    assert str(workspace_path(Path(s3 + "/shop"))) == s3 + "/shop"   # as a command line's Path arrives
    monkeypatch.setenv("FITMATCH_STORE", s3 + "/other")
    assert str(workspace_path()) == s3 + "/other" and workspace_path(tmp_path) == tmp_path
    assert lance_options(path)["aws_endpoint"] == os.environ["AWS_ENDPOINT_URL"] and lance_options(tmp_path) is None
    monkeypatch.delenv("FITMATCH_STORE")
    with pytest.raises(FitmatchError, match="set FITMATCH_STORE"): load_catalogue()


def test_the_profile_says_where_the_server_is(s3, monkeypatch, tmp_path):
    "The same settings reach s3fs and Lance when they stand in ~/.aws and not in variables"
    (tmp_path/"config").write_text(f"[profile shop]\nendpoint_url = {os.environ['AWS_ENDPOINT_URL']}\nregion = us-east-1\n")
    (tmp_path/"credentials").write_text("[shop]\naws_access_key_id = test\naws_secret_access_key = test\n")
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"): monkeypatch.delenv(name)
    for name, value in dict(AWS_PROFILE="shop", AWS_CONFIG_FILE=tmp_path/"config", AWS_SHARED_CREDENTIALS_FILE=tmp_path/"credentials").items(): monkeypatch.setenv(name, str(value))
    with writing(workspace_path(s3 + "/note.txt")) as partial: partial.write_text("found")
    EmbeddingStore(s3 + "/shop", Tiny()).add(*tiny_rows(2))
    assert read_bytes(workspace_path(s3 + "/note.txt")) == b"found" and any("embeddings.lance" in path for _, path in s3.gate.asked)


def test_without_the_packages_the_message_names_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "upath", None)
    with pytest.raises(FitmatchError, match=r"pip install 'fitmatch\[scale\]'"): workspace_path("s3://bucket/shop")

# tables and pictures

def test_catalogue_and_quarantine_come_back_equal(place, wardrobe, tmp_path):
    frame = pd.concat([wardrobe.products, wardrobe.products.head(3), pd.DataFrame([dict(asin="B404", title="=SUM(A1) Größe", image="gone.png")])])
    catalogue = check_images(clean(frame, wardrobe.root), progress=False)
    saved, back = save_catalogue(catalogue, place), load_catalogue(place)
    same(back.products, saved.products)
    same(back.quarantine.astype(str), catalogue.quarantine.astype(str))
    assert back.labels == catalogue.labels and back.dropped_edges == catalogue.dropped_edges and len(back.quarantine) == 4
    for i in (0, 7): assert read_bytes(back.image_path(i)) == read_bytes(catalogue.image_path(i))
    same(read_source(place).products, saved.products)                # the way of 'fitmatch run SHOP --out SHOP'
    again = check_images(back, progress=False)                       # each picture read from where it is now
    assert again.products["image_sha256"].tolist() == catalogue.products["image_sha256"].tolist()


def test_pictures_that_are_there_are_not_sent_again(s3, wardrobe):
    save_catalogue(wardrobe, s3 + "/shop")
    s3.gate.asked.clear()
    save_catalogue(wardrobe, s3 + "/shop")
    assert len([path for what, path in s3.gate.asked if what == "PUT" and "images/" in path]) == 0
    assert len([1 for what, path in s3.gate.asked if what in ("GET", "HEAD")]) == 1, "one listing, not a question a picture"


def test_a_picture_that_was_lost_is_refused_and_told(place, wardrobe):
    back = load_catalogue(save_catalogue(select(wardrobe, np.arange(8)), place).root)
    lost = back.image_path(3)
    lost.unlink()
    checked = check_images(back, progress=False)
    assert len(checked) == 7 and checked.quarantine["reason"].tolist()[-1] == "no picture" and "cannot be read" in checked.quarantine["excerpt"].tolist()[-1]


HOSTILE = ["../secret.jpg", "images/../../secret.jpg", "/etc/passwd", "s3://other/secret.jpg", "file:///etc/passwd", "C:\\secret.jpg", "..\\secret.jpg", "images/\x00.jpg"]

def test_hostile_image_values_lead_nowhere(place, tmp_path):
    root = workspace_path(place)
    for name in ("images/good.jpg", "other/secret.jpg"):
        with writing(root/name) as partial: partial.write_bytes(picture(1))
    with writing(root.parent/"secret.jpg") as partial: partial.write_bytes(picture(2))
    found = clean(pd.DataFrame({"asin": [f"B{i}" for i in range(len(HOSTILE) + 1)], "image": [*HOSTILE, "images/good.jpg"]}), root)
    assert found.products["image"].tolist() == ["images/good.jpg"]
    assert set(found.quarantine["reason"]) == {"picture outside the folder"}
    assert open_image(found.image_path(0)).size == (24, 24)


def test_a_table_appears_whole_or_not_at_all(place):
    path = workspace_path(place)/"numbers.parquet"
    write_table(pa.table({"n": [1, 2]}), path)
    with pytest.raises(KeyboardInterrupt):
        with writing(path) as partial: partial.write_bytes(b"ha"); raise KeyboardInterrupt
    assert read_table(path)["n"].to_pylist() == [1, 2] and is_there(path) and not is_there(path.parent/"absent.parquet")
    damaged = bytearray(read_bytes(path)); damaged[len(damaged)//3] ^= 4
    with writing(path) as partial: partial.write_bytes(damaged)
    with pytest.raises(FitmatchError, match="damaged"): read_table(path)

# embeddings

def test_embedding_goes_on_where_it_stopped(place, wardrobe, monkeypatch):
    encoder, catalogue = load_encoder("pixels", device="cpu"), load_catalogue(save_catalogue(select(wardrobe, np.arange(40)), place).root)
    expected, add, n = embed(catalogue, encoder, progress=False), EmbeddingStore.add, [0]
    def dying(self, *args):
        n[0] += 1
        if n[0] == 3: raise KeyboardInterrupt
        add(self, *args)
    monkeypatch.setattr(EmbeddingStore, "add", dying)
    with pytest.raises(KeyboardInterrupt): embed(catalogue, encoder, EmbeddingStore(place, encoder), batch_size=8, shard=8, progress=False)
    monkeypatch.setattr(EmbeddingStore, "add", lambda self, asins, *more: (n.append(len(asins)), add(self, asins, *more)))
    assert len(EmbeddingStore(place, encoder).known()) == 16
    X = embed(catalogue, encoder, EmbeddingStore(place, encoder), batch_size=8, shard=8, progress=False)
    assert np.array_equal(X, expected) and sum(n[1:]) == 24, "only what was missing was computed"
    hashes = catalogue.products["image_sha256"].tolist(); hashes[5] = "0"*64                   # a picture was replaced
    n[:] = [0]
    embed(Catalogue(catalogue.products.assign(image_sha256=hashes), catalogue.root), encoder, EmbeddingStore(place, encoder), progress=False)
    assert sum(n) == 1


def test_the_second_writer_waits_and_says_for_whom(place, monkeypatch):
    monkeypatch.setattr(fitmatch.embed, "LOCK_PATIENCE", .2); monkeypatch.setattr(fitmatch.embed, "LOCK_BEAT", .2)
    one, two = EmbeddingStore(place, Tiny()), EmbeddingStore(place, Tiny())
    with one.writing():
        one.add(*tiny_rows(3))
        with pytest.raises(FitmatchError, match=f"process {os.getpid()} on {socket.gethostname()} is writing .*tiny-1 and did not finish within 0.2 s"): two.add(*tiny_rows(3, 3))
        assert len(two.known()) == 3
        one.add(*tiny_rows(3, 3))
    two.add(*tiny_rows(3, 4, worth=2))
    asins, X = one.to_numpy()
    assert asins.tolist() == [f"B{i:02}" for i in range(7)] and X[:, 0].tolist() == [1]*4 + [2]*3


WRITER = """
import sys, time
from types import SimpleNamespace
import numpy as np
from fitmatch.embed import EmbeddingStore
store = EmbeddingStore(sys.argv[1], SimpleNamespace(info=SimpleNamespace(name="tiny:1", dim=4), weights_sha256="a1"))
with store.writing():
    store.add(["B90"], ["h"], np.ones((1, 4), np.float32)); print("held", flush=True); time.sleep(60)
"""

def test_the_lock_of_a_killed_or_sleeping_writer_is_taken_over(s3, monkeypatch):
    "kill -9 leaves an object behind; a writer that was only stopped for too long finds out that the lock is not its own any more"
    monkeypatch.setattr(fitmatch.embed, "LOCK_SILENCE", 1.5)
    process = subprocess.Popen([sys.executable, "-c", WRITER, s3 + "/shop"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGKILL); process.wait()
    store, other = (EmbeddingStore(s3 + "/shop", Tiny()) for _ in range(2))
    with store.writing():
        store.add(*tiny_rows(2, 10))
        assert len(store.known()) == 3
        store._lock.end.set()                                          # as if this process were asleep
        with other.writing():
            other.add(*tiny_rows(1, 20))
            with pytest.raises(FitmatchError, match="another one writes .*tiny-1 now"): store.add(*tiny_rows(1, 30))
        assert sorted(other.known()) == ["B10", "B11", "B20", "B90"]


def test_damage_to_a_stored_row_is_found(place):
    store = EmbeddingStore(place, Tiny())
    store.add(*tiny_rows(6))
    root = workspace_path(place)/"embeddings.lance"
    file = next(p for p in root.rglob("*.lance") if "data" in p.parts and b"B03" in read_bytes(p))
    whole = read_bytes(file)
    place_bytes = lambda data: _put(file, data)
    place_bytes(whole.replace(b"B03", b"B99", 1))
    with pytest.raises(FitmatchError, match="checksums do not fit"): EmbeddingStore(place, Tiny()).to_numpy()
    place_bytes(whole)
    assert len(EmbeddingStore(place, Tiny()).known()) == 6
    seal = root/"tiny-1.seal"
    _put(seal, b"{}")
    with pytest.raises(FitmatchError, match="tiny-1.seal is damaged"): EmbeddingStore(place, Tiny()).known()

def _put(path, data):
    with writing(path) as partial: partial.write_bytes(data)


def test_what_a_newer_version_wrote_is_refused(place, wardrobe, monkeypatch):
    with monkeypatch.context() as later:
        later.setattr(fitmatch.catalogue, "CATALOGUE_FORMAT", 2); later.setattr(fitmatch.embed, "STORE_FORMAT", 2)
        save_catalogue(select(wardrobe, np.arange(3)), place); EmbeddingStore(place, Tiny()).add(*tiny_rows(2))
        assert len(load_catalogue(place)) == 3
    for read in (load_catalogue, lambda place: EmbeddingStore(place, Tiny())):
        with pytest.raises(FitmatchError, match="newer fitmatch .format 2, this one reads up to 1.: type  pip install --upgrade fitmatch"): read(place)



def test_what_a_newer_lance_wrote_is_told_apart_from_damage(place):
    "The manifest asks for a feature that no reader knows yet"
    EmbeddingStore(place, Tiny()).add(*tiny_rows(2))
    for manifest in [p for p in (workspace_path(place)/"embeddings.lance").rglob("*.manifest")]:
        data = read_bytes(manifest)
        at = int.from_bytes(data[-16:-8], "little")
        end = at + 4 + int.from_bytes(data[at:at + 4], "little")
        message = data[at + 4:end] + b"\x48\x80\x80\x80\x80\x80\x80\x20"   # reader_feature_flags, field 9 of the protocol buffer
        _put(manifest, data[:at] + len(message).to_bytes(4, "little") + message + data[end:])
    with pytest.raises(FitmatchError, match="newer lancedb than the one installed here: type  pip install --upgrade lancedb"): EmbeddingStore(place, Tiny()).known()


def test_neighbours_and_index_are_the_same(s3, tmp_path):
    X = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    found = []
    for place in (tmp_path/"shop", s3 + "/shop"):
        EmbeddingStore(place, Tiny()).add([f"B{i:02}" for i in range(40)], ["h"]*40, X)
        store = open_store(place)
        notes = neighbours(store, k=3, progress=False, block=16)
        assert notes["blocks"] == 3 and build_index(store, sample=20, k=3)["recall"] == index_report(store)["recall"] == 1
        found.append(read_table(workspace_path(place)/"neighbours.parquet").to_pandas())
    same(found[0].round(5), found[1].round(5))

# downloads

def answers(status): return status[["asin", "reason", "file", "bytes", "sha256", "temporary"]]

def test_a_download_goes_on_where_it_was_broken_off(place, tmp_path, monkeypatch):
    monkeypatch.setattr(fitmatch.images, "_COMMIT_ROWS", 4)
    with shop(lost={5}) as server, shop_web(server.port) as web:
        urls = [[f"{server.url}/{i % 18}.jpg"] for i in range(20)]
        stock(workspace_path(place), urls); stock(tmp_path/"whole", urls)
        class Impatient:
            asked = 0
            def get(self, url):
                self.asked += 1
                if self.asked == 9: raise KeyboardInterrupt
                return web.get(url)
            def close(self): pass
        with pytest.raises(KeyboardInterrupt): download(place, web=Impatient(), threads=1, retries=0, progress=False, http=True)
        noted, before = download_status(place), len(server.paths)
        assert 4 <= len(noted) < 18 and set(noted["reason"]) <= {"ok", "status 404"}
        catalogue, status = download(place, web=web, retries=0, progress=False, http=True)
        assert len(server.paths) - before <= 20 - len(noted), "what was there was not asked for again"
        whole, expected = download(tmp_path/"whole", web=web, retries=0, progress=False, http=True)
    same(answers(status), answers(expected)); same(answers(download_status(place)), answers(expected))
    assert catalogue.products["image"].tolist() == whole.products["image"].tolist() == load_catalogue(place).products["image"].tolist()
    assert all(hashlib.sha256(read_bytes(catalogue.root/file)).hexdigest() in file for file in status["file"].dropna())


def test_a_status_that_was_tampered_with_names_no_file(s3):
    with fitmatch.images._downloads(workspace_path(s3 + "/shop")) as table:
        table.note([("B1", dict(reason="ok", file="../secret.jpg", bytes=3)), ("B2", dict(reason="status 404"))])
    stock(workspace_path(s3 + "/shop"), [[], []], ["B1", "B2"])
    catalogue, status = download(s3 + "/shop", progress=False)
    assert catalogue.products["image"].tolist() == [None, None] and status["reason"].tolist() == ["no address", "status 404"]

# models, prepare, run, match

def test_models_and_weights(place, tmp_path, monkeypatch):
    monkeypatch.setenv("FITMATCH_CACHE", str(tmp_path/"cache"))
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 8)).astype(np.float32), np.repeat(["shoes", "tops"], 30)
    model = CategoryClassifier(epochs=2, random_state=0).fit(X, y)
    model.save(f"{place}/models/mlp", encoder="pixels")
    assert np.array_equal(CategoryClassifier.load(f"{place}/models/mlp").predict_proba(X), model.predict_proba(X))
    with pytest.raises(FitmatchError, match="no classifier at .*models/absent"): CategoryClassifier.load(f"{place}/models/absent")
    own = load_encoder("fitmatch-cnn", device="cpu")
    place_file(BUNDLED, workspace_path(place)/"models"/"encoder.safetensors")
    assert load_encoder("fitmatch-cnn", weights=f"{place}/models/encoder.safetensors", device="cpu").weights_sha256 == own.weights_sha256
    save_encoder(FashionCNN(), f"{place}/models/new.safetensors", 64)
    assert load_encoder("fitmatch-cnn", weights=f"{place}/models/new.safetensors", device="cpu").info.dim == own.info.dim
    with pytest.raises(FitmatchError, match="no weights file .*gone.safetensors"): load_encoder("fitmatch-cnn", weights=f"{place}/models/gone.safetensors")


def test_a_table_is_prepared_into_both_alike(s3, tmp_path):
    lines = [dict(asin=f"B{i%30:02}", title=f"Shirt of linen, number {i}", imageURL=f"https://m.media-amazon.com/images/I/{i}.jpg", also_buy=[f"B{(i+1)%40:02}"]) for i in range(50)]
    (tmp_path/"meta.json").write_text("\n".join(map(json.dumps, lines)) + "\n{broken")
    here, there = (prepare(tmp_path/"meta.json", out, progress=False) for out in (tmp_path/"shop", s3 + "/shop"))
    assert {**here, "seconds": 0} == {**there, "seconds": 0} and here["products"] == 30 and read_notes(s3 + "/shop", "prepare.json")["products"] == 30
    for name in ("catalogue", "quarantine"): assert read_table(tmp_path/"shop"/f"{name}.parquet").equals(read_table(workspace_path(s3 + f"/shop/{name}.parquet")))
    with pytest.raises(FitmatchError, match="is no workspace .* copy it to one first"): prepare(s3 + "/elsewhere", tmp_path/"new", progress=False)


FIGURES = ("products", "refused", "edges", "labels", "weights_sha256", "pca_explained_variance", "kmeans", "mlp_accuracy", "matching", "scoreboard", "notes")

def test_the_whole_way_is_the_same_on_a_server_that_fails_and_is_slow(s3, tmp_path, capsys):
    "Every 9th request answered by 500 or 503, every 7th after a twentieth of a second"
    here = demo(tmp_path/"shop", 24, progress=False)
    s3.gate.fail(every=9, statuses=(500, 503), slow=.05, slow_every=7)
    there = demo(s3 + "/shop", 24, progress=False)
    assert {name: here[name] for name in FIGURES} == {name: there[name] for name in FIGURES} and s3.gate.injected > 10
    shop = load_catalogue(s3 + "/shop")
    same(shop.products, load_catalogue(tmp_path/"shop").products)
    near = [read_table(workspace_path(out)/"neighbours.parquet") for out in (tmp_path/"shop", s3 + "/shop")]
    assert near[0].drop_columns("similarity").equals(near[1].drop_columns("similarity")) and np.allclose(near[0]["similarity"], near[1]["similarity"], atol=1e-5)
    assert b"<html" in read_bytes(workspace_path(there["report"])) and there["report"] == s3 + "/shop/report.html"
    photo = tmp_path/"shop"/shop.products["image"][3]
    mine, theirs = (match_photos([photo], out) for out in (tmp_path/"shop", s3 + "/shop"))
    same(mine["neighbours"].drop(columns="similarity"), theirs["neighbours"].drop(columns="similarity"))
    assert mine["own"] == theirs["own"] and mine["threshold"] == theirs["threshold"]
    with pytest.raises(FitmatchError, match="no learned matcher"): match_photos([photo], s3 + "/shop", matcher="learned")
    s3.gate.well()
    capsys.readouterr()
    assert run_command_line(["match", str(photo), "--workspace", s3 + "/shop", "--json"]) == 0 and json.loads(capsys.readouterr().out)["own"] == {str(photo): shop.products["asin"][3]}
    assert run_command_line(["export", s3 + "/shop", str(tmp_path/"shop.csv")]) == 0 and len(pd.read_csv(tmp_path/"shop.csv")) == len(shop)
    demonstrated = open_shop(s3 + "/shop")
    assert len(demonstrated.X) == len(shop) and demonstrated.pictures.product(shop.products["asin"][0], 64)["picture"].startswith("data:image/webp")
    assert f"open_shop('{s3}/shop')" in demonstrated.code
    with pytest.raises(FitmatchError, match="holds the products of the drawn wardrobe"): run(tmp_path/"shop", s3 + "/shop", progress=False)


def test_answers_that_are_lost_do_no_harm(s3):
    "The server does what was asked, and says that it failed: what is sent again must not count twice"
    store = EmbeddingStore(s3 + "/shop", Tiny())
    s3.gate.fail(lost=5)
    for start in range(0, 12, 4): store.add(*tiny_rows(4, start, worth=1 + start))
    asins, X = store.to_numpy()
    assert asins.tolist() == [f"B{i:02}" for i in range(12)] and X[:, 0].tolist() == [1 + i//4*4 for i in range(12)] and s3.gate.injected > 3

def test_an_answer_that_breaks_off_is_asked_for_again(s3):
    path = workspace_path(s3 + "/numbers.bin")
    data = np.random.default_rng(0).bytes(200_000)
    with writing(path) as partial: partial.write_bytes(data)
    s3.gate.fail(cut=2)
    for _ in range(3): assert read_bytes(path) == data
    assert s3.gate.injected

# what cannot work is said in one line, within bounds

@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setitem(fitmatch.catalogue.S3_PATIENCE, "connect", 1); monkeypatch.setitem(fitmatch.catalogue.S3_PATIENCE, "answer", 1); monkeypatch.setitem(fitmatch.catalogue.S3_PATIENCE, "attempts", 1)


def every_door(place, wardrobe): # functions that use a workspace, each in another way
    return [lambda: load_catalogue(place), lambda: save_catalogue(select(wardrobe, np.arange(2)), place), lambda: EmbeddingStore(place, Tiny()), lambda: download_status(place), lambda: read_notes(place)]


def all_say(place, wardrobe, text, seconds=12):
    for ask in every_door(place, wardrobe):
        begin = time.monotonic()
        with pytest.raises(FitmatchError, match=text) as e: ask()
        assert time.monotonic() - begin < seconds and "\n" not in str(e.value) and len(str(e.value)) < 400


def test_a_bucket_that_is_not_there(s3, wardrobe, hasty): all_say("s3://no-such-bucket/shop", wardrobe, "there is no bucket no-such-bucket at http://127.0.0.1")
def test_without_rights(s3, wardrobe, hasty):
    s3.gate.fail(deny=True)
    all_say(s3 + "/shop", wardrobe, "refuses it .*mind AWS_ACCESS_KEY_ID")
def test_a_server_that_keeps_failing(s3, wardrobe, hasty):
    s3.gate.fail(every=1)
    all_say(s3 + "/shop", wardrobe, "keeps failing .*try again later")
def test_nobody_listens(s3, wardrobe, hasty, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    all_say(s3 + "/shop", wardrobe, "http://127.0.0.1:9 does not answer")
def test_somebody_listens_and_says_nothing(s3, wardrobe, hasty, monkeypatch):
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        all_say(s3 + "/shop", wardrobe, "does not answer: mind AWS_ENDPOINT_URL and the network")


def test_a_picture_is_not_refused_because_the_server_failed(s3, wardrobe, hasty):
    "A store that fails in the middle ends the command; it does not fill the quarantine"
    back = load_catalogue(save_catalogue(select(wardrobe, np.arange(6)), s3 + "/shop").root)
    s3.gate.fail(every=1, match="images")
    with pytest.raises(FitmatchError, match="keeps failing"): check_images(back, progress=False)
