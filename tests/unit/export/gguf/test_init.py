"""The package gguf, and llama.cpp where it is there, read what the packed model has."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, quants

import questlm
from helpers.packed_models import trained
from questlm.artifact.dense import dense_state_dict
from questlm.artifact.read import Artifact, load_artifact
from questlm.artifact.shapes import matrix_shapes
from questlm.config import ModelConfig, QuantSpec, RopeScaling
from questlm.data import train_tokenizer
from questlm.errors import ConfigError
from questlm.export.gguf import FORMAT, to_gguf

SHAPE = ModelConfig(layers=1, hidden=256, heads=4, kv_heads=2, mlp_hidden=288, vocab_size=300)
IDS = torch.randint(0, 257, (1, 24), generator=torch.Generator().manual_seed(0))
EXACT: dict[str, Any] = {"act_bits": 16, "steps": "fp16", "embeddings": "bf16"}
STE4 = QuantSpec(method="ste", weight_bits=4, **EXACT)
LLAMA3 = RopeScaling(kind="llama3", factor=4, low_freq_factor=1, high_freq_factor=4, original_max_position=16)
CASES: dict[str, tuple[QuantSpec, dict[str, Any], set[str]]] = {
    "one bit": (QuantSpec(method="ste", weight_bits=1, **EXACT), {}, {"Q1_0", "Q4_0"}),
    "ternary, tied, llama3": (
        QuantSpec(method="quest-noht", weight_bits="ternary", **EXACT),
        {"tied_head": True, "rope_scaling": LLAMA3},
        {"TQ2_0", "Q4_0"},
    ),
    "two bits, linear": (
        QuantSpec(method="ste", weight_bits=2, **EXACT),
        {"rope_scaling": RopeScaling(kind="linear", factor=4)},
        {"Q2_K", "Q4_0"},
    ),
    "four bits, qwen2": (STE4, {"qkv_bias": True}, {"Q4_K", "Q5_0"}),
    "lsq, qwen3": (QuantSpec(method="lsq", weight_bits=4, **EXACT), {"qk_norm": True, "head_dim": 32}, {"Q4_0"}),
    "six bits": (QuantSpec(method="ste", weight_bits=6, **EXACT), {}, {"Q8_0"}),
}


@pytest.fixture(scope="module")
def tokenizer() -> str:
    return train_tokenizer(["def load(path):\n    return path, 123 it's né\n"] * 9, 300).to_str()


def exported(folder: Path, spec: QuantSpec, tokenizer: str | None, **shape: Any) -> Artifact:
    model = trained(spec, SHAPE.model_copy(update=shape))
    questlm.pack(model, folder / "packed", tokenizer=tokenizer, chat_template="{{ messages[0].content }}")
    artifact = load_artifact(folder / "packed")
    to_gguf(artifact, folder / "model.gguf")
    return artifact


@pytest.mark.parametrize("name", CASES)
def test_what_is_read_is_what_was_packed(name: str, tmp_path: Path, tokenizer: str) -> None:
    spec, shape, kinds = CASES[name]
    artifact = exported(tmp_path, spec, tokenizer, **shape)
    assert FORMAT.difference(artifact) is None
    torch.testing.assert_close(
        FORMAT.logits(artifact)(IDS), questlm.load(tmp_path / "packed")(IDS), rtol=1e-4, atol=1e-5
    )
    reader = GGUFReader(tmp_path / "model.gguf")
    tensors = {each.name: each for each in reader.tensors}
    assert {each.tensor_type.name for each in reader.tensors} - {"F32", "BF16", "F16"} == kinds
    down = tensors["blk.0.ffn_down.weight"]
    read = quants.dequantize(down.data, down.tensor_type)
    assert np.array_equal(read, dense_state_dict(artifact)["layers.0.mlp.down.weight"])
    assert ("output.weight" in tensors) is not artifact.config.model.tied_head
    assert reader.fields["tokenizer.chat_template"].contents() == "{{ messages[0].content }}"
    if find_spec("llama_cpp") is not None:
        compare_with_llama_cpp(tmp_path, artifact)


def compare_with_llama_cpp(folder: Path, artifact: Artifact) -> None:
    """llama.cpp makes the same tokens; its logits differ by the rounding of inputs to 8 bits in its products."""
    from llama_cpp import Llama

    theirs = Llama(str(folder / "model.gguf"), n_ctx=64, logits_all=True, verbose=False, type_k=0, type_v=0)
    theirs.eval(IDS[0].tolist())
    logits, expected = torch.tensor(np.array(theirs.scores[: IDS.shape[1]])), questlm.load(folder / "packed")(IDS)[0]
    error = (logits - expected).abs().max()
    assert error < 0.03 * expected.abs().max()
    text = "def f(x): # né, it's 12345\n\n  x"
    assert theirs.tokenize(text.encode(), add_bos=False) == artifact.tokenizer.encode(text).ids


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            QuantSpec(**EXACT),
            ["weights of 7 matrices, which are rotated or have no type there, are rounded to float16"],
        ),
        (
            QuantSpec(method="ste", embeddings="int8"),
            ["llama.cpp does not round the inputs of 7 layers", "steps of 9 matrices are rounded to float16"],
        ),
    ],
    ids=["rotated", "float32 steps"],
)
def test_what_differs_is_said(spec: QuantSpec, words: list[str], tmp_path: Path, tokenizer: str) -> None:
    artifact = exported(tmp_path, spec, tokenizer)
    said = FORMAT.difference(artifact)
    assert said is not None
    assert all(each in said for each in words)
    weights, read = dense_state_dict(artifact), {}
    for each in GGUFReader(tmp_path / "model.gguf").tensors:
        read[each.name] = torch.tensor(quants.dequantize(each.data, each.tensor_type))
    for name in matrix_shapes(artifact.config.model):
        if name.endswith("mlp.down") or "." not in name:
            theirs = {"embed": "token_embd", "lm_head": "output"}.get(name, "blk.0.ffn_down")
            torch.testing.assert_close(read[f"{theirs}.weight"], weights[f"{name}.weight"], rtol=1e-3, atol=1e-6)


def test_an_existing_file_and_norms_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = exported(tmp_path, STE4, None)
    assert "without a tokenizer, for ids alone: the model has none" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ConfigError, match="exists already"):
        to_gguf(artifact, tmp_path / "model.gguf")
    (tmp_path / "norms").mkdir()
    with pytest.raises(ConfigError, match=r"has a norm before it, which a Llama of llama\.cpp does not"):
        exported(tmp_path / "norms", QuantSpec(method="bitnet", weight_bits="ternary", act_bits=8), None)
