"""Quantised against dense: time, peak memory and kernels of a training step; same model, same batch, in turns.

The step is the trainer's own (`questlm.training.step`): bf16 autocast on CUDA (float32 on a CPU), blocks and head
compiled each by itself, weights quantised once a step, gradients clipped, fused AdamW, small models played back from a
CUDA graph. The batch lies on the device already. Kernels are counted in one more step, which is not played back.

On CUDA all sides run in one process, in turns, `--rounds` times; a model is built and freed each time. A round is
`--warm-up` steps and then `--windows` windows of `--steps` steps, with one synchronisation a window. Reported are the
median over all windows, their spread, and the peak of the allocated memory in the last round, in which nothing is
compiled for the first time. On a CPU each side of each round is a process of its own, as peak memory is the process's.

    python benchmarks/bench_train_step.py --preset nano --micro-batch 8 --seq-len 256 --vocab-size 4096 --steps 4
    python benchmarks/bench_train_step.py --preset 30m --micro-batch 64 --vocab-size 32000 --bits 4,1 --warm 3
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import common
import torch

DENSE = "16"


def main() -> None:
    """Parse arguments, run all sides in turns, print and write the result."""
    arguments = _arguments()
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
    if arguments.one_side:
        print(json.dumps(measure(arguments, arguments.one_side, profiled=False)))
        return
    device = _device(arguments)
    sides = [DENSE, *(side for side in arguments.bits.split(",") if side != DENSE)]
    if arguments.warm and device.type == "cuda":
        common.fill_caches(_warm, [(arguments, side) for side in sides], arguments.warm)
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for index in range(arguments.rounds):
        for side in sides:
            last = index == arguments.rounds - 1
            run = measure(arguments, side, last) if device.type == "cuda" else _in_own_process(side)
            runs[side].append(run)
    result = summary(arguments, device, runs)
    print_table(result)
    common.write(arguments.out or _default_file(arguments, device), result)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="nano")
    parser.add_argument(
        "--bits", default="4", help="sides to compare with bf16: widths, each with :OPTIMIZER if not AdamW; 4,4:muon"
    )
    parser.add_argument("--micro-batch", type=int, default=8, help="sequences a pass")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches a step")
    parser.add_argument("--seq-len", type=int, default=512, help="tokens a sequence")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--layers", type=int, help="instead of the preset's")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", default="auto", choices=["auto", "on", "off"])
    parser.add_argument("--cuda-graphs", default="auto", choices=["auto", "on", "off"])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--steps", type=int, default=10, help="steps a window")
    parser.add_argument("--windows", type=int, default=3, help="windows a round")
    parser.add_argument("--warm-up", type=int, default=5, help="steps of a round before the first window")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", type=int, default=0, help="processes that fill the compilers' caches first (CUDA)")
    parser.add_argument("--set", action="append", default=[], help="section.key=value of the quantised sides")
    parser.add_argument("--out", type=Path, help="JSON file to write [default: in benchmarks/results]")
    parser.add_argument("--one-side", help=argparse.SUPPRESS)
    return parser.parse_args()


# -- one side ----------------------------------------------------------------------------------------------------------


def measure(arguments: argparse.Namespace, side: str, profiled: bool) -> dict[str, Any]:
    """One round of one side, in this process; models of earlier rounds are gone."""
    from questlm.ops import choose, using_backend
    from questlm.training.device import peak_memory

    device = _device(arguments)
    common.free_memory()
    with using_backend(arguments.backend):
        started = time.perf_counter()
        step, recorded = make_step(arguments, side, device)
        step()
        _wait(device)
        first = time.perf_counter() - started
        for _ in range(arguments.warm_up - 1):
            step()
        _wait(device)
        windows = [_window(step, arguments.steps, device) for _ in range(arguments.windows)]
        loss = float(step())
        run = {
            "step_seconds": windows,
            "first_step_seconds": first,  # with building and compiling
            "peak_memory_bytes": peak_memory(device),
            "reserved_memory_bytes": torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None,
            "cuda_graph": recorded,
            "backend": choose("quantize", torch.empty(1, 128, device=device), 128),
            "loss": loss,
        }
        if profiled:
            del step
            run["kernels"] = _kernels(arguments, side, device)
    return run


def _kernels(arguments: argparse.Namespace, side: str, device: torch.device) -> dict[str, Any]:
    from kernel_groups import profile_step

    gc.collect()
    step = make_step(argparse.Namespace(**{**vars(arguments), "cuda_graphs": "off"}), side, device).make
    for _ in range(3):
        step()
    return profile_step(step)


class TimedStep(NamedTuple):
    """One optimizer step on a batch, which returns its loss, and whether it is played back from a CUDA graph."""

    make: Callable[[], torch.Tensor]
    recorded: bool


def make_step(arguments: argparse.Namespace, side: str, device: torch.device) -> TimedStep:
    """Model, optimizer and batch of one side, set up as the trainer does it."""
    from questlm.config import load_config
    from questlm.parallel import compile_blocks
    from questlm.training.build import build_model
    from questlm.training.device import should_compile
    from questlm.training.optim import make_optimizer
    from questlm.training.step import TrainStep, should_record

    width, _, optimizer = side.partition(":")
    bits: int | str = int(width) if width.isdecimal() else width
    model_settings = {"vocab_size": arguments.vocab_size} | ({"layers": arguments.layers} if arguments.layers else {})
    sequences = arguments.micro_batch * arguments.accumulate
    config = load_config(
        arguments.preset,
        overrides=arguments.set if width != DENSE else [],
        flags={
            "model": model_settings,
            "quant": {"weight_bits": bits, "act_bits": bits, "embeddings": "float" if width == DENSE else "bf16"},
            "train": {
                "device": str(device),
                "compile": arguments.compile,
                "seq_len": arguments.seq_len,
                "batch_size": sequences,
                "micro_batch_size": arguments.micro_batch,
                "cuda_graphs": arguments.cuda_graphs,
                "optimizer": optimizer or "adamw",
            },
        },
    )
    with device:
        model = build_model(config)
    if should_compile(config.train, device):
        compile_blocks(model)
    optimizer = make_optimizer(model, config.train)
    record = should_record(config.train, model, optimizer, [], "none", device)
    train_step = TrainStep(model, model, optimizer, config.train, device, record=record)
    generator = torch.Generator().manual_seed(0)
    shape = (2, sequences, arguments.seq_len)
    inputs, targets = torch.randint(arguments.vocab_size, shape, generator=generator).to(device)
    # A rate so small that the loss of random tokens stays near ln(vocabulary) and no number leaves its usual range.
    return TimedStep(lambda: train_step(inputs, targets, 1e-5)[0], record)


def _window(step: Callable[[], object], steps: int, device: torch.device) -> float:
    """Seconds a step."""
    started = time.perf_counter()
    for _ in range(steps):
        step()
    _wait(device)
    return (time.perf_counter() - started) / steps


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device(arguments: argparse.Namespace) -> torch.device:
    from questlm.training.device import pick_device

    return pick_device(arguments.device)


def _in_own_process(side: str) -> dict[str, Any]:
    words = [sys.executable, __file__, *sys.argv[1:], "--one-side", side]
    output = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    run: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return run


def _warm(arguments: argparse.Namespace, side: str) -> None:
    """Compile one side on a model of one block: all blocks are the same code."""
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
    one_block = argparse.Namespace(**{**vars(arguments), "layers": 1, "accumulate": 1, "warm_up": 1, "windows": 1})
    one_block.steps = 1
    measure(one_block, side, profiled=False)


# -- results -----------------------------------------------------------------------------------------------------------


def summary(
    arguments: argparse.Namespace, device: torch.device, runs: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """The JSON result of all rounds."""
    tokens = arguments.micro_batch * arguments.accumulate * arguments.seq_len
    sides = {side: _side(found, tokens) for side, found in runs.items()}
    dense = sides[DENSE]
    for side in sides.values():
        side["speed_over_dense"] = round(dense["step_seconds"]["median"] / side["step_seconds"]["median"], 4)
        side["peak_memory_over_dense"] = round(side["peak_memory_bytes"] / dense["peak_memory_bytes"], 4)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("out", "one_side")}
    named = {
        "bf16" if side == DENSE and device.type == "cuda" else _label(side): value for side, value in sides.items()
    }
    return {**common.header("train_step", device, settings), "tokens_per_step": tokens, "results": named}


def _label(side: str) -> str:
    width, _, optimizer = side.partition(":")
    name = "float32" if side == DENSE else "bf16" if width == DENSE else f"w{width}a{width}"
    return f"{name} {optimizer}".strip()


def _side(runs: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
    seconds = common.spread([window for run in runs for window in run["step_seconds"]])
    return {
        "step_seconds": seconds,
        "step_seconds_rounds": [run["step_seconds"] for run in runs],
        "tokens_per_second": round(tokens / seconds["median"], 1),
        "peak_memory_bytes": runs[-1]["peak_memory_bytes"],
        "peak_memory_bytes_rounds": [run["peak_memory_bytes"] for run in runs],
        "first_step_seconds_rounds": [round(run["first_step_seconds"], 2) for run in runs],
        "reserved_memory_bytes": runs[-1]["reserved_memory_bytes"],
        "cuda_graph": runs[-1]["cuda_graph"],
        "backend": runs[-1]["backend"],
        "loss": runs[-1]["loss"],
        "kernels": runs[-1].get("kernels"),
    }


def print_table(result: dict[str, Any]) -> None:
    """Tokens a second and memory of each side, each beside its ratio to the dense one."""
    settings = result["settings"]
    print(
        f"{settings['preset']}, {settings['micro_batch']} x {settings['seq_len']} tokens x {settings['accumulate']}, "
        f"vocabulary {settings['vocab_size']}, {result['device']}"
    )
    print(f"{'':<12}{'tokens/s':>12}{'ratio':>8}{'GiB':>9}{'ratio':>8}{'spread':>8}{'kernels ms':>12}{'launches':>10}")
    for name, side in result["results"].items():
        kernels = side["kernels"] or {"milliseconds": float("nan"), "launches": 0}
        print(
            f"{name:<12}{side['tokens_per_second']:>12,.0f}{side['speed_over_dense']:>8.3f}"
            f"{side['peak_memory_bytes'] / 2**30:>9.2f}{side['peak_memory_over_dense']:>8.3f}"
            f"{side['step_seconds']['spread']:>8.1%}{kernels['milliseconds']:>12.2f}{kernels['launches']:>10}",
            flush=True,
        )


def _default_file(arguments: argparse.Namespace, device: torch.device) -> Path:
    steps = f"-accumulate{arguments.accumulate}" if arguments.accumulate > 1 else ""
    return common.RESULTS / f"train_step-{arguments.preset}{steps}-{common.device_slug(device)}.json"


if __name__ == "__main__":
    main()
