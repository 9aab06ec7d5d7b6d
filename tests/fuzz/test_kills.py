"""Work that was killed like `kill -9` goes on to the same result and leaves nothing behind: short form of `kill.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.fuzzing.jobs import JOBS
from helpers.fuzzing.kills import trial, uninterrupted

_TRIALS = {"tokenise": 8, "train": 6, "pack": 5, "report": 2, "sweep": 1}
"""With one to three kills each; about thirty seconds in all on two free cores."""


@pytest.mark.parametrize("name", JOBS)
def test_work_that_was_killed_ends_as_if_it_had_not_been(name: str, tmp_path: Path) -> None:
    job = JOBS[name]
    (tmp_path / "inputs").mkdir()
    job.prepare(tmp_path / "inputs")
    wanted, changes = uninterrupted(job, tmp_path / "inputs", tmp_path / "alone")
    faults = [trial(job, tmp_path, wanted, changes, seed=0, index=index) for index in range(_TRIALS[name])]
    assert [fault for fault in faults if fault] == []
