"""Encoders of other packages (timm, open_clip), of the products' words, and what is said in words: zero-shot labels, text queries.

No weights are downloaded: small networks get random weights, are saved as safetensors and loaded through the real packages,
and a hub of our own on this machine stands for the one on the net."""
import hashlib
import json
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_encoders import message, pictures

import fitmatch.encoders as encoders
import fitmatch.extras as extras
from fitmatch.embed import EmbeddingStore, check_vectors, embed
from fitmatch.encoders import encoder_info, encoder_table, list_encoders, load_encoder
from fitmatch.extras import PictureTextEncoder, zero_shot_labels
from fitmatch.titles import TitleVectors, join_vectors, load_titles, product_text, save_titles
from fitmatch.wardrobe import draw_wardrobe

TINY_TIMM = ("test_resnet.r160_in1k", "test_vit.r160_in1k", "test_efficientnet.r160_in1k", "test_convnext.r160_in1k")
TINY_CLIP = {"embed_dim": 32, "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
             "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}}
TINY_SIGLIP = {"embed_dim": 64, "init_logit_bias": -10, "custom_text": True,
               "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_pool": "token", "timm_proj": "none"},
               "text_cfg": {"context_length": 12, "vocab_size": 100, "hf_tokenizer_name": "tiny/words", "width": 64, "heads": 2, "layers": 2,
                            "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}}
SQUEEZED = {"mean": [.5, .5, .5], "std": [.5, .5, .5], "interpolation": "bicubic", "resize_mode": "squash"}


@pytest.fixture(scope="session")
def timm(): return pytest.importorskip("timm", reason="timm is not installed: pip install 'fitmatch[timm]'")


@pytest.fixture(scope="session")
def open_clip(): return pytest.importorskip("open_clip", reason="open_clip is not installed: pip install 'fitmatch[open_clip]'")


@pytest.fixture(scope="session")
def transformers(): return pytest.importorskip("transformers", reason="transformers is not installed: pip install 'fitmatch[open_clip]'")


def saved(network, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.clone().contiguous() for k, v in network.state_dict().items()}, path)
    return path


def shaken(network, seed=0):
    "A network none of whose weights is a constant, so that a weight left out or swapped is seen"
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if name.rpartition(".")[2] not in ("logit_scale", "logit_bias"): p.add_(torch.randn_like(p)*.02)
        for b in network.buffers():
            if b.is_floating_point() and b.ndim == 1: b.add_(torch.rand_like(b)*.1)
    return network.eval()


# ---- where an extra is missing
@pytest.mark.parametrize("package,name", [("timm", "timm:resnet18.a1_in1k"), ("open_clip", "open_clip:FashionCLIP"), ("open_clip", "open_clip:ViT-B-32/openai")])
def test_a_missing_extra_says_how_to_get_it(monkeypatch, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    extras._timm_names.cache_clear(); extras._clip_names.cache_clear(); extras._timm_plan.cache_clear()
    for call in (lambda: load_encoder(name), lambda: list_encoders(f"{package}:*")):
        assert f"pip install 'fitmatch[{package}]'" in message(call)


def test_the_fashion_encoders_are_known_without_any_extra(monkeypatch):
    for package in ("timm", "open_clip", "transformers", "huggingface_hub"): monkeypatch.setitem(sys.modules, package, None)
    table = encoder_table("*Fashion*")
    assert table.index.tolist() == ["open_clip:FashionCLIP", "open_clip:Marqo-FashionCLIP", "open_clip:Marqo-FashionSigLIP"]
    assert table.licence.tolist() == ["MIT", "Apache-2.0", "Apache-2.0"] and table.dim.tolist() == [512, 512, 768] and table.text.all()
    assert encoder_info("open_clip:FashionSigLIP").name == "open_clip:Marqo-FashionSigLIP"
    assert list_encoders("open_clip:FashionCLIP") == ["open_clip:FashionCLIP"] and "titles" in list_encoders()


def test_importing_the_encoders_imports_no_extra():
    code = ("import sys, fitmatch.encoders as e; e.list_encoders(); e.encoder_info('open_clip:FashionCLIP'); e.encoder_info('titles');"
            "found = {'timm', 'open_clip', 'transformers', 'huggingface_hub', 'sklearn'} & set(sys.modules); assert not found, found")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_extras_are_in_the_settings():
    root = Path(__file__).parents[1]
    settings = (root/"settings.ini").read_text()
    assert "timm_requirements" in settings and "open_clip_requirements" in settings
    runtime = next(line for line in settings.splitlines() if line.startswith("requirements")).split()
    assert not {"timm", "open_clip_torch", "transformers", "huggingface_hub"} & set(runtime)


# ---- timm
@pytest.mark.parametrize("short", TINY_TIMM)
def test_timm_gives_what_timm_gives(timm, tmp_path, short):
    whole = shaken(timm.create_model(short, pretrained=False))
    path = saved(whole, tmp_path/"model.safetensors")
    encoder = load_encoder(f"timm:{short}", weights=path)
    images = pictures(3)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(whole), is_training=False)
    batch = torch.stack([transform(image) for image in images])
    with torch.inference_mode(): features = whole.forward_head(whole.forward_features(batch), pre_logits=True).numpy()
    np.testing.assert_allclose(encoder(images), features, rtol=1e-4, atol=1e-5*np.abs(features).max())
    info = encoder.info
    assert encoder(images).shape == (3, info.dim) and info.dim == encoder_info(f"timm:{short}").dim and info.input_size == batch.shape[-1]
    assert encoder.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest() and info.weights == "model.safetensors"
    assert encoder_info(f"timm:{short}").weights == f"https://huggingface.co/timm/{short}" and info.licence and info.preprocessing and info.parameters


def test_a_timm_file_may_have_another_head_or_none(timm, tmp_path):
    whole = shaken(timm.create_model(TINY_TIMM[0], pretrained=False))
    state = {k: v.clone() for k, v in whole.state_dict().items()}
    expected = load_encoder(f"timm:{TINY_TIMM[0]}", weights=saved(whole, tmp_path/"whole.safetensors"))(pictures(2))
    bare = {k: v for k, v in state.items() if not k.startswith("fc.")}
    for head in ({}, {"fc.weight": torch.zeros(7, state["fc.weight"].shape[1]), "fc.bias": torch.zeros(7)}):
        save_file(bare | head, tmp_path/"other.safetensors")
        np.testing.assert_array_equal(load_encoder(f"timm:{TINY_TIMM[0]}", weights=tmp_path/"other.safetensors")(pictures(2)), expected)


def test_timm_weights_of_another_network_are_refused(timm, tmp_path):
    path = saved(timm.create_model(TINY_TIMM[1], pretrained=False), tmp_path/"vit.safetensors")
    assert f"does not fit timm:{TINY_TIMM[0]}" in message(load_encoder, f"timm:{TINY_TIMM[0]}", weights=path)
    state = timm.create_model(TINY_TIMM[0], pretrained=False).state_dict()
    save_file({k: v for k, v in state.items() if k != "layer1.0.conv1.weight"}, tmp_path/"gap.safetensors")
    assert "layer1.0.conv1.weight" in message(load_encoder, f"timm:{TINY_TIMM[0]}", weights=tmp_path/"gap.safetensors")
    torch.save(state, tmp_path/"model.bin")
    assert "pickle" in message(load_encoder, f"timm:{TINY_TIMM[0]}", weights=tmp_path/"model.bin")


def test_timm_names(timm):
    names = list_encoders("timm:*")
    assert len(names) > 1_000 and set(names) <= {f"timm:{n}" for n in timm.list_pretrained()} and list_encoders("timm:resnet18.*") == [n for n in names if n.startswith("timm:resnet18.")]
    assert encoder_info("timm:resnet18").name.startswith("timm:resnet18.")  # its first choice, named in full
    for wrong in ("timm:resnet81.a1_in1k", "timm:resnet18.nobodys", "timm:"): assert "list_encoders('timm:*')" in message(load_encoder, wrong)
    assert "did you mean timm:resnet18.a1_in1k" in message(load_encoder, "timm:resnet18.a1_in2k")


@pytest.mark.parametrize("name", ["timm:resnet50.a1_in1k", "timm:vit_base_patch16_224.augreg_in21k", "timm:mobilenetv3_large_100.ra_in1k", "timm:convnext_tiny.fb_in1k",
                                  "timm:swin_tiny_patch4_window7_224.ms_in1k", "timm:deit_tiny_distilled_patch16_224.fb_in1k", "timm:efficientnet_b0.ra_in1k"])
def test_the_size_of_timm_vectors_is_known_beforehand(timm, name):
    with torch.device("meta"): network = timm.create_model(name.removeprefix("timm:"), pretrained=False, num_classes=0).eval()
    info = encoder_info(name)
    assert network(torch.zeros(1, 3, info.input_size, info.input_size, device="meta")).shape == (1, info.dim)


# ---- open_clip
@pytest.fixture(scope="session")
def tiny_clip(open_clip, tmp_path_factory):
    "(folder as on the hub, open_clip's model) of a very small CLIP"
    folder = tmp_path_factory.mktemp("tiny-clip")
    (folder/"open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_CLIP, "preprocess_cfg": {"mean": [.4, .5, .6], "std": [.2, .3, .4], "interpolation": "bilinear"}}))
    model = shaken(open_clip.create_model(f"local-dir:{folder}", load_weights=False))
    saved(model, folder/"open_clip_model.safetensors")
    return folder, model


def test_open_clip_gives_what_open_clip_gives(open_clip, tiny_clip):
    folder, model = tiny_clip
    encoder = load_encoder("open_clip:hf-hub:tiny/clip", weights=folder/"open_clip_model.safetensors")
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    images, texts = pictures(3), ["a red dress", "shoes", "a very long sentence about a coat that goes on and on beyond what the tower reads at once"]
    with torch.inference_mode():
        x = theirs.encode_image(torch.stack([preprocess(i) for i in images]), normalize=True).numpy()
        t = theirs.encode_text(tokenizer(texts), normalize=True).numpy()
    np.testing.assert_allclose(encoder(images), x, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_text(texts), t, atol=1e-5)
    assert encoder.encode_text("shoes").shape == (1, 32) and encoder.encode_text([]).shape == (0, 32) and encoder(images).dtype == encoder.encode_text(texts).dtype == np.float32
    np.testing.assert_allclose(encoder.encode_text(texts, batch_size=2), t, atol=1e-5)
    assert np.allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5) and encoder.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()))
    info = encoder.info
    assert (info.name, info.dim, info.input_size, info.text) == ("open_clip:hf-hub:tiny/clip", 32, 64, True) and "[0.4, 0.5, 0.6]" in info.preprocessing
    assert info.parameters == sum(p.numel() for p in model.parameters()) and encoder.weights_sha256 == encoders.file_sha256(folder/"open_clip_model.safetensors")


