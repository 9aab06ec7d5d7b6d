"""On a CUDA device: generation gives the CPU's tokens up to ties, and one recorded graph serves every step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import questlm
from helpers.packed_models import SHAPE, trained
from questlm import Llama
from questlm.config import GenerationOptions, ModelConfig, QuantSpec
from questlm.export.pack import pack
from questlm.models import KVCache

pytestmark = pytest.mark.gpu
PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "a"
    pack(trained(QuantSpec(act_bits=16, embeddings="bf16")), path)
    return path


def test_greedy_tokens_are_the_likeliest_on_the_cpu_too(folder: Path) -> None:
    on_cpu = questlm.load(folder)
    greedy = GenerationOptions(max_new_tokens=12, temperature=0, stop_at_end=False)
    for prompt, tokens in zip(PROMPTS, questlm.load(folder, device="cuda").generate_ids(PROMPTS, greedy), strict=True):
        assert len(tokens) == 12
        logits = on_cpu.logits(torch.tensor([prompt + tokens[:-1]]))[0, -12:]
        chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        assert (logits.max(-1).values - chosen <= 1e-4 * logits.abs().max()).all()


def test_drawn_tokens_depend_on_the_seed_and_not_on_the_neighbours(folder: Path) -> None:
    model = questlm.load(folder, device="cuda")
    drawing = GenerationOptions(
        max_new_tokens=12, temperature=1.5, top_k=None, top_p=0.9, min_p=0.01, repetition_penalty=1.1, seed=5
    )
    batch = model.generate_ids(PROMPTS, drawing)
    assert batch == model.generate_ids(PROMPTS, drawing)
    for row, prompt in enumerate(PROMPTS):
        assert batch[row] == model.generate_ids([prompt], drawing.model_copy(update={"seed": 5 + row}))[0]


@pytest.mark.parametrize("kv_heads", [None, 2])
def test_a_recorded_step_serves_all_steps(kv_heads: int | None) -> None:
    config = ModelConfig(layers=2, hidden=128, heads=4, kv_heads=kv_heads, mlp_hidden=256, vocab_size=SHAPE.vocab_size)
    model = Llama(config).cuda().initialize(0)
    ids = torch.randint(0, 61, (3, 20), device="cuda")
    counts = torch.tensor([8, 3, 5], device="cuda")

    def filled() -> KVCache:
        cache = KVCache(config, 3, 40, torch.float32, "cuda")
        cache.window = cache.capacity
        model.next_logits(ids[:, :8], cache, counts)
        return cache

    with torch.inference_mode():
        plain, recorded = filled(), filled()
        expected = [model.next_logits(token, plain) for token in ids[:, 8:].split(1, dim=1)]
        token = ids[:, 8:9].clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries set themselves up outside of the recording
            model.next_logits(token, filled())
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = model.next_logits(token, recorded)
        for step, want in enumerate(expected):
            token.copy_(ids[:, 8 + step : 9 + step])
            graph.replay()
            torch.testing.assert_close(logits, want, rtol=1e-4, atol=1e-4)
    assert recorded.lengths.tolist() == (counts + 12).tolist()
