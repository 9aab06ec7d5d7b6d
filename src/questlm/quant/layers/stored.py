"""Embedding and output head that compute with the weights as an artifact stores them, in bf16 or rows of codes.

The rounding is applied in the forward pass; the gradient passes through it unchanged. So the model that is validated is
the one that ships.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from questlm import ops
from questlm.grid import Steps
from questlm.ops.reference.storage import as_stored
from questlm.quant.autograd import encode_rows, product
from questlm.quant.grids import stored_grid
from questlm.quant.quantizers import MaskedQuantizer, Quantizer, refuse_transforms
from questlm.quant.quantizers.stored_steps import StoredStepsQuantizer

__all__ = ["StoredEmbedding", "StoredLinear"]


class _AsStored(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, stored_dtype: str) -> Tensor:
        return as_stored(weight, stored_dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _quantizer(stored_dtype: str, steps: Steps) -> Quantizer | None:
    """What makes codes of the rows for 'int2' to 'int7'; None: they are stored as values."""
    grid = stored_grid(stored_dtype)
    if grid is None:
        return None
    rows = MaskedQuantizer(grid, block_size=1, mask_bound=None)
    return rows if steps == "fp32" else StoredStepsQuantizer(rows, steps)


class StoredEmbedding(nn.Embedding):
    """An `nn.Embedding` that returns rows of its weight rounded to `stored_dtype`.

    Attributes:
        stored_dtype: 'bf16', 'int8' (255 levels and one scale a row), 'int2' to 'int7' (the Gaussian grid, and one step
            a row) or 'float' (not rounded).
        quantizer: makes codes of rows, for 'int2' to 'int7'; else None.
    """

    stored_dtype: str
    quantizer: Quantizer | None

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding, stored_dtype: str, steps: Steps = "fp32") -> StoredEmbedding:
        """Wrap `embedding`, sharing its weight."""
        layer = cls(
            embedding.num_embeddings,
            embedding.embedding_dim,
            padding_idx=embedding.padding_idx,
            max_norm=embedding.max_norm,
            norm_type=embedding.norm_type,
            scale_grad_by_freq=embedding.scale_grad_by_freq,
            sparse=embedding.sparse,
            device="meta",
        )
        layer.weight, layer.stored_dtype = embedding.weight, stored_dtype
        layer.quantizer = _quantizer(stored_dtype, steps)
        return layer.train(embedding.training)

    def to_plain(self) -> nn.Embedding:
        """Return an `nn.Embedding` that shares the weight."""
        plain = nn.Embedding.from_pretrained(
            self.weight, freeze=False, padding_idx=self.padding_idx, max_norm=self.max_norm, norm_type=self.norm_type,
            scale_grad_by_freq=self.scale_grad_by_freq, sparse=self.sparse,
        )  # fmt: skip
        plain.weight = self.weight
        return plain.train(self.training)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, stored as {self.stored_dtype}"

    def forward(self, input: Tensor) -> Tensor:
        refuse_transforms()
        # Rounding goes row by row, so only the rows that were looked up are rounded.
        rows: Tensor = super().forward(input)
        if self.quantizer is not None:
            return self.quantizer(rows)
        stored: Tensor = _AsStored.apply(rows, self.stored_dtype)
        return stored


class StoredLinear(nn.Linear):
    """An `nn.Linear`, usually the output head, that multiplies by its weight rounded to `stored_dtype`.

    Attributes:
        stored_dtype, quantizer: as of `StoredEmbedding`.
    """

    stored_dtype: str
    quantizer: Quantizer | None

    @classmethod
    def from_linear(cls, linear: nn.Linear, stored_dtype: str, steps: Steps = "fp32") -> StoredLinear:
        """Wrap `linear`, sharing its parameters."""
        layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.stored_dtype, layer.quantizer = stored_dtype, _quantizer(stored_dtype, steps)
        return layer.train(linear.training)

    def to_plain(self) -> nn.Linear:
        """Return an `nn.Linear` that shares the parameters."""
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        return plain.train(self.training)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, stored as {self.stored_dtype}"

    def forward(self, input: Tensor) -> Tensor:
        refuse_transforms()
        if self.quantizer is not None:
            return self._of_codes(input, self.quantizer)
        weight: Tensor = _AsStored.apply(self.weight, self.stored_dtype)
        return nn.functional.linear(input, weight, self.bias)

    def _of_codes(self, input: Tensor, quantizer: Quantizer) -> Tensor:
        """The product of codes, as a packed model computes it."""
        dtype = ops.autocast_dtype(input) or self.weight.dtype
        compute = ops.compute_dtype(dtype)
        rows = encode_rows(input.to(dtype).reshape(-1, self.in_features), None, 1, compute)
        y = product(rows, encode_rows(self.weight, quantizer, 1, compute), compute)
        y = y if self.bias is None else y + self.bias.to(y.dtype)
        return y.to(dtype).reshape(*input.shape[:-1], self.out_features)
