"""The queue of a sweep: runs as processes of `quest train`, one in each slot, until all are finished or have failed.

Each run is a process of its own, so that one that dies takes nothing with it. The longest go first, so that no slot is
left alone with one at the end. Signals are for the sweep to pass on: its children are not in the terminal's foreground,
where Ctrl-C would reach them twice and keep them from saving.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from questlm.errors import ConfigError
from questlm.files import file_lock, remove_leftovers
from questlm.records import RunProgress, RunRecord
from questlm.sweep.grid import PlannedRun
from questlm.sweep.runs import (
    arguments_left,
    estimated_speed,
    forget_progress,
    is_being_trained,
    is_finished,
    last_words,
    log_file,
    read_progress,
    result,
    work,
)
from questlm.sweep.slots import Slot
from questlm.training import RunFolder
from questlm.training.interrupt import Interrupt

__all__ = ["QueuedRun", "State", "Stopped", "Sweep", "locked"]

_TRAIN = (sys.executable, "-m", "questlm", "train")
_SECONDS_BETWEEN_LOOKS = 0.2
_STOPPING = "quest: the runs stop after their steps and are saved; Ctrl-C again ends them at once"

State = Literal["waiting", "running", "finished", "failed"]


class Stopped(Exception):  # noqa: N818 - not an error: the sweep was asked to stop, and its runs are saved
    """The sweep ended on a signal, whose number this carries."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}; the same command goes on from here")
        self.signal_number = signal_number


@dataclass
class QueuedRun:
    """A run in the queue.

    Attributes:
        attempts: how often this sweep has started it.
        problem: why the last of them failed.
        started, overhead: when it was started (monotonic), and the seconds that its process took beside training.
    """

    planned: PlannedRun
    state: State = "waiting"
    attempts: int = 0
    slot: Slot | None = None
    process: subprocess.Popen[bytes] | None = None
    progress: RunProgress | None = None
    problem: str = ""
    started: float = 0.0
    overhead: float | None = None


@dataclass
class Sweep:
    """Trains `runs`, each in a folder of its own in `out`.

    Attributes:
        slots: places for runs; as many go on at a time.
        retries: how often a run that failed is tried again.
        items: every run, in the order of the grid.
    """

    runs: Sequence[PlannedRun]
    out: Path
    slots: Sequence[Slot]
    retries: int = 1
    items: list[QueuedRun] = field(init=False)

    def __post_init__(self) -> None:
        self.items = [QueuedRun(planned) for planned in self.runs]

    def run(self, show: Callable[[Sweep], None]) -> None:
        """Train all runs that are not finished, and call `show` several times a second.

        Raises:
            ConfigError: another sweep is at work in the folder.
            CheckpointError: a folder there was made with other settings; nothing is started then.
            Stopped: SIGINT or SIGTERM; every run is saved, or begins again if it had nothing to save.
        """
        with locked(self.out):
            remove_leftovers(self.out)
            (self.out / "logs").mkdir(exist_ok=True)
            for item in self.items:
                if is_finished(item.planned, self.out):
                    item.state, item.progress = "finished", result(item.planned, self.out)
            with Interrupt(_STOPPING) as interrupt, self._ending_children():
                while any(item.state in ("waiting", "running") for item in self.items):
                    self._start()
                    show(self)
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
                    self._look()
                    if interrupt.received is not None:
                        raise Stopped(interrupt.received)
            show(self)

    def of_state(self, state: State) -> list[QueuedRun]:
        """The runs of a state, in the order of the grid."""
        return [item for item in self.items if item.state == state]

    def seconds_left(self) -> float | None:
        """Estimated seconds until all runs are finished; None before the speed of any is known."""
        observed = [
            (item.planned, item.progress.tokens_per_second)
            for item in self.items
            if item.progress is not None and item.progress.tokens_per_second
        ]
        overheads = [item.overhead for item in self.items if item.overhead is not None]
        overhead = sum(overheads) / len(overheads) if overheads else 0.0  # start-up and final validation
        left = []
        for item in (*self.of_state("running"), *self.of_state("waiting")):
            seconds = _training_left(item, observed)
            if seconds is None:
                return None
            left.append(seconds + overhead)
        return max(sum(left) / len(self.slots), max(left, default=0.0))

    # -- processes ----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        for slot in self.slots:
            running, waiting = self.of_state("running"), self.of_state("waiting")
            if not waiting or (running and not self._data_is_ready()):
                return
            free = [item for item in waiting if not is_being_trained(item.planned, self.out)]
            if free and slot not in [item.slot for item in running]:
                self._launch(max(free, key=lambda item: work(item.planned)), slot)

    def _data_is_ready(self) -> bool:
        """Whether some run has tokenised its data. Until then it runs alone; the others will read its cache."""
        return any(RunFolder(self.out / planned.name).config_file.exists() for planned in self.runs)

    def _launch(self, item: QueuedRun, slot: Slot) -> None:
        if is_finished(item.planned, self.out):  # by a process that outlived the sweep that began it
            item.state, item.progress = "finished", result(item.planned, self.out)
            return
        forget_progress(item.planned, self.out)
        command = [*_TRAIN, *arguments_left(item.planned, self.out)]
        with log_file(item.planned, self.out).open("ab") as log:
            item.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(slot.environment),
                start_new_session=True,
            )
        item.state, item.slot, item.progress = "running", slot, None
        item.started = time.monotonic()
        item.attempts += 1

    def _look(self) -> None:
        for item in self.of_state("running"):
            assert item.process is not None
            if item.process.poll() is None:
                item.progress = read_progress(item.planned, self.out) or item.progress
            elif item.process.returncode == 0 and is_finished(item.planned, self.out):
                item.state, item.progress = "finished", result(item.planned, self.out)
                trained = RunRecord.load(self.out / item.planned.name).seconds
                item.overhead = max(0.0, time.monotonic() - item.started - trained)
            else:
                self._failed(item, item.process.returncode)

    def _failed(self, item: QueuedRun, code: int) -> None:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        item.problem = f"{how}: {last_words(log_file(item.planned, self.out))}"
        item.state = "waiting" if item.attempts <= self.retries else "failed"

    @contextmanager
    def _ending_children(self) -> Iterator[None]:
        """When the block is left, send SIGTERM to the runs, which save and end; a second signal kills them."""
        try:
            yield
        finally:
            processes = [item.process for item in self.of_state("running") if item.process is not None]
            try:
                for process in processes:
                    with suppress(ProcessLookupError):
                        process.send_signal(signal.SIGTERM)
                for process in processes:
                    process.wait()
            except KeyboardInterrupt:
                for process in processes:
                    process.kill()
                raise


def _training_left(item: QueuedRun, observed: Sequence[tuple[PlannedRun, float]]) -> float | None:
    """Seconds of training left for a run: its own estimate, or else one from speeds; None where no speed is known."""
    progress = item.progress
    if progress is not None and progress.seconds_left is not None:
        return progress.seconds_left
    own = progress.tokens_per_second if progress else None
    speed = own or estimated_speed(item.planned, observed)
    share = progress.share if progress else 0.0
    return None if not speed else (item.planned.config.token_budget() or 0) * (1 - share) / speed


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Make the folder of a sweep and lock it for this process, where the system has file locks (POSIX).

    Raises:
        ConfigError: another sweep has locked it, or it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".lock").touch()
    except OSError as problem:
        raise ConfigError(f"cannot make the folder {out}: {problem.strerror}; name another with --out") from None
    with file_lock(out / ".lock", ConfigError(f"another sweep is at work in {out}; wait for it or stop it")):
        yield
