"""Many tokens at once through all blocks of a packed Llama on a GPU, in few kernels.

Norm, activation and attention each write the codes that the next product reads, and matrices that read the same input
are written out as one, for the time of their product. Numbers are those of the modules, up to the order of sums and to
SwiGLU, which is rounded once here.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from questlm import ops
from questlm.inference.decoding import JoinedBlock, JoinedProduct
from questlm.models import KVCache, Llama
from questlm.models.cache import CacheStep
from questlm.models.llama import Block, rotary_angles
from questlm.ops.reference.matmul import Operand
from questlm.ops.triton.weight import FEW_ROWS, written_out

__all__ = ["PromptStep"]

_DTYPE = torch.bfloat16


class PromptStep:
    """Logits behind many tokens of each sequence.

    Args:
        model: one that `questlm.inference.decoding.DecodingStep` can run.
        blocks: its products and norms.
    """

    def __init__(self, model: Llama, blocks: list[JoinedBlock]) -> None:
        self._model, self._blocks = model, blocks

    def takes(self, ids: Tensor) -> bool:
        """Return whether ids (batch, tokens) are so many that writing weights out costs little."""
        return ids.numel() > FEW_ROWS

    def logits(self, ids: Tensor, cache: KVCache | None) -> Tensor:
        """Return logits (batch, tokens, vocab_size), as `Llama.forward`."""
        x = self._run_blocks(ids, cache)
        if cache is not None:
            cache.advance(ids.shape[1])
        return self._head(x)

    def next_logits(self, ids: Tensor, cache: KVCache, counts: Tensor | None) -> Tensor:
        """Return logits (batch, vocab_size), as `Llama.next_logits`."""
        x = self._run_blocks(ids, cache)
        cache.advance(ids.shape[1], counts)
        rows = torch.arange(len(x), device=x.device)
        return self._head(x[:, -1] if counts is None else x[rows, (counts - 1).clamp_min(0)])

    def _head(self, x: Tensor) -> Tensor:
        logits: Tensor = self._model.lm_head(self._model.norm(x))
        return logits

    def _run_blocks(self, ids: Tensor, cache: KVCache | None) -> Tensor:
        """Return the residual (batch, tokens, hidden) behind the last block."""
        past = None if cache is None else cache.step(*ids.shape)
        positions = torch.arange(ids.shape[1], device=ids.device) if past is None else past.positions[:, None]
        angles = rotary_angles(positions, self._model.config)
        x: Tensor = self._model.embed(ids).flatten(0, 1)
        delta: Tensor | None = None
        for layer, (block, module) in enumerate(zip(self._blocks, self._model.layers, strict=True)):
            x, delta = _run(block, cast(Block, module), x, delta, ids.shape, angles, layer, past)
        return (x if delta is None else x + delta).unflatten(0, ids.shape)


def _run(
    block: JoinedBlock, module: Block, x: Tensor, delta: Tensor | None, shape: torch.Size,
    angles: tuple[Tensor, Tensor], layer: int, past: CacheStep | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the residual behind a block's attention, and what its MLP adds: (rows, hidden) each."""
    attention, mlp_width = module.attention, len(block.gate_up.matrix.step) // 2
    own, shared = attention.heads * attention.width, attention.kv_heads * attention.width
    x, codes = _normed(x, delta, block.attention_norm, block.qkv)
    (qkv,) = _multiply(block.qkv, codes, [own + 2 * shared])
    q, k, v = qkv.unflatten(0, shape).split((own, shared, shared), dim=-1)
    read = attention.attend(q, k, v, angles, layer, past).to(_DTYPE).flatten(0, 1)
    (attended,) = _multiply(block.o, ops.encode(read, *_how(block.o)).operand, [len(block.o.matrix.step)])
    x, codes = _normed(x, attended, block.mlp_norm, block.gate_up)
    gate, up = _multiply(block.gate_up, codes, [mlp_width] * 2)
    activated = ops.swiglu_encode(gate, up, *_how(block.down)).operand
    (delta,) = _multiply(block.down, activated, [len(block.down.matrix.step)])
    return x, delta


def _how(product: JoinedProduct) -> tuple[ops.Grid, int, None, torch.dtype]:
    """Return how inputs of a product become codes, as `ops.encode` takes it."""
    return product.encoding.grid, product.encoding.block_size, None, _DTYPE


def _normed(x: Tensor, delta: Tensor | None, norm: torch.nn.RMSNorm, product: JoinedProduct) -> tuple[Tensor, Operand]:
    """Return the residual x + delta, and its codes behind a norm."""
    found = ops.norm_encode(x, delta, norm.weight, norm.eps or 0.0, *_how(product), trains=False)
    return x if found.residual is None else found.residual, found.encoded.operand


def _multiply(product: JoinedProduct, x: Operand, sizes: list[int]) -> list[Tensor]:
    """Return products (rows, size) with consecutive rows of a matrix, which is written out once."""
    whole = written_out(product.matrix, product.grid, x.data.dtype, _DTYPE)
    assert whole.grid is None and whole.step is not None
    offsets = [None] * len(sizes) if whole.offset is None else whole.offset.split(sizes)
    parts = zip(whole.data.split(sizes), whole.step.split(sizes), offsets, strict=True)
    return [ops.scaled_matmul(x, Operand(data, None, step, offset), _DTYPE) for data, step, offset in parts]
