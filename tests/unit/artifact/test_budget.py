"""A model that misses its budget is refused, with the amount and the parts, and nothing of it is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.packed_models import trained
from questlm.artifact.budget import Budget, OverBudgetError
from questlm.config import QuantSpec
from questlm.errors import ConfigError
from questlm.export.pack import pack


@pytest.mark.parametrize("single_file", [False, True])
def test_a_model_is_kept_when_it_fits_to_the_byte(single_file: bool, tmp_path: Path) -> None:
    model, code = trained(QuantSpec(embeddings="int8")), tmp_path / "code.py"
    code.write_bytes(b"x" * 1000)
    size = pack(model, tmp_path / "a", single_file=single_file).bytes
    pack(model, tmp_path / "b", single_file=single_file, budget=Budget.of_files(size + 1000, [code]))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(
        ConfigError, match=rf"takes {size + 1000:,} bytes, 1 more than the budget of {size + 999:,}.*code"
    ):
        pack(model, tmp_path / "c", single_file=single_file, budget=Budget.of_files(size + 999, [code]))
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_left_for_the_model() -> None:
    assert Budget(1000, {"a": 300, "b": 800}).left_for_model == -100


def test_a_file_that_is_called_as_a_part_counts_beside_it() -> None:
    with pytest.raises(OverBudgetError, match="file model 300") as caught:
        Budget(1000, {"model": 300}).check({"model": 800})
    assert caught.value.over == 100


def test_code_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no file"):
        Budget.of_files(1000, [tmp_path])
