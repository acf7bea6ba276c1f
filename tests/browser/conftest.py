"""A shop whose every text is an attack, and a photo whose name is one"""
from dataclasses import replace

import pytest

HOSTILE = ["<script>window.PWNED=1</script>", "</script><img src=x onerror=window.PWNED=1;alert(1)>", "<svg onload=alert(2)>", "\"><iframe srcdoc='<script>parent.PWNED=1</script>'>",
           "' onmouseover='alert(3)", "<style>body{display:none}</style>", "<a href='javascript:alert(4)'>x</a>", r"$\href{javascript:alert(5)}{x}$", "%{x} ![a](http://evil.example/a.png)",
           "{{7*7}}{% raw %}", "</textarea><input autofocus onfocus=alert(6)>", "&lt;img src=x onerror=alert(7)&gt;"]


@pytest.fixture(scope="session")
def hostile_workspace(tmp_path_factory):
    "A workspace of 140 products; every title, category and label carries an attack"
    from fitmatch.catalogue import save_catalogue
    from fitmatch.encoders import load_encoder
    from fitmatch.images import check_images
    from fitmatch.prepare import write_json
    from fitmatch.wardrobe import draw_wardrobe
    folder = tmp_path_factory.mktemp("hostile")
    catalogue = check_images(draw_wardrobe(140, dirty=False, root=folder/"drawn"), progress=False)
    attack = lambda texts: [f"{text} {HOSTILE[i % len(HOSTILE)]}" for i, text in enumerate(texts)]
    labels = {label: f"{label} {HOSTILE[i]}" for i, label in enumerate(catalogue.labels)}
    products = catalogue.products.assign(title=attack(catalogue.products["title"]), category=attack(catalogue.products["category"]), ground_truth=catalogue.products["ground_truth"].map(labels))
    save_catalogue(replace(catalogue, products=products, labels=tuple(labels.values())), folder/"workspace")
    encoder = load_encoder("fitmatch-cnn")
    write_json(folder/"workspace"/"run.json", {"encoder": encoder.info.name, "weights_sha256": encoder.weights_sha256, "matching": {"threshold": .5}})
    return folder/"workspace"


@pytest.fixture
def photo(tmp_path):
    "A photo whose very name is an attack"
    from fitmatch.wardrobe import draw_wardrobe
    catalogue = draw_wardrobe(24, random_state=7, dirty=False, root=tmp_path/"other")
    path = tmp_path/"<img src=x onerror=alert(8)>.jpg"
    path.write_bytes(catalogue.image_path(0).read_bytes())
    return path
