"""The forward pass of a packed model as one native call a step, where all its layers can be in one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from questlm import ops
from questlm.artifact.shapes import block_shapes, norm_widths
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
        embedding: what `PackedEmbedding.native_embedding` gives.
    """

    def __init__(self, model: Llama, linears: dict[str, NativeLinear], embedding: dict[str, Tensor]) -> None:
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
        self._model = NativeLlama(linears, gains, embedding, shape)
        self._cache_shape = (config.layers, config.key_value_heads, config.head_width)
        self._angles = self._angles_of(_FIRST_POSITIONS)

    def next_logits(self, ids: Tensor, cache: KVCache, counts: Tensor | None = None) -> Tensor:
        """As `questlm.models.Llama.next_logits`, float32; logits of a row without tokens mean nothing."""
        cache.check_room(*ids.shape)
        layers, _, _, *heads = cache.entries.shape
        if (layers, *heads) != self._cache_shape:
            raise ValueError(f"the cache has layers, heads and widths {(layers, *heads)}, not {self._cache_shape}")
        angles = self._angles  # held until the step is done: another thread may put longer ones in their place
        if cache.capacity > len(angles[0]):
            self._angles = angles = self._angles_of(2 * cache.capacity)
        layout = cache_of(cache.entries, cache.scales, cache.lengths, cache.capacity, angles)
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
    embed: Any = model.embed
    embedding: dict[str, Tensor] | str = embed.native_embedding()
    refused = {name: found for name, found in (layers | {"embed": embedding}).items() if isinstance(found, str)}
    case = (device, dtype, refused)
    if ops.choose("llama_step", *case) != "native" or isinstance(embedding, str):
        return dict(ops.reasons("llama_step", *case))["native"] or "another way was asked for"
    linears = {name: layer for name, layer in layers.items() if not isinstance(layer, str)}
    return NativeForward(model, linears, embedding)
