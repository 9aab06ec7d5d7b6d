"""What the pictures share: panels and numbers for people."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["panels", "plural", "value_text"]

_WIDE, _NARROW = 9.4, 3.35  # inches; the narrow one is that of a phone of 320 pixels


def panels(count: int, narrow: bool, columns: int, height: float, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of `count` axes in at most `columns` columns (one on phones), each `height` inches tall."""
    from matplotlib.figure import Figure

    columns = 1 if narrow else min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(_NARROW if narrow else _WIDE, rows * height + 0.2), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flat)
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def plural(count: int, word: str) -> str:
    """Return a number with its noun: '1 run', '2 runs'."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def value_text(value: float) -> str:
    """Three digits, without a power of ten where that is longer than the number."""
    if math.isinf(value):
        return "∞"
    return f"{value:,.0f}" if 100 <= abs(value) < 1e7 else f"{value:.3g}"
