"""The codes of a model take what their entropy says, and hardly more; other compressors take no less."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers.packed_models import trained
from questlm.artifact.coding import Rows, code_section, entropy_bytes
from questlm.artifact.comparison import coded_sizes
from questlm.artifact.read import load_artifact
from questlm.config import ModelConfig, QuantSpec
from questlm.export.pack import pack
from questlm.quant.grids import gaussian_grid


def test_every_way_is_measured_on_the_same_codes(tmp_path: Path) -> None:
    shape = ModelConfig(layers=1, hidden=128, heads=2, mlp_hidden=256, vocab_size=61)
    report = pack(trained(QuantSpec(weight_bits=4, act_bits=16), shape), tmp_path / "a")
    sizes = coded_sizes(load_artifact(report.path))
    assert sizes["packed"] == report.bytes_by_part["codes"]
    assert sizes["entropy"] < sizes["coded"] < 1.02 * sizes["entropy"]
    assert all(sizes[way] > sizes["coded"] for way in ("packed", "zstd-22", "brotli-11", "xz"))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [1, 2, 3, 4, "ternary"])
def test_a_million_gaussian_codes_take_less_than_a_hundredth_more_than_their_entropy(bits: int | str) -> None:
    grid = gaussian_grid(bits)
    values = np.random.default_rng(0).standard_normal((1024, 1024)) / (grid.step_per_scale or 1)
    codes = np.clip(np.rint(values + grid.zero_point), 0, grid.levels - 1).astype(np.uint8)
    packed = bytes(1024 * 1024 // 8 if bits == 1 else codes.size)
    matrix = Rows(codes.shape, grid.levels, lambda: packed, lambda rows: codes[rows])
    assert len(code_section(matrix)) < 1.002 * entropy_bytes(matrix)
