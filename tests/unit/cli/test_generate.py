from __future__ import annotations

import inspect
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

import questlm
from questlm.cli.generate import generate, speed_text
from questlm.cli.main import app
from questlm.config import GenerationOptions, ModelConfig, QuantSpec
from questlm.export.pack import pack


def test_flags_decide_the_text_and_the_speed_is_said_on_stderr(tmp_path: Path, tokenizer_json: str) -> None:
    model = questlm.Llama(ModelConfig(layers=1, hidden=32, heads=2, mlp_hidden=48, vocab_size=257)).initialize(0)
    pack(questlm.prepare(model, QuantSpec(embeddings="bf16")), tmp_path / "a", tokenizer=tokenizer_json)
    options = GenerationOptions(max_new_tokens=9, top_k=7, min_p=0.01, repetition_penalty=1.3, seed=3)
    text = questlm.load(tmp_path / "a").generate("x", options)
    flags = shlex.split("--prompt x --max-tokens 9 --top-k 7 --min-p 0.01 --repetition-penalty 1.3 --seed 3")
    result = CliRunner().invoke(app, ["generate", str(tmp_path / "a"), *flags])
    assert result.stdout == f"x{text}\n"
    assert result.stderr.startswith("9 tokens; the first after ")
    assert result.stderr.endswith(" in memory\n")
    packed = CliRunner().invoke(app, ["generate", str(tmp_path / "a"), *flags, "--weights", "packed", "--quiet"])
    assert packed.stdout == result.stdout and packed.stderr == ""
    for dtype in (torch.bfloat16, torch.int8):
        name = str(dtype).removeprefix("torch.")
        rounded = CliRunner().invoke(app, ["generate", str(tmp_path / "a"), *flags, "--cache-dtype", name])
        assert rounded.stdout == f"x{questlm.load(tmp_path / 'a', cache_dtype=dtype).generate('x', options)}\n"
    stopped = CliRunner().invoke(app, ["generate", str(tmp_path / "a"), *flags, "--stop", text[2:4], "--stop", "none"])
    assert stopped.stdout == f"x{text[: text.index(text[2:4])]}\n"


@pytest.mark.parametrize(
    ("tokens", "first", "speed", "expected"),
    [
        (0, None, None, "no tokens: the model ended the text at once"),
        (1, 0.12345, None, "1 token; the first after 0.123 s"),
        (128, 1.5, 23.456, "128 tokens; the first after 1.5 s, then 23.5 tokens/s"),
    ],
)
def test_speed_is_said_in_a_line(tokens: int, first: float | None, speed: float | None, expected: str) -> None:
    stream = SimpleNamespace(tokens=tokens, first_token_seconds=first, tokens_per_second=speed)
    assert speed_text(stream) == expected  # type: ignore[arg-type]


def test_every_option_has_a_flag_with_the_same_default() -> None:
    parameters = inspect.signature(generate).parameters
    for name, field in GenerationOptions.model_fields.items():
        default = parameters["max_tokens" if name == "max_new_tokens" else name].default
        assert (default or ()) == (field.default or ()) if name == "stop" else default == field.default
