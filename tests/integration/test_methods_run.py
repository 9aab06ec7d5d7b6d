"""Whole runs of other methods than QuEST: train, resume, pack, evaluate; and what is refused on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import questlm
from questlm.config import RunConfig, load_config
from questlm.errors import ConfigError, TrainingError
from questlm.evaluation import evaluate
from questlm.export.pack import pack
from questlm.quant import dense
from questlm.training import checks, load_run, resume, train
from questlm.training.checkpoint import latest_checkpoint
from questlm.training.initial import find_initial

Settings = Callable[..., RunConfig]
RUNS = [
    {"quant": {"method": "lsq-row", "weight_bits": 2, "act_bits": 4}},
    {"quant": {"method": "adabin", "weight_bits": 1, "act_bits": 1}},
    {"quant": {"method": "extra-rmsnorm", "weight_bits": "ternary", "act_bits": 8, "gradual": 1.0}},
    {"quant": {"method": "pquant", "weight_bits": 1, "act_bits": 8}, "train": {"cage": 10.0}},
    {"quant": {"method": "lsq+", "gradual": 0.5, "overrides": {"lm_head": 8}}, "train": {"quantizer_lr": 1e-4}},
]


@pytest.mark.parametrize("changes", RUNS, ids=lambda c: c["quant"]["method"])
def test_a_run_packs_to_its_own_loss(changes: dict, tiny_settings: Settings, tmp_path: Path) -> None:
    train_changes = {"checkpoint_every": 4} | changes.get("train", {})
    config = tiny_settings(quant=changes["quant"], train=train_changes)
    record = train(config, tmp_path / "run")
    loaded = load_run(tmp_path / "run")
    pack(loaded.model, tmp_path / "a")
    from questlm.data import prepare

    val = prepare(loaded.config.data, loaded.config.model.vocab_size).val
    again = evaluate(questlm.load(tmp_path / "a"), val, loaded.config.train.seq_len)
    assert record.final is not None
    assert again.loss == pytest.approx(record.final["loss"], abs=1e-6)


@pytest.mark.parametrize("changes", RUNS, ids=lambda c: c["quant"]["method"])
def test_a_run_stopped_half_way_resumes_to_the_same_bits(
    changes: dict, tiny_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from questlm.training import Trainer

    train_changes = {"checkpoint_every": 4} | changes.get("train", {})
    config = tiny_settings(quant=changes["quant"], train=train_changes)
    train(config, tmp_path / "whole")
    original = Trainer._step

    def stopping(self: Trainer, done: float) -> None:
        if self.state.counters.step == 6:
            raise KeyboardInterrupt
        original(self, done)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "parts")
    resume(tmp_path / "parts")
    first, second = (
        load_file(latest_checkpoint(tmp_path / name / "checkpoints") / "model.safetensors")  # type: ignore[operator]
        for name in ("whole", "parts")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_cannot_begin_from_a_run_whose_norms_it_would_lose(tiny_settings: Settings, tmp_path: Path) -> None:
    quant = {"method": "bitnet", "weight_bits": "ternary", "act_bits": 8}
    train(tiny_settings(quant=quant, budget={"tokens": 256}), tmp_path / "run")
    config = tiny_settings().model_copy(update={"init_from": str(tmp_path / "run")})
    with pytest.raises(ConfigError, match=r"holds .*input_norm.* only continue it with --resume"):
        find_initial(config)


def test_a_dense_layer_behind_a_norm_is_noticed(tiny_settings: Settings, tmp_path: Path, monkeypatch) -> None:
    def plain(model, *arguments):
        with dense(model):
            return check(model, *arguments)

    check = checks.compute_plainly
    monkeypatch.setattr("questlm.training.start.compute_plainly", plain)
    quant = {"method": "bitnet", "weight_bits": "ternary", "act_bits": 8}
    with pytest.raises(TrainingError, match="computes the plain product"):
        train(tiny_settings(quant=quant), tmp_path / "run")


def test_settings_that_are_newer_than_a_run_do_not_stop_it(tiny_settings: Settings, tmp_path: Path) -> None:
    train(tiny_settings(), tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    lines = file.read_text().splitlines()
    older = [line for line in lines if not line.strip().startswith(("format:", "gradual:", "cage:", "trust:"))]
    assert len(older) == len(lines) - 4
    file.write_text("\n".join(older) + "\n")
    assert load_run(tmp_path / "run").config == load_config(file=file)
