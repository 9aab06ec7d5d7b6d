"""The table of methods, and how a spec becomes a layer's quantisers."""

from __future__ import annotations

import pytest

from questlm.config import QuantSpec
from questlm.errors import ConfigError
from questlm.ops import Grid
from questlm.quant import METHODS, find_method, gaussian_grid
from questlm.quant.estimators import trust_bound
from questlm.quant.methods import layer_quantizers


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_is_and_where_it_is_from(name):
    method = find_method(name)
    assert method is METHODS[name]
    assert method.summary
    assert "\n" not in method.summary
    assert "arXiv" in method.source
    assert "Gradient" in method.doc or "gradient" in method.doc
    assert "Initialisation" in method.doc or "initialisation" in method.doc


@pytest.mark.parametrize("name", ["", "Quest", "qest"])
def test_an_unknown_method_lists_those_there_are(name):
    with pytest.raises(ConfigError, match=r"There are: .*quest"):
        find_method(name)


def test_a_spec_becomes_a_block_and_two_quantisers():
    weight, act, block = layer_quantizers(QuantSpec(weight_bits=3, act_bits="ternary"), 8, 640)
    assert (block, weight.grid, act.grid) == (128, gaussian_grid(3), gaussian_grid("ternary"))
    assert layer_quantizers(QuantSpec(weight_bits=16), 8, 640).weight is None
    assert layer_quantizers(QuantSpec(act_bits=16), 8, 640).act is None
    assert layer_quantizers(QuantSpec(block_size=32), 8, 640).block_size == 32
    assert layer_quantizers(QuantSpec(), 8, 48).block_size == 16


@pytest.mark.parametrize("spec", [QuantSpec(), QuantSpec(block_size=16)])
def test_an_input_dimension_without_a_block_is_refused(spec):
    with pytest.raises(ConfigError, match="40"):
        layer_quantizers(spec, 8, 40)


@pytest.mark.parametrize(("rotates", "one_bit"), [(True, 0.65), (False, 0.625)])
def test_trust_ends_half_a_step_beyond_the_outermost_level(rotates, one_bit):
    bounds = {levels: trust_bound(Grid(levels, 1.0), rotates) for levels in range(2, 257)}
    assert bounds == {2: one_bit} | {levels: (levels - 1) / 2 + 1 / 2 for levels in range(3, 257)}
