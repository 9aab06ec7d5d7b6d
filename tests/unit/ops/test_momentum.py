"""Nesterov momentum and the step with weight decay, against their formulas."""

from __future__ import annotations

import torch

from helpers.optimizer_checks import lists
from questlm import ops


def test_nesterov_momentum_looks_one_step_ahead() -> None:
    gradients, buffers = lists(3, (4, 6), "cpu", 1), lists(3, (4, 6), "cpu", 1)
    before, out = [each.clone() for each in buffers], torch.empty(3, 4, 6, dtype=torch.float64)
    ops.nesterov(gradients, buffers, 0.75, out)
    for gradient, old, new, ahead in zip(gradients, before, buffers, out, strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * gradient)
        torch.testing.assert_close(ahead, (0.25 * gradient + 0.75 * new).double())


def test_a_step_decays_and_moves_the_weights() -> None:
    weights, updates = lists(3, (4, 6), "cpu", 1), torch.randn(3, 4, 6)
    before = [each.clone() for each in weights]
    ops.decayed_step(weights, updates, 0.5, 0.1, 4.0)
    for old, new, update in zip(before, weights, updates, strict=True):
        torch.testing.assert_close(new, 0.95 * old - 2 * update)
