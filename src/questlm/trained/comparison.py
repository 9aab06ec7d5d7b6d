"""Measure several models alike: one result for each, differences to the first, and the JSON of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from questlm.evaluation.accuracy import Estimate
from questlm.evaluation.strided import mean_bits_per_byte
from questlm.evaluation.task_result import TaskResult
from questlm.records import package_versions
from questlm.trained.evaluate import Measurement

__all__ = ["ModelResult", "comparison_json", "differences"]

_FORMAT = 1


@dataclass(frozen=True)
class ModelResult:
    """What was measured of one model.

    Attributes:
        model: its path.
        measurement: loss on a text, None where it was not measured.
        tasks: results by the name of the task.
    """

    model: str
    measurement: Measurement | None = None
    tasks: Mapping[str, TaskResult] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """All of it for a file."""
        found: dict[str, Any] = {"model": self.model}
        if (measured := self.measurement) is not None:
            found["loss"] = measured.as_dict() | {"gap": measured.gap}
            if measured.documents:
                mean = mean_bits_per_byte(measured.documents)
                found["mean_bits_per_byte"] = None if mean is None else mean._asdict()
                found["documents"] = [document._asdict() for document in measured.documents]
        if self.tasks:
            found["tasks"] = {name: result.as_json() for name, result in self.tasks.items()}
        return found


def differences(results: Sequence[ModelResult]) -> list[dict[str, dict[str, Estimate]]]:
    """Accuracies of each model but the first minus those of the first on the same items, by task and measure."""
    first, *others = results
    return [{name: result.differences(first.tasks[name]) for name, result in other.tasks.items()} for other in others]


def comparison_json(results: Sequence[ModelResult], device: str) -> dict[str, Any]:
    """The content of the file that `quest eval --out` writes."""
    pairs = zip(results[1:], differences(results), strict=True)
    return {
        "format": _FORMAT,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "versions": package_versions(),
        "models": [result.as_json() for result in results],
        "differences": [
            {
                "model": other.model,
                "minus": results[0].model,
                "tasks": {
                    name: {measure: estimate._asdict() for measure, estimate in measures.items()}
                    for name, measures in found.items()
                },
            }
            for other, found in pairs
            if found
        ],
    }
