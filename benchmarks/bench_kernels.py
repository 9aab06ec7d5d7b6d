"""The Triton kernels against the time that moving their bytes would take, and against plain and compiled PyTorch.

Time is the median replay of a CUDA graph of many calls, divided by the calls, so that launching counts for nothing. The
calls work on different buffers, together larger than the L2 cache, as in a training step. The floor of a kernel is the
bytes of the tensors that it takes and gives, over the bandwidth of a copy that is measured the same way beside it.

Then the matrix products: rates of bf16 and of float8 with a scale for each row, and the error of either against the
exact product (whole numbers in float64), beside that of rounding the exact product to bf16, which any of them does.

    python benchmarks/bench_kernels.py --warm 12

On a CPU everything runs once on small shapes, kernels under Triton's interpreter: that tests the script, and no time in
it means anything.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import common
from torch import Tensor
from torch.utils._pytree import tree_leaves

from questlm import ops
from questlm.ops import Grid

PRESETS = {"30m": (32768, 640, 1792), "100m": (32768, 1024, 2816), "800m": (16384, 2048, 5632)}
"""Rows (tokens of a micro-batch), width of the residual stream, width inside the SwiGLU."""

SMALL = {"small": (32, 128, 256)}
BLOCK = 128
LEVELS, STEP, BOUND = 16, 0.3352, 8.0  # 4 bits: step in units of the rms, bound of the mask in units of the step
EPS = 1e-5
WORKING_SET = 256 * 2**20  # bytes of buffers that a graph's calls take in turns; an H100's L2 cache has 50 MB
MOST_CALLS = 64
REPLAYS = 7
PRODUCT_ROWS = 2048  # of the products whose error is measured


class Case(NamedTuple):
    """One operation at one shape: `compute` takes what `draw` gives, on whichever backend is asked for."""

    name: str
    rows: int
    k: int
    draw: Callable[[], tuple[Tensor, ...]]
    compute: Callable[..., Any]
    operations: int  # of the definition, an entry: 2 x 128 of the rotation, and those of norm, activation, rounding


# -- cases -------------------------------------------------------------------------------------------------------------


def cases(rows: int, hidden: int, wide: int, device: torch.device) -> Iterator[Case]:
    """Every kernel at the shapes that a model of these widths gives it."""
    half, single = torch.bfloat16, torch.float32
    grid, rotation = Grid(LEVELS, STEP), 2 * BLOCK
    gain = torch.rand(hidden, device=device) + 0.5

    def normal(n: int, k: int, dtype: torch.dtype = half) -> Tensor:
        return torch.randn(n, k, device=device, dtype=dtype)

    def bits(n: int, k: int) -> Tensor:
        return torch.randint(256, (n, k // 8), device=device, dtype=torch.uint8)

    def encode(x: Tensor) -> Any:
        return ops.encode(x, grid, BLOCK, BOUND, half)

    def rotate_back(gradient: Tensor, mask: Tensor) -> Any:
        return ops.masked_hadamard(gradient, mask, BLOCK, gradient.dtype)

    def norm(x: Tensor, delta: Tensor | None = None) -> Any:
        return ops.norm_encode(x, delta, gain, EPS, grid, BLOCK, BOUND, half, True)

    def norm_backward(gradient: Tensor, mask: Tensor, unit: Tensor, rstd: Tensor, residual: Tensor) -> Any:
        return ops.norm_encode_backward(gradient, mask, unit, rstd, gain, BLOCK, residual, single, half)

    def norm_gradients() -> tuple[Tensor, ...]:
        rstd = torch.rand(rows, 1, device=device) + 0.5
        return normal(rows, hidden), bits(rows, hidden), normal(rows, hidden), rstd, normal(rows, hidden, single)

    def swiglu(gate: Tensor, up: Tensor) -> Any:
        return ops.swiglu_encode(gate, up, grid, BLOCK, BOUND, half)

    def swiglu_backward(gradient: Tensor, mask: Tensor, gate: Tensor, up: Tensor) -> Any:
        return ops.swiglu_encode_backward(gradient, mask, gate, up, BLOCK)

    def swiglu_gradients() -> tuple[Tensor, ...]:
        return normal(rows, wide), bits(rows, wide), normal(rows, wide), normal(rows, wide)

    def two(k: int, first: torch.dtype) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: (normal(rows, k, first), normal(rows, k))

    def with_bits(n: int, k: int, dtype: torch.dtype = half) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: (normal(n, k, dtype), bits(n, k))

    def one(n: int, k: int, dtype: torch.dtype = half) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: (normal(n, k, dtype),)

    for k in (hidden, wide):
        yield Case("quantize", rows, k, one(rows, k), encode, rotation + 8)
        yield Case("masked_hadamard", rows, k, with_bits(rows, k), rotate_back, rotation + 1)
    weight, its_gradient = one(wide, hidden, single), with_bits(wide, hidden, single)
    yield Case("quantize, weight", wide, hidden, weight, encode, rotation + 8)
    yield Case("masked_hadamard, weight", wide, hidden, its_gradient, rotate_back, rotation + 1)
    yield Case("norm_quantize", rows, hidden, one(rows, hidden, single), norm, rotation + 12)
    yield Case("norm_quantize, residual", rows, hidden, two(hidden, single), norm, rotation + 13)
    yield Case("norm_quantize_backward", rows, hidden, norm_gradients, norm_backward, rotation + 11)
    yield Case("swiglu_quantize", rows, wide, two(wide, half), swiglu, rotation + 13)
    yield Case("swiglu_quantize_backward", rows, wide, swiglu_gradients, swiglu_backward, rotation + 14)


# -- time --------------------------------------------------------------------------------------------------------------


def seconds_of(function: Callable[..., Any], sets: Sequence[tuple[Tensor, ...]]) -> dict[str, Any]:
    """Seconds of a call of `function` on one of `sets`, which are taken in turns: `common.spread` over replays."""
    kept = [function(*given) for given in sets[:1]]  # compiles
    if not sets[0][0].is_cuda:
        started = time.perf_counter()
        kept = [function(*given) for given in sets]
        return common.spread([(time.perf_counter() - started) / len(sets)])
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        function(*sets[0])
    torch.cuda.current_stream().wait_stream(aside)
    del kept
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [function(*given) for given in sets]  # kept, so that each call writes memory of its own
    times = []
    for _ in range(REPLAYS + 1):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / len(sets))
    del results
    return common.spread(times[1:])


def buffers(draw: Callable[[], tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """As many draws as fill `WORKING_SET`, at least four."""
    first = draw()
    calls = min(MOST_CALLS, max(4, -(-WORKING_SET // _bytes(first))))
    return [first, *(draw() for _ in range(calls - 1))] if first[0].is_cuda else [first]


def _bytes(*given: Any) -> int:
    """Of all different tensors in nested tuples."""
    return sum(
        {tensor.data_ptr(): tensor.nbytes for tensor in tree_leaves(given) if isinstance(tensor, Tensor)}.values()
    )


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of copies of 256 MiB."""
    size = 2**27 if device.type == "cuda" else 2**18
    pairs = [
        (torch.zeros(size, dtype=torch.bfloat16, device=device), torch.empty(size, dtype=torch.bfloat16, device=device))
    ]
    pairs *= 8
    seconds = seconds_of(lambda source, target: target.copy_(source), pairs)["median"]
    return 2 * pairs[0][0].nbytes / seconds


