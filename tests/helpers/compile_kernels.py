"""Compile every kernel for GPUs that are not there, each named as BACKEND:ARCH:WARP:KIB:CODE_DTYPE.

    python compile_kernels.py cuda:90:32:227:float8 hip:gfx942:64:64:uint8

KIB is the shared memory that a program may have. Prints the bytes that each kernel takes, by GPU.
`test_launch` runs it in a process of its own, because Triton's interpreter is
on in that of the tests.
"""

from __future__ import annotations

import json
import sys
import warnings

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from questlm.grid import Grid
from questlm.ops.triton import launch
from questlm.ops.triton import packed_linear as packed
from questlm.ops.triton.int8_matmul import int8_matmul
from questlm.ops.triton.many import masked_hadamard_many, quantize_many
from questlm.ops.triton.masked_hadamard import masked_hadamard
from questlm.ops.triton.momentum import decayed_step, nesterov
from questlm.ops.triton.norm_quantize import norm_quantize, norm_quantize_backward
from questlm.ops.triton.quantize import quantize
from questlm.ops.triton.swiglu_quantize import swiglu_quantize, swiglu_quantize_backward
from questlm.ops.triton.symmetric import symmetric_product
from questlm.ops.triton.tiles import Launch, tiles_of


class AbsentGpu:
    """As much of Triton's driver as compiling asks for."""

    def __init__(self, index: int, target: GPUTarget, shared: int) -> None:
        self.index = index  # by which Triton keeps apart what it has compiled
        self.target, self.shared, self.utils = target, shared, self

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": self.shared}

    def get_current_device(self) -> int:
        return self.index

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


def start_each(code_dtype: str) -> None:
    """Call each kernel once, as a training step on rows of 640 does."""
    rows, k, levels = 64, 640, 256 if code_dtype == "int8" else 16
    x = torch.zeros(rows, k, dtype=torch.bfloat16)
    mask = torch.zeros(rows, k // 8, dtype=torch.uint8)
    unit, gain, rstd = x, torch.ones(k), torch.ones(rows, 1)
    grid = (128, levels, 0.1, 1.0, code_dtype)
    data, step, _ = quantize(x, *grid)
    quantize_many([x.float()] * 2, *grid)
    masked_hadamard(x, mask, 128, torch.bfloat16)
    masked_hadamard_many([x.float()], mask, 128)
    norm_quantize(x, x, gain, 1e-5, torch.bfloat16, *grid, True)
    norm_quantize_backward(x, mask, unit, rstd, gain, 128, x, torch.bfloat16, torch.bfloat16)
    swiglu_quantize(x, x, torch.bfloat16, *grid)
    swiglu_quantize_backward(x, mask, x, x, 128)
    nesterov([x.float()], [x.float()], 0.9, x.unsqueeze(0))
    decayed_step([x.T], x.T.contiguous().unsqueeze(0), torch.ones(()), 0.1, 0.2)
    symmetric_product(x.T.contiguous().unsqueeze(0), 1.0, 1.0, 1.0)
    if code_dtype == "int8":
        sums = torch.zeros(rows, dtype=torch.int32)
        int8_matmul(data, data, step, step, sums, sums, torch.bfloat16)


def start_packed() -> None:
    """Call each kernel of packed weights once, for codes of several widths."""
    k, cpu, x = 640, torch.device("cpu"), torch.zeros(2, 640, dtype=torch.bfloat16)
    act, rows = Grid(16, 0.3), {"codes": torch.zeros(32, k // 2, dtype=torch.uint8), "step": torch.ones(32, 1)}
    one_bit = {**rows, "codes": torch.zeros(32, k // 8, dtype=torch.uint8)}
    for stored, weight in ((rows, Grid(16, 0.3)), (one_bit, Grid(2, 0.8))):
        matrix = packed.lay_out_matrix(stored, weight, act, k, cpu)
        codes = packed.encode(x, packed.Encoding(k, act, 128, matrix.bits), torch.bfloat16)
        packed.multiply(matrix, codes, torch.bfloat16)
        packed.levels(matrix, torch.bfloat16)
    many = packed.encode(x.repeat(8, 1), packed.Encoding(k, act, 128, 4), torch.bfloat16)
    packed.multiply(packed.lay_out_matrix(rows, Grid(16, 0.3), act, k, cpu), many, torch.bfloat16)
    packed.multiply_values(packed.Rows8(torch.zeros(32, k, dtype=torch.int8), torch.ones(32)), x, torch.bfloat16)
    plain = packed.lay_out_matrix({**one_bit, "codes": one_bit["codes"].repeat(1, 4)}, Grid(2, 0.8), None, 4 * k, cpu)
    packed.multiply_values(plain, torch.zeros(64, 4 * k), torch.float32)  # the most shared memory
    cache, table = torch.zeros(2 * 64, 1, 128, dtype=torch.bfloat16), torch.zeros(64, 64)
    packed.attend(torch.zeros(2, 768, dtype=torch.bfloat16), cache, cache, torch.zeros(2, dtype=torch.int64),
                  table, table, 4, 1, 2)  # fmt: skip


def start_all(code_dtype: str) -> None:
    """Call every kernel once."""
    start_each(code_dtype)
    start_packed()


def compiled_for(index: int, gpu: str, small: bool) -> dict[str, int]:
    """Bytes of shared memory of each kernel, compiled for a GPU with tiles of the sizes in use, or smaller ones."""
    backend, arch, warp, kib, code_dtype = gpu.split(":")
    target = GPUTarget(backend, int(arch) if arch.isdecimal() else arch, int(warp))
    driver.set_active(AbsentGpu(index, target, 1024 * int(kib)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_most_stages", {})
        if small:  # the same instructions, in loops that are unrolled less often
            patch.setattr(Launch, "tiles", lambda self, k, block_size: tiles_of(k, block_size, 2048))
        return launch.compile_ahead(lambda: start_all(code_dtype))


if __name__ == "__main__":
    # Our own warnings are errors. Triton's about itself, such as of Python 3.13's syntax trees, are not, because they
    # would leave kernels uncompiled.
    warnings.filterwarnings("error", module=r"(questlm|__main__)(\.|$)")
    print(json.dumps({gpu: compiled_for(index, gpu, small=index > 0) for index, gpu in enumerate(sys.argv[1:])}))
