"""Launch sizes of the products of packed weights: checks each kernel, then times many sizes beside bfloat16.

    python benchmarks/sweep_packed.py --out results/sweep.json

Time is the median replay of a CUDA graph of many calls on different weights, together far larger than the L2 cache,
divided by the calls. On a CPU everything runs once at small shapes under Triton's interpreter, which tests the script.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import common
import torch.nn.functional as F

from questlm import ops
from questlm.ops.reference.matmul import Operand, scaled_matmul
from questlm.ops.triton import packed_linear as packed
from questlm.ops.triton.packed_linear import Inputs, LaidOut, Tensors, Vector
from questlm.ops.triton.weight import TritonWeight
from questlm.quant import gaussian_grid

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
SHAPES = {
    "7b": [(12288, 4096), (22016, 4096), (4096, 11008)],
    "800m": [(6144, 2048), (11264, 2048), (2048, 2048), (2048, 5632)],
}
SMALL = {"small": [(48, 256)]}
WORKING_SET = 200 * 2**20
WIDTHS = [(4, 4), (1, 1), (2, 2), (1, 8)]


def main() -> None:
    """Compile, check, time, print, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--limit", type=float, default=150.0, help="seconds after which no more cases are begun")
    parser.add_argument("--parts", default="check,sweep,prefill", help="of these, or compile")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    began = time.perf_counter()
    parts, jobs = arguments.parts.split(","), list(all_jobs())
    if "prefill" in parts and "sweep" not in parts:
        prefill = attempt("prefill", prefill_times)
        common.write(arguments.out or Path("prefill.json"), {**common.header("prefill", DEVICE, {}), "rows": prefill})
        return
    if GPU and parts != ["check"]:
        ops.compile_ahead(lambda: [attempt("compile", job["warm"]) for job in jobs], DEVICE)
        torch.cuda.synchronize()
    print(f"{len(jobs)} variants compiled in {time.perf_counter() - began:.0f} s", flush=True)
    if "check" in parts:
        attempt("check", check)
    if "sweep" not in parts:
        return
    result: dict[str, Any] = {**common.header("sweep_packed", DEVICE, {}), "copy": copy_rate(), "rows": []}
    print(f"copy {result['copy'] / 1e12:.3f} TB/s", flush=True)
    result["dense"] = dense_times()
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for job in jobs:
        groups.setdefault(tuple(job["record"][name] for name in CASE), []).append(job)
    for group in groups.values():
        if time.perf_counter() - began > arguments.limit:
            print("no time left")
            break
        for job in group:
            found = attempt(str(job["record"]), job["time"])
            if found is not None:
                result["rows"].append({**job["record"], "us": round(found * 1e6, 3)})
        table(
            result,
            [
                row
                for row in result["rows"]
                if tuple(row[n] for n in CASE) == tuple(group[0]["record"][n] for n in CASE)
            ],
        )
        if arguments.out:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(result) + "\n", encoding="utf-8")
    for row in attempt("encode", encode_times) or []:
        print(row)
    if "prefill" in parts:
        attempt("prefill", prefill_times)
    print(f"{time.perf_counter() - began:.0f} s")


CASE = ("out", "k", "w", "a", "tokens")


def attempt(what: str, call: Callable[[], Any]) -> Any:
    """What `call` gives; where it fails, a line about it and None."""
    try:
        return call()
    except Exception as problem:
        print(f"FAILED {what}: {type(problem).__name__} {str(problem).splitlines()[-1][:160]}", flush=True)
        return None


def all_jobs() -> Iterator[dict[str, Any]]:
    """Every variant: what to compile, how to time it, and its record."""
    for w_bits, a_bits in WIDTHS:
        for shapes in (SHAPES if GPU else SMALL).values():
            for out, k in shapes:
                if (w_bits, a_bits) == (1, 8) and out not in (12288, 48):
                    continue
                for tokens in (1, 4, 8, 16):
                    if (tokens > 1 or w_bits == 2) and (out in (22016, 11264) or (out, k) == (2048, 2048)):
                        continue
                    if tokens in (4, 8) and (w_bits == 2 or a_bits == 8):
                        continue
                    for launch, overlaps in launches(w_bits, a_bits, out, k, tokens):
                        yield job(out, k, w_bits, a_bits, tokens, launch, overlaps)


