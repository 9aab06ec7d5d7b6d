"""What the planner knows of GPUs: training speeds and memory bandwidths, gathered from measured results.

    python benchmarks/gather_speeds.py        # reads benchmarks/results, writes src/questlm/scaling/gpus.json

From each `train_step-PRESET-GPU.json` of a preset (no accumulation, vocabulary 32,000, 512 tokens a window) the tokens
a second of each side, and from `kernels-GPU.json` the bandwidth of a copy.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import common

from questlm.config import load_config
from questlm.scaling.shapes import training_flops

TARGET = Path(__file__).resolve().parents[1] / "src" / "questlm" / "scaling" / "gpus.json"


def gather(results: Path) -> dict[str, Any]:
    """The content of gpus.json: by short name of a GPU."""
    gpus: dict[str, Any] = {}
    for file in sorted(results.glob("kernels-*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["device"].startswith("NVIDIA"):
            gpus[file.stem.removeprefix("kernels-")] = {
                "name": content["device"],
                "bytes_per_second": round(content["copy_bytes_per_second"]),
                "speeds": [],
            }
    for file in sorted(results.glob("train_step-*.json")):
        match = re.fullmatch(r"train_step-(\d+m)-(\w+)", file.stem)
        if match and match[2] in gpus:
            gpus[match[2]]["speeds"] += _speeds(json.loads(file.read_text(encoding="utf-8")), file.name)
    return gpus


def _speeds(content: dict[str, Any], name: str) -> list[dict[str, Any]]:
    settings = content["settings"]
    config = load_config(settings["preset"], flags={"model": {"vocab_size": settings["vocab_size"]}})
    return [
        {
            "precision": side,
            "flops_per_token": training_flops(config.model),
            "tokens_per_second": side_result["tokens_per_second"],
            "date": content["date"],
            "from": name,
        }
        for side, side_result in content["results"].items()
    ]


if __name__ == "__main__":
    common.write(TARGET, gather(common.RESULTS))
