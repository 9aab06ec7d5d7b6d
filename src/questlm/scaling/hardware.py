"""How fast a GPU trains, from what was measured on it: `gpus.json`, gathered by `benchmarks/gather_speeds.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from questlm.errors import ConfigError, DataError, nearest_name, quoted
from questlm.json_files import read_json
from questlm.scaling.runs import BASELINE

__all__ = ["Gpu", "find_gpu"]

Array = NDArray[np.float64]
_FILE = Path(__file__).with_name("gpus.json")


@dataclass(frozen=True)
class Gpu:
    """The measured speeds of one kind of GPU.

    Attributes:
        bytes_per_second: of a copy, read and written.
        speeds: by precision ("bf16", "w4a4", ...), operations a token and tokens a second, sorted.
    """

    name: str
    bytes_per_second: float
    speeds: dict[str, list[tuple[float, float]]]

    def tokens_per_second(self, flops_per_token: Array, precision: str) -> Array:
        """Return the training speed of one GPU in tokens a second.

        It is interpolated between the measured models; beyond them, the FLOP/s of the nearest one are assumed.

        A precision that was measured on fewer models than bf16 is taken to keep its distance from bf16; one that was
        measured on none is taken to be as fast.
        """
        dense = self.speeds[BASELINE]
        rate = _interpolated([(flops, flops * speed) for flops, speed in dense], flops_per_token)
        ratios = [(flops, speed / dict(dense)[flops]) for flops, speed in self.speeds.get(precision, dense)]
        return rate * _interpolated(ratios, flops_per_token) / flops_per_token

    def unmeasured(self, flops_per_token: float, precision: str) -> str | None:
        """Say in words which part of such a training was not measured; None if all of it was."""
        if precision not in self.speeds:
            return f"training in {precision} was not measured on a {self.name}; its speed is taken to be that of bf16"
        sizes = [flops for flops, _ in self.speeds[precision]]
        if not min(sizes) <= flops_per_token <= max(sizes):
            return f"no model of this size was timed in {precision} on a {self.name}; its speed is carried over"
        return None


def _interpolated(points: Sequence[tuple[float, float]], at: Array) -> Array:
    """On logarithmic scales; beyond the ends, their values."""
    x, y = (np.log([point[i] for point in points]) for i in range(2))
    return np.exp(np.interp(np.log(at), x, y))


def find_gpu(name: str) -> Gpu:
    """Return the GPU of this short name, such as "h100".

    Raises:
        ConfigError: nothing was measured on it; the message gives the nearest name and all of them.
    """
    gpus = _gpus()
    if name.lower() not in gpus:
        known = ", ".join(sorted(gpus))
        raise ConfigError(
            f"nothing was measured on a GPU {quoted(name)}.{nearest_name(name, gpus)} "
            f"There are measurements of: {known}; say --tokens, or make some with benchmarks/bench_train_step.py"
        )
    return gpus[name.lower()]


@cache
def _gpus() -> dict[str, Gpu]:
    return {name: _gpu(content) for name, content in read_json(_FILE, DataError).items()}


def _gpu(content: dict[str, Any]) -> Gpu:
    speeds: dict[str, list[tuple[float, float]]] = {}
    for point in content["speeds"]:
        speeds.setdefault(point["precision"], []).append((point["flops_per_token"], point["tokens_per_second"]))
    ordered = {precision: sorted(points) for precision, points in speeds.items()}
    return Gpu(content["name"], content["bytes_per_second"], ordered)
