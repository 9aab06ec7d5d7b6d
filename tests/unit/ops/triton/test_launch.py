"""Kernels are compiled ahead, side by side, and for GPUs of every kind that the README names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from questlm import ops

KERNELS = [
    "_decayed_step", "_masked_hadamard", "_masked_hadamard_many", "_nesterov", "_norm_quantize",
    "_norm_quantize_backward",
    "_quantize", "_quantize_many", "_swiglu_quantize", "_swiglu_quantize_backward", "_symmetric_product",
    "decode_attention", "decode_bits", "decode_bytes", "dot_bytes", "dot_values", "encode_rows", "expand",
]  # fmt: skip


# Codes have the dtype that `ops` chooses for such a GPU: float8 from Hopper on, int8 for more than 16 levels. The first
# is compiled with the tiles that were measured on it.
GPUS = ["cuda:90:32:float8", "cuda:80:32:uint8", "cuda:100:32:int8", "hip:gfx942:64:uint8"]


@pytest.mark.slow
def test_every_kernel_compiles(tmp_path: Path) -> None:
    script = Path(__file__).parents[3] / "helpers" / "compile_kernels.py"
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    job = subprocess.run([sys.executable, script, *GPUS], env=environment, capture_output=True, text=True, timeout=220)
    assert job.returncode == 0, job.stderr[-2000:]
    compiled = json.loads(job.stdout.splitlines()[-1])
    assert compiled == {gpu: sorted(KERNELS + ["_int8_matmul"] * gpu.endswith(":int8")) for gpu in GPUS}


def test_there_is_no_warm_up_where_nothing_is_compiled() -> None:
    ops.compile_ahead(lambda: pytest.fail("warmed up"), torch.device("cpu"))