def measure(case: Case, bandwidth: float, compiling: bool) -> dict[str, Any]:
    """The record of one case."""
    sets = buffers(case.draw)
    with ops.using_backend("triton"):
        moved = _bytes(sets[0], case.compute(*sets[0]))
        kernel = seconds_of(case.compute, sets)
    with ops.using_backend("reference"):
        plain, compiled = seconds_of(case.compute, sets), None
        if compiling:
            torch._dynamo.reset()
            compiled = seconds_of(torch.compile(case.compute, dynamic=False), sets)
    del sets
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return {
        "kernel": case.name,
        "rows": case.rows,
        "k": case.k,
        "bytes": moved,
        "operations": case.operations * case.rows * case.k,
        "seconds": kernel,
        "floor_seconds": moved / bandwidth,
        "share_of_floor": round(moved / bandwidth / kernel["median"], 3),
        "plain_seconds": plain,
        "compiled_seconds": compiled,
        "over_plain": round(plain["median"] / kernel["median"], 2),
        "over_compiled": round(compiled["median"] / kernel["median"], 2) if compiled else None,
    }


def _warm(preset: str, index: int, compiling: bool) -> None:
    _quiet()
    case = list(cases(*PRESETS[preset], torch.device("cuda")))[index]
    given = case.draw()
    with ops.using_backend("triton"):
        case.compute(*given)
    if compiling:
        with ops.using_backend("reference"):
            torch.compile(case.compute, dynamic=False)(*given)
    torch.cuda.synchronize()


