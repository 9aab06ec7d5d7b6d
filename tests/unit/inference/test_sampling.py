from __future__ import annotations

from collections import Counter

import pytest
import torch

from questlm.inference.sampling import Sampling, nucleus, sample

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0, 2.5])


def draw(how: Sampling, n: int = 3000, logits: torch.Tensor = LOGITS) -> Counter[int]:
    generator = torch.Generator().manual_seed(0)
    return Counter(sample(logits, how, generator) for _ in range(n))


def test_draws_follow_the_softmax_of_the_tempered_logits() -> None:
    counts = draw(Sampling(temperature=0.7, top_k=None), n=8000)
    expected = torch.softmax(LOGITS / 0.7, dim=0)
    for token, probability in enumerate(expected.tolist()):
        assert counts[token] / 8000 == pytest.approx(probability, abs=0.02)


def test_top_k_keeps_the_likeliest() -> None:
    assert set(draw(Sampling(2.0, top_k=2))) == {1, 4}
    assert set(draw(Sampling(0.0))) == set(draw(Sampling(2.0, top_k=1))) == {1}
    assert set(draw(Sampling(5.0, top_k=500))) == {0, 1, 2, 3, 4}


def test_top_p_keeps_the_fewest_that_hold_it() -> None:
    first, second = torch.softmax(LOGITS, dim=0).sort(descending=True).values[:2].tolist()
    assert set(draw(Sampling(1.0, None, top_p=first - 1e-6))) == {1}
    assert set(draw(Sampling(1.0, None, top_p=first + 1e-6))) == {1, 4}
    assert set(draw(Sampling(1.0, None, top_p=first + second + 1e-6))) == {1, 2, 4}
    assert set(draw(Sampling(1.0, None, top_p=1e-12))) == {1}


def test_nucleus_lengths() -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    assert [nucleus(probabilities, p) for p in (0.1, 0.5, 0.51, 0.75, 1.0)] == [1, 1, 2, 2, 3]


@pytest.mark.parametrize("temperature", [1e-320, 1e-9, 1e300])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    tokens = set(draw(Sampling(temperature, None), n=200))
    assert tokens == {1} if temperature < 1 else len(tokens) == 5


def test_sixteen_bit_logits_are_drawn_from_too() -> None:
    assert set(draw(Sampling(0.0), n=1, logits=LOGITS.bfloat16())) == {1}
