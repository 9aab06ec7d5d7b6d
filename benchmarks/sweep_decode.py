"""Variants of a decoding step, timed in whole models: launch sizes of products, parts of attention, reading ahead.

    python benchmarks/sweep_decode.py --preset 800m --batch 1 --width W4A4

The variants take turns, `--rounds` times.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import common
import torch
import triton
from bench_decode import WIDTHS, WINDOW
from gpu_models import packed_llama, replay_seconds

from questlm.config import ModelConfig, QuantSpec
from questlm.config.presets import preset as shape_of
from questlm.inference import decoding
from questlm.models import KVCache
from questlm.ops.triton import decode
from questlm.ops.triton import packed_linear as packed
from questlm.ops.triton.packed_linear import LaidOut, Tensors, Vector

VECTORS = [
    Vector(4, 512, 4),
    Vector(8, 512, 4),
    Vector(4, 256, 1),
    Vector(2, 256, 1),
    Vector(8, 128, 1),
    Vector(2, 512, 4),
]
TENSORS = [
    Tensors(64, 128, 4, 4, True), Tensors(32, 128, 4, 4, False), Tensors(16, 128, 1, 5, False),
    Tensors(32, 256, 4, 3, False), Tensors(32, 256, 2, 4, False), Tensors(64, 256, 8, 3, True),
]  # fmt: skip


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="800m")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--width", default="W4A4", choices=sorted(WIDTHS))
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-prefetch", action="store_true", help="kernels do not bring weights into the L2 cache")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.no_prefetch:
        decode.prefetch = nothing
    device = torch.device("cuda")
    config = ModelConfig(**shape_of(given.preset)["model"], vocab_size=32000)
    w_bits, a_bits = WIDTHS[given.width]
    result: dict[str, Any] = {**common.header("sweep_decode", device, vars(given)), "rows": []}
    with torch.inference_mode():
        model = packed_llama(config, QuantSpec(weight_bits=w_bits, act_bits=a_bits), device)
        for name, launch, splits in variants(given.batch):
            try:
                with patch.object(packed, "launch_of", launch), patch.object(decoding, "splits_of", splits):
                    times = measure(model, config, given)
            except Exception as problem:
                print(f"FAILED {name}: {type(problem).__name__} {str(problem)[:150]}", flush=True)
                continue
            result["rows"].append({"variant": name, "seconds": common.spread(times)})
            print(f"{statistics.median(times) * 1e6:>8.1f} us  {name}", flush=True)
            if given.out:
                common.write(given.out, result)


@triton.jit
def nothing(at):  # type: ignore[no-untyped-def]
    """In place of `decode.prefetch`."""


Launch = Callable[[LaidOut, int], Vector | Tensors]
Splits = Callable[[int, int], int]


def variants(batch: int) -> list[tuple[str, Launch, Splits]]:
    """Name, launches and parts of attention of each variant."""
    chosen, splits = packed.launch_of, decoding.splits_of
    found: list[tuple[str, Launch, Splits]] = [("as chosen", chosen, splits)]
    found += [(f"{parts} parts of attention", chosen, lambda *_, parts=parts: parts) for parts in (1, 2, 4)]  # type: ignore[misc]
    sizes: list[Vector | Tensors] = [*VECTORS] if batch <= 4 else [*TENSORS]
    for size in sizes:
        found.append((str(tuple(size)), lambda w, tokens, size=size: size if w.bits else chosen(w, tokens), splits))  # type: ignore[misc]
        found.append((f"{tuple(size)} for short rows only", short(size, chosen), splits))
    return [*found, ("as chosen again", chosen, splits)]


def short(size: Vector | Tensors, chosen: Launch) -> Launch:
    """`size` for rows of at most 2,048 entries: in an 800m model all but those of the last product of a block."""
    return lambda w, tokens: size if w.bits and w.k <= 2048 else chosen(w, tokens)


def measure(model: Any, config: ModelConfig, given: argparse.Namespace) -> list[float]:
    """Seconds of a step, once a round."""
    device = torch.device("cuda")
    overlaps = torch.cuda.get_device_capability() >= (9, 0)
    cache, step = KVCache(config, given.batch, WINDOW, torch.bfloat16, device), decoding.DecodingStep(model, overlaps)
    ids = torch.zeros(given.batch, dtype=torch.int64, device=device)

    def run() -> None:
        cache._longest = 0
        ids.copy_(step.logits(ids, cache).argmax(-1))

    return replay_seconds(run, lambda: cache.lengths.fill_(given.context), 48, given.rounds)


if __name__ == "__main__":
    main()
