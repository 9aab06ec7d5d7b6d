"""What the pictures share: figures, colours of kinds of layers, legends, numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from questlm.diagnostics.layers import block_of, group_by, kind_of
from questlm.plotting import LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, RED, GREEN, OCHRE = (LIGHT[f"bits-{width}"] for width in (4, 1, 3, 2))
MAGENTA, TEAL, BLACK, GREY = LIGHT["bits-8"], LIGHT["bits-t"], LIGHT["ink"], LIGHT["muted"]
KINDS = {
    "q": (BLUE, "o"),
    "k": (TEAL, "s"),
    "v": (GREEN, "^"),
    "o": (MAGENTA, "D"),
    "gate": (OCHRE, "v"),
    "up": (RED, "P"),
    "down": (BLACK, "X"),
}
STAGES = {"before": ("before HT", RED), "after": ("after HT", BLUE)}
DASHES = (0, (3, 2))
Series = Mapping[str, Mapping[str, float | None]]


def titled_figure(
    rows: int, columns: int, size: tuple[float, float], title: str, result: Mapping[str, Any], sharey: bool = False
) -> tuple[Figure, Any]:
    """A figure and its axes (rows, columns), titled with what is shown and of which run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(f"{title}\n", fontsize=12, fontweight="bold")  # the second line is the next one's place
    figure.text(0.5, 0.98 - 0.2 / size[1], str(result.get("title", "")), ha="center", va="top", color=GREY)
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=sharey)


def by_depth(axis: Axes, values: Mapping[str, float | None], filled: bool) -> None:
    """One line a kind of layer over the blocks; kinds that share their numbers (and so their input) share a line."""
    for kinds, names in lines(values):
        color, marker = kind_style(kinds[0])
        axis.plot(
            [block_of(name) for name in names], numbers(values[name] for name in names), color=color, marker=marker,
            linestyle="-" if filled else DASHES, markerfacecolor=color if filled else LIGHT["card"],
            linewidth=1.3 if filled else 1.0,
        )  # fmt: skip
    whole_ticks(axis)


def lines(values: Mapping[str, Any]) -> list[tuple[list[str], list[str]]]:
    """Return (kinds of layers, names of layers in order of depth) for each line that `by_depth` draws."""
    lines: dict[str, tuple[list[str], list[str]]] = {}
    groups = group_by(values, kind_of)
    for kind in sorted(groups, key=kind_rank):
        names = sorted(groups[kind], key=block_of)
        numbers = str([values[name] for name in names])
        lines.setdefault(numbers, ([], names))[0].append(kind)
    return list(lines.values())


def legend_of_kinds(axis: Axes, layers: Mapping[str, Any], stages: Mapping[str, bool]) -> None:
    """What colours and markers mean (kinds), and what filling means (stages), to the right of `axis`."""
    from matplotlib.lines import Line2D

    handles: list[Any] = []
    for kinds, _ in lines(layers):
        color, marker = kind_style(kinds[0])
        handles.append(Line2D([], [], color=color, marker=marker, linestyle="none", label=", ".join(kinds)))
    for label, filled in stages.items():
        look: dict[str, Any] = {
            "linestyle": "-" if filled else DASHES,
            "markerfacecolor": GREY if filled else LIGHT["card"],
        }
        handles.append(Line2D([], [], color=GREY, marker="o", label=label, **look))
    handles.append(Line2D([], [], color=BLACK, linestyle=":", label="Gaussian"))
    axis.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5))


def legend_below(figure: Figure, axis: Axes) -> None:
    """Put one legend with the entries of `axis` below all panels."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def kind_rank(key: str) -> tuple[int, int, str]:
    """Order of the forward pass for kinds of layers, of numbers for blocks."""
    if key.isdecimal():
        return (0, int(key), "")
    known = list(KINDS)
    return (1, known.index(key) if key in known else len(known), key)


def kind_style(kind: str) -> tuple[str, str]:
    """Return colour and marker of a kind of layer."""
    return KINDS.get(kind, (GREY, "*"))


def whole_ticks(axis: Axes) -> None:
    """Put at most eight ticks on the x-axis, at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))


def bits(bits: int | str) -> str:
    """Format a width: '1 bit', '4 bits'; a word such as 'ternary' stays as it is."""
    return f"{bits} bit" + "s" * (bits != 1) if isinstance(bits, int) else bits


def number(value: float | None) -> float:
    """Return a number from JSON, where None stands for nan."""
    return math.nan if value is None else value


def numbers(values: Iterable[float | None]) -> list[float]:
    """Return numbers from JSON, where None stands for nan."""
    return [number(value) for value in values]


def percent(shares: Iterable[float]) -> list[float]:
    """Return shares as percentages."""
    return [100 * share for share in shares]


def rotated(masks: Mapping[str, Any]) -> bool:
    """Whether masks were taken on rotated weights. The first files did not say so: they were of quest or quest-noht."""
    return bool(masks.get("rotated", masks["method"] == "quest"))
