"""What the runs of each group look like in every picture: colour by the width of weights, marker and dashes by rank.

No two widths share both colour and marker, so that nobody has to tell colours apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from questlm.look import LIGHT
from questlm.scaling.runs import BASELINE, bits_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Look", "legend", "looks", "marker_style", "widths"]

_MARKERS = "osD^vP*X<>ph"
_DASHES = ("-", (0, (4, 2)), (0, (1.2, 1.8)), (0, (5, 2, 1.2, 2)))


class Look(NamedTuple):
    """What the runs of a group look like; `role` names its colour in `questlm.look`."""

    role: str
    color: str
    marker: str
    dash: object
    filled: bool


def widths(group: str) -> tuple[int | str, int | str] | None:
    """Bits of weights and of activations from a group's name (method/wXaY/format); None: it does not say."""
    if group == BASELINE:
        return 16, 16
    parts = group.rsplit("/", 2)
    weight, found, act = parts[1].removeprefix("w").partition("a") if len(parts) == 3 else ("", "", "")
    read = [_width(text) for text in (weight, act)]
    return (read[0], read[1]) if found and read[0] is not None and read[1] is not None else None


def looks(counts: Mapping[str, int]) -> dict[str, Look]:
    """The look of each group, in order of bits.

    Of groups with equal bits the one with most runs comes first, and gets the full line.

    Args:
        counts: how many runs each group has.
    """
    known = {group: widths(group) for group in counts}
    ordered = sorted(counts, key=lambda group: (*_rank(group, known[group]), -counts[group], group))
    result: dict[str, Look] = {}
    alike: dict[str, int] = {}
    for number, group in enumerate(ordered):
        found = known[group]
        width = "front" if found is None else f"bits-{'t' if found[0] == 'ternary' else found[0]}"
        variant = alike.setdefault(width, -1) + 1
        alike[width] = variant
        marker, dash = _MARKERS[number % len(_MARKERS)], _DASHES[variant % len(_DASHES)]
        result[group] = Look(width, LIGHT[width], marker, dash, variant % 2 == 0)
    return result


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


def _width(text: str) -> int | str | None:
    if text == "t":
        return "ternary"
    return int(text) if text.isdecimal() and int(text) in (*range(1, 9), 16) else None


def _rank(group: str, found: tuple[int | str, int | str] | None) -> tuple[bool, float, float]:
    weight, act = found or (0, 0)
    return group != BASELINE, -bits_of(weight), bits_of(act)
