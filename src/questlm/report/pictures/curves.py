"""Training and validation loss over tokens, one panel for each model size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from questlm.humanize import count_text
from questlm.plotting import LIGHT, log_axis
from questlm.report.drawing import Drawing, Picture
from questlm.report.gather import Entry, Point
from questlm.report.pictures.shared import panels, plural
from questlm.report.statistics import shorten
from questlm.scaling.group_styles import GroupStyle, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["curves"]

_Item = TypeVar("_Item")

_MOST_RUNS, _MOST_POINTS, _MOST_PANELS = 60, 120, 9
_BEGINNING = 0.08  # share of a run's tokens whose losses, far above the rest, may leave the picture


def curves(entries: Sequence[Entry], styles: Mapping[str, GroupStyle]) -> Picture | None:
    """The picture, or None where no run recorded a curve."""
    recorded = [entry for entry in entries if len(entry.curve) + len(entry.validations) > 1]
    if not recorded:
        return None
    drawn = _choose(recorded)
    lines = {id(entry): (shorten(entry.curve, _MOST_POINTS), _validations(entry)) for entry in drawn}
    sizes = sorted({entry.run.parameters for entry in drawn})
    used = {group: style for group, style in styles.items() if any(entry.run.group == group for entry in drawn)}

    def draw(narrow: bool) -> Drawing:
        figure, axes = panels(len(sizes), narrow, 3, 2.9)
        tips: dict[str, list[str]] = {}
        for number, (axis, size) in enumerate(zip(axes, sizes, strict=True)):
            inside = [entry for entry in drawn if entry.run.parameters == size]
            for entry in inside:
                _line(axis, entry, used[entry.run.group], *lines[id(entry)])
            _ends(axis, inside, used, f"end-{number}", tips)
            _scale(axis, inside, lines)
            axis.set_title(f"{count_text(size)} parameters")
        for axis in axes[-1:] if narrow else axes[-min(3, len(axes)) :]:
            axis.set_xlabel("tokens trained on")
        for axis in axes if narrow else axes[::3]:
            axis.set_ylabel("loss (nats/token)")
        legend(figure, used, narrow, _kinds(drawn))
        return Drawing(figure, tips)

    return Picture(
        "curves",
        "Loss during training",
        _caption(entries, recorded, drawn, sizes),
        draw,
        ("run", "group", "parameters", "seed", "kind", "tokens", "loss"),
        [
            (entry.name, entry.run.group, entry.run.parameters, entry.run.seed, kind, tokens, loss)
            for entry in drawn
            for kind, points in zip(("training", "validation"), lines[id(entry)], strict=True)
            for tokens, loss in points
        ],
    )


def _choose(recorded: Sequence[Entry]) -> list[Entry]:
    """At most `_MOST_RUNS`, of at most `_MOST_PANELS` sizes, spread evenly over what there is."""
    sizes = _spread(sorted({entry.run.parameters for entry in recorded}), _MOST_PANELS)
    return _spread([entry for entry in recorded if entry.run.parameters in sizes], _MOST_RUNS)


def _spread(items: list[_Item], most: int) -> list[_Item]:
    if len(items) <= most:
        return items
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def _validations(entry: Entry) -> list[Point]:
    """Validations during training, and the final one over the whole split."""
    final = [(float(entry.run.tokens), entry.run.loss)] if entry.finished else []
    during = [point for point in entry.validations if not final or point[0] < final[0][0]]
    return shorten(during, _MOST_POINTS) + final


def _line(axis: Axes, entry: Entry, style: GroupStyle, training: Sequence[Point], validations: Sequence[Point]) -> None:
    if training:
        width, alpha = (0.9, 0.45) if len(validations) > 1 else (1.4, 0.9)
        axis.plot(*zip(*training, strict=True), color=style.color, linewidth=width, alpha=alpha)
    if len(validations) > 1:
        dash = "-" if entry.finished else (0, (1.2, 1.4))
        axis.plot(*zip(*validations, strict=True), color=style.color, linewidth=1.6, linestyle=dash)


def _ends(
    axis: Axes, entries: Sequence[Entry], styles: Mapping[str, GroupStyle], gid: str, tips: dict[str, list[str]]
) -> None:
    """Where each run ended, or, drawn as a cross, has come to."""
    for number, entry in enumerate(entries):
        style = styles[entry.run.group]
        name = f"{gid}-{number}"
        axis.plot(
            [entry.run.tokens], [entry.run.loss], gid=name, marker=style.marker if entry.finished else "x",
            color=style.color, markerfacecolor=style.color if style.filled else "none", linestyle="none", zorder=3,
        )  # fmt: skip
        state = f"loss {entry.run.loss:.4f}" if entry.finished else f"unfinished, last loss {entry.run.loss:.4f}"
        tips[name] = [f"{entry.name}: {state}"]


def _scale(axis: Axes, entries: Sequence[Entry], lines: Mapping[int, tuple[Sequence[Point], Sequence[Point]]]) -> None:
    shown = []
    for entry in entries:
        points = [point for kind in lines[id(entry)] for point in kind]
        shown += [loss for tokens, loss in points if tokens >= _BEGINNING * points[-1][0]]
    low, high = min(shown), max(shown)
    margin = 0.05 * (high - low) or 0.1
    axis.set_ylim(low - margin, high + margin)
    axis.set_xlim(left=_BEGINNING / 2 * min(entry.run.tokens for entry in entries))
    log_axis(axis, 6, count_text)


def _kinds(drawn: Sequence[Entry]) -> list[Any]:
    from matplotlib.lines import Line2D

    kinds: list[Any] = []
    if any(len(entry.validations) > 0 for entry in drawn):
        kinds.append(Line2D([], [], color=LIGHT["muted"], linewidth=0.9, alpha=0.6, label="training (thin)"))
        kinds.append(Line2D([], [], color=LIGHT["muted"], linewidth=1.6, label="validation (thick)"))
    if any(not entry.finished for entry in drawn):
        kinds.append(Line2D([], [], color=LIGHT["muted"], marker="x", linestyle="none", label="unfinished"))
    return kinds


def _caption(entries: Sequence[Entry], recorded: Sequence[Entry], drawn: Sequence[Entry], sizes: list[int]) -> str:
    finished = [entry for entry in drawn if entry.finished]
    text = f"{plural(len(drawn), 'run')} of {plural(len(sizes), 'model size')}. "
    if finished:
        best = min(finished, key=lambda entry: entry.run.loss)
        text += (
            f"The lowest final validation loss is {best.run.loss:.4f} nats/token: {best.run.group}, "
            f"N = {count_text(best.run.parameters)}, {count_text(best.run.tokens)} tokens ({best.name}). "
        )
    text += (
        f"Symbols mark the final loss on the whole validation split; the steep fall over the first "
        f"{100 * _BEGINNING:.0f} % of a run may lie outside. "
    )
    if len(drawn) < len(recorded):
        text += f"Of {len(recorded):,} recorded curves these {len(drawn)} are drawn, spread evenly over the table. "
    if any(len(entry.curve) > _MOST_POINTS or len(entry.validations) > _MOST_POINTS for entry in drawn):
        text += f"Curves of more than {_MOST_POINTS} points are drawn as that many means of neighbours. "
    if len(recorded) < len(entries):
        text += f"{plural(len(entries) - len(recorded), 'run')} came without a curve. "
    return text.strip()
