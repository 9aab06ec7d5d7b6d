"""Kernels are compiled ahead, side by side, and for GPUs of every kind that the README names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from questlm import ops

pytest.importorskip("triton")

from triton.runtime.errors import OutOfResources

from questlm.ops.triton.launch import start_kernel

KERNELS = [
    "_decayed_step", "_masked_hadamard", "_masked_hadamard_many", "_nesterov", "_norm_quantize",
    "_norm_quantize_backward",
    "_quantize", "_quantize_many", "_swiglu_quantize", "_swiglu_quantize_backward", "_symmetric_product",
    "decode_attention", "decode_bits", "decode_bytes", "dot_bytes", "dot_values", "encode_rows", "expand",
]  # fmt: skip


# Codes have the dtype that `ops` chooses for such a GPU: float8 from Hopper on, int8 for more than 16 levels. Programs
# have 99 KiB of shared memory on Ampere's and Ada's smaller GPUs, 227 on Hopper and Blackwell, 64 on AMD's. The first
# is compiled with the tiles that are used.
GPUS = ["cuda:86:32:99:uint8", "cuda:90:32:227:float8", "cuda:100:32:227:int8", "hip:gfx942:64:64:uint8"]


@pytest.mark.slow
def test_every_kernel_compiles_and_fits_into_shared_memory(tmp_path: Path) -> None:
    script = Path(__file__).parents[3] / "helpers" / "compile_kernels.py"
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    job = subprocess.run([sys.executable, script, *GPUS], env=environment, capture_output=True, text=True, timeout=220)
    assert job.returncode == 0, job.stderr[-2000:]
    for gpu, taken in json.loads(job.stdout.splitlines()[-1]).items():
        _, _, _, kib, code_dtype = gpu.split(":")
        assert sorted(taken) == sorted(KERNELS + ["_int8_matmul"] * (code_dtype == "int8"))
        assert max(taken.values()) <= 1024 * int(kib), (gpu, taken)


class Hungry:
    """A kernel that takes 40 bytes of shared memory a stage, on a GPU with 99."""

    def __init__(self) -> None:
        self.fn, self.tried = self, list[int]()

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self.run

    def run(self, *, num_stages: int = 1, least: int = 0) -> None:
        self.tried.append(num_stages)
        if (needed := least + 40 * num_stages) > 99:
            raise OutOfResources(needed, 99, "shared memory")


def test_a_kernel_gets_as_many_stages_as_there_is_room_for() -> None:
    kernel = Hungry()
    start_kernel(kernel, (1,), num_stages=4)
    start_kernel(kernel, (1,), num_stages=3)
    start_kernel(kernel, (1,), num_stages=1)
    assert kernel.tried == [4, 3, 2, 2, 1]
    with pytest.raises(OutOfResources):
        start_kernel(Hungry(), (1,), num_stages=2, least=90)


def test_there_is_no_warm_up_where_nothing_is_compiled() -> None:
    ops.compile_ahead(lambda: pytest.fail("warmed up"), torch.device("cpu"))
