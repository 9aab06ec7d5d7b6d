"""Laying packed weights out: what is refused, and which implementation is chosen."""

from __future__ import annotations

import copy

import pytest
import torch

from questlm import ops
from questlm.inference.linear import PackedLinear
from questlm.ops import Grid, PackedFormat
from questlm.ops.cpu.linear import NativeWeight
from questlm.ops.unpacking import TiledWeight, UnpackedWeight

CPU, FORMAT = torch.device("cpu"), PackedFormat(32, 16, Grid(16, 0.4), Grid(16, 0.4))
TENSORS = {"codes": torch.zeros(5, 16, dtype=torch.uint8), "step": torch.ones(5, 1)}


def test_unknown_tensors_and_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no 'input_norm'; it may have: act_offset, .*weight"):
        ops.prepack(TENSORS | {"input_norm": torch.ones(32)}, FORMAT, CPU)
    with pytest.raises(ValueError, match=r"float32 or bfloat16, not in torch\.float16"):
        ops.prepack(TENSORS, FORMAT, CPU, torch.float16)


def test_the_fastest_is_chosen_that_can_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(ops.prepack(TENSORS, FORMAT, CPU, stay_packed=True), NativeWeight)
    with ops.using_backend("reference"):
        assert isinstance(ops.prepack(TENSORS, FORMAT, CPU), TiledWeight)
    monkeypatch.setattr("questlm.ops.cpu.linear.unavailable", lambda backend: "it was not built")
    assert isinstance(ops.prepack(TENSORS, FORMAT, CPU), UnpackedWeight)
    assert isinstance(ops.prepack(TENSORS, FORMAT, CPU, stay_packed=True), TiledWeight)
    found = dict(ops.reasons("packed_linear", TENSORS, FORMAT, CPU, torch.bfloat16, True))
    assert found.pop("triton")  # a sentence of its own where Triton is missing
    assert found == {
        "cpu": "it was not built",
        "unpacked": "it keeps 2 bytes a weight, and weights are to stay packed",
        "reference": None,
    }


def test_sparse_rows_that_are_to_stay_packed_are_not_laid_out_in_full() -> None:
    grid = Grid(16, 0.4, group=2)
    tensors = {
        "codes": torch.zeros(5, 8, dtype=torch.uint8),
        "kept": torch.full((5, 2), 0x33, dtype=torch.uint8),
        "step": torch.ones(5, 1),
    }
    format = PackedFormat(32, 16, grid, Grid(16, 0.4))
    assert isinstance(ops.prepack(tensors, format, CPU), NativeWeight)
    assert isinstance(ops.prepack(tensors, format, CPU, stay_packed=True), TiledWeight)


@pytest.mark.parametrize("stay_packed", [False, True])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_deep_copy_of_a_model_computes_the_same(backend: str, stay_packed: bool) -> None:
    with ops.using_backend(backend):
        layer = PackedLinear(ops.prepack(TENSORS, FORMAT, CPU, stay_packed=stay_packed))
    twin, x = copy.deepcopy(layer), torch.randn(3, 32)
    expected = layer(x)
    del layer
    assert torch.equal(twin(x), expected)
