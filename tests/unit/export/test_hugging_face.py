from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

import questlm
from questlm.artifact.dense import dense_state_dict
from questlm.artifact.read import load_artifact
from questlm.config import ModelConfig, QuantSpec
from questlm.errors import ConfigError
from questlm.export.hugging_face import to_hugging_face
from questlm.export.pack import pack
from questlm.models import Llama

CONFIG = ModelConfig(layers=1, hidden=32, heads=4, kv_heads=2, mlp_hidden=48, vocab_size=257)
IDS = torch.tensor([[5, 9, 200, 3, 17]])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bits", [1, "ternary", 4, 16])
def test_dense_weights_give_the_logits_of_a_weight_quantised_model(tmp_path, tied: bool, bits) -> None:
    config = CONFIG.model_copy(update={"tied_head": tied})
    spec = QuantSpec(weight_bits=bits, act_bits=16, embeddings="int8")
    model = questlm.prepare(Llama(config).initialize(0), spec)
    pack(model, tmp_path / "a")
    plain = Llama(config)
    plain.load_state_dict(dense_state_dict(load_artifact(tmp_path / "a")))
    if bits == 16:  # a 16-bit model's block matrices ship rounded to bf16
        model = Llama(config).initialize(0)
    tolerance = 1e-2 if bits == 16 else 1e-5
    torch.testing.assert_close(plain(IDS), model(IDS), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_reads_the_export(tmp_path, tokenizer_json, tied: bool) -> None:
    config = CONFIG.model_copy(update={"tied_head": tied})
    model = questlm.prepare(Llama(config).initialize(0), QuantSpec(act_bits=16, embeddings="bf16"))
    pack(model, tmp_path / "a", tokenizer=tokenizer_json)
    artifact = load_artifact(tmp_path / "a")
    to_hugging_face(artifact, tmp_path / "hf")
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "hf")
    assert theirs.dtype is torch.float32
    torch.testing.assert_close(theirs(IDS).logits, model(IDS), atol=1e-5, rtol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = "def f(x): # né"
    assert tokenizer(text)["input_ids"] == artifact.tokenizer.encode(text).ids
    assert tokenizer.eos_token_id == 0
    with pytest.raises(ConfigError, match="exists already"):
        to_hugging_face(artifact, tmp_path / "hf")
