"""One step of decoding in few kernels: a token of each sequence through all blocks of a packed Llama on a GPU.

Nine launches a block, where the modules take some forty: norm, activation and attention each write the codes that the
next product reads, and matrices that read the same input are one matrix. Numbers are those of the modules, up to the
order of sums. Shapes do not depend on lengths, so the step can be recorded as a CUDA graph.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from questlm.grid import Grid
from questlm.inference.linear import PackedLinear
from questlm.models import KVCache, Llama
from questlm.models.llama import Block, rotary_angles
from questlm.ops.triton import packed_linear as packed
from questlm.ops.triton.packed_linear import Before, Encoding, Inputs, LaidOut, Rows8
from questlm.ops.triton.weight import FEW_ROWS, TritonWeight

__all__ = ["DecodingStep", "JoinedBlock", "JoinedProduct"]


class JoinedProduct(NamedTuple):
    """Matrices that read one input, as one; how their input is rounded, and the grid of their codes."""

    matrix: LaidOut
    encoding: Encoding
    grid: Grid


class JoinedBlock(NamedTuple):
    """The products and norms of a block."""

    qkv: JoinedProduct
    o: JoinedProduct
    gate_up: JoinedProduct
    down: JoinedProduct
    attention_norm: nn.RMSNorm
    mlp_norm: nn.RMSNorm


class DecodingStep:
    """Logits of the next token of each sequence from one token of each.

    Args:
        model: built by `questlm.inference.build` on a GPU, computing in bfloat16.
        overlaps: let a kernel start, and read its weights, before the one before it has ended (from Hopper on).

    Attributes:
        blocks: the products and norms of each block.
    """

    @staticmethod
    def can_run(model: Llama, dtype: torch.dtype) -> str | None:
        """None, or the reason why the modules of `model` must run one by one."""
        width = model.config.head_width
        if dtype is not torch.bfloat16:
            return f"it computes in bfloat16, not in {dtype}"
        if width < 32 or width & (width - 1):
            return f"heads of {width} entries are not a power of two of at least 32"
        if model.config.qk_norm:
            return "each head of queries and keys has a norm of its own"
        for block in _blocks_of(model):
            attention, mlp = block.attention, block.mlp
            for group in ((attention.q, attention.k, attention.v), (attention.o,), (mlp.gate, mlp.up), (mlp.down,)):
                weights = [weight for layer in group if (weight := _weight_of(layer)) is not None and weight.plain]
                if len(weights) != len(group):
                    return "a layer is not a plain product of packed weights and codes"
                if len({weight.format for weight in weights}) != 1:
                    return "layers with one input have different formats"
        return None

    def __init__(self, model: Llama, overlaps: bool) -> None:
        self._model, self._config, self._overlaps = model, model.config, overlaps
        self.blocks = [_block(block) for block in _blocks_of(model)]
        self._cos = self._sin = torch.empty(0, device=model.norm.weight.device)
        self._head = _head_rows(model.lm_head)

    def takes(self, ids: Tensor, cache: KVCache) -> bool:
        """Return whether the kernels can take token ids (batch, tokens): one each, of few sequences, no 8-bit cache."""
        return ids.shape[1] == 1 and len(ids) <= FEW_ROWS and cache.scales is None

    def logits(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Logits (batch, vocab_size) of the token after `ids` (batch,), which the cache takes up."""
        config, overlaps, dtype = self._config, self._overlaps, torch.bfloat16
        cache.check_room(len(ids), 1)
        if cache.capacity > len(self._cos):
            self._make_rotations(cache.capacity)
        heads, kv_heads, width = config.heads, config.key_value_heads, config.head_width
        splits = splits_of(len(ids), kv_heads)
        x: Tensor = self._model.embed(ids)
        delta: Tensor | None = None
        gate = config.mlp_width
        for layer, block in enumerate(self.blocks):
            x, codes = self._normed(x, delta, block.attention_norm, block.qkv.encoding)
            qkv = packed.multiply(block.qkv.matrix, codes, dtype, overlaps=overlaps)
            keys, values = cache.layer(layer)
            parts, largest, sums = packed.attend(
                qkv, keys, values, cache.lengths, self._cos, self._sin, heads, kv_heads, splits, overlaps=overlaps
            )
            joined = Before("attention", largest, sums, 0.0, heads, width, splits)
            attended = packed.multiply(
                block.o.matrix,
                packed.encode(parts, block.o.encoding, dtype, joined, overlaps=overlaps),
                dtype,
                overlaps=overlaps,
            )
            x, codes = self._normed(x, attended, block.mlp_norm, block.gate_up.encoding)
            both = packed.multiply(block.gate_up.matrix, codes, dtype, overlaps=overlaps)
            activated = packed.encode(
                both, block.down.encoding, dtype, Before("swiglu", both[:, gate:]), overlaps=overlaps
            )
            delta = packed.multiply(block.down.matrix, activated, dtype, overlaps=overlaps)
        norm = self._model.norm
        y = packed.normed(
            x, dtype, Before("norm", delta, norm.weight, norm.eps or 0.0), torch.empty_like(x), overlaps=overlaps
        )
        cache.advance(1)
        if self._head is None:
            return self._model.lm_head(y)
        return packed.multiply_values(self._head, y, dtype, overlaps=overlaps)

    def _make_rotations(self, positions: int) -> None:
        cos, sin = rotary_angles(torch.arange(positions, device=self._cos.device), self._config)
        half = self._config.head_width // 2
        self._cos, self._sin = cos[:, :half].contiguous(), sin[:, :half].contiguous()

    def _normed(self, x: Tensor, delta: Tensor | None, norm: nn.RMSNorm, how: Encoding) -> tuple[Tensor, Inputs]:
        residual = None if delta is None else torch.empty_like(x)
        before = Before("norm", delta, norm.weight, norm.eps or 0.0)
        codes = packed.encode(x, how, torch.bfloat16, before, residual, overlaps=self._overlaps)
        return x if residual is None else residual, codes


def splits_of(batch: int, kv_heads: int) -> int:
    """Parts that each sequence is cut into for attention: enough programs for a GPU, at most eight."""
    return max(1, min(8, 128 // max(1, batch * kv_heads)))


def _blocks_of(model: Llama) -> list[Block]:
    return [cast(Block, block) for block in model.layers]


def _block(block: Block) -> JoinedBlock:
    attention, mlp = block.attention, block.mlp
    return JoinedBlock(
        _product(attention.q, attention.k, attention.v), _product(attention.o), _product(mlp.gate, mlp.up),
        _product(mlp.down), block.attention_norm, block.mlp_norm,
    )  # fmt: skip


def _product(*layers: nn.Module) -> JoinedProduct:
    weights = [weight for layer in layers if (weight := _weight_of(layer)) is not None]
    joined = packed.join([weight.matrix for weight in weights if isinstance(weight.matrix, LaidOut)])
    start = 0
    for weight in weights:  # each becomes a view, so that nothing is kept twice
        weight.matrix = packed.part(joined, start, weight.out_features)
        start += weight.out_features
    encoding, grid = weights[0].encoding, weights[0].format.weight
    assert encoding is not None and grid is not None
    return JoinedProduct(joined, encoding, grid)


def _weight_of(layer: nn.Module) -> TritonWeight | None:
    weight = layer.weight if isinstance(layer, PackedLinear) else None
    return weight if isinstance(weight, TritonWeight) else None


def _head_rows(head: nn.Module) -> Rows8 | None:
    weight = _weight_of(head)
    return weight.matrix if weight is not None and isinstance(weight.matrix, Rows8) else None
