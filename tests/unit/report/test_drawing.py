"""Figures become SVG that a page can hold several of."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from questlm.plotting import LIGHT, style
from questlm.report.drawing import Drawing, inline_svg, png_file, svg_file


def _drawing() -> Drawing:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 2), layout="constrained")
    axis = figure.subplots()
    axis.plot([1, 2, 3], [3, 1, 2], gid="points", marker="o", linestyle="none", color=LIGHT["bits-4"])
    axis.set_title("<b>$x & y$</b>", color=LIGHT["ink"])
    return Drawing(figure, {"points": ["<i>one</i>", "two", "three"], "elsewhere": ["nothing"]})


@pytest.fixture
def svg() -> bytes:
    with style():
        return svg_file(_drawing(), "a")


def test_equal_numbers_give_equal_bytes(svg: bytes) -> None:
    with style():
        assert svg_file(_drawing(), "a") == svg
        assert png_file(_drawing()) == png_file(_drawing())
        assert png_file(_drawing()).startswith(b"\x89PNG")


def test_colors_become_variables_and_text_stays_text(svg: bytes) -> None:
    text = inline_svg(svg, "a", "a-title", {})
    assert not re.search(r"(fill|stroke): #", text)
    assert "var(--bits-4)" in text and "var(--ink)" in text
    assert "&lt;b&gt;$x &amp; y$&lt;/b&gt;" in text
    assert "DejaVu" not in text


def test_points_tell_what_they_are(svg: bytes) -> None:
    root = ElementTree.fromstring(inline_svg(svg, "a", "a-title", _drawing().tips))
    titles = [element.text for element in root.iter() if element.tag.endswith("}title")]
    assert titles == ["<i>one</i>", "two", "three"]
    assert root.get("role") == "img" and root.get("aria-labelledby") == "a-title"


def test_two_pictures_share_no_identifier(svg: bytes) -> None:
    one, two = (inline_svg(svg, name, "title", {}) for name in ("a", "b"))
    ids = [set(re.findall(r' id="([^"]+)"', text)) for text in (one, two)]
    assert ids[0] and not ids[0] & ids[1]
    referred = set(re.findall(r'(?:href="|url\()#([^")]+)', one))
    assert referred and referred <= ids[0]
