"""How every picture draws the runs of each group: colour by the width of weights, marker and dashes by rank.

No two widths share both colour and marker, so that nobody has to tell colours apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from questlm.plotting import LIGHT
from questlm.scaling.runs import BASELINE, bits_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["GroupStyle", "group_styles", "legend", "marker_style", "widths"]

_MARKERS = "osD^vP*X<>ph"
_DASHES = ("-", (0, (4, 2)), (0, (1.2, 1.8)), (0, (5, 2, 1.2, 2)))


class GroupStyle(NamedTuple):
    """How the runs of a group are drawn; `role` names the colour in `questlm.plotting.LIGHT` and `DARK`."""

    role: str
    color: str
    marker: str
    dash: object
    filled: bool


def widths(group: str) -> tuple[int | str, int | str] | None:
    """Return the bits of weights and activations (1 to 8, 16 or 'ternary') that the name of a group says; else None.

    Names are method/wXaY/format, where t stands for ternary, or "bf16".
    """
    if group == BASELINE:
        return 16, 16
    parts = group.rsplit("/", 2)
    weight, found, act = parts[1].removeprefix("w").partition("a") if len(parts) == 3 else ("", "", "")
    read = [_width(text) for text in (weight, act)]
    return (read[0], read[1]) if found and read[0] is not None and read[1] is not None else None


def group_styles(counts: Mapping[str, int]) -> dict[str, GroupStyle]:
    """Return the style of each group, in order of bits.

    Of groups with equal bits the one with most runs comes first, and gets the full line.

    Args:
        counts: how many runs each group has.
    """
    known = {group: widths(group) for group in counts}
    ordered = sorted(counts, key=lambda group: (*_rank(group, known[group]), -counts[group], group))
    result: dict[str, GroupStyle] = {}
    alike: dict[str, int] = {}
    for number, group in enumerate(ordered):
        found = known[group]
        width = "front" if found is None else f"bits-{'t' if found[0] == 'ternary' else found[0]}"
        variant = alike.setdefault(width, -1) + 1
        alike[width] = variant
        marker, dash = _MARKERS[number % len(_MARKERS)], _DASHES[variant % len(_DASHES)]
        result[group] = GroupStyle(width, LIGHT[width], marker, dash, variant % 2 == 0)
    return result


def marker_style(style: GroupStyle) -> dict[str, Any]:
    """Return the keywords of `Axes.plot` that draw the points of a group."""
    return {
        "marker": style.marker,
        "markerfacecolor": style.color if style.filled else "none",
        "markeredgecolor": style.color,
        "linestyle": "none",
    }


def legend(figure: Figure, styles: Mapping[str, GroupStyle], narrow: bool, more: Iterable[Any] = ()) -> None:
    """Add a legend below the axes, and make the figure higher by its height: each group, then the artists in `more`."""
    from matplotlib.lines import Line2D

    handles: list[Any] = []
    for group, style in styles.items():
        drawn = marker_style(style) | {"linestyle": style.dash}
        handles.append(Line2D([], [], color=style.color, label=group, **drawn))
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
