"""Which runs a report is about, and what it says of those that it cannot show."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from questlm.config import ModelConfig, QuantSpec
from questlm.errors import DataError
from questlm.report import gather
from questlm.report.gather import clean
from questlm.scaling.size import packed_bytes


def test_a_folder_of_run_folders_and_rows_are_read_in_order_of_size(make_run: Any, tmp_path: Path) -> None:
    make_run("large", layers=4)
    make_run("deep/small", layers=2)
    rows = tmp_path / "rows.json"
    row = {"N": 10**9, "D": 10**10, "w_bits": 4, "a_bits": 4, "format": "int4", "method": "quest", "loss": 2.5}
    rows.write_text(json.dumps([row]))
    gathered = gather([rows, tmp_path / "runs"])
    assert [entry.name for entry in gathered.entries] == ["deep/small", "large", "rows.json, row 1"]
    assert gathered.notes == []
    small, row_entry = gathered.entries[0], gathered.entries[2]
    assert len(small.curve) == 20 and len(small.validations) == 3
    assert small.settings["train.lr"] == "0.0012" and small.settings["model.layers"] == "2"
    assert (small.tokens_per_second, small.peak_memory, small.device) == (1234.5, 3e9, "some GPU")
    assert row_entry.curve == () and row_entry.packed is None


def test_the_size_is_that_of_the_packed_model(make_run: Any) -> None:
    (entry,) = gather([make_run("one", bits=3, layers=2)]).entries
    shape = ModelConfig(layers=2, hidden=128, heads=1, vocab_size=512)
    assert entry.packed == packed_bytes(shape, QuantSpec(weight_bits=3, act_bits=3, embeddings="bf16"))


def test_a_run_whose_layers_differ_has_its_size(make_run: Any) -> None:
    plain, mixed = make_run("plain"), make_run("mixed")
    content = json.loads((mixed / "record.json").read_text())
    content["config"]["quant"]["overrides"] = {"mlp.down": {"weight_bits": 8}}
    (mixed / "record.json").write_text(json.dumps(content))
    sizes = {entry.name: entry.packed for entry in gather([plain, mixed]).entries}
    down = 2 * 128 * 512  # blocks, rows, columns
    assert sizes["mixed"] == (sizes["plain"] or 0) + down // 2


def test_a_run_of_an_unknown_method_has_no_size_and_the_reader_is_told(make_run: Any) -> None:
    folder = make_run("own")
    content = json.loads((folder / "record.json").read_text())
    content["config"]["quant"]["method"] = "my-own"
    (folder / "record.json").write_text(json.dumps(content))
    gathered = gather([folder])
    assert gathered.entries[0].packed is None
    assert len(gathered.notes) == 1 and gathered.notes[0].startswith("No packed size for own: no method 'my-own'")


def test_an_unfinished_run_is_marked_and_shows_its_last_validation(make_run: Any) -> None:
    gathered = gather([make_run("going", loss=None)])
    (entry,) = gathered.entries
    assert not entry.finished and gathered.finished == []
    assert entry.run.loss == entry.validations[-1][1]


def test_a_damaged_record_is_named_and_the_others_are_shown(make_run: Any, tmp_path: Path) -> None:
    make_run("good")
    (make_run("bad") / "record.json").write_text("{")
    make_run("begun", loss=None, curve=[], validations=[])
    gathered = gather([tmp_path / "runs"])
    assert [entry.name for entry in gathered.entries] == ["good"]
    assert len(gathered.notes) == 2 and all(note.startswith("Left out: ") for note in gathered.notes)
    assert str(tmp_path / "runs" / "bad") in gathered.notes[0]
    assert "its training has only begun" in gathered.notes[1]


def test_with_nothing_but_damage_there_is_no_report(make_run: Any) -> None:
    folder = make_run("bad")
    (folder / "record.json").write_text("{")
    with pytest.raises(DataError, match="is not valid JSON"):
        gather([folder])


def test_what_does_not_exist_or_holds_no_run_is_refused(make_run: Any, tmp_path: Path) -> None:
    good = make_run("good")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"nowhere does not exist; name run folders"):
        gather([good, tmp_path / "nowhere"])
    with pytest.raises(DataError, match=r"empty is neither a run folder nor a folder of them"):
        gather([good, tmp_path / "empty"])
    with pytest.raises(DataError, match="no run was named"):
        gather([])


def test_a_run_named_twice_is_one_run(make_run: Any, tmp_path: Path) -> None:
    folder = make_run("one")
    assert len(gather([folder, tmp_path / "runs", tmp_path / "runs" / ".." / "runs" / "one"]).entries) == 1


def test_a_copy_of_a_run_is_said_to_be_one(make_run: Any, tmp_path: Path) -> None:
    shutil.copytree(make_run("one"), tmp_path / "runs" / "two")
    make_run("three", seed=1)
    assert [note for note in gather([tmp_path / "runs"]).notes if "one run" in note] == [
        "one and two are one run: same group, size, tokens, seed and loss; it counts once."
    ]


def test_runs_validated_on_different_texts_are_said_not_to_compare(make_run: Any, tmp_path: Path) -> None:
    make_run("a")
    make_run("b", data={"val_hash": "other"})
    assert gather([tmp_path / "runs"]).notes == [
        "These runs were validated on 2 different texts, so not all losses compare."
    ]


def test_points_without_a_loss_leave_the_curve(make_run: Any) -> None:
    curve = [{"tokens": 1, "loss": 4.0}, {"tokens": 2, "loss": -1.0}, {"tokens": 3}, {"tokens": 4, "loss": 3.5}]
    (entry,) = gather([make_run("one", curve=curve)]).entries
    assert entry.curve == ((1.0, 4.0), (4.0, 3.5))


@pytest.mark.parametrize("curve", ["x", [1, 2], {"a": 1}])
def test_a_curve_that_is_none_is_damage(make_run: Any, curve: Any) -> None:
    with pytest.raises(DataError, match=r"record\.json has curve.*; it is damaged"):
        gather([make_run("one", curve=curve)])


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


FIELDS = "device data validations seconds tokens_per_second peak_memory_bytes final tokens versions parameters"
SETTINGS = "config.quant config.model config.budget config.seed config.train"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=st.sampled_from(f"{FIELDS} {SETTINGS}".split()), junk=JUNK)
def test_whatever_stands_in_a_record_it_is_shown_or_refused_in_a_sentence(
    make_run: Any, tmp_path: Path, field: str, junk: Any
) -> None:
    folder = tmp_path / "runs" / "one"
    if not folder.exists():
        make_run("one")
    good = json.loads((folder / "record.json").read_text())
    content = json.loads(json.dumps(good))
    section, _, key = field.partition(".")
    if key:
        content[section][key] = junk
    else:
        content[field] = junk
    other = tmp_path / "other"
    other.mkdir(exist_ok=True)
    (other / "record.json").write_text(json.dumps(content))
    gathered = gather([folder, other])
    assert gathered.entries
    assert len(gathered.entries) + len(gathered.notes) >= 2


def test_texts_are_cut_and_hold_no_control_characters() -> None:
    assert clean("a\x00b\n\u202ec") == "a\ufffdb\ufffd\ufffdc"
    assert clean("x" * 200) == "x" * 99 + "…"
    assert clean(os.fsdecode(b"\xff")) == "\ufffd"


def test_a_run_from_other_weights_is_shown_and_not_fitted(make_run: Any, tmp_path: Path) -> None:
    make_run("own")
    make_run("tuned", seed=1, initial_weights="abc")
    gathered = gather([tmp_path / "runs"])
    assert {entry.name: entry.fitted for entry in gathered.finished} == {"own": True, "tuned": False}
    assert any("tuned" in note and "other weights" in note for note in gathered.notes)
