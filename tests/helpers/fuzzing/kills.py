"""Kill a command like `kill -9` does, at its n-th change to the file system or shortly after, and let it run again.

Python tells an audit hook of every file that is opened for writing, renamed or removed, so the moments are counted and
can be chosen by number: the same seed kills at the same places. A short delay after one of them reaches what happens
between two, such as a file that is half written.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from helpers.fuzzing.jobs import Job
from helpers.processes import redirect, server

__all__ = ["Kill", "trial", "uninterrupted"]

_CHANGES = frozenset({"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "shutil.rmtree"})
_WRITING = os.O_WRONLY | os.O_RDWR


@dataclass(frozen=True)
class Kill:
    """When to kill: `delay` seconds after a command has begun its change number `change` to files.

    `all` says whether the processes that it has started are killed too, as when the machine stops.
    """

    change: int
    delay: float
    all: bool


def uninterrupted(job: Job, inputs: Path, folder: Path) -> tuple[Any, int]:
    """Outcome of a job that is left alone, and how many changes to files it makes."""
    shutil.copytree(inputs, folder)
    code, changes, said = _run(job, folder, None)
    if code != 0:
        raise RuntimeError(f"{job.name} fails without any kill: {said}")
    return job.outcome(folder), changes


def kill_and_go_on(job: Job, inputs: Path, folder: Path, changes: int, draw: random.Random, kills: list[Kill]) -> Any:
    """Kill a job one to three times, noting in `kills` when, then let it end; return its outcome."""
    shutil.copytree(inputs, folder)
    for _ in range(draw.choice((1, 1, 2, 3))):
        delay = draw.choice((0.0, draw.uniform(0, job.longest_delay)))
        kills.append(Kill(draw.randrange(changes), delay, draw.random() < 0.5))
        code, _, said = _run(job, folder, kills[-1])
        if code == 0:  # what was left to do had no such moment
            break
        if code != -signal.SIGKILL:
            raise RuntimeError(f"exit code {code}, {said}")
    code, _, said = _run(job, folder, None)
    if code != 0:
        raise RuntimeError(f"it does not go on: exit code {code}, {said}")
    return job.outcome(folder)


def trial(job: Job, base: Path, wanted: Any, changes: int, seed: int, index: int) -> str | None:
    """Kill and go on in a new folder of `base`, beside its `inputs`; say what is wrong afterwards, or None."""
    folder = base / f"trial-{index}"
    again = f"python tests/fuzz/kill.py --job {job.name} --seed {seed} --index {index}"
    kills: list[Kill] = []
    try:
        outcome = kill_and_go_on(
            job, base / "inputs", folder, changes, random.Random(f"{job.name} {seed} {index}"), kills
        )
        left = sorted(str(path.relative_to(folder)) for path in folder.rglob(".tmp-*"))
    except Exception as problem:
        return f"{job.name}: {problem} after {kills}; {again}"
    shutil.rmtree(folder)
    if left:
        return f"{job.name}: {left} is left after {kills}; {again}"
    return None if outcome == wanted else f"{job.name}: another outcome after {kills}; {again}"


def _run(job: Job, folder: Path, kill: Kill | None) -> tuple[int, int, str]:
    """Run a job to its end or its kill, in a process: exit code (-9), changes, and what it said last."""
    context = server()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, job, folder, kill))
    process.start()
    sender.close()
    changes = 0
    with suppress(EOFError):
        changes = receiver.recv()
    process.join()
    if kill is not None and kill.all:
        for child in _children(folder):
            child.kill()
            child.wait()
    said = (folder / "said.txt").read_text(errors="replace").strip().splitlines()
    return int(process.exitcode or 0), changes, said[-1] if said else ""


def _children(folder: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if str(folder) in " ".join(process.cmdline()[3:]) and "questlm" in process.cmdline():
                yield process


def _work(sender: Connection, job: Job, folder: Path, kill: Kill | None) -> None:
    redirect((1, 2), folder / "said.txt")
    os.chdir(folder)
    os.environ["QUESTLM_CACHE"] = str(folder / "cache")
    seen = _watch(folder, kill)
    try:
        code = job.run(folder)
    except SystemExit as stop:
        code = int(stop.code or 0)
    sender.send(seen[0])
    sys.stdout.flush()
    sys.exit(code)


def _watch(folder: Path, kill: Kill | None) -> list[int]:
    """Count changes below `folder` from now on, and kill this process at the one that is wanted."""
    seen = [0]
    inside = f"{folder}{os.sep}"

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, str) or not isinstance(flags, int) or not flags & _WRITING:
                return
        elif event in _CHANGES:
            path = arguments[0]
        else:
            return
        if not str(Path.cwd() / str(path)).startswith(inside):
            return
        if kill is not None and seen[0] == kill.change:
            _die(kill.delay)
        seen[0] += 1

    sys.addaudithook(hook)
    return seen


def _die(delay: float) -> None:
    def now() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if delay == 0:
        now()
    timer = threading.Timer(delay, now)
    timer.daemon = True
    timer.start()
