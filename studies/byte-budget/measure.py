"""Train, pack and measure models under 4, 8 and 16 MB, and write docs/results/byte-budget.md.

    python studies/byte-budget/measure.py --data corpus              # all runs that have no record yet, then the page
    python studies/byte-budget/measure.py --data corpus --half --workers 4 --limit 540 --records out/records.json
    python studies/byte-budget/measure.py --unpack out/records.json  # puts records into runs/, then the page
    python studies/byte-budget/measure.py --only w3a16
    python studies/byte-budget/measure.py --tiny --work tiny         # tries everything out in minutes on a CPU

Each run leaves `runs/NAME.json`, and its checkpoint in --work until then: started again, the script goes on where it
was. With --workers N, so many processes measure at a time, each on one GPU. --limit ends them in time, and starts none
that would not end before. A side is a precision; for each budget it takes the deepest model of its list whose single
file is planned to fit, and besides each precision trains preset 30m. All train on the same text with the same settings
(`TRAIN`); embedding and head are tied, of 6 bits, and steps fp16, but for preset 30m, whose head stays its own. The
tokenizer is not counted. --half trains on half of the text, train_00.txt.xz.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

import questlm
from questlm.artifact.coding import entropy_bytes
from questlm.artifact.comparison import coded_sizes
from questlm.artifact.format import expected_tensors
from questlm.artifact.read import Artifact, load_artifact
from questlm.artifact.single_file import tensor_matrices
from questlm.config import ModelConfig, QuantSpec, RunConfig, load_config
from questlm.data import prepare
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
BUDGETS = (16, 8, 4)  # MB
TOKENS = {"": 59_441_152, "-half": 28_999_680}  # one epoch of both parts of the text, or nearly one of the first
WIDTHS = (256, 384, 512, 640, 768, 896, 1024)
LIKELY_SECONDS = 120.0  # of a run, until one has ended
TRAIN = {"seq_len": 512, "optimizer": "muon", "batch_size": 32, "lr": 1.2e-3, "schedule": "linear", "final_lr": 0.0}


class Job(NamedTuple):
    """One model: its name, the budget in MB (None: none), shape and precision."""

    name: str
    budget: float | None
    model: ModelConfig
    quant: QuantSpec


def jobs(arguments: argparse.Namespace) -> list[Job]:
    """The chosen models of the study, the largest first."""
    vocab_size, ending = 512 if arguments.tiny else 8192, "-half" if arguments.half else ""
    budgets: tuple[float, ...] = (0.2,) if arguments.tiny else BUDGETS
    found = []
    for budget in budgets:
        for side, (weight, act) in SIDES.items():
            quant = QuantSpec(weight_bits=weight, act_bits=act, steps="fp16", embeddings="int6")
            shape = largest(quant, 1e6 * budget, vocab_size)
            found.append(Job(f"{budget}mb-{side}{ending}", budget, shape, quant))
    for side, (weight, act) in {} if arguments.tiny else SIDES.items():
        wide = load_config("30m").model.model_copy(update={"vocab_size": vocab_size})
        quant = QuantSpec(weight_bits=weight, act_bits=act, steps="fp16", embeddings="int8")
        found.append(Job(f"30m-{side}{ending}", None, wide, quant))
    return [job for job in found if arguments.only in job.name]


def largest(quant: QuantSpec, limit: float, vocab_size: int) -> ModelConfig:
    """The model with most parameters in blocks whose single file is planned to fit in `limit` bytes."""
    shapes = [
        ModelConfig(layers=layers, hidden=width, heads=max(1, width // 128), vocab_size=vocab_size, tied_head=True)
        for width in (64, 128, *WIDTHS)
        for layers in range(max(2, width // 170), max(3, width // 48) + 1)
    ]
    fitting = [shape for shape in shapes if artifact_bytes(shape, quant, coded=True, tokenizer=0) <= limit]
    return max(fitting, key=lambda shape: shape.block_parameters)


def settings(job: Job, arguments: argparse.Namespace) -> RunConfig:
    """Settings of a run on the yardstick's text, or on little of the standard library's."""
    data: dict[str, Any] = {"source": "stdlib", "vocab_size": 512, "max_tokens": 60_000}
    if not arguments.tiny:
        corpus = arguments.data
        parts = "train_00.txt.xz" if arguments.half else "train_0[01].txt.xz"
        data = {"source": str(corpus / parts), "val": str(corpus / "val.txt.xz")}
        data["tokenizer"] = str(corpus / "bpe8192.json")
    return load_config(
        flags={
            "model": job.model.model_dump(),
            "quant": job.quant.model_dump(),
            "data": data,
            "train": {**TRAIN, **({"seq_len": 64, "batch_size": 4, "eval_tokens": 2048} if arguments.tiny else {})},
            "budget": {"tokens": 4096 if arguments.tiny else TOKENS["-half" if arguments.half else ""]},
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
    codes, entropy = _codes(artifact)
    return {
        "budget": job.budget, "model": job.model.model_dump(), "quant": job.quant.model_dump(),
        "parameters": job.model.block_parameters, "planned": artifact_bytes(job.model, job.quant, True, 0),
        "bytes": report.bytes, "bytes_by_part": report.bytes_by_part, "tokens": record.tokens,
        "block": coded_sizes(artifact, f"layers.{job.model.layers // 2}."),
        "bits_a_code": 8 * report.bytes_by_part["codes"] / codes, "entropy_a_code": 8 * entropy / codes,
        "loss": losses[1].loss, "bits_per_byte": losses[1].bits_per_byte, "gap": losses[1].loss - losses[0].loss,
        "trained": record.final, "pack_seconds": packed, "load_seconds": loaded, "predicted": predicted(job, config),
        "device": record.device,
    }  # fmt: skip


def _codes(artifact: Artifact) -> tuple[int, float]:
    """How many codes the blocks have, and the bytes of their entropy, matrix by matrix."""
    specs = {name: spec for name, spec in expected_tensors(artifact.config).items() if spec.part == "codes"}
    matrices = [matrix for name, spec in specs.items() for matrix in tensor_matrices(spec, artifact.tensors[name])]
    return sum(matrix.shape[0] * matrix.shape[1] for matrix in matrices), sum(map(entropy_bytes, matrices))


def predicted(job: Job, config: RunConfig) -> float | None:
    """The published law's loss for this size, precision and tokens; None where it has no such precision."""
    fit = LawFit.load(LAW)
    weight, act = job.quant.weight_bits, job.quant.act_bits
    group = f"quest/w{weight}a{act}/int{weight}"
    tokens = config.budget.tokens or 1
    return fit.predict(job.model.block_parameters, tokens, group) if group in fit.groups else None