def test_empty_texts_are_refused(tiny_clip):
    encoder = load_encoder("open_clip:hf-hub:tiny/clip", weights=tiny_clip[0]/"open_clip_model.safetensors")
    for wrong in ([""], ["shoes", " "], [None], [3]): assert "string with a word" in message(encoder.encode_text, wrong)


def test_weights_of_another_open_clip_model_are_refused(tiny_clip, tmp_path):
    file = tiny_clip[0]/"open_clip_model.safetensors"
    assert "does not fit open_clip:ViT-B-32/openai" in message(load_encoder, "open_clip:ViT-B-32/openai", weights=file)
    torch.save(tiny_clip[1].state_dict(), tmp_path/"open_clip_pytorch_model.bin")
    assert "pickle" in message(load_encoder, "open_clip:ViT-B-32/openai", weights=tmp_path/"open_clip_pytorch_model.bin")
    state = {k: v for k, v in encoders.read_weights(file).items() if k != "text_projection"}
    (tmp_path/"open_clip_config.json").write_bytes((tiny_clip[0]/"open_clip_config.json").read_bytes())
    save_file(state, tmp_path/"gap.safetensors")
    assert "text_projection" in message(load_encoder, "open_clip:hf-hub:tiny/clip", weights=tmp_path/"gap.safetensors")


