"""Windows that overlap, and documents, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from questlm.data import TokenStream
from questlm.errors import ConfigError, DataError
from questlm.evaluation import evaluate
from questlm.evaluation.strided import Document, documents_of, mean_bits_per_byte, summed, token_nats

VOCABULARY, END = 11, 0
TABLE = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0))


def stream(length: int) -> TokenStream:
    return TokenStream([np.random.default_rng(1).integers(0, VOCABULARY, length).astype(np.uint16)])


def sums(ids: Tensor) -> Tensor:
    """A model to which the whole window before a token matters."""
    return TABLE[ids].cumsum(dim=1)


@pytest.mark.parametrize("length", [2, 9, 17, 200])
@pytest.mark.parametrize(("seq_len", "stride"), [(8, 8), (8, 3), (8, 1), (50, 20), (300, 7)])
def test_each_token_is_predicted_from_as_much_as_the_windows_say(length: int, seq_len: int, stride: int) -> None:
    tokens = stream(length)
    ids = torch.from_numpy(tokens.read(0, length))
    expected = []
    for target in range(1, length):
        # The first window that reaches the target; its start is a multiple of the stride.
        start = stride * max(0, -(-(target - seq_len) // stride))
        logits = sums(ids[None, start:target])[0, -1]
        expected.append(float(F.cross_entropy(logits, ids[target])))
    found = token_nats(sums, tokens, seq_len, stride, show_progress=False)
    assert found.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_windows_that_do_not_overlap_are_those_of_evaluate() -> None:
    tokens = stream(500)
    plain = evaluate(sums, tokens, 32, text_bytes=700, end_of_text=END, show_progress=False)
    nats = token_nats(sums, tokens, 32, 32, show_progress=False)
    found = summed(nats, tokens.read(1, 500), 700, END)
    for name, value in plain.as_dict().items():
        assert found.as_dict()[name] == pytest.approx(value, rel=1e-6), name
    assert summed(nats, tokens.read(1, 500), None, None).bits_per_byte is None


def test_windows_that_cannot_be_are_refused() -> None:
    for stride in (0, 9):
        with pytest.raises(ConfigError, match=f"stride {stride} cannot be used: it is at least 1 and at most"):
            token_nats(sums, stream(20), 8, stride)
    with pytest.raises(DataError, match="no token to predict"):
        token_nats(sums, stream(1), 8, 8)


def test_bits_of_a_document_are_those_of_its_text() -> None:
    tokens = np.array([3, 4, END, 5, 6, 7, END, END, 8])
    nats = np.array([1, 2, 3, 4, 5, 6, 7, 8], dtype=np.float32)  # of all tokens but the first
    found = documents_of(nats, tokens, [10, 20, 0, 5], END)
    ln2 = math.log(2)
    assert found == (
        Document(1, 10, pytest.approx(1 / ln2 / 10)),
        Document(3, 20, pytest.approx((3 + 4 + 5) / ln2 / 20)),
        Document(1, 5, pytest.approx(8 / ln2 / 5)),
    )
    ends = documents_of(nats[:1], np.array([END, END]), [0, 0], END)
    assert ends == ()
    assert [each.tokens for each in documents_of(nats[:2], np.array([3, END, 4]), [1, 1], END)] == [
        1
    ]  # 3: not predicted
    mean = mean_bits_per_byte(found)
    assert mean is not None
    assert mean.value == pytest.approx(sum(each.bits_per_byte for each in found) / 3)
    assert mean.low < mean.value < mean.high
    assert mean_bits_per_byte(found[:1]) is None
