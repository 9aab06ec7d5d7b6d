"""The processes that train one model together: their ranks, and how they agree.

`torchrun` starts them and sets WORLD_SIZE, RANK and LOCAL_RANK. What only one process may do (make the run folder,
write a file) goes through `Processes.on_main`; what all must decide alike (stop now?) goes through `Processes.largest`.
A process that decided for itself would leave the others waiting in a collective.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from questlm import errors
from questlm.errors import ConfigError, QuestError, TrainingError

__all__ = ["LostPeerError", "Processes", "connect", "reporting_lost_peers"]

T = TypeVar("T")

_PATIENCE = timedelta(days=7)
"""Timeout while one process works alone, such as for hours of tokenising. That it has died is noticed earlier."""


class LostPeerError(TrainingError):
    """Another of the processes ended or stopped answering."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as one of them sees them; by default it is the only one, and nothing is communicated.

    Attributes:
        rank: number of this process, 0 for the main process, which writes files and prints.
        world_size: how many there are.
        local_rank: its number on its machine, which is the number of its GPU.
        waiting: a gloo group with a long timeout, for work that may take hours.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    waiting: dist.ProcessGroup | None = None

    @classmethod
    def from_environment(cls) -> Processes:
        """The processes that torchrun has started; a single one where it has started none.

        Raises:
            ConfigError: some of its environment variables are missing or are no whole numbers.
        """
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", dist.get_rank())))
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        given = {name: os.environ[name] for name in names if name in os.environ}
        if given.get("WORLD_SIZE", "1") == "1":
            return cls()
        try:
            rank, size, local_rank = (int(given[name]) for name in names)
        except (KeyError, ValueError):
            raise ConfigError(
                f"the environment has {given}, but a run of several processes needs whole numbers in "
                f"{', '.join(names)}; start it with torchrun"
            ) from None
        return cls(rank, size, local_rank)

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, which writes files and prints."""
        return self.rank == 0

    def on_main(self, work: Callable[[], T]) -> T:
        """Do `work()` on the main process alone; its result, which must be JSON, is returned on all processes.

        Raises:
            QuestError: what `work()` raised, on all processes.
        """
        if self.world_size == 1:
            return work()
        self.largest(0.0)  # all have come; without it the others would wait for days for a main process that hangs
        problem: BaseException | None = None
        answer: dict[str, Any] = {}
        if self.is_main:
            try:
                answer = {"result": work()}
            except BaseException as caught:
                problem, answer = caught, {"error": [type(caught).__name__, str(caught)]}
        answer = json.loads(self._text(json.dumps(answer), source=0))
        if problem is not None:
            raise problem
        if "error" in answer:
            raise _same_error(*answer["error"])
        result: T = answer["result"]
        return result

    def together(self, work: Callable[[], T]) -> T:
        """Do `work()` on all processes, and return its own result on each.

        Raises:
            QuestError: what `work()` raised on any process, on all processes.
        """
        if self.world_size == 1:
            return work()
        problem: QuestError | None = None
        try:
            result = work()
        except QuestError as caught:
            problem = caught
        failed = self._agree(torch.tensor([0 if problem is None else self.rank + 1]), self.waiting)
        if not failed[0]:
            return result
        text = self._text(json.dumps([type(problem).__name__, str(problem)]), source=int(failed[0]) - 1)
        raise problem or _same_error(*json.loads(text))

    def main_first(self, work: Callable[[], T]) -> T:
        """Do `work()` on the first process of each machine and then on the others, which find files and caches made."""
        early = self.together(lambda: work() if self.local_rank == 0 else None)
        late = self.together(lambda: work() if self.local_rank != 0 else None)
        return cast(T, early if self.local_rank == 0 else late)

    def largest(self, *values: float) -> list[float]:
        """The largest of each value over all processes. It is exchanged between CPUs, so no GPU is waited for."""
        if self.world_size == 1:
            return list(values)
        return self._agree(torch.tensor(values, dtype=torch.float64), None)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over all processes of `values`, on the device they are on."""
        return self.sum(values / self.world_size) if self.world_size > 1 else values

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all processes of `values`, on the device they are on."""
        if self.world_size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def _agree(self, values: Tensor, group: dist.ProcessGroup | None) -> list[float]:
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=group)
        return [float(value) for value in values]

    def _text(self, text: str, source: int) -> str:
        """The `text` of the process `source`. Sent as bytes, because torch's object collectives unpickle."""
        content = torch.tensor(list(text.encode()), dtype=torch.uint8)
        length = torch.tensor([len(content)])
        dist.broadcast(length, src=source, group=self.waiting)
        if self.rank != source:
            content = torch.zeros(int(length), dtype=torch.uint8)
        dist.broadcast(content, src=source, group=self.waiting)
        return bytes(content.tolist()).decode()


@contextmanager
def connect(processes: Processes, device: torch.device, timeout: float) -> Iterator[Processes]:
    """Connect to the other processes; yields `processes` with the group that they wait in.

    CPU tensors go through gloo and CUDA tensors through NCCL. A group that exists already is used and left alone.

    Args:
        timeout: seconds that a process waits for another in a step before the job ends.

    Raises:
        LostPeerError: they cannot be reached.
    """
    if processes.world_size == 1:
        yield processes
        return
    with _joined(device, timeout):
        group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        yield Processes(processes.rank, processes.world_size, processes.local_rank, group)


@contextmanager
def _joined(device: torch.device, timeout: float) -> Iterator[None]:
    if dist.is_initialized():
        yield
        return
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            timeout=timedelta(seconds=timeout),
            device_id=device if cuda else None,
        )
    except (RuntimeError, ValueError) as problem:
        reason = str(problem).splitlines()[0]
        raise LostPeerError(f"the processes of this run cannot meet ({reason}); start them with torchrun") from None
    yield
    # Not when something was raised: the others may wait in a collective that will never be, and so would this.
    dist.barrier()  # gloo crashes where one process takes the group down while another still uses it
    dist.destroy_process_group()


@contextmanager
def reporting_lost_peers(processes: Processes, hint: str) -> Iterator[None]:
    """Raise LostPeerError, with a message that ends in `hint`, where a collective fails because a process has ended.

    Raises:
        LostPeerError: a peer ended, or did not answer in time.
    """
    try:
        yield
    except RuntimeError as problem:
        if processes.world_size == 1 or not _is_about_peers(problem):
            raise
        raise LostPeerError(
            f"another of the {processes.world_size} processes ended or stopped answering, so this one ends too; {hint}"
        ) from None


def _is_about_peers(problem: RuntimeError) -> bool:
    text = str(problem)
    return isinstance(problem, dist.DistError) or any(word in text for word in ("gloo", "NCCL", "onnection"))


def _same_error(name: str, message: str) -> Exception:
    """The error that another process raised, of the same class where that is one of questlm."""
    if name == "KeyboardInterrupt":
        return TrainingError("the first process was interrupted")
    kind: Any = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, QuestError) and kind is not errors.MissingDependencyError:
        return kind(message)
    return QuestError(message)