def write_page() -> None:
    """Put the tables into the page."""
    records = {path.stem: read_json(path) for path in sorted((HERE / "runs").glob("*.json"))}
    header = [
        "run",
        "tokens",
        "parameters",
        "bytes",
        "planned",
        "bits a code",
        "entropy",
        "loss",
        "bits per byte",
        "law",
        "gap",
    ]
    rows = [
        [
            name, f"{r['tokens'] / 1e6:.1f}M", f"{r['parameters']:,}",
            f"{r['bytes']:,}", f"{r['planned'] / r['bytes'] - 1:+.2%}",
            f"{r['bits_a_code']:.3f}", f"{r['entropy_a_code']:.3f}", f"{r['loss']:.4f}", f"{r['bits_per_byte']:.4f}",
            "-" if r["predicted"] is None else f"{r['predicted']:.3f}", f"{r['gap']:+.1e}",
        ]
        for name, r in records.items()
    ]  # fmt: skip
    ways = ["packed", "coded", "entropy", "zstd-22", "brotli-11", "xz"]
    coders = [[name, *(f"{r['block'][way]:,.0f}" for way in ways)] for name, r in records.items()]
    parts = [
        [name, ", ".join(f"{part} {count:,}" for part, count in sorted(r["bytes_by_part"].items())),
         f"{r['pack_seconds']:.1f}", f"{r['load_seconds']:.1f}"]
        for name, r in records.items()
    ]  # fmt: skip
    replace_part(PAGE, "runs", markdown(header, rows))
    replace_part(PAGE, "coders", markdown(["codes of", *ways], coders))
    replace_part(PAGE, "parts", markdown(["run", "bytes by part", "pack, s", "load, s"], parts))


