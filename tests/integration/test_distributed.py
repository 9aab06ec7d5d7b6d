"""Several processes train one model: as one process would, saved so that any other number goes on, and never in doubt
about who decides."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from helpers.processes import Command
from helpers.ranks import Job, environment_of_ranks, finish, run
from questlm.cli import main
from questlm.config import ModelConfig, ParallelConfig, QuantSpec, RunConfig, preset, to_yaml
from questlm.config.schema import Budget
from questlm.data import prepare
from questlm.errors import CheckpointError
from questlm.evaluation import evaluate
from questlm.manifest import write_manifest
from questlm.models import Llama
from questlm.records import RunRecord
from questlm.scaling.exchange import exchanged_bytes
from questlm.training import load_run, resume, train
from questlm.training.checkpoint import latest_checkpoint, read_checkpoint, verify_checkpoint
from questlm.training.initial import find_initial

Settings = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def settings(tiny_settings: Settings) -> RunConfig:
    """Twelve steps of eight sequences; a low rate, so that rounding does not grow into another course."""
    return tiny_settings(
        model={"layers": 2},
        train={
            "batch_size": 8,
            "micro_batch_size": 1,
            "lr": 1e-3,
            "log_every": 1,
            "eval_every": 4,
            "keep_checkpoints": 5,
        },
        budget={"tokens": 12 * 8 * 32},
    )


def start(processes: int, *arguments: str) -> subprocess.Popen[str]:
    """`torchrun -m questlm train`."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"),
        *("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "questlm", "train"),
        *arguments,
    ]
    return subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def copy_until(run: Path, step: int, to: Path) -> Path:
    """A copy of a run as it was after `step`."""
    shutil.copytree(run, to)
    for path in (to / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    return to


def weights(path: Path) -> dict[str, torch.Tensor]:
    newest = latest_checkpoint(path / "checkpoints")
    assert newest is not None
    return read_checkpoint(newest)[0]["model"]


@pytest.fixture(scope="module")
def alone(settings: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that the others are compared with."""
    path = tmp_path_factory.mktemp("alone") / "run"
    train(settings, path)
    return path


_FAST_LINKS = {"gather": "operand", "keep_gathered": True, "prefetch": 1}


@pytest.fixture(scope="module")
def by_two(settings: RunConfig, alone: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same run by two processes with each engine; and resumed with FSDP from the one of one process."""
    folder = tmp_path_factory.mktemp("two")
    copy_until(alone, 4, folder / "resumed")
    run(
        2,
        Job(folder / "ddp", "ddp", settings),
        Job(folder / "replicas", "replicas", settings, exchange={"bucket_mb": 0.1}),
        Job(folder / "fsdp", "fsdp", settings),
        Job(folder / "resumed", "fsdp", exchange=_FAST_LINKS),
    )
    return {name: folder / name for name in ("ddp", "replicas", "fsdp", "resumed")}


def assert_same_course(path: Path, other: Path) -> None:
    first, second = RunRecord.load(path), RunRecord.load(other)
    for name in ("curve", "validations"):
        ours, theirs = getattr(first, name), getattr(second, name)
        assert [point["step"] for point in ours] == [point["step"] for point in theirs]
        assert [point["loss"] for point in ours] == pytest.approx([point["loss"] for point in theirs], abs=1e-4), name
    assert first.tokens == second.tokens
    assert first.final is not None
    assert second.final is not None
    assert first.final["loss"] == pytest.approx(second.final["loss"], abs=1e-4)
    assert first.final["tokens"] == second.final["tokens"]
    ours, theirs = weights(path), weights(other)
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert (weight.float() - theirs[name].float()).norm() <= 2e-3 * theirs[name].float().norm(), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "replicas", "fsdp", "resumed"])
def test_two_processes_train_as_one_does(name: str, by_two: dict[str, Path], alone: Path) -> None:
    path = by_two[name]
    assert_same_course(path, alone)
    record = RunRecord.load(path)
    assert (record.processes, record.parallel) == (2, "fsdp" if name == "resumed" else name)
    assert not list(path.rglob(".tmp-*"))


