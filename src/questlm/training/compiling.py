"""Compiling kernels before the first step, running uncompiled, and silencing the compiler's warnings."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from questlm import ops
from questlm.parallel import Engine
from questlm.quant import cached_weights
from questlm.training.step import TrainStep

__all__ = ["compile_kernels", "uncompiled", "without_compiler_warnings"]

_SHORT = 64  # tokens of a warm-up


@contextmanager
def without_compiler_warnings() -> Iterator[None]:
    """Silence two warnings of torch.compile inside the block.

    It advises TF32, which would round the Hadamard transform to ten bits, and reads the gradient of a block's input,
    which is no leaf.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        yield


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run blocks uncompiled: compiling them for a validation takes longer than most validations."""
    with torch.compiler.set_stance("force_eager"):
        yield


def compile_kernels(
    model: nn.Module, step: TrainStep, engine: Engine, batch: tuple[Tensor, Tensor], device: torch.device
) -> None:
    """Compile the kernels of a step and of both validations, on a short batch: kernels do not depend on its length."""
    short = (batch[0][:1, :_SHORT], batch[1][:1, :_SHORT])

    def warm_up() -> None:
        if engine != "fsdp":  # of a sharded model the last validation makes a full one
            with torch.no_grad(), cached_weights(model):
                model(short[0])
        with step.weight_cache():
            with torch.no_grad():
                step.forward(*short)
            step.forward(*short).objective.backward()

    with uncompiled():
        ops.compile_ahead(warm_up, device)
    model.zero_grad(set_to_none=True)
