"""A sequence gets the same tokens alone and in a batch, its prompt read at once or by chunks, natively or by layers.

Sums over a batch or a longer window may be taken in another order, so logits agree up to rounding: within `ROUNDING` of
the largest where inputs are not quantised. Where they are, a value on the edge of two codes may get the other code, for
which `FLIPPED` allows; so it is with keys and values that are kept in bfloat16 or 8 bits. Where both are rounded, more
codes are flipped (by layers, attention to a cache in bfloat16 is in bfloat16, natively in float32), and each of the few
that these small models have moves the logits by some per cent: `ROUNDED_AND_FLIPPED`. Greedy tokens are equal except
where logits tie, which is shown: the first two tokens that differ must both be as likely as the likeliest, within that
tolerance.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import questlm
from helpers.packed_models import SHAPE, trained
from questlm.config import GenerationOptions, QuantSpec
from questlm.export.pack import pack
from questlm.inference import PackedModel, generate
from questlm.models import KVCache

ROUNDING, FLIPPED, ROUNDED_AND_FLIPPED = 1e-5, 2e-2, 1e-1
SPECS = {
    "quest-w4a4": (QuantSpec(embeddings="bf16"), FLIPPED),
    "quest-w1a8": (QuantSpec(weight_bits=1, act_bits=8, embeddings="bf16"), FLIPPED),
    "quest-w4a16": (QuantSpec(act_bits=16, embeddings="bf16"), ROUNDING),
    "bf16": (QuantSpec(weight_bits=16, act_bits=16, embeddings="bf16"), ROUNDING),
}
CASES = [(name, torch.float32) for name in SPECS]
CASES += [(name, dtype) for name in ("quest-w4a4", "bf16") for dtype in (torch.bfloat16, torch.int8)]
GREEDY = GenerationOptions(max_new_tokens=5, temperature=0, stop_at_end=False)
PROMPTS = st.lists(st.lists(st.integers(0, SHAPE.vocab_size - 1), min_size=1, max_size=12), min_size=1, max_size=4)


@pytest.fixture(scope="module", params=CASES, ids=str)
def model_and_tolerance(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    name, cache_dtype = request.param
    spec, tolerance = SPECS[name]
    folder = tmp_path_factory.mktemp("packed") / "a"
    pack(trained(spec), folder)
    if cache_dtype is not torch.float32:
        tolerance = FLIPPED if tolerance == ROUNDING else ROUNDED_AND_FLIPPED
    return questlm.load(folder, cache_dtype=cache_dtype), tolerance


def same_up_to_ties(model: PackedModel, prompt: list[int], a: list[int], b: list[int], tolerance: float) -> bool:
    """Whether tokens are equal, or the first that differ are both the likeliest within `tolerance` of the largest."""
    if a == b or len(a) != len(b):
        return a == b
    step = next(step for step in range(len(a)) if a[step] != b[step])
    logits = model.logits(torch.tensor([prompt + a[:step]]))[0, -1]
    gap = logits.max() - logits[[a[step], b[step]]].min()
    return bool(gap <= tolerance * logits.abs().max())


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompts=PROMPTS, chunk=st.integers(1, 5))
def test_a_sequence_is_continued_alike_alone_and_in_a_batch_at_once_by_chunks_and_by_layers(
    model_and_tolerance, monkeypatch: pytest.MonkeyPatch, prompts: list[list[int]], chunk: int
) -> None:
    model, tolerance = model_and_tolerance
    alone = [model.generate_ids([prompt], GREEDY)[0] for prompt in prompts]
    batch = model.generate_ids(prompts, GREEDY)
    with monkeypatch.context() as patch:
        patch.setattr(generate, "_PREFILL_TOKENS", chunk)
        chunked = model.generate_ids(prompts, GREEDY)
    with monkeypatch.context() as patch:
        patch.setattr(model, "_native", None)
        by_layers = model.generate_ids(prompts, GREEDY)
    for prompt, expected, *others in zip(prompts, alone, batch, chunked, by_layers, strict=True):
        assert len(expected) == 5
        assert all(same_up_to_ties(model, prompt, expected, other, tolerance) for other in others)


@settings(max_examples=15, deadline=None)
@given(prompts=PROMPTS)
def test_logits_of_a_batch_are_those_of_each_sequence_alone(model_and_tolerance, prompts: list[list[int]]) -> None:
    model, tolerance = model_and_tolerance
    counts = torch.tensor([len(prompt) for prompt in prompts])
    ids = torch.zeros(len(prompts), int(counts.max()), dtype=torch.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    cache = KVCache(model.config, len(prompts), ids.shape[1] + 1, model.cache_dtype, "cpu")
    with torch.inference_mode():
        logits = [model._next_logits(ids, cache, counts), model._next_logits(torch.zeros_like(ids[:, :1]), cache, None)]
    for row, prompt in enumerate(prompts):
        expected = model.logits(torch.tensor([[*prompt, 0]]))[0, -2:]
        error = (torch.stack([each[row] for each in logits]) - expected).abs().max()
        assert error <= tolerance * expected.abs().max()


def test_what_is_drawn_for_a_sequence_does_not_depend_on_its_neighbours(model_and_tolerance) -> None:
    model, _ = model_and_tolerance
    prompts = [[1, 2, 3, 4, 5], [6], [7, 8]]
    drawing = GenerationOptions(max_new_tokens=12, temperature=1.5, top_p=0.9, seed=5, stop_at_end=False)
    batch = model.generate_ids(prompts, drawing)
    for row, prompt in enumerate(prompts):
        assert batch[row] == model.generate_ids([prompt], drawing.model_copy(update={"seed": 5 + row}))[0]


def test_tokens_that_do_not_tie_are_noticed(model_and_tolerance) -> None:
    model, tolerance = model_and_tolerance
    tokens = model.generate_ids([[1, 2]], GREEDY)[0]
    worst = int(model.logits(torch.tensor([[1, 2]]))[0, -1].argmin())
    assert same_up_to_ties(model, [1, 2], tokens, tokens, tolerance)
    assert not same_up_to_ties(model, [1, 2], tokens, [worst, *tokens[1:]], tolerance)
    assert not same_up_to_ties(model, [1, 2], tokens, tokens[:-1], tolerance)
