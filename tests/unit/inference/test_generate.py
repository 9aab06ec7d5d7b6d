from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from questlm.config import GenerationOptions, ModelConfig
from questlm.errors import ArtifactError
from questlm.inference import generate
from questlm.models import KVCache, Llama

CONFIG = ModelConfig(layers=1, hidden=16, heads=1, mlp_hidden=16, vocab_size=50)


class Model:
    """Stands for a model: remembers the tokens of each sequence; the next one is the last one plus one."""

    def __init__(self, batch: int) -> None:
        self.known: list[list[int]] = [[] for _ in range(batch)]
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, ids: torch.Tensor, cache: KVCache, counts: torch.Tensor | None) -> torch.Tensor:
        self.shapes.append(tuple(ids.shape))
        used = [ids.shape[1]] * len(ids) if counts is None else counts.tolist()
        for known, row, count in zip(self.known, ids.tolist(), used, strict=True):
            known += row[:count]
        cache.step(*ids.shape)  # checks the room
        cache.advance(ids.shape[1], counts)
        return torch.stack([torch.eye(50)[(known or [0])[-1] + 1] for known in self.known])


def run(prompts: list[list[int]], count: int) -> tuple[Model, list[list[int]], KVCache]:
    cache = KVCache(CONFIG, len(prompts), max(map(len, prompts)) + count, torch.float32, "cpu")
    model, options = Model(len(prompts)), GenerationOptions(max_new_tokens=count, temperature=0)
    found = list(generate.generate_tokens(model, cache, prompts, options, range(len(prompts))))
    assert all([row for row, _ in step] == list(range(len(prompts))) for step in found)
    return model, [[token for _, token in step] for step in found], cache


@given(st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=17), min_size=1, max_size=4), st.integers(1, 6))
def test_prompts_of_any_lengths_go_in_by_chunks(prompts: list[list[int]], chunk: int) -> None:
    before = generate._PREFILL_TOKENS
    generate._PREFILL_TOKENS = chunk
    try:
        model, steps, cache = run(prompts, 3)
    finally:
        generate._PREFILL_TOKENS = before
    last = [prompt[-1] for prompt in prompts]
    assert steps == [[token + step for token in last] for step in (1, 2, 3)]
    assert model.known == [[*prompt, prompt[-1] + 1, prompt[-1] + 2] for prompt in prompts]
    assert cache.lengths.tolist() == [len(prompt) + 2 for prompt in prompts]
    assert max(width for _, width in model.shapes) <= chunk
    assert len(model.shapes) == -(-max(map(len, prompts)) // chunk) + 2


def test_logits_that_are_not_finite_are_refused_in_any_sequence() -> None:
    def next_logits(ids: torch.Tensor, cache: KVCache, counts: torch.Tensor | None) -> torch.Tensor:
        logits = torch.zeros(2, 50)
        logits[1, 3] = float("nan")
        return logits

    cache = KVCache(CONFIG, 2, 5, torch.float32, "cpu")
    for options in (GenerationOptions(temperature=0), GenerationOptions(top_p=0.5, min_p=0.1, repetition_penalty=2)):
        with pytest.raises(ArtifactError, match="not finite"):
            next(generate.generate_tokens(next_logits, cache, [[1], [2]], options, {0, 1}))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 2**32))
def test_a_row_that_has_ended_is_computed_no_more_and_changes_no_other(dtype, wanted: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    model = Llama(CONFIG).initialize(seed % 1000).eval()
    prompts = [torch.randint(50, (1 + row % 3,)).tolist() for row in range(len(wanted))]
    options = GenerationOptions(max_new_tokens=6, temperature=1.5, seed=seed, repetition_penalty=1.5)
    sizes: list[int] = []

    def next_logits(ids: torch.Tensor, cache: KVCache, counts: torch.Tensor | None) -> torch.Tensor:
        sizes.append(len(ids))
        return model.next_logits(ids, cache, counts)

    def tokens(prompts: list[list[int]], options: GenerationOptions, counts: list[int]) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in prompts]
        running = set(range(len(prompts)))
        cache = KVCache(CONFIG, len(prompts), max(map(len, prompts)) + 1, dtype, "cpu")  # it grows on the way
        for drawn in generate.generate_tokens(next_logits, cache, prompts, options, running):
            for row, token in drawn:
                found[row].append(token)
                if len(found[row]) == counts[row]:
                    running.discard(row)
            if not running:
                break
        return found

    found = tokens(prompts, options, wanted)
    assert [len(row) for row in found] == wanted
    assert sizes == [len(wanted), *(sum(count > step for count in wanted) for step in range(1, max(wanted)))]
    for row, prompt in enumerate(prompts):
        alone = options.model_copy(update={"seed": (seed + row) % 2**63})
        assert tokens([prompt], alone, [wanted[row]]) == [found[row]]
