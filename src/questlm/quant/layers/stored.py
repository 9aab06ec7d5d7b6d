"""Embedding and output head that compute with the weights as an artifact stores them, in bf16 or 8-bit rows.

The rounding is applied in the forward pass; the gradient passes through it unchanged. So the model that is validated is
the one that ships.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from questlm.ops.reference.storage import as_stored
from questlm.quant.quantizers import refuse_transforms

__all__ = ["StoredEmbedding", "StoredLinear"]


class _AsStored(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, stored_dtype: str) -> Tensor:
        return as_stored(weight, stored_dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class StoredEmbedding(nn.Embedding):
    """An `nn.Embedding` that returns rows of its weight rounded to `stored_dtype`.

    Attributes:
        stored_dtype: 'bf16', 'int8' (255 levels and one scale a row) or 'float' (not rounded).
    """

    stored_dtype: str

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding, stored_dtype: str) -> StoredEmbedding:
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
        return layer.train(embedding.training)

    def to_plain(self) -> nn.Embedding:
        """Return an `nn.Embedding` that shares the weight."""
        plain = nn.Embedding.from_pretrained(
            self.weight, freeze=False, padding_idx=self.padding_idx, max_norm=self.max_norm, norm_type=self.norm_type,
            scale_grad_by_freq=self.scale_grad_by_freq, sparse=self.sparse,
        )  # fmt: skip
        plain.weight = self.weight
        return plain.train(self.training)

    def forward(self, input: Tensor) -> Tensor:
        refuse_transforms()
        # Rounding goes row by row, so only the rows that were looked up are rounded.
        rows: Tensor = _AsStored.apply(super().forward(input), self.stored_dtype)
        return rows


class StoredLinear(nn.Linear):
    """An `nn.Linear`, usually the output head, that multiplies by its weight rounded to `stored_dtype`.

    Attributes:
        stored_dtype: as of `StoredEmbedding`.
    """

    stored_dtype: str

    @classmethod
    def from_linear(cls, linear: nn.Linear, stored_dtype: str) -> StoredLinear:
        """Wrap `linear`, sharing its parameters."""
        layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        layer.weight, layer.bias, layer.stored_dtype = linear.weight, linear.bias, stored_dtype
        return layer.train(linear.training)

    def to_plain(self) -> nn.Linear:
        """Return an `nn.Linear` that shares the parameters."""
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        return plain.train(self.training)

    def forward(self, input: Tensor) -> Tensor:
        refuse_transforms()
        weight: Tensor = _AsStored.apply(self.weight, self.stored_dtype)
        return nn.functional.linear(input, weight, self.bias)