@pytest.mark.slow
def test_muon_shares_the_matrices_among_processes(settings: RunConfig, tmp_path: Path) -> None:
    """Three processes: neither the matrices of a shape nor their rows are a multiple of that."""
    muon = settings.model_copy(update={"train": settings.train.model_copy(update={"optimizer": "muon"})})
    batch = muon.train.model_copy(update={"batch_size": 6, "micro_batch_size": 1, "eval_every": None})
    muon = muon.model_copy(update={"train": batch, "budget": Budget(tokens=6 * 6 * 32)})
    train(muon, tmp_path / "alone")
    run(3, Job(tmp_path / "replicas", "replicas", muon), Job(tmp_path / "fsdp", "fsdp", muon))
    for name in ("replicas", "fsdp"):
        assert_same_course(tmp_path / name, tmp_path / "alone")


def test_a_sharded_model_is_saved_in_shards_without_pickles(by_two: dict[str, Path]) -> None:
    newest = latest_checkpoint(by_two["fsdp"] / "checkpoints")
    assert newest is not None
    names = sorted(path.name for path in newest.iterdir())
    pieces = [f"shard-0000{rank}-model-0000{group}-of-00002.safetensors" for rank in (1, 2) for group in (1, 2)]
    assert names == ["MANIFEST.json", *pieces, "state.json"]


@pytest.mark.slow
def test_saved_by_two_it_goes_on_alone_and_then_by_four(
    settings: RunConfig, by_two: dict[str, Path], alone: Path, tmp_path: Path
) -> None:
    """As every change between them: from pieces to a whole model, and from a whole model to pieces."""
    single = copy_until(by_two["fsdp"], 4, tmp_path / "single")
    assert resume(single).processes == 1
    assert_same_course(single, alone)
    copies = {engine: copy_until(single, 8, tmp_path / engine) for engine in ("ddp", "fsdp")}
    run(4, *(Job(path, engine) for engine, path in copies.items()), Job(tmp_path / "new", "fsdp", settings))
    for path in (*copies.values(), tmp_path / "new"):
        assert RunRecord.load(path).processes == 4
        assert_same_course(path, alone)


