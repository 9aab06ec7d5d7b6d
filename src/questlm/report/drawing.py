"""A matplotlib figure as inline SVG that follows the page's theme, and as SVG and PNG files in the light one.

matplotlib and not SVG written by hand: ticks, log axes and layout are solved there, PNG comes from the same figure, and
its SVG takes CSS variables for colours. The SVG is parsed and written again, never patched as text: identifiers get the
picture's name (two pictures in one page must not share any), colours become variables, points get a `<title>`, which
browsers show when the pointer rests on them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

from questlm.plotting import LIGHT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Drawing", "Picture", "inline_svg", "png_file", "svg_file"]

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_PNG_DPI = 160


@dataclass(frozen=True)
class Drawing:
    """A matplotlib figure, and the texts that hovering over a point shows, by the gid of the points."""

    figure: Figure
    tips: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """One picture of the report.

    Attributes:
        name: of its files, without suffix; also its anchor in the page.
        title: heading.
        caption: plain text that says what the picture shows, with numbers.
        draw: makes the drawing, given whether it is the narrow one for phones.
        columns, rows: the data drawn, for its CSV file.
        narrows: whether there is a narrow drawing; otherwise the wide one scrolls on phones.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[bool], Drawing]
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    narrows: bool = True


def svg_file(drawing: Drawing, name: str) -> bytes:
    """Return the drawing as an SVG file in the light theme. The same numbers give the same bytes."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        drawing.figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    drawing.figure.set_layout_engine("none")  # the layout is found; solving it again for PNG takes as long as drawing
    return buffer.getvalue()


def png_file(drawing: Drawing) -> bytes:
    """Return the drawing as a PNG file in the light theme."""
    buffer = io.BytesIO()
    drawing.figure.savefig(buffer, format="png", dpi=_PNG_DPI, metadata={"Software": None})
    return buffer.getvalue()


def inline_svg(svg: bytes, name: str, label: str, tips: Mapping[str, Sequence[str]]) -> Markup:
    """Return the `<svg>` element of a file from `svg_file`, for an HTML page.

    Args:
        name: prefix of every identifier in it.
        label: identifier of the page's heading that names the picture.
    """
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(svg)
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    by_gid = {element.get("id"): element for element in root.iter()}
    for gid, texts in tips.items():
        if gid in by_gid:
            _add_tips(by_gid[gid], texts)
    variables = {color: f"var(--{role})" for role, color in LIGHT.items()}
    for element in root.iter():
        _rename(element, name)
        look = element.get("style")
        if look:
            element.set("style", _restyle(look, variables))
    width = float(str(root.get("width")).removesuffix("pt"))
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.set("style", f"max-width:{width * 4 / 3:.0f}px")  # never larger than drawn: text keeps its size
    root.set("role", "img")
    root.set("aria-labelledby", label)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _add_tips(group: ElementTree.Element, texts: Sequence[str]) -> None:
    marks = list(group.iter(f"{{{_SVG}}}use"))
    if len(marks) == len(texts):  # a mark outside of the picture is not written; then nobody knows whose is whose
        for mark, text in zip(marks, texts, strict=True):
            ElementTree.SubElement(mark, f"{{{_SVG}}}title").text = text


def _rename(element: ElementTree.Element, name: str) -> None:
    identifier = element.get("id")
    if identifier:
        element.set("id", f"{name}-{identifier}")
    link = element.get(f"{{{_XLINK}}}href")
    if link:
        del element.attrib[f"{{{_XLINK}}}href"]
        element.set("href", link.replace("#", f"#{name}-", 1))
    clip = element.get("clip-path")
    if clip:
        element.set("clip-path", clip.replace("url(#", f"url(#{name}-", 1))


def _restyle(look: str, variables: Mapping[str, str]) -> str:
    """Colours as variables; the page's font instead of the one measured with, which is wider."""
    look = re.sub(r"font-family: [^;]*|font: ([^;]*?)(\d[\d.]*px) [^;]*", _font, look)
    return re.sub(r"#[0-9a-f]{6}\b", lambda match: variables.get(match[0], match[0]), look)


def _font(match: re.Match[str]) -> str:
    if match[2] is None:
        return "font-family: inherit"
    weight = f"; font-weight: {match[1].strip()}" if match[1].strip() else ""
    return f"font-size: {match[2]}; font-family: inherit{weight}"
