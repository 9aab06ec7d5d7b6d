"""The models that a plan chooses from: Llamas whose width and depth grow together, as the presets' do."""

from __future__ import annotations

import math
from functools import cache

from questlm.config import ModelConfig
from questlm.config.presets import PRESETS, preset

__all__ = ["learning_rate", "shapes", "training_flops"]

_BLOCK = 128  # widths are its multiples, so that every Hadamard block is whole
_WIDEST = 8192
_SHALLOWEST, _DEEPEST = 170, 85  # width over depth; the published models have 107 to 128
_MLP = (7 / 3, 8 / 3, 3)  # width inside the SwiGLU over that of the stream; 8 / 3 is usual


@cache
def shapes(vocab_size: int, tied_head: bool = False) -> tuple[ModelConfig, ...]:
    """Every shape considered: half a million to 80 billion non-embedding parameters, a few per cent apart."""
    return tuple(
        ModelConfig(
            layers=layers, hidden=hidden, heads=hidden // (64 if hidden < 640 else 128), mlp_hidden=mlp_hidden,
            vocab_size=vocab_size, tied_head=tied_head,
        )
        for hidden in range(_BLOCK, _WIDEST + 1, _BLOCK)
        for layers in range(max(2, math.ceil(hidden / _SHALLOWEST)), max(4, hidden // _DEEPEST) + 1)
        for mlp_hidden in sorted({_BLOCK * round(ratio * hidden / _BLOCK) for ratio in _MLP})
    )  # fmt: skip


def learning_rate(parameters: int) -> float:
    """Peak rate for a model of so many non-embedding parameters.

    Between presets it is interpolated on logarithmic scales; beyond the smallest and the largest it is theirs.
    """
    import numpy as np

    from questlm.config import load_config

    known = sorted((load_config(name).model.block_parameters, preset(name)["train"]["lr"]) for name in PRESETS)
    sizes, rates = zip(*known, strict=True)
    rate = math.exp(np.interp(math.log(parameters), np.log(sizes), np.log(rates)))
    return float(f"{rate:.2g}")


def training_flops(model: ModelConfig) -> int:
    """Floating-point operations a training token: 6 for each weight of blocks and head; attention is not counted."""
    return 6 * (model.block_parameters + (model.vocab_size or 0) * model.hidden)
