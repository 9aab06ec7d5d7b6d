"""What a plan has to keep to, and which models do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from questlm.config import DataConfig
from questlm.config.quant import Embeddings
from questlm.errors import ConfigError
from questlm.grid import Steps
from questlm.scaling.hardware import Gpu

__all__ = ["Candidates", "Limits"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Limits:
    """The limits that a plan keeps to; None is no limit. Exactly one of the four amounts of training is set.

    Attributes:
        memory: bytes of the packed model with all of its files.
        coded: whether these are of a single file, whose codes are entropy-coded, or of a folder.
        tokenizer: bytes of tokenizer.json; None: those of one that `quest train` makes.
        latency: seconds per generated token at batch 1, taken as the time to read all weights once.
        bandwidth: bytes per second at which they are read.
        tokens, tokens_per_parameter, flops, gpu_hours: the amount of training, in one of these units.
        gpu: the kind of GPU on which `gpu_hours` are counted.
        vocab_size, embeddings, steps, tied_head: settings that every considered model has.
        extrapolate: follow the law also to fewer tokens a parameter than were fitted, where there is a choice.
    """

    memory: float | None = None
    coded: bool = False
    tokenizer: int | None = None
    latency: float | None = None
    bandwidth: float | None = None
    tokens: float | None = None
    tokens_per_parameter: float | None = None
    flops: float | None = None
    gpu_hours: float | None = None
    gpu: Gpu | None = None
    vocab_size: int = DataConfig.model_fields["vocab_size"].default
    embeddings: Embeddings = "bf16"
    steps: Steps = "fp32"
    tied_head: bool = False
    extrapolate: bool = False

    def check(self) -> None:
        """Raise ConfigError for limits that contradict each other or leave the plan open."""
        amounts = {
            "--tokens": self.tokens,
            "--tokens-per-param": self.tokens_per_parameter,
            "--flops": self.flops,
            "--gpu-hours": self.gpu_hours,
        }
        given = [name for name, value in amounts.items() if value is not None]
        if len(given) != 1:
            raise ConfigError(
                f"say how much training there is, in one way: --tokens, --tokens-per-param, --flops or --gpu-hours "
                f"({' and '.join(given) or 'none'} given)"
            )
        if self.memory is None and self.latency is None and given[0] in ("--tokens", "--tokens-per-param"):
            raise ConfigError(f"with {given[0]} alone the largest model is the best; say --memory or --latency as well")
        if self.latency is not None and self.bandwidth is None:
            raise ConfigError(
                "--latency needs the memory bandwidth of the machine: --bandwidth 50GB/s, or --gpu with a known one"
            )
        if self.gpu_hours is not None and self.gpu is None:
            raise ConfigError("--gpu-hours needs to know of what: --gpu h100")
        if self.latency is None and (self.bandwidth is not None and self.gpu is None):
            raise ConfigError("--bandwidth is for --latency; leave it out, or say how long a token may take")
        if self.gpu is not None and self.gpu_hours is None and self.latency is None:
            raise ConfigError("--gpu is for --gpu-hours or --latency; leave it out, or say one of these")

    def training_tokens(self, candidates: Candidates, precision: str) -> Array:
        """Return how many tokens each of the candidates, in this precision, is trained on: (candidates,) float64."""
        if self.tokens is not None:
            return np.full(len(candidates.parameters), float(self.tokens))
        if self.tokens_per_parameter is not None:
            return self.tokens_per_parameter * candidates.parameters
        if self.flops is not None:
            return self.flops / candidates.flops
        assert self.gpu_hours is not None and self.gpu is not None
        return self.gpu_hours * 3600 * self.gpu.tokens_per_second(candidates.flops, precision)

    def admitted(self, candidates: Candidates) -> NDArray[np.bool_]:
        """Return which candidates keep to memory and latency when they are packed: (candidates,) bool."""
        admitted = np.ones(len(candidates.bytes), dtype=bool)
        if self.memory is not None:
            admitted &= candidates.bytes <= self.memory
        if self.latency is not None:
            assert self.bandwidth is not None
            admitted &= candidates.read <= self.latency * self.bandwidth
        return admitted


class Candidates(NamedTuple):
    """Every shape in one precision, as arrays (shapes,).

    Attributes:
        parameters: N, non-embedding.
        bytes: of the packed model.
        read: bytes that each generated token reads: all but the table of embeddings, of which it reads one row.
        flops: operations a training token.
    """

    parameters: Array
    bytes: Array
    read: Array
    flops: Array
