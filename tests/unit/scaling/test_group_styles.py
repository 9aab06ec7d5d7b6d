"""Groups can be told apart without colour."""

from __future__ import annotations

from collections import Counter

import pytest

from questlm.scaling import Run
from questlm.scaling.group_styles import GroupStyle, group_styles, widths


def styles(runs: list[Run]) -> dict[str, GroupStyle]:
    return group_styles(Counter(run.group for run in runs))


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ("bf16", (16, 16)), ("quest/w4a16/int4", (4, 16)), ("bitnet/wta8/ternary", ("ternary", 8)),
        ("my/own/w2a2/int2", (2, 2)), ("odd", None), ("a/wxay/z", None), ("a/w99a4/z", None),
    ],
)  # fmt: skip
def test_widths_are_read_from_the_name_of_a_group(group: str, expected: tuple[int | str, int | str] | None) -> None:
    assert widths(group) == expected


def test_a_group_whose_name_says_nothing_has_a_look_too() -> None:
    assert group_styles({"odd": 1})["odd"].role == "front"


def _run(bits: int | str, act: int | str = 4, method: str = "quest") -> Run:
    return Run(1, 1, bits, act, "bf16" if bits == 16 else f"int{bits}", method, 1.0)


def test_groups_differ_in_marker_and_widths_in_color() -> None:
    every = [16, 8, 7, 6, 5, 4, 3, 2, "ternary", 1]
    found = styles([_run(bits, bits) for bits in every])
    assert next(iter(found)) == "bf16"
    assert (
        len({style.marker for style in found.values()}) == len({style.color for style in found.values()}) == len(every)
    )


def test_of_equal_bits_the_most_frequent_group_has_the_full_line() -> None:
    found = styles([_run(4, 4, "lsq"), _run(4), _run(4)])
    assert list(found) == ["quest/w4a4/int4", "lsq/w4a4/int4"]
    assert found["quest/w4a4/int4"].dash == "-" != found["lsq/w4a4/int4"].dash
