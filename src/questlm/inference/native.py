"""The forward pass of a packed model as one native call a step, where all its layers can be in one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from questlm import ops
from questlm.artifact.format import block_shapes, norm_widths
from questlm.models import KVCache, Llama
from questlm.models.llama import rotary_angles
from questlm.ops.cpu.llama import NativeLinear, NativeLlama, cache_of

__all__ = ["NativeForward", "native_forward"]

_FIRST_POSITIONS = 1024


class NativeForward:
    """A packed model that computes a step (`next_logits`) in one native call.

    Args:
        model: whose embedding, norms and layers it uses; they stay where they are.
        linears: its layers, by module name.
    """

    def __init__(self, model: Llama, linears: dict[str, NativeLinear]) -> None:
        self.config = config = model.config
        gains = {name: model.get_parameter(f"{name}.weight").detach() for name in norm_widths(config)}
        shape = {
            "depth": config.layers,
            "hidden": config.hidden,
            "heads": config.heads,
            "kv_heads": config.key_value_heads,
            "width": config.head_width,
            "mlp": config.mlp_width,
            "vocabulary": config.vocab_size or 0,
            "eps": config.norm_eps,
        }
        self._model = NativeLlama(linears, gains, dict(model.embed.named_buffers()), shape)
        self._angles = self._angles_of(_FIRST_POSITIONS)

    def next_logits(self, ids: Tensor, cache: KVCache, counts: Tensor | None = None) -> Tensor:
        """As `questlm.models.Llama.next_logits`, float32; logits of a row without tokens mean nothing."""
        cache.check_room(*ids.shape)
        if cache.capacity > len(self._angles[0]):
            self._angles = self._angles_of(2 * cache.capacity)
        layout = cache_of(cache.entries, cache.scales, cache.lengths, cache.capacity, self._angles)
        logits = self._model.step(ids, None if counts is None else counts.contiguous(), layout)
        cache.count_recorded(ids.shape[1])
        return logits

    def _angles_of(self, positions: int) -> tuple[Tensor, Tensor]:
        """cos and sin of the first positions, (positions, width / 2): both halves of a head have the same."""
        half = self.config.head_width // 2
        cos, sin = rotary_angles(torch.arange(positions), self.config)
        return cos[:, :half].contiguous(), sin[:, :half].contiguous()


def native_forward(model: Llama, device: torch.device, dtype: torch.dtype) -> NativeForward | str:
    """The native forward pass of a packed model, or the reason why it has none."""
    if model.config.qkv_bias or model.config.qk_norm:
        return "it has no biases, and no norms of queries and keys"
    names = [f"layers.{index}.{name}" for index in range(model.config.layers) for name in block_shapes(model.config)]
    modules: dict[str, Any] = {name: model.get_submodule(name) for name in (*names, "lm_head")}
    layers: dict[str, NativeLinear | str] = {name: module.native_linear() for name, module in modules.items()}
    case = (device, dtype, {name: layer for name, layer in layers.items() if isinstance(layer, str)})
    if ops.choose("llama_step", *case) != "native":
        return dict(ops.reasons("llama_step", *case))["native"] or "another way was asked for"
    return NativeForward(model, {name: layer for name, layer in layers.items() if not isinstance(layer, str)})
