"""On two GPUs, through NCCL: DDP and FSDP train as one GPU does, compiled, and a run goes on with another number."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from questlm.config import RunConfig, to_yaml
from questlm.records import RunRecord
from questlm.training import train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")]


def by_two(*words: str) -> None:
    """`torchrun -m questlm train` with two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    job = subprocess.run(
        [*command, "-m", "questlm", "train", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert job.returncode == 0, job.stderr[-4000:]


def final_loss(path: Path) -> float:
    final = RunRecord.load(path).final
    assert final is not None
    assert final["loss"] is not None
    return final["loss"]


def test_two_gpus_train_as_one_does(tiny_settings: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = tiny_settings(
        model={"layers": 2, "hidden": 256, "heads": 2, "mlp_hidden": 512},
        quant={"weight_bits": 4, "act_bits": 4},
        train={
            "device": "cuda", "batch_size": 8, "micro_batch_size": 2, "lr": 1e-3,
            "log_every": 1, "checkpoint_every": 8, "eval_every": 8,
        },
        budget={"tokens": 16 * 8 * 32},
    )  # fmt: skip
    settings = tmp_path / "settings.yaml"
    settings.write_text(to_yaml(config))
    alone = train(config, tmp_path / "alone")
    for engine in ("ddp", "fsdp"):
        by_two("--config", str(settings), "--set", f"train.parallel={engine}", "--out", str(tmp_path / engine))
        record = RunRecord.load(tmp_path / engine)
        assert (record.processes, record.parallel) == (2, engine)
        losses = [point["loss"] for point in record.curve]
        # bf16 products of other shapes round otherwise, and codes near an edge fall to its other side
        assert losses == pytest.approx([point["loss"] for point in alone.curve], abs=0.02)
        assert final_loss(tmp_path / engine) == pytest.approx(final_loss(tmp_path / "alone"), abs=0.02)
    half_way = tmp_path / "half-way"
    shutil.copytree(tmp_path / "alone", half_way)
    for path in (half_way / "checkpoints").iterdir():
        if path.name != "step-00000008":
            shutil.rmtree(path)
    by_two("--resume", str(half_way), "--set", "train.parallel=fsdp")
    assert RunRecord.load(half_way).processes == 2
    assert final_loss(half_way) == pytest.approx(final_loss(tmp_path / "alone"), abs=0.02)
