"""Processes that begin in milliseconds: forks of a server that has imported everything and done nothing.

A process of the command line takes seconds of CPU to import torch, and a test with kills or ranks starts many. What
such a test looks at is the same in a fork: signals, exit codes, what a kill leaves behind, who waits for whom.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from itertools import count
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

__all__ = ["Command", "kill_in", "redirect", "server"]

# One thread each, and no arenas of memory for threads: limits are then those of the readers.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "1"}
_PRELOADED = [
    *("helpers.fuzzing.formats", "questlm.cli.train", "questlm.training", "questlm.trained.pack", "questlm.parallel"),
    *("questlm.report", "matplotlib.pyplot", "matplotlib.backends.backend_svg"),
    *("torch._dynamo", "torch.distributed.fsdp"),  # which torch imports in the first training step
]


def server() -> Any:
    """What makes processes, as `multiprocessing.get_context` gives it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    kept = dict(os.environ)
    # Python 3.11 does not tell the server of `sys.path` in another way.
    path = [str(Path(__file__).parents[1]), *filter(None, [kept.get("PYTHONPATH")])]
    os.environ |= _ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(path)}
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ |= kept
    return context


def redirect(streams: tuple[int, ...], path: Path) -> None:
    """Let what this process writes to `streams` (1: stdout, 2: stderr) go into a new file."""
    output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for stream in streams:
        os.dup2(output, stream)
    os.close(output)


class Command:
    """A process of `quest WORDS...`, which has begun.

    Args:
        folder: for the files of what it prints.
        environment: variables beside those of this process.
        before: done in the process before the command; a function of a module of `helpers`.
    """

    def __init__(
        self,
        *words: str,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        before: Callable[[], object] | None = None,
    ) -> None:
        number = len(list(folder.glob("said-*.err")))
        self._said = {stream: folder / f"said-{number}.{stream}" for stream in ("out", "err")}
        self._said["err"].touch()
        arguments = (words, {**os.environ, **(environment or {})}, self._said, before)
        self._process = server().Process(target=_work, args=arguments, daemon=True)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """The exit code; less than zero: of the signal that ended it; None: it runs."""
        code = self._process.exitcode
        return None if code is None else int(code)

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.returncode is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End the process at once, and wait for its end."""
        self._process.kill()
        self._process.join()

    def errors(self, timeout: float) -> str:
        """What it printed on stderr, when it has ended.

        Raises:
            TimeoutError: it did not end in `timeout` seconds and was killed.
        """
        self._process.join(timeout)
        if self.returncode is None:
            self.kill()
            raise TimeoutError(self._said["err"].read_text())
        return self._said["err"].read_text()


def _work(
    words: tuple[str, ...], environment: dict[str, str], said: dict[str, Path], before: Callable[[], object] | None
) -> None:
    from questlm.cli.main import main

    redirect((1,), said["out"])
    redirect((2,), said["err"])
    os.fsync = lambda fd: None  # no power fails here
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["quest", *words]
    if before is not None:
        before()
    try:
        main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def kill_in(moment: str) -> None:
    """Let this process be killed while it makes the run folder, writes its fourth checkpoint or replaces its record.

    Args:
        moment: the file: 'config.yaml', 'model.safetensors' or 'record.json'.
    """
    from questlm.training import checkpoint

    def kill_when(place: Any, name: str, chosen: Callable[..., object]) -> None:
        original = getattr(place, name)

        def killing(*arguments: Any, **options: Any) -> Any:
            if chosen(*arguments):
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        setattr(place, name, killing)

    if moment == "config.yaml":
        kill_when(Path, "write_text", lambda path, *rest: path.name == moment)
    elif moment == "model.safetensors":
        number = count(1)
        kill_when(checkpoint, "save_file", lambda tensors, path: next(number) > 3)
    else:
        kill_when(Path, "replace", lambda path, target: target.name == moment and target.exists())
