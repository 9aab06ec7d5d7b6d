"""The loss over a validation split: every target once, in float32, against the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from questlm.data import TokenStream
from questlm.evaluation import Evaluation, evaluate

VOCABULARY = 11


def stream(length: int) -> TokenStream:
    ids = np.random.default_rng(0).integers(0, VOCABULARY, length).astype(np.uint16)
    return TokenStream([ids[: length // 3], ids[length // 3 :]])


def bigram(ids: Tensor) -> Tensor:
    """A model without context, so that cutting into windows changes nothing."""
    table = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0))
    return table[ids]


@pytest.mark.parametrize("seq_len", [1, 7, 32, 100, 5000])
@pytest.mark.parametrize("length", [2, 33, 64, 1000])
def test_every_token_but_the_first_is_predicted_once(length: int, seq_len: int) -> None:
    tokens = stream(length)
    result = evaluate(bigram, tokens, seq_len)
    ids = torch.from_numpy(tokens.read(0, length))
    expected = F.cross_entropy(bigram(ids[:-1]).double(), ids[1:])
    assert result.tokens == length - 1
    assert result.loss == pytest.approx(float(expected), rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(result.loss))


def test_windows_start_without_context_and_follow_one_another() -> None:
    seen: list[list[int]] = []

    def spy(ids: Tensor) -> Tensor:
        seen.extend(ids.tolist())
        return bigram(ids)

    tokens = stream(100)
    evaluate(spy, tokens, 32)
    assert sorted(map(len, seen)) == [3, 32, 32, 32]
    assert [token for window in sorted(seen, key=len, reverse=True) for token in window] == tokens.read(0, 99).tolist()


def test_a_uniform_model_has_the_loss_of_its_vocabulary() -> None:
    result = evaluate(lambda ids: torch.zeros(*ids.shape, VOCABULARY), stream(500), 50)
    assert result.loss == pytest.approx(math.log(VOCABULARY), rel=1e-6)
    assert result.perplexity == pytest.approx(VOCABULARY, rel=1e-6)


def test_bits_per_byte_are_total_bits_over_the_bytes_of_the_text() -> None:
    result = evaluate(bigram, stream(500), 50, text_bytes=1234)
    assert result.bits_per_byte == pytest.approx(result.loss * 499 / math.log(2) / 1234, rel=1e-9)


def test_bits_per_byte_are_unknown_without_bytes_or_on_a_part() -> None:
    assert evaluate(bigram, stream(500), 50).bits_per_byte is None
    part = evaluate(bigram, stream(500), 50, text_bytes=1234, max_tokens=100)
    assert part.bits_per_byte is None
    assert part.tokens == 100


def test_16_bit_logits_are_summed_in_full_precision() -> None:
    tokens = stream(4000)
    exact, rounded = evaluate(bigram, tokens, 64), evaluate(lambda ids: bigram(ids).bfloat16(), tokens, 64)
    assert rounded.loss == pytest.approx(exact.loss, abs=2e-3)


def test_an_absurd_loss_gives_no_overflow() -> None:
    result = evaluate(lambda ids: 1e6 * torch.eye(VOCABULARY)[torch.zeros_like(ids)], stream(500), 50)
    assert result.loss > 1e5
    assert math.isfinite(result.perplexity)


def test_no_gradient_is_recorded() -> None:
    weight = torch.randn(VOCABULARY, VOCABULARY, requires_grad=True)
    evaluate(lambda ids: weight[ids], stream(100), 32)
    assert weight.grad is None


def test_a_result_is_a_plain_dictionary_for_records() -> None:
    result = Evaluation(loss=1.0, perplexity=math.e, bits_per_byte=None, tokens=5)
    assert result.as_dict() == {
        "loss": 1.0,
        "perplexity": math.e,
        "bits_per_byte": None,
        "tokens": 5,
        "text_bits_per_byte": None,
    }
