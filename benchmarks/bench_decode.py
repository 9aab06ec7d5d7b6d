"""Whole models on a GPU, decoding: packed weights beside the same Llama in bfloat16, both recorded as CUDA graphs.

    python benchmarks/bench_decode.py --presets 800m,100m,30m --batches 1,2,4,8,16

A step is everything from token ids to the next token ids: embedding, blocks, head, and the choice of the likeliest
token. Each round replays it for `--steps` tokens behind a context of `--context` tokens.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import common
import torch
from gpu_models import DenseDecoder, packed_llama, replay_seconds
from torch import Tensor

from questlm.config import ModelConfig, QuantSpec
from questlm.config.presets import preset as shape_of
from questlm.inference.build import resident_bytes
from questlm.inference.decoding import DecodingStep
from questlm.models import KVCache

WINDOW = 128  # tokens that the caches hold; the bfloat16 model attends to all of them
WIDTHS = {"W4A4": (4, 4), "W2A2": (2, 2), "W1A1": (1, 1)}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--presets", default="800m,100m,30m")
    parser.add_argument("--batches", default="1,2,4,8,16")
    parser.add_argument("--widths", default=",".join(WIDTHS))
    parser.add_argument("--modes", default="default,max-autotune-no-cudagraphs", help="of torch.compile, for BF16")
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm", action="store_true", help="only fill the compilers' caches")
    parser.add_argument("--limit", type=float, default=400.0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = torch.device("cuda")
    began = time.perf_counter()
    if arguments.warm:
        arguments.steps, arguments.rounds = 2, 1
    result: dict[str, Any] = {**common.header("decode", device, vars(arguments)), "cases": []}
    torch.manual_seed(0)
    with torch.inference_mode():
        for preset in arguments.presets.split(","):
            config = ModelConfig(**shape_of(preset)["model"], vocab_size=32000)
            for batch in map(int, arguments.batches.split(",")):
                if time.perf_counter() - began > arguments.limit:
                    break
                try:
                    result["cases"] += measure(preset, config, batch, arguments, device)
                except Exception as problem:  # what else was measured is kept
                    print(f"FAILED {preset} batch {batch}: {type(problem).__name__} {problem}"[:300], flush=True)
                if arguments.out and not arguments.warm:
                    common.write(arguments.out, result)


def measure(
    preset: str, config: ModelConfig, batch: int, given: argparse.Namespace, device: torch.device
) -> list[dict[str, Any]]:
    """The sides of one model and batch."""
    ids = torch.randint(config.vocab_size or 1, (batch,), device=device)
    opponents = {mode: dense_times(config, batch, ids, mode, given, device) for mode in given.modes.split(",")}
    times = {"BF16" if mode == "default" else f"BF16 {mode}": found for mode, found in opponents.items()}
    base = min(map(statistics.median, times.values()))
    bytes_of: dict[str, int] = {}
    for name in given.widths.split(","):
        w_bits, a_bits = WIDTHS[name]
        model = packed_llama(config, QuantSpec(weight_bits=w_bits, act_bits=a_bits), device)
        bytes_of[name] = resident_bytes(model)
        for overlaps in (False, True):
            cache = KVCache(config, batch, WINDOW, torch.bfloat16, device)
            step = DecodingStep(model, overlaps)

            def packed_step(step: DecodingStep = step, cache: KVCache = cache) -> None:
                cache._longest = 0
                ids.copy_(step.logits(ids, cache).argmax(-1))

            def restart(cache: KVCache = cache) -> None:
                cache.lengths.fill_(given.context)

            label = name + (" overlapping" if overlaps else "")
            times[label] = replay_seconds(packed_step, restart, given.steps, given.rounds)
        del model, step, cache
        torch.cuda.empty_cache()
    records = []
    for label, found in times.items():
        median = statistics.median(found)
        records.append({"preset": preset, "batch": batch, "side": label, "seconds": common.spread(found),
                        "speed_over_bf16": base / median, "weight_bytes": bytes_of.get(label.split()[0])})  # fmt: skip
        print(f"{preset:<6}batch {batch:<3}{label:<32}{median * 1e6:>9.1f} us a step  x{base / median:.2f}", flush=True)
    return records


def dense_times(
    config: ModelConfig, batch: int, ids: Tensor, mode: str, given: argparse.Namespace, device: torch.device
) -> list[float]:
    """Seconds of a step of the bfloat16 model, compiled in a mode of torch.compile."""
    dense = DenseDecoder(config, batch, WINDOW, device, mode)

    def step() -> None:
        ids.copy_(dense.step(ids))

    return replay_seconds(step, lambda: dense.lengths.fill_(given.context), given.steps, given.rounds)


if __name__ == "__main__":
    main()
