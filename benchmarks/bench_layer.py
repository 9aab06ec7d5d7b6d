"""Linear layers on a GPU, packed beside bfloat16: a few tokens and prompts, at the shapes of 7B and 800m models.

    python benchmarks/bench_layer.py --out layers.json

The packed layer is all of it: rotate and round the input, multiply, apply steps. The bfloat16 layer is the faster of
cuBLAS (`F.linear`) and, for the token counts of `--autotune`, of what `torch.compile` finds when it searches. Time is
that of `sweep_packed.seconds`: median replay of a CUDA graph of calls on different weights. The share is the packed
bytes a second over the speed of a copy in the same run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import common
import torch
import torch.nn.functional as F
from sweep_packed import DEVICE, GPU, SHAPES, SMALL, WORKING_SET, attempt, copy_rate, seconds, weights
from torch import Tensor

from questlm import ops
from questlm.ops.triton import packed_linear as packed
from questlm.ops.triton.weight import FEW_ROWS, TritonWeight
from questlm.quant import gaussian_grid

WIDTHS = {"W4A4": (4, 4), "W2A2": (2, 2), "W1A1": (1, 1)}


def main() -> None:
    """Measure, print, write after each shape."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", default="1,4,8,16,4096" if GPU else "1,20")
    parser.add_argument("--widths", default=",".join(WIDTHS))
    parser.add_argument("--autotune", default="1,4096", help="token counts for which torch.compile searches, too")
    parser.add_argument("--limit", type=float, default=100.0, help="seconds after which no more shapes are begun")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    began = time.perf_counter()
    torch.manual_seed(0)
    result: dict[str, Any] = {**common.header("layer", DEVICE, vars(given)), "copy": copy_rate(), "rows": []}
    for group, shapes in (SHAPES if GPU else SMALL).items():
        for out, k in shapes:
            if time.perf_counter() - began > given.limit:
                print(f"no time left for {out} x {k}", flush=True)
                continue
            for tokens in map(int, given.tokens.split(",")):
                row = attempt(f"{out} x {k}, {tokens}", partial(measure, out, k, tokens, given, result["copy"]))
                result["rows"] += [] if row is None else [{"group": group, **row}]
            if given.out:
                common.write(given.out, result)


def measure(out: int, k: int, tokens: int, given: argparse.Namespace, copy: float) -> dict[str, Any]:
    """Microseconds of one shape and number of tokens, by side."""
    x = torch.randn(tokens, k, device=DEVICE).bfloat16()
    count = max(3, WORKING_SET // (2 * out * k)) if GPU and tokens <= FEW_ROWS else 3
    dense = [torch.randn(out, k, device=DEVICE).bfloat16() * 0.02 for _ in range(count)]
    row: dict[str, Any] = {"out": out, "k": k, "tokens": tokens, "cublas": 1e6 * seconds(calls_of(F.linear, x, dense))}
    if GPU and str(tokens) in given.autotune.split(","):
        searched = torch.compile(linear, mode="max-autotune-no-cudagraphs", dynamic=False)
        found = attempt("torch.compile", lambda: 1e6 * seconds(calls_of(searched, x, dense)))
        row["compiled"] = found
    base = min(time for side in ("cublas", "compiled") if (time := row.get(side)) is not None)
    for name in given.widths.split(","):
        us = 1e6 * (few if tokens <= FEW_ROWS else many)(out, k, x, *WIDTHS[name])
        share = out * k * WIDTHS[name][0] / 8 / (us / 1e6) / copy
        row[name] = {"us": us, "speed": base / us, "share_of_copy": share}
    print({key: found if isinstance(found, int) else rounded(found) for key, found in row.items()}, flush=True)
    return row


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """What torch.compile compiles."""
    return F.linear(x, weight)


def rounded(found: Any) -> Any:
    """A number or numbers with three digits, for people."""
    if isinstance(found, dict):
        return {name: rounded(each) for name, each in found.items()}
    return None if found is None else float(f"{found:.3g}")


def calls_of(function: Callable[..., object], x: Tensor, matrices: list[Tensor]) -> list[Callable[[], object]]:
    """A call for each matrix."""
    return [partial(function, x, matrix) for matrix in matrices]


def few(out: int, k: int, x: Tensor, w_bits: int, a_bits: int) -> float:
    """Seconds of a packed layer with few rows: the two kernels, overlapping where the GPU can."""
    size = out * k * w_bits // 8
    matrices = weights(out, k, w_bits, a_bits, min(400, max(4, WORKING_SET // size)) if GPU else 2)
    how = packed.Encoding(k, gaussian_grid(a_bits), 128, matrices[0].bits)
    overlaps = GPU and torch.cuda.get_device_capability() >= (9, 0)

    def layer(matrix: packed.LaidOut) -> Tensor:
        codes = packed.encode(x, how, torch.bfloat16, overlaps=overlaps)
        return packed.multiply(matrix, codes, torch.bfloat16, overlaps=overlaps)

    return seconds([partial(layer, matrix) for matrix in matrices])


def many(out: int, k: int, x: Tensor, w_bits: int, a_bits: int) -> float:
    """Seconds of a packed layer with many rows."""
    weight, act = gaussian_grid(w_bits), gaussian_grid(a_bits)
    codes = torch.randint(256, (out, k * w_bits // 8), dtype=torch.uint8, device=DEVICE)
    tensors = {"codes": codes, "step": torch.rand(out, 1, device=DEVICE)}
    with ops.using_backend("auto" if GPU else "triton"):
        layer = TritonWeight(tensors, ops.PackedFormat(k, 128, weight, act), DEVICE, torch.bfloat16)
        return seconds([partial(layer.linear, x)] * 4)


if __name__ == "__main__":
    main()
