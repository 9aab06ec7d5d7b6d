"""One place decides which backend runs."""

from __future__ import annotations

import pytest
import torch

from questlm import ops
from questlm.errors import BackendError


def test_every_operation_ends_at_the_reference():
    for operation, backends in ops.OPERATIONS.items():
        assert backends[-1] == "reference", operation
        assert set(backends) <= set(ops.BACKENDS), operation


@pytest.mark.parametrize("operation", ops.OPERATIONS)
def test_auto_always_finds_one_that_is_available(operation):
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        backend = ops.backend_for(operation, torch.zeros(1, dtype=dtype))
        assert ops.unavailable(backend) is None


@pytest.mark.parametrize("operation", ops.OPERATIONS)
def test_a_request_is_honoured_and_ends_with_its_block(operation):
    x = torch.zeros(1)
    before = ops.backend_for(operation, x)
    with ops.using_backend("reference"):
        assert ops.backend_for(operation, x) == "reference"
        with ops.using_backend("auto"):
            assert ops.backend_for(operation, x) == before
        assert ops.backend_for(operation, x) == "reference"
    with pytest.raises(KeyError), ops.using_backend("reference"):
        raise KeyError
    assert ops.backend_for(operation, x) == before


def test_an_unknown_backend_gives_the_nearest_name():
    with pytest.raises(BackendError, match=r"'refrence'.*Did you mean 'reference'"), ops.using_backend("refrence"):
        pass


@pytest.mark.parametrize("name", ["cpu", "triton"])
def test_a_backend_that_cannot_run_says_why(name):
    reason = ops.unavailable(name)
    if reason is None:
        with ops.using_backend(name):
            return
    with pytest.raises(BackendError, match=name) as caught, ops.using_backend(name):
        pass
    assert reason in str(caught.value)
