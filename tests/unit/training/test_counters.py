"""What a checkpoint says of itself is believed only when it is of the right types and agrees."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from questlm.config import RunConfig
from questlm.errors import CheckpointError
from questlm.manifest import write_manifest
from questlm.training import load_run, resume, train
from questlm.training.checkpoint import checkpoints_in, latest_checkpoint, verify_checkpoint
from questlm.training.counters import STATE_NAME, CheckpointState, Counters, read_state

STATE = CheckpointState(
    config=RunConfig().model_dump(mode="json"),
    data_hash="0" * 64,
    loader={"epoch": 0, "position": 4, "seed": 2**62, "windows": 9, "seq_len": 32},
    progress=Counters(
        step=4,
        tokens=512,
        seconds=1.5,
        step_seconds=1,
        recent_losses=[3.25],
        curve=[{"step": 3, "tokens": 384, "loss": 4.0, "lr": 1e-3, "grad_norm": 1.0}],
        checks={
            "quantized_layers": 7,
            "skipped_layers": {"lm_head": "not asked for"},
            "largest_gradient_outside_mask": None,
        },
    ),
)


@pytest.fixture(scope="module")
def finished(tiny_settings: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 12 steps with checkpoints of step 8 and 12."""
    run = tmp_path_factory.mktemp("state") / "run"
    train(tiny_settings(), run)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """The same at step 8, unfinished."""
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000012")
    (tmp_path / "run" / "record.json").unlink()
    return tmp_path / "run"


def test_a_state_is_read_as_it_was_written_to_the_last_byte(tmp_path: Path) -> None:
    (tmp_path / STATE_NAME).write_text(STATE.to_json())
    assert read_state(tmp_path) == STATE
    assert read_state(tmp_path).to_json() == STATE.to_json()


def test_a_state_from_before_checks_were_kept_is_read(tmp_path: Path) -> None:
    content = json.loads(STATE.to_json())
    del content["progress"]["checks"]
    (tmp_path / STATE_NAME).write_text(json.dumps(content))
    assert read_state(tmp_path).progress.checks == {}


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
PLACES = [(name,) for name in ("config", "data_hash", "loader", "progress", "more")]
PLACES += [("progress", name) for name in (*vars(STATE.progress), "more")]
PLACES += [("loader", name) for name in (*STATE.loader, "more")]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from(PLACES), junk=JUNK)
def test_whatever_stands_in_a_state_it_is_of_the_right_type_or_refused(
    place: tuple[str, ...], junk: Any, tmp_path: Path
) -> None:
    content = json.loads(STATE.to_json())
    inner = content
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = junk
    (tmp_path / STATE_NAME).write_text(json.dumps(content))
    try:
        state = read_state(tmp_path)
    except CheckpointError as problem:
        assert STATE_NAME in str(problem)
        return
    assert json.loads(state.to_json()) == content
    progress = state.progress
    assert all(type(count) is int and 0 <= count <= 10**18 for count in (progress.step, progress.tokens))
    assert all(type(value) is int and value >= 0 for value in state.loader.values())
    assert all(abs(value) < 1e301 for point in progress.curve for value in point.values())


@pytest.mark.parametrize("name", ["step", "curve", "recent_losses"])
def test_a_counter_that_is_left_out_is_missed(name: str, tmp_path: Path) -> None:
    content = json.loads(STATE.to_json())
    del content["progress"][name]
    (tmp_path / STATE_NAME).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=rf"state\.json lacks progress\.{name}; it is damaged"):
        read_state(tmp_path)


@pytest.mark.parametrize("change", ["lacking", "not-an-object"])
def test_what_is_no_state_is_refused(change: str, tmp_path: Path) -> None:
    content = json.loads(STATE.to_json())
    del content["loader"]
    (tmp_path / STATE_NAME).write_text(json.dumps(content if change == "lacking" else [content]))
    expected = r"state\.json lacks loader; it is damaged" if change == "lacking" else "damaged"
    with pytest.raises(CheckpointError, match=expected):
        read_state(tmp_path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"progress": {"tokens": 3}}, "counts 3 tokens in 8 steps of 128"),
        ({"progress": {"curve": [{"loss": "low"}]}}, "progress.curve"),
        ({"progress": {"step": 9, "tokens": 9 * 128}}, "of 8 by its manifest and of 9 by its state"),
        ({"progress": {"seconds": "long"}}, "progress.seconds = 'long'"),
        ({"loader": {"position": 10**9}}, "none of this data's"),
        ({"loader": {"epoch": None}}, "loader.epoch = None"),
        ({"config": {"seed": "one"}}, "settings that this version does not know"),
        ({"data_hash": 5}, "data_hash = 5"),
    ],
)
def test_a_run_whose_state_was_changed_and_sealed_again_is_refused(
    changes: dict[str, Any], expected: str, run: Path
) -> None:
    newest = run / "checkpoints" / "step-00000008"
    content = json.loads((newest / STATE_NAME).read_text())
    for section, change in changes.items():
        content[section] = content[section] | change if isinstance(change, dict) else change
    (newest / STATE_NAME).write_text(json.dumps(content))
    write_manifest(newest, "questlm-checkpoint", 1, {"step": 8})
    with pytest.raises(CheckpointError, match=expected):
        resume(run)


# -- names -------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_renamed_to_a_later_step_is_refused(run: Path) -> None:
    later = (run / "checkpoints" / "step-00000008").rename(run / "checkpoints" / "step-00000099")
    expected = "is of step 99 by its name, of 8 by its manifest and of 8 by its state"
    with pytest.raises(CheckpointError, match=expected):
        verify_checkpoint(later)
    for read in (resume, load_run):
        with pytest.raises(CheckpointError, match=expected):
            read(run)


@pytest.mark.parametrize("step", [{"8": 8}, [8], "8", None])
def test_a_manifest_whose_step_is_no_number_is_refused(step: Any, run: Path) -> None:
    newest = run / "checkpoints" / "step-00000008"
    write_manifest(newest, "questlm-checkpoint", 1, {"step": step})
    with pytest.raises(CheckpointError, match="is of step 8 by its name"):
        verify_checkpoint(newest)


def test_only_well_formed_names_count_and_steps_are_numbers(tmp_path: Path) -> None:
    for name in ("step-00000012", "step-99999999", "step-100000000"):
        (tmp_path / name).mkdir()
    for name in ("step-13", "step-000000014", "step-00000015.bak", "step-0000001x", "step-٠٠٠٠٠٠٩٩", "step-"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-200000000").write_text("a file")
    assert [path.name for path in checkpoints_in(tmp_path)] == ["step-00000012", "step-99999999", "step-100000000"]
    assert latest_checkpoint(tmp_path) == tmp_path / "step-100000000"
    assert latest_checkpoint(tmp_path / "absent") is None


def test_a_folder_of_another_name_beside_the_checkpoints_is_left_alone(run: Path) -> None:
    shutil.copytree(run / "checkpoints" / "step-00000008", run / "checkpoints" / "step-00000099.old")
    assert resume(run).steps == 12
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["step-00000008", "step-00000012", "step-00000099.old"]
