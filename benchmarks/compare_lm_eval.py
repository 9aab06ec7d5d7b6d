"""Does our scorer agree with lm-evaluation-harness, item by item?

    python benchmarks/compare_lm_eval.py RUN --tasks-dir eval/ --limit 100 --out docs/results/lm-eval.json

RUN is a run whose weights alone are quantised, so that the harness can score its export with its own class for
transformers. How well it was trained does not matter. Three scores of each choice are compared: our scorer's on the
packed model, the harness's through our class, and the harness's own on the export. Needs `pip install questlm[eval]`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import torch

import questlm
from questlm.artifact.read import load_artifact
from questlm.evaluation.task_result import TaskResult
from questlm.export.hugging_face import to_hugging_face
from questlm.integrations.lm_eval import harness_results, local_task
from questlm.json_files import write_json
from questlm.records import package_versions
from questlm.trained.tasks import evaluate_tasks
from questlm.training import RunFolder
from questlm.training.device import device_name

FILES = {"hellaswag": "hellaswag_val.jsonl", "lambada_openai": "lambada_openai.jsonl", "arc_easy": "arc_easy.jsonl"}


def main() -> None:
    options = read_options()
    with tempfile.TemporaryDirectory() as scratch:
        record = compare(options, Path(scratch))
    write_json(options.out, record)
    print(f"wrote {options.out}")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare our scorer with lm-evaluation-harness, item by item.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--tasks-dir", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def compare(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    packed, exported = scratch / "packed", scratch / "exported"
    questlm.pack(options.run, packed)
    artifact = load_artifact(packed)
    to_hugging_face(artifact, exported)
    seq_len = artifact.config.training["seq_len"]
    tasks = [local_task(name, options.tasks_dir / file, scratch / "cache") for name, file in FILES.items()]

    ours = evaluate_tasks(packed, list(FILES), options.tasks_dir, limit=options.limit, device="cpu")
    through = harness_results(packed, tasks, options.limit, device="cpu")
    settings = {"pretrained": str(exported), "dtype": "float32", "max_length": seq_len}
    found = lm_eval.simple_evaluate(
        "hf", settings, tasks=tasks, limit=options.limit, device="cpu", batch_size=8, bootstrap_iters=0
    )
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/compare_lm_eval.py", *map(shown, sys.argv[1:])]),
        "device": device_name(torch.device("cpu")),
        "versions": {**package_versions(), "lm_eval": lm_eval.__version__},
        "model": {
            "label": RunFolder(options.run).read_config().quant.label,
            "parameters": artifact.config.model.block_parameters,
            "trained on tokens": artifact.config.training["tokens"],
        },
        "tasks": {
            name: {
                "items": len(result.nats),
                "choices": sum(map(len, result.nats)),
                "against harness through our class": agreement(result, through[name].nats, through[name].correct),
                "against harness's own class": agreement(result, *theirs(found["samples"][name])),
            }
            for name, result in ours.items()
        },
    }


def shown(word: str) -> str:
    """A word of the command without this machine's folders."""
    return Path(word).name if word.startswith("/") else word


def theirs(samples: list[dict[str, Any]]) -> tuple[list[list[float]], dict[str, Any]]:
    """Log probabilities and what is right, from the harness's samples."""
    ordered = sorted(samples, key=lambda sample: sample["doc_id"])
    nats = [[float(nats) for nats, _ in sample["filtered_resps"]] for sample in ordered]
    names = [name for name in ("acc", "acc_norm") if name in ordered[0]]
    return nats, {name: np.array([bool(sample[name]) for sample in ordered]) for name in names}


def agreement(ours: TaskResult, nats: Any, correct: Mapping[str, Any]) -> dict[str, Any]:
    """How many items are judged differently by each measure, and the largest difference of a log probability."""
    gaps = [
        abs(mine - other)
        for each, others in zip(ours.nats, nats, strict=True)
        for mine, other in zip(each, others, strict=True)
    ]
    return {
        "items judged differently": {name: int(np.sum(flags != correct[name])) for name, flags in ours.correct.items()},
        "largest difference in nats": max(gaps),
    }


if __name__ == "__main__":
    main()