def test_a_run_in_pieces_is_evaluated_packed_and_begun_from(
    by_two: dict[str, Path], settings: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = by_two["fsdp"]
    final = RunRecord.load(path).final
    assert final is not None
    loaded = load_run(path)
    data = prepare(settings.data, loaded.config.model.vocab_size)
    assert evaluate(loaded.model, data.val, 32).loss == pytest.approx(final["loss"], abs=1e-9)
    monkeypatch.setattr(sys, "argv", ["quest", "pack", str(path), "--out", str(tmp_path / "packed")])
    with pytest.raises(SystemExit, match="0"):
        main()
    initial = find_initial(settings.model_copy(update={"init_from": str(path)}))
    assert initial is not None
    model = Llama(initial.shape)
    initial.copy_into(model)
    held = weights(path)
    assert all(torch.equal(parameter, held[name]) for name, parameter in model.named_parameters())


@pytest.mark.slow
def test_codes_are_moved_and_methods_that_learn_are_shared_too(tiny_settings: Settings, tmp_path: Path) -> None:
    """Of the nano model (3.4 M parameters in blocks, 1 M in embedding and head): two gathers a block, one of the rest.

    And with either engine train alike: two whose weights go plainly, LSQ and a method that is faded in; one with codes
    in the part that FSDP leaves whole after a validation; and one that learns from a teacher, too.
    """
    quants: dict[str, dict[str, Any]] = {
        "lsq": {"method": "lsq"},
        "gradual": {"gradual": 0.5},
        "head": {"overrides": {"lm_head": 8}},
    }
    changes = {"lr": 1e-3, "cage": 10, "micro_batch_size": 1, "eval_every": 3}
    configs = {name: tiny_settings(quant=quant, train=changes) for name, quant in quants.items()}
    train(tiny_settings(quant={"weight_bits": 16, "act_bits": 16}), tmp_path / "teacher")
    configs["taught"] = tiny_settings(train=changes | {"distill": str(tmp_path / "teacher")})
    wholly = {"lsq": "replicas", "gradual": "ddp", "head": "ddp", "taught": "replicas"}
    output = run(
        2,
        Job(tmp_path, "traffic"),
        *(Job(tmp_path / f"{name}-whole", wholly[name], config) for name, config in configs.items()),
        *(Job(tmp_path / f"{name}-fsdp", "fsdp", config) for name, config in configs.items()),
    )
    table = {line[:18].strip(): re.findall(r"([\w-]+) +([\d.]+) MB", line) for line in output.splitlines()}
    sent = {name: {kind: float(size) for kind, size in row} for name, row in table.items()}
    float32, bf16, codes = (sent[name] for name in ("FSDP2, float32", "FSDP2, bf16", "codes of 4 bits"))
    assert bf16["all-gather"] == pytest.approx(float32["all-gather"] / 2, rel=0.01)
    embedding_and_head = 2 * 2048 * 256 * 2 / 2 / 1e6
    blocks = float32["all-gather"] - 2 * embedding_and_head
    assert codes["all-gather"] - embedding_and_head < blocks / 8 * 1.05  # of 32 bits 4, and steps and norms
    assert codes["reduce-scatter"] == float32["reduce-scatter"]
    nano = ModelConfig(**{"vocab_size": 2048} | preset("nano")["model"])
    formula = exchanged_bytes(nano, QuantSpec(), "fsdp", 2, ParallelConfig(), half=False)
    assert (codes["all-gather"], codes["reduce-scatter"]) == pytest.approx(
        (formula.all_gather / 1e6, formula.reduce_scatter / 1e6), abs=2e-3
    )
    for name in configs:
        assert_same_course(tmp_path / f"{name}-fsdp", tmp_path / f"{name}-whole")


@pytest.mark.slow
def test_in_bf16_two_processes_train_as_one_does(settings: RunConfig, tmp_path: Path) -> None:
    """What they do on GPUs, but for the kernels: a code near an edge may fall to its other side."""
    run(1, Job(tmp_path / "alone", "auto", settings, like_gpu=True))
    half = {"gradients": "bf16"}
    jobs = {"replicas": half, "fsdp": half | _FAST_LINKS}
    run(2, *(Job(tmp_path / name, name, settings, like_gpu=True, exchange=each) for name, each in jobs.items()))
    alone = RunRecord.load(tmp_path / "alone")
    for name in jobs:
        record = RunRecord.load(tmp_path / name)
        for ours, theirs in ((record.curve, alone.curve), (record.validations, alone.validations)):
            assert [point["loss"] for point in ours] == pytest.approx([point["loss"] for point in theirs], abs=0.02)
        assert record.final is not None
        assert alone.final is not None
        assert record.final["loss"] == pytest.approx(alone.final["loss"], abs=0.02)


@pytest.mark.parametrize("damage", ["missing", "flipped", "unsealed"])
def test_damaged_pieces_are_refused(damage: str, by_two: dict[str, Path], tmp_path: Path) -> None:
    path = copy_until(by_two["fsdp"], 4, tmp_path / "run")
    newest = latest_checkpoint(path / "checkpoints")
    assert newest is not None
    piece = newest / "shard-00002-model-00001-of-00002.safetensors"
    if damage == "flipped":
        content = bytearray(piece.read_bytes())
        content[-5] ^= 1
        piece.write_bytes(content)
    else:
        piece.unlink()
    if damage == "unsealed":  # as by someone who makes the manifest too
        write_manifest(newest, "questlm-checkpoint", 1, {"step": 4})
    with pytest.raises(CheckpointError):
        resume(path)
    with pytest.raises(CheckpointError):
        load_run(path)


@pytest.mark.slow
def test_a_killed_process_ends_the_job_with_a_sentence(settings: RunConfig, tmp_path: Path) -> None:
    job, children, checkpoints = _started(settings, tmp_path)
    children[1].kill()
    killed = time.monotonic()
    _, errors = job.communicate(timeout=60)
    assert time.monotonic() - killed < 40
    assert job.returncode != 0
    assert "another of the 2 processes ended or stopped answering" in errors
    assert f"quest train --resume {tmp_path / 'run'}" in errors
    assert not any(child.is_running() for child in children.values())
    saved = latest_checkpoint(checkpoints)
    assert saved is not None
    verify_checkpoint(saved)


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_job_with_a_sentence(settings: RunConfig, tmp_path: Path) -> None:
    impatient = settings.train.model_copy(update={"timeout": 2})
    began = time.monotonic()
    done = finish(2, Job(tmp_path / "run", "ddp", settings.model_copy(update={"train": impatient}), sleeps=0))
    assert time.monotonic() - began < 60
    assert 1 in done.codes
    assert "another of the 2 processes ended or stopped answering, so this one ends too" in done.errors


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_same_step(settings: RunConfig, tmp_path: Path) -> None:
    words = ("--config", str(_long_settings(settings, tmp_path)), "--out", str(tmp_path / "run"))
    ranks = [Command("train", *words, folder=tmp_path, environment=each) for each in environment_of_ranks(2)]
    checkpoints = tmp_path / "run" / "checkpoints"
    while ranks[0].returncode is None and not (checkpoints.is_dir() and latest_checkpoint(checkpoints)):
        time.sleep(0.05)
    ranks[1].send_signal(signal.SIGTERM)
    _require_stopped("".join(rank.errors(timeout=60) for rank in ranks), tmp_path)


@pytest.mark.slow
def test_a_signal_to_torchrun_stops_all_at_the_same_step(settings: RunConfig, tmp_path: Path) -> None:
    """As a cluster sends it before it takes the machine away."""
    job, _, _ = _started(settings, tmp_path)
    job.send_signal(signal.SIGTERM)
    _require_stopped(job.communicate(timeout=60)[1], tmp_path)


def _require_stopped(errors: str, folder: Path) -> None:
    assert f"stopped by signal {signal.SIGTERM}; continue with: quest train --resume {folder / 'run'}" in errors
    newest = latest_checkpoint(folder / "run" / "checkpoints")
    assert newest is not None
    assert RunRecord.load(folder / "run").steps == int(newest.name.removeprefix("step-"))
    assert not list(folder.rglob(".tmp-*"))


def _long_settings(settings: RunConfig, folder: Path) -> Path:
    """The file of settings for more steps than any test waits for."""
    config = settings.model_copy(update={"budget": Budget(tokens=10**7)})
    (folder / "settings.yaml").write_text(to_yaml(config))
    return folder / "settings.yaml"


def _started(settings: RunConfig, folder: Path) -> tuple[subprocess.Popen[str], dict[int, psutil.Process], Path]:
    """A long run of two processes that has its first checkpoint, its processes by rank, and its checkpoints."""
    job = start(2, "--config", str(_long_settings(settings, folder)), "--out", str(folder / "run"))
    checkpoints = folder / "run" / "checkpoints"
    while job.poll() is None and not (checkpoints.is_dir() and latest_checkpoint(checkpoints)):
        time.sleep(0.05)
    ranks = {}
    for child in psutil.Process(job.pid).children():  # not theirs, such as git, which inherit the rank
        with suppress(KeyError, psutil.Error, ProcessLookupError):
            ranks[int(child.environ()["RANK"])] = child
    return job, ranks, checkpoints