def test_a_configuration_cannot_lead_elsewhere(open_clip, tmp_path):
    file = saved(torch.nn.Linear(2, 2), tmp_path/"open_clip_model.safetensors")
    for wrong in ({"text_cfg": {"hf_model_name": "somebody/remote-code"}, "vision_cfg": {}}, {"text_cfg": {}, "vision_cfg": {"timm_model_name": "hf-hub:somebody/else"}}):
        (tmp_path/"open_clip_config.json").write_text(json.dumps({"model_cfg": wrong}))
        assert "another repository" in message(load_encoder, "open_clip:hf-hub:a/b", weights=file)
    for wrong in ("{}", "[1]", "not json", '{"model_cfg": {"embed_dim": 3, "vision_cfg": {"no_such_setting": 1}, "text_cfg": {}}}'):
        (tmp_path/"open_clip_config.json").write_text(wrong)
        text = message(load_encoder, "open_clip:hf-hub:a/b", weights=file)
        assert "no configuration" in text or "cannot build" in text


def test_open_clip_names(open_clip):
    names = list_encoders("open_clip:*")
    assert len(names) > 100 and {"open_clip:FashionCLIP", "open_clip:ViT-B-32/laion2b_s34b_b79k", "open_clip:ViT-B-16-SigLIP/webli"} <= set(names)
    assert not [n for n in names if "roberta" in n or "nllb" in n or "ViTamin" in n]  # towers from elsewhere; pickles only
    for wrong in ("open_clip:ViT-B-32", "open_clip:ViT-B-32/nobodys", "open_clip:"): assert "list_encoders('open_clip:*')" in message(load_encoder, wrong)
    assert "open_clip:FashionCLIP" in message(load_encoder, "fashionclip")
    assert "safetensors" in message(load_encoder, "open_clip:ViTamin-S/datacomp1b")


def test_what_is_said_of_the_fashion_encoders_is_so(open_clip):
    for name in list_encoders("open_clip:*Fashion*"):
        info, plan = encoder_info(name), extras._clip_plan(name)
        with torch.device("meta"): model = extras._clip_model(plan, "meta")
        assert sum(p.numel() for p in model.parameters()) == info.parameters and plan.model["embed_dim"] == info.dim and set(model.visual.image_size) == {info.input_size}
        assert extras._clip_preprocessing(224, model.visual.preprocess_cfg) == info.preprocessing.replace("(0.", "(0.")
    siglip = open_clip.get_pretrained_cfg("ViT-B-16-SigLIP", "webli")
    assert all(list(np.atleast_1d(siglip[key])) == list(np.atleast_1d(value)) for key, value in extras._SIGLIP.items())