# -- matrix products ---------------------------------------------------------------------------------------------------


def products(presets: dict[str, tuple[int, int, int]], device: torch.device) -> list[dict[str, Any]]:
    """Rates of the products of a training step: forward in bf16 and float8, both of the backward pass in bf16."""
    shapes = {
        (rows, out, k)
        for rows, hidden, wide in presets.values()
        for out, k in ((hidden, hidden), (wide, hidden), (hidden, wide))
    }
    return [_product(rows, out, k, device) for rows, out, k in sorted(shapes)]


def _product(rows: int, out: int, k: int, device: torch.device) -> dict[str, Any]:
    x, w, xs, ws = _factors(rows, out, k, device)
    xb, wb, dy = x.bfloat16(), w.bfloat16(), torch.randn(rows, out, device=device, dtype=torch.bfloat16)
    operations = 2 * rows * out * k
    timed: dict[str, Callable[[], Tensor]] = {
        "bf16 forward": lambda: xb @ wb.T,
        "bf16 input gradient": lambda: dy @ wb,
        "bf16 weight gradient": lambda: dy.T @ xb,
    }
    if device.type == "cuda":
        from questlm.ops.triton import operators

        x8, w8 = x.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn)
        timed["bf16 weight gradient, float32 out"] = lambda: torch.mm(dy.T, xb, out_dtype=torch.float32)
        codes = [torch.randint(-128, 128, (n, k), dtype=torch.int8, device=device) for n in (rows, out)]
        sums = [each.sum(-1, dtype=torch.int32) for each in codes]
        timed["int8 forward"] = lambda: operators.int8_matmul(*codes, xs, ws.T, *sums, torch.bfloat16)
        for fast in (True, False):
            name = f"float8 forward, {'fast' if fast else 'full'} accumulation"
            timed[name] = partial(_float8, x8, w8, xs, ws, fast)
    measured = {}
    for name, function in timed.items():
        seconds = seconds_of(_ignoring_inputs(function), [(xb,)] * 10)
        measured[name] = {"seconds": seconds, "tflops": round(operations / seconds["median"] / 1e12, 1)}
    moved = {
        "bf16 forward": 2 * (rows * k + out * k + rows * out),
        "float8 forward": rows * k + out * k + 2 * rows * out,
    }
    return {"rows": rows, "out": out, "k": k, "operations": operations, "bytes": moved, "measured": measured}


