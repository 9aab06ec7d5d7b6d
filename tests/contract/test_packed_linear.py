"""Every implementation of `packed_linear` computes what the layer that trains computes, for every method and width."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from questlm import ops
from questlm.artifact.matrices import operand_tensors
from questlm.config import QuantSpec
from questlm.ops import IMPLEMENTATIONS, Grid, PackedFormat, PackedWeight
from questlm.quant import METHODS, FakeQuantLinear
from questlm.quant.methods import FORMAT_BITS

# Those of the GPU run too slowly under Triton's interpreter: tests/unit/ops/triton/test_weight.py has a few shapes.
NAMES = [each.name for each in IMPLEMENTATIONS["packed_linear"] if each.name != "triton"]
EXACT_LEVELS = 16  # sums of products of fewer levels are exact in float32, in whatever order


def packed_by(name: str, *case: object) -> PackedWeight:
    """A weight laid out for one implementation; skips the test where that cannot run."""
    (chosen,) = [each for each in IMPLEMENTATIONS["packed_linear"] if each.name == name]
    if reason := chosen.can_run(*case, False):
        pytest.skip(reason)
    module, _, found = chosen.where.partition(":")
    return getattr(import_module(module), found)(*case)


def stored(layer: FakeQuantLinear) -> tuple[dict[str, Tensor], PackedFormat]:
    """What an artifact stores of a layer."""
    quantized = layer.weight_quantizer is not None
    tensors = operand_tensors(layer.quantized_weight()) if quantized else {"weight": layer.weight.detach()}
    act = layer.act_quantizer
    learned = {} if act is None else {"act_step": act.step_per_scale(), "act_offset": act.offset()}
    learned["bias"] = layer.bias
    tensors |= {kind: tensor.detach() for kind, tensor in learned.items() if tensor is not None}
    return tensors, PackedFormat(layer.in_features, layer.block_size, *grids(layer))


def grids(layer: FakeQuantLinear) -> tuple[Grid | None, Grid | None]:
    """Grids of weight and input; None for a factor that is not codes."""
    weight, act = (q.grid if q is not None else None for q in (layer.weight_quantizer, layer.act_quantizer))
    return weight, act


def layer_specs() -> list[QuantSpec]:
    """Every method and format whose layers have one branch, at every width, with quantised and with float inputs."""
    found = []
    for name, method in METHODS.items():
        if method.branches:
            continue
        for bits in method.weight.bits:
            act = bits if bits in method.act.bits else method.act.bits[0]
            found += [QuantSpec(method=name, weight_bits=bits, act_bits=a) for a in (act, 16)]
        found.append(QuantSpec(method=name, weight_bits=16, act_bits=method.act.bits[0]))
        for form in [form for form in method.formats if form not in ("int", "ternary")]:
            for bits in FORMAT_BITS[form]:
                found.append(QuantSpec(method=name, format=form, weight_bits=bits, act_bits=4, act_format="int"))
    return found


def made(spec: QuantSpec, out: int, k: int, first: Tensor, bias: bool = False) -> FakeQuantLinear:
    """A layer of `spec` whose quantisers have learned from `first`."""
    layer = FakeQuantLinear.from_linear(nn.Linear(k, out, bias=bias), spec)
    with torch.no_grad():
        layer(first)
    return layer.eval()


def compare(layer: FakeQuantLinear, x: Tensor, name: str, dtype: torch.dtype) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        expected = layer(x)
        inner = x if layer.input_norm is None else ops.rms_norm(x, layer.input_norm.weight, layer.input_norm.eps)
        y = ops.packed_linear(inner, packed_by(name, *stored(layer), torch.device("cpu"), dtype))
    assert y.dtype is dtype and y.shape == expected.shape
    even = all(grid is not None and grid.table is None and grid.levels <= EXACT_LEVELS for grid in grids(layer))
    if even:
        assert torch.equal(y, expected)
    else:  # sums of floats, in another order
        tolerance = 2.0**-7 if dtype is torch.bfloat16 else 1e-5
        size = expected.abs().amax().item()
        torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance * size)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of five rows of 48, so that small matrices have several and an unfinished one."""
    monkeypatch.setattr("questlm.ops.unpacking._TILE_ENTRIES", 5 * 48)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spec", layer_specs(), ids=lambda spec: spec.label)
def test_a_packed_layer_is_the_trained_one(small_tiles: None, spec: QuantSpec, name: str) -> None:
    layer = made(spec, 23, 48, torch.randn(7, 48), bias=True)
    for dtype in (torch.float32, torch.bfloat16):
        compare(layer, torch.randn(3, 2, 48), name, dtype)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 70),
    st.integers(1, 12).map(lambda n: 16 * n),
    st.sampled_from((1, 2, 3, 7, 16, 64, 65)),
    st.sampled_from((1, 2, 3, 4, "ternary")),
    st.sampled_from((0.0, 2.0**-66, 1.0, 2.0**60)),
)
def test_shapes_and_sizes_of_any_kind_are_exact(
    name: str, out: int, k: int, tokens: int, bits: int | str, size: float
) -> None:
    layer = made(QuantSpec(weight_bits=bits, act_bits=bits), out, k, torch.randn(1, k))
    x = torch.randn(tokens, k)
    x[::2] *= size
    compare(layer, x, name, torch.float32)


@pytest.mark.parametrize("name", NAMES)
def test_sums_of_the_longest_rows_are_exact(name: str) -> None:
    layer = made(QuantSpec(weight_bits=4, act_bits=4), 9, 11008, torch.randn(1, 11008))
    compare(layer, torch.randn(2, 11008), name, torch.float32)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["float32", "bf16", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrices_that_are_not_quantised_multiply_as_their_values(kind: str, name: str, dtype: torch.dtype) -> None:
    weight, x = torch.randn(11, 40), torch.randn(2, 3, 40)
    tensors = {"weight": weight.bfloat16() if kind == "bf16" else weight}
    if kind == "int8":
        scale = weight.abs().amax(1, keepdim=True) / 127
        tensors = {"codes": torch.round(weight / scale).to(torch.int8), "scale": scale}
        weight = tensors["codes"] * scale
    elif kind == "bf16":
        weight = tensors["weight"].float()
    packed = packed_by(name, tensors, PackedFormat(40, 1, None, None), torch.device("cpu"), dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        expected = nn.functional.linear(x, weight)
    tolerance = 2.0**-6 if dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(ops.packed_linear(x, packed), expected, rtol=tolerance, atol=tolerance)
