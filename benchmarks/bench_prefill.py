"""A prompt through a whole model on a GPU: packed weights beside the same Llama in bfloat16.

    python benchmarks/bench_prefill.py --preset 800m --batch 8 --tokens 512

From token ids to the logits behind each prompt, with keys and values kept. "chunked" feeds the prompts in pieces of
`--chunk` tokens. The bfloat16 side is `gpu_models.DensePrompt`: one matrix for query, key and value and one for gate
and up, flash attention, blocks compiled by torch.compile; it keeps no cache, which is in its favour.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch
from bench_decode import WIDTHS
from gpu_models import DensePrompt, packed_llama
from torch import Tensor

from questlm.config import ModelConfig, QuantSpec
from questlm.config.presets import preset as shape_of
from questlm.inference.decoding import DecodingStep
from questlm.inference.prompt import PromptStep
from questlm.models import KVCache


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="800m")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--chunk", type=int, default=128)
    parser.add_argument("--widths", default=",".join(WIDTHS))
    parser.add_argument("--modes", default="default", help="of torch.compile, for BF16")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--limit", type=float, default=120.0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    device, began = torch.device("cuda"), time.perf_counter()
    config = ModelConfig(**shape_of(given.preset)["model"], vocab_size=32000)
    result: dict[str, Any] = {**common.header("prefill", device, vars(given)), "sides": {}}
    torch.manual_seed(0)
    ids = torch.randint(32000, (given.batch, given.tokens), device=device)
    with torch.inference_mode():
        for mode in given.modes.split(","):
            dense = DensePrompt(config, given.tokens, device, mode)
            keep(result, f"BF16 {mode}", timed(lambda dense=dense: dense(ids), given.rounds))  # type: ignore[misc]
            del dense
        for name in given.widths.split(","):
            if time.perf_counter() - began > given.limit:
                break
            w_bits, a_bits = WIDTHS[name]
            model = packed_llama(config, QuantSpec(weight_bits=w_bits, act_bits=a_bits), device)
            prompt = PromptStep(model, DecodingStep(model, False).blocks)
            for chunk in (given.tokens, given.chunk):

                def run(prompt: PromptStep = prompt, chunk: int = chunk) -> None:
                    cache = KVCache(config, given.batch, given.tokens, torch.bfloat16, device)
                    with torch.autocast("cuda", torch.bfloat16):
                        for piece in ids.split(chunk, dim=1):
                            prompt.next_logits(piece, cache, None)

                keep(result, name if chunk == given.tokens else f"{name} chunked", timed(run, given.rounds))
            if given.out:
                common.write(given.out, result)


def timed(run: Callable[[], Tensor | None], rounds: int) -> list[float]:
    """Seconds of each of `rounds` runs, after two."""
    times = []
    for _ in range(rounds + 2):
        torch.cuda.synchronize()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return times[2:]


def keep(result: dict[str, Any], side: str, times: list[float]) -> None:
    """Add a side to the result, and print it."""
    median = statistics.median(times)
    base = min(
        (each["seconds"]["median"] for name, each in result["sides"].items() if name[:4] == "BF16"), default=median
    )
    result["sides"][side] = {"seconds": common.spread(times), "speed_over_bf16": base / median}
    print(f"{side:<24}{median * 1e3:>9.2f} ms  x{base / median:.2f}", flush=True)


if __name__ == "__main__":
    main()
