"""README.md of a packed model says what it is, in words that a hub of models reads."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
import yaml

import questlm
from questlm.config import ModelConfig, QuantSpec
from questlm.errors import ConfigError

SHAPE = ModelConfig(layers=1, hidden=32, heads=2, mlp_hidden=48, vocab_size=257)
TRAINING = {
    "data": {"source": "/home/me/secret/my|text.txt"},
    "seq_len": 64,
    "tokens": 123_456,
    "final": {"loss": 3.25, "perplexity": 25.79, "bits_per_byte": None},
}


def packed(folder: Path, **given: object) -> str:
    model = questlm.prepare(questlm.Llama(SHAPE).initialize(0), QuantSpec(weight_bits=1, act_bits=16))
    questlm.pack(model, folder, **given)
    return (folder / "README.md").read_text(encoding="utf-8")


def test_it_says_what_the_model_is(tmp_path: Path, tokenizer_json: str) -> None:
    card = packed(tmp_path / "a", tokenizer=tokenizer_json, training=TRAINING, license="apache-2.0")
    head = yaml.safe_load(card.split("---")[1])
    assert (head["license"], head["library_name"]) == ("apache-2.0", "questlm")
    for words in (
        "| method | quest: weights 1 bit, inputs of layers not rounded |",
        r"| trained on | my\|text.txt |",
        "| tokens | 123,456, in windows of 64 |",
        "| validation loss in training | 3.2500 nats a token |",
        "| perplexity | 25.7900 |",
        f"questlm {questlm.__version__}, torch",
        f"| size | {questlm.load(tmp_path / 'a').bytes:,} bytes",
        'model.generate("Once',
        "Licence: apache-2.0.",
    ):
        assert words in card
    assert "secret" not in card
    assert yaml.safe_load(packed(tmp_path / "b", license="no").split("---")[1])["license"] == "no"
    assert "bits per byte" not in card


def test_it_is_no_part_of_the_model(tmp_path: Path) -> None:
    card = packed(tmp_path / "a", training={"tokens": 5})
    assert "| tokens | 5 |" in card
    assert yaml.safe_load(card.split("---")[1])["license"] == "unknown"
    assert "The licence of the weights is not stated." in card
    assert "generate" not in card.split("## Run it")[1]
    (tmp_path / "a" / "README.md").write_text("# my own words")
    questlm.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"license": "mit\nx: y"}, "is not the name of a licence; give one such as apache-2.0"),
        ({"license": "mit", "single_file": True}, "a single file has no README"),
    ],
)
def test_a_licence_that_cannot_be_written_is_refused(given: dict, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=reason):
        packed(tmp_path / "a", **given)
    assert not (tmp_path / "a").exists()


def test_it_is_written_where_questlm_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from the source folder, with PYTHONPATH=src."""

    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert "questlm unknown, torch unknown" in packed(tmp_path / "a")
