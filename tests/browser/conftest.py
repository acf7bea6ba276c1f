"""A photo whose name is an attack"""
import pytest


@pytest.fixture
def photo(tmp_path):
    "A photo whose very name is an attack"
    from fitmatch.wardrobe import draw_wardrobe
    catalogue = draw_wardrobe(24, random_state=7, dirty=False, root=tmp_path/"other")
    path = tmp_path/"<img src=x onerror=alert(8)>.jpg"
    path.write_bytes(catalogue.image_path(0).read_bytes())
    return path
