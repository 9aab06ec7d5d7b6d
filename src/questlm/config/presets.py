"""Model sizes: the six of the QuEST paper (arXiv 2502.05003) and `nano` for a laptop.

Shapes and learning rates of `30m` to `800m` are the published ones; the names count non-embedding parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from questlm.errors import ConfigError, nearest_name

__all__ = ["PRESETS", "preset"]


def _published(layers: int, hidden: int, heads: int, lr: float) -> dict[str, Any]:
    return {"model": {"layers": layers, "hidden": hidden, "heads": heads}, "train": {"lr": lr}}


def _nano() -> dict[str, Any]:
    """A few million parameters: minutes on two CPU cores."""
    return {
        "model": {"layers": 4, "hidden": 256, "heads": 2},
        "data": {"vocab_size": 2048},
        "train": {"lr": 3e-3, "seq_len": 256, "batch_size": 4, "eval_tokens": 32_768},
    }


PRESETS: dict[str, Callable[[], dict[str, Any]]] = {
    "nano": _nano,
    "30m": lambda: _published(layers=6, hidden=640, heads=5, lr=1.2e-3),
    "50m": lambda: _published(layers=7, hidden=768, heads=6, lr=1.2e-3),
    "100m": lambda: _published(layers=8, hidden=1024, heads=8, lr=6e-4),
    "200m": lambda: _published(layers=10, hidden=1280, heads=10, lr=3e-4),
    "430m": lambda: _published(layers=13, hidden=1664, heads=13, lr=1.5e-4),
    "800m": lambda: _published(layers=16, hidden=2048, heads=16, lr=7.5e-5),
}


def preset(name: str) -> dict[str, Any]:
    """Settings of the preset `name`, as a nested dictionary to build a RunConfig from.

    Raises:
        ConfigError: no such preset; the message gives the nearest name and all of them.
    """
    if name.lower() not in PRESETS:
        raise ConfigError(f"no preset {name!r}.{nearest_name(name, PRESETS)} There are: {', '.join(PRESETS)}.")
    return PRESETS[name.lower()]()
