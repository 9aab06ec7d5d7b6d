"""What the pictures share: panels, legends, numbers for people."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from questlm.report.theme import Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["legend", "log_axis", "marker_style", "panels", "plural", "value_text"]

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


def marker_style(look: Look) -> dict[str, Any]:
    """Of the points of a group, for `Axes.plot`."""
    return {
        "marker": look.marker,
        "markerfacecolor": look.color if look.filled else "none",
        "markeredgecolor": look.color,
        "linestyle": "none",
    }


def legend(figure: Figure, looks: Mapping[str, Look], narrow: bool, more: Iterable[Any] = ()) -> None:
    """Below the figure, which grows by as much: what each group looks like, then `more`."""
    from matplotlib.lines import Line2D

    handles: list[Any] = []
    for group, look in looks.items():
        style = marker_style(look) | {"linestyle": look.dash}
        handles.append(Line2D([], [], color=look.color, label=group, **style))
    handles += more
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), (46 if narrow else 130) // (longest + 6)))
    rows = -(-len(handles) // columns)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.19 * rows + 0.1)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def log_axis(axis: Any, most: int, text: Callable[[float], str]) -> None:
    """Logarithmic x-axis with about `most` ticks, written by `text`."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axis.set_xscale("log")
    low, high = axis.get_xlim()
    decades = math.log10(high / low)
    subs = (1.0, 2.0, 5.0) if decades < most / 3 else (1.0, 3.0) if decades < most / 2 else (1.0,)
    axis.xaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())


def plural(count: int, word: str) -> str:
    """'1 run', '2 runs'."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def value_text(value: float) -> str:
    """Three digits, without a power of ten where that is longer than the number."""
    if math.isinf(value):
        return "∞"
    return f"{value:,.0f}" if 100 <= abs(value) < 1e7 else f"{value:.3g}"
