"""Lines of progress in a log."""

from __future__ import annotations

import os
import sys

import pytest

from questlm import progress as module
from questlm.progress import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_is_given_in_days(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress("training", 1.0) as update:
        update(0.0)
        clock[0] = 41.0
        update(1e-4, "loss 7.000")
    assert capsys.readouterr().err == "training: 0% loss 7.000, 4.7 days left\n"


def test_the_time_left_of_a_resumed_run_is_measured_on_what_was_done_since(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("training", 1.0) as update:
        update(0.5)
        clock[0] = 100.0
        update(0.6)
    assert capsys.readouterr().err == "training: 60%, 7 min left\n"


def test_a_reader_that_has_left_does_not_end_the_work(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    stream = os.fdopen(write, "w")
    monkeypatch.setattr(sys, "stderr", stream)
    with progress("training", 1.0) as update:
        for second in (11.0, 22.0):
            clock[0] = second
            update(0.1)
    with pytest.raises(BrokenPipeError):
        stream.close()
