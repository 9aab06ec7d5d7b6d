"""Pictures are drawn from the numbers in a file alone."""

from __future__ import annotations

import pytest

from questlm.diagnostics.pictures.normality import _weight_bound


@pytest.mark.parametrize("rotates", [True, False])
def test_what_is_drawn_needs_no_table_of_methods(rotates: bool) -> None:
    masks = {"method": "of-a-plugin", "rotated": rotates, "bound": 2.0}
    assert _weight_bound({"masks": masks}) == (2.0 if rotates else None)
    of_before = {"method": "quest" if rotates else "quest-noht", "bound": 2.0}
    assert _weight_bound({"masks": of_before}) == (2.0 if rotates else None)
