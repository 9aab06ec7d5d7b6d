"""eff(P) / P: how many full-precision parameters a stored bit is worth, by group."""

from __future__ import annotations

import math
from collections.abc import Mapping

from questlm.plotting import LIGHT
from questlm.report.drawing import Drawing, Picture
from questlm.report.pictures.shared import panels, value_text
from questlm.scaling import LawFit
from questlm.scaling.group_styles import GroupStyle, widths
from questlm.scaling.runs import bits_of

__all__ = ["efficiency"]

_HIGHEST_BAR = 3.0  # intervals may end this many times beyond the longest bar; past it they leave the picture


def efficiency(fit: LawFit, styles: Mapping[str, GroupStyle]) -> Picture | None:
    """The picture of the fitted groups, or None where only BF16 was fitted."""
    rows = []
    for group, estimate in fit.eff.items():
        found = widths(group)
        if found is not None:
            bits = bits_of(found[0])
            rows.append((group, bits, estimate.value / bits, estimate.low / bits, estimate.high / bits))
    if not rows:
        return None
    rows.sort(key=lambda row: -row[2])
    baseline = 1 / 16
    longest = max(baseline, *(row[2] for row in rows))

    def draw(narrow: bool) -> Drawing:
        figure, (axis,) = panels(1, narrow, 1, 0.85 + 0.29 * len(rows))
        for place, (group, _, value, low, high) in enumerate(rows):
            color = styles[group].color if group in styles else LIGHT["accent"]
            axis.barh(place, value, height=0.62, color=color, alpha=0.85)
            end = min(high, _HIGHEST_BAR * longest)
            axis.plot([low, end], [place, place], color=LIGHT["ink"], linewidth=1.1)
            axis.plot([low], [place], color=LIGHT["ink"], marker="|", markersize=6)
            axis.plot([end], [place], color=LIGHT["ink"], marker="|" if end == high else ">", markersize=6)
            axis.annotate(
                f"{value:.3f}", (max(end, value), place), xytext=(7, 0), textcoords="offset points", va="center",
                fontsize=8.5,
            )  # fmt: skip
        axis.axvline(baseline, color=LIGHT["muted"], linestyle=(0, (4, 2)), linewidth=1)
        axis.annotate(
            "BF16", (baseline, -0.6), xytext=(3, 2), textcoords="offset points", fontsize=8.5, color=LIGHT["muted"]
        )
        axis.set_ylim(len(rows) - 0.4, -1.1)
        axis.set_yticks(range(len(rows)), [row[0] for row in rows])
        axis.grid(axis="y", visible=False)
        axis.margins(x=0.14)
        axis.set_xlim(left=0)
        axis.set_xlabel("eff(P) / P, per weight bit")
        return Drawing(figure)

    return Picture(
        "efficiency",
        "Efficiency of a bit",
        _caption(fit, rows, baseline),
        draw,
        ("group", "weight_bits", "eff_per_bit", "low", "high"),
        [(group, bits, value, low, high if math.isfinite(high) else "") for group, bits, value, low, high in rows],
    )


def _caption(fit: LawFit, rows: list[tuple[str, float, float, float, float]], baseline: float) -> str:
    group, bits, value, _, _ = rows[0]
    estimate = fit.eff[group]
    text = (
        f"Most is had from {group}: eff = {value_text(estimate.value)} "
        f"[{value_text(estimate.low)}, {value_text(estimate.high)}] over "
        f"{bits:.3g} bits is {value:.3f} a bit, {value / baseline:.2g} times the {baseline:.4f} of BF16 (dashed). "
    )
    if len(rows) > 1:
        text += f"Least from {rows[-1][0]}: {rows[-1][2]:.3f}. "
    return text + "P is the bits of a weight; whiskers are 95 % intervals, an arrow one that ends outside."
