"""Training throughput over the number of GPUs of one machine, each with the same work (weak scaling), per engine.

Every point is a run of `quest train` under torchrun; its record gives tokens a second over all processes and the most
memory that one of them took. The validation at the end of a run counts for nothing. The result is written after every
point; one that failed is a point too.

    python benchmarks/bench_scale_out.py --data corpus --preset 800m --micro-batch 32 --gpus 1,2,4 --engines ddp,fsdp
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import common
import torch


def main() -> None:
    """Run every point, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with train_00.txt.xz, val.txt.xz, bpe8192.json"
    )
    parser.add_argument("--preset", default="800m")
    parser.add_argument("--bits", default="16,4")
    parser.add_argument("--engines", default="ddp,fsdp")
    parser.add_argument("--gpus", default="1,2,4,8", help="more than the machine has are left out")
    parser.add_argument("--micro-batch", type=int, default=32, help="sequences a step of each process")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--set", action="append", default=[], help="section.key=value; may be repeated")
    parser.add_argument("--out", type=Path, help="JSON file to write [default: in benchmarks/results]")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    most = torch.cuda.device_count() if device.type == "cuda" else os.cpu_count() or 1
    counts = [count for count in map(int, arguments.gpus.split(",")) if count <= most]
    settings = {name: value for name, value in vars(arguments).items() if name != "out"}
    out = arguments.out or common.RESULTS / f"scale_out-{common.device_slug(device)}.json"
    points: list[dict[str, Any]] = []
    for bits, engine, count in itertools.product(arguments.bits.split(","), arguments.engines.split(","), counts):
        if count > 1 or engine == "ddp":
            points.append(measure(arguments, bits, engine, count))
            common.write(out, {**common.header("scale_out", device, settings), "complete": False, "results": points})
    common.write(out, {**common.header("scale_out", device, settings), "complete": True, "results": points})
    sys.exit(any("failed" in point for point in points))


def measure(arguments: argparse.Namespace, bits: str, engine: str, count: int) -> dict[str, Any]:
    """One run of `count` processes; a point of the result."""
    tokens = count * arguments.micro_batch * arguments.seq_len * arguments.steps
    settings = {
        "data.val": arguments.data / "val.txt.xz",
        "data.tokenizer": arguments.data / "bpe8192.json",
        "train.batch_size": count * arguments.micro_batch,
        "train.seq_len": arguments.seq_len,
        "train.parallel": engine,
        "train.device": arguments.device,
        "train.checkpoint_every": 10**6,
        "quant.embeddings": "float" if bits == "16" else "bf16",
    }
    overrides = [f"{name}={value}" for name, value in settings.items()] + arguments.set
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)),
            *("-m", "questlm", "train", "--preset", arguments.preset, "--bits", bits, "--tokens", str(tokens)),
            *("--data", str(arguments.data / "train_00.txt.xz"), "--out", str(run)),
            *(word for override in overrides for word in ("--set", override)),
        ]
        if (code := subprocess.run(command, stdout=subprocess.DEVNULL).returncode) != 0:
            print(f"{bits:>2} bits, {engine:<4} x {count}: failed", flush=True)
            return {"bits": bits, "engine": engine, "processes": count, "failed": code}
        record = json.loads((run / "record.json").read_text(encoding="utf-8"))
    point = {
        "bits": bits,
        "engine": record["parallel"],
        "processes": count,
        "tokens_per_second": record["tokens_per_second"],
        "peak_memory_bytes": record["peak_memory_bytes"],
        "steps": record["steps"],
    }
    print(
        f"{bits:>2} bits, {point['engine']:<4} x {count}: {point['tokens_per_second']:>12,.0f} tokens/s, "
        f"{point['peak_memory_bytes'] / 2**30:.2f} GiB each",
        flush=True,
    )
    return point


if __name__ == "__main__":
    main()
