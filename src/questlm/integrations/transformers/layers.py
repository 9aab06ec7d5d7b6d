"""The layers that take the place of those of a transformers model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from questlm.errors import ConfigError

__all__ = ["PackedSlot"]


class PackedSlot(nn.Module):
    """The place of one layer: empty while transformers loads the model, then a layer of packed weights.

    It has no parameters and no buffers of its own, so that transformers neither initialises nor moves anything in it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer: nn.Module | None = None
        self._like = torch.empty(0)

    def fill(self, layer: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        """Put in the layer, which runs on `device` and gives `dtype`."""
        self.layer, self._like = layer, torch.empty(0, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        """What the layer gives, in the dtype of the model."""
        if self.layer is None:
            raise RuntimeError("this layer is empty: the model has not been loaded to its end")
        y: Tensor = self.layer(input)
        return y.to(self._like.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedSlot:
        """Refuse what `.to(...)` and its relatives would do: the weights are laid out for one device and dtype."""
        wanted = fn(self._like)
        if self.layer is not None and (wanted.device, wanted.dtype) != (self._like.device, self._like.dtype):
            raise ConfigError(
                f"packed weights are laid out for {self._like.device} and {self._like.dtype}, and cannot become "
                f"{wanted.device} and {wanted.dtype}; load the model where it is to run: "
                f"from_pretrained(..., device_map={str(wanted.device)!r}, dtype={wanted.dtype})"
            )
        return self
