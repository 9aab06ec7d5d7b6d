"""The native CPU kernels against the reference, and against the time that moving their bytes would take.

    python benchmarks/bench_cpu_kernels.py --out benchmarks/results/cpu_kernels.json

The floor of a kernel is bytes read plus bytes written over the bandwidth of a float32 copy of the same matrix, timed
beside it into memory that is already there; the kernels allocate their results. Each time is the least of --repeats,
because other work on the machine only ever adds to it.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

from questlm.ops import cpu
from questlm.ops.reference.hadamard import masked_hadamard
from questlm.ops.reference.quantize import quantize
from questlm.quant import gaussian_grid

SIZES = [(2048, 256), (2048, 768), (4096, 1024)]
BLOCK_SIZE = 128
BITS = 4


def seconds(work: list[Callable[[], object]], repeats: int) -> list[float]:
    """Least seconds of each function; they take turns, so that a busy moment of the machine hits all alike."""
    times: list[list[float]] = [[] for _ in work]
    for repeat in range(repeats + 2):
        for function, found in zip(work, times, strict=True):
            start = time.perf_counter()
            function()
            if repeat >= 2:
                found.append(time.perf_counter() - start)
    return [min(found) for found in times]


def measure(rows: int, k: int, repeats: int) -> list[dict[str, object]]:
    """One record for each kernel at (rows, k)."""
    x, copy, grid = torch.randn(rows, k), torch.empty(rows, k), gaussian_grid(BITS)
    bound = 2 ** (BITS - 1)
    mask = cpu.quantize(x, grid, BLOCK_SIZE, bound)[2]
    native_q, reference_q, native_m, reference_m, copied = seconds(
        [
            lambda: cpu.quantize(x, grid, BLOCK_SIZE, bound),
            lambda: quantize(x, grid, BLOCK_SIZE, bound),
            lambda: cpu.masked_hadamard(x, mask, BLOCK_SIZE),
            lambda: masked_hadamard(x, mask, BLOCK_SIZE),
            lambda: copy.copy_(x),
        ],
        repeats,
    )
    bandwidth = 8 * rows * k / copied
    records: list[dict[str, object]] = []
    for name, native, reference, entry_bytes, row_bytes in [
        ("quantize with mask", native_q, reference_q, 4 + 1 + 1 / 8, 4),
        ("masked_hadamard", native_m, reference_m, 4 + 1 / 8 + 4, 0),
    ]:
        floor = rows * (k * entry_bytes + row_bytes) / bandwidth
        records.append(
            {
                "operation": name,
                "rows": rows,
                "k": k,
                "native_us": round(native * 1e6, 1),
                "reference_us": round(reference * 1e6, 1),
                "speedup": round(reference / native, 2),
                "copy_gb_per_s": round(bandwidth / 1e9, 1),
                "floor_us": round(floor * 1e6, 1),
                "share_of_floor": round(floor / native, 3),
            }
        )
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    if reason := cpu.unavailable():
        parser.error(reason)
    torch.set_num_threads(options.threads)
    records = [record for size in SIZES for record in measure(*size, options.repeats)]
    for r in records:
        print(
            f"{r['operation']:<20}{r['rows']:>6} x {r['k']:<6}native {r['native_us']:>8} us   reference "
            f"{r['reference_us']:>9} us   {r['speedup']:>6}x   {r['share_of_floor']:.0%} of the floor"
        )
    if options.out:
        header = {
            "machine": platform.machine(),
            "threads": options.threads,
            "torch": torch.__version__,
            "block_size": BLOCK_SIZE,
            "bits": BITS,
            "repeats": options.repeats,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({**header, "results": records}, indent=2) + "\n")


if __name__ == "__main__":
    main()
