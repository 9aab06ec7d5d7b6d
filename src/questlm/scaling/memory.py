"""Memory that a model takes, estimated from its shape before it is built. No torch.

Training takes, in bytes on each device,

    a * parameters + tokens of a pass * (layers * k * n + max(w * n, h * vocabulary))

where n = 3 hidden + 2 attention + 2 keys + 3 mlp counts the numbers that a layer keeps for the backward pass, for each
token; a is for weights, gradients and the two moments of AdamW, 4 bytes each, and what a step copies of them; k and w
are bytes for each of these n, kept by every layer and used by the one that is being differentiated; h is for the
logits. On a CPU (float32, nothing compiled) the constants were measured as the peak resident memory of models of 0.5 to
14 million parameters, above what the imported libraries take; on a GPU (bf16, compiled blocks) they were fitted to the
records of 30m, 100m and 800m in benchmarks/results. Tests hold both to their measurements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from questlm.config import ModelConfig, QuantSpec, TrainConfig
from questlm.quant.methods import find_method

__all__ = ["TrainingMemory", "loading_memory", "packing_memory", "training_memory"]


class _Constants(NamedTuple):
    parameter: float
    kept: float
    working: float
    logit: float


_CPU = _Constants(parameter=20.0, kept=6.8, working=10.0, logit=12.8)
_GPU = _Constants(parameter=16.0, kept=1.6, working=0.0, logit=3.0)
_UNCOMPILED = 1.6  # times what compiled blocks keep on a GPU
_LEARNED = 1.5  # times what others keep: quantisers that learn keep what they rounded
_RECOMPUTED = {"none": 1.0, "mlp": 0.85, "block": 0.7}  # share of what is kept
_GRADIENT_BUCKETS = 4.0  # bytes a parameter, of DDP
_EVALUATED_TOKENS = 4096
_EVALUATED_LOGIT = 8.5  # bytes, of each logit: it and its logarithm, without gradients


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that training takes on each device: for weights, gradients and optimizer, and for each sequence."""

    model: float
    sequence: float

    def total(self, sequences: int) -> float:
        """Return the bytes with `sequences` sequences in a pass."""
        return self.model + sequences * self.sequence

    def most_sequences(self, memory: float) -> int:
        """Return how many sequences of a pass fit into `memory` bytes; 0 where not even one does."""
        return max(0, int((memory - self.model) / self.sequence))


def training_memory(
    model: ModelConfig, quant: QuantSpec, train: TrainConfig, gpu: bool, compiled: bool, processes: int = 1
) -> TrainingMemory:
    """Estimate the memory that training takes on each device.

    Args:
        model: with `vocab_size` set.
        gpu, compiled: where it is trained, and whether blocks are compiled.
        processes: those that train together; `train.parallel` says how they share the model.
    """
    constants = _GPU if gpu else _CPU
    per_parameter = constants.parameter
    if processes > 1:
        per_parameter = per_parameter / processes if train.parallel == "fsdp" else per_parameter
        per_parameter += _GRADIENT_BUCKETS if train.parallel in ("auto", "ddp") else 0.0
    more = (_UNCOMPILED if gpu and not compiled else 1.0) * (_LEARNED if find_method(quant.method).learns else 1.0)
    numbers = _kept_numbers(model)
    kept = more * _RECOMPUTED[train.recompute] * constants.kept * model.layers * numbers
    working = max(more * constants.working * numbers, constants.logit * (model.vocab_size or 0))
    return TrainingMemory(per_parameter * model.parameters, train.seq_len * (kept + working))


def loading_memory(model: ModelConfig) -> float:
    """Estimate the bytes that a trained model takes on the CPU, in float32 and evaluated on 4,096 tokens at a time."""
    return 4.0 * model.parameters + _EVALUATED_TOKENS * max(
        _EVALUATED_LOGIT * (model.vocab_size or 0), _CPU.working * _kept_numbers(model)
    )


def packing_memory(model: ModelConfig) -> float:
    """Estimate the bytes that packing takes: the model, packed tensors of at most 2 bytes a weight, and their file."""
    return (4.0 + 2.0 + 2.0) * model.parameters


def _kept_numbers(model: ModelConfig) -> int:
    attention, keys = model.heads * model.head_width, model.key_value_heads * model.head_width
    return 3 * model.hidden + 2 * attention + 2 * keys + 3 * model.mlp_width
