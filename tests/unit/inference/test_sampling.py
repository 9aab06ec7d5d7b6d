from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.allocated import peak_bytes
from questlm.config import GenerationOptions
from questlm.inference.sampling import Sampler, allowed, choose, draw_together, penalized

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0, 2.5])


def draw(temperature: float, n: int = 3000, logits: torch.Tensor = LOGITS, **more) -> torch.Tensor:
    """Counts of tokens (vocab_size,) in `n` draws by uniform numbers at equal distances, which miss no token."""
    options = GenerationOptions(temperature=temperature, **{"top_k": None} | more)
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return choose(logits.expand(n, -1), options, uniform).bincount(minlength=len(logits))


def drawn(*arguments, **more) -> set[int]:
    return set(draw(*arguments, **more).nonzero()[:, 0].tolist())


def test_draws_follow_the_softmax_of_the_tempered_logits() -> None:
    torch.testing.assert_close(draw(0.7) / 3000, torch.softmax(LOGITS / 0.7, dim=0), atol=1 / 3000, rtol=0)


def test_top_k_keeps_the_likeliest() -> None:
    assert drawn(2.0, top_k=2) == {1, 4}
    assert drawn(5.0, top_k=500) == {0, 1, 2, 3, 4}


def test_top_p_keeps_the_fewest_that_hold_it() -> None:
    first, second = torch.softmax(LOGITS, dim=0).sort(descending=True).values[:2].tolist()
    assert drawn(1.0, top_p=first - 1e-6) == {1}
    assert drawn(1.0, top_p=first + 1e-6) == {1, 4}
    assert drawn(1.0, top_p=first + second + 1e-6) == {1, 2, 4}
    assert drawn(1.0, top_p=1e-12) == {1}


def test_min_p_keeps_a_share_of_the_likeliest() -> None:
    assert drawn(1.0, min_p=1.0) == {1}
    assert drawn(1.0, min_p=0.6) == {1, 4}  # exp(2.5 - 3) = 0.607
    assert drawn(1.0, min_p=0.61) == {1}
    assert drawn(2.0, min_p=0.61) == {1, 4}  # behind the temperature: exp(-0.25) = 0.78, exp(-0.5) = 0.607
    assert drawn(1.0, min_p=0.0) == {0, 1, 2, 3, 4}


