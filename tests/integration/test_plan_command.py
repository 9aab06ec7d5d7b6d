"""`quest plan` as a user has it: an answer, a config that trains, pictures, and refusals of one sentence."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from questlm.cli import main
from questlm.cli.options import parse_bytes
from questlm.config import load_config
from questlm.scaling import LawFit, fit_law, published_runs
from questlm.scaling.artifact_size import artifact_bytes

ROOT = Path(__file__).parents[2]
SCALING = ROOT / "src" / "questlm" / "scaling"


def plan(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["quest", "plan", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_answer_is_a_config_that_trains(monkeypatch, tmp_path, capsys):
    config, picture = tmp_path / "plan.yaml", tmp_path / "pictures" / "plan.svg"
    words = ("--memory", "16MB", "--tokens", "10B", "--vocab", "1024", "--embeddings", "int8", "--only", "w4a4,w1a1")
    assert plan(monkeypatch, *words, "--out", str(config), "--picture", str(picture)) == 0
    printed = capsys.readouterr().out
    assert "w4a4" in printed and "w8a8" not in printed and "expected loss" in printed and "16 MB" in printed
    made = load_config(file=config)
    assert (
        made.budget.tokens == 10**10
        and made.model.mlp_hidden
        and made.data.vocab_size == 1024
        and made.quant.weight_bits in (1, 4)
    )
    assert "<svg" in picture.read_text(encoding="utf-8") and "quest/w4a4/int4" in picture.read_text(encoding="utf-8")


def test_two_limits_are_enough(monkeypatch, tmp_path, capsys):
    config = tmp_path / "plan.yaml"
    assert plan(monkeypatch, "--memory", "16MB", "--tokens", "10B", "--out", str(config)) == 0
    assert "of the tokenizer" in " ".join(capsys.readouterr().out.split())
    assert load_config(file=config).data.vocab_size == load_config().data.vocab_size


@pytest.mark.parametrize("memory", ["700kB", "3MB", "6.49MB", "100MB", "2GB"])
def test_the_config_is_the_model_that_was_planned(memory, monkeypatch, tmp_path, capsys):
    config = tmp_path / "plan.yaml"
    words = ("--memory", memory, "--tokens-per-param", "100", "--vocab", "300", "--embeddings", "int8", "--json")
    assert plan(monkeypatch, *words, "--out", str(config)) == 0
    best = json.loads(capsys.readouterr().out)["choices"][0]
    made = load_config(file=config)
    model = made.model.model_copy(update={"vocab_size": 300})
    assert model.block_parameters == best["parameters"]
    assert artifact_bytes(model, made.quant) == best["bytes"] <= parse_bytes(memory, "--memory")


def test_json_and_a_law_of_ones_own(monkeypatch, tmp_path, capsys):
    law = tmp_path / "law.json"
    law.write_bytes((SCALING / "published_fit.json").read_bytes())
    assert plan(monkeypatch, "--gpu-hours", "8", "--gpu", "h100", "--from-fit", str(law), "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    losses = [choice["loss"]["value"] for choice in answer["choices"]]
    assert losses == sorted(losses) and answer["choices"][0]["loss"]["low"] < losses[0]
    assert any("E is not identified" in note for note in answer["notes"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--memory", "16 parsecs", "--tokens", "1B"), "'16 parsecs' is not a number of bytes"),
        (("--memory", "16MB", "--tokens", "-5"), "not a number of at least 1"),
        (("--memory", "16MB", "--flops", "nan"), "--flops nan is not a number above 0"),
        (("--gpu-hours", "1", "--gpu", "h10"), "Did you mean 'h100'"),
        (("--latency", "5", "--tokens", "1B"), "not a time above 0"),
        (("--memory", "16MB", "--tokens", "10B", "--vocab", "128k"), "bytes, most of them embedding and head"),
        (("--memory", "1GB", "--tokens", "1B", "--out", "nowhere/plan.yaml"), "nowhere/plan.yaml"),
        (("--memory", "1MB", "--tokens", "1B", "--embeddings", "int9"), "not one of bf16, int8, int7"),
        (("--memory", "1GB", "--tokens", "1B", "--from-fit", "nowhere.json"), "nowhere.json"),
        (("--memory", "1GB", "--tokens", "1B", "--picture", "x.bmp"), "end its name in .png, .svg, .pdf"),
    ],
)
def test_refusals(words, sentence, monkeypatch, capsys):
    assert plan(monkeypatch, *words) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_the_law_that_ships_is_the_fit_of_the_runs_that_ship():
    shipped, fitted = LawFit.load(SCALING / "published_fit.json"), fit_law(published_runs(), draws=2)
    for group, estimate in fitted.eff.items():
        assert shipped.eff[group].value == pytest.approx(estimate.value, rel=1e-3)
    assert shipped.alpha == pytest.approx(fitted.alpha, rel=1e-3)


def test_the_speeds_that_ship_are_those_measured():
    gather = _script("gather_speeds").gather(ROOT / "benchmarks" / "results")
    assert json.loads((SCALING / "gpus.json").read_text(encoding="utf-8")) == gather


def _script(name: str) -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module
