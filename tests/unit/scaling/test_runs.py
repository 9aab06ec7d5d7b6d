"""Runs are read from folders and rows; what cannot be used is named."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from questlm.config import QuantSpec, RunConfig
from questlm.errors import CheckpointError, DataError
from questlm.records import RECORD_NAME, RunRecord
from questlm.scaling import Run, read_runs

ROW = {"N": 100, "D": 1000, "w_bits": 4, "a_bits": 4, "format": "int4", "method": "quest", "loss": 3.25}
WriteRun = Callable[..., Path]


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Write a run folder with a record of given quantisation."""

    def write(name: str, finished: bool = True, quant: dict[str, Any] | None = None, **changes: Any) -> Path:
        record = RunRecord(
            config=RunConfig(quant=QuantSpec(**(quant or {})), seed=3).model_dump(mode="json"),
            versions={},
            device="a CPU",
            data={"val_hash": "abc"},
            parameters={"all": 300, "non_embedding": 200},
            tokens=5000,
            final={"loss": 2.5, "perplexity": 12.2, "bits_per_byte": None, "tokens": 9} if finished else None,
        )
        for key, value in changes.items():
            setattr(record, key, value)
        folder = tmp_path / name
        folder.mkdir(parents=True)
        record.save(folder)
        return folder

    return write


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[[Any], Path]:
    def write(rows: Any) -> Path:
        path = tmp_path / "rows.json"
        path.write_text(json.dumps(rows))
        return path

    return write


def test_a_row_is_a_run(write_rows: Callable[[Any], Path]) -> None:
    path = write_rows([ROW, ROW | {"seed": 2, "D": 3e9, "w_bits": "ternary", "a_bits": 16, "format": "ternary"}])
    first, second = read_runs([path])
    assert first == Run(100, 1000, 4, 4, "int4", "quest", 3.25, None, str(path))
    assert (second.tokens, second.seed, second.group) == (3_000_000_000, 2, "quest/wta16/ternary")


def test_a_run_folder_is_a_run(write_run: WriteRun) -> None:
    folder = write_run("a")
    (run,) = read_runs([folder])
    assert run == Run(200, 5000, 4, 4, "int4", "quest", 2.5, 3, str(folder), "abc")


@pytest.mark.parametrize(
    ("quant", "group"),
    [
        ({"weight_bits": 16, "act_bits": 16}, "bf16"),
        ({"weight_bits": 2, "act_bits": 16}, "quest/w2a16/int2"),
        ({"weight_bits": 16, "act_bits": 8}, "quest/w16a8/int8"),
        ({"method": "lsq-row", "weight_bits": 3, "act_bits": 3}, "lsq-row/w3a3/int3"),
        ({"format": "fp4"}, "quest/w4a4/fp4"),
        ({"format": "ternary"}, "quest/wtat/ternary"),
        ({"weight_bits": "ternary", "act_bits": 8}, "quest/wta8/ternary"),
        ({"format": "lloydmax", "weight_bits": 3, "act_bits": 3}, "quest/w3a3/lloydmax3"),
        ({"format": "int-2:4"}, "quest/w4a4/int4-2:4"),
        ({"format": "bf16-2:4", "act_bits": 16}, "quest/w16a16/bf16-2:4"),
        ({"act_format": "fp4"}, "quest/w4a4/int4-afp4"),
        ({"overrides": {"lm_head": 8}}, "quest/w4a4/int4-mixed"),
    ],
)
def test_settings_name_the_group(quant: dict[str, Any], group: str, write_run: WriteRun) -> None:
    (run,) = read_runs([write_run("a", quant=quant)])
    assert run.group == group


def test_folders_of_runs_are_searched_and_unfinished_runs_named(write_run: WriteRun, tmp_path: Path) -> None:
    folders = [write_run("sweep/b"), write_run("sweep/deep/a")]
    unfinished = write_run("sweep/c", finished=False)
    onwards = write_run("sweep/d", initial_weights="f" * 64)
    left_out: list[str] = []
    runs = read_runs([tmp_path / "sweep"], left_out)
    assert [run.source for run in runs] == [str(folder) for folder in folders]
    assert left_out == [
        f"{unfinished} is left out: its training is not finished",
        f"{onwards} is left out: it went on from the weights of another run",
    ]


