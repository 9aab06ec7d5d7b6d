from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import questlm
from questlm.cli.main import app
from questlm.config import ModelConfig, QuantSpec
from questlm.export.pack import pack


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bench") / "tiny"
    model = questlm.Llama(ModelConfig(layers=1, hidden=32, heads=2, mlp_hidden=48, vocab_size=41)).initialize(0)
    pack(questlm.prepare(model, QuantSpec(weight_bits=2, act_bits=8)), folder)
    return str(folder)


@pytest.mark.parametrize(
    ("command", "flags", "column"),
    [
        ("layer", ["--batch", "1,2"], "rows"),
        ("prefill", ["--tokens", "4"], "tokens"),
        ("decode", ["--batch", "2", "--weights", "packed"], "sequences"),
    ],
)
def test_a_table_says_what_was_measured_and_where(artifact: str, command: str, flags: list[str], column: str) -> None:
    result = CliRunner().invoke(app, ["bench", command, artifact, "--seconds", "0.01", *flags], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for text in ("tiny", "W2A8", column, "speed-up", "rounds", "threads", "torch"):
        assert text in result.stdout


def test_json_has_every_comparison_and_a_picture_is_drawn(artifact: str, tmp_path: Path) -> None:
    picture = tmp_path / "speed.svg"
    flags = ["--batch", "1", "--seconds", "0.01", "--threads", "1", "--json", "--picture", str(picture)]
    result = CliRunner().invoke(app, ["bench", "layer", artifact, *flags])
    report = json.loads(result.stdout)
    assert (report["kind"], report["threads"]) == ("layer", 1)
    assert [each["shape"] for each in report["comparisons"]] == ["32 x 32", "48 x 32", "32 x 48", "41 x 32"]
    assert picture.read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--batch", "0"], "--batch '0' is not a number of at least 1"), (["--picture", "a.bmp"], "no known file type")],
)
def test_a_wrong_option_is_refused_before_anything_is_measured(artifact: str, flags: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["bench", "layer", artifact, *flags])
    assert said in str(result.exception)
