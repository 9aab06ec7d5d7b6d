"""Train the yardstick and compare its losses with those measured with the paper's public code on the same work.

The work: preset 30m on parts 00 and 01 of the corpus, 512-token windows, 64 a step, one epoch (1,814 steps), validation
over the whole held-out split. The data folder holds train_00.txt.xz, train_01.txt.xz, val.txt.xz and bpe8192.json.

    python benchmarks/yardstick.py --data corpus --bits 16,4,2,1 --seeds 0
    python benchmarks/yardstick.py --data corpus --bits 4 --backend auto,reference --compile on,off --tokens 3M

With several backends or ways to compile, each is a run of its own with the first seed, and the loss curves are compared
with that of the first; further seeds go the first way, and show what is noise. The result is written after every run,
so a job that is cut short keeps what it has.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import torch

TOKENS = 59_441_152  # 1,814 steps of 64 x 512
REFERENCE = {"16": 3.6083, "4": 3.6296, "2": 3.8557, "1": 4.2543}
REFERENCE_SOURCE = (
    "the paper's public code on one H100, PyTorch 2.11, torch.compile, the same tokens, seed 0; validation loss in "
    "nats a token over 415,878 tokens; two seeds differ by about 0.006"
)


def main() -> None:
    """Run every combination, print and write."""
    arguments = _arguments()
    started = time.perf_counter()
    configs = {_name(*way): _config(arguments, *way) for way in _ways(arguments)}
    stage(next(iter(configs.values())))
    staged = time.perf_counter() - started
    print(f"data ready after {staged:.0f} s", flush=True)
    if arguments.stage_only:
        return
    device = _device(arguments)
    runs: list[dict[str, Any]] = []
    for way in _ways(arguments):
        runs.append(run(configs[_name(*way)], *way))
        _print_run(runs[-1])
        result = {
            **common.header("yardstick", device, _settings(arguments)),
            "tokenising_seconds": round(staged, 1),
            "reference": {"loss": REFERENCE, "source": REFERENCE_SOURCE},
            "runs": runs,
            "summary": summary(runs),
            "curves": curve_differences(runs),
        }
        common.write(arguments.out or common.RESULTS / f"yardstick-{common.device_slug(device)}.json", result)
    for line in result["summary"] + result["curves"]:
        print("   ".join(f"{key} {value}" for key, value in line.items()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the parts of the corpus")
    parser.add_argument("--parts", default="train_0[01].txt.xz", help="training files in it")
    parser.add_argument("--preset", default="30m")
    parser.add_argument("--bits", default="16,4,2,1")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--backend", default="auto", help="one or several")
    parser.add_argument("--compile", default="auto", help="one or several of auto, on, off")
    parser.add_argument("--tokens", default=str(TOKENS), help="fewer than the yardstick's for a comparison of paths")
    parser.add_argument("--batch", type=int, default=64, help="windows a step")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--log-every", type=int, default=50, help="steps a point of the loss curve")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", action="append", default=[], help="section.key=value; may be repeated")
    parser.add_argument("--note", help="kept in the result, such as what else ran on the machine")
    parser.add_argument("--stage-only", action="store_true", help="tokenise into the cache and stop")
    parser.add_argument("--out", type=Path, help="JSON file to write [default: in benchmarks/results]")
    return parser.parse_args()


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(arguments).items() if name not in ("out", "stage_only")}


def _ways(arguments: argparse.Namespace) -> list[tuple[str, int, str, str]]:
    """Bits, seed, backend, compile of each run. Further seeds, which show the noise, go the first way only."""
    lists = (arguments.seeds, arguments.bits, arguments.backend, arguments.compile)
    seeds, bits, backends, compiles = (text.split(",") for text in lists)
    ways = list(itertools.product(backends, compiles))
    return [
        (width, int(seed), *way)
        for seed, width in itertools.product(seeds, bits)
        for way in (ways if seed == seeds[0] else ways[:1])
    ]


def _name(bits: str, seed: int, backend: str, compile_: str) -> str:
    return f"{bits} bits, seed {seed}, backend {backend}, compile {compile_}"


def _config(arguments: argparse.Namespace, bits: str, seed: int, _backend: str, compile_: str) -> Any:
    from questlm.cli.options import parse_count
    from questlm.config import load_config

    width = int(bits) if bits.isdecimal() else bits
    flags = {
        "seed": seed,
        "budget": {"tokens": parse_count(arguments.tokens, "--tokens")},
        # The dense side keeps float32 embeddings: it is the model without any rounding but autocast's.
        "quant": {"weight_bits": width, "act_bits": width, "embeddings": "float" if bits == "16" else "bf16"},
        "data": {
            "source": str(arguments.data / arguments.parts),
            "val": str(arguments.data / "val.txt.xz"),
            "tokenizer": str(arguments.data / "bpe8192.json"),
        },
        "train": {
            "seq_len": arguments.seq_len,
            "batch_size": arguments.batch,
            "device": arguments.device,
            "compile": compile_,
            "log_every": arguments.log_every,
            "checkpoint_every": 10**6,
        },
    }
    return load_config(arguments.preset, flags=flags, overrides=arguments.set)


def stage(config: Any) -> None:
    """Tokenise into the cache, once."""
    from questlm.data import prepare

    prepare(config.data, config.model.vocab_size)


def run(config: Any, bits: str, seed: int, backend: str, compile_: str) -> dict[str, Any]:
    """Train once; what the run's record says, and the time of the whole call."""
    from questlm.ops import using_backend
    from questlm.training import train

    common.free_memory()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, using_backend(backend):
        record = train(config, Path(folder) / "run")
    final = record.final or {}
    loss = final["loss"]
    assert loss is not None
    reference = REFERENCE.get(bits) if record.tokens == TOKENS else None
    return {
        "bits": bits,
        "seed": seed,
        "backend": backend,
        "compile": compile_,
        "loss": loss,
        "bits_per_byte": final["bits_per_byte"],
        "val_tokens": final["tokens"],
        "reference_loss": reference,
        "over_reference": round(loss - reference, 4) if reference else None,
        "training_seconds": round(record.seconds, 2),
        "whole_seconds": round(time.perf_counter() - started, 2),
        "tokens_per_second": record.tokens_per_second,
        "peak_memory_bytes": record.peak_memory_bytes,
        "steps": record.steps,
        "tokens": record.tokens,
        "train_tokens_of_corpus": record.data["train_tokens"],
        "data_hash": record.data["hash"],
        "checks": record.checks,
        "curve": [{key: point[key] for key in ("step", "loss")} for point in record.curve],
    }


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each width and path: mean loss over the seeds, their range, excess over 16 bits, distance to the reference."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for item in runs:
        groups.setdefault((item["bits"], item["backend"], item["compile"]), []).append(item)
    dense = next((statistics.mean(r["loss"] for r in found) for key, found in groups.items() if key[0] == "16"), None)
    lines = []
    for (bits, backend, compile_), found in groups.items():
        losses = [item["loss"] for item in found]
        mean, reference = statistics.mean(losses), found[0]["reference_loss"]
        lines.append(
            {
                "bits": bits,
                "backend": backend,
                "compile": compile_,
                "seeds": len(found),
                "loss": round(mean, 4),
                "range": round(max(losses) - min(losses), 4),
                "over_16_bits": None if dense is None else round(mean - dense, 4),
                "over_reference": round(mean - reference, 4) if reference else None,
                "tokens_per_second": round(statistics.median(item["tokens_per_second"] for item in found)),
            }
        )
    return lines


