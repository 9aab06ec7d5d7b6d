"""Speed-up over float32 by shape, bits and batch, as a picture. Needs matplotlib, the extra `plots`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from questlm.bench.timing import Comparison, SpeedReport
from questlm.plotting import COLORS, LIGHT, check_picture, drawing, log_axis, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_speed", "speed_figure"]

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_X_LABELS = {"layer": "rows of the input", "prefill": "tokens of the prompt", "decode": "sequences at once"}


def draw_speed(report: SpeedReport, path: Path) -> None:
    """Write the picture of a report; its file type follows from the name.

    Raises:
        ConfigError: a name of no known file type.
        MissingDependencyError: matplotlib is not installed.
    """
    check_picture(path)
    save_figure(speed_figure(report), path)


def speed_figure(report: SpeedReport) -> Figure:
    """How many times as fast as float32 each case is.

    Colours are the weights' bits, markers the shapes; bars go from the slowest to the fastest round.
    """
    series: dict[tuple[str, str], list[Comparison]] = {}
    for each in report.comparisons:
        series.setdefault((each.bits, f"{each.what}, {each.shape}"), []).append(each)
    shapes = list(dict.fromkeys(shape for _, shape in series))
    with drawing(7.5, 4.6) as figure:
        axis = figure.subplots()
        axis.axhline(1, color=LIGHT["muted"], linewidth=1.2, zorder=1)
        for number, ((bits, shape), found) in enumerate(series.items()):
            found = sorted(found, key=lambda each: each.batch)
            middle = [each.speedup for each in found]
            below = [each.speedup - each.slowest for each in found]
            above = [each.fastest - each.speedup for each in found]
            axis.errorbar(
                [each.batch for each in found],
                middle,
                yerr=[below, above],
                color=_color(bits, number),
                marker=_MARKERS[shapes.index(shape) % len(_MARKERS)],
                capsize=2,
                label=f"{bits}: {shape}",
                gid=f"speed-{number}",
            )
        axis.set_title(f"Speed-up over float32: {report.kind}, {report.device}")
        axis.set_xlabel(_X_LABELS[report.kind])
        axis.set_ylabel("times as fast as float32")
        axis.set_ylim(bottom=0)
        log_axis(axis, 6, "{:g}".format)
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _color(bits: str, number: int) -> str:
    """The colour of the weights' bits; of a width that has none, one of the others."""
    width = bits.split("A")[0].removeprefix("W")
    return LIGHT.get(f"bits-{width}", COLORS[number % len(COLORS)])
