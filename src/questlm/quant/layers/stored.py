"""Embedding and head in the form that ships: rounded to bf16 or to 8-bit rows, with the identity as gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from questlm.ops.reference.storage import stored_form
from questlm.quant.quantizers import refuse_transforms

__all__ = ["StoredEmbedding", "StoredLinear"]


class _StoredForm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, form: str) -> Tensor:
        return stored_form(weight, form)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class StoredEmbedding(nn.Embedding):
    """An `nn.Embedding` that looks rows up in the stored form of its weight."""

    form: str

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding, form: str) -> StoredEmbedding:
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
        layer.weight, layer.form = embedding.weight, form
        return layer.train(embedding.training)

    def to_plain(self) -> nn.Embedding:
        """The plain layer again, sharing the same weight."""
        plain = nn.Embedding.from_pretrained(
            self.weight, freeze=False, padding_idx=self.padding_idx, max_norm=self.max_norm, norm_type=self.norm_type,
            scale_grad_by_freq=self.scale_grad_by_freq, sparse=self.sparse,
        )  # fmt: skip
        plain.weight = self.weight
        return plain.train(self.training)

    def forward(self, input: Tensor) -> Tensor:
        refuse_transforms()
        # The stored form is made row by row, so it may as well be applied to the rows looked up.
        rows: Tensor = _StoredForm.apply(super().forward(input), self.form)
        return rows


class StoredLinear(nn.Linear):
    """An `nn.Linear`, usually the output head, that multiplies by the stored form of its weight."""

    form: str

    @classmethod
    def from_linear(cls, linear: nn.Linear, form: str) -> StoredLinear:
        """Wrap `linear`, sharing its parameters."""
        layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        layer.weight, layer.bias, layer.form = linear.weight, linear.bias, form
        return layer.train(linear.training)

    def to_plain(self) -> nn.Linear:
        """The plain layer again, sharing the same parameters."""
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        return plain.train(self.training)

    def forward(self, input: Tensor) -> Tensor:
        refuse_transforms()
        weight: Tensor = _StoredForm.apply(self.weight, self.form)
        return nn.functional.linear(input, weight, self.bias)
