"""What the report computes: means over seeds, clusters of budgets, the Pareto front, shorter curves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from math import sqrt
from statistics import fmean, stdev

from questlm.config import COMPUTING_ONLY, DATA_PATHS
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
    """The runs that differ only in their seed.

    Attributes:
        group, parameters, ratio: of its runs; `ratio` is the tokens per parameter of their budget.
        variant: in what its runs differ from others of the same group, size and budget; '' for nothing.
        losses: final ones, one for each seed that is known to be another: repeats of a seed are no sample of seeds, so
            their mean stands for them.
        runs: how many there are, repeats included.
    """

    group: str
    parameters: int
    ratio: float
    variant: str
    losses: tuple[float, ...]
    runs: int

    @property
    def mean(self) -> float:
        """Return the mean of the losses."""
        return fmean(self.losses)

    @property
    def spread(self) -> float | None:
        """Return the standard deviation over seeds; None where there is only one."""
        return stdev(self.losses) if len(self.losses) > 1 else None

    @property
    def half_width(self) -> float | None:
        """Return half of the mean's 95 % interval, by Student's t; None where there is only one seed."""
        from scipy.special import stdtrit

        spread, count = self.spread, len(self.losses)
        return None if spread is None else float(stdtrit(count - 1, 0.975)) * spread / sqrt(count)


def block_bytes(run: Run) -> int:
    """Return the bytes of the weights inside the blocks at their bits, without steps and norms.

    Ternary codes go five to a byte; of 2:4 sparse weights half are kept, and bits say which.
    """
    bits = 8 / 5 if isinstance(run.weight_bits, str) else float(run.weight_bits)
    if "2:4" in run.format:
        bits = bits / 2 + (0.5 if run.weight_bits == 4 else 1)
    return round(run.parameters * bits / 8)


def budgets(entries: Iterable[Entry]) -> dict[float, list[Entry]]:
    """Group runs by tokens per parameter, smallest first; a group ends 15 % above its smallest ratio."""
    clusters: list[list[Entry]] = []
    for entry in sorted(entries, key=_ratio):
        if not clusters or _ratio(entry) > _SAME_BUDGET * _ratio(clusters[-1][0]):
            clusters.append([])
        clusters[-1].append(entry)
    return {_ratio(cluster[len(cluster) // 2]): cluster for cluster in clusters}


def ratio_text(ratio: float) -> str:
    """Return tokens per parameter as text with two digits, as the runs of a group differ in the others."""
    rounded = float(f"{ratio:.2g}")
    return f"{rounded:,.0f}" if rounded >= 1 else f"{rounded:g}"


def _ratio(entry: Entry) -> float:
    return entry.run.tokens / entry.run.parameters


def cells(entries: Sequence[Entry]) -> list[Cell]:
    """Group the finished runs by everything but their seed, in the order of `entries`."""
    result = []
    for ratio, cluster in budgets(entry for entry in entries if entry.finished).items():
        same: dict[tuple[str, int], list[Entry]] = {}
        for entry in cluster:
            same.setdefault((entry.run.group, entry.run.parameters), []).append(entry)
        for (group, parameters), runs in same.items():
            for variant, alike in _variants(runs):
                losses = _losses_by_seed(alike)
                result.append(Cell(group, parameters, ratio, variant, losses, len(alike)))
    return result


def _variants(entries: Sequence[Entry]) -> list[tuple[str, list[Entry]]]:
    """Runs of a group, size and budget that differ in their seed only, and in what they differ from the others."""
    alike: dict[tuple[object, ...], list[Entry]] = {}
    for entry in entries:
        alike.setdefault(_all_but_the_seed(entry), []).append(entry)
    firsts = [runs[0] for runs in alike.values()]
    known = [_deciding(entry) for entry in firsts if entry.settings]
    keys = sorted({key for settings in known for key in settings})
    keys = [key for key in keys if len({settings.get(key) for settings in known}) > 1]
    return [(_variant_text(runs[0], firsts, keys), runs) for runs in alike.values()]


def _all_but_the_seed(entry: Entry) -> tuple[object, ...]:
    if not entry.settings:  # a row: its tokens are all that is known of it
        return entry.run.tokens, entry.run.validation
    return entry.run.validation, entry.data, *sorted(_deciding(entry).items())


def _deciding(entry: Entry) -> dict[str, str]:
    """The settings that decide what is learned from the data, beside the seed."""
    others = {"seed", *COMPUTING_ONLY, *(DATA_PATHS if entry.data else ())}
    return {key: value for key, value in entry.settings.items() if key not in others}


def _variant_text(entry: Entry, others: Sequence[Entry], keys: Sequence[str]) -> str:
    texts = [settings_text(entry, keys)] if entry.settings and keys else []
    if not entry.settings and any(other.settings for other in others):
        texts.append("settings not known")
    if len({other.run.tokens for other in others if not other.settings}) > 1 and not entry.settings:
        texts.append(f"{entry.run.tokens:,} tokens")
    if entry.settings and len({other.data for other in others if other.settings}) > 1:
        texts.append(f"trained on {entry.data[:8] or 'unknown data'}")
    if len({other.run.validation for other in others}) > 1:
        texts.append(f"validated on {entry.run.validation[:8] or 'an unknown text'}")
    return ", ".join(texts)


def _losses_by_seed(alike: Sequence[Entry]) -> tuple[float, ...]:
    by_seed: dict[int | None, list[float]] = {}
    for entry in alike:
        by_seed.setdefault(entry.run.seed, []).append(entry.run.loss)
    if len(by_seed) > 1 and None in by_seed:  # it may be any of the others
        del by_seed[None]
    return tuple(fmean(losses) for losses in by_seed.values())


def settings_text(entry: Entry, keys: Iterable[str]) -> str:
    """Return the named settings of a run as text: 'train.lr = 0.001, ...'."""
    return ", ".join(f"{key} = {entry.settings[key]}" for key in keys if key in entry.settings)


def differing(entries: Sequence[Entry]) -> list[str]:
    """Return the names of the settings in which runs differ, other than those of group, size, budget and seed."""
    configured = [entry for entry in entries if entry.settings]
    keys = sorted({key for entry in configured for key in entry.settings})
    return [key for key in keys if not _shown_anyway(key) and _differs(configured, key)]


def _shown_anyway(key: str) -> bool:
    return key in _SHOWN_ANYWAY or key.startswith(_SHOWN_SECTIONS)


def _differs(entries: Sequence[Entry], key: str) -> bool:
    if not key.startswith("model."):
        return len({entry.settings.get(key) for entry in entries}) > 1
    by_size = sorted(entries, key=lambda entry: entry.run.parameters)
    return any(
        len({entry.settings.get(key) for entry in alike}) > 1
        for _, alike in groupby(by_size, key=lambda entry: entry.run.parameters)
    )


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other point undercuts in both coordinates, sorted by the first."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: points[i]):
        if not front or points[index][1] < points[front[-1]][1]:
            front.append(index)
    return front


def shorten(points: Sequence[Point], most: int) -> list[Point]:
    """Shorten a curve to at most `most` points, means of equally many neighbours. The last point stays."""
    if len(points) <= most:
        return list(points)
    body, end = points[:-1], points[-1]
    edges = [round(index * len(body) / (most - 1)) for index in range(most)]
    means = []
    for low, high in pairwise(edges):
        part = body[low:high]
        means.append((fmean(tokens for tokens, _ in part), fmean(loss for _, loss in part)))
    return [*means, end]
