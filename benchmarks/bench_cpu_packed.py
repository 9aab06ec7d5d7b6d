"""Native products of packed weights on a CPU: every linear layer of a model, at one token and at many.

    python benchmarks/bench_cpu_packed.py --out benchmarks/results/cpu_packed.json
    python benchmarks/bench_cpu_packed.py --cpu avx2 --formats 4:4 1:1

Each format is given as weight bits : input bits, 16 for inputs that are not rounded. For one token the result is tokens
per second of the linear layers alone (transform, quantisation, product, scaling; no attention, no head), and the bytes
of weights a second, as a share of what this machine reads from memory, measured in the same rounds. For many tokens it
is multiplications and additions a second. Formats take turns, round by round; the best of the rounds is what the
machine can do, as other work only ever adds to a time, and the spread says how quiet it was. With --threads 1 processor
time is counted, which a busy machine adds less to.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import header, spread, write

from questlm.config import ModelConfig, preset
from questlm.grid import packed_width
from questlm.ops import PackedFormat
from questlm.ops.cpu import native
from questlm.ops.cpu.linear import NativeWeight
from questlm.quant import gaussian_grid

FORMATS = ["4:4", "3:3", "2:2", "ternary:ternary", "1:1", "1:4", "8:8", "4:8", "4:16", "2:16", "1:16"]
BLOCK_SIZE = 128
READ_BYTES = 2**28


def bits_of(word: str) -> int | str:
    return word if word == "ternary" else int(word)


def random_weight(out: int, k: int, format: str) -> NativeWeight:
    weight, act = map(bits_of, format.split(":"))
    grid = gaussian_grid(weight)
    codes = torch.randint(0, 243 if grid.levels == 3 else 256, (out, packed_width(k, grid.levels)), dtype=torch.uint8)
    tensors = {"codes": codes, "step": torch.rand(out, 1) + 0.5}
    packed = PackedFormat(k, BLOCK_SIZE, grid, None if act == 16 else gaussian_grid(act))
    return NativeWeight(tensors, packed, torch.device("cpu"), torch.float32)


def shapes_of(name: str) -> tuple[list[tuple[int, int]], int]:
    """(out, in) of the linear layers of a block, and the number of blocks."""
    model = ModelConfig(**preset(name)["model"])
    width, hidden, mlp = model.heads * model.head_width, model.hidden, model.mlp_width
    attention = [(width, hidden)] * 3 + [(hidden, width)]
    return [*attention, (mlp, hidden), (mlp, hidden), (hidden, mlp)], model.layers


def seconds(work: Callable[[], object]) -> float:
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    work()
    return clock() - start


def rounds_of(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each job, which take turns; the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name, job in jobs.items():
            found = seconds(job)
            if number:
                times[name].append(found)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    parser.add_argument("--preset", default="800m")
    parser.add_argument("--formats", nargs="+", default=FORMATS)
    parser.add_argument("--tokens", type=int, default=512, help="of a prompt")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu", help="an instruction set, as QUESTLM_CPU names them")
    options = parser.parse_args()
    if reason := native.unavailable():
        parser.error(reason)
    if options.cpu:
        native.use_instruction_set(options.cpu)
    torch.set_num_threads(options.threads)
    shapes, layers = shapes_of(options.preset)
    multiplications = sum(out * k for out, k in shapes)
    memory = torch.ones(READ_BYTES // 8, dtype=torch.int64)
    results: list[dict[str, Any]] = []
    for format in options.formats:
        # As many blocks as the model has: they do not fit the cache, as those of the model do not.
        blocks = [[random_weight(out, k, format) for out, k in shapes] for _ in range(layers)]
        one = {k: torch.randn(1, k) for _, k in shapes}
        many = {k: torch.randn(options.tokens, k) for _, k in shapes}
        weights = [weight for block in blocks for weight in block]

        def decode(weights: list[NativeWeight] = weights, one: dict[int, torch.Tensor] = one) -> None:
            for weight in weights:
                weight.linear(one[weight.format.in_features])

        def prefill(block: list[NativeWeight] = blocks[0], many: dict[int, torch.Tensor] = many) -> None:
            for weight in block:
                weight.linear(many[weight.format.in_features])

        times = rounds_of({"read": lambda: native.read(memory), "decode": decode, "prefill": prefill}, options.rounds)
        read, token, prompt = (min(times[name]) for name in ("read", "decode", "prefill"))
        size = sum(weight.nbytes for weight in weights)
        bandwidth = READ_BYTES / read
        results.append(
            {
                "format": format,
                "weight_bytes": size,
                "decode_tokens_per_s": round(1 / token, 1),
                "decode_gb_per_s": round(size / token / 1e9, 2),
                "read_gb_per_s": round(bandwidth / 1e9, 2),
                "share_of_read_bandwidth": round(size / token / bandwidth, 3),
                "prefill_tokens_per_s": round(options.tokens / (prompt * layers), 1),
                "prefill_gop_per_s": round(2 * multiplications * options.tokens / prompt / 1e9, 1),
                "seconds": {name: spread(found) for name, found in times.items()},
            }
        )
        r = results[-1]
        print(
            f"{format:<16} one token {r['decode_tokens_per_s']:>7} tok/s {r['decode_gb_per_s']:>6} GB/s "
            f"({r['share_of_read_bandwidth']:.0%} of {r['read_gb_per_s']})   {options.tokens} tokens "
            f"{r['prefill_tokens_per_s']:>7} tok/s {r['prefill_gop_per_s']:>7} GOP/s",
            flush=True,
        )
    if options.out:
        about = {"instruction_set": native.instruction_set(), "load_average": list(os.getloadavg())}
        write(options.out, header("cpu_packed", torch.device("cpu"), vars(options)) | about | {"results": results})


if __name__ == "__main__":
    main()
