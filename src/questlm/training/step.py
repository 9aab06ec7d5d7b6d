"""One optimizer step: forward and backward passes of the micro-batches, gradient clipping, the optimizer.

Weights are quantised once a step (`questlm.quant.cached_weights`). On a GPU each block is compiled by itself: that
takes seconds for the first and nothing for the others, which are alike, while compiling the whole model takes minutes
and is no faster. A small model is then bound by the Python that launches kernels. So its step is recorded once as a
CUDA graph and replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from questlm.config import TrainConfig
from questlm.errors import ConfigError
from questlm.models import Llama
from questlm.parallel import Engine, clip_gradients, gradient_exchange, weight_cache
from questlm.quant import FakeQuantLinear, Quantizer, quantized_layers
from questlm.training.device import autocast
from questlm.training.optim import Optimizers
from questlm.training.recipes import Recipe

__all__ = ["ForwardPass", "TrainStep", "should_record"]

_LAUNCH_BOUND = 40_000_000
"""Block parameters below which a GPU finishes kernels faster than Python starts them, at the usual batch sizes."""

_PLAIN_STEPS = 3
"""Steps before one is recorded, after which everything is compiled and allocated."""


def should_record(
    train: TrainConfig,
    model: Llama,
    optimizer: Optimizers,
    recipes: Sequence[Recipe],
    engine: Engine,
    device: torch.device,
) -> bool:
    """Whether to record a step as a CUDA graph and replay it.

    Raises:
        ConfigError: `train.cuda_graphs` is 'on', but a step cannot be recorded.
    """
    obstacle = next((recipe.not_recordable for recipe in recipes if recipe.not_recordable), None)
    if device.type != "cuda":
        obstacle = f"the device is {device.type}"
    elif engine not in ("none", "replicas"):
        obstacle = f"several processes train by train.parallel={engine}, and only those of 'replicas' can"
    elif not optimizer.recordable:
        obstacle = f"a step of the optimizer {train.optimizer!r} cannot be recorded"
    if train.cuda_graphs == "on" and obstacle:
        raise ConfigError(f"train.cuda_graphs is 'on', but {obstacle}; use 'auto' or 'off'")
    # Code of a quantiser's own may look at its tensors from the CPU, which a graph cannot record.
    quantizers = (quantizer for layer in quantized_layers(model).values() for quantizer in _both(layer))
    alike = all(quantizer is None or quantizer.rounding is not None for quantizer in quantizers)
    worth = alike and model.config.block_parameters < _LAUNCH_BOUND
    return obstacle is None and (train.cuda_graphs == "on" or (train.cuda_graphs == "auto" and worth))


def _both(layer: FakeQuantLinear) -> tuple[Quantizer | None, Quantizer | None]:
    return layer.weight_quantizer, layer.act_quantizer


class ForwardPass(NamedTuple):
    """The results of a forward pass.

    Attributes:
        objective: what the gradient is taken of, a scalar: the loss and the terms of recipes.
        loss: mean over the tokens in nats, a scalar.
        last_logits: of each sequence's last token, (sequences, vocab_size).
    """

    objective: Tensor
    loss: Tensor
    last_logits: Tensor


class TrainStep:
    """Callable: takes one optimizer step on a batch, and returns its loss and gradient norm.

    Args:
        module: what is called for a forward pass: the model, or its DDP wrapper.
        record: whether to record a step as a CUDA graph and replay it.
        recipes: those that add to the loss are asked for their terms.
    """

    def __init__(
        self,
        model: Llama,
        module: nn.Module,
        optimizer: Optimizers,
        train: TrainConfig,
        device: torch.device,
        engine: Engine = "none",
        record: bool = False,
        recipes: Sequence[Recipe] = (),
    ) -> None:
        self.model, self.module, self.optimizer = model, module, optimizer
        self.train, self.device, self.engine, self.records = train, device, engine, record
        self._adding = [recipe for recipe in recipes if recipe.adds_loss]
        self._plain_steps = -1
        self._recorded: _Recorded | None = None
        if record:
            optimizer.prepare_recording(device)
            self.record_again()

    def record_again(self) -> None:
        """Drop the recorded step, if there is one, because the next steps compute something else."""
        self._recorded, self._plain_steps = None, _PLAIN_STEPS if self.records else -1

    def __call__(self, inputs: Tensor, targets: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """Take a step on inputs and targets, (sequences, tokens) int64 each, at learning rate `lr`.

        Returns:
            Mean loss of this process's sequences in nats a token, without the terms of recipes, and the norm of all
            gradients before clipping; scalars on the device.
        """
        self.optimizer.set_learning_rate(lr)
        if self._plain_steps == 0:
            self._recorded = self._recorded or _Recorded(self._step, inputs, targets, self.device)
            return self._recorded(inputs, targets)
        self._plain_steps -= self._plain_steps > 0
        return self._step(*(part.to(self.device, non_blocking=True) for part in (inputs, targets)))

    def forward(self, inputs: Tensor, targets: Tensor) -> ForwardPass:
        """Compute the loss of a micro-batch, inputs and targets (sequences, tokens) int64 each, and recipes' terms."""
        with autocast(self.device):
            if not self._adding:
                loss, last_logits = self.module(inputs, targets=targets)
                return ForwardPass(loss, loss, last_logits)
            logits = self.module(inputs)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
            terms = [_term(recipe, inputs, targets, logits) for recipe in self._adding]
            return ForwardPass(torch.stack([loss, *terms]).sum(), loss, logits[:, -1].detach().float())

    @contextmanager
    def weight_cache(self) -> Iterator[None]:
        """A context for the passes of a step: it quantises weights when entered and completes gradients when left."""
        with ExitStack() as stack:
            with autocast(self.device):
                stack.enter_context(weight_cache(self.model, self.engine))
            yield

    def _step(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros((), device=self.device)
        size = self.train.micro_batch_size or len(inputs)
        micro_batches = list(zip(inputs.split(size), targets.split(size), strict=True))
        with self.weight_cache():
            for index, batch in enumerate(micro_batches, 1):
                share = len(batch[0]) / len(inputs)
                with gradient_exchange(self.module, on=index == len(micro_batches)):
                    result = self.forward(*batch)
                    (result.objective * share).backward()
                total += result.loss.detach() * share
        norm = clip_gradients(self.model, self.train.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total, norm


def _term(recipe: Recipe, inputs: Tensor, targets: Tensor, logits: Tensor) -> Tensor:
    term = recipe.loss(inputs, targets, logits)
    if term.shape != ():
        raise ConfigError(
            f"the recipe {type(recipe).__name__} returned a loss of shape {tuple(term.shape)}; it is to return a "
            "scalar, the mean over the tokens"
        )
    return term


_Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class _Recorded:
    """A step recorded as a CUDA graph, and replayed on batches of one shape. Recording itself changes no weight."""

    def __init__(self, step: _Step, inputs: Tensor, targets: Tensor, device: torch.device) -> None:
        self._batch = [torch.empty(part.shape, dtype=part.dtype, device=device) for part in (inputs, targets)]
        self._graph = torch.cuda.CUDAGraph()
        torch.cuda.empty_cache()  # what plain steps left there, the graph cannot use
        # NCCL's watchdog looks at events of its own in another thread, which is no part of the step.
        mode = "thread_local" if dist.is_available() and dist.is_initialized() else "global"
        with torch.cuda.graph(self._graph, capture_error_mode=mode):
            self._results = step(*self._batch)

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        for own, part in zip(self._batch, (inputs, targets), strict=True):
            own.copy_(part, non_blocking=True)
        self._graph.replay()
        loss, norm = self._results
        return loss.clone(), norm.clone()  # the next replay overwrites them
