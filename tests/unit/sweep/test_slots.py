"""Which GPU or cores a run gets."""

from __future__ import annotations

import pytest

from questlm.errors import ConfigError
from questlm.sweep import make_slots, visible_gpus


def _seen(device: str, jobs: int | None, gpus: list[str], cores: int) -> list[tuple[str, str]]:
    slots = make_slots(device, jobs, gpus, cores)
    return [(slot.environment["CUDA_VISIBLE_DEVICES"], slot.environment["OMP_NUM_THREADS"]) for slot in slots]


def test_one_run_on_each_gpu() -> None:
    assert _seen("auto", None, ["0", "1", "2"], 12) == [("0", "4"), ("1", "4"), ("2", "4")]
    assert _seen("cuda", 2, ["4", "GPU-ab"], 2) == [("4", "1"), ("GPU-ab", "1")]
    assert _seen("auto", 1, ["0", "1"], 8) == [("0", "8")]


def test_runs_share_the_cores_and_see_no_gpu() -> None:
    assert _seen("auto", None, [], 8) == [("", "8")]
    assert _seen("auto", 3, [], 8) == [("", "2")] * 3
    assert _seen("cpu", 2, ["0"], 2) == [("", "1")] * 2


@pytest.mark.parametrize(
    ("device", "jobs", "gpus", "message"),
    [
        ("auto", 3, ["0", "1"], "--jobs 3 is not from 1 to 2, the number of GPUs"),
        ("cpu", 9, ["0", "1"], "--jobs 9 is not from 1 to 8, the number of cores"),
        ("auto", 0, [], "--jobs 0"),
        ("cuda", None, [], "no CUDA device"),
        ("cuda:1", None, ["0", "1"], "places its runs itself"),
    ],
)
def test_what_cannot_be_placed(device: str, jobs: int | None, gpus: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_slots(device, jobs, gpus, 8)


def test_gpus_keep_the_names_that_the_environment_gives_them() -> None:
    assert visible_gpus({}, 2) == ["0", "1"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "5, 3,GPU-1"}, 3) == ["5", "3", "GPU-1"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, 0) == []
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "0,1,9"}, 2) == ["0", "1"]  # CUDA stops at the first that is not there
