"""Settings files mean what people mean by them."""

from __future__ import annotations

from pathlib import Path

import pytest

from questlm.config import ModelConfig, QuantSpec, load_config
from questlm.errors import ConfigError


@pytest.mark.parametrize("word", ["on", "off"])
def test_on_and_off_are_words(word: str, tmp_path: Path) -> None:
    assert load_config(overrides=[f"train.compile={word}"]).train.compile == word
    (tmp_path / "c.yaml").write_text(f"train:\n  compile: {word}\n")
    assert load_config(file=tmp_path / "c.yaml").train.compile == word


def test_exponents_without_a_dot_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("budget: {tokens: 3e9}\ntrain: {lr: 6e-4}\n")
    config = load_config(file=tmp_path / "c.yaml")
    assert (config.budget.tokens, config.train.lr) == (3_000_000_000, 6e-4)


@pytest.mark.parametrize(("text", "value"), [("'2024'", "2024"), ("inf", "inf"), ("a:b", "a:b")])
def test_text_stays_text(text: str, value: str) -> None:
    assert load_config(overrides=[f"data.source={text}"]).data.source == value


@pytest.mark.parametrize("content", ["1: 2\n", "model: {1: 2}\n", "on: 3\n", "[1]\n", "prest: 30m\n"])
def test_keys_that_are_no_settings_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_config(file=tmp_path / "c.yaml")
    if "prest" in content:
        assert "Did you mean 'preset'" in str(caught.value)


def test_truth_values_are_no_numbers() -> None:
    with pytest.raises(ConfigError, match="layers = True"):
        ModelConfig(layers=True)
    with pytest.raises(ConfigError, match="weight_bits = True"):
        QuantSpec(weight_bits=True)
