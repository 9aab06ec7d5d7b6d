"""What a model makes of a task: accuracies, their intervals, and the score of every choice of every item."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from questlm.errors import DataError
from questlm.evaluation.accuracy import Estimate, accuracy, difference
from questlm.evaluation.likelihood import CachedModel, Likelihood, Request, encode_pair, log_likelihoods
from questlm.evaluation.tasks import Item, items_hash

__all__ = ["TaskResult", "score_items", "task_result"]


@dataclass(frozen=True)
class TaskResult:
    """A task's measures, as lm-evaluation-harness defines them.

    Attributes:
        task: its name.
        items_hash: SHA-256 of the items.
        correct: which items are right, by measure: 'acc', the choice of the highest log probability; 'acc_norm', of the
            highest log probability divided by its characters. Where an item has one choice there is 'acc' alone: every
            one of its tokens is the likeliest.
        nats: log probability of each choice of each item.
    """

    task: str
    items_hash: str
    correct: dict[str, NDArray[np.bool_]]
    nats: tuple[tuple[float, ...], ...]

    @property
    def perplexity(self) -> float | None:
        """Where each item has one choice: exp(-mean log probability of it), else None."""
        if any(len(each) != 1 for each in self.nats):
            return None
        return math.exp(min(-math.fsum(each[0] for each in self.nats) / len(self.nats), 700.0))

    def estimates(self) -> dict[str, Estimate]:
        """Each accuracy with its 95 % confidence interval."""
        return {name: accuracy(correct) for name, correct in self.correct.items()}

    def differences(self, other: TaskResult) -> dict[str, Estimate]:
        """Each accuracy minus that of `other`, with its 95 % confidence interval.

        Raises:
            DataError: `other` is of other items.
        """
        if self.items_hash != other.items_hash:
            raise DataError(
                f"these results of {self.task} and {other.task} are of different items; compare on the same"
            )
        return {name: difference(other.correct[name], correct) for name, correct in self.correct.items()}

    def as_json(self) -> dict[str, Any]:
        """All of it for a file."""
        return {
            "items": len(self.nats),
            "items_hash": self.items_hash,
            **{name: estimate._asdict() for name, estimate in self.estimates().items()},
            **({} if self.perplexity is None else {"perplexity": self.perplexity}),
            "nats": [list(each) for each in self.nats],
            "correct": {name: correct.astype(int).tolist() for name, correct in self.correct.items()},
        }


def score_items(
    task: str,
    items: Sequence[Item],
    model: CachedModel,
    encode: Callable[[str], list[int]],
    start: int | None,
    max_tokens: int,
    vocab_size: int,
) -> TaskResult:
    """Score a task with a model. `encode` and `start` are as for `encode_pair`, the last two as for `log_likelihoods`.

    Raises:
        DataError: an item of which the tokenizer leaves nothing to score.
    """
    requests = []
    for item in items:
        for choice in item.choices:
            context, continuation = encode_pair(encode, start, item.context, f" {choice}")
            requests.append(Request(tuple(context), tuple(continuation)))
    found = iter(log_likelihoods(model, requests, max_tokens, vocab_size))
    return task_result(task, items, [[next(found) for _ in item.choices] for item in items])


def task_result(task: str, items: Sequence[Item], found: Sequence[Sequence[Likelihood]]) -> TaskResult:
    """The result of a task from the likelihood of each choice of each item."""
    nats = tuple(tuple(each.nats for each in choices) for choices in found)
    digest = items_hash(list(items))
    if all(len(item.choices) == 1 for item in items):
        greedy = np.array([choices[0].greedy for choices in found])
        return TaskResult(task, digest, {"acc": greedy}, nats)
    answers = [item.answer for item in items]
    by_length = [
        [score / len(choice) for score, choice in zip(scores, item.choices, strict=True)]
        for scores, item in zip(nats, items, strict=True)
    ]
    chosen = {"acc": [int(np.argmax(scores)) for scores in nats], "acc_norm": [int(np.argmax(s)) for s in by_length]}
    return TaskResult(task, digest, {name: np.equal(each, answers) for name, each in chosen.items()}, nats)
