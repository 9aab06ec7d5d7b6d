"""From a built model to the first step: batch size, quantisers, compiled code, the quantisation check, timing.

Until `_distribute` the model is unsharded on every process, because quantisers take their first steps from it, and the
check its expected values.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from questlm.config import RunConfig
from questlm.errors import ConfigError, quoted
from questlm.files import user_path
from questlm.parallel import checkpoint_activations, compile_blocks, distribute
from questlm.quant import Quantizer
from questlm.training.batches import choose_batches
from questlm.training.checks import check_quantization, compute_plainly
from questlm.training.compiling import compile_kernels, without_compiler_warnings
from questlm.training.device import autocast, should_compile
from questlm.training.frozen import load_frozen
from questlm.training.loop import Trainer
from questlm.training.optim import make_optimizer
from questlm.training.recipes import Beginning, FrozenModel, Recipe, active_recipes
from questlm.training.state import TrainingState
from questlm.training.step import TrainStep, should_record

__all__ = ["Start", "choose_batch_again", "start"]

_Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Start:
    """A run at its first step, or at the first one after it was resumed.

    Attributes:
        step_seconds: how long a step will take, estimated.
    """

    trainer: Trainer
    step_seconds: float


@without_compiler_warnings()
def start(state: TrainingState) -> Start:
    """Compile what is compiled, check that quantisation is on, and measure how long a step takes.

    Raises:
        TrainingError: quantisation is not in effect.
        CheckpointError: the optimizer state of the checkpoint does not fit.
        ConfigError: steps cannot be recorded as a CUDA graph, though the settings ask for it.
    """
    run, counters, batch = state.run, state.counters, state.next_micro_batch()
    _initialize_quantizers(state, batch)
    expected = compute_plainly(state.model, _plain_loss(state), batch)
    trainer = _distribute(state)
    step = trainer.step
    compile_kernels(state.model, step, run.engine, batch, run.device)

    def loss(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        result = step.forward(inputs, targets)
        return result.loss, result.last_logits  # without the terms of recipes, which `expected` is without, too

    checks = run.processes.together(lambda: check_quantization(state.model, loss, batch, expected, step.weight_cache))
    counters.checks = counters.checks or checks  # of a resumed run those of its beginning
    return Start(trainer, _time_step(state, step, batch))


def choose_batch_again(state: TrainingState, asked: RunConfig) -> TrainingState:
    """The same with a smaller batch, where the seconds of the budget pay for few steps of the chosen one.

    Args:
        asked: the settings before batch sizes were chosen.
    """
    run, seconds = state.run, state.run.config.budget.seconds
    if asked.train.batch_size is not None or seconds is None:
        return state
    batch, processes, loss_fn = state.next_micro_batch(), run.processes, _plain_loss(state)
    _initialize_quantizers(state, batch)
    inputs, targets = (part[:1] for part in batch)
    took = [_time(state, lambda: loss_fn(inputs, targets)[0].backward()) for _ in range(2)][-1]
    tokens = seconds / processes.largest(took)[0] * inputs.numel() * processes.world_size
    config = run.config.model_copy(update={"train": asked.train})
    config = choose_batches(config, processes, run.device, tokens)
    return TrainingState(replace(run, config=config), state.model, state.counters)


@torch.no_grad()
def _initialize_quantizers(state: TrainingState, batch: _Batch) -> None:
    """Show learned quantisers a batch, from which they take their first steps, before anything is compiled."""
    if any(isinstance(module, Quantizer) and module.starts_from_data for module in state.model.modules()):
        _plain_loss(state)(*batch)


def _plain_loss(state: TrainingState) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """What `TrainStep.loss` computes, of the model that is neither compiled nor sharded."""

    def loss(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(state.run.device):
            result: tuple[Tensor, Tensor] = state.model(inputs, targets=targets)
        return result

    return loss


def _distribute(state: TrainingState) -> Trainer:
    """Share the model between the processes, and make what depends on how it is shared: compiled code, optimizer."""
    run, train, model = state.run, state.run.config.train, state.model
    checkpoint_activations(model, train.recompute)
    if should_compile(train, run.device):
        compile_blocks(model)
    module = distribute(model, run.engine, run.device, run.config.parallel)
    optimizer, recipes = make_optimizer(model, train, run.processes), active_recipes(train, model)
    record = should_record(train, model, optimizer, recipes, run.engine, run.device)
    step = TrainStep(model, module, optimizer, train, run.device, run.engine, record, recipes)
    state.attach_optimizer(optimizer)
    run.processes.together(lambda: _begin_recipes(state, recipes))
    return Trainer(state, step, recipes)


def _begin_recipes(state: TrainingState, recipes: Sequence[Recipe]) -> None:
    run, vocab_size = state.run, state.run.config.model.vocab_size
    assert vocab_size is not None

    def load_model(path: str) -> FrozenModel:
        return load_frozen(run.started_in / user_path(path), run.device)

    beginning = Beginning(state.model, run.device, vocab_size, run.data.tokenizer, load_model)
    inputs: dict[str, str] = {}
    for recipe in recipes:
        begun = _begun(recipe, beginning)
        for setting in sorted(begun.keys() & inputs.keys()):
            raise ConfigError(
                f"the recipe {type(recipe).__name__} returned the key {quoted(setting)} from `begin`, and so did a "
                "recipe before it; each is to use keys of its own"
            )
        inputs |= begun
    state.set_recipe_inputs(inputs)


def _begun(recipe: Recipe, beginning: Beginning) -> Mapping[str, str]:
    """Begin a recipe, and refuse hashes that no checkpoint could be read with."""
    inputs = recipe.begin(beginning)
    if isinstance(inputs, Mapping) and all(isinstance(text, str) for item in inputs.items() for text in item):
        return inputs
    raise ConfigError(
        f"the recipe {type(recipe).__name__} returned {quoted(inputs)} from `begin`; it is to return the SHA-256 of "
        "what it reads from outside the run, as text by the setting's name, or {}"
    )


def _time_step(state: TrainingState, step: TrainStep, batch: _Batch) -> float:
    """Seconds of a step, from one pass over a micro-batch; the optimizer's part, which is short, is left out."""

    def work() -> None:
        with step.weight_cache():
            step.forward(*batch).objective.backward()

    run = state.run
    passes = run.config.train.tokens_per_step / (batch[0].numel() * run.processes.world_size)
    return run.processes.largest(passes * _time(state, work))[0]


def _time(state: TrainingState, work: Callable[[], None]) -> float:
    """Seconds that a forward and a backward pass take; their gradients are dropped."""
    began = time.monotonic()
    work()
    if state.run.device.type == "cuda":
        torch.cuda.synchronize(state.run.device)
    seconds = time.monotonic() - began
    state.model.zero_grad(set_to_none=True)
    return seconds
