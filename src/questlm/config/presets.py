"""Model sizes: the six of the QuEST paper (arXiv 2502.05003), small ones to fit a law with, and `nano` for a laptop.

Shapes and learning rates of `30m` to `800m` are the published ones; the names count non-embedding parameters. `3b`
continues them: as many layers as heads of width 128, and a rate that falls with the parameters. It was never trained.

The small ones, `125k` to `15m`, are one family: a width is kept while its depth doubles, then the width grows. Widths
from 128 on are multiples of 128, the size of the Hadamard blocks (64 takes blocks of 64), and heads are 64 wide. Their
learning rate falls with the width from the published 1.2e-3 at width 640, lr = 0.768 / hidden, but is nowhere
above 3e-3. Batch and vocabulary are the same for all, so that runs differ in size, bits and tokens alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from questlm.errors import ConfigError, nearest_name, quoted

__all__ = ["PRESETS", "preset"]


def _published(layers: int, hidden: int, heads: int, lr: float) -> dict[str, Any]:
    return {
        "model": {"layers": layers, "hidden": hidden, "heads": heads},
        "train": {"lr": lr, "seq_len": 512, "batch_size": 512},
    }


def _small(layers: int, hidden: int, heads: int | None = None) -> dict[str, Any]:
    """Minutes on two CPU cores. How they train was chosen by `studies/demo-recipe`, for `nano`, `1m` and `8m`."""
    recipe = {"optimizer": "muon", "batch_size": 8, "schedule": "linear", "final_lr": 0.0}
    return {
        "model": {"layers": layers, "hidden": hidden, "heads": heads or hidden // 64},
        "data": {"vocab_size": 2048},
        "train": {**recipe, "lr": min(3e-3, 0.768 / hidden), "seq_len": 256, "eval_tokens": 32_768},
    }


def _golf() -> dict[str, Any]:
    """A single file that `quest plan --coded` puts below 16,000,000 bytes, with room for code.

    How it trains is that of the small presets with the rate of width 640. Neither shape nor training was searched for.
    """
    return {
        "model": {"layers": 6, "hidden": 640, "heads": 5, "tied_head": True},
        "quant": {"weight_bits": 4, "act_bits": 16, "embeddings": "int6", "steps": "fp16"},
        "data": {"vocab_size": 4096},
        "train": {
            "optimizer": "muon", "lr": 1.2e-3, "seq_len": 512, "batch_size": 32, "schedule": "linear", "final_lr": 0.0,
        },
    }  # fmt: skip


PRESETS: dict[str, Callable[[], dict[str, Any]]] = {
    "nano": lambda: _small(layers=4, hidden=256, heads=2),
    "125k": lambda: _small(layers=2, hidden=64),
    "250k": lambda: _small(layers=4, hidden=64),
    "500k": lambda: _small(layers=2, hidden=128),
    "1m": lambda: _small(layers=4, hidden=128),
    "2m": lambda: _small(layers=8, hidden=128),
    "4m": lambda: _small(layers=5, hidden=256),
    "8m": lambda: _small(layers=9, hidden=256),
    "15m": lambda: _small(layers=8, hidden=384),
    "30m": lambda: _published(layers=6, hidden=640, heads=5, lr=1.2e-3),
    "golf-16mb": _golf,
    "50m": lambda: _published(layers=7, hidden=768, heads=6, lr=1.2e-3),
    "100m": lambda: _published(layers=8, hidden=1024, heads=8, lr=6e-4),
    "200m": lambda: _published(layers=10, hidden=1280, heads=10, lr=3e-4),
    "430m": lambda: _published(layers=13, hidden=1664, heads=13, lr=1.5e-4),
    "800m": lambda: _published(layers=16, hidden=2048, heads=16, lr=7.5e-5),
    "3b": lambda: _published(layers=25, hidden=3200, heads=25, lr=2e-5),
}


def preset(name: str) -> dict[str, Any]:
    """Settings of the preset `name`, as a nested dictionary to build a RunConfig from.

    Raises:
        ConfigError: no such preset; the message gives the nearest name and all of them.
    """
    if name.lower() not in PRESETS:
        raise ConfigError(f"no preset {quoted(name)}.{nearest_name(name, PRESETS)} There are: {', '.join(PRESETS)}.")
    return PRESETS[name.lower()]()
