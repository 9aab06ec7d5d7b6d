"""From likelihoods to accuracies, as lm-evaluation-harness counts them."""

from __future__ import annotations

import json
import math

import pytest

from helpers.packed_models import SHAPE
from questlm.errors import DataError
from questlm.evaluation.likelihood import Likelihood
from questlm.evaluation.task_result import score_items, task_result
from questlm.evaluation.tasks import Item
from questlm.models import Llama

ITEMS = [Item("a", ("long long long", "short"), 0), Item("b", ("x", "y"), 1), Item("c", ("x", "y", "z"), 2)]


def likelihoods(*nats: float) -> list[Likelihood]:
    return [Likelihood(each, False) for each in nats]


def test_accuracy_is_of_the_likeliest_choice_and_of_the_likeliest_a_character() -> None:
    found = [likelihoods(-9, -4), likelihoods(-1, -1), likelihoods(-3, -2, -1)]  # equal ones: the first is chosen
    result = task_result("hellaswag", ITEMS, found)
    assert result.correct["acc"].tolist() == [False, False, True]
    assert result.correct["acc_norm"].tolist() == [True, False, True]
    assert result.perplexity is None
    assert result.estimates()["acc"].value == pytest.approx(1 / 3)
    better = task_result("hellaswag", ITEMS, [likelihoods(-1, -4), *found[1:]])
    assert better.differences(result)["acc"].value == pytest.approx(1 / 3)
    assert json.loads(json.dumps(better.as_json()))["correct"]["acc"] == [1, 0, 1]
    other = task_result("hellaswag", ITEMS[:2], found[:2])
    with pytest.raises(DataError, match="of different items"):
        better.differences(other)


def test_a_last_word_is_right_where_greedy_decoding_gives_it() -> None:
    items = [Item("a", ("b",)), Item("c", ("d",))]
    result = task_result("lambada_openai", items, [[Likelihood(-1.0, True)], [Likelihood(-3.0, False)]])
    assert result.correct["acc"].tolist() == [True, False]
    assert list(result.correct) == ["acc"]
    assert result.perplexity == pytest.approx(math.exp(2))


def test_items_are_scored_by_their_tokens() -> None:
    model = Llama(SHAPE).initialize(0).eval()

    def encode(text: str) -> list[int]:
        return [ord(letter) % 61 for letter in text]

    result = score_items("hellaswag", ITEMS, model, encode, 0, 32, SHAPE.vocab_size or 0)
    assert [len(each) for each in result.nats] == [2, 2, 3]
    # An untrained model gives each of 61 tokens nearly the same; a choice has a token more than letters, the space.
    assert result.nats[0] == pytest.approx((-15 * math.log(61), -6 * math.log(61)), rel=0.05)
