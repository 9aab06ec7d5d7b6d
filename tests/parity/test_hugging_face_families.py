"""`prepare` and `restore` on the model classes of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

import questlm
from questlm.config import QuantSpec
from questlm.quant import FakeQuantLinear, quantized_layers, skipped_layers

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16,
}  # fmt: skip
FAMILIES = {
    "Llama": "LlamaConfig",
    "Mistral": "MistralConfig",
    "Qwen2": "Qwen2Config",
    "Qwen3": "Qwen3Config",
    "Gemma": "GemmaConfig",
    "Gemma2": "Gemma2Config",
    "Gemma3": "Gemma3TextConfig",
}
IDS = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(0))
PARTS = {
    *(f"self_attn.{part}_proj" for part in ("q", "k", "v", "o")),
    *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
}


def model_of(family: str) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, FAMILIES[family])(**SIZES)
    return getattr(transformers, f"{family}ForCausalLM")(config)


def train(model: nn.Module, steps: int = 8) -> tuple[float, float]:
    """Loss before the first step and after the last."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses[0], losses[-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_blocks_are_quantised_and_learn(family: str, tmp_path: Path) -> None:
    model = model_of(family)
    names = set(model.state_dict())
    plain = model(IDS).logits
    questlm.prepare(model, QuantSpec(weight_bits=2, act_bits=4))
    expected = {f"model.layers.{layer}.{part}" for layer in range(2) for part in PARTS}
    assert set(quantized_layers(model)) == expected
    assert skipped_layers(model) == {}
    assert (model(IDS).logits - plain).norm() > 0.01 * plain.norm()
    before, after = train(model)
    assert after < before - 0.5
    for name, layer in quantized_layers(model).items():
        assert layer.weight.grad is None or layer.weight.grad.isfinite().all(), name

    questlm.restore(model)
    assert set(model.state_dict()) == names
    model.save_pretrained(tmp_path / "restored")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "restored")
    torch.testing.assert_close(again(IDS).logits, model.eval()(IDS).logits)


@pytest.mark.parametrize("prepared_first", [True, False])
def test_adapters_are_not_quantised_and_train(prepared_first: bool) -> None:
    spec, adapter = QuantSpec(), peft.LoraConfig(r=4, target_modules="all-linear")
    model = model_of("Llama")
    if prepared_first:
        model = peft.get_peft_model(questlm.prepare(model, spec), adapter)
    else:
        model = questlm.prepare(peft.get_peft_model(model, adapter), spec)
    layers = quantized_layers(model)
    assert len(layers) == 14
    assert all(name.endswith(".base_layer") for name in layers)
    adapters = {
        name: module for name, module in model.named_modules() if name.endswith(("lora_A.default", "lora_B.default"))
    }
    assert len(adapters) == 28
    assert not any(isinstance(module, FakeQuantLinear) for module in adapters.values())
    before = {name: layer.weight.clone() for name, layer in layers.items()}
    first, last = train(model, 30)
    assert last < first
    assert all(torch.equal(layer.weight, before[name]) for name, layer in layers.items())
    assert all(module.weight.abs().sum() > 0 for module in adapters.values())
