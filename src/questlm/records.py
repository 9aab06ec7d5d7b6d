"""The JSON that every run writes, and that reports, fits and plans read. No torch.

A record says everything needed to repeat a run and to compare it: resolved settings, versions, data, device, curve,
final metrics. Numbers are measured, never computed from what was hoped for.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, FailFast, Field, PlainValidator, TypeAdapter

from questlm.errors import CheckpointError, MissingDependencyError
from questlm.json_files import read_json, validated, write_json

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    "PROGRESS_NAME",
    "RECORD_NAME",
    "Checks",
    "Count",
    "Number",
    "Points",
    "RunProgress",
    "RunRecord",
    "Text",
    "Values",
    "package_version",
    "package_versions",
]

RECORD_NAME = "record.json"
PROGRESS_NAME = "progress.json"
_FORMAT = 1
_NEWER = {"initial_weights", "processes", "parallel", "recipe_inputs"}  # which the first records did not have
_MEASURED = ("loss", "perplexity", "tokens")


def _number(value: Any) -> float:
    """An integer or float as it is, so that it is written again as it was read."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e300:
        raise ValueError("it must be a finite number")
    return value


def _scalar(value: Any) -> Any:
    if value is None or (isinstance(value, str) and len(value) <= 10_000):
        return value
    return _number(value)


def _check(value: Any) -> Any:
    if not isinstance(value, dict):
        return _scalar(value)
    if len(value) > 10_000 or not all(isinstance(text, str) for item in value.items() for text in item):
        raise ValueError("it must be a number, a text, or texts by name")
    return {name: _scalar(each) for name, each in value.items()}


def _final(values: dict[str, float | None]) -> dict[str, float | None]:
    if any(values.get(name) is None for name in _MEASURED):
        raise ValueError(f"it must hold numbers for {', '.join(_MEASURED)}")
    return values


Count = Annotated[int, Field(strict=True, ge=0, le=10**18)]
"""A number of steps, tokens, bytes or processes, in a file that is validated when read."""

Number = Annotated[float, PlainValidator(_number)]
"""A finite number, likewise."""

Text = Annotated[str, Field(strict=True, max_length=10_000)]
"""A short text, likewise."""

Values = Annotated[dict[str, Annotated[Any, PlainValidator(_scalar)]], Field(max_length=1_000)]
"""Numbers and texts by name, likewise."""

Checks = Annotated[dict[str, Annotated[Any, PlainValidator(_check)]], Field(max_length=1_000)]
"""What the quantisation check measured, likewise: numbers and texts, and texts by the name of a layer."""

Points = Annotated[list[dict[str, Number]], FailFast()]
"""Points of a curve, likewise, each a value by name."""


