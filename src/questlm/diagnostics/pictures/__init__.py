"""The pictures of `quest diagnose`, one file for each measurement, from its JSON alone. Needs the extra `plots`."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
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

__all__ = ["PICTURES", "draw"]

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
    with style(), progress("drawing", len(PICTURES), show_progress) as update:
        for number, (name, picture) in enumerate(PICTURES.items(), 1):
            figure = picture(result)
            if figure is not None:
                _save(figure, folder / name)
                names.append(name)
            update(number, name)
    return names


def _save(figure: Figure, path: Path) -> None:
    """As PNG of 256 colours: a third of the size, as good for lines and text, and the same file for equal numbers."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=_DPI, format="png")
    with Image.open(buffer) as image:
        few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(path, optimize=True, dpi=(_DPI, _DPI))