def launches(w_bits: int, a_bits: int, out: int, k: int, tokens: int) -> Iterator[tuple[Vector | Tensors, bool]]:
    """Sizes worth trying."""
    bits = (w_bits, a_bits) == (1, 1)
    words = k * w_bits // 32
    sizes = [
        Vector(c, w, n) for c, w, n in ((2, 128, 1), (4, 128, 1), (8, 128, 1), (4, 256, 1), (4, 512, 4), (1, 128, 1))
    ]
    sizes += [Vector(8, 128, 4), Vector(2, 64, 1), Vector(1, 512, 4), Vector(2, 256, 2)]
    if tokens > 1:
        sizes = sizes[:2] + sizes[5:6] if bits or tokens == 4 else sizes[5:6]
    for size in sizes:
        padded = 1 << (min(words, size.words) - 1).bit_length()
        if size.words > 2 * padded or tokens * size.columns * size.words // size.num_warps > 8192:
            continue
        yield size, False
        if tokens == 1 and size in (Vector(2, 128, 1), Vector(4, 128, 1), Vector(4, 512, 4), Vector(1, 128, 1)) and GPU:
            yield size, True
    if not bits and tokens > 1:
        depth = k * w_bits // 8
        for columns, block, warps, stages, first in (
            (64, 128, 4, 4, True), (32, 128, 4, 4, False), (16, 256, 4, 3, False), (16, 128, 1, 5, False),
        ):  # fmt: skip
            if block <= depth:
                yield Tensors(columns, block, warps, stages, first), False


_weights: dict[tuple[int, ...], list[LaidOut]] = {}


