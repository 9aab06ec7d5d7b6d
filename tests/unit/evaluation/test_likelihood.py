"""Likelihoods in batches with shared texts are those of each text and continuation alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import questlm
from helpers.packed_models import SHAPE
from questlm.config import QuantSpec
from questlm.errors import DataError
from questlm.evaluation.likelihood import Likelihood, Request, encode_pair, log_likelihoods
from questlm.models import Llama

VOCABULARY = SHAPE.vocab_size or 0


def alone(model: torch.nn.Module, request: Request, max_tokens: int) -> Likelihood:
    """The definition: one forward pass of the end of both, without a cache."""
    ids = torch.tensor([*request.context, *request.continuation][-max_tokens - 1 :])
    with torch.no_grad():
        logits = model(ids[None, :-1])[0, -len(request.continuation) :].double()
    targets = ids[-len(request.continuation) :]
    return Likelihood(
        -float(F.cross_entropy(logits, targets, reduction="sum")), torch.equal(logits.argmax(-1), targets)
    )


def requests(model: torch.nn.Module) -> list[Request]:
    """Texts of many lengths with one to five continuations, some of them what greedy decoding gives."""
    draw = random.Random(0)
    found = []
    for _ in range(12):
        text = tuple(draw.choices(range(VOCABULARY), k=draw.randrange(1, 30)))
        likeliest = int(model(torch.tensor([text]))[0, -1].argmax())
        found += [Request(text, tuple(draw.choices(range(VOCABULARY), k=draw.randrange(1, 9)))) for _ in range(4)]
        found.append(Request(text, (likeliest,)))
    draw.shuffle(found)
    return found


@pytest.mark.parametrize("max_tokens", [100, 12, 1])
def test_batches_give_what_each_request_gives_alone(max_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("questlm.evaluation.likelihood._TOKENS_PER_BATCH", 150)
    model = Llama(SHAPE).initialize(0).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(30)  # so that some tokens are likely
        asked = requests(model)
    if max_tokens == 1:
        asked = [request for request in asked if len(request.continuation) == 1]
    found = log_likelihoods(model, asked, max_tokens, VOCABULARY, show_progress=False)
    expected = [alone(model, request, max_tokens) for request in asked]
    assert [each.greedy for each in found] == [each.greedy for each in expected]
    assert len({each.greedy for each in found}) == 2
    assert [each.nats for each in found] == pytest.approx([each.nats for each in expected], abs=1e-4)


def test_prepared_and_packed_models_score_alike(tmp_path: Path) -> None:
    model = questlm.prepare(Llama(SHAPE).initialize(0), QuantSpec(weight_bits=3, act_bits=16)).eval()
    questlm.pack(model, tmp_path / "packed")
    asked = requests(model)
    expected = [alone(model, request, 64).nats for request in asked]
    for each in (model, questlm.load(tmp_path / "packed")):
        found = log_likelihoods(each, asked, 64, VOCABULARY, show_progress=False)
        assert [likelihood.nats for likelihood in found] == pytest.approx(expected, abs=1e-3)


def test_many_continuations_of_one_text_share_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Llama(SHAPE).initialize(0).eval()
    batches = []
    plain = model.next_logits
    monkeypatch.setattr(model, "next_logits", lambda ids, *rest: batches.append(len(ids)) or plain(ids, *rest))
    asked = [Request((0,), (number % VOCABULARY, number % 7)) for number in range(100)]
    found = log_likelihoods(model, asked, 8, VOCABULARY, show_progress=False)
    assert batches == [13]
    assert found[99].nats == pytest.approx(alone(model, asked[99], 8).nats, abs=1e-4)


def test_a_continuation_longer_than_the_model_reads_is_refused() -> None:
    model = Llama(SHAPE).initialize(0).eval()
    assert log_likelihoods(model, [Request((1,), (2,) * 8)], 8, VOCABULARY, show_progress=False)
    with pytest.raises(DataError, match="a continuation of 9 tokens cannot be scored: the model reads at most 8"):
        log_likelihoods(model, [Request((1,), (2,) * 9)], 8, VOCABULARY, show_progress=False)


def test_spaces_before_a_continuation_are_its_own() -> None:
    def encode(text: str) -> list[int]:
        return [ord(letter) for letter in text]

    assert encode_pair(encode, 0, "ab ", "c") == (encode("ab"), encode(" c"))
    assert encode_pair(encode, 0, "", " c") == ([0], encode(" c"))
    assert encode_pair(encode, 0, "  ", "c") == ([0], encode("  c"))
    with pytest.raises(DataError, match="the tokenizer gives 0 tokens before it and 1 for it"):
        encode_pair(encode, None, "", "c")
