"""One step of decoding in few kernels gives what the modules of the model give one by one."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch

from helpers.packed_models import trained
from questlm import ops
from questlm.artifact.read import load_artifact
from questlm.config import ModelConfig, QuantSpec
from questlm.export.pack import pack
from questlm.inference.build import build_model, resident_bytes
from questlm.models import KVCache

triton = pytest.importorskip("triton")

CPU = torch.device("cpu")


@pytest.mark.slow
def test_a_step_gives_the_logits_of_the_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from questlm.inference import decoding

    monkeypatch.setattr(decoding, "splits_of", lambda *_: 2)  # the interpreter takes its time for each program
    config = ModelConfig(layers=2, hidden=64, heads=2, kv_heads=1, mlp_hidden=96, vocab_size=61)
    # Many levels, so that what one bit more or less in a sum changes stays small.
    pack(trained(QuantSpec(weight_bits=4, act_bits=8, embeddings="int8"), config), tmp_path / "a")
    with ops.using_backend("triton"), torch.inference_mode():
        model = build_model(load_artifact(tmp_path / "a"), CPU, torch.bfloat16, False)
        assert decoding.DecodingStep.can_run(model, torch.bfloat16) is None
        kept = resident_bytes(model)
        cache = KVCache(config, 2, 16, torch.bfloat16, CPU)
        with torch.autocast("cpu", torch.bfloat16):
            model.next_logits(torch.randint(61, (2, 4)), cache, torch.tensor([4, 2]))
        caches = [cache, deepcopy(cache)]
        step = decoding.DecodingStep(model, overlaps=False)
        assert resident_bytes(model) <= kept
        for _ in range(2):
            token = torch.randint(61, (2,))
            with torch.autocast("cpu", torch.bfloat16):
                expected = model.next_logits(token[:, None], caches[0]).float()
            logits = step.logits(token, caches[1]).float()
            assert float((logits - expected).norm() / expected.norm()) < 0.05
            assert torch.equal(caches[0].lengths, caches[1].lengths)
        stored = [torch.stack([torch.stack(cache.layer(layer)) for layer in range(2)]).float() for cache in caches]
        assert float((stored[0] - stored[1]).norm() / stored[0].norm()) < 0.05


def test_what_is_no_plain_product_runs_by_modules(tmp_path: Path) -> None:
    from questlm.inference.decoding import DecodingStep

    config = ModelConfig(layers=1, hidden=64, heads=2, mlp_hidden=96, vocab_size=61)
    pack(trained(QuantSpec(weight_bits=4, act_bits=16, embeddings="int8"), config), tmp_path / "a")
    artifact = load_artifact(tmp_path / "a")
    with ops.using_backend("triton"):
        model = build_model(artifact, CPU, torch.bfloat16, False)
    assert "plain product" in str(DecodingStep.can_run(model, torch.bfloat16))
    assert "bfloat16" in str(DecodingStep.can_run(model, torch.float32))
    assert "plain product" in str(
        DecodingStep.can_run(build_model(artifact, CPU, torch.bfloat16, True), torch.bfloat16)
    )
