"""Recipes and fading in, called by a Trainer as our own loop calls them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import questlm
from questlm.config import QuantSpec
from questlm.errors import ConfigError
from questlm.integrations.transformers import QuantizationCallback
from questlm.quant import quantized_layers
from questlm.training.recipes import Cage, Distill, Moment, Recipe, WeightDecay

pytestmark = pytest.mark.slow
ROWS = [
    {"input_ids": row, "labels": row}
    for row in torch.randint(0, 64, (24, 12), generator=torch.Generator().manual_seed(0))
]
STEPS = 6
NEW_NAME, OLD_NAME = (
    "activation_checkpointing",
    "gradient_checkpointing",
)  # the old one is all that transformers 5.17 has
RECOMPUTES = NEW_NAME if hasattr(TrainingArguments, NEW_NAME) else OLD_NAME


class Spy(Recipe):
    """Notes what it is called with, and the strength of the first and the last layer."""

    def __init__(self) -> None:
        self.before: list[tuple[float, float, float]] = []
        self.after: list[tuple[float, float]] = []

    def before_step(self, moment: Moment) -> None:
        strengths = [layer.strength for layer in quantized_layers(moment.model).values()]
        first, last = (1.0 if each is None else float(each) for each in (strengths[0], strengths[-1]))
        self.before.append((moment.done, first, last))

    def after_step(self, moment: Moment) -> None:
        self.after.append((moment.done, moment.lr))


def model_of(spec: QuantSpec | None) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2))
    return model if spec is None else questlm.prepare(model, spec)


def trainer_of(model: LlamaForCausalLM, folder: Path, *recipes: Recipe, **settings: Any) -> Trainer:
    given: dict[str, Any] = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "use_cpu": True,
    }
    arguments = TrainingArguments(str(folder), **given | settings)
    return Trainer(model, arguments, train_dataset=ROWS, callbacks=[QuantizationCallback(recipes)])


def test_recipes_see_the_share_and_the_rate_of_each_step(tmp_path: Path) -> None:
    spy = Spy()
    trainer_of(model_of(QuantSpec()), tmp_path, spy, lr_scheduler_type="linear").train()
    assert [done for done, _, _ in spy.before] == pytest.approx([step / STEPS for step in range(STEPS + 1)])
    assert [done for done, _ in spy.after] == pytest.approx([step / STEPS for step in range(STEPS)])
    assert [lr for _, lr in spy.after] == pytest.approx([1e-2 * (1 - step / STEPS) for step in range(STEPS)])


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    spy = Spy()
    trainer_of(model_of(QuantSpec()), tmp_path, spy, gradient_accumulation_steps=3).train()
    assert (len(spy.before), len(spy.after)) == (STEPS + 1, STEPS)


def test_quantisation_fades_in_layer_by_layer(tmp_path: Path) -> None:
    spy = Spy()
    model = model_of(QuantSpec(gradual=0.9))
    trainer_of(model, tmp_path, spy).train()
    first, last = ([row[column] for row in spy.before] for column in (1, 2))
    assert (first[0], last[0], first[-1], last[-1]) == (0.0, 0.0, 1.0, 1.0)
    assert first == sorted(first)
    assert last == sorted(last)
    assert any(a > b for a, b in zip(first, last, strict=True))


def test_cage_and_the_end_of_weight_decay_work(tmp_path: Path) -> None:
    def distance(*recipes: Recipe) -> float:
        model = model_of(QuantSpec(weight_bits=2, act_bits=16))
        trainer = trainer_of(model, tmp_path, *recipes, weight_decay=0.1, lr_scheduler_type="constant")
        trainer.train()
        decays = {group["weight_decay"] for group in trainer.optimizer.param_groups}
        assert (decays == {0.0}) == any(isinstance(recipe, WeightDecay) for recipe in recipes)
        layers = quantized_layers(model).values()
        return sum(float((layer.weight.detach() - layer.rounded_weight()).norm()) for layer in layers)

    assert distance(Cage(300.0), WeightDecay(0.5)) < 0.9 * distance()


@pytest.mark.parametrize("spec", [QuantSpec(gradual=0.5), QuantSpec(method="lsq")], ids=["fading", "learned-steps"])
def test_a_resumed_training_is_the_same(spec: QuantSpec, tmp_path: Path) -> None:
    whole, resumed = model_of(spec), model_of(spec)
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    trainer_of(whole, tmp_path, Cage(10.0), **settings).train()
    trainer_of(resumed, tmp_path, Cage(10.0), **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@pytest.mark.parametrize("settings", [{"bf16": True}, {RECOMPUTES: True}], ids=str)
def test_autocast_and_recomputation_train(settings: dict[str, Any], tmp_path: Path) -> None:
    trainer = trainer_of(model_of(QuantSpec()), tmp_path, max_steps=20, logging_steps=10, **settings)
    trainer.train()
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_a_model_that_was_not_prepared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"call questlm.prepare\(model, spec\) before Trainer"):
        trainer_of(model_of(None), tmp_path).train()


def test_a_recipe_that_adds_to_the_loss_is_refused() -> None:
    with pytest.raises(ConfigError, match="Distill adds to the loss or reads files"):
        QuantizationCallback([Distill("teacher", 1.0)])
