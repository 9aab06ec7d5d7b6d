from __future__ import annotations

from pathlib import Path

import pytest

from questlm.bench.picture import draw_speed
from questlm.bench.timing import Comparison, SpeedReport
from questlm.errors import ConfigError
from questlm.plotting import LIGHT


def _report() -> SpeedReport:
    found = [
        Comparison("a", "q", shape, bits, batch, 3, 1e-6, 2e-6, 2.0, 1.5, 2.5)
        for shape in ("4 x 4", "8 x 4")
        for bits in ("W4A4", "WtAt")
        for batch in (1, 8)
    ]
    return SpeedReport("layer", "a CPU", 2, {"torch": "2"}, tuple(found))


def test_a_line_for_each_shape_and_width_in_the_colour_of_its_bits(tmp_path: Path) -> None:
    draw_speed(_report(), tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    for label in ("W4A4: q, 4 x 4", "WtAt: q, 8 x 4", "rows of the input", "times as fast as float32", "a CPU"):
        assert label in text
    assert LIGHT["bits-4"] in text and LIGHT["bits-t"] in text


def test_a_name_of_no_known_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no known file type"):
        draw_speed(_report(), tmp_path / "a.bmp")
