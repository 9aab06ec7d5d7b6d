"""One optimizer step: micro-batches forward and backward, gradients joined and clipped, weights moved.

Weights are quantised once a step (`questlm.quant.cached_weights`). On a GPU the blocks are compiled, each by itself:
the first costs seconds, the others, being alike, nothing, where compiling the whole model takes minutes and gives no
more speed. What is then left is Python that starts kernels, and where a model is so small that the GPU waits for it, a
step is recorded once as a CUDA graph and played back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
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

__all__ = ["TrainStep", "should_record"]

_LAUNCH_BOUND = 40_000_000
"""Block parameters below which a GPU finishes kernels faster than Python starts them, at the usual batch sizes."""

_PLAIN_STEPS = 3
"""Steps before one is recorded, by which everything is compiled and allocated that will be."""


def should_record(
    train: TrainConfig,
    model: Llama,
    optimizer: Optimizers,
    recipes: Sequence[Recipe],
    engine: Engine,
    device: torch.device,
) -> bool:
    """Whether to play steps back from a CUDA graph.

    Raises:
        ConfigError: it is asked for where it cannot be.
    """
    obstacle = next((recipe.not_recordable for recipe in recipes if recipe.not_recordable), None)
    if device.type != "cuda":
        obstacle = f"the device is {device.type}"
    elif engine != "none":
        obstacle = "there are several processes"
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


class _Pass(NamedTuple):
    """A forward pass: what the gradient is taken of, the loss in nats, and the last tokens' logits."""

    objective: Tensor
    loss: Tensor
    last_logits: Tensor


class TrainStep:
    """Callable: a batch in, its loss and gradient norm out, and the weights moved on.

    Args:
        module: the model, or what stands in its place where several processes share it.
        record: whether to play steps back from a CUDA graph.
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
        self._plain_steps = _PLAIN_STEPS if record else -1
        self._recorded: _Recorded | None = None
        if record:
            optimizer.prepare_recording(device)

    def __call__(self, inputs: Tensor, targets: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """Learn from inputs and targets, (sequences, tokens) int64 each, at learning rate `lr`.

        Returns:
            Mean loss of this process's sequences in nats, and the norm of all gradients before clipping; on the device.
        """
        self.optimizer.set_learning_rate(lr)
        if self._plain_steps == 0:
            self._recorded = self._recorded or _Recorded(self._step, inputs, targets, self.device)
            return self._recorded(inputs, targets)
        self._plain_steps -= self._plain_steps > 0
        return self._step(*(part.to(self.device, non_blocking=True) for part in (inputs, targets)))

    def loss(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What a micro-batch is minimised by: its mean loss and the terms of recipes.

        Returns:
            That, and the last tokens' logits (sequences, vocabulary), by which a dense forward pass is known.
        """
        result = self._forward(inputs, targets)
        return result.objective, result.last_logits

    def _forward(self, inputs: Tensor, targets: Tensor) -> _Pass:
        with autocast(self.device):
            if not self._adding:
                loss, last_logits = self.module(inputs, targets=targets)
                return _Pass(loss, loss, last_logits)
            logits = self.module(inputs)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
            terms = [recipe.loss(inputs, targets, logits) for recipe in self._adding]
            return _Pass(torch.stack([loss, *terms]).sum(), loss, logits[:, -1].detach().float())

    @contextmanager
    def weight_cache(self) -> Iterator[None]:
        """The context of a step's passes: weights are quantised at its beginning, gradients whole behind it."""
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
                    result = self._forward(*batch)
                    (result.objective * share).backward()
                total += result.loss.detach() * share
        norm = clip_gradients(self.model, self.train.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total, norm


_Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class _Recorded:
    """A step recorded on one batch, which it does not learn from, and played back on others of its shape."""

    def __init__(self, step: _Step, inputs: Tensor, targets: Tensor, device: torch.device) -> None:
        self._batch = [torch.empty(part.shape, dtype=part.dtype, device=device) for part in (inputs, targets)]
        self._graph = torch.cuda.CUDAGraph()
        torch.cuda.empty_cache()  # what plain steps left there, the graph cannot use
        with torch.cuda.graph(self._graph):
            self._results = step(*self._batch)

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        for own, part in zip(self._batch, (inputs, targets), strict=True):
            own.copy_(part, non_blocking=True)
        self._graph.replay()
        loss, norm = self._results
        return loss.clone(), norm.clone()  # the next play-back writes over them
