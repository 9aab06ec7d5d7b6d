"""Embedding and head in the form that ships."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from questlm import ops
from questlm.ops.reference.storage import as_stored, from_int8_rows, to_int8_rows
from questlm.quant import StoredEmbedding, StoredLinear


@pytest.mark.parametrize("form", ["bf16", "int8"])
def test_layers_compute_with_the_stored_weight_and_learn_as_if_it_were_their_own(form):
    torch.manual_seed(0)
    embedding, head = nn.Embedding(10, 16), nn.Linear(16, 10)
    stored_embedding, stored_head = (
        StoredEmbedding.from_embedding(embedding, form),
        StoredLinear.from_linear(head, form),
    )
    ids, x = torch.tensor([[1, 2, 1]]), torch.randn(3, 16)
    looked_up, logits = stored_embedding(ids), stored_head(x)
    assert torch.equal(looked_up, as_stored(embedding.weight, form)[ids])
    assert torch.equal(logits, nn.functional.linear(x, as_stored(head.weight, form), head.bias))
    (looked_up.sum() + logits.sum()).backward()
    expected = torch.zeros(10, 16)
    expected[1], expected[2] = 2, 1
    assert torch.equal(embedding.weight.grad, expected)  # the identity: as without rounding
    torch.testing.assert_close(head.weight.grad, x.sum(0).expand(10, -1))


def test_bf16_form_is_the_cast_to_bf16_for_every_kind_of_number():
    edges = [0.0, -0.0, 1.0, 3.4e38, -3.4e38, 1e-40, -1e-45, float("inf"), -float("inf"), float("nan")]
    bits = torch.randint(-(2**31), 2**31, (50_000,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    halfway = torch.tensor([0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001], dtype=torch.int32)  # ties to even
    x = torch.cat([torch.tensor(edges), bits.view(torch.float32), halfway.view(torch.float32)])
    got, want = as_stored(x, "bf16"), x.bfloat16().float()
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(got.signbit()[~x.isnan()], want.signbit()[~x.isnan()])


@pytest.mark.parametrize("form", ["float", "bf16", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_stored_form_keeps_the_dtype_and_is_stable(form, dtype):
    x = torch.randn(5, 33, generator=torch.Generator().manual_seed(1)).to(dtype)
    once = as_stored(x, form)
    assert once.dtype == dtype
    torch.testing.assert_close(as_stored(once, form), once, rtol=1e-6 if dtype != torch.bfloat16 else 1e-2, atol=0)


def test_int8_rows_are_the_nearest_of_255_levels():
    x = torch.randn(6, 50, generator=torch.Generator().manual_seed(2)) * torch.logspace(-6, 3, 6).unsqueeze(1)
    codes, scale = to_int8_rows(x)
    assert (codes.dtype, codes.shape, scale.dtype, scale.shape) == (torch.int8, (6, 50), torch.float32, (6, 1))
    assert torch.equal(codes.abs().amax(-1), torch.full((6,), 127, dtype=torch.int8))
    assert ((from_int8_rows(codes, scale) - x).abs() <= scale / 2 * (1 + 1e-5)).all()


def test_int8_codes_survive_a_second_trip():
    codes, scale = to_int8_rows(torch.randn(6, 50, generator=torch.Generator().manual_seed(3)))
    again, _ = to_int8_rows(from_int8_rows(codes, scale))
    assert torch.equal(again, codes)


def test_int8_rows_of_zeros_stay_zero_and_bad_rows_stay_bad():
    x = torch.zeros(3, 8)
    x[1, 2], x[2, 2] = float("nan"), float("inf")
    stored = as_stored(x, "int8")
    assert torch.equal(stored[0], torch.zeros(8))
    assert not stored[1].isfinite().any()
    assert not stored[2].isfinite().all()


def test_an_unknown_form_is_named():
    with pytest.raises(ValueError, match="int4"):
        as_stored(torch.zeros(2, 2), "int4")


def test_embedding_options_survive_both_ways():
    embedding = nn.Embedding(10, 16, padding_idx=3, scale_grad_by_freq=True)
    stored = StoredEmbedding.from_embedding(embedding, "bf16")
    stored(torch.tensor([3, 3, 4])).sum().backward()
    assert embedding.weight.grad[3].abs().max() == 0
    plain = stored.to_plain()
    assert type(plain) is nn.Embedding
    assert plain.weight is embedding.weight
    assert (plain.padding_idx, plain.scale_grad_by_freq) == (3, True)


@pytest.mark.parametrize(("form", "steps"), [("int2", "fp32"), ("int4", "fp16"), ("int7", "fp8")])
def test_rows_of_codes_learn_as_if_they_were_not_rounded(form: str, steps: str) -> None:
    torch.manual_seed(0)
    embedding, head = nn.Embedding(10, 16), nn.Linear(16, 10)
    rows, logits = StoredEmbedding.from_embedding(embedding, form, steps), StoredLinear.from_linear(head, form, steps)
    ids, x = torch.tensor([[1, 2, 1]]), torch.randn(3, 16)
    looked_up, y = rows(ids), logits(x)
    assert len(looked_up.unique()) <= 2 * 2 ** int(form[-1])  # of two rows
    torch.testing.assert_close(looked_up, embedding(ids), rtol=0, atol={"int2": 2.0, "int4": 1.0, "int7": 0.2}[form])
    values = ops.operand_values(logits.quantizer.operand(head.weight.detach()))
    torch.testing.assert_close(y, nn.functional.linear(x, values, head.bias))
    (looked_up.sum() + y.sum()).backward()
    expected = torch.zeros(10, 16)
    expected[1], expected[2] = 2, 1
    assert torch.equal(embedding.weight.grad, expected)
    torch.testing.assert_close(head.weight.grad, x.sum(0).expand(10, -1))
    assert rows.to_plain().weight is embedding.weight
