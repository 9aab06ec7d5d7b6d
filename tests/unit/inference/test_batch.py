from __future__ import annotations

import random

import pytest
import torch

import questlm
from questlm.config import GenerationOptions, ModelConfig, QuantSpec
from questlm.errors import ConfigError
from questlm.export.pack import pack
from questlm.inference import PackedModel, batch
from questlm.inference.batch import RunningBatch, Sequence
from questlm.models import KVCache, Llama

CONFIG = ModelConfig(layers=2, hidden=32, heads=2, mlp_hidden=48, vocab_size=61)
ROOM = ModelConfig(layers=1, hidden=16, heads=1, mlp_hidden=16, vocab_size=50)


@pytest.fixture(scope="module", params=["native", "by layers", "int8 cache"])
def model(request, tmp_path_factory) -> PackedModel:
    folder = tmp_path_factory.mktemp("artifact") / "a"
    prepared = questlm.prepare(Llama(CONFIG).initialize(0), QuantSpec(act_bits=16, embeddings="bf16"))
    pack(prepared, folder)
    model = questlm.load(folder, cache_dtype=torch.int8 if request.param == "int8 cache" else None)
    if request.param == "by layers":
        model._native = None
    return model


def options(count: int, **more) -> GenerationOptions:
    return GenerationOptions(max_new_tokens=count, stop_at_end=False, **more)


def run(running: RunningBatch, requests: list[tuple[list[int], GenerationOptions]], seed: int) -> list[list[int]]:
    """The tokens of each request. They join at random moments; up to a third leaves before its end."""
    draw = random.Random(seed)
    waiting = list(range(len(requests)))
    rows: dict[Sequence, int] = {}
    found: list[list[int]] = [[] for _ in requests]
    while waiting or rows:
        while waiting and len(running) < running.limit and draw.random() < 0.6:
            row = waiting.pop(0)
            rows[running.add(*requests[row])] = row
        for sequence, token in running.step():
            assert token is not None
            row = rows[sequence]
            found[row].append(token)
            if len(found[row]) == requests[row][1].max_new_tokens:
                running.remove(sequence)
                del rows[sequence]
    return found


@pytest.mark.parametrize("seed", range(5))
def test_a_sequence_gets_its_tokens_whoever_joins_and_leaves(model: PackedModel, seed: int) -> None:
    draw = random.Random(seed)
    requests = []
    for number in range(7):
        prompt = [draw.randrange(61) for _ in range(draw.choice([1, 2, 5, 300]))]
        how = {"temperature": draw.choice([0, 1.0]), "seed": number, "repetition_penalty": draw.choice([1.0, 1.3])}
        requests.append((prompt, options(draw.randrange(1, 8), **how)))
    running = model.running_batch(3, 310)
    found = run(running, requests, seed)
    assert found == [model.generate_ids(prompt, how) for prompt, how in requests]
    assert len(running) == 0


class Model:
    """Stands for a model: the next token of a sequence is its last one plus one; checks what its cache is told."""

    def __init__(self) -> None:
        self.counts: list[list[int]] = []
        self.broken: set[int] = set()

    def __call__(self, ids: torch.Tensor, cache: KVCache, counts: torch.Tensor | None) -> torch.Tensor:
        step = cache.step(*ids.shape)
        assert step.slots.max() < cache.entries.shape[2]
        used = [ids.shape[1]] * len(ids) if counts is None else counts.tolist()
        self.counts.append(used)
        cache.advance(ids.shape[1], counts)
        last = [row[count - 1] for row, count in zip(ids.tolist(), used, strict=True)]
        logits = torch.stack([torch.eye(50)[(token + 1) % 50] for token in last])
        for row, token in enumerate(last):
            if token in self.broken:
                logits[row, 3] = float("inf")
                cache.entries[0, 0, step.slots[row]] = float("nan")
        return logits


def fake(limit: int, context: int) -> tuple[Model, RunningBatch]:
    model = Model()
    return model, RunningBatch(
        lambda: model, lambda rows, room: KVCache(ROOM, rows, room, torch.float32, "cpu"), limit, context
    )


GREEDY = options(10, temperature=0)


def test_prompts_are_read_by_shares_beside_sequences_that_go_on() -> None:
    model, running = fake(4, 1000)
    going = running.add([1], GREEDY)
    assert running.step() == [(going, 2)]
    long = [running.add([7] * 300, GREEDY) for _ in range(2)]
    short = running.add([5, 6], GREEDY)
    assert running.step() == [(going, 3), (short, 7)]
    assert model.counts[-1] == [1, 63, 63, 2]
    for _ in range(3):
        assert len(running.step()) == 2
        assert model.counts[-1] == [1, 64, 64, 1]
    assert [sequence for sequence, _ in running.step()] == [going, *long, short]
    assert all(sum(counts) <= batch.PROMPT_TOKENS + 2 for counts in model.counts)


def test_memory_grows_with_the_longest_and_is_given_back() -> None:
    _, running = fake(2, 600)
    first = running._cache.entries.shape
    assert first[2] == 2 * 256
    sequences = [running.add([1] * 500, GREEDY), running.add([2], GREEDY)]
    while sequences[0].length < 500:
        running.step()
    assert running._cache.entries.shape[2] == 2 * 512
    for _ in range(100):
        running.step()
    assert running._cache.entries.shape[2] == 2 * (600 + batch.PROMPT_TOKENS)
    for sequence in sequences:
        running.remove(sequence)
    assert running._cache.entries.shape == first


def test_without_memory_for_a_smaller_cache_the_large_one_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    _, running = fake(2, 600)
    sequence = running.add([1] * 500, GREEDY)
    while sequence.length < 500:
        running.step()
    large = running._cache.entries.shape

    def no_memory(sequences: int, tokens: int) -> KVCache:
        raise ConfigError("there is no memory")

    monkeypatch.setattr(running, "_make_cache", no_memory)
    running.remove(sequence)
    assert running._cache.entries.shape == large
    again = running.add([4], GREEDY)
    assert running.step() == [(again, 5)]


def test_logits_that_are_not_finite_are_the_fault_of_one_sequence() -> None:
    model, running = fake(2, 100)
    model.broken = {9}
    good, bad = running.add([1], GREEDY), running.add([8], GREEDY)
    assert running.step() == [(good, 2), (bad, 9)]
    assert running.step() == [(good, 3), (bad, None)]
    assert running._cache.entries.isfinite().all()
    running.remove(bad)
    assert running.step() == [(good, 4)]


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    _, running = fake(1, 5)
    for prompt in ([], [1] * 6):
        with pytest.raises(ValueError, match=f"1 to 5 tokens, not {len(prompt)}"):
            running.add(prompt, GREEDY)
    sequence = running.add([1] * 5, GREEDY)
    with pytest.raises(ValueError, match="1 sequences already"):
        running.add([1], GREEDY)
    assert running.step() == [(sequence, 2)]
    with pytest.raises(ValueError, match="has 5 tokens already"):
        running.step()
    running.remove(sequence)
    with pytest.raises(ValueError, match="not in list"):
        running.remove(sequence)
    assert running.step() == []
    assert len(running) == 0
