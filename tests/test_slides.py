"""The slides hold what they promise: twelve at most, pictures with words, no figure that README or RESULTS does not have"""
import re
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SOURCE = (ROOT/"nbs"/"slides.qmd").read_text(encoding="utf-8")
_, FRONT, BODY = SOURCE.split("---\n", 2)
SLIDES = re.split(r"(?m)^## ", BODY)[1:]
MEASURED = "".join((ROOT/name).read_text(encoding="utf-8") for name in ("README.md", "benchmarks/RESULTS.md"))


def figures(text):
    "Numbers of a text, as they are written; addresses and names of files are no figures"
    text = re.sub(r"\]\([^)]*\)|https?://\S+|fitmatch-\w+", " ", text)
    return set(re.findall(r"(?<![\w.,])\d+(?:,\d{3})*(?:\.\d+)?(?![\w])", text))


def test_twelve_slides_at_most():
    assert 1 + len(SLIDES) <= 12 and "revealjs" in FRONT and "pptx" in FRONT


@pytest.mark.parametrize("slide", SLIDES, ids=[s.partition("\n")[0] for s in SLIDES])
def test_every_figure_was_measured_elsewhere(slide):
    assert not figures(slide) - figures(MEASURED)


def test_a_figure_that_drifts_is_noticed():
    assert figures("AUC 0.844 of 4,932") - figures(MEASURED) == {"0.844"}


def test_pictures_are_there_and_have_words():
    pictures = re.findall(r'!\[\]\((.*?)\)\{fig-alt="(.*?)"\}', BODY)     # words between the brackets would be a caption, and no alternative text
    assert len(pictures) == BODY.count("![") >= 4
    for path, words in pictures:
        assert len(words) > 30 and (ROOT/"nbs"/path).is_file()
    for path in re.findall(r"(?:css|reference-doc): (\S+)", FRONT): assert (ROOT/"nbs"/path).is_file()


def test_a_slide_with_figures_says_the_command():
    for slide in SLIDES:
        if re.search(r"\d\.\d", slide): assert re.search(r"`(?:fitmatch|python) ", slide), slide.partition("\n")[0]


def test_the_film():
    film, poster = (Image.open(ROOT/"nbs"/"images"/name) for name in ("film.gif", "film-poster.webp"))
    assert (ROOT/"nbs"/"images"/"film.gif").stat().st_size < 3_000_000
    assert film.width <= 900 and film.size == poster.size and film.n_frames > 40
    seconds = 0
    for i in range(film.n_frames):
        film.seek(i)
        seconds += film.info["duration"]/1000
    assert 12 < seconds < 25


def test_the_comparison_counts_lines_as_they_are():
    page = (ROOT/"nbs"/"alternatives.qmd").read_text(encoding="utf-8")
    for quoted, name in re.findall(r"(\d+) lines, \[`(\w+\.py)`\]", page):
        lines = (ROOT/"benchmarks"/"peers"/name).read_text(encoding="utf-8").splitlines()
        assert int(quoted) == sum(bool(line.strip()) and not line.startswith('"""') for line in lines), name
    assert page.count(".py`](") == 2
