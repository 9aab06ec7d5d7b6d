"""The figure of runs' losses holds what their records hold."""

from __future__ import annotations

from typing import Any

import pytest

from questlm.errors import ConfigError
from questlm.records import RunRecord
from questlm.report import loss_figure


def record(**changes: Any) -> RunRecord:
    fields: dict[str, Any] = {"config": {}, "versions": {}, "device": "a CPU", "data": {}, "parameters": {}}
    return RunRecord(**fields | changes)


def test_each_run_has_a_line_and_marks_and_a_name() -> None:
    curve = [{"step": s, "tokens": 10 * s, "loss": 5 - s, "lr": 0.1, "grad_norm": 1.0} for s in (1, 2, 3)]
    validations = [{"step": 2, "tokens": 20, "loss": 3.5}]
    figure = loss_figure({"w4a4": record(curve=curve, validations=validations), "bf16": record(curve=curve[:2])})
    (axis,) = figure.axes
    assert [line.get_xydata().tolist() for line in axis.lines[:2]] == [[[10, 4], [20, 3], [30, 2]], [[20, 3.5]]]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["w4a4", "bf16"]
    assert axis.lines[0].get_color() != axis.lines[2].get_color()
    with pytest.raises(ConfigError, match="no run has recorded a loss yet"):
        loss_figure({"new": record()})
