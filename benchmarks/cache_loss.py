"""What rounded keys and values cost: the loss of packed models with a cache in float32, bfloat16 and 8 bits.

    quest train --preset nano --bits 4 --out runs/w4a4 && quest pack runs/w4a4 --out runs/w4a4/packed
    python benchmarks/cache_loss.py runs/w4a4/packed --out benchmarks/results/cache_loss.json

Each model is measured on its own validation split, by the same windows each time; every token attends to rounded keys
and values, its own included, as in generation.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import common
import torch

import questlm
from questlm.models import KVCache
from questlm.progress import progress

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", type=Path, nargs="+")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    settings = vars(arguments) | {"artifacts": [path.name for path in arguments.artifacts]}
    result = common.header("cache_loss", torch.device("cpu"), settings)
    result["results"] = [_measure(path) for path in arguments.artifacts]
    for found in result["results"]:
        print(f"{found['label']}, {found['tokens']:,} tokens")
        for name, side in found["caches"].items():
            print(f"  {name:<9} {side['loss']:.6f} ({side['over_float32']:+.6f})   {side['bytes_per_token']} bytes")
    if arguments.out:
        common.write(arguments.out, result)


def _measure(path: Path) -> dict[str, Any]:
    model = questlm.load(path)
    quantization, training = model.artifact.quantization_config, model.training
    caches: dict[str, dict[str, Any]] = {}
    with progress(path.name, len(DTYPES)) as update:
        for done, (name, dtype) in enumerate(DTYPES.items()):
            update(done, name)
            found = questlm.evaluate(path, cache_dtype=dtype)
            room = KVCache(model.config, 1, 1, dtype, "cpu")
            size = sum(each.nbytes for each in (room.entries, room.scales) if each is not None)
            caches[name] = {"loss": found.loss, "bytes_per_token": size}
    for each in caches.values():
        each["over_float32"] = each["loss"] - caches["float32"]["loss"]
    return {
        "label": f"{quantization.method} W{quantization.weight_bits}A{quantization.act_bits}",
        "model": model.config.model_dump(),
        "seq_len": training.get("seq_len"),
        "trained_tokens": training.get("tokens"),
        "data": (training.get("data") or {}).get("source"),
        "tokens": found.tokens,
        "loss_in_training": found.trained_loss,
        "caches": caches,
    }


if __name__ == "__main__":
    main()
