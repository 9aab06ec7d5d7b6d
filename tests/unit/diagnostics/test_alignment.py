"""Gradient alignment: cosines, what is compared, and that the model comes back as it was."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from torch import nn

from questlm.config import QuantSpec
from questlm.diagnostics import diagnose, gradient_alignment
from questlm.diagnostics.alignment import ESTIMATORS, _gradients, cosine
from questlm.diagnostics.layers import Batch, block_of, capture_inputs, kind_of, layer_names, prepared
from questlm.json_files import canonical_json
from questlm.models import Llama


def align(model: Llama, batches: list[Batch], bits: int, **more: Any) -> dict[str, Any]:
    return gradient_alignment(model, batches, QuantSpec(weight_bits=bits, act_bits=bits), show_progress=False, **more)


def test_cosines_of_known_vectors() -> None:
    a, b = torch.tensor([[3.0, 0.0], [4.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    assert cosine(a, a) == pytest.approx(1)
    assert cosine(a, -2 * a) == pytest.approx(-1)
    assert cosine(a, b) == 0
    assert cosine(a, 0 * a) is None


def test_a_model_compared_with_itself_has_cosine_one(model: Llama, batches: list[Batch]) -> None:
    names = layer_names(model, QuantSpec())
    plain = QuantSpec(weight_bits=16, act_bits=16, embeddings="float")
    first, second = (_gradients(model, names, batches[0], plain) for _ in range(2))
    assert len(first) == 7 * 2 + 2
    for name, gradient in first.items():
        assert cosine(gradient, second[name]) == pytest.approx(1, abs=1e-12)


def test_the_reference_is_the_gradient_of_backward(model: Llama, batches: list[Batch]) -> None:
    inputs, targets = batches[0]
    found = _gradients(
        model, ["layers.1.mlp.up"], batches[0], QuantSpec(weight_bits=16, act_bits=16, embeddings="float")
    )
    nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
    torch.testing.assert_close(found["layers.1.mlp.up"], model.get_parameter("layers.1.mlp.up.weight").grad)


def test_eight_bits_are_nearly_parallel_and_fewer_less_so(model: Llama, batches: list[Batch]) -> None:
    fine, coarse = (align(model, batches, bits)["methods"] for bits in (8, 2))
    for method in ESTIMATORS:
        for name, value in fine[method]["layers"].items():
            assert value["mean"] > 0.95
            assert value["mean"] > coarse[method]["layers"][name]["mean"]


def test_averages_are_of_layers_then_of_batches(model: Llama, batches: list[Batch]) -> None:
    result = align(model, batches, 4, methods=("quest",))
    assert result["batches"] == 3
    values = result["methods"]["quest"]
    assert set(values["weights_by_block"]) == set(values["stream_by_block"]) == {"0", "1"}
    assert set(values["weights_by_kind"]) == {"q", "k", "v", "o", "gate", "up", "down"}
    for key, group in (("weights_by_block", block_of), ("weights_by_kind", kind_of)):
        for part, value in values[key].items():
            members = [v["mean"] for name, v in values["layers"].items() if str(group(name)) == part]
            assert value["mean"] == pytest.approx(statistics.fmean(members))
            assert value["std"] > 0


def test_one_batch_has_no_spread(model: Llama, batches: list[Batch]) -> None:
    values = align(model, batches[:1], 4, methods=("quest",))["methods"]["quest"]
    assert {value["std"] for value in values["layers"].values()} == {None}


def test_the_model_comes_back_as_it_was(model: Llama, batches: list[Batch]) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    align(model, batches, 4)
    assert {type(m) for name, m in model.named_modules() if name.endswith(".q")} == {nn.Linear}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_inputs_are_captured_and_the_hooks_taken_off(model: Llama, batches: list[Batch]) -> None:
    names = layer_names(model, QuantSpec())
    inputs = capture_inputs(model, names, batches, max_rows=30)
    assert {x.shape for name, x in inputs.items() if kind_of(name) != "down"} == {(30, 64)}
    assert inputs["layers.0.mlp.down"].shape == (30, 128)
    assert torch.equal(inputs["layers.0.mlp.gate"], inputs["layers.0.mlp.up"])
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("quantised", [True, False])
def test_everything_of_a_model_is_json(model: Llama, batches: list[Batch], quantised: bool) -> None:
    spec = QuantSpec(weight_bits=3, act_bits=16)
    snapshots = [(step, dict(model.state_dict())) for step in (5, 9)]
    if quantised:
        with prepared(model, spec):
            result = diagnose(model, batches, spec, snapshots, 2, show_progress=False)
    else:
        result = diagnose(model, batches, spec, snapshots, 2, show_progress=False)
    assert canonical_json(result)
    assert result["masks"]["bits"] == 3
    assert result["masks"]["method"] == "quest"
    assert result["error"]["activations"] is None
    assert set(result["normality"]["activations"]) == set(result["error"]["weights"]["layers"])
