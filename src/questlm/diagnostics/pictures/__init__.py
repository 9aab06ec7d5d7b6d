"""The pictures of `quest diagnose`, one file for each measurement, from its JSON alone. Needs the extra `plots`."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from questlm.diagnostics.pictures.alignment import alignment
from questlm.diagnostics.pictures.error import error
from questlm.diagnostics.pictures.masks import mask_share, persistence
from questlm.diagnostics.pictures.normality import normality, worst
from questlm.plotting import require_matplotlib, style
from questlm.progress import progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PICTURES", "draw", "figures"]

_DPI = 150

PICTURES: dict[str, Callable[[Mapping[str, Any]], Figure | None]] = {
    "gradient-alignment.png": alignment,
    "mask-share.png": mask_share,
    "mask-persistence.png": persistence,
    "normality.png": normality,
    "normality-worst.png": worst,
    "quantisation-error.png": error,
}
"""File names and what draws them; None where there is nothing to draw."""


def draw(result: Mapping[str, Any], folder: Path, show_progress: bool = True) -> list[str]:
    """Draw every picture that `result` (see `diagnose`; with a "title") has the numbers for, as PNG files in `folder`.

    Returns:
        The names of the files.
    """
    require_matplotlib("drawing diagnostics")
    names = []
    with style():
        for name, figure in _drawn(result, show_progress):
            _save(figure, folder / name)
            names.append(name)
    return names


def figures(result: Mapping[str, Any], show_progress: bool = True) -> dict[str, Figure]:
    """Every picture that `result` has the numbers for, as a figure, by the name of its file."""
    require_matplotlib("drawing diagnostics")
    found = {}
    with style():
        for name, figure in _drawn(result, show_progress):
            figure.draw_without_rendering()  # in this style, in which matplotlib makes ticks when first drawn
            found[name] = figure
    return found


def _drawn(result: Mapping[str, Any], show_progress: bool) -> Iterator[tuple[str, Figure]]:
    with progress("drawing", len(PICTURES), show_progress) as update:
        for number, (name, picture) in enumerate(PICTURES.items(), 1):
            figure = picture(result)
            if figure is not None:
                yield name, figure
            update(number, name)


def _save(figure: Figure, path: Path) -> None:
    """As PNG of 256 colours: a third of the size, as good for lines and text, and the same file for equal numbers."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=_DPI, format="png")
    with Image.open(buffer) as image:
        few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(path, optimize=True, dpi=(_DPI, _DPI))