def weights(out: int, k: int, w_bits: int, a_bits: int, count: int) -> list[LaidOut]:
    """Random matrices, laid out; those of one shape are kept until another is asked for."""
    key = (out, k, w_bits, a_bits)
    if key not in _weights:
        _weights.clear()
        weight, act = gaussian_grid(w_bits), gaussian_grid(a_bits)
        stored = torch.randint(256, (out, k * w_bits // 8), dtype=torch.uint8, device=DEVICE)
        first = packed.lay_out_matrix(
            {"codes": stored, "step": torch.rand(out, 1, device=DEVICE) + 0.5}, weight, act, k, DEVICE
        )
        low = first.words.low
        copies = [torch.randint(-(2**31), 2**31, low.shape, dtype=torch.int32, device=DEVICE) for _ in range(count - 1)]
        _weights[key] = [first, *(first._replace(words=first.words._replace(low=copy)) for copy in copies)]
    return _weights[key]


def job(
    out: int, k: int, w_bits: int, a_bits: int, tokens: int, launch: Vector | Tensors, overlaps: bool
) -> dict[str, Any]:
    """One variant."""
    size = out * k * w_bits // 8
    count = min(400, max(4, WORKING_SET // size)) if GPU else 2

    def inputs() -> tuple[list[LaidOut], Inputs]:
        found = weights(out, k, w_bits, a_bits, count)
        x = torch.randn(tokens, k, device=DEVICE).bfloat16()
        return found, packed.encode(x, packed.Encoding(k, gaussian_grid(a_bits), 128, found[0].bits), torch.bfloat16)

    def warm() -> None:
        act, weight = gaussian_grid(a_bits), gaussian_grid(w_bits)
        rows = {"codes": torch.zeros(1, k * w_bits // 8, dtype=torch.uint8), "step": torch.ones(1, 1)}
        small = packed.lay_out_matrix(rows, weight, act, k, DEVICE)
        # what is compiled depends on whether 16 divides the number of columns
        wide = small._replace(step=torch.empty(out, device=DEVICE), term=torch.empty(out, device=DEVICE))
        x = packed.encode(
            torch.randn(tokens, k, device=DEVICE).bfloat16(), packed.Encoding(k, act, 128, wide.bits), torch.bfloat16
        )
        packed.multiply(wide, x, torch.bfloat16, launch, overlaps)

    def timed() -> float:
        found, x = inputs()
        return seconds([lambda w=w: packed.multiply(w, x, torch.bfloat16, launch, overlaps) for w in found])

    kind = "tensor" if isinstance(launch, Tensors) else "bits" if (w_bits, a_bits) == (1, 1) else "bytes"
    record = {"out": out, "k": k, "w": w_bits, "a": a_bits, "tokens": tokens, "kernel": kind, "launch": list(launch),
              "pdl": overlaps, "bytes": size}  # fmt: skip
    return {"record": record, "warm": warm, "time": timed}


def seconds(calls: list[Callable[[], object]]) -> float:
    """Median seconds of a call."""
    if not GPU:
        calls[0]()
        return 1.0
    calls[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(8):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / len(calls))
    return sorted(times[1:])[3]


def copy_rate() -> float:
    """Bytes a second, read and written."""
    size = 2**28 if GPU else 2**16
    source, target = torch.ones(size, device=DEVICE), torch.empty(size, device=DEVICE)
    return 8 * size / seconds([lambda: target.copy_(source)] * 4)


def dense_times() -> dict[str, float]:
    """Microseconds of bfloat16 linear layers, by shape and tokens."""
    found = {}
    for out, k in all_shapes():
        count = max(3, WORKING_SET // (2 * out * k)) if GPU else 1
        many = [torch.randn(out, k, device=DEVICE).bfloat16() for _ in range(count)]
        for tokens in (1, 2, 4, 8, 16):
            x = torch.randn(tokens, k, device=DEVICE).bfloat16()
            found[f"{out}x{k}x{tokens}"] = seconds([partial(F.linear, x, w) for w in many]) * 1e6
    return found


def all_shapes() -> list[tuple[int, int]]:
    """Rows and columns of every matrix."""
    return [shape for shapes in (SHAPES if GPU else SMALL).values() for shape in shapes]


def encode_times() -> list[dict[str, Any]]:
    """Of the kernel that encodes inputs."""
    rows = []
    widths = (2048, 4096, 5632, 11008) if GPU else (256,)
    for k, (a_bits, bits), tokens in itertools.product(widths, ((4, 4), (1, 0)), (1, 8)):
        how = packed.Encoding(k, gaussian_grid(a_bits), 128, bits)
        many = [torch.randn(tokens, k, device=DEVICE).bfloat16() for _ in range(20)]
        for overlaps in (False, True) if GPU else (False,):
            calls = [partial(packed.encode, x, how, torch.bfloat16, overlaps=overlaps) for x in many]
            us = seconds(calls) * 1e6
            rows.append({"encode": k, "a": a_bits, "tokens": tokens, "pdl": overlaps, "us": round(us, 2)})
    return rows


def prefill_times(tokens: int = 4096) -> list[dict[str, Any]]:
    """Layers of many tokens, in microseconds: the whole layer, and its parts."""
    found = []
    for out, k in all_shapes():
        x = torch.randn(tokens if GPU else 20, k, device=DEVICE).bfloat16()
        dense = [torch.randn(out, k, device=DEVICE).bfloat16() for _ in range(4)]
        row: dict[str, Any] = {"out": out, "k": k, "bf16": seconds([partial(F.linear, x, w) for w in dense]) * 1e6}
        for bits in (4, 1):
            grid = gaussian_grid(bits)
            codes = torch.randint(256, (out, k * bits // 8), dtype=torch.uint8, device=DEVICE)
            tensors = {"codes": codes, "step": torch.rand(out, 1, device=DEVICE)}
            weight = TritonWeight(tensors, ops.PackedFormat(k, 128, grid, grid), DEVICE, torch.bfloat16)
            x8 = ops.encode(x, grid, 128, None, torch.bfloat16).operand
            calls: dict[str, Callable[[], object]] = {
                "layer": partial(weight.linear, x),
                "encode": partial(ops.encode, x, grid, 128, None, torch.bfloat16),
                "expand": partial(weight.operand, x8.data.dtype),
                "product": partial(ops.scaled_matmul, x8, weight.operand(x8.data.dtype), torch.bfloat16),
            }
            times = {name: round(seconds([call] * 4) * 1e6, 1) for name, call in calls.items()}
            row[f"W{bits}A{bits}"] = {**times, "speed": round(row["bf16"] / times["layer"], 2)}
        print(f"prefill {tokens} x {out}x{k}: {row}", flush=True)
        found.append(row)
    return found


def check() -> None:
    """Every kernel against the product of the reference, on fresh random inputs; a line for each case."""
    cases: list[tuple[int | str, int | str | None, int]] = [
        (w, a, m) for w, a in ((4, 4), (1, 1), (1, 4), (1, 8), (2, 2), (3, 3), (8, 8), ("ternary", 8), (4, 8), (6, 5))
        for m in (1, 3)
    ]  # fmt: skip
    cases += [(4, 4, 16), (2, 2, 16), (1, 8, 7), (8, 8, 9)]
    layers = [(w, None, m) for w in (1, 2, 3, 4, "ternary", 8, None) for m in ((1, 20, 100) if GPU else (3,))]
    layers += [
        (w, a, m)
        for w, a in ((4, 4), (1, 1), (3, 3), (8, 8), (2, 8), ("ternary", 8))
        for m in ((1, 40, 300) if GPU else (3,))
    ]
    for out, k in ((112, 640), (48, 1792)) if GPU else ((16, 256),):
        for case in cases:
            print(attempt(f"check {case}", partial(check_codes, *case, out, k)), end=" ", flush=True)
        for case in layers:
            print(attempt(f"check layer {case}", partial(check_layer, *case, out, k)), end=" ", flush=True)
        print(f"({out}x{k})", flush=True)


def check_codes(w_bits: Any, a_bits: Any, tokens: int, out: int, k: int) -> str:
    """Launches of the products of codes."""
    weight, act = gaussian_grid(w_bits), gaussian_grid(a_bits)
    codes, step, _ = ops.quantize(torch.randn(out, k, device=DEVICE), weight, 1)
    x = torch.randn(tokens, k, device=DEVICE).bfloat16()
    laid = packed.lay_out_matrix({"codes": ops.pack(codes, weight.levels), "step": step}, weight, act, k, DEVICE)
    with ops.using_backend("reference"):
        x_codes, x_step, _ = ops.quantize(x.cpu(), act, 128)
    exact = scaled_matmul(
        Operand(x_codes, act, x_step.double()), Operand(codes.cpu(), weight, step.cpu().double()), torch.float64
    )
    tried: list[Vector | Tensors] = [Vector(4, 128, 1), Vector(2, 64, 2)]
    if laid.bits and laid.words.high is None:
        tried += [Tensors(64, 64, 4, 3, True), Tensors(16, 64, 2, 3, False)]
    worst = 0.0
    for launch in tried:
        for overlaps in (False, True) if GPU and isinstance(launch, Vector) else (False,):
            how = packed.Encoding(k, act, 128, laid.bits)
            found = packed.encode(x, how, torch.bfloat16, overlaps=overlaps)
            y = packed.multiply(laid, found, torch.float32, launch, overlaps)
            error = float((y.cpu().double() - exact).norm() / exact.norm())
            worst = max(worst, error if error == error else 9.0)
            if not error < 1e-5:
                print(f"error {error:.1e}: W{w_bits}A{a_bits} {tokens} {out}x{k} {launch} {overlaps}", flush=True)
    return f"W{w_bits}A{a_bits}m{tokens} {worst:.0e}"


def check_layer(w_bits: Any, a_bits: Any, tokens: int, out: int, k: int) -> str:
    """A whole layer, as `ops.packed_linear` runs it, in bfloat16, beside the reference in float32."""
    x = torch.randn(tokens, k, device=DEVICE).bfloat16()
    if w_bits is None:
        codes = torch.randint(-127, 128, (out, k), dtype=torch.int8, device=DEVICE)
        tensors, form = {"codes": codes, "scale": torch.rand(out, 1, device=DEVICE)}, ops.PackedFormat(k, 1, None, None)
    else:
        weight = gaussian_grid(w_bits)
        codes, step, _ = ops.quantize(torch.randn(out, k, device=DEVICE), weight, 1)
        tensors = {"codes": ops.pack(codes, weight.levels), "step": step}
        form = ops.PackedFormat(k, 128, weight, None if a_bits is None else gaussian_grid(a_bits))
    with ops.using_backend("triton"):
        mine = ops.packed_linear(x, ops.prepack(tensors, form, DEVICE, torch.bfloat16)).float().cpu()
    with ops.using_backend("reference"):
        own = {name: tensor.cpu() for name, tensor in tensors.items()}
        exact = ops.packed_linear(x.cpu().float(), ops.prepack(own, form, torch.device("cpu"), torch.float32))
    error = float((mine - exact).norm() / exact.norm())
    return f"layer W{w_bits}A{a_bits or 16}m{tokens} {error:.0e}"


def table(result: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """The best variants of a case, beside bfloat16."""
    if not rows:
        return
    out, k, w_bits, a_bits, tokens = (rows[0][name] for name in CASE)
    dense = result["dense"].get(f"{out}x{k}x{tokens}", float("nan"))
    rows = sorted(rows, key=lambda row: row["us"])
    shown = []
    for kind in sorted({row["kernel"] + (" pdl" if row["pdl"] else "") for row in rows}):
        best = [row for row in rows if row["kernel"] + (" pdl" if row["pdl"] else "") == kind][:4]
        shown.append(
            f"{kind}: " + " ".join(f"{row['us']:.2f}={'/'.join(str(n) for n in row['launch'])}" for row in best)
        )
    share = rows[0]["bytes"] / rows[0]["us"] * 1e6 / result["copy"]
    print(
        f"{out}x{k} W{w_bits}A{a_bits} m{tokens} bf16 {dense:.1f} x{dense / rows[0]['us']:.2f} {share:.0%} | "
        + " | ".join(shown),
        flush=True,
    )


if __name__ == "__main__":
    main()