def _ignoring_inputs(function: Callable[[], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda _: function()


def product_errors(widths: list[int], device: torch.device) -> list[dict[str, Any]]:
    """Relative error (Frobenius norm) of 4-bit products, all returned in bf16, for each K."""
    return [_product_error(k, device) for k in widths]


def _product_error(k: int, device: torch.device) -> dict[str, Any]:
    rows = PRODUCT_ROWS if device.type == "cuda" else 64
    x, w, xs, ws = _factors(rows, rows, k, device)
    whole = (2 * x).double() @ (2 * w).double().T / 4  # odd whole numbers: every sum is exact
    exact = whole * xs.double() * ws.double()

    def error(y: Tensor) -> float:
        return float((y.double() - exact).norm() / exact.norm())

    errors = {
        "exact, rounded to bf16": error(exact.bfloat16()),
        "bf16, dequantised values": error((x * xs).bfloat16() @ (w * ws.T).bfloat16().T),
        "bf16, levels, then scaled in float32": error(((x.bfloat16() @ w.bfloat16().T).float() * xs * ws).bfloat16()),
    }
    if device.type == "cuda":
        x8, w8 = x.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn)
        errors["float8, fast accumulation"] = error(_float8(x8, w8, xs, ws, True))
        errors["float8, full accumulation"] = error(_float8(x8, w8, xs, ws, False))
    return {"k": k, "rows": rows, "relative_error": errors}


def _factors(rows: int, out: int, k: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """4-bit levels (half-integers up to 7.5) of Gaussian rows, (rows, k), (out, k); scales (rows, 1), (1, out)."""

    def levels(n: int) -> Tensor:
        return (torch.round(torch.randn(n, k, device=device) / STEP + 0.5) - 0.5).clamp(-7.5, 7.5)

    scales = torch.rand(rows, 1, device=device) + 0.5, torch.rand(1, out, device=device) + 0.5
    return levels(rows), levels(out), *scales


def _float8(x: Tensor, w: Tensor, xs: Tensor, ws: Tensor, fast: bool) -> Tensor:
    return torch._scaled_mm(x, w.T, xs, ws, out_dtype=torch.bfloat16, use_fast_accum=fast)


# -- all of it ---------------------------------------------------------------------------------------------------------


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", default=",".join(PRESETS))
    parser.add_argument("--compiled", default="on", choices=["on", "off"], help="time a compiled reference, too")
    parser.add_argument("--warm", type=int, default=0, help="processes that fill the compilers' caches first (CUDA)")
    parser.add_argument("--out", type=Path, help="JSON file to write [default: in benchmarks/results]")
    arguments = parser.parse_args()
    _quiet()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    presets = {name: PRESETS[name] for name in arguments.presets.split(",")} if device.type == "cuda" else SMALL
    compiling = arguments.compiled == "on"
    torch.manual_seed(0)
    if arguments.warm and device.type == "cuda":
        count = len(list(cases(*next(iter(presets.values())), device)))
        jobs = [(name, index, compiling) for name in presets for index in range(count)]
        common.fill_caches(_warm, jobs, arguments.warm)
    bandwidth = copy_bandwidth(device)
    print(f"copy: {bandwidth / 1e12:.3f} TB/s", flush=True)
    records = []
    for name, shape in presets.items():
        for case in cases(*shape, device):
            records.append({"preset": name, **measure(case, bandwidth, compiling)})
            _print_kernel(records[-1])
    rates = products(presets, device)
    for record in rates:
        _print_product(record)
    widths = [640, 1024, 1792, 2048, 2816, 5632] if device.type == "cuda" else [256]
    errors = product_errors(widths, device)
    for record in errors:
        print(f"K {record['k']:>5}: " + "   ".join(f"{n} {e:.2e}" for n, e in record["relative_error"].items()))
    settings = {
        "block_size": BLOCK, "levels": LEVELS, "working_set_bytes": WORKING_SET, "replays": REPLAYS,
        "presets": {name: list(shape) for name, shape in presets.items()}, "kernels": _where(device),
    }  # fmt: skip
    result = {
        **common.header("kernels", device, settings),
        "copy_bytes_per_second": bandwidth,
        "kernels": records,
        "products": rates,
        "product_errors": errors,
    }
    common.write(arguments.out or common.RESULTS / f"kernels-{common.device_slug(device)}.json", result)


def _print_kernel(r: dict[str, Any]) -> None:
    times = [
        r[name]["median"] * 1e6 if r[name] else float("nan")
        for name in ("seconds", "plain_seconds", "compiled_seconds")
    ]
    print(
        f"{r['preset']:<6}{r['kernel']:<26}{r['rows']:>6} x {r['k']:<5}{times[0]:>9.1f} us{r['share_of_floor']:>6.0%}"
        f" of the floor   plain {times[1]:>9.1f}   compiled {times[2]:>9.1f}",
        flush=True,
    )


def _print_product(r: dict[str, Any]) -> None:
    rates = "   ".join(f"{name} {found['tflops']:.0f}" for name, found in r["measured"].items())
    print(f"{r['rows']} x {r['k']} -> {r['out']}, TFLOP/s: {rates}", flush=True)


def _where(device: torch.device) -> str:
    return "on the GPU" if device.type == "cuda" else "under Triton's interpreter"


def _quiet() -> None:
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")


if __name__ == "__main__":
    main()