def test_quick_gelu_follows_the_weights(open_clip):
    "ViT-B-32/openai was trained with another activation than open_clip's plain ViT-B-32, which open_clip only warns about"
    assert extras._clip_plan("open_clip:ViT-B-32/openai").model["quick_gelu"] and not extras._clip_plan("open_clip:ViT-B-32/laion2b_s34b_b79k").model.get("quick_gelu")


@pytest.fixture(scope="session")
def transformers_clip(transformers, tmp_path_factory):
    "FashionCLIP's architecture with random weights, saved as transformers saves it"
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("fashion-clip")
    model = transformers.CLIPModel(transformers.CLIPConfig(projection_dim=512)).eval()
    with torch.no_grad():  # biases and norms are constants in a new model: shake them, so that a swap is seen
        for p in model.parameters():
            if p.ndim == 1: p.add_(torch.randn_like(p)*.05)
    model.save_pretrained(folder)
    return folder, model


def test_fashion_clip_is_read_from_the_format_it_is_published_in(open_clip, transformers_clip):
    folder, model = transformers_clip
    encoder = load_encoder("open_clip:FashionCLIP", weights=folder/"model.safetensors")
    images, texts = pictures(3), ["a red dress", "running shoes"]
    batch = torch.stack([encoder.preprocess(i) for i in images])
    ids = encoder.tokenizer(texts)
    ends = ids.argmax(1, keepdim=True)
    with torch.inference_mode():
        pooled = model.vision_model(pixel_values=batch).pooler_output
        x = torch.nn.functional.normalize(model.visual_projection(pooled), dim=1).numpy()
        hidden = model.text_model(input_ids=ids).last_hidden_state
        t = torch.nn.functional.normalize(model.text_projection(hidden[torch.arange(2), ends[:, 0]]), dim=1).numpy()
    assert encoder.info.dim == 512 and encoder.info.licence == "MIT"
    np.testing.assert_allclose(encoder(images), x, atol=2e-5)
    np.testing.assert_allclose(encoder.encode_text(texts), t, atol=2e-5)
    assert ids[0, :5].tolist() == [49406, 320, 736, 2595, 49407]  # "a red dress" in CLIP's own vocabulary