@given(st.integers(0, 2**32), st.floats(1e-9, 1), st.floats(0, 1))
def test_some_first_tokens_are_allowed_and_always_the_first(seed: int, top_p: float, min_p: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.softmax(torch.randn(3, 9, generator=generator, dtype=torch.float64) * 3, -1).sort(-1, True)[0]
    kept = allowed(probabilities, top_p, min_p)
    assert kept[:, 0].all()
    assert (kept[:, :-1] >= kept[:, 1:]).all()
    for row, keeps in zip(probabilities.tolist(), kept.sum(-1).tolist(), strict=True):
        assert keeps == max(1, sum(sum(row[:i]) < top_p - 1e-12 and row[i] >= min_p * row[0] for i in range(9))) or any(
            abs(sum(row[:i]) - top_p) < 1e-9 for i in range(9)
        )


@pytest.mark.parametrize("temperature", [1e-320, 1e-9, 1e300])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    tokens = drawn(temperature)
    assert tokens == {1} if temperature < 1 else len(tokens) == 5


def test_the_largest_uniform_number_draws_an_allowed_token() -> None:
    uniform = torch.tensor([1 - 2**-53], dtype=torch.float64)
    logits = torch.tensor([[0.0, -800.0, -1.0]])  # exp(-800) is 0
    assert choose(logits, GenerationOptions(temperature=1, top_k=None), uniform).tolist() == [2]
    assert choose(logits, GenerationOptions(temperature=1, top_k=2, top_p=0.5), uniform).tolist() == [0]


def test_the_penalty_makes_seen_tokens_less_likely_whatever_their_sign() -> None:
    seen = torch.tensor([[True, True, False, True, False]])
    assert penalized(LOGITS[None], seen, 2.0).tolist() == [[0.5, 1.5, 2.0, -2.0, 2.5]]
    assert penalized(LOGITS[None], seen, 0.5).tolist() == [[2.0, 6.0, 2.0, -0.5, 2.5]]


def sampler(batch: int, **options) -> Sampler:
    return Sampler(GenerationOptions(**{"max_new_tokens": 50} | options), [[0]] * batch, 5, "cpu")


def tokens(batch: int, steps: int = 50, **options) -> list[list[int]]:
    """Of each sequence, drawn from the same logits in each step."""
    by = sampler(batch, **options)
    return torch.stack([by.draw(LOGITS.expand(batch, -1)) for _ in range(steps)], dim=1).tolist()


def test_greedy_is_temperature_zero_or_one_likeliest() -> None:
    assert tokens(2, 3, temperature=0) == tokens(2, 3, top_k=1) == [[1, 1, 1]] * 2
    assert sampler(1, temperature=0).draw(LOGITS.bfloat16()[None]).tolist() == [1]


def test_the_prompt_and_the_tokens_so_far_are_penalized() -> None:
    by = Sampler(GenerationOptions(temperature=0, repetition_penalty=4.0), [[1], [2, 4]], 5, "cpu")
    assert [by.draw(LOGITS.expand(2, -1)).tolist() for _ in range(3)] == [[4, 1], [2, 0], [0, 1]]


def test_a_sequence_is_drawn_alike_alone_and_beside_others() -> None:
    batch = tokens(3, seed=7, temperature=2.0)
    assert batch == [tokens(1, seed=7 + row, temperature=2.0)[0] for row in range(3)]
    assert batch[0] != batch[1] != batch[2]
    assert batch == tokens(3, seed=7, temperature=2.0) != tokens(3, temperature=2.0)


def test_the_sequences_that_are_kept_draw_as_before() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 4, 5, generator=generator)
    every, some = (sampler(4, temperature=2.0, seed=3, repetition_penalty=1.5) for _ in range(2))
    kept = [0, 1, 2, 3]
    for step, row in enumerate(logits):
        if step in (4, 8):
            some.keep([0, 2] if step == 4 else [1])
            kept = [0, 2] if step == 4 else [2]
        assert some.draw(row[kept]).tolist() == every.draw(row)[kept].tolist()


def test_the_numbers_of_a_seed_do_not_depend_on_how_many_are_wanted() -> None:
    assert tokens(1, 5, seed=7, max_new_tokens=5) == [tokens(1, seed=7)[0][:5]]
    assert tokens(2, 5, seed=2**63 - 1) == [tokens(1, 5, seed=seed)[0] for seed in (2**63 - 1, 0)]


def test_numbers_are_drawn_as_they_are_needed() -> None:
    most = peak_bytes(lambda: tokens(2, 3, seed=1, max_new_tokens=2**31))
    assert most < 2**20
    expected = torch.rand(600, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    numbers = sampler(1, seed=7)._uniform
    assert numbers is not None
    assert torch.stack([next(numbers)[0] for _ in range(600)]).equal(expected)


def test_drawing_reads_nothing_back_to_the_cpu() -> None:
    options = GenerationOptions(top_p=0.9, min_p=0.1, repetition_penalty=1.2)
    for how in (options, options.model_copy(update={"temperature": 0})):
        by = Sampler(how, [[0], [1, 2]], 5, "meta")  # where a tensor has a shape, but no value that could be read
        assert by.draw(torch.zeros(2, 5, device="meta")).shape == (2,)


def test_samplers_together_draw_what_each_draws_alone() -> None:
    ways = [
        {"temperature": 0},
        {"temperature": 0, "repetition_penalty": 1.5},
        {"temperature": 1.0, "seed": 1},
        {"temperature": 1.0, "seed": 2, "repetition_penalty": 1.5},
        {"temperature": 0.7, "top_p": 0.8, "seed": 3},
    ]
    prompts = [[[7, 3]], [[1]], [[2], [4, 4]], [[5]], [[9]]]  # the third has two sequences

    def make() -> list[Sampler]:
        return [Sampler(GenerationOptions(**how), own, 40, "cpu") for how, own in zip(ways, prompts, strict=True)]

    together, alone = make(), make()
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        logits = 4 * torch.randn(6, 40, generator=generator)
        expected = [each.draw(own) for each, own in zip(alone, logits.split([1, 1, 2, 1, 1]), strict=True)]
        assert torch.equal(draw_together(together, logits), torch.cat(expected))
