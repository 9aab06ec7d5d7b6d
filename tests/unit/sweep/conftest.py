"""A grid of tiny runs, and a stand-in for `quest train` that makes them in no time."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from questlm.config import to_yaml
from questlm.records import RunRecord
from questlm.sweep import PlannedRun, SweepGrid, plan_runs

TINY = {
    "model.layers": 1,
    "model.hidden": 32,
    "model.heads": 2,
    "model.mlp_hidden": 64,
    "model.vocab_size": 300,
    "train.device": "cpu",
}

# Does what NAME.json beside it says of a run: what to say, what to leave in the run folder, how to end.
_STAND_IN = """
import json, pathlib, signal, sys, time
arguments = sys.argv[1:]
run = pathlib.Path(arguments[-1])
plans = pathlib.Path(__file__).parent / f"{run.name}.json"
plan = json.loads(plans.read_text())
with open(plans.with_suffix(".seen"), "a") as seen:
    seen.write(json.dumps(arguments) + chr(10))
run.mkdir(parents=True, exist_ok=True)
(run / "config.yaml").write_text(plan["config"])
if plan["sleeps"]:
    def leave(number, frame):
        (run / "saved").touch()
        sys.exit(143)
    signal.signal(signal.SIGTERM, leave)
    (run / "ready").touch()
    time.sleep(60)
if plan["failures"]:
    plans.write_text(json.dumps(plan | {"failures": plan["failures"] - 1}))
    sys.exit("quest: error: no luck")
(run / "record.json").write_text(json.dumps(plan["record"]))
"""


class StandIn:
    """Plans for the stand-in, and what it was asked to do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "train.py").write_text(_STAND_IN)

    def plan(self, planned: PlannedRun, *, failures: int = 0, sleeps: bool = False) -> None:
        """How a planned run goes: so many fail, or the process waits for a signal."""
        plan = {
            "config": to_yaml(planned.config),
            "record": asdict(finished_record(planned)),
            "failures": failures,
            "sleeps": sleeps,
        }
        (self.folder / f"{planned.name}.json").write_text(json.dumps(plan))

    def seen(self, planned: PlannedRun) -> list[list[str]]:
        """Arguments of every process that was started for a planned."""
        file = self.folder / f"{planned.name}.seen"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def finished_record(planned: PlannedRun) -> RunRecord:
    """The record of a run that reached the end."""
    return RunRecord(
        config=planned.config.model_dump(mode="json"),
        versions={},
        device="none",
        data={},
        parameters={},
        final={"loss": 1.25, "perplexity": 3.5, "bits_per_byte": 0.5, "tokens": 10},
        tokens_per_second=1000.0,
    )


@pytest.fixture
def tiny_runs() -> Callable[..., list[PlannedRun]]:
    """PlanRuns of a grid of tiny runs, with keys changed as named."""

    def make(**keys: Any) -> list[PlannedRun]:
        base: dict[str, Any] = {"sizes": ["125k"], "bits": [16, 4], "tokens_per_parameter": [1, 2], "set": TINY}
        return plan_runs(SweepGrid(**base | keys))

    return make


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """In the place of `quest train`, for the length of a test."""
    folder = tmp_path / "stand-in"
    folder.mkdir()
    monkeypatch.setattr("questlm.sweep.queue._TRAIN", (sys.executable, "-S", str(folder / "train.py")))
    monkeypatch.setattr("questlm.sweep.queue._SECONDS_BETWEEN_LOOKS", 0.02)
    return StandIn(folder)
