from __future__ import annotations

import time
from importlib.metadata import version
from itertools import pairwise

import pytest
import torch

from questlm.bench.timing import Case, check_counts, run_cases
from questlm.errors import ConfigError


def _case(calls: list[str], work: tuple[int, int] = (1, 1), sleep: float = 0.0) -> Case:
    def side(name: str) -> None:
        calls.append(name)
        time.sleep(sleep)

    return Case("model", "q", "4 x 4", "W4A4", 1, work, lambda: side("packed"), lambda: side("dense"))


def test_sides_alternate_and_the_first_call_of_each_is_not_counted() -> None:
    calls: list[str] = []
    report = run_cases("layer", [_case(calls)], 0.02, None)
    assert all(one != other for one, other in pairwise(calls))
    assert len(calls) == 2 * (report.comparisons[0].rounds + 1)


def test_a_case_that_takes_longer_than_its_time_has_three_rounds() -> None:
    calls: list[str] = []
    report = run_cases("decode", [_case(calls, sleep=0.01), _case(calls, sleep=0.01)], 0.001, None)
    assert [each.rounds for each in report.comparisons] == [3, 3]


def test_seconds_are_of_a_unit_of_work_and_the_speedup_lies_within_its_spread() -> None:
    found = run_cases("layer", [_case([], work=(1, 4), sleep=0.01)], 0.001, None).comparisons[0]
    assert found.packed_seconds >= 0.01
    assert found.float32_seconds >= 0.01 / 4
    assert found.slowest <= found.speedup <= found.fastest


def test_the_report_states_device_threads_and_versions_and_the_threads_are_restored() -> None:
    before = torch.get_num_threads()
    report = run_cases("layer", [_case([])], 0.001, threads=before + 1)
    assert report.threads == before + 1
    assert f"{before + 1} threads" in report.device
    assert report.versions["torch"] == version("torch")  # torch.__version__ may name its build, too
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("seconds", "threads"), [(0, None), (float("nan"), None), (1, 0)])
def test_no_time_and_no_threads_are_refused(seconds: float, threads: int | None) -> None:
    with pytest.raises(ConfigError, match=r"above 0|at least 1"):
        run_cases("layer", [_case([])], seconds, threads)


@pytest.mark.parametrize(("counts", "said"), [([], r"\(none\)"), ([1, 0], "1, 0")])
def test_counts_below_one_are_refused(counts: list[int], said: str) -> None:
    with pytest.raises(ConfigError, match=f"batches {said}: give whole numbers of at least 1"):
        check_counts(counts, "batches")
