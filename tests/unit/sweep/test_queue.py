"""The queue: what it starts, skips, tries again and ends, with a stand-in for the training."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from questlm.config import to_yaml
from questlm.errors import CheckpointError, ConfigError
from questlm.records import RunProgress
from questlm.sweep import PlannedRun, Slot, Stopped, Sweep
from questlm.sweep.queue import QueuedRun, locked
from questlm.sweep.runs import log_file, read_progress, work
from questlm.sweep.table import display, summary
from questlm.training import RunFolder

PlanRuns = Callable[..., list[PlannedRun]]


def _slots(count: int) -> list[Slot]:
    return [Slot(f"CPU {number}", {**os.environ, "SLOT": str(number)}) for number in range(count)]


def _sweep(runs: list[PlannedRun], out: Path, slots: int = 2, retries: int = 1) -> Sweep:
    return Sweep(runs, out, _slots(slots), retries)


def _states(sweep: Sweep) -> list[str]:
    return [item.state for item in sweep.items]


def test_all_runs_are_made_then_all_are_skipped(tiny_runs: PlanRuns, stand_in, tmp_path: Path) -> None:
    runs = tiny_runs()
    for planned in runs:
        stand_in.plan(planned)
    most = 0

    def watch(sweep: Sweep) -> None:
        nonlocal most
        most = max(most, len(sweep.of_state("running")))

    sweep = _sweep(runs, tmp_path / "out")
    sweep.run(watch)
    assert _states(sweep) == ["finished"] * 4
    assert most == 2
    assert all(item.progress == RunProgress(1.0, 1.25, 1000.0, 0.0) for item in sweep.items)
    assert all(
        stand_in.seen(planned) == [[*planned.arguments, "--out", str(tmp_path / "out" / planned.name)]]
        for planned in runs
    )
    again = _sweep(runs, tmp_path / "out")
    again.run(lambda sweep: None)
    assert _states(again) == ["finished"] * 4
    assert all(len(stand_in.seen(planned)) == 1 for planned in runs)


def test_the_longest_run_goes_first_and_alone_until_the_data_is_there(
    tiny_runs: PlanRuns, stand_in, tmp_path: Path
) -> None:
    runs = tiny_runs()
    for planned in runs:
        stand_in.plan(planned, sleeps=True)
    sweep = _sweep(runs, tmp_path / "out", slots=3)
    shown: list[list[str]] = []

    def watch(sweep: Sweep) -> None:
        running = [item.planned.name for item in sweep.of_state("running")]
        if running not in shown:
            shown.append(running)
        if len(running) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        sweep.run(watch)
    assert len(shown[0]) == 1
    assert work(next(c for c in runs if c.name == shown[0][0])) == max(work(planned) for planned in runs)
    assert len(shown[-1]) == 3


def test_a_run_that_fails_is_resumed_once_and_the_others_go_on(tiny_runs: PlanRuns, stand_in, tmp_path: Path) -> None:
    unlucky, hopeless, *rest = runs = tiny_runs()
    stand_in.plan(unlucky, failures=1)
    stand_in.plan(hopeless, failures=5)
    for planned in rest:
        stand_in.plan(planned)
    sweep = _sweep(runs, tmp_path / "out")
    sweep.run(lambda sweep: None)
    assert _states(sweep) == ["finished", "failed", "finished", "finished"]
    assert [arguments[0] for arguments in stand_in.seen(unlucky)] == ["--preset", "--resume"]
    assert len(stand_in.seen(hopeless)) == 2
    assert sweep.items[1].problem == "exit code 1: no luck"


@pytest.mark.parametrize("retries", [0, 3])
def test_how_often_is_for_the_user_to_say(retries: int, tiny_runs: PlanRuns, stand_in, tmp_path: Path) -> None:
    planned = tiny_runs()[0]
    stand_in.plan(planned, failures=9)
    _sweep([planned], tmp_path / "out", retries=retries).run(lambda sweep: None)
    assert len(stand_in.seen(planned)) == 1 + retries


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_children_and_they_save(
    number: signal.Signals, tiny_runs: PlanRuns, stand_in, tmp_path: Path
) -> None:
    runs, out = tiny_runs(), tmp_path / "out"
    for planned in runs:
        stand_in.plan(planned, sleeps=True)

    def stop(sweep: Sweep) -> None:
        if sum((out / planned.name / "ready").exists() for planned in runs) == 2:
            os.kill(os.getpid(), number)

    sweep = _sweep(runs, out)
    with pytest.raises(Stopped, match=f"signal {int(number)}"):
        sweep.run(stop)
    assert sum((out / planned.name / "saved").exists() for planned in runs) == 2
    assert all(item.process is None or item.process.poll() is not None for item in sweep.items)


def test_a_run_of_other_settings_is_refused_before_anything_starts(
    tiny_runs: PlanRuns, stand_in, tmp_path: Path
) -> None:
    runs, out = tiny_runs(), tmp_path / "out"
    folder = out / runs[-1].name
    folder.mkdir(parents=True)
    other = runs[-1].config.model_copy(update={"seed": 5})
    (folder / "config.yaml").write_text(to_yaml(other))
    with pytest.raises(CheckpointError, match="seed = 5"):
        _sweep(runs, out).run(lambda sweep: None)
    assert not any(stand_in.seen(planned) for planned in runs)


def test_a_run_that_another_process_trains_is_waited_for(tiny_runs: PlanRuns, stand_in, tmp_path: Path) -> None:
    planned, out = tiny_runs()[0], tmp_path / "out"
    stand_in.plan(planned)
    (out / planned.name).mkdir(parents=True)
    (out / planned.name / "config.yaml").write_text(to_yaml(planned.config))
    looks = 0

    def watch(sweep: Sweep) -> None:
        nonlocal looks
        looks += 1
        if looks == 5:
            assert _states(sweep) == ["waiting"]
            lock.__exit__(None, None, None)

    lock = RunFolder(out / planned.name).locked()
    lock.__enter__()
    sweep = _sweep([planned], out)
    sweep.run(watch)
    assert _states(sweep) == ["finished"]


def test_two_sweeps_do_not_share_a_folder(tiny_runs: PlanRuns, tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(ConfigError, match="another sweep is at work"):
        _sweep(tiny_runs(), tmp_path).run(lambda sweep: None)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot make the folder"), locked(tmp_path / "file"):
        pass


def test_time_left_is_that_of_the_slots_or_of_the_longest_run(tiny_runs: PlanRuns, tmp_path: Path) -> None:
    short, long = tiny_runs(bits=[16])
    tokens = [planned.config.token_budget() or 0 for planned in (short, long)]
    sweep = _sweep([short, long], tmp_path)
    assert sweep.seconds_left() is None
    sweep.items[0] = QueuedRun(short, "running", progress=RunProgress(0.5, 2.0, 100.0))
    assert sweep.seconds_left() == pytest.approx(tokens[1] / 100)  # it alone is longer than half of both
    sweep.slots = _slots(1)
    assert sweep.seconds_left() == pytest.approx((0.5 * tokens[0] + tokens[1]) / 100)
    sweep.items[0] = QueuedRun(short, "finished", progress=RunProgress(1.0, 2.0, 100.0), overhead=7.0)
    assert sweep.seconds_left() == pytest.approx(tokens[1] / 100 + 7)


def test_progress_is_read_from_the_file_that_training_renews(tiny_runs: PlanRuns, tmp_path: Path) -> None:
    planned = tiny_runs()[0]
    assert read_progress(planned, tmp_path) is None
    (tmp_path / planned.name).mkdir()
    assert read_progress(planned, tmp_path) is None
    RunProgress(0.5, 2.125, 12346.0, 30.0).save(tmp_path / planned.name)
    assert read_progress(planned, tmp_path) == RunProgress(0.5, 2.125, 12346.0, 30.0)
    (tmp_path / planned.name / "progress.json").write_text("{")
    assert read_progress(planned, tmp_path) is None


def test_what_a_killed_process_told_of_its_progress_is_not_that_of_the_next(
    tiny_runs: PlanRuns, stand_in, tmp_path: Path
) -> None:
    planned, out, looks = tiny_runs()[0], tmp_path / "out", 0
    stand_in.plan(planned, sleeps=True)
    folder = out / planned.name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(planned.config))
    RunProgress(0.75, 2.0, 100.0, 60.0).save(folder)
    shown = []

    def watch(sweep: Sweep) -> None:
        nonlocal looks
        looks += 1
        shown.append(sweep.items[0].progress)
        if looks > 3 and (folder / "ready").exists():
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        _sweep([planned], out).run(watch)
    assert set(shown) == {None}


def test_the_time_left_that_a_run_tells_is_believed(tiny_runs: PlanRuns, tmp_path: Path) -> None:
    (planned, _) = tiny_runs(bits=[16])
    sweep = _sweep([planned], tmp_path)
    sweep.items[0] = QueuedRun(planned, "running", progress=RunProgress(0.5, 2.0, 100.0, 77.0))
    assert sweep.seconds_left() == 77.0


def test_without_a_terminal_every_change_is_a_line(
    tiny_runs: PlanRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tiny_runs(bits=[4])
    sweep = _sweep([first, second], tmp_path)
    with display() as show:
        show(sweep)
        sweep.items[0] = QueuedRun(first, "running", attempts=1, slot=_slots(1)[0])
        show(sweep)
        show(sweep)
        sweep.items[0] = QueuedRun(first, "finished", attempts=1, progress=RunProgress(1.0, 2.5, 1234.0))
        sweep.items[1] = QueuedRun(second, "failed", attempts=2, problem="exit code 2: no luck")
        show(sweep)
    assert capsys.readouterr().err.splitlines() == [
        "0 of 2 runs finished, 2 waiting",
        f"{first.name}: running on CPU 0",
        f"{first.name}: finished, loss 2.500, 1,234 tokens/s",
        f"{second.name}: failed (exit code 2: no luck)",
        "1 of 2 runs finished, 1 failed",
    ]
    assert summary(sweep) == "1 of 2 runs finished, 1 failed"


def test_a_log_is_kept_for_every_run(tiny_runs: PlanRuns, stand_in, tmp_path: Path) -> None:
    planned = tiny_runs()[0]
    stand_in.plan(planned, failures=1)
    _sweep([planned], tmp_path).run(lambda sweep: None)
    assert "no luck" in log_file(planned, tmp_path).read_text()
