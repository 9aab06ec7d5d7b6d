"""The fitted law against the runs: predicted over measured loss, and what is left over, by group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from questlm.errors import QuestError
from questlm.readable import count_text
from questlm.report.drawing import Drawing, Picture
from questlm.report.gather import Entry
from questlm.report.pictures.shared import marker_style, panels, plural
from questlm.report.theme import LIGHT, Look
from questlm.scaling import LawFit

__all__ = ["law"]

_Row = tuple[Entry, float, float]
"""Run, predicted loss, 100 log(predicted / measured)."""


def law(fit: LawFit, entries: Sequence[Entry], looks: Mapping[str, Look]) -> Picture | None:
    """The picture of the finished runs whose group was fitted, or None where there is none."""
    rows, foreign = _predicted(fit, [entry for entry in entries if entry.finished])
    if not rows:
        return None
    used = {group: look for group, look in looks.items() if any(entry.run.group == group for entry, _, _ in rows)}

    def draw(narrow: bool) -> Drawing:
        height = max(3.1, 0.9 + 0.24 * len(used))
        figure, (left, right) = panels(2, narrow, 2, height)
        tips: dict[str, list[str]] = {}
        for rank, (group, look) in enumerate(used.items()):
            inside = [row for row in rows if row[0].run.group == group]
            texts = [
                f"{entry.name}: {group}, measured {entry.run.loss:.4f}, law {predicted:.4f} ({residual:+.2f} %)"
                for entry, predicted, residual in inside
            ]
            tips |= {f"law-{rank}": texts, f"residual-{rank}": texts}
            left.plot(
                [e.run.loss for e, _, _ in inside], [p for _, p, _ in inside], gid=f"law-{rank}", **marker_style(look)
            )
            right.plot(
                [residual for _, _, residual in inside], [rank] * len(inside), gid=f"residual-{rank}",
                **marker_style(look),
            )  # fmt: skip
        _agreement(left, [loss for e, predicted, _ in rows for loss in (e.run.loss, predicted)])
        _residuals(right, list(used), max(abs(residual) for _, _, residual in rows))
        return Drawing(figure, tips)

    return Picture(
        "law",
        "The law against the runs",
        _caption(fit, rows, foreign),
        draw,
        ("run", "group", "parameters", "tokens", "measured", "predicted", "log_residual"),
        [(e.name, e.run.group, e.run.parameters, e.run.tokens, e.run.loss, p, r / 100) for e, p, r in rows],
    )


def _predicted(fit: LawFit, entries: Sequence[Entry]) -> tuple[list[_Row], int]:
    """Runs with the law's loss, and how many are of groups that it was not fitted to."""
    rows: list[_Row] = []
    foreign = 0
    for entry in entries:
        try:
            loss = float(fit.predict(entry.run.parameters, entry.run.tokens, entry.run.group))
        except QuestError:
            foreign += 1
        else:
            rows.append((entry, loss, 100 * math.log(loss / entry.run.loss)))
    return rows, foreign


def _agreement(axis: Any, losses: list[float]) -> None:
    low, high = min(losses), max(losses)
    margin = 0.06 * (high - low) or 0.1
    ends = (low - margin, high + margin)
    axis.plot(ends, ends, color=LIGHT["muted"], linewidth=1, zorder=1)
    axis.set_xlim(ends)
    axis.set_ylim(ends)
    axis.set_title("Loss, nats/token")
    axis.set_xlabel("measured")
    axis.set_ylabel("by the law")


def _residuals(axis: Any, groups: list[str], largest: float) -> None:
    axis.axvline(0, color=LIGHT["muted"], linewidth=1, zorder=1)
    axis.set_yticks(range(len(groups)), groups)
    axis.set_ylim(len(groups) - 0.4, -0.6)
    axis.set_xlim(-1.15 * largest - 1e-9, 1.15 * largest + 1e-9)
    axis.set_title("What is left over")
    axis.set_xlabel("100 log(law / measured)")


def _caption(fit: LawFit, rows: Sequence[_Row], foreign: int) -> str:
    rms = math.sqrt(sum(residual**2 for _, _, residual in rows) / len(rows))
    entry, predicted, residual = max(rows, key=lambda row: abs(row[2]))
    inside = sum(abs(value) < 1 for _, _, value in rows)
    text = (
        f"{plural(len(rows), 'run')}: the law misses by {rms:.2f} % (root mean square), by less than 1 % in {inside}. "
        f"Furthest off is {entry.run.group} with N = {count_text(entry.run.parameters)} and "
        f"{count_text(entry.run.tokens)} tokens: measured {entry.run.loss:.3f}, by the law {predicted:.3f} "
        f"({residual:+.2f} %). "
    )
    if fit.n_runs != len(rows):
        text += f"The law was fitted to {plural(fit.n_runs, 'run')}. "
    if foreign:
        text += f"{plural(foreign, 'run')} of groups that were not fitted are not drawn. "
    return text.strip()
