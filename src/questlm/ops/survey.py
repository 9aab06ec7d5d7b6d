"""What every operation would run on here, for a layer of the usual kind: what `quest doctor` prints."""

from __future__ import annotations

import torch
from torch import Tensor

from questlm.grid import Grid
from questlm.ops.dispatch import IMPLEMENTATIONS, reasons
from questlm.ops.packed import PackedFormat
from questlm.ops.reference.matmul import Operand

__all__ = ["survey"]

_ROWS, _K, _BLOCK = 16, 128, 128
_GRIDS = {"4 bits": Grid(levels=16, step_per_scale=0.336), "8 bits": Grid(levels=256, step_per_scale=0.031)}


def survey(device: torch.device) -> list[tuple[str, str, str | None]]:
    """(operation, implementation, None or the reason why it cannot run) of the whole table, fastest first.

    Asked for rows of 128 on `device`: float32 on a CPU, bfloat16 on a GPU, as training computes there. Operations whose
    choice depends on the bits stand there for 4 and for 8 bits.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    x = torch.empty(_ROWS, _K, device=device, dtype=dtype)
    cases = [(name, name, case) for name, case in _cases(x, dtype).items()]
    for bits, code_dtype in (("4 bits", torch.float8_e4m3fn), ("8 bits", torch.int8)):
        codes = Operand(x.to(code_dtype), None, x.new_empty((_ROWS, 1), dtype=torch.float32))
        cases += [(f"code_dtype, {bits}", "code_dtype", (device, _GRIDS[bits], dtype))]
        cases += [(f"scaled_matmul, {bits}", "scaled_matmul", (codes, codes, dtype))]
    cases.sort(key=lambda each: list(IMPLEMENTATIONS).index(each[1]))
    return [(title, *found) for title, operation, case in cases for found in reasons(operation, *case)]


def _cases(x: Tensor, dtype: torch.dtype) -> dict[str, tuple[object, ...]]:
    mask, float8 = x.new_empty((_ROWS, _K // 8), dtype=torch.uint8), x.to(torch.float8_e4m3fn)
    packed = {"codes": x.new_empty((_ROWS, _K // 2), dtype=torch.uint8), "step": x.new_empty((_ROWS, 1)).float()}
    rows, fused = (x, _BLOCK), (x, _BLOCK, _GRIDS["4 bits"], dtype)
    return {
        "quantize": rows,
        "masked_hadamard": rows,
        "quantize_other_grids": rows,
        "quantize_many": ([x], _BLOCK, _GRIDS["4 bits"]),
        "masked_hadamard_many": ([x], mask, _BLOCK),
        "norm_quantize": fused,
        "norm_quantize_backward": rows,
        "swiglu_quantize": fused,
        "swiglu_quantize_backward": rows,
        "float8_gradient": (float8, float8, dtype),
        "odd_polynomial": (x.unsqueeze(0),),
        "momentum": ([x], [x], x.unsqueeze(0)),
        "argmax": (x,),
        "all_finite": (x,),
        "entropy_coding": (),
        "llama_step": (x.device, dtype, {}),
        "packed_linear": (packed, PackedFormat(_K, _BLOCK, _GRIDS["4 bits"], _GRIDS["4 bits"]), x.device, dtype, False),
    }
