from __future__ import annotations

from pathlib import Path

import pytest

from questlm.artifact.format import GridConfig, WeightFormat
from questlm.bench import layer_speed
from questlm.bench.layers import bits_text
from questlm.errors import ConfigError


def test_every_shape_and_format_is_timed_at_every_batch(packed: Path) -> None:
    report = layer_speed([packed], [1, 3], seconds=0.01)
    found = [(each.artifact, each.what, each.shape, each.bits, each.batch) for each in report.comparisons]
    assert found == [
        ("tiny", what, shape, bits, batch)
        for what, shape, bits in [
            ("q k v o", "32 x 32", "W4A4"),
            ("gate up", "48 x 32", "W4A4"),
            ("down", "32 x 48", "W4A4"),
            ("lm_head", "41 x 32", "W16A16"),
        ]
        for batch in (1, 3)
    ]
    assert all(each.packed_seconds > 0 and each.float32_seconds > 0 for each in report.comparisons)


def test_bits_of_formats_without_a_grid_and_of_ternary_ones() -> None:
    ternary, codes = GridConfig(levels=3, step_per_scale=1.2), GridConfig(levels=256, step_per_scale=0.03)
    assert bits_text(WeightFormat(block_size=1, weight=ternary, act=codes)) == "WtA8"
    assert bits_text(WeightFormat(block_size=1, weight="int8", act=None)) == "W8A16"
    assert bits_text(WeightFormat(block_size=1, weight="float32", act=ternary)) == "W32At"


def test_no_batch_is_refused(packed: Path) -> None:
    with pytest.raises(ConfigError, match="batches"):
        layer_speed([packed], [])
