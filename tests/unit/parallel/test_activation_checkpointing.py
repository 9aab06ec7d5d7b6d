"""Recomputing changes no number and no name."""

from __future__ import annotations

import pytest
import torch

from questlm.config import ModelConfig, QuantSpec
from questlm.models import Llama
from questlm.parallel import checkpoint_activations
from questlm.parallel.activation_checkpointing import Recompute
from questlm.quant import prepare


def _passes(what: Recompute, spec: QuantSpec) -> tuple[list[str], list[torch.Tensor], int]:
    model = Llama(ModelConfig(layers=2, hidden=32, heads=2, mlp_hidden=64, vocab_size=50)).initialize(0)
    prepare(model, spec)
    checkpoint_activations(model, what)
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(torch.arange(40).view(2, 20))
    logits.square().mean().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return list(model.state_dict()), [logits.detach(), *gradients], sum(kept)


@pytest.mark.parametrize("spec", [QuantSpec(), QuantSpec(weight_bits=16, act_bits=16), QuantSpec(method="lsq")])
def test_the_numbers_and_names_stay_and_less_is_kept(spec: QuantSpec) -> None:
    names, numbers, kept = _passes("none", spec)
    previous = kept
    for what in ("mlp", "block"):
        other_names, other_numbers, less = _passes(what, spec)
        assert other_names == names
        assert all(torch.equal(a, b) for a, b in zip(numbers, other_numbers, strict=True))
        assert less < previous
        previous = less
