"""Packaging of fitmatch; everything it says is read from settings.ini."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
python_versions = ["3.11", "3.12", "3.13"]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    url=cfg["git_url"],
    author=cfg["author"],
    author_email=cfg["author_email"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=cfg["keywords"].split(),
    packages=find_packages(include=["fitmatch", "fitmatch.*"]),
    package_data={"fitmatch": ["weights/*.safetensors", "weights/*.json", "weights/*.md", "*.json", "apps/*.ipynb", "apps/*.py", "apps/share/voila/templates/fitmatch/*"]},
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require={key.removesuffix("_requirements"): cfg[key].split() for key in cfg if key.endswith("_requirements")},
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
    },
    classifiers=["Development Status :: 3 - Alpha", "Intended Audience :: Developers",
                 "Topic :: Scientific/Engineering :: Image Recognition",
                 *(f"Programming Language :: Python :: {v}" for v in python_versions)],
    zip_safe=False,
)
