"""Quantised against dense: time and peak memory of a training step, same model, same batch, same process order.

Each side runs in its own process (so that peak memory is its own), in turns, several times; the ratio of medians and
every round are reported. The dense side is the same trainer without quantisation: bf16 autocast on CUDA, float32 on the
CPU.

    python benchmarks/bench_train_step.py --preset nano --micro-batch 8 --seq-len 256 --vocab-size 4096
    python benchmarks/bench_train_step.py --preset 30m --micro-batch 64 --device cuda --compile on
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Parse arguments, run both sides in turns, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--bits", default="4", help="one width or several, comma-separated")
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", default="auto", choices=["auto", "on", "off"])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--steps", type=int, default=8, help="timed steps a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--one-side", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_side:
        print(json.dumps(measure(arguments, arguments.one_side)))
        return
    result = compare(arguments)
    print(json.dumps(result, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run every side `rounds` times in turns and summarise."""
    sides = ["16", *arguments.bits.split(",")]
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(arguments.rounds):
        for side in sides:
            command = [sys.executable, __file__, *sys.argv[1:], "--one-side", side]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rounds[side].append(json.loads(output.strip().splitlines()[-1]))
    summary = {f"w{side}a{side}": _summary(runs) for side, runs in rounds.items()}
    dense = summary["w16a16"]
    for side in summary.values():
        side["speed_over_dense"] = round(dense["seconds_median"] / side["seconds_median"], 4)
        side["peak_memory_over_dense"] = round(side["peak_memory_bytes"] / dense["peak_memory_bytes"], 4)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("out", "one_side")}
    return {
        "benchmark": "train_step",
        "command": "python benchmarks/bench_train_step.py " + " ".join(sys.argv[1:]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "settings": settings,
        "device": rounds["16"][0]["device"],
        "versions": rounds["16"][0]["versions"],
        "results": summary,
    }


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    medians = [run["seconds_median"] for run in runs]
    median = statistics.median(medians)
    return {
        "seconds_median": median,
        "seconds_rounds": medians,
        "seconds_spread_within_rounds": [run["seconds_spread"] for run in runs],
        "tokens_per_second": round(runs[0]["tokens"] / median, 1),
        "peak_memory_bytes": max(run["peak_memory_bytes"] for run in runs),
        "backend": runs[0]["backend"],
    }


def measure(arguments: argparse.Namespace, bits: str) -> dict[str, Any]:
    """Time training steps of one side in this process."""
    import time

    import torch
    import torch.nn.functional as F

    from questlm.config import load_config
    from questlm.ops import backend_for, using_backend
    from questlm.records import package_versions
    from questlm.train.device import autocast, device_name, peak_memory, pick_device, should_compile
    from questlm.train.optim import make_optimizer
    from questlm.train.run_folder import build_model

    width = int(bits) if bits.isdecimal() else bits
    config = load_config(
        arguments.preset,
        flags={
            "model": {"vocab_size": arguments.vocab_size},
            "quant": {"weight_bits": width, "act_bits": width, "embeddings": "float" if bits == "16" else "bf16"},
            "train": {"device": arguments.device, "compile": arguments.compile},
        },
    )
    device = pick_device(config.train.device)
    shape = (arguments.micro_batch, arguments.seq_len)
    batch = torch.randint(arguments.vocab_size, (2, *shape), generator=torch.Generator().manual_seed(0)).to(device)
    with using_backend(arguments.backend):
        model = build_model(config).to(device)
        optimizer = make_optimizer(model, config.train)

        def loss_fn(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            with autocast(device):
                logits = model(inputs)
            return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

        if should_compile(config.train, device):
            loss_fn = torch.compile(loss_fn, dynamic=False)

        def step() -> None:
            loss_fn(batch[0], batch[1]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize()

        for _ in range(3):
            step()
        seconds = []
        for _ in range(arguments.steps):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        backend = backend_for("quantize", torch.empty(1, 16, device=device))
    return {
        "seconds_median": statistics.median(seconds),
        "seconds_spread": max(seconds) - min(seconds),
        "tokens": batch[0].numel(),
        "peak_memory_bytes": peak_memory(device),
        "device": device_name(device),
        "backend": backend,
        "versions": {**package_versions(), "processor": platform.processor() or platform.machine()},
    }


if __name__ == "__main__":
    main()
