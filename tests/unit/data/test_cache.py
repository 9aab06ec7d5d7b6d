"""What the cache remembers is used only if it is of the right type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from questlm.data.cache import COUNT, FACTS, HASH, NAMES, remember


@pytest.mark.parametrize(
    ("kind", "value", "others"),
    [
        (COUNT, 7, ["7", True, 7.0, -1, None, [7], 2**80]),
        (HASH, "a" * 64, ["a", 5, None, "A" * 64, ["a" * 64]]),
        (NAMES, ["train", "test"], ["train", [1], {"train": 1}, None]),
    ],
)
def test_a_fact_of_another_type_is_found_out_again(kind: Any, value: Any, others: list[Any], tmp_path: Path) -> None:
    def recall() -> Any:
        return remember(tmp_path, ["fact"], lambda: value, kind)

    assert recall() == value
    (file,) = (tmp_path / FACTS).iterdir()
    for other in others:
        file.write_text(json.dumps({"key": ["fact"], "value": other}))
        assert recall() == value
        assert json.loads(file.read_text())["value"] == value
    assert remember(tmp_path, ["fact"], lambda: 1 / 0, kind) == value  # type: ignore[arg-type, return-value]
