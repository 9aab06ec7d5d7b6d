"""What the folders and logs of a sweep say of its runs: which are finished, how far the others are, why some failed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from questlm.config import RunConfig
from questlm.errors import CheckpointError
from questlm.records import PROGRESS_NAME, RECORD_NAME, RunProgress, RunRecord
from questlm.sweep.grid import PlannedRun
from questlm.training import RunFolder
from questlm.training.batches import keep_batches
from questlm.training.origin import continued
from questlm.training.plugins import require_plugins
from questlm.training.same_settings import require_same_config

__all__ = [
    "arguments_left",
    "estimated_speed",
    "forget_progress",
    "is_being_trained",
    "is_finished",
    "last_words",
    "log_file",
    "read_progress",
    "result",
    "work",
]

_END_OF_LOG = 4096


def is_finished(planned: PlannedRun, out: Path) -> bool:
    """Whether the run is there with its final metrics.

    Raises:
        CheckpointError: what is there was made with other settings or another state of a plugin, or is damaged.
    """
    folder = RunFolder(out / planned.name)
    if not folder.config_file.is_file():
        return False
    saved = folder.read_config()
    require_plugins(saved, folder.path)
    wanted = continued(_resolved(planned.config, saved), saved, folder.started_in(saved))
    require_same_config(saved.model_dump(mode="json"), wanted, folder.config_file)
    return (folder.path / RECORD_NAME).is_file() and RunRecord.load(folder.path).final is not None


def _resolved(config: RunConfig, saved: RunConfig) -> RunConfig:
    """`config` with the settings that the run `saved` chose when it began: vocabulary, amount of data, batch sizes."""
    model, data = config.model, config.data
    if model.vocab_size is None:
        model = model.model_copy(update={"vocab_size": saved.model.vocab_size})
    if data.source.startswith("hf:") and data.max_tokens is None:
        data = data.model_copy(update={"max_tokens": saved.data.max_tokens})
    return keep_batches(config.model_copy(update={"model": model, "data": data}), saved)


def is_being_trained(planned: PlannedRun, out: Path) -> bool:
    """Whether a process is training the run now, such as one that outlived its sweep."""
    folder = RunFolder(out / planned.name)
    if not folder.config_file.is_file():
        return False
    try:
        with folder.locked():
            return False
    except CheckpointError:
        return True


def arguments_left(planned: PlannedRun, out: Path) -> list[str]:
    """Arguments by which `quest train` begins the run, or goes on with it where it has begun."""
    folder = RunFolder(out / planned.name)
    if folder.config_file.is_file():
        return ["--resume", str(folder.path), *planned.plugins]
    return [*planned.arguments, "--out", str(folder.path), *planned.plugins]


def result(planned: PlannedRun, out: Path) -> RunProgress:
    """Validation loss and speed of a finished run."""
    record = RunRecord.load(out / planned.name)
    return RunProgress(1.0, record.final["loss"] if record.final else None, record.tokens_per_second, 0.0)


def read_progress(planned: PlannedRun, out: Path) -> RunProgress | None:
    """How far the run is by the file that training renews; None where there is none, or none that can be read.

    Only for showing and for the time left: results are read from records.
    """
    try:
        return RunProgress.load(out / planned.name)
    except CheckpointError:
        return None


def forget_progress(planned: PlannedRun, out: Path) -> None:
    """Delete the progress file that a killed process may have left of a run, which nobody trains now."""
    with suppress(OSError):
        (out / planned.name / PROGRESS_NAME).unlink(missing_ok=True)


def log_file(planned: PlannedRun, out: Path) -> Path:
    """File for all that the run's processes print."""
    return out / "logs" / f"{planned.name}.log"


def last_words(log: Path) -> str:
    """The last line of a log, in which a run says why it failed."""
    lines = _end(log).strip().splitlines()
    return lines[-1].removeprefix("quest: error: ") if lines else "it said nothing"


def estimated_speed(planned: PlannedRun, observed: Sequence[tuple[PlannedRun, float]]) -> float | None:
    """Tokens/s to expect of a run, by the speed of the observed run that is nearest in size, and of those in bits."""
    if not observed:
        return None
    size = _weights(planned)

    def distance(other: tuple[PlannedRun, float]) -> tuple[float, bool]:
        return abs(math.log(_weights(other[0]) / size)), other[0].config.quant != planned.config.quant

    nearest, speed = min(observed, key=distance)
    return speed * _weights(nearest) / size


def work(planned: PlannedRun) -> int:
    """Tokens times multiplied weights, which is about proportional to the time of a run; to order runs by."""
    return (planned.config.token_budget() or 0) * _weights(planned)


def _weights(planned: PlannedRun) -> int:
    """Weights that take part in a product for every token: the blocks and the head."""
    model = planned.config.model
    return model.block_parameters + model.hidden * (model.vocab_size or planned.config.data.vocab_size)


def _end(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _END_OF_LOG))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