def measure_one(job: Job, arguments: argparse.Namespace) -> None:
    """Measure in this process, write the record, and remove the run."""
    record = measure(job, arguments)
    (arguments.work / "records").mkdir(parents=True, exist_ok=True)
    write_json(arguments.work / "records" / f"{job.name}.json", record)
    shutil.rmtree(arguments.work / job.name)


def measure_all(waiting: list[Job], arguments: argparse.Namespace) -> None:
    """Measure in processes, each on a GPU of its own, until no job or no time is left."""
    first = settings(waiting[0], arguments)
    prepare(first.data, first.model.vocab_size)  # the text, once
    deadline = time.monotonic() + arguments.limit
    gpus, failed, seconds, lock = max(1, torch.cuda.device_count()), [], [LIKELY_SECONDS], threading.Lock()

    def serve(index: int) -> None:
        while True:
            with lock:  # jobs are ordered by size: the next takes no longer than the longest until now
                if not waiting or time.monotonic() + seconds[-1] > deadline:
                    return
                job = waiting.pop(0)
            begun = time.monotonic()
            command = [sys.executable, __file__, *sys.argv[1:], "--job", job.name]
            environment = os.environ | {"CUDA_VISIBLE_DEVICES": str(index % gpus), "PYTHONUNBUFFERED": "1"}
            log = arguments.work / f"{job.name}.log"
            with log.open("w", encoding="utf-8") as output:
                status = _status(command, environment, output, deadline - time.monotonic())
            with lock:
                if status:
                    failed.append(job.name)
                    print(f"{job.name} ended with {status}:\n{log.read_text(encoding='utf-8')[-1500:]}", flush=True)
                else:
                    seconds[:] = [time.monotonic() - begun]
                    print(f"{job.name}: {seconds[0]:.0f} s", flush=True)
                    collect(arguments)

    arguments.work.mkdir(parents=True, exist_ok=True)
    threads = [threading.Thread(target=serve, args=(index,)) for index in range(arguments.workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{len(waiting)} not begun, {len(failed)} failed or cut off: {', '.join(failed) or 'none'}", flush=True)


def _status(command: list[str], environment: dict[str, str], output: IO[str], seconds: float) -> int | str:
    """Run a command; its exit status, or that it was killed when the time was over."""
    bound = seconds if seconds < float("inf") else None
    try:
        return subprocess.run(
            command, env=environment, stdout=output, stderr=output, timeout=bound, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        return "the end of the time"


def collect(arguments: argparse.Namespace) -> None:
    """Write the records that there are in one file, and where the study keeps them."""
    found = {path.stem: read_json(path) for path in sorted((arguments.work / "records").glob("*.json"))}
    if arguments.records is not None:
        arguments.records.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.records, found)
    if not arguments.tiny:
        unpack(found)


def unpack(records: dict[str, Any]) -> None:
    """Write records where the study keeps them."""
    for name, record in records.items():
        (HERE / "runs").mkdir(exist_ok=True)
        write_json(HERE / "runs" / f"{name}.json", record)


def read_json(path: Path) -> Any:
    """The content of a file."""
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("corpus"))
    parser.add_argument("--work", type=Path, default=Path("byte-budget-work"), help="where runs are kept meanwhile")
    parser.add_argument("--only", default="", help="only runs whose name holds this text")
    parser.add_argument("--half", action="store_true", help="half of the text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="tiny models, records in --work, and no page")
    parser.add_argument("--workers", type=int, default=1, help="processes, which share the GPUs")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds for all of it")
    parser.add_argument("--records", type=Path, help="write all records into this file too, after each run")
    parser.add_argument("--unpack", type=Path, help="put the records of such a file under runs/, and write the page")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    found = jobs(arguments)
    if arguments.job:
        measure_one(next(job for job in found if job.name == arguments.job), arguments)
        return
    if arguments.unpack:
        unpack(read_json(arguments.unpack))
    else:
        folder = arguments.work / "records" if arguments.tiny else HERE / "runs"
        waiting = [job for job in found if not (folder / f"{job.name}.json").exists()]
        print(f"{len(waiting)} of {len(found)} runs are missing", flush=True)
        if waiting:
            measure_all(waiting, arguments)
    if not arguments.tiny:
        write_page()


if __name__ == "__main__":
    main()
