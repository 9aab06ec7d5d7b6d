"""Exports are read by the program they are for, and the loss that is printed is the one that it has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import questlm
from questlm.config import RunConfig
from questlm.errors import ConfigError
from questlm.export.formats import FORMATS
from questlm.trained.export import export
from questlm.training import train

Settings = Callable[..., RunConfig]
Command = Callable[..., tuple[int, str, str]]
IDS = torch.arange(40)[None]
QUANT = {
    "weights": {"weight_bits": 2, "act_bits": 16, "embeddings": "int8"},
    "both": {"weight_bits": 4, "act_bits": 2},
    "bitnet": {"method": "bitnet", "weight_bits": "ternary", "act_bits": 8},
}


@pytest.fixture(scope="module")
def packed(tiny_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Trained models, packed: one with quantised weights, one with inputs too, one with norms before its layers."""
    folder = tmp_path_factory.mktemp("packed")
    for name, quant in QUANT.items():
        train(tiny_settings(quant=quant), folder / name)
        questlm.pack(folder / name, folder / name / "packed")
    questlm.pack(folder / "weights", folder / "weights" / "packed.quest", single_file=True)
    return {name: folder / name / "packed" for name in QUANT}


@pytest.mark.parametrize("single_file", [False, True])
def test_quantised_weights_are_exported_as_they_are(packed: dict[str, Path], single_file: bool, tmp_path: Path) -> None:
    source = packed["weights"].with_suffix(".quest") if single_file else packed["weights"]
    report = export(source, tmp_path / "hf")
    assert report.difference is None
    assert report.gap == pytest.approx(0, abs=1e-5)
    assert report.bytes == sum(path.stat().st_size for path in (tmp_path / "hf").iterdir())
    theirs, engine = AutoModelForCausalLM.from_pretrained(tmp_path / "hf"), questlm.load(source)
    torch.testing.assert_close(theirs(IDS).logits, engine(IDS), rtol=1e-4, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer("the quick")["input_ids"] == engine.encode("the quick")


def test_the_gap_of_quantised_inputs_is_measured_and_said(
    packed: dict[str, Path], command: Command, tmp_path: Path
) -> None:
    source = packed["both"]
    code, _, refusal = command("export", source, "--out", "hf")
    assert code == 2
    assert "so nothing was written; add --allow-inexact" in " ".join(refusal.split())
    assert not (tmp_path / "hf").exists()
    code, out, err = command("export", source, "--out", "hf", "--allow-inexact", "--json")
    assert code == 0
    made = json.loads(out)
    assert "does not round the inputs of 7 layers" in made["difference"]
    for said in (refusal, err):
        assert f"changes the loss by {made['gap']:+.4f} nats" in " ".join(said.split())
    assert made["before"]["loss"] == pytest.approx(questlm.evaluate(source).loss, abs=1e-6)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").requires_grad_(False)
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over a lazy dog " * 20)
    other = export(source, tmp_path / "again", data=text, allow_inexact=True)
    assert other.after is not None
    # The loss that transformers has on the same windows.
    tokens = torch.tensor(AutoTokenizer.from_pretrained(tmp_path / "hf")(text.read_text())["input_ids"])
    windows = [tokens[start : start + 33] for start in range(0, len(tokens) - 1, 32)]
    nats = [torch.nn.functional.cross_entropy(theirs(w[None, :-1]).logits[0], w[1:], reduction="sum") for w in windows]
    assert float(sum(nats)) / (len(tokens) - 1) == pytest.approx(other.after.loss, abs=2e-2)
    assert abs(other.after.loss - other.before.loss) > 1e-4


def test_the_table_names_both_losses(packed: dict[str, Path], command: Command) -> None:
    code, out, _ = command("export", packed["weights"], "--format", "hf", "--out", "hf")
    assert code == 0
    assert "loss before" in out
    assert "gap" in out
    assert "from_pretrained('hf')" in out


@pytest.mark.parametrize(
    ("name", "words", "reason"),
    [
        ("bitnet", (), "has a norm before it, which a Llama of transformers does not"),
        ("weights", ("--format", "hg"), "there is no format 'hg' to export to. Did you mean 'hf'?"),
        ("weights", ("--out", "."), "exists already"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    name: str, words: tuple[str, ...], reason: str, packed: dict[str, Path], command: Command, tmp_path: Path
) -> None:
    code, _, err = command("export", packed[name], "--out", "hf", *words)
    assert code == 2
    assert reason in err
    assert not (tmp_path / "hf").exists()


def test_without_text_only_an_exact_export_is_written(tmp_path: Path) -> None:
    from questlm.config import ModelConfig, QuantSpec

    shape = ModelConfig(layers=1, hidden=32, heads=2, mlp_hidden=64, vocab_size=61)
    for name, bits in (("exact", 16), ("rounding", 4)):
        spec = QuantSpec(method="ste", weight_bits=4, act_bits=bits, steps="fp16", embeddings="bf16")
        questlm.pack(questlm.prepare(questlm.Llama(shape).initialize(0), spec), tmp_path / name)
    for format in FORMATS:
        report = export(tmp_path / "exact", tmp_path / format, format)
        assert (report.difference, report.before, report.gap) == (None, None, None)
        assert report.path.exists()
    with pytest.raises(ConfigError, match="names no text to measure by how much that changes the loss"):
        export(tmp_path / "rounding", tmp_path / "other")
    assert not (tmp_path / "other").exists()
