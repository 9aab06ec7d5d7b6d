"""The training loop: budgets, accumulation, records, failures."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from questlm import ops
from questlm.config import RunConfig
from questlm.errors import CheckpointError, ConfigError, TrainingError
from questlm.manifest import write_manifest
from questlm.models import Llama
from questlm.ops.triton import launch
from questlm.quant import FakeQuantLinear
from questlm.quant.layers.mode import Mode
from questlm.records import RunRecord
from questlm.training import RunFolder, Trainer, checks, clock, load_run, resume, train
from questlm.training.checkpoint import latest_checkpoint

Settings = Callable[..., RunConfig]


def test_the_record_says_what_happened(tiny: RunConfig, tmp_path: Path) -> None:
    record = train(tiny, tmp_path / "run")
    assert record == RunRecord.load(tmp_path / "run")
    assert record.steps == 12
    assert record.tokens == 12 * 4 * 32
    assert [point["step"] for point in record.curve] == [3, 6, 9, 12]
    assert record.curve[-1]["loss"] < record.curve[0]["loss"]
    assert record.final is not None
    assert record.final["tokens"] == record.data["val_tokens"] - 1
    assert record.config["model"]["vocab_size"] == 300
    assert record.checks["quantized_layers"] == 7


def test_bits_per_byte_is_total_bits_over_true_bytes(tiny: RunConfig, tmp_path: Path) -> None:
    import math

    record = train(tiny, tmp_path / "run")
    assert record.final is not None
    bits = record.final["loss"] * record.final["tokens"] / math.log(2)  # type: ignore[operator]
    assert record.final["bits_per_byte"] == pytest.approx(bits / record.data["val_bytes"], rel=1e-12)


def test_accumulated_gradients_train_like_the_whole_batch(tiny_settings: Settings, tmp_path: Path) -> None:
    whole = train(tiny_settings(quant={"weight_bits": 16, "act_bits": 16}), tmp_path / "whole")
    settings = tiny_settings(quant={"weight_bits": 16, "act_bits": 16}, train={"micro_batch_size": 1})
    parts = train(settings, tmp_path / "parts")
    for a, b in zip(whole.curve, parts.curve, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["quest", "lsq"])
def test_the_warm_up_leaves_no_trace(
    method: str, tiny_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: kernels are recorded and not run, so what is computed in it is what happened to be in memory."""
    settings = tiny_settings(
        quant={"method": method, "weight_bits": 4, "act_bits": 4},
        train={"eval_every": 1},
        budget={"tokens": 3 * 4 * 32},
    )
    recorded: list[object] = []

    def warm_up_alone(warm_up: Callable[[], object], device: torch.device) -> None:
        monkeypatch.setattr(launch, "_recorded", recorded)
        warm_up()
        monkeypatch.setattr(launch, "_recorded", None)

    with ops.using_backend("triton"):
        plain = train(settings, tmp_path / "plain")
        monkeypatch.setattr(ops, "compile_ahead", warm_up_alone)
        warmed_up = train(settings, tmp_path / "warmed_up")
    assert recorded or method != "quest"
    assert [point["loss"] for point in warmed_up.curve] == [point["loss"] for point in plain.curve]
    assert (warmed_up.validations, warmed_up.final) == (plain.validations, plain.final)


def test_a_budget_in_seconds_ends_in_time(
    tiny_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = count()
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: next(looks) / 100))
    record = train(tiny_settings(budget={"seconds": 1.0}), tmp_path / "run")
    assert 1.0 <= record.seconds < 1.1
    settings = RunConfig(**record.config).train
    assert record.curve[-1]["lr"] < 0.5 * settings.lr
    assert max(point["lr"] for point in record.curve) > 0.9 * settings.lr


def test_tokens_per_parameter_counts_block_parameters(tiny_settings: Settings) -> None:
    settings = tiny_settings(budget={"tokens_per_param": 0.5})
    assert settings.total_steps() == round(0.5 * settings.model.block_parameters) // 128


