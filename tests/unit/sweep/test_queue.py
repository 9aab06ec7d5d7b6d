"""The queue: what it starts, skips, tries again and ends, with a stand-in for the training."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from questlm.config import to_yaml
from questlm.errors import CheckpointError, ConfigError
from questlm.sweep import Cell, Slot, Stopped, Sweep
from questlm.sweep.queue import Item, locked
from questlm.sweep.runs import Progress, log_file, read_progress, work
from questlm.sweep.table import display, summary
from questlm.training import RunFolder

Cells = Callable[..., list[Cell]]


def _slots(count: int) -> list[Slot]:
    return [Slot(f"CPU {number}", {**os.environ, "SLOT": str(number)}) for number in range(count)]


def _sweep(cells: list[Cell], out: Path, slots: int = 2, retries: int = 1) -> Sweep:
    return Sweep(cells, out, _slots(slots), retries)


def _states(sweep: Sweep) -> list[str]:
    return [item.state for item in sweep.items]


def test_all_runs_are_made_then_all_are_skipped(tiny_cells: Cells, stand_in, tmp_path: Path) -> None:
    cells = tiny_cells()
    for cell in cells:
        stand_in.plan(cell)
    most = 0

    def watch(sweep: Sweep) -> None:
        nonlocal most
        most = max(most, len(sweep.of_state("running")))

    sweep = _sweep(cells, tmp_path / "out")
    sweep.run(watch)
    assert _states(sweep) == ["finished"] * 4
    assert most == 2
    assert all(item.progress == Progress(1.0, 1.25, 1000.0) for item in sweep.items)
    assert all(stand_in.seen(cell) == [[*cell.arguments, "--out", str(tmp_path / "out" / cell.name)]] for cell in cells)
    again = _sweep(cells, tmp_path / "out")
    again.run(lambda sweep: None)
    assert _states(again) == ["finished"] * 4
    assert all(len(stand_in.seen(cell)) == 1 for cell in cells)


def test_the_longest_run_goes_first_and_alone_until_the_data_is_there(
    tiny_cells: Cells, stand_in, tmp_path: Path
) -> None:
    cells = tiny_cells()
    for cell in cells:
        stand_in.plan(cell, sleeps=True)
    sweep = _sweep(cells, tmp_path / "out", slots=3)
    shown: list[list[str]] = []

    def watch(sweep: Sweep) -> None:
        running = [item.cell.name for item in sweep.of_state("running")]
        if running not in shown:
            shown.append(running)
        if len(running) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        sweep.run(watch)
    assert len(shown[0]) == 1
    assert work(next(c for c in cells if c.name == shown[0][0])) == max(work(cell) for cell in cells)
    assert len(shown[-1]) == 3


def test_a_run_that_fails_is_resumed_once_and_the_others_go_on(tiny_cells: Cells, stand_in, tmp_path: Path) -> None:
    unlucky, hopeless, *rest = cells = tiny_cells()
    stand_in.plan(unlucky, failures=1)
    stand_in.plan(hopeless, failures=5)
    for cell in rest:
        stand_in.plan(cell)
    sweep = _sweep(cells, tmp_path / "out")
    sweep.run(lambda sweep: None)
    assert _states(sweep) == ["finished", "failed", "finished", "finished"]
    assert [arguments[0] for arguments in stand_in.seen(unlucky)] == ["--preset", "--resume"]
    assert len(stand_in.seen(hopeless)) == 2
    assert sweep.items[1].problem == "exit code 1: no luck"


@pytest.mark.parametrize("retries", [0, 3])
def test_how_often_is_for_the_user_to_say(retries: int, tiny_cells: Cells, stand_in, tmp_path: Path) -> None:
    cell = tiny_cells()[0]
    stand_in.plan(cell, failures=9)
    _sweep([cell], tmp_path / "out", retries=retries).run(lambda sweep: None)
    assert len(stand_in.seen(cell)) == 1 + retries


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_children_and_they_save(
    number: signal.Signals, tiny_cells: Cells, stand_in, tmp_path: Path
) -> None:
    cells, out = tiny_cells(), tmp_path / "out"
    for cell in cells:
        stand_in.plan(cell, sleeps=True)

    def stop(sweep: Sweep) -> None:
        if sum((out / cell.name / "ready").exists() for cell in cells) == 2:
            os.kill(os.getpid(), number)

    sweep = _sweep(cells, out)
    with pytest.raises(Stopped, match=f"signal {int(number)}"):
        sweep.run(stop)
    assert sum((out / cell.name / "saved").exists() for cell in cells) == 2
    assert all(item.process is None or item.process.poll() is not None for item in sweep.items)


def test_a_run_of_other_settings_is_refused_before_anything_starts(tiny_cells: Cells, stand_in, tmp_path: Path) -> None:
    cells, out = tiny_cells(), tmp_path / "out"
    folder = out / cells[-1].name
    folder.mkdir(parents=True)
    other = cells[-1].config.model_copy(update={"seed": 5})
    (folder / "config.yaml").write_text(to_yaml(other))
    with pytest.raises(CheckpointError, match="seed = 5"):
        _sweep(cells, out).run(lambda sweep: None)
    assert not any(stand_in.seen(cell) for cell in cells)


def test_a_run_that_another_process_trains_is_waited_for(tiny_cells: Cells, stand_in, tmp_path: Path) -> None:
    cell, out = tiny_cells()[0], tmp_path / "out"
    stand_in.plan(cell)
    (out / cell.name).mkdir(parents=True)
    (out / cell.name / "config.yaml").write_text(to_yaml(cell.config))
    looks = 0

    def watch(sweep: Sweep) -> None:
        nonlocal looks
        looks += 1
        if looks == 5:
            assert _states(sweep) == ["waiting"]
            lock.__exit__(None, None, None)

    lock = RunFolder(out / cell.name).locked()
    lock.__enter__()
    sweep = _sweep([cell], out)
    sweep.run(watch)
    assert _states(sweep) == ["finished"]


def test_two_sweeps_do_not_share_a_folder(tiny_cells: Cells, tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(ConfigError, match="another sweep is at work"):
        _sweep(tiny_cells(), tmp_path).run(lambda sweep: None)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot make the folder"), locked(tmp_path / "file"):
        pass


def test_time_left_is_that_of_the_slots_or_of_the_longest_run(tiny_cells: Cells, tmp_path: Path) -> None:
    short, long = tiny_cells(bits=[16])
    tokens = [cell.config.token_budget() or 0 for cell in (short, long)]
    sweep = _sweep([short, long], tmp_path)
    assert sweep.seconds_left() is None
    sweep.items[0] = Item(short, "running", progress=Progress(0.5, 2.0, 100.0))
    assert sweep.seconds_left() == pytest.approx(tokens[1] / 100)  # it alone is longer than half of both
    sweep.slots = _slots(1)
    assert sweep.seconds_left() == pytest.approx((0.5 * tokens[0] + tokens[1]) / 100)
    sweep.items[0] = Item(short, "finished", progress=Progress(1.0, 2.0, 100.0), overhead=7.0)
    assert sweep.seconds_left() == pytest.approx(tokens[1] / 100 + 7)


def test_progress_is_read_from_what_training_prints(
    tiny_cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from questlm.progress import progress

    monkeypatch.setattr("questlm.progress._SECONDS_BETWEEN_LINES", 0.0)
    with progress("tokenising text", 1.0) as update:
        update(0.9, "0.5 M tokens")
    with progress("training", 1.0) as update:
        update(0.25, "loss 3.125  12,345 tokens/s")  # the words of Trainer._status
        update(0.5, "loss 2.125  12,346 tokens/s")
    log = tmp_path / "log"
    assert read_progress(log) is None
    log.write_text(capsys.readouterr().err)
    assert read_progress(log) == Progress(0.5, 2.125, 12346.0)


def test_without_a_terminal_every_change_is_a_line(
    tiny_cells: Cells, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tiny_cells(bits=[4])
    sweep = _sweep([first, second], tmp_path)
    with display() as show:
        show(sweep)
        sweep.items[0] = Item(first, "running", attempts=1, slot=_slots(1)[0])
        show(sweep)
        show(sweep)
        sweep.items[0] = Item(first, "finished", attempts=1, progress=Progress(1.0, 2.5, 1234.0))
        sweep.items[1] = Item(second, "failed", attempts=2, problem="exit code 2: no luck")
        show(sweep)
    assert capsys.readouterr().err.splitlines() == [
        "0 of 2 runs finished, 2 waiting",
        f"{first.name}: running on CPU 0",
        f"{first.name}: finished, loss 2.500, 1,234 tokens/s",
        f"{second.name}: failed (exit code 2: no luck)",
        "1 of 2 runs finished, 1 failed",
    ]
    assert summary(sweep) == "1 of 2 runs finished, 1 failed"


def test_a_log_is_kept_for_every_run(tiny_cells: Cells, stand_in, tmp_path: Path) -> None:
    cell = tiny_cells()[0]
    stand_in.plan(cell, failures=1)
    _sweep([cell], tmp_path).run(lambda sweep: None)
    assert "no luck" in log_file(cell, tmp_path).read_text()
