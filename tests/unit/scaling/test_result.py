"""A law's file: what is written is what is read, and nothing else is taken for one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from questlm.errors import DataError
from questlm.scaling import Estimate, LawFit
from questlm.scaling.result import LAW_PARAMETERS


@pytest.fixture
def path(synthetic_fit: LawFit, tmp_path: Path) -> Path:
    synthetic_fit.save(tmp_path / "law.json")
    return tmp_path / "law.json"


def test_it_survives_the_disk(synthetic_fit: LawFit, path: Path) -> None:
    loaded = LawFit.load(path)
    for name in (*LAW_PARAMETERS, "eff", "intervals", "groups", "range", "residuals", "warnings", "rms_log_residual"):
        assert getattr(loaded, name) == getattr(synthetic_fit, name)
    assert loaded.draws.keys() == synthetic_fit.draws.keys()
    for name, values in synthetic_fit.draws.items():
        assert loaded.draws[name] == pytest.approx(values, rel=1e-6)
    where = (3e8, 2e10, "quest/w4a4/int4")
    assert loaded.predict(*where) == synthetic_fit.predict(*where)
    assert np.allclose(loaded.predict_draws(*where), synthetic_fit.predict_draws(*where), rtol=1e-5)


def test_it_holds_what_was_asked_for(synthetic_fit: LawFit, path: Path) -> None:
    content = json.loads(path.read_text())
    assert {*LAW_PARAMETERS, "eff", "rms_log_residual", "n_runs", "warnings", "format"} <= set(content)
    assert set(content["eff"]["quest/w4a4/int4"]) == {"value", "low", "high"}
    assert content["n_runs"] == 48
    assert set(content["range"]) == {"parameters", "tokens", "tokens_per_parameter"}
    assert len(content["draws"]["alpha"]) == 40


def test_an_open_interval_survives(synthetic_fit: LawFit, tmp_path: Path) -> None:
    eff = synthetic_fit.eff | {"quest/w4a4/int4": Estimate(0.7, 0.5, math.inf)}
    replace(synthetic_fit, eff=eff).save(tmp_path / "law.json")
    assert LawFit.load(tmp_path / "law.json").eff == eff


def _set(*keys: str, value: Any) -> Callable[[Any], Any]:
    def change(content: Any) -> Any:
        inner = content
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        return content

    return change


def _drop(key: str) -> Callable[[Any], Any]:
    return lambda content: {name: value for name, value in content.items() if name != key}


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda content: [], "is not a fitted law; write one with: quest fit"),
        (lambda content: {"model": 1}, "is not a fitted law"),
        (_set("format", value=2), "format 2, but this version reads 1"),
        (_set("format", value="x" * 500), r"of format 'x+\.\.\.x+', but"),
        (_set("alpha", value=-1), "alpha: input should be greater than 0"),
        (_set("alpha", value="0.3"), "alpha: input should be a valid number"),
        (_set("alpha", value=1e9), "alpha: input should be less than"),
        (_set("E", value=None), "E: "),
        (_set("eff", "quest/w4a4/int4", value=0.7), "eff.quest/w4a4/int4: "),
        (_set("eff", "quest/w4a4/int4", "value", value=0.0), "greater than"),
        (_set("eff", "another", value={"value": 1.0, "low": 1.0, "high": 1.0}), "groups do not match"),
        (_set("groups", "bf16", value=1), "groups do not match"),
        (_set("groups", value={}), "groups do not match"),
        (_set("draws", "alpha", value=[]), "draws do not match"),
        (_set("draws", "alpha", value=[0.0] * 40), "a draw is not above 0"),
        (_set("draws", "alpha", value=[1e6] * 40), "an exponent"),
        (_set("draws", value={}), "draws do not match"),
        (_set("intervals", value={}), "an interval or range is missing"),
        (_set("range", "tokens", value=[1.0]), "range.tokens"),
        (_set("range", "tokens", value=[2.0, 1.0]), "a range cannot be"),
        (_set("rms_log_residual", value=500.0), "rms_log_residual"),
        (_set("warnings", value=["\x1b[2J"]), "does not print"),
        (_set("more", value=1), "more: extra inputs"),
        (_drop("beta"), "beta: field required"),
        (_drop("warnings"), "warnings: field required"),
    ],
)
def test_a_damaged_file_is_refused_in_one_sentence(damage: Callable[[Any], Any], expected: str, path: Path) -> None:
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(DataError, match=expected) as caught:
        LawFit.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 500


@pytest.mark.parametrize("content", ["", "{", '{"format": NaN}', "[" * 100_000])
def test_what_is_no_json_is_refused(content: str, path: Path) -> None:
    path.write_text(content)
    with pytest.raises(DataError, match=str(path)):
        LawFit.load(path)


def test_nan_in_it_is_refused(path: Path) -> None:
    path.write_text(json.dumps(_set("rms_log_residual", value=math.nan)(json.loads(path.read_text()))))
    with pytest.raises(DataError, match="rms_log_residual: input should be a finite number"):
        LawFit.load(path)


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        LawFit.load(tmp_path / "none.json")
