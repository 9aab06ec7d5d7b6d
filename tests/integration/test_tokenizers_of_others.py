"""Tokenizers that came from elsewhere, from `quest train` to `quest generate`: their end of text, and bits per byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, normalizers

from helpers.fallback_tokenizer import fallback_tokenizer
from questlm.config import RunConfig, to_yaml
from questlm.data import train_tokenizer
from questlm.inference import load
from questlm.records import RunRecord
from questlm.training import RunFolder

Command = Callable[..., tuple[int, str, str]]
Settings = Callable[..., RunConfig]


def text_of(corpus: Path) -> str:
    return corpus.read_text(encoding="utf-8")


@pytest.fixture
def nameless(corpus: Path, tmp_path: Path) -> Path:
    """A folder with a tokenizer without a usual name for the end of text, and a config.json that says which it is."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    tokenizer = Tokenizer.from_str(train_tokenizer([text_of(corpus)], 300).to_str().replace("<|endoftext|>", "[STOP]"))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 0}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    return folder


def test_the_end_of_text_of_config_json_goes_all_the_way(
    command: Command, tiny_settings: Settings, nameless: Path, corpus: Path, tmp_path: Path
) -> None:
    settings = tiny_settings(data={"tokenizer": str(nameless / "tokenizer.json")})
    (tmp_path / "tiny.yaml").write_text(to_yaml(settings))
    code, _, err = command("train", "--config", "tiny.yaml", "--out", "run")
    assert code == 0, err
    assert RunFolder(tmp_path / "run").read_config().data.end_of_text == "[STOP]"
    for name in ("config.json", "tokenizer_config.json"):  # the run knows what they say now
        (nameless / name).unlink()
    short = ("--set", "train.seq_len=32", "--set", "train.batch_size=4")
    for words in (
        ("train", "--resume", "run"),
        ("train", "--resume", "run", "--config", "tiny.yaml"),
        ("eval", "run"),
        ("eval", "run", "--data", corpus),
        ("pack", "run", "--out", "model"),
        ("eval", "model", "--data", corpus),
        ("generate", "model", "--max-tokens", "3"),  # an empty prompt starts at the end of a text
        ("train", "--init-from", "run", "--data", corpus, "--tokens", "512", *short, "--out", "second"),
    ):
        code, _, err = command(*words)
        assert code == 0, (words, err)
    assert load(tmp_path / "model").end_of_text == 0
    assert load(tmp_path / "model").chat_template == "{{ messages }}"
    assert (tmp_path / "second" / "chat_template.jinja").is_file()
    assert RunFolder(tmp_path / "second").read_config().data.end_of_text == "[STOP]"


def test_without_any_statement_the_way_out_works(
    command: Command, tiny_settings: Settings, nameless: Path, tmp_path: Path
) -> None:
    (nameless / "config.json").unlink()
    settings = tiny_settings(data={"tokenizer": str(nameless / "tokenizer.json")})
    (tmp_path / "tiny.yaml").write_text(to_yaml(settings))
    code, _, err = command("train", "--config", "tiny.yaml", "--out", "run")
    assert code == 2
    assert "both kinds of quotes: --set 'data.end_of_text=\"TOKEN\"'" in err
    code, _, err = command("train", "--config", "tiny.yaml", "--set", "data.end_of_text='[STOP]'", "--out", "run")
    assert code == 0, err


def lowercasing(text: str) -> Tokenizer:
    tokenizer = train_tokenizer([text.lower()], 300)
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def spaces_by_fallback(text: str) -> Tokenizer:
    return fallback_tokenizer("etaoinshrdlucmfwygpbvk")


@pytest.mark.parametrize("make", [lowercasing, spaces_by_fallback])
def test_bits_per_byte_of_training_and_of_eval_are_the_same(
    make: Callable[[str], Tokenizer], command: Command, tiny_settings: Settings, corpus: Path, tmp_path: Path
) -> None:
    make(text_of(corpus)).save(str(tmp_path / "own.json"))
    # Upper case and characters of several bytes: what these tokenizers lose, or give back longer.
    text = text_of(corpus).replace("the", "THE ÄÖ")[:4000]
    (tmp_path / "held.txt").write_text(text)
    settings = tiny_settings(data={"tokenizer": str(tmp_path / "own.json"), "val": str(tmp_path / "held.txt")})
    (tmp_path / "tiny.yaml").write_text(to_yaml(settings))
    code, _, err = command("train", "--config", "tiny.yaml", "--out", "run")
    assert code == 0, err
    assert err.count("quest: note: the tokenizer loses text (") == 1
    record = RunRecord.load(tmp_path / "run")
    assert record.final is not None
    documents = [part.removeprefix("\n") for part in text.split("<|endoftext|>")]
    assert record.data["val_bytes"] == sum(len(part.encode()) for part in documents)
    assert record.data["notes"].startswith("the tokenizer loses text")
    code, out, err = command("eval", "run", "--data", "held.txt", "--json")
    assert code == 0, err
    assert "quest: note: the tokenizer loses text (" in err
    result = json.loads(out)
    assert result["bits_per_byte"] == pytest.approx(record.final["bits_per_byte"], abs=1e-9)
    assert result["text_bits_per_byte"] < result["bits_per_byte"]


def test_both_forms_are_shown_where_the_fourth_digit_differs(
    command: Command, tiny_settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "tiny.yaml").write_text(to_yaml(tiny_settings()))
    code, out, err = command("train", "--config", "tiny.yaml", "--out", "run")
    assert code == 0, err
    final = RunRecord.load(tmp_path / "run").final
    assert final is not None
    both, of_text = (final[name] or 0.0 for name in ("bits_per_byte", "text_bits_per_byte"))
    assert f"{both:.4f} ({of_text:.4f} without end-of-text tokens)" in " ".join(out.split())
