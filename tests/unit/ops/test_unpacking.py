"""How much memory packed weights take, at rest and while they multiply."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers.allocated import peak_bytes
from questlm import ops
from questlm.ops import Grid, PackedFormat
from questlm.ops.unpacking import TiledWeight, UnpackedWeight

MIB = 2**20
CPU = torch.device("cpu")


def matrix(out: int, k: int, levels: int, group: int = 0) -> tuple[dict[str, Tensor], PackedFormat]:
    """A packed matrix of random codes, 2:4 sparse with `group` 2."""
    grid = Grid(levels, 0.4, group=group)
    tensors = {"step": torch.rand(out, 1) + 0.5}
    if group:
        kept = ops.kept_entries(torch.randn(out, k), group)
        half, bits = ops.pack_sparse(torch.randint(0, levels, (out, k), dtype=torch.uint8), kept, group)
        tensors |= {"codes": ops.pack(half, levels), "kept": bits}
    else:
        tensors["codes"] = ops.pack(torch.randint(0, levels, (out, k), dtype=torch.uint8), levels)
    return tensors, PackedFormat(k, 16, grid, Grid(16, 0.336))


@pytest.mark.parametrize(("levels", "group"), [(2, 0), (3, 0), (8, 0), (16, 0), (256, 0), (16, 2)])
def test_a_packed_weight_multiplies_within_a_few_mebibytes(levels: int, group: int) -> None:
    tensors, format = matrix(4096, 1024, levels, group)
    weight, x = TiledWeight(tensors, format, CPU, torch.float32), torch.randn(2, 1024)
    assert weight.nbytes == sum(tensor.nbytes for tensor in tensors.values())
    most = peak_bytes(lambda: ops.packed_linear(x, weight))
    assert 0.25 * MIB < most < 4 * MIB  # unpacked it is 16 MiB


def test_what_is_laid_out_is_what_was_given_where_it_stays_packed() -> None:
    tensors, format = matrix(64, 128, 16)
    weight = TiledWeight(tensors, format, CPU, torch.float32)
    assert {tensor.data_ptr() for tensor in weight.tensors} == {tensor.data_ptr() for tensor in tensors.values()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_unpacked_weight_is_made_without_a_second_copy(dtype: torch.dtype) -> None:
    tensors, format = matrix(4096, 1024, 16)
    size = 4096 * 1024 * dtype.itemsize
    most = peak_bytes(lambda: UnpackedWeight(tensors, format, CPU, dtype))
    assert size < most < size + 4 * MIB
    assert size < UnpackedWeight(tensors, format, CPU, dtype).nbytes < size + 2**16
