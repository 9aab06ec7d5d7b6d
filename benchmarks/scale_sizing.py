"""Size training on many GPUs on paper: bytes over links against the time of computing. Nothing is run.

    python benchmarks/scale_sizing.py --gpus 2,4,8,64

A step of one GPU comes from its committed record; the bytes from `questlm.scaling.exchange`; bandwidths are below. The
time of a step of n GPUs is taken to be

    computing - (1 - 1/n) * sharded + exposed + SLOWED * hidden + copies

where `sharded` is the part that FSDP divides by n (quantising weights, gradients' masks, clipping, AdamW: passes over
the memory), `exposed` the exchange that nothing is left to compute beside (the gradient of the embedding, which comes
last, and of FSDP the first gather), `hidden` the rest, beside which kernels of NCCL take SLOWED of the multiprocessors,
and `copies` what FSDP copies into and out of the buffers that it exchanges. Where `hidden` is longer than the backward
pass that it is to hide behind, what is longer counts as exposed too.
"""

from __future__ import annotations

import argparse
import json
from typing import Literal, NamedTuple

import common

from questlm.config import ModelConfig, ParallelConfig, QuantSpec, preset
from questlm.scaling.exchange import exchanged_bytes
from questlm.scaling.shapes import training_flops

NVLINK = {2: 329e9, 4: 355e9, 8: 361e9}
"""Bus bandwidth of an all-reduce of 1 GiB over the H100s of one machine, bytes a second, measured on 2026-11-13."""
CARD = 45e9
"""Bytes a second of a network card of 400 Gbit/s, assumed."""
MEMORY = 2.5e12
"""Bytes a second that a pass over the memory of an H100 reaches, assumed; a copy reaches 3.0e12."""
SHARDED_PASSES = {4: 50.0, 16: 40.0}
"""Bytes a parameter of the passes that FSDP divides: AdamW 28, clipping 12, and for 4 bits 10 of codes and masks."""
SLOWED = 0.15
"""Share of the multiprocessors that NCCL takes while it exchanges, assumed."""
BACKWARD = 0.6
"""Share of a step that is the backward pass, assumed."""
_FAST = ParallelConfig(gather="operand", keep_gathered=True)


class Work(NamedTuple):
    """What one GPU does in a step: its model and the seconds that it takes alone."""

    name: str
    model: ModelConfig
    quant: QuantSpec
    seconds: float

    @property
    def sharded(self) -> float:
        """Seconds of the part that FSDP divides."""
        return SHARDED_PASSES[int(self.quant.weight_bits)] * self.model.parameters / MEMORY


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", default="2,4,8,64")
    parser.add_argument("--cards", default="8,1", help="network cards of a machine of 8 GPUs")
    arguments = parser.parse_args()
    print(table(*([int(number) for number in text.split(",")] for text in (arguments.gpus, arguments.cards))))


def table(sizes: list[int], cards: list[int]) -> str:
    """The table as Markdown."""
    lines = [
        "| | GPUs | engine | links, GB/s | GB sent | exchange, ms | computing, ms | step, ms | share of linear |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for work in works():
        for gpus in sizes:
            for each in cards if gpus > 8 else cards[:1]:
                bandwidth = _bandwidth(gpus, each)
                lines += [row(work, gpus, "replicas", bandwidth), row(work, gpus, "fsdp", bandwidth)]
    return "\n".join(lines)


def works() -> list[Work]:
    """Steps of 32 x 512 tokens of `800m`, as recorded, and of 8 x 512 of `3b`, by its operations."""
    record = json.loads((common.RESULTS / "train_step-800m-h100.json").read_text(encoding="utf-8"))
    found = []
    for bits, side in ((4, "w4a4"), (16, "bf16")):
        quant = QuantSpec(weight_bits=bits, act_bits=bits, embeddings="bf16" if bits < 16 else "float")
        seconds = record["results"][side]["step_seconds"]["median"]
        small, large = (ModelConfig(**preset(name)["model"], vocab_size=32000) for name in ("800m", "3b"))
        found.append(Work(f"800m W{bits}A{bits}", small, quant, seconds))
        empty = Work(f"3b W{bits}A{bits}", large, quant, 0.0)
        multiplying = (seconds - found[-1].sharded) / 4 * training_flops(large) / training_flops(small)
        found.append(empty._replace(seconds=multiplying + empty.sharded))
    return sorted(found, key=lambda work: work.model.parameters)


def row(work: Work, gpus: int, engine: Literal["replicas", "fsdp"], bandwidth: float) -> str:
    """A line of the table."""
    sent = exchanged_bytes(work.model, work.quant, engine, gpus, _FAST).sent(gpus)
    step = step_seconds(work, gpus, engine, bandwidth)
    numbers = (sent / bandwidth, work.seconds, step)
    shown = " | ".join(f"{1e3 * seconds:.1f}" for seconds in numbers)
    return (
        f"| {work.name} | {gpus} | {engine} | {bandwidth / 1e9:.0f} | {sent / 1e9:.2f} | {shown} | "
        f"{work.seconds / step:.3f} |"
    )


def step_seconds(work: Work, gpus: int, engine: Literal["replicas", "fsdp"], bandwidth: float) -> float:
    """Seconds of a step of `gpus` GPUs, by the formula above."""
    model, share = work.model, (gpus - 1) / gpus
    exchange = exchanged_bytes(model, work.quant, engine, gpus, _FAST).sent(gpus) / bandwidth
    embedding = (model.vocab_size or 0) * model.hidden
    saved = copies = 0.0
    last = 4.0 * embedding * 2 * share / bandwidth
    if engine == "fsdp":
        saved = share * work.sharded
        copies = (8.0 + 2.0) * model.parameters / MEMORY
        last = (2 * 4.0 + 4.0) * embedding * share / bandwidth  # embedding and head together, and their gather
    hidden = exchange - last
    exposed = last + max(0.0, hidden - BACKWARD * work.seconds)
    return work.seconds - saved + exposed + SLOWED * hidden + copies


def _bandwidth(gpus: int, cards: int) -> float:
    if gpus <= 8:
        return NVLINK[min(size for size in NVLINK if size >= gpus)]
    return min(NVLINK[8], cards * CARD)


if __name__ == "__main__":
    main()
