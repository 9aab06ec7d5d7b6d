"""Keys and values of past tokens, kept so that each new token costs one step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from questlm.config import ModelConfig
from questlm.errors import ConfigError
from questlm.readable import bytes_text

__all__ = ["KVCache"]


class KVCache:
    """Room for `capacity` tokens of `batch` sequences: keys and values (batch, kv_heads, capacity, width) a layer.

    Raises:
        ConfigError: here or from `reserve`, where the device has no memory for so many tokens.
    """

    def __init__(
        self, config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        shape = (config.layers, 2, batch, config.key_value_heads, capacity, config.head_width)
        self._entries = _zeros(shape, dtype, torch.device(device))
        self.length = 0

    @property
    def capacity(self) -> int:
        """Most tokens the cache can hold."""
        return self._entries.shape[-2]

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` tokens in all, at least doubling what there was, so that growing stays cheap."""
        if capacity > self.capacity:
            *outer, before, width = self._entries.shape
            shape = (*outer, max(capacity, 2 * before), width)
            grown = _zeros(shape, self._entries.dtype, self._entries.device)
            grown[..., : self.length, :] = self._entries[..., : self.length, :]
            self._entries = grown

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append (batch, kv_heads, new, width) to one layer; return its keys and values so far, new ones included.

        `advance` moves on once every layer has been extended.
        """
        if keys.shape[0] != self._entries.shape[2]:
            raise ValueError(f"the cache is for {self._entries.shape[2]} sequences, but {keys.shape[0]} were given")
        end = self.length + keys.shape[-2]
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens, but {end} are needed")
        entries = self._entries[layer]
        entries[0, :, :, self.length : end] = keys
        entries[1, :, :, self.length : end] = values
        return entries[0, :, :, :end], entries[1, :, :, :end]

    def advance(self, tokens: int) -> None:
        """Count `tokens` more as seen."""
        self.length += tokens


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    try:
        return torch.zeros(shape, dtype=dtype, device=device)
    except RuntimeError:  # also what torch raises where a GPU has no memory left
        needed = bytes_text(math.prod(shape) * dtype.itemsize)
        raise ConfigError(
            f"keys and values of {shape[-2]:,} tokens need {needed}, which {device} does not have; "
            "give a shorter prompt or ask for fewer tokens"
        ) from None
