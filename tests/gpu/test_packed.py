"""On a CUDA device: packed weights of every width, and decoding in few kernels, give the reference's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import questlm
from helpers.packed_models import trained
from questlm import ops
from questlm.config import GenerationOptions, ModelConfig, QuantSpec
from questlm.export.pack import pack
from questlm.ops import PackedFormat
from questlm.quant import gaussian_grid

pytestmark = pytest.mark.gpu

WIDTHS: list[tuple[int | str, int | str | None]] = [
    (1, 1), (1, 4), (1, 8), (2, 2), (3, 3), (4, 4), (4, 8), (8, 8), ("ternary", 8), (4, None), (1, None), (8, None)
]  # fmt: skip


@pytest.mark.parametrize(("weight_bits", "act_bits"), WIDTHS)
@pytest.mark.parametrize(("out", "k"), [(50, 640), (64, 1792), (96, 208)])
def test_packed_products_are_those_of_the_reference(
    weight_bits: int | str, act_bits: int | str | None, out: int, k: int
) -> None:
    weight, act = gaussian_grid(weight_bits), None if act_bits is None else gaussian_grid(act_bits)
    codes, step, _ = ops.quantize(torch.randn(out, k), weight, 1)
    tensors, form = {"codes": ops.pack(codes, weight.levels), "step": step}, PackedFormat(k, 16, weight, act)
    cpu = torch.device("cpu")
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 2.0**-6)):
        on_gpu = ops.prepack(tensors, form, torch.device("cuda"), dtype, stay_packed=True)
        for tokens in (1, 2, 5, 16, 33, 300):
            x = torch.randn(tokens, k).to(dtype)
            with ops.using_backend("reference"):
                expected = ops.packed_linear(x.float(), ops.prepack(tensors, form, cpu)).double()
            y = ops.packed_linear(x.cuda(), on_gpu).cpu().double()
            # a code that lies between two levels may fall to either, which changes little of a long row
            assert float((y - expected).norm() / expected.norm()) < max(tolerance, 5e-3)


SPECS = [
    *(QuantSpec(weight_bits=bits, act_bits=bits) for bits in (1, 2, 3, 4, 8)),
    QuantSpec(weight_bits="ternary", act_bits=8, method="bitnet"),
    QuantSpec(weight_bits=4, act_bits=16),
    QuantSpec(method="lsq"),
    QuantSpec(method="quarot", weight_bits=4, act_bits=4),
    QuantSpec(method="pquant", weight_bits=1, act_bits=8),
    QuantSpec(format="fp4", weight_bits=4, act_bits=4, act_format="int"),
    QuantSpec(format="int-2:4", act_format="int"),
]
CONFIG = ModelConfig(layers=2, hidden=256, heads=4, kv_heads=2, mlp_hidden=512, vocab_size=61)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.label)
def test_a_model_has_one_loss_and_one_text_everywhere(tmp_path: Path, spec: QuantSpec) -> None:
    pack(trained(spec.model_copy(update={"embeddings": "int8"}), CONFIG), tmp_path / "a")
    ids = torch.randint(0, 61, (16, 65))
    for dtype in (torch.float32, torch.bfloat16):
        with ops.using_backend("reference"):
            reference = questlm.load(tmp_path / "a", dtype=dtype)
            expected = loss(reference, ids)
        on_gpu = questlm.load(tmp_path / "a", device="cuda", dtype=dtype, weights="packed")
        for model in (questlm.load(tmp_path / "a", dtype=dtype), on_gpu):
            assert abs(loss(model, ids) - expected) < 1e-3
        greedy = GenerationOptions(max_new_tokens=16, temperature=0, stop_at_end=False)
        tokens = on_gpu.generate_ids(ids[0, :9].tolist(), greedy)
        with ops.using_backend("reference"):
            logits = reference.logits(torch.tensor([ids[0, :9].tolist() + tokens[:-1]]))[0, -16:].float()
        chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        assert (logits.max(-1).values - chosen <= 0.05 * logits.abs().max()).all()


def loss(model: questlm.PackedModel, ids: torch.Tensor) -> float:
    """Mean cross-entropy in nats."""
    logits = model.logits(ids[:, :-1]).float().cpu()
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))


@pytest.mark.parametrize("bits", [1, 4])
def test_a_model_decodes_as_on_the_cpu(tmp_path: Path, bits: int) -> None:
    config = ModelConfig(layers=2, hidden=128, heads=2, mlp_hidden=256, vocab_size=61)
    pack(trained(QuantSpec(weight_bits=bits, act_bits=8, embeddings="int8"), config), tmp_path / "a")
    on_gpu = questlm.load(tmp_path / "a", device="cuda", dtype=torch.bfloat16, weights="packed")
    assert on_gpu._decoding is not None
    on_cpu = questlm.load(tmp_path / "a", dtype=torch.bfloat16)
    greedy = GenerationOptions(max_new_tokens=24, temperature=0, stop_at_end=False)
    prompts = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11]]
    for prompt, tokens in zip(prompts, on_gpu.generate_ids(prompts, greedy), strict=True):
        logits = on_cpu.logits(torch.tensor([prompt + tokens[:-1]]))[0, -24:].float()
        chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        assert (logits.max(-1).values - chosen <= 0.05 * logits.abs().max()).all()
