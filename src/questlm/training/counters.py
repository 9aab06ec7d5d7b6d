"""The counters of a run, and the file `state.json` of a checkpoint: typed values, checked before anything is used."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter

from questlm.errors import CheckpointError
from questlm.json_files import canonical_json, read_json, validated
from questlm.records import Checks, Count, Number, Points, Text

__all__ = ["STATE_NAME", "CheckpointState", "Counters", "read_state"]

STATE_NAME = "state.json"

_Whole = Annotated[int, Field(strict=True, ge=0, lt=2**63)]


@dataclass
class Counters:
    """How far a run has come, and what its record says of the way.

    Attributes:
        step, tokens: trained so far.
        seconds: of the training loop, validations and checkpoints included.
        step_seconds: of `seconds`, those spent in training steps.
        recent_losses: of the steps since the last point of the curve, nats a token.
        curve, validations: see `RunRecord`.
        initial_weights: SHA-256 of the weights that the run began from, for its record.
        checks: what the quantisation check measured when the run began, for its record.
        recipe_inputs: SHA-256 of what recipes read from outside the run, by setting.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    step: Count = 0
    tokens: Count = 0
    seconds: Number = 0.0
    step_seconds: Number = 0.0
    recent_losses: list[Number] = field(default_factory=list)
    curve: Points = field(default_factory=list)
    validations: Points = field(default_factory=list)
    initial_weights: Text | None = None
    checks: Checks = field(default_factory=dict)
    recipe_inputs: dict[Text, Text] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of the training steps alone; None before the first."""
        return self.tokens / self.step_seconds if self.step_seconds > 0 else None

    @property
    def last_loss(self) -> float | None:
        """Training loss of the newest step that is known, or of the last point of the curve; None before both."""
        if self.recent_losses:
            return self.recent_losses[-1]
        return self.curve[-1]["loss"] if self.curve else None


@dataclass(frozen=True)
class CheckpointState:
    """The content of a checkpoint's `state.json`.

    Attributes:
        config: settings, as `RunConfig.model_dump(mode="json")`; `require_same_config` validates them.
        data_hash: of the tokens trained on.
        loader: position of the loader, see `WindowLoader.state_dict`.
        progress: counters.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    config: dict[str, Any]
    data_hash: Text
    loader: dict[str, _Whole]
    progress: Counters

    def to_json(self) -> str:
        """The file's content."""
        return canonical_json(asdict(self))


_STATE = TypeAdapter(CheckpointState)
_REQUIRED = {item.name for item in fields(Counters)} - {"checks", "recipe_inputs"}  # which older checkpoints lack


def read_state(checkpoint: Path) -> CheckpointState:
    """The state of the checkpoint in this folder.

    Raises:
        CheckpointError: damaged, or a value of another type than it must be.
    """
    path = checkpoint / STATE_NAME
    content = read_json(path, CheckpointError)
    state = validated(_STATE, content, path, CheckpointError)
    lacking = _REQUIRED - set(content["progress"])
    if lacking:  # what a run begins with, `Counters()`, is not what a checkpoint may leave out
        raise CheckpointError(f"{path} lacks progress.{min(lacking)}; it is damaged")
    return state
