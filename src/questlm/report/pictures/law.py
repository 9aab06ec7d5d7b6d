"""The fitted law against the runs of the report, as `quest fit --picture` draws it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from questlm.errors import QuestError
from questlm.humanize import count_text
from questlm.report.drawing import Drawing, Picture
from questlm.report.gather import Entry
from questlm.report.pictures.shared import panels, plural
from questlm.scaling import LawFit
from questlm.scaling.group_styles import GroupStyle, legend
from questlm.scaling.law_picture import draw_curve, draw_residuals
from questlm.scaling.result import Residual

__all__ = ["law"]


def law(fit: LawFit, entries: Sequence[Entry], styles: Mapping[str, GroupStyle]) -> Picture | None:
    """The picture of the finished runs whose group was fitted, or None where there is none."""
    runs, foreign = _predicted(fit, [entry for entry in entries if entry.finished])
    if not runs:
        return None
    used = {group: style for group, style in styles.items() if any(run.group == group for run in runs)}

    def draw(narrow: bool) -> Drawing:
        figure, (left, right) = panels(2, narrow, 2, 3.3)
        draw_curve(left, fit, runs, used)
        draw_residuals(right, runs, used)
        legend(figure, used, narrow)
        tips: dict[str, list[str]] = {}
        for rank, group in enumerate(used):
            texts = [
                f"{run.source}: {group}, measured {run.loss:.4f}, law {_by_law(run):.4f} "
                f"({100 * run.log_residual:+.2f} %)"
                for run in runs
                if run.group == group
            ]
            tips |= {f"law-{rank}": texts, f"residual-{rank}": texts}
        return Drawing(figure, tips)

    return Picture(
        "law",
        "The law against the runs",
        _caption(fit, runs, foreign),
        draw,
        ("run", "group", "parameters", "tokens", "measured", "predicted", "log_residual"),
        [(r.source, r.group, r.parameters, r.tokens, r.loss, _by_law(r), r.log_residual) for r in runs],
    )


def _predicted(fit: LawFit, entries: Sequence[Entry]) -> tuple[list[Residual], int]:
    """Runs against the law, and how many are of groups that it was not fitted to."""
    runs: list[Residual] = []
    foreign = 0
    for entry in entries:
        run = entry.run
        try:
            loss = float(fit.predict(run.parameters, run.tokens, run.group))
        except QuestError:
            foreign += 1
        else:
            log_residual = math.log(loss / run.loss)
            runs.append(Residual(run.group, run.parameters, run.tokens, run.loss, log_residual, entry.name))
    return runs, foreign


def _by_law(run: Residual) -> float:
    return run.loss * math.exp(run.log_residual)


def _caption(fit: LawFit, runs: Sequence[Residual], foreign: int) -> str:
    rms = 100 * math.sqrt(sum(run.log_residual**2 for run in runs) / len(runs))
    worst = max(runs, key=lambda run: abs(run.log_residual))
    inside = sum(abs(run.log_residual) < 0.01 for run in runs)
    text = (
        f"{plural(len(runs), 'run')}: the law misses by {rms:.2f} % (root mean square), by less than 1 % in {inside}. "
        f"Furthest off is {worst.group} with N = {count_text(worst.parameters)} and "
        f"{count_text(worst.tokens)} tokens: measured {worst.loss:.3f}, by the law {_by_law(worst):.3f} "
        f"({100 * worst.log_residual:+.2f} %). Left: what the law puts down to the model, over effective parameters; "
        f"where it holds, all runs lie on one curve. "
    )
    if fit.n_runs != len(runs):
        text += f"The law was fitted to {plural(fit.n_runs, 'run')}. "
    if foreign:
        text += f"{plural(foreign, 'run')} of groups that were not fitted are not drawn. "
    return text.strip()
