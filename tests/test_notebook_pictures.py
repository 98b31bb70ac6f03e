"""Saved notebooks keep their pictures where no plotly runs: in HTML, sanitised or not, without a script."""

import base64
import html
import re
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
LIMIT = 700_000  # bytes of a notebook with its outputs
KEPT = "image/svg+xml"
PICTURES = {"0": 0, "1": 0, "2": 3, "3": 1, "4": 2, "5": 3, "6": 0, "7": 1, "8": 3}
"""How many figures each notebook shows; the first two colour tokens, which is a text."""


def saved(path):
    notebook = nbformat.read(path, as_version=4)
    outputs = [output.get("data", {}) for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return notebook, outputs


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_figure_is_saved_as_a_picture(path):
    _, outputs = saved(path)
    pictures = [data for data in outputs if KEPT in data]
    assert len(pictures) == PICTURES[path.stem[0]]
    # Beside text/html exporters would ignore a picture.
    assert not [data for data in pictures if "text/html" in data]
    assert not [data for data in outputs if "application/vnd.plotly.v1+json" in data and KEPT not in data]
    assert not [data for data in outputs if "<svg" in data.get("text/html", "")]
    for data in pictures:
        assert len(list(ElementTree.fromstring(data[KEPT]).iter("{http://www.w3.org/2000/svg}text"))) > 3
    assert path.stat().st_size < LIMIT


# What nbconvert keeps with sanitize_html=True: of other tags it makes text. pandas's own tables have a thead.
SANITISED_KEEPS = set("a abbr acronym b blockquote code div em i li ol pre span strong table td tr ul".split())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_our_tables_have_only_tags_that_are_kept(path):
    _, outputs = saved(path)
    tables = [html for data in outputs if 'class="dataframe"' not in (html := data.get("text/html", ""))]
    assert set(re.findall(r"<(\w+)", "".join(tables))) <= SANITISED_KEEPS


@pytest.mark.parametrize("sanitised", [False, True], ids=["plain", "sanitised"])
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_picture_is_in_the_converted_page(path, sanitised):
    nbconvert = pytest.importorskip("nbconvert", reason="NOT CONVERTED: nbconvert is missing")
    notebook, outputs = saved(path)
    page, _ = nbconvert.HTMLExporter(sanitize_html=sanitised).from_notebook_node(notebook)
    assert not re.search(r"&lt;/?(bdi|br|th scope|td|tr|span|div)\b", page)
    images = [
        base64.b64decode(html.unescape(data))
        for data in re.findall(r'<img [^>]*src="data:image/svg\+xml;base64,([^"]+)"', page)
    ]
    assert images == [data[KEPT].encode("utf-8") for data in outputs if KEPT in data]
    for image in images:
        ElementTree.fromstring(image)
