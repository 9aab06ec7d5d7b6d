"""What the report computes: means over seeds, clusters of budgets, the Pareto front, shorter curves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from math import sqrt
from statistics import fmean, stdev

from questlm.report.gather import Entry, Point
from questlm.scaling.runs import Run

__all__ = [
    "Cell",
    "block_bytes",
    "budgets",
    "cells",
    "differing",
    "pareto_front",
    "ratio_text",
    "settings_text",
    "shorten",
]

_SAME_BUDGET = 1.15  # ratio of tokens per parameter within which runs count as of one budget
_SHOWN_ANYWAY = ("seed", "quant.method", "quant.weight_bits", "quant.act_bits", "quant.format", "init_from")
_SHOWN_SECTIONS = ("budget.",)


@dataclass(frozen=True)
class Cell:
    """Repeats of one run with other seeds.

    Attributes:
        group, parameters, ratio: of its runs; `ratio` is the tokens per parameter of their budget.
        variant: settings in which its runs differ from others of the same group, size and tokens; '' for none.
        losses: final ones, in order.
    """

    group: str
    parameters: int
    ratio: float
    variant: str
    losses: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of the losses."""
        return fmean(self.losses)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None of a single run, which has none."""
        return stdev(self.losses) if len(self.losses) > 1 else None

    @property
    def half_width(self) -> float | None:
        """Half of the mean's 95 % interval, by Student's t; None of a single run."""
        from scipy.special import stdtrit

        spread, count = self.spread, len(self.losses)
        return None if spread is None else float(stdtrit(count - 1, 0.975)) * spread / sqrt(count)


def block_bytes(run: Run) -> int:
    """Bytes of the weights inside the blocks, at their bits; steps and norms not counted.

    Ternary codes go five to a byte; of 2:4 sparse weights half are kept, and bits say which.
    """
    bits = 8 / 5 if isinstance(run.weight_bits, str) else float(run.weight_bits)
    if "2:4" in run.format:
        bits = bits / 2 + (0.5 if run.weight_bits == 4 else 1)
    return round(run.parameters * bits / 8)


def budgets(entries: Iterable[Entry]) -> dict[float, list[Entry]]:
    """Runs by tokens per parameter, smallest first; ratios within 15 % of the smallest of their cluster are one."""
    clusters: list[list[Entry]] = []
    for entry in sorted(entries, key=_ratio):
        if not clusters or _ratio(entry) > _SAME_BUDGET * _ratio(clusters[-1][0]):
            clusters.append([])
        clusters[-1].append(entry)
    return {_ratio(cluster[len(cluster) // 2]): cluster for cluster in clusters}


def ratio_text(ratio: float) -> str:
    """Tokens per parameter for people: two digits are what clusters leave."""
    rounded = float(f"{ratio:.2g}")
    return f"{rounded:,.0f}" if rounded >= 1 else f"{rounded:g}"


def _ratio(entry: Entry) -> float:
    return entry.run.tokens / entry.run.parameters


def cells(entries: Sequence[Entry]) -> list[Cell]:
    """The finished runs, repeats with other seeds together, in the order of `entries`."""
    result = []
    for ratio, cluster in budgets(entry for entry in entries if entry.finished).items():
        same: dict[tuple[str, int], list[Entry]] = {}
        for entry in cluster:
            same.setdefault((entry.run.group, entry.run.parameters), []).append(entry)
        for (group, parameters), repeats in same.items():
            keys = differing(repeats, within_size=True)
            variants: dict[str, list[float]] = {}
            for entry in repeats:
                variants.setdefault(settings_text(entry, keys), []).append(entry.run.loss)
            result += [Cell(group, parameters, ratio, text, tuple(losses)) for text, losses in variants.items()]
    return result


def settings_text(entry: Entry, keys: Iterable[str]) -> str:
    """The named settings of a run, as 'train.lr = 0.001, ...'."""
    return ", ".join(f"{key} = {entry.settings[key]}" for key in keys if key in entry.settings)


def differing(entries: Sequence[Entry], within_size: bool = False) -> list[str]:
    """Settings in which runs differ, beyond what group, budget and seed say.

    Args:
        within_size: the runs are of one size; otherwise those that follow from the number of parameters are left out.
    """
    configured = [entry for entry in entries if entry.settings]
    keys = sorted({key for entry in configured for key in entry.settings})
    return [key for key in keys if not _shown_anyway(key) and _differs(configured, key, within_size)]


def _shown_anyway(key: str) -> bool:
    return key in _SHOWN_ANYWAY or key.startswith(_SHOWN_SECTIONS)


def _differs(entries: Sequence[Entry], key: str, within_size: bool) -> bool:
    if within_size or not key.startswith("model."):
        return len({entry.settings.get(key) for entry in entries}) > 1
    by_size = sorted(entries, key=lambda entry: entry.run.parameters)
    return any(
        _differs(list(alike), key, True) for _, alike in groupby(by_size, key=lambda entry: entry.run.parameters)
    )


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other undercuts in both coordinates, by the first coordinate."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: points[i]):
        if not front or points[index][1] < points[front[-1]][1]:
            front.append(index)
    return front


def shorten(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` points: means of runs of neighbours of equal number, the last point kept as it is."""
    if len(points) <= most:
        return list(points)
    body, end = points[:-1], points[-1]
    edges = [round(index * len(body) / (most - 1)) for index in range(most)]
    means = []
    for low, high in pairwise(edges):
        part = body[low:high]
        means.append((fmean(tokens for tokens, _ in part), fmean(loss for _, loss in part)))
    return [*means, end]
