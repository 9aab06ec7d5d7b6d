"""Models of transformers are packed as ours are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedTokenizerFast

import questlm
from questlm.config import QuantSpec
from questlm.errors import ArtifactError, ConfigError
from questlm.export.from_transformers import as_llama

SIZES: dict[str, Any] = {
    "vocab_size": 257, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16,
}  # fmt: skip
IDS = torch.randint(0, 257, (2, 12), generator=torch.Generator().manual_seed(0))


def model_of(family: str, **settings: Any) -> Any:
    """A model with weights and gains far from what they start at."""
    torch.manual_seed(0)
    if family == "Mistral":
        settings = {"sliding_window": None} | settings
    config = getattr(transformers, f"{family}Config")(**SIZES | settings)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


SPECS = [
    QuantSpec(),
    QuantSpec(weight_bits=2, act_bits=16, embeddings="int8"),
    QuantSpec(method="pquant", weight_bits=1, act_bits=8),
    QuantSpec(method="lsq+", weight_bits=3, act_bits=3),
    QuantSpec(overrides={"lm_head": 8, "down_proj": 8}),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.label}-{spec.embeddings}")
@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_what_was_trained_there_is_what_runs_here(family: str, spec: QuantSpec, tmp_path: Path) -> None:
    model = questlm.prepare(model_of(family), spec)
    expected = model(IDS).logits
    questlm.pack(model, tmp_path / "packed")
    packed = questlm.load(tmp_path / "packed")
    # The median over tokens: an activation within rounding of a cell's edge may fall on either side of it.
    error = (packed(IDS) - expected).abs().amax(-1).median()
    assert error < 1e-4 * expected.abs().max()
    assert torch.equal(model(IDS).logits, expected)


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
def test_greedy_text_is_the_same_there_and_here(family: str, tmp_path: Path) -> None:
    model = questlm.prepare(model_of(family), QuantSpec(weight_bits=4, act_bits=16))
    questlm.pack(model, tmp_path / "packed")
    packed = questlm.load(tmp_path / "packed")
    options = questlm.GenerationOptions(max_new_tokens=8, temperature=0)
    theirs = model.generate(IDS[:1], max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert packed.generate_ids(IDS[0].tolist(), options) == theirs[0, IDS.shape[1] :].tolist()
    assert (packed.not_native is None) == (family == "Llama")


@pytest.mark.parametrize(
    "settings",
    [
        {"tie_word_embeddings": True},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"rms_norm_eps": 1e-2, "rope_theta": 500.0},
    ],
    ids=["tied", "long", "constants"],
)
def test_shapes_are_kept(settings: dict[str, Any], tmp_path: Path) -> None:
    model = questlm.prepare(model_of("Llama", **settings), QuantSpec(act_bits=16))
    questlm.pack(model, tmp_path / "packed")
    torch.testing.assert_close(questlm.load(tmp_path / "packed")(IDS), model(IDS).logits, rtol=1e-4, atol=1e-4)


def test_a_tokenizer_of_transformers_brings_its_end_of_text(tmp_path: Path, tokenizer_json: str) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer_json), eos_token="!")
    questlm.pack(questlm.prepare(model_of("Llama"), QuantSpec()), tmp_path / "packed", tokenizer=tokenizer)
    packed = questlm.load(tmp_path / "packed")
    assert packed.encode("def f") == tokenizer("def f")["input_ids"]
    assert packed.end_of_text == tokenizer.convert_tokens_to_ids("!")
    with pytest.raises(ConfigError, match="a list cannot be packed; give a fast tokenizer"):
        questlm.pack(model_of("Llama"), tmp_path / "other", tokenizer=[])


def test_a_tokenizer_of_transformers_brings_its_chat_template(tmp_path: Path, tokenizer_json: str) -> None:
    # As transformers renders it: line breaks behind blocks go, and so do blanks before them.
    template = "\n{{ bos_token }}\n  {% for each in messages %}\n{{ each.content + eos_token }}\n  {% endfor %}\n!"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer_json), eos_token="!", bos_token='"', chat_template=template
    )
    questlm.pack(questlm.prepare(model_of("Llama"), QuantSpec()), tmp_path / "packed", tokenizer=tokenizer)
    messages = [{"role": "user", "content": "hello"}]
    there = transformers.AutoTokenizer.from_pretrained(tmp_path / "packed")
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    assert there.apply_chat_template(messages, tokenize=False) == rendered == '\n"\nhello!\n!'
    packed = questlm.load(tmp_path / "packed")
    assert packed.chat_template == (tmp_path / "packed" / "chat_template.jinja").read_text()
    (tmp_path / "packed" / "chat_template.jinja").write_text(str(packed.chat_template) + " ")
    with pytest.raises(ArtifactError, match=r"chat_template\.jinja is \d+ bytes long, but the manifest says"):
        questlm.load(tmp_path / "packed")


def test_merged_adapters_are_packed(tmp_path: Path) -> None:
    model = questlm.prepare(model_of("Llama"), QuantSpec())
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    with pytest.raises(ConfigError, match="if it holds adapters, merge them first"):
        questlm.pack(adapted, tmp_path / "packed")
    merged = adapted.merge_and_unload()
    questlm.pack(merged, tmp_path / "packed")
    error = (questlm.load(tmp_path / "packed")(IDS) - merged(IDS).logits).abs().amax(-1).median()
    assert error < 1e-4 * merged(IDS).logits.abs().max()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.Linear(4, 4), "only a questlm Llama or a Llama of transformers can be packed, not a Linear"),
        (lambda: model_of("Llama", attention_bias=True), "attention_bias = True is not supported"),
        (lambda: model_of("Mistral", sliding_window=8), "sliding_window = 8 is not supported"),
        (
            lambda: model_of("Gemma"),
            r"'gemma' is not supported \(its embedding is scaled",
        ),
        (lambda: model_of("Llama").model, "this LlamaModel has no module"),
        (lambda: model_of("Llama").half(), "is torch.float16; pack the float32 weights"),
    ],
    ids=["no-model", "biases", "window", "gemma", "no-head", "float16"],
)
def test_what_cannot_be_packed_is_named(make: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        questlm.pack(make(), tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_our_own_model_is_taken_as_it_is() -> None:
    from questlm.config import ModelConfig

    model = questlm.Llama(ModelConfig(layers=1, hidden=32, vocab_size=9))
    assert as_llama(model) is model
