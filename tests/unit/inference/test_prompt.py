"""Many tokens in few kernels give what the modules of the model give one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.packed_models import trained
from questlm import ops
from questlm.artifact.read import load_artifact
from questlm.config import ModelConfig, QuantSpec
from questlm.export.pack import pack
from questlm.inference.build import build_model
from questlm.models import KVCache

triton = pytest.importorskip("triton")

CPU = torch.device("cpu")


def test_a_prompt_gives_the_logits_of_the_modules(tmp_path: Path) -> None:
    from questlm.inference.decoding import DecodingStep
    from questlm.inference.prompt import PromptStep

    config = ModelConfig(layers=2, hidden=32, heads=2, kv_heads=1, mlp_hidden=48, vocab_size=61)
    # Many levels, so that what one bit more or less in a sum changes stays small.
    pack(trained(QuantSpec(weight_bits=4, act_bits=8, embeddings="int8"), config), tmp_path / "a")
    artifact = load_artifact(tmp_path / "a")
    with ops.using_backend("triton"), torch.inference_mode():
        laid_out = build_model(artifact, CPU, torch.bfloat16, False)
        prompt = PromptStep(laid_out, DecodingStep(laid_out, overlaps=False).blocks)
    # Only writing weights out needs Triton's interpreter then, which takes its time for each kernel.
    with ops.using_backend("reference"), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        model = build_model(artifact, CPU, torch.bfloat16, False)
        caches = [KVCache(config, 2, 24, torch.bfloat16, CPU) for _ in range(2)]
        ids = torch.randint(61, (2, 9))
        assert prompt.takes(ids) and not prompt.takes(ids[:, :8])
        assert near(prompt.logits(ids, None), model(ids))
        for counts in (torch.tensor([9, 4]), None):  # the second goes on behind the first
            expected = model.next_logits(ids, caches[0], counts)
            assert near(prompt.next_logits(ids, caches[1], counts), expected)
        assert torch.equal(caches[0].lengths, caches[1].lengths)


def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return float((found.float() - expected.float()).norm() / expected.float().norm()) < 0.05