def test_an_existing_run_folder_is_refused_and_left_alone(tiny: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("x")
    with pytest.raises(ConfigError, match="exists already"):
        train(tiny, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["precious"]


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_non_finite_step_stops_and_names_the_last_good_checkpoint(
    what: str, tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer._step

    def poisoned(self: Trainer, done: float) -> None:
        if self.state.counters.step == 6 and what == "loss":
            with torch.no_grad():
                self.state.model.layers[0].mlp.up.weight[0, 0] = float("nan")  # type: ignore[union-attr, operator, index]
        if self.state.counters.step == 6 and what == "gradient":
            self.state.model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
        original(self, done)

    monkeypatch.setattr(Trainer, "_step", poisoned)
    with pytest.raises(TrainingError, match=r"step 7.*last good checkpoint is .*step-00000004") as caught:
        train(tiny, tmp_path / "run")
    assert what in str(caught.value)
    model = load_run(tmp_path / "run").model
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_a_model_trained_dense_by_mistake_is_caught(tiny: RunConfig, tmp_path: Path, monkeypatch: Any) -> None:
    from questlm.training import run

    def dense_build(*arguments: Any) -> Llama:
        model = original(*arguments)
        for module in model.modules():
            if isinstance(module, FakeQuantLinear):
                module.mode = Mode.DENSE
        return model

    original = run.build_model
    monkeypatch.setattr(run, "build_model", dense_build)
    with pytest.raises(TrainingError, match="quantisation is not in effect"):
        train(tiny, tmp_path / "run")


def test_a_mask_that_lets_everything_pass_is_caught(tiny: RunConfig, tmp_path: Path, monkeypatch: Any) -> None:
    from questlm import ops

    original = ops.masked_hadamard
    monkeypatch.setattr(ops, "masked_hadamard", lambda gradient, mask, *rest: original(gradient, None, *rest))
    many = ops.masked_hadamard_many
    monkeypatch.setattr(
        ops, "masked_hadamard_many", lambda gradients, masks, *rest: many(gradients, [None] * len(masks), *rest)
    )
    with pytest.raises(TrainingError, match="trust mask is not in effect"):
        train(tiny, tmp_path / "run")


@pytest.mark.slow
def test_the_compiled_path_trains_the_same_and_is_checked(tiny_settings: Settings, tmp_path: Path) -> None:
    plain = train(tiny_settings(train={"compile": "off"}), tmp_path / "plain")
    compiled = train(tiny_settings(train={"compile": "on"}), tmp_path / "compiled")
    assert compiled.checks["largest_gradient_outside_mask"] < 1e-3
    assert compiled.curve[0]["loss"] == pytest.approx(plain.curve[0]["loss"], abs=1e-3)
    assert compiled.curve[-1]["loss"] == pytest.approx(plain.curve[-1]["loss"], abs=0.05)


def test_tensorboard_gets_the_curve(tiny_settings: Settings, tmp_path: Path) -> None:
    train(tiny_settings(train={"loggers": ["tensorboard"]}), tmp_path / "run")
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_a_compiled_path_with_a_dense_forward_is_caught(tiny_settings: Settings) -> None:
    from questlm.quant import dense
    from questlm.training.build import build_model

    config = tiny_settings(model={"vocab_size": 300}, quant={"weight_bits": 8, "act_bits": 8})
    model = build_model(config)
    batch = (torch.randint(300, (4, 32)), torch.randint(300, (4, 32)))

    def quantized(inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = model(inputs)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()), logits[:, -1].detach()

    def dense_forward(inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loss, _ = quantized(inputs, targets)  # gradients as they should be
        with dense(model), torch.no_grad():
            return loss, quantized(inputs, targets)[1]

    expected = checks.compute_plainly(model, quantized, batch)
    checks.check_quantization(model, quantized, batch, expected)
    with pytest.raises(TrainingError, match="does not compute the quantised model"):
        checks.check_quantization(model, dense_forward, batch, expected)


def test_two_processes_cannot_train_in_one_folder(tiny: RunConfig, tmp_path: Path) -> None:
    train(tiny, tmp_path / "run")
    with RunFolder(tmp_path / "run").locked(), pytest.raises(CheckpointError, match="another process"):
        resume(tmp_path / "run")


@pytest.mark.parametrize("damage", ["missing", "reshaped"])
def test_optimizer_state_that_does_not_fit_is_refused(damage: str, tiny: RunConfig, tmp_path: Path) -> None:
    train(tiny, tmp_path / "run")
    newest = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert newest is not None
    state = load_file(newest / "optimizer.safetensors")
    name = next(key for key in state if key.endswith("exp_avg"))
    if damage == "missing":
        del state[name]
    else:
        state[name] = torch.zeros(3)
    save_file(state, newest / "optimizer.safetensors")
    write_manifest(newest, "questlm-checkpoint", 1, {"step": 12})
    (tmp_path / "run" / "record.json").unlink()  # so that the run is not finished
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        resume(tmp_path / "run")


def test_resuming_another_shape_is_refused(tiny: RunConfig, tiny_settings: Settings, tmp_path: Path) -> None:
    train(tiny, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"model\.layers = 1, but the settings now say 3"):
        resume(tmp_path / "run", tiny_settings(model={"layers": 3}))


def test_a_hub_data_set_needs_to_know_how_much(tiny_settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.max_tokens"):
        train(tiny_settings(data={"source": "hf:some/set"}, budget={"seconds": 1.0}), tmp_path / "run")
