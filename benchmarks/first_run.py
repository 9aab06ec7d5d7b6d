"""What quantisation costs the demo's model: the same model, tokens and seeds in float32, W4A4 and W1A1.

python benchmarks/first_run.py --tokens 500k --seeds 3 --out benchmarks/results/first_run.json
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from questlm.cli.options import parse_count
from questlm.config import load_config
from questlm.records import RunRecord, package_versions
from questlm.training import train

SIDES = {"float32": 16, "W4A4": 4, "W1A1": 1}


def main() -> None:
    """Train every side with every seed; print and write losses with their spread."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="500k")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--config", type=Path, help="settings instead of the preset's, such as another recipe")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    tokens = parse_count(arguments.tokens, "--tokens")
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            name: [
                _run(bits, tokens, seed, arguments.config, Path(folder) / f"{name}-{seed}")
                for seed in range(arguments.seeds)
            ]
            for name, bits in SIDES.items()
        }
    result = {
        "benchmark": "first_run",
        "command": shlex.join(["python", "benchmarks/first_run.py", *sys.argv[1:]]),
        "device": runs["W4A4"][0].device,
        "versions": package_versions(),
        "data": runs["W4A4"][0].data,
        "tokens": runs["W4A4"][0].tokens,
        "results": {name: _summary(records) for name, records in runs.items()},
    }
    print(json.dumps(result["results"], indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _run(bits: int, tokens: int, seed: int, file: Path | None, out: Path) -> RunRecord:
    # The dense side keeps float32 embeddings: it is the model without any rounding.
    quant = {"weight_bits": bits, "act_bits": bits, "embeddings": "float" if bits == 16 else "bf16"}
    flags = {"quant": quant, "budget": {"tokens": tokens}, "seed": seed}
    return train(load_config("nano", file, flags=flags), out)


def _summary(records: list[RunRecord]) -> dict[str, Any]:
    finals = [record.final or {} for record in records]
    losses = [final["loss"] or 0.0 for final in finals]
    worst_rise = max(
        later["loss"] - min(point["loss"] for point in record.curve[: index + 1])
        for record in records
        for index, later in enumerate(record.curve)
    )
    return {
        "loss_mean": statistics.mean(losses),
        "loss_min": min(losses),
        "loss_max": max(losses),
        "bits_per_byte_mean": statistics.mean(final["bits_per_byte"] or 0.0 for final in finals),
        "worst_rise_of_training_loss_above_its_best": worst_rise,
        "tokens_per_second": [record.tokens_per_second for record in records],
    }


if __name__ == "__main__":
    main()
