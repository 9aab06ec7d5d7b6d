"""Time two ways of doing the same in alternation, within a bound of time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from questlm.errors import ConfigError
from questlm.progress import progress
from questlm.records import package_versions
from questlm.training.device import device_name

__all__ = ["Case", "Comparison", "SpeedReport", "check_counts", "run_cases"]

_MIN_ROUNDS, _MAX_ROUNDS = 3, 1000

Kind = Literal["layer", "prefill", "decode"]


@dataclass(frozen=True)
class Case:
    """What is timed: two functions that do the same work, once each a round.

    Attributes:
        artifact: name of the packed model's folder.
        what: the layers, or the model.
        shape: out x in of a layer, or the shape of a model.
        bits: such as W4A4.
        batch: rows of a layer, tokens of a prompt, or sequences that are decoded together.
        work: how many units (layers, tokens) one call of each function does: packed, float32.
        packed, dense: run the work once.
    """

    artifact: str
    what: str
    shape: str
    bits: str
    batch: int
    work: tuple[int, int]
    packed: Callable[[], object]
    dense: Callable[[], object]


@dataclass(frozen=True)
class Comparison:
    """What was found of one case.

    Attributes:
        artifact, what, shape, bits, batch: as in `Case`.
        rounds: how often each side ran.
        packed_seconds: median seconds of a unit of work: a layer, or a token.
        float32_seconds: the same in float32.
        speedup: median over the rounds of float32 seconds over packed seconds.
        slowest, fastest: the smallest and the largest speed-up of a round.
    """

    artifact: str
    what: str
    shape: str
    bits: str
    batch: int
    rounds: int
    packed_seconds: float
    float32_seconds: float
    speedup: float
    slowest: float
    fastest: float


@dataclass(frozen=True)
class SpeedReport:
    """What a benchmark found, and where.

    Attributes:
        kind: layer, prefill or decode.
        device: processor and threads.
        threads: that torch and the kernels used.
        versions: of Python, questlm and torch.
        comparisons: one for each case.
    """

    kind: Kind
    device: str
    threads: int
    versions: dict[str, str]
    comparisons: tuple[Comparison, ...]

    def as_json(self) -> dict[str, Any]:
        """The same as plain JSON."""
        return asdict(self)


def check_counts(counts: Sequence[int], what: str) -> None:
    """Refuse an empty list, and counts below 1.

    Raises:
        ConfigError: names the value.
    """
    if not counts or min(counts) < 1:
        raise ConfigError(f"{what} {', '.join(map(str, counts)) or '(none)'}: give whole numbers of at least 1")


def run_cases(kind: Kind, cases: Sequence[Case], seconds: float, threads: int | None) -> SpeedReport:
    """Time every case for an equal share of `seconds`, and for at least three rounds.

    Args:
        kind: for the report.
        cases: what to time.
        seconds: about how long all of it may take; each side runs once beforehand, which is not counted.
        threads: that torch and the kernels use; None: as many as now.

    Raises:
        ConfigError: `seconds` or `threads` is not above 0.
    """
    if not seconds > 0:
        raise ConfigError(f"seconds = {seconds}: give a time above 0")
    with _threads(threads), progress(f"bench {kind}", seconds) as update, torch.inference_mode():
        start, found = time.perf_counter(), []
        for index, case in enumerate(cases):
            update(time.perf_counter() - start, f"{case.what}, batch {case.batch}")
            deadline = start + seconds * (index + 1) / len(cases)
            rounds = _alternate(case, deadline, lambda: update(time.perf_counter() - start))
            found.append(_comparison(case, rounds))
        return SpeedReport(
            kind, device_name(torch.device("cpu")), torch.get_num_threads(), package_versions(), tuple(found)
        )


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None and count < 1:
        raise ConfigError(f"threads = {count}: give a whole number of at least 1")
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _alternate(case: Case, deadline: float, tick: Callable[[], None]) -> list[tuple[float, float]]:
    """Seconds of a unit of work in each round: packed, float32. A busy moment of the machine then hits both."""
    case.packed(), case.dense()
    rounds: list[tuple[float, float]] = []
    while len(rounds) < _MIN_ROUNDS or (time.perf_counter() < deadline and len(rounds) < _MAX_ROUNDS):
        times = [time.perf_counter()]
        for run in (case.packed, case.dense):
            run()
            times.append(time.perf_counter())
        rounds.append(((times[1] - times[0]) / case.work[0], (times[2] - times[1]) / case.work[1]))
        tick()
    return rounds


def _comparison(case: Case, rounds: Sequence[tuple[float, float]]) -> Comparison:
    ratios = [dense / packed for packed, dense in rounds]
    return Comparison(
        artifact=case.artifact,
        what=case.what,
        shape=case.shape,
        bits=case.bits,
        batch=case.batch,
        rounds=len(rounds),
        packed_seconds=statistics.median(packed for packed, _ in rounds),
        float32_seconds=statistics.median(dense for _, dense in rounds),
        speedup=statistics.median(ratios),
        slowest=min(ratios),
        fastest=max(ratios),
    )
