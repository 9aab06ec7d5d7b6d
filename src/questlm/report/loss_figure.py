"""The losses of runs while they trained, as one matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from questlm.errors import ConfigError
from questlm.humanize import count_text
from questlm.plotting import COLORS, drawing, log_axis
from questlm.records import RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["loss_figure"]


def loss_figure(records: Mapping[str, RunRecord]) -> Figure:
    """Loss in nats a token over tokens: training as a line, validation as marks, each run in its own colour.

    Args:
        records: by the name that the legend gives each.

    Raises:
        ConfigError: no record has a curve.
        MissingDependencyError: matplotlib is not installed.
    """
    if not any(record.curve for record in records.values()):
        raise ConfigError("no run has recorded a loss yet; there is nothing to draw")
    with drawing(7, 4.2) as figure:
        axis = figure.subplots()
        for number, (name, record) in enumerate(records.items()):
            color = COLORS[number % len(COLORS)]
            axis.plot(*_points(record.curve), color=color, label=name)
            axis.plot(*_points(record.validations), color=color, marker="o", linestyle="")
        axis.set_title("Loss while training; marks: validation")
        axis.set_xlabel("tokens")
        axis.set_ylabel("nats a token")
        log_axis(axis, 6, count_text)
        axis.legend()
    return figure


def _points(points: list[dict[str, float]]) -> tuple[list[float], list[float]]:
    return [point["tokens"] for point in points], [point["loss"] for point in points]