def test_only_unfinished_runs_are_refused(write_run: WriteRun) -> None:
    folder = write_run("a", finished=False)
    with pytest.raises(DataError, match=rf"no run to fit .*{folder} is left out: its training is not finished"):
        read_runs([folder])
    with pytest.raises(DataError, match="no path was given"):
        read_runs([])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"parameters": {}}, "lacks what the law needs .'non_embedding'"),
        ({"parameters": []}, "has parameters = "),
        ({"config": {"quant": {"method": "quest", "weight_bits": 9}, "seed": 0}}, "lacks what the law needs"),
        ({"config": {}}, "lacks what the law needs"),
        ({"data": []}, "has data = "),
        ({"final": {"loss": None}}, "has final = "),
        ({"tokens": 0}, "D = 0"),
        ({"tokens": -5}, "has tokens = -5"),
    ],
)
def test_a_record_of_nonsense_is_refused(changes: dict[str, Any], expected: str, write_run: WriteRun) -> None:
    folder = write_run("a", **changes)
    with pytest.raises((DataError, CheckpointError), match=expected) as caught:
        read_runs([folder])
    assert str(folder) in str(caught.value)


def test_a_damaged_record_is_refused(write_run: WriteRun) -> None:
    folder = write_run("a")
    (folder / RECORD_NAME).write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        read_runs([folder])


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a run folder nor a folder of them"):
        read_runs([tmp_path])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"loss": math.nan}, "loss = nan; it is the validation loss"),
        ({"loss": math.inf}, "loss = inf"),
        ({"loss": 0}, "loss = 0;"),
        ({"loss": -3.2}, "loss = -3.2"),
        ({"loss": "3"}, "loss = '3'"),
        ({"loss": True}, "loss = True"),
        ({"N": 0}, "N = 0; it is the number of non-embedding parameters"),
        ({"N": 30.48}, "N = 30.48; .* whole number"),
        ({"N": math.inf}, "N = inf"),
        ({"N": 10**400}, "N = an integer of 1329 bits"),
        ({"D": -1000}, "D = -1000; it is the number of tokens"),
        ({"D": None}, "D = None"),
        ({"w_bits": 9}, "w_bits = 9; allowed are 1 to 8, 16"),
        ({"a_bits": "four"}, "a_bits = 'four'"),
        ({"w_bits": [4]}, r"w_bits = \[4\]"),
        ({"method": "a/b"}, "method = 'a/b'; it is a short word"),
        ({"format": ""}, "format = ''"),
        ({"seed": 0.5}, "seed = 0.5"),
        ({"Loss": 3}, "unknown key 'Loss'.* Did you mean 'loss'"),
        ({"wbits": 3}, "unknown key 'wbits'.* Did you mean 'w_bits'"),
    ],
)
def test_a_bad_row_is_refused_by_number(
    change: dict[str, Any], expected: str, write_rows: Callable[[Any], Path]
) -> None:
    path = write_rows([ROW, ROW | change])
    with pytest.raises(DataError, match=expected) as caught:
        read_runs([path])
    message = str(caught.value)
    assert message.startswith(f"row 2 of {path}")
    assert len(message) < 500


@pytest.mark.parametrize("key", ROW)
def test_a_row_that_lacks_a_key_is_refused(key: str, write_rows: Callable[[Any], Path]) -> None:
    with pytest.raises(DataError, match=f"row 1 of .* lacks '{key}'"):
        read_runs([write_rows([{name: value for name, value in ROW.items() if name != key}])])


@pytest.mark.parametrize("content", [{}, [], "rows", ROW])
def test_a_file_that_is_no_list_of_rows_is_refused(content: Any, write_rows: Callable[[Any], Path]) -> None:
    with pytest.raises(DataError, match="is not a list of runs; it should be like"):
        read_runs([write_rows(content)])


def test_a_row_that_is_no_object_is_refused(write_rows: Callable[[Any], Path]) -> None:
    with pytest.raises(DataError, match=r"row 1 of .* is not an object"):
        read_runs([write_rows([3])])


def test_an_absent_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_runs([tmp_path / "none"])
