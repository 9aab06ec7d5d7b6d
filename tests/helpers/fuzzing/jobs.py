"""Work that a kill may interrupt, begun and continued by the same call: tokenise, train, pack, sweep, report."""

from __future__ import annotations

import hashlib
import json
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from helpers.fuzzing.formats.data import DOCUMENTS
from questlm.config import DataConfig, load_config, to_yaml
from questlm.records import RunRecord
from questlm.training.checkpoint import latest_checkpoint

__all__ = ["JOBS", "Job"]

_DATA: dict[str, Any] = {"source": "text.txt", "vocab_size": 300, "val_fraction": 0.1}
_MODEL: dict[str, Any] = {"layers": 1, "hidden": 32, "heads": 2, "mlp_hidden": 64}
_TRAIN: dict[str, Any] = {
    "seq_len": 32,
    "batch_size": 2,
    "checkpoint_every": 3,
    "log_every": 2,
    "keep_checkpoints": 2,
    "device": "cpu",
}


class Job(ABC):
    """One kind of work, in a folder."""

    name: ClassVar[str]
    longest_delay: ClassVar[float] = 0.01
    """Between a change to files and a kill, in seconds."""

    def prepare(self, folder: Path) -> None:
        """Write what the work begins from into the empty folder."""
        (folder / "text.txt").write_text("\n<|endoftext|>\n".join(DOCUMENTS))

    @abstractmethod
    def run(self, folder: Path) -> int:
        """Do what is left of the work, in the working folder `folder`; return the exit code, or exit with it."""

    @abstractmethod
    def outcome(self, folder: Path) -> Any:
        """What must be the same however often the work was interrupted."""


def _quest(*words: str) -> int:
    """Run `quest WORDS...`, which exits."""
    from questlm.cli.main import main

    sys.argv = ["quest", *words]
    main()
    return 0


def _config_file(folder: Path, **train: int) -> None:
    sections = {"model": _MODEL, "data": _DATA, "train": _TRAIN | train, "budget": {"tokens": 12 * 2 * 32}}
    (folder / "settings.yaml").write_text(to_yaml(load_config(flags=sections)))


def _weights(run: Path) -> str:
    newest = latest_checkpoint(run / "checkpoints")
    assert newest is not None, f"{run} has no checkpoint"
    return hashlib.sha256((newest / "model.safetensors").read_bytes()).hexdigest()


def _results(run: Path) -> Any:
    record = RunRecord.load(run)
    return _weights(run), record.curve, record.final


def _bytes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class Tokenise(Job):
    """Train a tokenizer and make tokens, into the cache."""

    name = "tokenise"

    def run(self, folder: Path) -> int:
        from questlm.data import prepare

        prepare(DataConfig(**_DATA))
        return 0

    def outcome(self, folder: Path) -> Any:
        return _bytes(folder / "cache")


class Train(Job):
    """Train, or go on where the run folder is there."""

    name = "train"

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        _config_file(folder)

    def run(self, folder: Path) -> int:
        if (folder / "run" / "config.yaml").exists():
            return _quest("train", "--resume", "run")
        return _quest("train", "--config", "settings.yaml", "--out", "run")

    def outcome(self, folder: Path) -> Any:
        return _results(folder / "run")


class Pack(Job):
    """Pack a finished run."""

    name = "pack"

    def prepare(self, folder: Path) -> None:
        from questlm.training import train

        super().prepare(folder)
        sections = {
            "model": _MODEL,
            "data": _DATA | {"source": str(folder / "text.txt")},
            "train": {**_TRAIN, "optimizer": "adamw"},
        }
        sections["data"]["cache_dir"] = str(folder / "cache")
        train(load_config(flags=sections | {"budget": {"tokens": 12 * 2 * 32}}), folder / "run")

    def run(self, folder: Path) -> int:
        if (folder / "packed").exists():  # it was finished before the kill
            return 0
        return _quest("pack", "run", "--out", "packed")

    def outcome(self, folder: Path) -> Any:
        from questlm.inference import load

        load(folder / "packed")
        return _bytes(folder / "packed")


class Report(Job):
    """Write the page about some rows."""

    name = "report"

    def prepare(self, folder: Path) -> None:
        row = {"w_bits": 4, "a_bits": 4, "format": "int4", "method": "quest", "D": 10**8}
        (folder / "rows.json").write_text(json.dumps([row | {"N": n * 10**6, "loss": 4 - n / 10} for n in (1, 2, 3)]))

    def run(self, folder: Path) -> int:
        return _quest("report", "rows.json", "--out", "page.html")

    def outcome(self, folder: Path) -> Any:
        return sorted(_bytes(folder)), (folder / "page.html").stat().st_size


class Sweep(Job):
    """Two runs of a grid, each in a process of its own."""

    name = "sweep"
    longest_delay = 8.0  # its runs are processes of their own, whose changes are not seen

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        grid = {"sizes": ["125k"], "bits": [4, 16], "tokens_per_parameter": [0.05]}
        fixed = {"model": _MODEL, "data": _DATA, "train": {**_TRAIN, "optimizer": "adamw"}}
        (folder / "grid.yaml").write_text(json.dumps(grid | {"set": fixed}))  # JSON is YAML

    def run(self, folder: Path) -> int:
        return _quest("sweep", str(folder / "grid.yaml"), "--out", str(folder / "out"), "--jobs", "1")

    def outcome(self, folder: Path) -> Any:
        return {run.name: _results(run) for run in sorted((folder / "out").glob("125k-*"))}


JOBS: dict[str, Job] = {kind.name: kind() for kind in (Tokenise, Train, Pack, Report, Sweep)}
"""By name."""
