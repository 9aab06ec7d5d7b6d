"""Colours of the page and its pictures, light and dark, and what a line of each kind of run looks like.

Every role has one colour a theme. Pictures are drawn with the light ones, and in the page each is replaced by the CSS
variable of its role, so that one drawing serves both themes. On their own background texts have a contrast of at least
4.5 and marks of at least 3 (WCAG AA), and no two widths share both colour and marker, so that nobody has to tell
colours apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from questlm.scaling.runs import BASELINE, Run, bits_of

__all__ = ["DARK", "LIGHT", "STYLE", "Look", "looks", "variables"]

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

_MARKERS = "osD^vP*X<>ph"
_DASHES = ("-", (0, (4, 2)), (0, (1.2, 1.8)), (0, (5, 2, 1.2, 2)))

STYLE: dict[str, object] = {
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


class Look(NamedTuple):
    """What the runs of a group look like."""

    role: str
    color: str
    marker: str
    dash: object
    filled: bool


def looks(runs: Iterable[Run]) -> dict[str, Look]:
    """The look of each group, in order of bits: colour by weight bits, marker and dashes by rank.

    Of groups with equal bits the one with most runs comes first, and gets the full line.
    """
    first: dict[str, Run] = {}
    count: Counter[str] = Counter()
    for run in runs:
        first.setdefault(run.group, run)
        count[run.group] += 1
    ordered = sorted(first.values(), key=lambda run: (_rank(run), -count[run.group], run.group))
    result: dict[str, Look] = {}
    alike: dict[str, int] = {}
    for number, run in enumerate(ordered):
        width = "t" if isinstance(run.weight_bits, str) else str(run.weight_bits)
        variant = alike.setdefault(width, -1) + 1
        alike[width] = variant
        role, marker = f"bits-{width}", _MARKERS[number % len(_MARKERS)]
        result[run.group] = Look(role, LIGHT[role], marker, _DASHES[variant % len(_DASHES)], variant % 2 == 0)
    return result


def _rank(run: Run) -> tuple[bool, float, float]:
    return run.group != BASELINE, -bits_of(run.weight_bits), bits_of(run.act_bits)


def variables(theme: dict[str, str]) -> str:
    """The theme as CSS declarations."""
    return "".join(f"--{role}:{color};" for role, color in theme.items())
