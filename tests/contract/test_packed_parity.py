"""What trains is what ships: the packed model's logits are the prepared model's.

Bit for bit where products are sums of integers; where inputs are floats (16-bit inputs, a head of integer rows), native
kernels sum them in another order (`helpers.packed_models.same_logits`).
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import questlm
from helpers.packed_models import same_logits
from questlm.config import ModelConfig, QuantSpec
from questlm.export.pack import pack
from questlm.inference.linear import PackedLinear
from questlm.models import KVCache, Llama

# 48 inputs take Hadamard blocks of 16, 64 of 64; a head dimension of its own makes o wider than the residual stream.
SHAPES = {
    "odd": ModelConfig(layers=2, hidden=48, heads=2, mlp_hidden=64, vocab_size=61),
    "gqa": ModelConfig(layers=1, hidden=64, heads=4, kv_heads=2, head_dim=32, mlp_hidden=80, vocab_size=61),
    "tied": ModelConfig(layers=1, hidden=32, heads=2, mlp_hidden=48, vocab_size=61, tied_head=True),
}
PAIRS = [(b, b) for b in (1, 2, 3, 4, 5, 6, 7, 8, "ternary")]
PAIRS += [(4, 16), (16, 4), (1, 8), (2, 4), ("ternary", 8), (8, "ternary"), (1, 16)]
IDS = torch.randint(0, 61, (2, 7), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def model_and_packed(tmp_path, shape: str, weight, act, form: str, **options):
    spec = QuantSpec(weight_bits=weight, act_bits=act, embeddings=form)
    model = questlm.prepare(Llama(SHAPES[shape]).initialize(0), spec).eval()
    pack(model, tmp_path / "a")
    return model, questlm.load(tmp_path / "a", **options)


# Every pair of widths, and every shape and form of the embeddings with some of them. A matrix's length meets its bits
# in the packing of codes alone, which `tests/unit/ops/reference/test_packing.py` tests at every width and any length.
CASES = [("odd", "bf16", *pair) for pair in PAIRS]
CASES += [(shape, form, 4, 4) for shape in SHAPES for form in ("bf16", "int8")]
CASES += [(shape, "int8", *pair) for shape in SHAPES for pair in ((1, 8), ("ternary", "ternary"), (16, 4))]


@pytest.mark.parametrize(("shape", "form", "weight", "act"), dict.fromkeys(CASES), ids=str)
def test_logits_are_equal(tmp_path, shape: str, form: str, weight, act) -> None:
    model, packed = model_and_packed(tmp_path, shape, weight, act, form)
    assert same_logits(packed.logits(IDS), model(IDS), QuantSpec(weight_bits=weight, act_bits=act, embeddings=form))


@pytest.mark.parametrize("form", ["bf16", "int8"])
@pytest.mark.parametrize(("weight", "act"), [(4, 4), (1, 1), ("ternary", 8), (8, 8), (4, 16), (16, 16)], ids=str)
def test_the_loss_by_native_products_is_that_by_the_reference(
    tmp_path, monkeypatch: pytest.MonkeyPatch, form: str, weight, act
) -> None:
    """Sums of codes are integers; those of floats (16-bit inputs, the head) are taken in another order."""
    _, native = model_and_packed(tmp_path, "odd", weight, act, form)
    monkeypatch.setattr("questlm.ops.cpu.linear.unavailable", lambda backend: "the reference is asked for")
    reference = questlm.load(tmp_path / "a")
    kinds = [{type(each.weight) for each in model.modules() if isinstance(each, PackedLinear)} for model in (
        native._model, reference._model
    )]  # fmt: skip
    assert kinds[0].isdisjoint(kinds[1])
    losses = [
        F.cross_entropy(model.logits(IDS)[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()) for model in (native, reference)
    ]
    assert abs(float(losses[0] - losses[1])) <= 1e-6


@pytest.mark.parametrize(("weight", "act"), [(4, 4), (1, 8), (4, 16), (16, 4)], ids=str)
@pytest.mark.parametrize("shape", list(SHAPES))
def test_logits_are_equal_under_bf16_autocast(tmp_path, shape: str, weight, act) -> None:
    model, packed = model_and_packed(tmp_path, shape, weight, act, "bf16", dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(IDS)
    assert packed(IDS).dtype is torch.bfloat16
    assert torch.equal(packed(IDS), expected)


def test_float_embeddings_ship_as_bf16_and_differ_by_that_rounding_alone(tmp_path) -> None:
    model, packed = model_and_packed(tmp_path, "odd", 4, 16, "float")
    gap = (packed.logits(IDS) - model(IDS)).abs().max()
    assert 0 < gap < 0.02 * model(IDS).abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_logits_with_a_cache_are_those_without(tmp_path, shape: str, dtype: torch.dtype) -> None:
    _, packed = model_and_packed(tmp_path, shape, 4, 16, "bf16", dtype=dtype)
    cache = KVCache(packed.config, 2, IDS.shape[1], dtype, "cpu")
    steps = [packed._forward(piece, cache) for piece in IDS.split([3, 1, 1, 2], dim=1)]
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(torch.cat(steps, dim=1), packed.logits(IDS), atol=tolerance, rtol=tolerance)
