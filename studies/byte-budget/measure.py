"""Train, pack and measure models under 4, 8 and 16 MB, and write docs/results/byte-budget.md.

    python studies/byte-budget/measure.py --data corpus              # all runs that have no record yet, then the page
    python studies/byte-budget/measure.py --data corpus --only w3a16
    python studies/byte-budget/measure.py --page                     # the page alone
    python studies/byte-budget/measure.py --tiny --work tiny         # tries everything out in minutes on a CPU

Each run leaves `runs/NAME.json`, and its checkpoint in --work until then: started again, the script goes on where it
was. A side is a precision; for each budget it takes the deepest model of its list whose single file is planned to fit,
and besides each precision trains preset 30m. All train on the same text with the same settings (`TRAIN`); embedding and
head are tied, of 6 bits, and steps fp16, but for preset 30m, whose head stays its own. The tokenizer is not counted.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

import questlm
from questlm.artifact.comparison import coded_sizes
from questlm.artifact.read import load_artifact
from questlm.config import ModelConfig, QuantSpec, RunConfig, load_config
from questlm.json_files import write_json
from questlm.scaling import LawFit
from questlm.scaling.artifact_size import artifact_bytes
from questlm.training import RunFolder, load_run, resume, train

sys.path.insert(0, str(Path(__file__).parents[1]))
from tables import markdown, replace_part

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "results" / "byte-budget.md"
LAW = Path(questlm.__file__).parent / "scaling" / "published_fit.json"
SIDES = {"w1a1": (1, 1), "w2a2": (2, 2), "w4a4": (4, 4), "w2a16": (2, 16), "w3a16": (3, 16), "w4a16": (4, 16)}
BUDGETS = (4, 8, 16)  # MB
WIDTHS = (256, 384, 512, 640, 768, 896, 1024)
TRAIN = {"seq_len": 512, "optimizer": "muon", "batch_size": 32, "lr": 1.2e-3, "schedule": "linear", "final_lr": 0.0}


class Job(NamedTuple):
    """One model: its name, the budget in MB (None: none), shape and precision."""

    name: str
    budget: int | None
    model: ModelConfig
    quant: QuantSpec


def jobs(vocab_size: int, tiny: bool) -> list[Job]:
    """All models of the study."""
    found = []
    for side, (weight, act) in SIDES.items():
        small = QuantSpec(weight_bits=weight, act_bits=act, steps="fp16", embeddings="int6")
        budgets: tuple[float, ...] = (0.2,) if tiny else BUDGETS
        for budget in budgets:
            shape = largest(small, 1e6 * budget, vocab_size)
            found.append(Job(f"{budget}mb-{side}", int(budget) or None, shape, small))
        if not tiny:
            wide = load_config("30m").model.model_copy(update={"vocab_size": vocab_size})
            found.append(Job(f"30m-{side}", None, wide, small.model_copy(update={"embeddings": "int8"})))
    return found


def largest(quant: QuantSpec, limit: float, vocab_size: int) -> ModelConfig:
    """The model with most parameters in blocks whose single file is planned to fit in `limit` bytes."""
    shapes = [
        ModelConfig(layers=layers, hidden=width, heads=max(1, width // 128), vocab_size=vocab_size, tied_head=True)
        for width in (64, 128, *WIDTHS)
        for layers in range(max(2, width // 170), max(3, width // 64) + 1)
    ]
    fitting = [shape for shape in shapes if artifact_bytes(shape, quant, coded=True, tokenizer=0) <= limit]
    return max(fitting, key=lambda shape: shape.block_parameters)


def settings(job: Job, arguments: argparse.Namespace) -> RunConfig:
    """Settings of a run on the yardstick's text, or on little of the standard library's."""
    data: dict[str, Any] = {"source": "stdlib", "vocab_size": 512, "max_tokens": 60_000}
    if not arguments.tiny:
        corpus = arguments.data
        data = {"source": str(corpus / "train_0[01].txt.xz"), "val": str(corpus / "val.txt.xz")}
        data["tokenizer"] = str(corpus / "bpe8192.json")
    return load_config(
        flags={
            "model": job.model.model_dump(),
            "quant": job.quant.model_dump(),
            "data": data,
            "train": {**TRAIN, **({"seq_len": 64, "batch_size": 4, "eval_tokens": 2048} if arguments.tiny else {})},
            "budget": {"tokens": 4096 if arguments.tiny else 59_441_152},
            "seed": arguments.seed,
        }
    )


def measure(job: Job, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train or go on training, pack, and measure what was packed."""
    run, config = arguments.work / job.name, settings(job, arguments)
    record = resume(run) if (run / "config.yaml").exists() else train(config, run)
    file = run / "model.quest"
    file.unlink(missing_ok=True)
    begun = time.perf_counter()
    report = questlm.pack(run, file, single_file=True, tokenizer="")
    packed, begun = time.perf_counter() - begun, time.perf_counter()
    artifact = load_artifact(file)
    loaded = time.perf_counter() - begun
    device = "cuda" if torch.cuda.is_available() else "cpu"
    text = {"data": config.data.val or __file__, "tokenizer": RunFolder(run).tokenizer_file}
    trained = load_run(run).model.to(device).eval()
    losses = [
        questlm.evaluate(model, **text, seq_len=config.train.seq_len)
        for model in (trained, questlm.load(file, device=device))
    ]
    sizes = coded_sizes(artifact)
    weights = sum(spec.shape[0] * spec.codes[1] for spec in _codes(artifact))
    return {
        "budget": job.budget, "model": job.model.model_dump(), "quant": job.quant.model_dump(),
        "parameters": job.model.block_parameters, "planned": artifact_bytes(job.model, job.quant, True, 0),
        "bytes": report.bytes, "bytes_by_part": report.bytes_by_part, "codes": sizes,
        "bits_a_code": 8 * sizes["coded"] / weights, "entropy_a_code": 8 * sizes["entropy"] / weights,
        "loss": losses[1].loss, "bits_per_byte": losses[1].bits_per_byte, "gap": losses[1].loss - losses[0].loss,
        "trained": record.final, "pack_seconds": packed, "load_seconds": loaded, "predicted": predicted(job, config),
        "device": record.device,
    }  # fmt: skip