@dataclass
class RunRecord:
    """One training run.

    Attributes:
        config: resolved settings, as `RunConfig.model_dump(mode="json")`.
        versions: Python, packages and the git commit of the source, where there is one.
        device: name of the processor or GPU trained on, of the first process.
        data: description, hash, hash of the validation tokens, sizes in tokens and bytes, and notes, one a line.
        parameters: {"all": ..., "non_embedding": ...}.
        curve: [{"step", "tokens", "loss", "lr", "grad_norm"}]; loss in nats a token, mean since the last entry.
        validations: [{"step", "tokens", "loss"}], on part of the validation split, during training.
        final: {"loss", "perplexity", "bits_per_byte", "text_bits_per_byte", "tokens"}, on all of it, in float32, or
            None until the end.
        steps, tokens, seconds: trained so far; seconds of training loop, validations and checkpoints included.
        tokens_per_second: tokens / seconds spent in training steps alone.
        peak_memory_bytes: of the device (CUDA) or the process (CPU); of several, the most.
        checks: what the quantisation check measured when the run began; a resumed run keeps it.
        initial_weights: SHA-256 of the weights that training began from (`init_from`), None for weights of its own.
        recipe_inputs: SHA-256 of what recipes read from outside the run, such as a teacher's weights, by setting.
        processes: how many trained it when the record was written.
        parallel: how they shared the model: 'none', 'ddp', 'replicas' or 'fsdp'.
    """

    config: dict[str, Any]
    versions: dict[str, Text]
    device: Text
    data: Values
    parameters: dict[str, Count]
    curve: Points = field(default_factory=list)
    validations: Points = field(default_factory=list)
    final: Annotated[dict[str, Number | None], AfterValidator(_final)] | None = None
    steps: Count = 0
    tokens: Count = 0
    seconds: Number = 0.0
    tokens_per_second: Number | None = None
    peak_memory_bytes: Count | None = None
    checks: Checks = field(default_factory=dict)
    initial_weights: Text | None = None
    recipe_inputs: dict[Text, Text] = field(default_factory=dict)
    processes: Count = 1
    parallel: Text = "none"
    format: Count = _FORMAT

    def save(self, run: Path) -> None:
        """Write `record.json` into the run folder, atomically."""
        write_json(run / RECORD_NAME, asdict(self))

    def to_pandas(self) -> DataFrame:
        """The curve and the validations as a table: a row a step, with the columns step, tokens, loss, lr, grad_norm
        and validation_loss; what was not measured at a step is NaN.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise MissingDependencyError("pandas", "pandas", "a table of a run") from None
        curve = pandas.DataFrame(self.curve, columns=["step", "tokens", "loss", "lr", "grad_norm"])
        validations = pandas.DataFrame(self.validations, columns=["step", "tokens", "loss"])
        validations = validations.rename(columns={"loss": "validation_loss"})
        table = curve.merge(validations, on=["step", "tokens"], how="outer").sort_values("step", ignore_index=True)
        measured = table.columns.drop(["step", "tokens"])
        return table.astype(dict.fromkeys(measured, "float64"))  # also where nothing was measured

    def is_poorer_than(self, other: RunRecord) -> bool:
        """Whether `other`, of the same run, has the final metrics and this has not, or else has come further."""
        if (self.final is None) != (other.final is None):
            return self.final is None
        return self.final is None and self.steps < other.steps

    @classmethod
    def load(cls, run: Path) -> RunRecord:
        """Read a run folder's record.

        Raises:
            CheckpointError: absent, damaged, of another format, or with a value of another type than it must be.
        """
        content = read_json(run / RECORD_NAME, CheckpointError)
        names = {item.name for item in fields(cls)}
        lacking = names - set(content) if isinstance(content, dict) else names
        known = isinstance(content, dict) and content.get("format") == _FORMAT and set(content) <= names
        if not known or lacking - _NEWER:
            raise CheckpointError(f"{run / RECORD_NAME} is not a run record of format {_FORMAT}")
        return validated(_RECORD, content, run / RECORD_NAME, CheckpointError)


_RECORD = TypeAdapter(RunRecord)


@dataclass(frozen=True)
class RunProgress:
    """How far a run is, for programs that watch it: `progress.json`, which is in the run folder while it trains.

    Attributes:
        share: of the budget that is spent, 0 to 1.
        loss: training loss in nats a token; of a finished run the validation loss; None before the first is known.
        tokens_per_second: speed of the training steps.
        seconds_left: estimate for the rest of the budget.
    """

    share: Annotated[Number, Field(ge=0, le=1)]
    loss: Number | None = None
    tokens_per_second: Number | None = None
    seconds_left: Number | None = None

    def save(self, run: Path) -> None:
        """Write `progress.json` into the run folder, atomically."""
        write_json(run / PROGRESS_NAME, asdict(self))

    @classmethod
    def load(cls, run: Path) -> RunProgress | None:
        """Read it from a run folder; None where the run has not begun to train, or has ended.

        Raises:
            CheckpointError: damaged.
        """
        path = run / PROGRESS_NAME
        if not path.is_file():
            return None
        try:
            return validated(_PROGRESS, read_json(path, CheckpointError), path, CheckpointError)
        except CheckpointError:
            if path.is_file():
                raise
            return None  # the run has ended meanwhile


_PROGRESS = TypeAdapter(RunProgress)


@cache
def package_versions() -> dict[str, str]:
    """Versions of Python, the packages that decide results, and the git commit this source was checked out at."""
    versions = {"python": sys.version.split()[0], "platform": platform.platform()}
    for package in ("questlm", "torch", "numpy", "tokenizers", "safetensors"):
        versions[package] = package_version(package)
    commit = _git_commit(Path(__file__).resolve().parents[2])
    if commit:
        versions["git"] = commit
    return versions


def package_version(package: str) -> str:
    """Version of an installed package; "unknown" where it is not installed, as questlm run from its source folder."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _git_commit(folder: Path) -> str | None:
    if not (folder / ".git").exists():  # an installed package lies in no checkout of ours
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
