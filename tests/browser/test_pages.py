"""Pages of the site on a phone, in the structure Quarto gives them, with our style sheet: nothing reaches beyond the screen"""
import html
import re
from pathlib import Path

import nbformat
import pytest
from nbconvert.filters import markdown2html

pytest.importorskip("playwright")

NBS = Path(__file__).resolve().parents[2]/"nbs"
# what Bootstrap and Quarto say about widths
QUARTO = """*{box-sizing:border-box}body{margin:0;font:16px/1.5 sans-serif;overflow-wrap:break-word}#quarto-content{padding:0 12px}table{border-collapse:collapse;width:100%}td,th{padding:.5rem}
pre{overflow:auto;font-size:.875em}code{word-wrap:break-word;font-size:.875em}div.sourceCode{overflow:auto}pre>code{white-space:pre}"""
BEYOND = """() => [...document.querySelectorAll('main *')].filter(e => {
  const box = e.getBoundingClientRect();
  if (!box.width || box.right <= document.documentElement.clientWidth + 1) return false;
  for (let p = e.parentElement; p && p !== document.body; p = p.parentElement) if (getComputedStyle(p).overflowX !== 'visible') return false;   // it scrolls by itself
  return true; }).map(e => e.tagName + ' ' + e.textContent.trim().slice(0, 40))"""


def cell_html(cell):
    "A cell as Quarto writes it, exported code and hidden cells left out"
    if cell.cell_type == "markdown": return markdown2html(cell.source)
    if cell.cell_type != "code" or re.search(r"^#\|\s*(?:hide|default_exp)", cell.source, re.M): return ""
    shown = [o.get("data", {}).get("text/html") or f"<pre><code>{html.escape(o.get('text') or o.get('data', {}).get('text/plain', ''))}</code></pre>" for o in cell.outputs]
    code = "" if re.search(r"^#\|\s*(?:export|echo: false)", cell.source, re.M) else f'<div class="sourceCode cell-code"><pre class="sourceCode"><code>{html.escape(cell.source)}</code></pre></div>'
    return f'<div class="cell">{code}' + "".join(f'<div class="cell-output cell-output-display">{s}</div>' for s in shown) + "</div>"


def page_html(cells, style):
    return f'<!doctype html><meta name="viewport" content="width=device-width"><style>{QUARTO}{style}</style><div id="quarto-content"><main>{"".join(map(cell_html, cells))}</main></div>'


@pytest.mark.parametrize("name", ["index", "00_catalogue", "01_wardrobe", "04_encoders", "04a_extras", "10_evaluate"])
def test_a_page_fits_a_phone(browser, tmp_path, name):
    cells, style, page = nbformat.read(NBS/f"{name}.ipynb", 4).cells, (NBS/"styles.css").read_text(), browser.new_page(viewport={"width": 390, "height": 800})
    page.route("**/*", lambda route: route.continue_() if route.request.url.startswith(("file:", "data:")) else route.abort())
    (tmp_path/"images").symlink_to(NBS/"images")
    def beyond(css):
        (tmp_path/"page.html").write_text(page_html(cells, css), encoding="utf-8")
        page.goto((tmp_path/"page.html").as_uri(), wait_until="load")
        return page.evaluate(BEYOND)
    assert beyond(style) == [] and page.evaluate("document.documentElement.scrollWidth") <= 390
    if name == "index": assert beyond(""), "the check must see what our style sheet prevents"
    page.close()
