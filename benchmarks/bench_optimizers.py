"""The time of an optimizer's step on a model's block matrices: AdamW, and Muon with our kernels and without.

    python benchmarks/bench_optimizers.py --presets 30m,800m
    python benchmarks/bench_optimizers.py --presets nano --device cpu --steps 2
    python benchmarks/bench_optimizers.py --tune    # the symmetric product in tiles of several sizes

Weights and gradients are float32, as in training. Each time is the median of `--windows` windows of `--steps` steps, in
turns. On a GPU a step is also played back from a CUDA graph, as the training of small models does it, and its kernels
are counted. `bench_train_step.py --bits 4,4:muon` has whole training steps.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch
from torch import nn

from questlm import ops
from questlm.config import load_config
from questlm.models import Llama
from questlm.training.device import pick_device
from questlm.training.optim import Optimizers, make_optimizer

SIDES = {"adamw": ("adamw", "auto"), "muon": ("muon", "auto"), "muon, reference": ("muon", "reference")}
SIZES = (
    (128, 64, 4, 3),
    (128, 64, 4, 4),
    (128, 64, 8, 3),
    (128, 64, 8, 4),
    (128, 32, 4, 5),
    (64, 64, 4, 4),
    (64, 128, 4, 3),
)


def main() -> None:
    """Time all sides of each preset, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", default="30m,800m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=10, help="steps a window")
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--tune", action="store_true", help="time symmetric products instead")
    parser.add_argument("--out", type=Path, help="JSON file to write [default: in benchmarks/results]")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    measure = tune if arguments.tune else sides
    results = {}
    for preset in arguments.presets.split(","):
        results[preset] = measure(preset, device, arguments)
        common.free_memory()
    settings = {name: value for name, value in vars(arguments).items() if name != "out"}
    file = arguments.out or common.RESULTS / f"optimizers-{common.device_slug(device)}.json"
    common.write(file, {**common.header("optimizers", device, settings), "results": results})


# -- whole steps -------------------------------------------------------------------------------------------------------


def sides(preset: str, device: torch.device, arguments: argparse.Namespace) -> dict[str, Any]:
    """Each side's seconds a step, plain and from a CUDA graph, and its kernels."""
    found: dict[str, Any] = {}
    for name, (optimizer, backend) in SIDES.items():
        with ops.using_backend(backend):
            found[name] = _side(preset, optimizer, device, arguments)
        _print(preset, name, found[name])
        gc.collect()
    return found


def _side(preset: str, name: str, device: torch.device, arguments: argparse.Namespace) -> dict[str, Any]:
    optimizer, entries = _optimizer(preset, name, device)
    started = time.perf_counter()
    optimizer.step()
    _wait(device)
    result: dict[str, Any] = {"entries": entries, "first_step_seconds": time.perf_counter() - started}
    result["plain_seconds"] = _times(optimizer.step, device, arguments)
    if device.type == "cuda":
        from kernel_groups import profile_step

        result["kernels"] = profile_step(optimizer.step)
        optimizer.prepare_recording(device)
        optimizer.step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            optimizer.step()
        result["recorded_seconds"] = _times(graph.replay, device, arguments)
    return result


def _optimizer(preset: str, name: str, device: torch.device) -> tuple[Optimizers, int]:
    """An optimizer of the preset's block matrices alone, and how many entries these have."""
    config = load_config(preset, overrides=[], flags={"train": {"optimizer": name}, "model": {"vocab_size": 32}})
    with torch.device("meta"):
        model = Llama(config.model)
    shapes = [each.shape for path, each in model.named_parameters() if path.startswith("layers.") and each.ndim == 2]
    blocks = nn.Module()
    blocks.layers = nn.ParameterList(torch.randn(shape, device=device) * 0.02 for shape in shapes)
    for parameter in blocks.parameters():
        parameter.grad = torch.randn_like(parameter)
    return make_optimizer(blocks, config.train), sum(shape.numel() for shape in shapes)


def _print(preset: str, name: str, side: dict[str, Any]) -> None:
    recorded = side.get("recorded_seconds", {}).get("median", float("nan"))
    kernels = side.get("kernels", {"milliseconds": float("nan"), "launches": 0})
    print(
        f"{preset:<6}{name:<18}plain {side['plain_seconds']['median'] * 1e3:9.3f} ms   "
        f"recorded {recorded * 1e3:9.3f} ms   kernels {kernels['milliseconds']:9.3f} ms, "
        f"{kernels['launches']} launches   first step {side['first_step_seconds']:.1f} s",
        flush=True,
    )
    for each in kernels.get("longest", [])[:8]:
        print(f"        {each['milliseconds']:9.3f} ms {each['launches']:5} x  {each['name'][:80]}", flush=True)


# -- symmetric products ------------------------------------------------------------------------------------------------


def tune(preset: str, device: torch.device, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of X X^T of the preset's stacks: by torch's batched product, and by the kernel in tiles of each size."""
    from questlm.ops.triton.symmetric import Sizes, symmetric_product

    model = Llama(load_config(preset, overrides=[], flags={"model": {"vocab_size": 32, "layers": 1}}).model)
    wide, hidden = model.layers[0].mlp.up.weight.shape
    found = []
    for columns, count in ((hidden, 24), (wide, 18)):
        x = torch.randn(count, hidden, columns, device=device).bfloat16()
        products: dict[str, Callable[[], object]] = {"torch.bmm": lambda x=x: torch.bmm(x, x.mT)}
        for sizes in SIZES:
            products[str(sizes)] = lambda x=x, sizes=sizes: symmetric_product(x, 0.0, 0.0, 1.0, Sizes(*sizes))
        for name, product in products.items():
            try:
                product()
            except Exception as problem:  # too much shared memory or too many registers: the next is tried
                print(f"{preset:<6}{columns:>6} columns  {name:<20} {problem}"[:200], flush=True)
                continue
            seconds = _times(product, device, arguments)
            rate = 2 * count * hidden * hidden * columns / seconds["median"] / 1e12
            print(
                f"{preset:<6}{columns:>6} columns  {name:<20}{seconds['median'] * 1e3:9.4f} ms {rate:8.1f} T/s",
                flush=True,
            )
            found.append({"rows": hidden, "columns": columns, "count": count, "by": name, "seconds": seconds})
    return found


# -- timing ------------------------------------------------------------------------------------------------------------


def _times(function: Callable[[], object], device: torch.device, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds a call: median and spread over windows."""
    function()
    windows = []
    for _ in range(arguments.windows):
        _wait(device)
        started = time.perf_counter()
        for _ in range(arguments.steps):
            function()
        _wait(device)
        windows.append((time.perf_counter() - started) / arguments.steps)
    return common.spread(windows)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
