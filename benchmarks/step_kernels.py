"""Where the time of a decoding step goes: microseconds of each kernel of one replay, packed beside bfloat16.

    python benchmarks/step_kernels.py --preset 800m --batch 1

Kernels are timed by torch's profiler while they overlap as they do in use, so one that waits for another counts the
waiting as its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from bench_decode import WIDTHS, WINDOW
from gpu_models import DenseDecoder, packed_llama
from torch.profiler import ProfilerActivity, profile

from questlm.config import ModelConfig, QuantSpec
from questlm.config.presets import preset as shape_of
from questlm.inference.decoding import DecodingStep
from questlm.models import KVCache


def main() -> None:
    """Profile each side and print its kernels."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="800m")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--widths", default="W4A4,W1A1")
    parser.add_argument("--context", type=int, default=64)
    given = parser.parse_args()
    device = torch.device("cuda")
    config = ModelConfig(**shape_of(given.preset)["model"], vocab_size=32000)
    ids = torch.zeros(given.batch, dtype=torch.int64, device=device)
    with torch.inference_mode():
        dense = DenseDecoder(config, given.batch, WINDOW, device, "default")
        show("BF16", lambda: dense.step(ids), lambda: dense.lengths.fill_(given.context))
        for name in given.widths.split(","):
            w_bits, a_bits = WIDTHS[name]
            model = packed_llama(config, QuantSpec(weight_bits=w_bits, act_bits=a_bits), device)
            for overlaps in (False, True):
                cache, step = (
                    KVCache(config, given.batch, WINDOW, torch.bfloat16, device),
                    DecodingStep(model, overlaps),
                )

                def packed_step(step: DecodingStep = step, cache: KVCache = cache) -> None:
                    cache._longest = 0
                    step.logits(ids, cache).argmax(-1)

                def restart(cache: KVCache = cache) -> None:
                    cache.lengths.fill_(given.context)

                show(f"{name}{' overlapping' if overlaps else ''}", packed_step, restart)


def show(side: str, step: Callable[[], object], restart: Callable[[], object]) -> None:
    """Print the kernels of one step, the longest in all first."""
    for _ in range(2):
        restart()
        step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    restart()
    graph.replay()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        restart()
        graph.replay()
        torch.cuda.synchronize()
    print(f"--- {side}")
    for event in sorted(found.key_averages(), key=lambda event: -event.self_device_time_total)[:14]:
        total, count = event.self_device_time_total, event.count
        print(f"{total:>9.1f} us{count:>6} times{total / count:>8.2f} us  {event.key[:70]}", flush=True)


if __name__ == "__main__":
    main()
