"""A trained weight is rounded to other grids for a while, and is then as it was."""

from __future__ import annotations

import torch

import questlm
from questlm import ops
from questlm.config import ModelConfig, QuantSpec
from questlm.models import Llama
from questlm.quant.grids import gaussian_grid
from questlm.quant.rerounding import (
    Rounding,
    rerounded,
    rounded_anew,
    roundings,
    stored_matrices,
    trained_values,
)

SHAPE = ModelConfig(layers=1, hidden=32, heads=2, mlp_hidden=64, vocab_size=40, tied_head=True)


def prepared(**settings: object) -> Llama:
    return questlm.prepare(Llama(SHAPE).initialize(0), QuantSpec(**settings)).eval()


def test_the_grid_of_training_changes_nothing_and_fewer_bits_move_more() -> None:
    layer = prepared(weight_bits=4, act_bits=16, steps="fp16").get_submodule("layers.0.mlp.up")
    trained = trained_values(layer)
    assert torch.equal(ops.operand_values(rerounded(layer, Rounding(4, 1.0))), trained)
    moved = [float((ops.operand_values(rerounded(layer, Rounding(bits, 1.0))) - trained).norm()) for bits in (4, 3, 2)]
    assert moved == sorted(moved)
    wide = rerounded(layer, Rounding(4, 1.5))
    assert torch.allclose(wide.step, 1.5 * rerounded(layer, Rounding(4, 1.0)).step, rtol=1e-3)


def test_layers_compute_with_other_grids_and_are_restored() -> None:
    model, ids = prepared(weight_bits=4, act_bits=4, embeddings="bf16"), torch.arange(8)[None]
    before = model(ids)
    matrices = stored_matrices(model)
    assert [len(layers) for layers in matrices.values()] == [2, *[1] * 7]
    choices = [(layer, Rounding(3, 1.3)) for layers in matrices.values() for layer in layers]
    with rounded_anew(choices):
        assert {matrices["embed"][0].stored_dtype, matrices["embed"][1].stored_dtype} == {"int3"}
        assert model.get_submodule("layers.0.mlp.up").quantized_weight().grid.levels == 8
        assert not torch.equal(model(ids), before)
    assert torch.equal(model(ids), before)
    assert model.get_submodule("layers.0.mlp.up").spec.weight_bits == 4


def test_weights_of_other_grids_are_left_alone() -> None:
    for settings in ({"weight_bits": 1}, {"method": "lsq"}, {"method": "pquant", "weight_bits": 1, "act_bits": 8}):
        assert roundings(prepared(**settings).get_submodule("layers.0.mlp.up")) == []
    assert Rounding(3, 1.0).grid == gaussian_grid(3)
    assert max(roundings(prepared().get_submodule("embed"))).bits == 7