def curve_differences(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How far each loss curve is from that of the first run of the same width and seed, and of the same width alone."""
    lines = []
    for item in runs:
        first = next(r for r in runs if r["bits"] == item["bits"])
        if item is first:
            continue
        gaps = [abs(a["loss"] - b["loss"]) for a, b in zip(first["curve"], item["curve"], strict=True)]
        lines.append(
            {
                "bits": item["bits"],
                "first": f"seed {first['seed']}, {first['backend']}, compile {first['compile']}",
                "other": f"seed {item['seed']}, {item['backend']}, compile {item['compile']}",
                "largest": round(max(gaps), 5) if gaps else None,
                "mean": round(statistics.mean(gaps), 5) if gaps else None,
                "final": round(abs(item["loss"] - first["loss"]), 5),
            }
        )
    return lines


def _print_run(item: dict[str, Any]) -> None:
    reference = f"{item['over_reference']:+.4f} over the reference" if item["reference_loss"] else "not the yardstick"
    name = _name(item["bits"], item["seed"], item["backend"], item["compile"])
    print(
        f"{name}: loss {item['loss']:.4f} ({reference}), "
        f"{item['training_seconds']:.1f} s, {item['tokens_per_second']:,.0f} tokens/s, "
        f"{item['peak_memory_bytes'] / 2**30:.2f} GiB",
        flush=True,
    )


def _device(arguments: argparse.Namespace) -> torch.device:
    from questlm.training.device import pick_device

    return pick_device(arguments.device)


if __name__ == "__main__":
    main()
