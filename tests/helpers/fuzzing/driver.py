"""Send inputs through a format in a process of its own, which may crash, hang or fill up without harm.

The process works through a range of inputs and reports each one. It is a fork of a server that has imported everything
and done nothing, so a new one after a crash costs little. Input `index` of a format and seed is always the same.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from helpers.fuzzing import limits
from helpers.fuzzing.formats import FORMATS, Format, WrongError
from helpers.processes import redirect, server
from questlm.errors import QuestError

__all__ = ["Fault", "Tally", "build_samples", "fuzz", "replay"]

_GRACE = 60.0  # for a process to begin


@dataclass(frozen=True)
class Fault:
    """An input that was neither accepted with a right result nor refused with a sentence."""

    format: str
    seed: int
    index: int
    mutation: str
    kind: str
    detail: str

    @property
    def command(self) -> str:
        """Reads just this input again."""
        return f"python tests/fuzz/run.py --format {self.format} --seed {self.seed} --index {self.index}"

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}\n    {self.mutation}\n    {self.command}"


@dataclass
class Tally:
    """What came of the inputs of a format."""

    format: str
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    peak_mib: int = 0
    faults: list[Fault] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """For the table."""
        return {
            "format": self.format, "inputs": self.inputs, "accepted": self.accepted, "refused": self.refused,
            "faults": len(self.faults), "seconds": round(self.seconds, 1), "peak_mib": self.peak_mib,
        }  # fmt: skip


def build_samples(name: str, folder: Path) -> Path:
    """Write the samples of a format below `folder`; return where."""
    samples = folder / name
    samples.mkdir(parents=True)
    FORMATS[name]().build(samples)
    return samples


def fuzz(name: str, samples: Path, seed: int, inputs: range) -> Tally:
    """Read `inputs` of a format."""
    context = server()
    tally, begun = Tally(name), time.monotonic()
    next_input = inputs.start
    while next_input < inputs.stop:
        next_input = _one_process(context, tally, samples, seed, range(next_input, inputs.stop))
    tally.seconds = time.monotonic() - begun
    return tally


def _one_process(context: Any, tally: Tally, samples: Path, seed: int, inputs: range) -> int:
    """Let a process work through `inputs` until all are done or it ends; return the next input."""
    with tempfile.TemporaryDirectory() as scratch:
        receiver, sender = context.Pipe(duplex=False)
        arguments = (sender, tally.format, samples, Path(scratch), seed, inputs)
        worker = context.Process(target=_work, args=arguments, daemon=True)
        worker.start()
        sender.close()
        done = inputs.start
        patience = _GRACE
        try:
            while done < inputs.stop:
                if not receiver.poll(patience):
                    _count(tally, seed, done, ("fault", "hang", "it had to be killed", "?", 0))
                    return done + 1
                _count(tally, seed, done, receiver.recv())
                done += 1
                patience = 2 * FORMATS[tally.format].seconds
        except EOFError:
            worker.join()
            if worker.exitcode:
                _count(tally, seed, done, ("fault", "crash", f"exit code {worker.exitcode}", "?", 0))
                return done + 1
        finally:
            worker.kill()
            worker.join()
            receiver.close()
        return done


def _count(tally: Tally, seed: int, index: int, report: tuple[str, str, str, str, int]) -> None:
    outcome, kind, detail, mutation, peak = report
    tally.inputs += 1
    tally.peak_mib = max(tally.peak_mib, peak >> 20)
    if outcome == "accepted":
        tally.accepted += 1
    elif outcome == "refused":
        tally.refused += 1
    else:
        tally.faults.append(Fault(tally.format, seed, index, mutation, kind, detail))


# -- in the process ----------------------------------------------------------------------------------------------------


def _work(reports: Connection, name: str, samples: Path, scratch: Path, seed: int, inputs: range) -> None:
    redirect((1, 2), Path(os.devnull))
    os.fsync = lambda fd: None  # no power fails here, and a reader that writes would mostly wait for the disk
    form = _ready(name, samples, scratch)
    limits.memory_limit()
    limits.reset_peak()
    before = limits.peak_bytes()
    for index in inputs:
        outcome, kind, detail, mutation = _try(form, seed, index)
        peak = limits.peak_bytes()
        if fault := limits.too_much(before, peak):
            outcome, kind, detail = "fault", "memory", fault
        reports.send((outcome, kind, detail, mutation, peak))
        if kind in ("hang", "memory"):  # a fresh process for the next: this one may hold memory, or a lock
            return


def replay(name: str, samples: Path, seed: int, index: int) -> tuple[str, str, str, str]:
    """Outcome, kind, detail and mutation of one input, in this process and without limits of memory."""
    with tempfile.TemporaryDirectory() as scratch:
        return _try(_ready(name, samples, Path(scratch)), seed, index)


def _ready(name: str, samples: Path, scratch: Path) -> Format:
    warnings.simplefilter("ignore")
    warnings.filterwarnings("error", module=r"questlm(\.|$)")  # a user would see it, and no sentence
    form = FORMATS[name]()
    form.open(samples, scratch)
    limits.stop_when_late()
    return form


def _try(form: Format, seed: int, index: int) -> tuple[str, str, str, str]:
    mutation = "?"
    try:
        mutation = form.mutate(random.Random(f"{form.name} {seed} {index}"))
        with limits.limited(form.seconds):
            form.read()
    except QuestError as problem:
        if fault := limits.fault_of_message(str(problem)):
            return "fault", f"message {fault}", repr(str(problem)[:300]), mutation
        return "refused", "", "", mutation
    except WrongError as problem:
        return "fault", "wrong", str(problem), mutation
    except limits.TooSlow:
        return "fault", "hang", _where(), mutation
    except BaseException as problem:  # some libraries raise what is no Exception
        traceback.print_exc()  # for `replay`
        return "fault", f"{type(problem).__name__} in {_where()}", repr(str(problem)[:200]), mutation
    else:
        return "accepted", "", "", mutation
    finally:
        form.restore()


def _where() -> str:
    """The innermost lines of questlm in the traceback being handled."""
    frames = traceback.extract_tb(sys.exc_info()[2])
    ours = [frame for frame in frames if "questlm" in Path(frame.filename).parts]
    return " < ".join(f"{Path(f.filename).name}:{f.name}" for f in reversed(ours[-3:])) or "outside questlm"
