"""The models that a plan chooses from: Llamas whose width and depth grow together, as the presets' do."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from questlm.config import ModelConfig, load_config
from questlm.config.presets import PRESETS, preset

__all__ = ["shapes", "training_flops", "training_settings"]

_BLOCK = 128  # widths from here on are its multiples, so that every Hadamard block is whole
_NARROWEST, _WIDEST = 64, 8192  # the smallest presets have 64, in blocks of 64
_SHALLOWEST, _DEEPEST = 170, 85  # width over depth; the published models have 107 to 128
_MLP = (7 / 3, 8 / 3, 3)  # width inside the SwiGLU over that of the stream; 8 / 3 is usual


@cache
def shapes(vocab_size: int, tied_head: bool = False) -> tuple[ModelConfig, ...]:
    """Return every model shape that a plan considers, of 82 thousand to 84 billion non-embedding parameters."""
    return tuple(
        ModelConfig(
            layers=layers, hidden=hidden, heads=hidden // (64 if hidden < 640 else 128), mlp_hidden=mlp_hidden,
            vocab_size=vocab_size, tied_head=tied_head,
        )
        for hidden in (_NARROWEST, *range(_BLOCK, _WIDEST + 1, _BLOCK))
        for layers in range(max(2, math.ceil(hidden / _SHALLOWEST)), max(4, hidden // _DEEPEST) + 1)
        for mlp_hidden in sorted({_BLOCK * round(ratio * hidden / _BLOCK) for ratio in _MLP})
    )  # fmt: skip


def training_settings(parameters: int) -> dict[str, Any]:
    """Return the `train` settings for a model of `parameters` non-embedding parameters: those of the nearest preset.

    The learning rate is interpolated between presets on logarithmic scales; beyond the smallest and the largest it is
    theirs. Batches go with it, as rates hold for the batches that they were chosen with.
    """
    known = sorted(
        (load_config(name).model.block_parameters, preset(name)["train"])
        for name in PRESETS
        if "quant" not in preset(name)
    )
    sizes = np.log([size for size, _ in known])
    rate = math.exp(np.interp(math.log(parameters), sizes, np.log([train["lr"] for _, train in known])))
    _, nearest = known[int(np.abs(sizes - math.log(parameters)).argmin())]
    return {**nearest, "lr": float(f"{rate:.2g}")}


def training_flops(model: ModelConfig) -> int:
    """Return the operations a training token: 6 for each weight of blocks and head; attention is not counted."""
    return 6 * (model.block_parameters + (model.vocab_size or 0) * model.hidden)