def _codes(artifact: Any) -> list[Any]:
    from questlm.artifact.format import expected_tensors

    return [spec for spec in expected_tensors(artifact.config).values() if spec.codes is not None]


def predicted(job: Job, config: RunConfig) -> float | None:
    """The published law's loss for this size, precision and tokens; None where it has no such precision."""
    fit = LawFit.load(LAW)
    weight, act = job.quant.weight_bits, job.quant.act_bits
    group = f"quest/w{weight}a{act}/int{weight}"
    tokens = config.budget.tokens or 1
    return fit.predict(job.model.block_parameters, tokens, group) if group in fit.groups else None


def write_page() -> None:
    """Put the tables into the page."""
    records = {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((HERE / "runs").glob("*.json"))
    }
    header = ["run", "parameters", "bytes", "planned", "bits a code", "entropy", "loss", "bits per byte", "law", "gap"]
    rows = [
        [
            name, f"{r['parameters']:,}", f"{r['bytes']:,}", f"{r['planned'] / r['bytes'] - 1:+.2%}",
            f"{r['bits_a_code']:.3f}", f"{r['entropy_a_code']:.3f}", f"{r['loss']:.4f}", f"{r['bits_per_byte']:.4f}",
            "-" if r["predicted"] is None else f"{r['predicted']:.3f}", f"{r['gap']:+.1e}",
        ]
        for name, r in records.items()
    ]  # fmt: skip
    ways = ["packed", "coded", "entropy", "zstd-22", "brotli-11", "xz"]
    coders = [[name, *(f"{r['codes'][way]:,.0f}" for way in ways)] for name, r in records.items()]
    parts = [
        [name, ", ".join(f"{part} {count:,}" for part, count in sorted(r["bytes_by_part"].items())),
         f"{r['pack_seconds']:.1f}", f"{r['load_seconds']:.1f}"]
        for name, r in records.items()
    ]  # fmt: skip
    replace_part(PAGE, "runs", markdown(header, rows))
    replace_part(PAGE, "coders", markdown(["codes of", *ways], coders))
    replace_part(PAGE, "parts", markdown(["run", "bytes by part", "pack, s", "load, s"], parts))


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("corpus"))
    parser.add_argument("--work", type=Path, default=Path("byte-budget-work"), help="where runs are kept meanwhile")
    parser.add_argument("--only", default="", help="only runs whose name holds this text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="tiny models, records in --work, and no page")
    parser.add_argument("--page", action="store_true", help="only write the page")
    arguments = parser.parse_args()
    records = arguments.work / "records" if arguments.tiny else HERE / "runs"
    for job in [] if arguments.page else jobs(512 if arguments.tiny else 8192, arguments.tiny):
        record = records / f"{job.name}.json"
        if arguments.only in job.name and not record.exists():
            print(f"{job.name}: {job.model.layers} x {job.model.hidden}", flush=True)
            record.parent.mkdir(parents=True, exist_ok=True)
            write_json(record, measure(job, arguments))
            shutil.rmtree(arguments.work / job.name)
    if not arguments.tiny:
        write_page()


if __name__ == "__main__":
    main()
