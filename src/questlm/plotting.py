"""The colours and the matplotlib style of every picture, kinds of axes, and how a picture becomes a file.

Every role has one colour in each of the two themes, light and dark. Pictures are drawn in the light colours; in a page
each is replaced by the CSS variable of its role, so that one drawing serves both themes. On their own background texts
have a contrast of at least 4.5 and marks of at least 3 (WCAG AA). What needs telling apart differs by marker or dashes
too, not by colour alone.

matplotlib, the extra `plots`, is imported when something is drawn. Nothing here uses pyplot, so no window system,
global state or chosen backend is involved.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from questlm.errors import ConfigError, MissingDependencyError
from questlm.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = [
    "COLORS", "DARK", "LIGHT", "check_picture", "decade_ticks", "drawing", "linear_ticks", "log_axis",
    "require_matplotlib", "save_figure", "style",
]  # fmt: skip

_FILE_TYPES = (".png", ".svg", ".pdf")
_DPI = 150

LIGHT = {
    "ink": "#1c2126",
    "muted": "#57606b",
    "rule": "#e1e5ea",
    "page": "#f5f6f8",
    "card": "#fefefe",
    "accent": "#1f5fbf",
    "front": "#8a929c",
    "bits-1": "#b93a10",
    "bits-t": "#0b7c86",
    "bits-2": "#9a6a00",
    "bits-3": "#0c8457",
    "bits-4": "#0a66c2",
    "bits-5": "#6f4bc9",
    "bits-6": "#6b7a1e",
    "bits-7": "#8d5a46",
    "bits-8": "#b0307f",
    "bits-16": "#343b43",
}
DARK = {
    "ink": "#e7eaee",
    "muted": "#a3adb8",
    "rule": "#30363e",
    "page": "#111417",
    "card": "#191d22",
    "accent": "#79b0ff",
    "front": "#828c98",
    "bits-1": "#ff8f66",
    "bits-t": "#4fd0da",
    "bits-2": "#eabf4b",
    "bits-3": "#43d09b",
    "bits-4": "#66adff",
    "bits-5": "#b49cff",
    "bits-6": "#c3d35e",
    "bits-7": "#d9a48f",
    "bits-8": "#f389c6",
    "bits-16": "#d0d6dd",
}


COLORS = tuple(LIGHT[role] for role in (*(f"bits-{width}" for width in (4, 1, 3, 8, 2, "t", 5, 7, 6, 16)), "front"))
"""For series without a role of their own, in this order."""

_STYLE: dict[str, object] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 9.5,
    "axes.labelcolor": LIGHT["muted"],
    "axes.titlecolor": LIGHT["ink"],
    "axes.edgecolor": LIGHT["front"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": LIGHT["card"],
    "savefig.facecolor": LIGHT["card"],
    "grid.color": LIGHT["rule"],
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.labelcolor": LIGHT["ink"],
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a name with two dollar signs is a name
}


def require_matplotlib(what: str) -> None:
    """Refuse early, before anything is computed.

    Args:
        what: what needs it, such as "drawing a report".

    Raises:
        MissingDependencyError: matplotlib is not installed; the message names the pip command.
    """
    if find_spec("matplotlib") is None:
        raise MissingDependencyError("matplotlib", "plots", what)


def check_picture(path: Path) -> None:
    """Refuse early, before anything is computed.

    Raises:
        ConfigError: the name ends in none of .png, .svg and .pdf.
        MissingDependencyError: matplotlib is not installed.
    """
    if path.suffix.lower() not in _FILE_TYPES:
        raise ConfigError(f"--picture {path} has no known file type; end its name in {', '.join(_FILE_TYPES)}")
    require_matplotlib("--picture")


def style() -> Any:
    """The context to make and save figures in: ours, whatever the user's matplotlibrc says."""
    import matplotlib

    settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, **_STYLE}
    return matplotlib.rc_context(settings)


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """A figure (inches) to draw on, complete in our style when the block ends: it looks the same wherever it is shown.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    require_matplotlib("drawing a picture")
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.draw_without_rendering()  # matplotlib makes ticks when they are first drawn


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to `path`, atomically, as the file type that its name ends in."""
    content = io.BytesIO()
    with style():
        figure.savefig(content, format=path.suffix[1:].lower(), dpi=_DPI)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, content.getvalue())


def log_axis(axis: Axes, most: int, text: Callable[[float], str]) -> None:
    """Logarithmic x-axis with about `most` ticks, written by `text`."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axis.set_xscale("log")
    low, high = axis.get_xlim()
    decades = math.log10(high / low)
    subs: tuple[float, ...]
    subs = (1.0, 2.0, 5.0) if decades < most / 3 else (1.0, 3.0) if decades < most / 2 else (1.0,)
    if decades < most / 7:
        subs = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    axis.xaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())


def decade_ticks(axis: Axis) -> None:
    """Write the ticks of a logarithmic axis as numbers: our style shows the formulas of matplotlib as text."""
    from matplotlib.ticker import NullFormatter

    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def linear_ticks(axis: Axes) -> None:
    """A logarithmic y-axis with the ticks of a linear one, for losses, which span less than a decade."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(MaxNLocator(8))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_locator(NullLocator())
