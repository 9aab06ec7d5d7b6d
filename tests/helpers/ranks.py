"""Several processes train one model, as `torchrun` would start them."""

from __future__ import annotations

import itertools
import os
import runpy
import socket
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from helpers.processes import redirect, server
from questlm import ops
from questlm.config import ParallelConfig, RunConfig
from questlm.parallel import engine
from questlm.training import RunFolder, resume, step, train, validation
from questlm.training import start as start_module

__all__ = ["Done", "Job", "environment_of_ranks", "finish", "run"]

_SECONDS = 120


@dataclass
class Job:
    """One call of `train`, of `resume` without settings but of `parallel`, or for 'traffic' of what counts bytes."""

    out: Path
    parallel: str
    config: RunConfig | None = None
    like_gpu: bool = False  # products in bf16 by autocast, and kernels compiled ahead
    sleeps: int | None = None  # rank of a process that hangs after two steps
    exchange: dict[str, Any] = field(default_factory=dict)  # settings of the section `parallel`


@dataclass
class Done:
    """What came of a job: the exit codes of its processes, and all that they printed."""

    codes: list[int]
    output: str
    errors: str


def run(processes: int, *jobs: Job) -> str:
    """Do the jobs one after another, in processes of their own; return what they printed.

    Raises:
        AssertionError: one of them failed or warned.
    """
    output = ""
    for job in jobs:
        done = finish(processes, job)
        assert done.codes == [0] * processes, done.errors
        assert "Warning" not in done.errors, done.errors
        output += done.output
    return output


def environment_of_ranks(processes: int) -> list[dict[str, str]]:
    """The variables that `torchrun` sets, for each of its processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def finish(processes: int, job: Job) -> Done:
    """Do a job in processes of their own, whatever comes of it; all are killed when one fails."""
    with tempfile.TemporaryDirectory() as folder:
        said = [(Path(folder, f"{rank}.out"), Path(folder, f"{rank}.err")) for rank in range(processes)]
        environments = environment_of_ranks(processes)
        ranks: list[Any] = [
            server().Process(target=_rank, args=({**os.environ, **environment}, job, *files), daemon=True)
            for environment, files in zip(environments, said, strict=True)
        ]
        for rank in ranks:
            rank.start()
        until = time.monotonic() + _SECONDS
        while any(rank.exitcode is None for rank in ranks):
            if any(rank.exitcode for rank in ranks) or time.monotonic() > until:
                for rank in ranks:  # they wait for the one that has failed
                    rank.kill()
            time.sleep(0.02)
        output, errors = ("".join(files[stream].read_text() for files in said) for stream in (0, 1))
        return Done([rank.exitcode for rank in ranks], output, errors)


def _rank(environment: dict[str, str], job: Job, out: Path, err: Path) -> None:
    redirect((1,), out)
    redirect((2,), err)
    os.environ.update(environment)
    code = 0
    try:
        _work(job)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # at once: gloo's threads can keep an interpreter from its ordinary end


def _work(job: Job) -> None:
    torch.set_num_threads(1)
    if job.parallel == "traffic":
        sys.argv = ["traffic"]
        runpy.run_module("questlm.parallel.traffic", run_name="__main__")
        return
    if job.like_gpu:
        _compute_like_a_gpu()
    if job.sleeps == int(os.environ["RANK"]):
        _hang_after(2)
    config = job.config or RunFolder(job.out).read_config()
    train_settings = config.train.model_copy(update={"parallel": job.parallel})
    config = config.model_copy(update={"train": train_settings, "parallel": ParallelConfig(**job.exchange)})
    if job.config:
        train(config, job.out)
    else:
        resume(job.out, config)


def _hang_after(steps: int) -> None:
    take, taken = step.TrainStep.__call__, itertools.count()

    def hanging(self: step.TrainStep, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if next(taken) == steps:
            time.sleep(600)
        return take(self, *arguments)

    step.TrainStep.__call__ = hanging  # type: ignore[method-assign, assignment]


def _compute_like_a_gpu() -> None:
    gather_as_codes = vars(engine)["gather_as_codes"]
    vars(engine)["gather_as_codes"] = lambda model, size, dtype, packed: gather_as_codes(
        model, size, torch.bfloat16, packed
    )
    for module in (start_module, step, validation):
        vars(module)["autocast"] = lambda device: torch.autocast("cpu", dtype=torch.bfloat16)
    vars(ops)["compile_ahead"] = lambda warm_up, device: warm_up()
