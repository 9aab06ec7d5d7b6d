"""Run records: what is written is what is read, and nothing else is taken for one."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from questlm import records
from questlm.config import RunConfig
from questlm.errors import CheckpointError
from questlm.records import PROGRESS_NAME, RECORD_NAME, RunProgress, RunRecord, package_versions


@pytest.fixture
def record() -> RunRecord:
    return RunRecord(
        config=RunConfig().model_dump(mode="json"),
        versions=package_versions(),
        device="a CPU",
        data={"description": "text", "hash": "0" * 64, "train_tokens": 10},
        parameters={"all": 20, "non_embedding": 10},
        curve=[{"step": 1, "tokens": 2, "loss": 0.1 + 0.2, "lr": 1e-3, "grad_norm": 1.0}],
        final={"loss": 1 / 3, "perplexity": 2.0, "bits_per_byte": None, "tokens": 9},
        steps=1,
    )


def test_a_record_survives_the_disk_to_the_last_digit(record: RunRecord, tmp_path: Path) -> None:
    record.save(tmp_path)
    assert RunRecord.load(tmp_path) == record
    assert [path.name for path in tmp_path.iterdir()] == [RECORD_NAME]


def test_saving_again_replaces_the_whole_file(record: RunRecord, tmp_path: Path) -> None:
    record.save(tmp_path)
    record.steps, record.curve = 2, []
    record.save(tmp_path)
    assert RunRecord.load(tmp_path) == record


def test_its_config_builds_the_settings_again(record: RunRecord) -> None:
    assert RunConfig(**record.config) == RunConfig()


def test_a_number_that_json_does_not_know_is_not_written(record: RunRecord, tmp_path: Path) -> None:
    record.save(tmp_path)
    before = (tmp_path / RECORD_NAME).read_bytes()
    record.seconds = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        record.save(tmp_path)
    assert (tmp_path / RECORD_NAME).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [RECORD_NAME]


def test_a_record_from_before_there_were_initial_weights_loads(record: RunRecord, tmp_path: Path) -> None:
    record.save(tmp_path)
    path = tmp_path / RECORD_NAME
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "initial_weights"}))
    assert RunRecord.load(tmp_path) == record


def _edit(**changes: Any) -> Any:
    return lambda content: json.dumps(json.loads(content) | changes)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda content: "", "not valid JSON"),
        (lambda content: content[:-20], "not valid JSON"),
        (lambda content: "[]", "not a run record"),
        (lambda content: "{}", "not a run record"),
        (_edit(format=2), "not a run record of format 1"),
        (_edit(more=1), "not a run record"),
        (lambda content: json.dumps({k: v for k, v in json.loads(content).items() if k != "data"}), "not a run record"),
    ],
)
def test_a_damaged_record_is_refused(damage: Any, expected: str, record: RunRecord, tmp_path: Path) -> None:
    record.save(tmp_path)
    path = tmp_path / RECORD_NAME
    path.write_text(damage(path.read_text()))
    with pytest.raises(CheckpointError, match=expected) as caught:
        RunRecord.load(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", "12"),
        ("steps", True),
        ("steps", 1.0),
        ("tokens", -1),
        ("tokens", 10**19),
        ("seconds", None),
        ("seconds", float("inf")),
        ("seconds", 10**400),
        ("curve", {"loss": 1.0}),
        ("curve", [1.0]),
        ("curve", [{"loss": "3"}]),
        ("validations", [{"loss": float("nan")}]),
        ("final", []),
        ("final", {"perplexity": 2.0, "tokens": 9}),
        ("final", {"loss": None, "perplexity": 2.0, "tokens": 9}),
        ("parameters", {"all": "many"}),
        ("data", {"val_hash": ["x"]}),
        ("versions", {"torch": 2}),
        ("device", 5),
        ("device", "x" * 100_000),
        ("config", "none"),
        ("checks", {"loss": {"deep": {"deeper": 1}}}),
        ("initial_weights", {}),
        ("processes", "2"),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_name(
    name: str, value: Any, record: RunRecord, tmp_path: Path
) -> None:
    record.save(tmp_path)
    path = tmp_path / RECORD_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(CheckpointError, match=rf"record\.json has {name}.* = .*; it is damaged") as caught:
        RunRecord.load(tmp_path)
    assert len(str(caught.value)) < 400


def test_the_richer_record_is_the_one_with_final_metrics_or_else_the_one_further_on(record: RunRecord) -> None:
    early, late = (replace(record, final=None, steps=steps) for steps in (4, 8))
    assert early.is_poorer_than(late)
    assert late.is_poorer_than(record)
    assert not any(rich.is_poorer_than(poor) for rich, poor in ((late, early), (record, late), (early, early)))


def test_an_absent_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        RunRecord.load(tmp_path)


def test_versions_name_what_decides_results() -> None:
    versions = package_versions()
    assert {"python", "platform", "questlm", "torch", "numpy", "tokenizers", "safetensors"} <= set(versions)
    assert all(versions.values())


def test_the_commit_is_that_of_our_own_checkout_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert records._git_commit(tmp_path) is None
    (tmp_path / ".git").mkdir()  # not a repository: git fails, and we do without

    def broken(*args: Any, **options: Any) -> None:
        raise subprocess.CalledProcessError(128, "git")

    monkeypatch.setattr(subprocess, "run", broken)
    assert records._git_commit(tmp_path) is None


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"share": -1}', '{"share": 1.5}', '{"share": true}', '{"share": 0.5, "loss": NaN}'],
)
def test_progress_that_no_run_writes_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / PROGRESS_NAME).write_text(content)
    with pytest.raises(CheckpointError, match=r"progress\.json"):
        RunProgress.load(tmp_path)


def test_a_record_becomes_a_table_of_a_row_a_step(record: RunRecord) -> None:
    pytest.importorskip("pandas")
    curve = [{"step": s, "tokens": 10 * s, "loss": 5.0 - s, "lr": 0.1, "grad_norm": 1.0} for s in (2, 4)]
    validations = [{"step": 3, "tokens": 30, "loss": 2.5}, {"step": 4, "tokens": 40, "loss": 2.0}]
    table = replace(record, curve=curve, validations=validations).to_pandas()
    assert table["step"].tolist() == [2, 3, 4]
    assert table["validation_loss"].tolist()[1:] == [2.5, 2.0]
    assert table["loss"].isna().tolist() == [False, True, False]
    columns = ["step", "tokens", "loss", "lr", "grad_norm", "validation_loss"]
    for nothing in ({"curve": []}, {"validations": []}):
        table = replace(record, **({"curve": curve, "validations": validations} | nothing)).to_pandas()
        assert list(table.columns) == columns
        assert {str(table[column].dtype) for column in columns[2:]} == {"float64"}