# ---- a hub on this machine
class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self): self.answer(body=False)
    def do_GET(self): self.answer(body=True)
    def log_message(self, *args): pass

    def answer(self, body):
        self.server.asked.append((self.command, self.path))
        if self.path == "/": return self.reply(200, b"a hub")
        if self.server.stalls and self.command == "GET": time.sleep(self.server.stalls); return
        repo, _, name = self.path.strip("/").partition("/resolve/main/")
        repo = repo.removeprefix("api/models/")
        if repo not in self.server.repos: return self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})
        if repo.startswith("gated/"): return self.reply(403, b"", {"X-Error-Code": "GatedRepo"})
        if name not in self.server.repos[repo]: return self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = Path(self.server.repos[repo][name]).read_bytes()
        self.reply(200, data if body else b"", {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": "0"*40, "Content-Length": str(len(data))})

    def reply(self, code, data, headers=None):
        self.send_response(code)
        for key, value in ({"Content-Length": str(len(data))} | (headers or {})).items(): self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    "A server that speaks as the hub does; .repos is {owner/name: {file: path}}, .asked what it was asked"
    constants = pytest.importorskip("huggingface_hub.constants", reason="huggingface_hub is not installed: it comes with fitmatch[timm] and fitmatch[open_clip]")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repos, server.asked, server.stalls = {}, [], 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1"); monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path/"hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown(); server.server_close()


def test_weights_come_from_the_hub_once_and_then_from_its_cache(timm, hub, tmp_path, monkeypatch):
    short = TINY_TIMM[0]
    path = saved(shaken(timm.create_model(short, pretrained=False)), tmp_path/"model.safetensors")
    hub.repos[f"timm/{short}"] = {"model.safetensors": path, "pytorch_model.bin": tmp_path/"never"}
    encoder = load_encoder(f"timm:{short}")
    assert encoder.weights_sha256 == encoders.file_sha256(path) and encoder.info.weights == f"https://huggingface.co/timm/{short}"
    np.testing.assert_array_equal(encoder(pictures(2)), load_encoder(f"timm:{short}", weights=path)(pictures(2)))
    asked = len(hub.asked)
    load_encoder(f"timm:{short}")
    assert len(hub.asked) == asked and not [a for a in hub.asked if ".bin" in a[1]]
    import huggingface_hub.constants as constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    load_encoder(f"timm:{short}")  # what is kept needs no network


def words_tokenizer(folder):
    "A small tokenizer of transformers, with its files as on the hub"
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    vocabulary = {"<pad>": 0, "<unk>": 1, "a": 2, "red": 3, "dress": 4, "shoes": 5}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    return {p.name: p for p in Path(folder).iterdir()}


def test_a_model_with_a_tokenizer_of_its_own_comes_from_the_hub(open_clip, transformers, hub, tmp_path):
    folder = tmp_path/"siglip"; folder.mkdir()
    (folder/"open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_SIGLIP, "preprocess_cfg": SQUEEZED}))
    model = shaken(open_clip.create_model(f"local-dir:{folder}", load_weights=False))
    saved(model, folder/"open_clip_model.safetensors")
    hub.repos["tiny/siglip"] = {p.name: p for p in folder.iterdir()}
    encoder = load_encoder("open_clip:hf-hub:tiny/siglip")
    assert not [path for _, path in hub.asked if "tiny/words" in path]  # pictures need no tokenizer
    assert encoder(pictures(2)).shape == (2, 64) and encoder.info.preprocessing.startswith("squeezed to 160")
    text = message(encoder.encode_text, "a red dress")
    assert "tiny/words" in text and "no public repository" in text
    hub.repos["tiny/words"] = words_tokenizer(tmp_path/"words")
    t = encoder.encode_text(["a red dress", "shoes"])
    ids = torch.zeros(2, 12, dtype=torch.int64); ids[0, :3], ids[1, 0] = torch.tensor([2, 3, 4]), 5
    with torch.inference_mode(): expected = model.encode_text(ids, normalize=True).numpy()
    np.testing.assert_allclose(t, expected, atol=1e-5)
    assert {path.rpartition("/")[2] for _, path in hub.asked} <= {"", "open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}


def test_only_safetensors_are_taken_from_the_hub(open_clip, tiny_clip, hub, tmp_path):
    torch.save(tiny_clip[1].state_dict(), tmp_path/"open_clip_pytorch_model.bin")
    hub.repos["old/clip"] = {"open_clip_config.json": tiny_clip[0]/"open_clip_config.json", "open_clip_pytorch_model.bin": tmp_path/"open_clip_pytorch_model.bin"}
    text = message(load_encoder, "open_clip:hf-hub:old/clip")
    assert "no open_clip_model.safetensors" in text and "no pickle" in text
    torch.save(tiny_clip[1].state_dict(), tmp_path/"disguised.safetensors")
    hub.repos["sly/clip"] = {"open_clip_config.json": tiny_clip[0]/"open_clip_config.json", "open_clip_model.safetensors": tmp_path/"disguised.safetensors"}
    assert "is a pickle" in message(load_encoder, "open_clip:hf-hub:sly/clip")
    assert not [path for _, path in hub.asked if path.endswith((".bin", ".pt", ".py"))]


def test_what_the_hub_says_is_passed_on(open_clip, hub):
    hub.repos["gated/clip"] = {}
    assert "hf auth login" in message(load_encoder, "open_clip:hf-hub:gated/clip")
    assert "no public repository" in message(load_encoder, "open_clip:hf-hub:nobody/nothing")
    assert "owner/name" in message(load_encoder, "open_clip:hf-hub:no//name")


@pytest.mark.alone
def test_offline_is_one_line_within_seconds(timm, open_clip, hub, monkeypatch):
    import huggingface_hub.constants as constants
    names = ["timm:resnet50.a1_in1k", "open_clip:FashionCLIP", "open_clip:Marqo-FashionSigLIP", "open_clip:ViT-B-32/openai", "open_clip:hf-hub:a/b"]
    started = time.perf_counter()
    with socket.socket() as closed: closed.bind(("127.0.0.1", 0)); port = closed.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    for name in names:
        text = message(load_encoder, name)
        assert "cannot be reached" in text and "weights=" in text and "fitmatch-cnn" in text
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in names: assert "HF_HUB_OFFLINE is set" in message(load_encoder, name)
    assert time.perf_counter() - started < 8


@pytest.mark.alone
def test_a_hub_that_never_answers_is_left(timm, hub, monkeypatch):
    monkeypatch.setattr(encoders, "PATIENCE", .5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0)); silent.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.perf_counter()
        assert "cannot be reached" in message(load_encoder, "timm:resnet50.a1_in1k")
    assert time.perf_counter() - started < 3


def test_a_download_that_stalls_ends_in_one_line(timm, hub, tmp_path, monkeypatch):
    import huggingface_hub.constants as constants
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", .2)  # 10 s by default, tried six times
    hub.repos[f"timm/{TINY_TIMM[0]}"] = {"model.safetensors": saved(timm.create_model(TINY_TIMM[0], pretrained=False), tmp_path/"model.safetensors")}
    hub.stalls = 2
    started = time.perf_counter()
    assert "broke off" in message(load_encoder, f"timm:{TINY_TIMM[0]}")
    assert time.perf_counter() - started < 15


# ---- safetensors or pickle
@pytest.mark.parametrize("first", [0x80, 0x50])
def test_a_safetensors_file_may_begin_like_a_pickle(tmp_path, first):
    "Its first byte is the length of its header, which can be any number"
    for pad in range(4096):
        save_file({"w": torch.arange(3.)}, tmp_path/"w.safetensors", metadata={"pad": "x"*pad})
        head = (tmp_path/"w.safetensors").read_bytes()[:2]
        if head[0] == first and (first == 0x80 or head[1] == 0x4B or pad > 1000): break
    assert head[0] == first
    assert encoders.read_weights(tmp_path/"w.safetensors")["w"].tolist() == [0, 1, 2]


# ---- labels and searches in words
class Points(torch.nn.Module):
    "Two towers over a plane: a picture is its mean red and blue, a text is one of two words"
    logit_scale = torch.tensor(10.).log()
    def encode_image(self, x, normalize=True): return torch.nn.functional.normalize(x.mean((2, 3))[:, ::2] + 1e-3, dim=1)
    def encode_text(self, tokens, normalize=True): return torch.nn.functional.normalize(tokens.float(), dim=1)


@pytest.fixture
def seer():
    info = encoders.EncoderInfo("plane", 2, 8, 8, "Apache-2.0", 0, "none", "red and blue", "squeezed to 8 × 8", text=True)
    tokenizer = lambda texts: torch.tensor([[float("red" in t), float("blue" in t)] for t in texts])
    return PictureTextEncoder(info, Points(), encoders._square(8), "0"*64, lambda: tokenizer, "cpu")


def test_zero_shot_is_a_softmax_over_scaled_cosines(seer):
    X = seer([Image.new("RGB", (20, 20), colour) for colour in ("red", "blue", (150, 0, 100))])
    answer = zero_shot_labels(seer, 3*X, ["red thing", "blue thing"], prompt="one {} alone")  # lengths do not matter
    assert answer.label.tolist() == ["red thing", "blue thing", "red thing"] and list(answer) == ["label", "probability"]
    unit = X[2]/np.linalg.norm(X[2])
    assert answer.probability[2] == pytest.approx(1/(1 + np.exp(-10*(unit[0] - unit[1]))), abs=1e-5)
    assert answer.probability[0] > .99 and (answer.probability[2] < answer.probability[0])
    assert len(zero_shot_labels(seer, X[:0], ["red", "blue"])) == 0


def test_zero_shot_says_what_it_needs(seer):
    X = np.eye(2, dtype=np.float32)
    for labels in ([], ["red"], ["red", "red"]): assert "at least two labels" in message(zero_shot_labels, seer, X, labels)
    assert "no place for the label" in message(zero_shot_labels, seer, X, ["red", "blue"], prompt="a photo")
    assert "makes 2 numbers" in message(zero_shot_labels, seer, np.ones((2, 3)), ["red", "blue"])
    for encoder in (load_encoder(), load_encoder("pixels")):
        text = message(zero_shot_labels, encoder, np.ones((1, encoder.info.dim)), ["red", "blue"])
        assert encoder.info.name in text and "open_clip:" in text and "'titles'" in text


def test_a_label_with_braces_is_a_label(seer):
    assert zero_shot_labels(seer, np.eye(2), ["red {x}", "blue {0}"]).label.tolist() == ["red {x}", "blue {0}"]


def test_encoders_say_whether_they_read_text():
    names = [name for name in list_encoders() if not name.startswith("regnet")]  # whose sizes are slow to find out
    table = pd.concat([encoder_table(name) for name in names])
    assert table.index[table.text].tolist() == ["titles", *list_encoders("*Fashion*")]
    assert (table[["licence", "weights", "description"]] != "").all().all() and (table.drop(["titles", "pixels"]).preprocessing != "").all()


# ---- the words of the products
@pytest.fixture(scope="module")
def shop(): return draw_wardrobe(200, random_state=3, dirty=False)


@pytest.fixture(scope="module")
def titles(shop): return TitleVectors(dim=48).fit(shop.products)


def test_titles_repeat_and_are_of_unit_length(shop, titles):
    T = titles.transform(shop.products)
    assert T.shape == (200, 48) and T.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(T, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(T, TitleVectors(dim=48).fit_transform(shop.products))
    assert not np.allclose(np.abs(T), np.abs(TitleVectors(dim=48, columns=("title",)).fit_transform(shop.products)))


def test_titles_are_cosines_of_tfidf_in_fewer_dimensions(shop):
    "With all directions kept the cosines are those of TF-IDF itself"
    from sklearn.feature_extraction.text import TfidfVectorizer
    text = product_text(shop.products)
    full = TitleVectors(dim=10_000).fit_transform(shop.products)
    X = TfidfVectorizer(strip_accents="unicode", token_pattern=r"(?u)\w+(?:[-'’]\w+)*", sublinear_tf=True).fit_transform(text)
    np.testing.assert_allclose(full @ full.copy().T, (X @ X.T).toarray(), atol=1e-3)


def test_titles_find_what_is_said(shop, titles):
    T, products = titles.transform(shop.products), shop.products
    best = np.argsort(-(T @ titles.encode_text("women's dresses")[0]), kind="stable")[:5]
    assert (products.ground_truth.iloc[best] == "dresses").all()
    np.testing.assert_allclose(titles.encode_text([product_text(products)[7]])[0], T[7], atol=1e-6)


def test_sklearn_conventions(titles, shop):
    from sklearn.base import clone
    from sklearn.exceptions import NotFittedError
    fresh = clone(titles)
    assert fresh.get_params() == titles.get_params() and not hasattr(fresh, "words_")
    with pytest.raises(NotFittedError): fresh.transform(shop.products)
    assert fresh.fit(shop.products) is fresh


def test_products_without_words_are_never_zero(shop, titles):
    "NaN, which the store and every comparison refuse, instead of a zero that resembles everything"
    silent = shop.products.head(4).assign(title=["", None, "   ", "qwzxv"], category=None, color=np.nan)
    V = titles.transform(silent)
    assert np.isnan(V).all()
    assert "not finite" in message(check_vectors, V, silent.asin.tolist())
    assert "4 of 4 products" in message(join_vectors, V, V)
    for products in (silent.drop(index=silent.index[3]), silent.iloc[:0]): assert "no word to learn" in message(TitleVectors().fit, products)
    assert np.isnan(titles.encode_text([None, ""])).all() and titles.encode_text([]).shape == (0, 48)


@pytest.mark.parametrize("title", ["shoes", "red shoes", "ботинки красные", "靴 赤い", "👟 👟", "O'Neill t-shirt", "a"*50_000, "x\x00y", "1/2"])
def test_odd_and_few_titles(title, tmp_path):
    products = pd.DataFrame({"title": [title, "blue hat"]})
    titles = TitleVectors().fit(products)
    V = titles.transform(products)
    assert V.shape[1] <= 2 and np.isfinite(V[1]).all() and np.isnan(V[0]).all() == (title == "👟 👟")
    np.testing.assert_array_equal(load_titles(save_titles(titles, tmp_path/"t.safetensors")).transform(products), V)


def test_one_product_is_enough():
    assert TitleVectors().fit_transform(pd.DataFrame({"title": ["red shoes"]})).shape == (1, 1)


def test_title_columns_may_have_other_names(shop):
    renamed = shop.products.rename(columns={"title": "Titel", "color": "Farbe"})
    titles = TitleVectors(columns=("Titel", "Farbe")).fit(renamed)
    assert titles.transform(renamed).shape[0] == 200
    text = message(TitleVectors(columns=("nothing",)).fit, renamed)
    assert "no column nothing" in text and "Titel" in text


def test_titles_are_an_encoder_whose_vectors_can_be_kept(shop, titles, tmp_path):
    path = save_titles(titles, tmp_path/"titles.safetensors")
    encoder = load_encoder("titles", weights=path)
    T = encoder(shop)
    np.testing.assert_array_equal(T, titles.transform(shop.products))
    np.testing.assert_array_equal(encoder(shop.products), T)
    assert (encoder.info.name, encoder.info.dim, encoder.weights_sha256) == ("titles", 48, encoders.file_sha256(path))
    store = EmbeddingStore(tmp_path, encoder)
    store.add(shop.products.asin, [None]*len(T), T)
    asins, kept = store.to_numpy()
    np.testing.assert_array_equal(kept, T[np.argsort(shop.products.asin.to_numpy())])
    other = load_encoder("titles", weights=save_titles(TitleVectors(dim=48, columns=("title",)).fit(shop.products), tmp_path/"other.safetensors"))
    assert "holds embeddings of titles" in message(EmbeddingStore, tmp_path, other)
    assert "sees no picture" in message(embed, shop, encoder, progress=False)
    assert "sees no picture" in message(zero_shot_labels, encoder, T, ["red", "blue"])


def test_titles_without_a_file_say_how_to_make_one():
    text = message(load_encoder, "titles")
    assert "TitleVectors().fit" in text and "save_titles" in text


def test_damaged_and_foreign_title_files(titles, tmp_path):
    path = save_titles(titles, tmp_path/"titles.safetensors")
    assert "no file" in message(load_titles, tmp_path/"none")
    (tmp_path/"cut").write_bytes(path.read_bytes()[:-100])
    (tmp_path/"pickle").write_bytes(b"\x80\x04\x95\x10cos\nsystem\n")
    for name in ("cut", "pickle"): assert "not a sound file" in message(load_titles, tmp_path/name)
    assert "no title vectors" in message(load_titles, encoders.BUNDLED)
    assert "no title vectors" in message(load_encoder, "titles", weights=encoders.BUNDLED)
    for notes in ({}, [], {"words": 3, "settings": {}}, {"words": ["a"], "settings": {"columns": ["title"]}}, {"words": titles.words_, "settings": {"nonsense": 1, "columns": []}},
                  {"words": titles.words_, "settings": None}):
        save_file({"components": torch.from_numpy(titles.components_), "idf": torch.from_numpy(titles.idf_)}, tmp_path/"odd", metadata={"fitmatch_titles": json.dumps(notes)})
        assert "save_titles" in message(load_titles, tmp_path/"odd")
    save_file({"components": torch.zeros(1)}, tmp_path/"less", metadata={"fitmatch_titles": json.dumps({"words": ["a"], "settings": {"columns": ["title"]}})})
    assert "save_titles" in message(load_titles, tmp_path/"less")


def test_real_titles_know_their_category(real_data, figure):
    "FashionVC: titles alone, are the five nearest of the same category?"
    from fitmatch.sources import read_fashionvc
    products = read_fashionvc(real_data("fashionvc")).products
    T = TitleVectors(columns=("title",)).fit_transform(products)
    said = np.isfinite(T).all(axis=1)
    queries = np.random.default_rng(0).choice(np.flatnonzero(said), 500, replace=False)
    similarity = T[queries] @ np.nan_to_num(T).T
    similarity[np.arange(500), queries] = -2
    near = np.argpartition(-similarity, 5, axis=1)[:, :5]
    category = products.category.to_numpy()
    share, chance = (category[near] == category[queries, None]).mean(), (products.category.value_counts(normalize=True)**2).sum()
    figure(f"titles: {share:.3f} of five neighbours by title share the category on FashionVC ({len(products):,} products, chance {chance:.3f})")
    assert share > .85


# ---- pictures and words together
def unit(X): return X/np.linalg.norm(X, axis=1, keepdims=True)


@pytest.mark.parametrize("weights", [(.5, .5), (1, 3), (.9, .1), (1, 0), (0, 2)])
def test_joined_cosines_are_the_weighted_sum(weights):
    draw = np.random.default_rng(1)
    P, T = draw.normal(size=(30, 7)) + 5, draw.normal(size=(30, 4)) - 2
    Z, w = join_vectors(P, T, weights), np.array(weights)/sum(weights)
    p, t = unit(P - P.mean(0)), unit(T - T.mean(0))
    assert Z.shape == (30, 11) and Z.dtype == np.float32
    np.testing.assert_allclose(Z @ Z.copy().T, w[0]*(p @ p.copy().T) + w[1]*(t @ t.copy().T), atol=1e-5)


def test_a_missing_part_adds_nothing():
    draw = np.random.default_rng(2)
    P, T = draw.normal(size=(30, 7)), draw.normal(size=(30, 4))
    T[10:20], P[20:25] = np.nan, np.nan
    Z = join_vectors(P, T, (.7, .3))
    assert np.isfinite(Z).all() and (Z[10:20, 7:] == 0).all() and (Z[20:25, :7] == 0).all()
    p, t = P - np.nanmean(P, 0), T - np.nanmean(T, 0)
    complete = np.r_[0:10, 25:30]
    p, t = p/np.linalg.norm(p, axis=1, keepdims=True), t/np.linalg.norm(t, axis=1, keepdims=True)
    np.testing.assert_allclose(Z[10:20] @ Z[complete].T, np.sqrt(.7)*(p[10:20] @ p[complete].T), atol=1e-5)  # the same factor for all: the same order
    np.testing.assert_allclose(Z[20:25] @ Z[10:20].T, 0, atol=1e-6)  # nothing in common, nothing known
    check_vectors(Z)


def test_a_query_uses_the_catalogues_means():
    draw = np.random.default_rng(3)
    P, T = draw.normal(size=(30, 7)) + 3, draw.normal(size=(30, 4))
    means = (P.mean(0), T.mean(0))
    np.testing.assert_allclose(join_vectors(P[4:5], T[4:5], means=means), join_vectors(P, T)[4:5], atol=1e-6)
    assert (join_vectors(P[4:5], None, means=means)[:, 7:] == 0).all() and (join_vectors(None, T[4:5], means=means)[:, :7] == 0).all()
    assert "catalogue's means" in message(join_vectors, P[:1], T[:1])


def test_parts_that_do_not_fit():
    P = np.ones((3, 2)) + np.eye(3, 2)
    for wrong in ((1,), (1, 2, 3), (-1, 2), (0, 0), (np.nan, 1), "ab"): assert "weights are two numbers" in message(join_vectors, P, P, wrong)
    assert "same products" in message(join_vectors, P, P[:2])
    assert "no width" in message(join_vectors, P, None) and "no width" in message(join_vectors, None, None)
    half = P.copy(); half[0, 0] = np.nan
    assert "whole row" in message(join_vectors, half, P)
    half[0, 0] = np.inf
    assert "whole row" in message(join_vectors, half, P)
