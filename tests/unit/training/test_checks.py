"""What is checked before the first step, and what it must let pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from questlm.config import RunConfig
from questlm.errors import TrainingError
from questlm.models import Llama
from questlm.quant import FakeQuantLinear
from questlm.quant.quantizers import DynamicQuantizer, Quantizer
from questlm.training import Trainer, resume, train
from questlm.training import run as run_module

Settings = Callable[..., RunConfig]


def change_built_models(monkeypatch: pytest.MonkeyPatch, change: Callable[[Llama], object]) -> None:
    original = run_module.build_model

    def build(*arguments: object) -> Llama:
        model = original(*arguments)  # type: ignore[arg-type]
        change(model)
        return model

    monkeypatch.setattr(run_module, "build_model", build)


@torch.no_grad()
def zero_the_projections(model: Llama) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith(("attention.o.weight", "mlp.down.weight")):
            nn.init.zeros_(parameter)


@pytest.mark.slow
@pytest.mark.parametrize(
    "quant",
    [
        {"weight_bits": 4, "act_bits": 4},
        {"weight_bits": 1, "act_bits": 4},
        {"method": "lsq", "weight_bits": 2, "act_bits": 4},
        {"method": "adabin", "weight_bits": 1, "act_bits": 1},
        {"method": "bitnet", "weight_bits": "ternary", "act_bits": 8},
        {"format": "bf16-2:4", "weight_bits": 16, "act_bits": 4},
    ],
    ids=lambda quant: f"{quant.get('method', 'quest')}-{quant['weight_bits']}",
)
def test_a_model_whose_projections_begin_at_zero_trains(
    quant: dict[str, object], tiny_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_built_models(monkeypatch, zero_the_projections)
    record = train(tiny_settings(quant=quant), tmp_path / "run")
    assert record.curve[-1]["loss"] < record.curve[0]["loss"]


def test_a_model_of_which_one_step_has_moved_a_little_is_taken_up_again(
    tiny_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_built_models(monkeypatch, zero_the_projections)
    config, original = tiny_settings(train={"checkpoint_every": 1}), Trainer._step

    def stopping(self: Trainer, done: float) -> None:
        if self.state.counters.step == 1:
            raise KeyboardInterrupt
        original(self, done)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run")
    record = resume(tmp_path / "run")
    assert record.steps == 12


def test_the_record_counts_layers_without_a_gradient(
    tiny_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_built_models(monkeypatch, zero_the_projections)
    record = train(tiny_settings(budget={"tokens": 128}), tmp_path / "run")
    assert record.checks["layers_without_gradient"] == 5  # q, k, v, gate, up
    assert record.checks["logits_from_dense"] == 0


def test_frozen_weights_need_no_gradient(
    tiny_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_built_models(monkeypatch, lambda model: model.layers[0].mlp.up.weight.requires_grad_(False))  # type: ignore[union-attr, operator]
    train(tiny_settings(budget={"tokens": 128}), tmp_path / "run")


class _Blocked(DynamicQuantizer):
    def values(self, x: Tensor, operand: object) -> Tensor:
        return super().values(x.detach(), operand) + 0 * x  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", ["weight_quantizer", "act_quantizer"])
def test_an_estimator_that_lets_nothing_pass_is_refused_by_the_name_of_a_layer(
    factor: str, tiny_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def block(model: Llama) -> None:
        layer = model.layers[0].attention.o  # type: ignore[union-attr]
        assert isinstance(layer, FakeQuantLinear)
        quantizer: Quantizer = getattr(layer, factor)
        assert isinstance(quantizer, DynamicQuantizer)
        setattr(layer, factor, _Blocked(quantizer.grid, quantizer.block_size, quantizer.mask_bound))

    change_built_models(monkeypatch, block)
    named = "attention.o" if factor == "weight_quantizer" else "attention.q"
    with pytest.raises(TrainingError, match=rf"'layers.0.{named}' receives no gradient, though it does in the dense"):
        train(tiny_settings(), tmp_path / "run")


def test_the_advice_for_a_width_without_a_block_works_on_the_command_line(
    corpus: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    words = ["train", "--data", corpus, "--out", "run", "--tokens", 256]
    settings = {"model.layers": 1, "model.hidden": 40, "model.heads": 2, "model.mlp_hidden": 64, "data.vocab_size": 300}
    settings |= {"train.seq_len": 32, "train.batch_size": 4}
    words += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    code, _, err = command(*words)
    assert code == 2 and "--set quant.block_size=N" in err and "a block_size of 1" in err
    assert command(*words, "--set", "quant.block_size=1")[0] == 0
