"""What is known of a grid's runs: from their folders what is done, and from their logs how those that run get on."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from questlm.config import RunConfig
from questlm.errors import CheckpointError
from questlm.records import RECORD_NAME, RunRecord
from questlm.sweep.grid import Cell
from questlm.training import RunFolder
from questlm.training.batches import keep_batches
from questlm.training.origin import continued
from questlm.training.plugins import require_plugins
from questlm.training.same_settings import require_same_config

__all__ = [
    "Progress",
    "arguments_left",
    "estimated_speed",
    "is_finished",
    "is_held",
    "last_words",
    "log_file",
    "read_progress",
    "result",
    "work",
]

_END_OF_LOG = 4096
_TRAINING = re.compile(
    r"^training: (?P<share>\d+)%.*? loss (?P<loss>\d+\.\d+)  (?P<speed>[\d,]+) tokens/s", re.MULTILINE
)


@dataclass(frozen=True)
class Progress:
    """How far a run is: share of its budget, loss in nats a token (validation once finished), training tokens/s."""

    share: float
    loss: float | None
    tokens_per_second: float | None


def is_finished(cell: Cell, out: Path) -> bool:
    """Whether the run is there with its final metrics.

    Raises:
        CheckpointError: what is there was made with other settings or another state of a plugin, or is damaged.
    """
    folder = RunFolder(out / cell.name)
    if not folder.config_file.is_file():
        return False
    saved = folder.read_config()
    require_plugins(saved, folder.path)
    wanted = continued(_resolved(cell.config, saved), saved, folder.started_in(saved))
    require_same_config(saved.model_dump(mode="json"), wanted, folder.config_file)
    return (folder.path / RECORD_NAME).is_file() and RunRecord.load(folder.path).final is not None


def _resolved(config: RunConfig, saved: RunConfig) -> RunConfig:
    """`config` with what a run fills in when it begins, from its data and by the memory there is."""
    model, data = config.model, config.data
    if model.vocab_size is None:
        model = model.model_copy(update={"vocab_size": saved.model.vocab_size})
    if data.source.startswith("hf:") and data.max_tokens is None:
        data = data.model_copy(update={"max_tokens": saved.data.max_tokens})
    return keep_batches(config.model_copy(update={"model": model, "data": data}), saved)


def is_held(cell: Cell, out: Path) -> bool:
    """Whether some process trains the run now, such as one whose sweep was killed outright."""
    folder = RunFolder(out / cell.name)
    if not folder.config_file.is_file():
        return False
    try:
        with folder.locked():
            return False
    except CheckpointError:
        return True


def arguments_left(cell: Cell, out: Path) -> list[str]:
    """Arguments by which `quest train` begins the run, or goes on with it where it has begun."""
    folder = RunFolder(out / cell.name)
    if folder.config_file.is_file():
        return ["--resume", str(folder.path), *cell.plugins]
    return [*cell.arguments, "--out", str(folder.path), *cell.plugins]


def result(cell: Cell, out: Path) -> Progress:
    """Of a finished run: its validation loss and speed."""
    record = RunRecord.load(out / cell.name)
    return Progress(1.0, record.final["loss"] if record.final else None, record.tokens_per_second)


def log_file(cell: Cell, out: Path) -> Path:
    """File for all that the run's processes print."""
    return out / "logs" / f"{cell.name}.log"


def read_progress(log: Path) -> Progress | None:
    """The last line of `questlm.progress` in the log of a run, or None where training has not spoken yet.

    Only for showing and for the time left: results are read from records.
    """
    lines = list(_TRAINING.finditer(_end(log)))
    if not lines:
        return None
    share, loss, speed = lines[-1].group("share", "loss", "speed")
    return Progress(int(share) / 100, float(loss), float(speed.replace(",", "")))


def last_words(log: Path) -> str:
    """The last line of a log: why a run failed."""
    lines = _end(log).strip().splitlines()
    return lines[-1].removeprefix("quest: error: ") if lines else "it said nothing"


def estimated_speed(cell: Cell, observed: Sequence[tuple[Cell, float]]) -> float | None:
    """Tokens/s to expect of a run, from those of the run observed that is nearest in size, and then in bits."""
    if not observed:
        return None
    size = _weights(cell)

    def distance(other: tuple[Cell, float]) -> tuple[float, bool]:
        return abs(math.log(_weights(other[0]) / size)), other[0].config.quant != cell.config.quant

    nearest, speed = min(observed, key=distance)
    return speed * _weights(nearest) / size


def work(cell: Cell) -> int:
    """Tokens times weights in a product: proportional to the arithmetic of a run, near enough to order runs by."""
    return (cell.config.token_budget() or 0) * _weights(cell)


def _weights(cell: Cell) -> int:
    """Weights that take part in a product for every token: the blocks and the head."""
    model = cell.config.model
    return model.block_parameters + model.hidden * (model.vocab_size or cell.config.data.vocab_size)


def _end(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _END_OF_LOG))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
