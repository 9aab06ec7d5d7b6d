"""Momentum and step in one launch: more matrices than a launch takes, transposed ones, odd sizes."""

from __future__ import annotations

import pytest
import torch

from helpers.optimizer_checks import check_momentum, lists
from questlm import ops

pytest.importorskip("triton")


@pytest.mark.parametrize(
    ("count", "shape", "transposed", "dtype", "lr_on_device"),
    [
        (1, (64, 64), 0, torch.bfloat16, True),
        (11, (17, 70), 3, torch.float32, False),
        (9, (65, 70), 9, torch.bfloat16, False),
    ],
)
def test_both_passes_give_what_the_reference_gives(
    count: int, shape: tuple[int, int], transposed: int, dtype: torch.dtype, lr_on_device: bool
) -> None:
    check_momentum(count, shape, transposed, "cpu", dtype, lr_on_device)


def test_a_stack_that_is_not_contiguous_is_left_to_the_reference() -> None:
    gradients, buffers = lists(2, (8, 16), "cpu"), lists(2, (8, 16), "cpu")
    out = torch.empty(2, 16, 8).mT
    with ops.using_backend("triton"):
        assert ops.choose("momentum", gradients, buffers, out) == "one by one"
        ops.nesterov(gradients, buffers, 0.9, out)
    torch.testing.assert_close(out[0], 0.1 * gradients[0] + 0.9 * buffers[0])
