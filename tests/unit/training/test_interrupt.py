"""What signals do while a run trains."""

from __future__ import annotations

import signal

import pytest

from questlm.training import interrupt as module
from questlm.training.interrupt import Interrupt


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_five_signals_at_once_are_one_request(clock: list[float]) -> None:
    with Interrupt() as interrupt:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGINT, signal.SIGINT):
            signal.raise_signal(number)
            clock[0] += 0.4
    assert interrupt.received == signal.SIGINT


def test_a_later_signal_leaves_at_once_and_a_third_would_end_the_process(clock: list[float]) -> None:
    def main_first() -> None:
        signal.raise_signal(signal.SIGINT)
        clock[0] += 2.5
        signal.raise_signal(signal.SIGINT)

    with Interrupt():
        with pytest.raises(KeyboardInterrupt):
            main_first()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_DFL


def test_the_first_signal_says_once_what_happens(capfd: pytest.CaptureFixture[str]) -> None:
    with Interrupt("the run is saved"):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == "\nthe run is saved\n"
