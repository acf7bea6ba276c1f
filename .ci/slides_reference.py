"""Lays out nbs/slides-reference.pptx, from which pandoc and Quarto take the look of slides.pptx: wide, a line of words above what is shown. Needs pandoc and python-pptx."""
import subprocess
from io import BytesIO
from pathlib import Path

from pptx import Presentation
from pptx.enum.text import PP_ALIGN
from pptx.util import Inches, Pt

TARGET = Path(__file__).resolve().parent.parent / "nbs" / "slides-reference.pptx"
TITLE, WORDS, SHOWN = (.6, .35, 12.1, .95), (.6, 1.3, 12.1, .95), (.6, 2.3, 12.1, 4.85)
PLACES = {                                # of a layout's placeholders in their order, in inches: left, top, width, height
    "Title Slide": [(.9, 2.2, 11.5, 1.6), (.9, 3.9, 11.5, 1.0)],
    "Title and Content": [TITLE, (.6, 1.5, 12.1, 5.5)],
    "Two Content": [TITLE, (.6, 1.5, 5.9, 5.5), (6.8, 1.5, 5.9, 5.5)],
    "Content with Caption": [TITLE, SHOWN, WORDS],
}
SIZES = {"title": Pt(36), "words": Pt(20)}

data = subprocess.run(["pandoc", "--print-default-data-file", "reference.pptx"], capture_output=True, check=True).stdout
deck = Presentation(BytesIO(data))
deck.slide_width, deck.slide_height = Inches(13.333), Inches(7.5)


def place(shape, box):
    shape.left, shape.top, shape.width, shape.height = (Inches(v) for v in box)


for shape in deck.slide_master.placeholders:
    kind = shape.placeholder_format.type
    if shape.placeholder_format.idx == 0: place(shape, TITLE)
    elif "BODY" in str(kind): place(shape, (.6, 1.5, 12.1, 5.5))
    else: shape._element.getparent().remove(shape._element)
for layout in deck.slide_layouts:
    slots = [p for p in layout.placeholders if p.placeholder_format.idx < 10]
    for shape in [p for p in layout.placeholders if p.placeholder_format.idx >= 10]: shape._element.getparent().remove(shape._element)
    for shape, box in zip(slots, PLACES.get(layout.name, [])): place(shape, box)
    if layout.name == "Title Slide":
        for shape in slots: shape.text_frame.paragraphs[0].alignment = PP_ALIGN.CENTER
        properties = slots[0]._element.txBody.find("{http://schemas.openxmlformats.org/drawingml/2006/main}lstStyle")
        properties.append(properties.makeelement("{http://schemas.openxmlformats.org/drawingml/2006/main}lvl1pPr", {"algn": "ctr"}))
    if layout.name == "Content with Caption":
        for shape in slots:
            wanted = {0: SIZES["title"], 2: SIZES["words"]}.get(shape.placeholder_format.idx)
            for level in shape._element.iter("{http://schemas.openxmlformats.org/drawingml/2006/main}defRPr"):
                if wanted: level.set("sz", str(wanted.pt*100).split(".")[0]); level.set("b", "0")
for paragraph in deck.slide_master.element.iter("{http://schemas.openxmlformats.org/presentationml/2006/main}titleStyle"):
    for run in paragraph.iter("{http://schemas.openxmlformats.org/drawingml/2006/main}lvl1pPr"): run.set("algn", "l")
    for run in paragraph.iter("{http://schemas.openxmlformats.org/drawingml/2006/main}defRPr"): run.set("sz", "3600")
deck.save(TARGET)
print(f"wrote {TARGET.name}")
