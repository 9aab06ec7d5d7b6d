"""What a layer may have beside its quantised product, each at the cost of one number a channel.

Centring. The mean of the inputs over all tokens is the same for every token, yet rounding spends levels on it. With a
running mean m of the inputs x the layer computes

    y = Q(x - m) w_q^T + m w_q^T,

whose second term is one row for all tokens. m is a constant for the gradient. At 1 bit rounding loses 36 % of the
energy of what it rounds, and m is a large part of what the output projection of attention reads: averages of values.

A diagonal beside the matrix. W + D with a diagonal D is no more than another matrix for a dense layer; but a layer of
few bits passes its input through it unrounded,

    y = x_q w_q^T + D x,     D of max(in, out) numbers, all zero at first.

Where the sides differ, the shorter one is repeated: output i and input j are connected where i = j modulo the shorter.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from questlm.errors import ConfigError

__all__ = ["InputMean", "diagonal_product"]

_RATE = 0.01
"""Share of a batch in the running mean, once so many batches have been seen that it is an average of many."""


class InputMean(nn.Module):
    """The running mean of a layer's inputs, in the buffer `mean` (K,); each training batch moves it.

    Raises (when called in training):
        ConfigError: there are several processes, whose means would differ.
    """

    mean: Tensor
    batches: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("batches", torch.zeros(()))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return the mean (K,) after a look at the rows x (rows, K), in the dtype of `x`; no gradient."""
        if self.training:
            if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
                raise ConfigError("layers that take off the mean of their inputs train in one process only")
            self.batches.add_(1)
            rate = torch.clamp(1 / self.batches, min=_RATE)
            self.mean.add_((x.mean(dim=0, dtype=self.mean.dtype) - self.mean) * rate)
        return self.mean.to(x.dtype, copy=True)  # the buffer moves on before the backward pass is over


def diagonal_product(x: Tensor, diagonal: Tensor, out_features: int) -> Tensor:
    """D x as at the top of this file: rows (rows, in) and diagonal (max(in, out),) -> (rows, out) of the dtype of x."""
    diagonal, in_features = diagonal.to(x.dtype), x.shape[-1]
    if out_features >= in_features:
        whole, rest = divmod(out_features, in_features)
        return torch.cat([x] * whole + [x[:, :rest]], dim=1) * diagonal
    padded = F.pad(x * diagonal, (0, -in_features % out_features))
    return padded.unflatten(1, (-1, out_features)).sum(1)
