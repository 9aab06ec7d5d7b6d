"""Both themes are legible, and groups can be told apart without colour."""

from __future__ import annotations

from itertools import product

import pytest
from questlm.report.theme import DARK, LIGHT, looks

from questlm.scaling import Run

THEMES = {"light": LIGHT, "dark": DARK}


def _luminance(color: str) -> float:
    """Relative luminance, WCAG 2.2."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_measure_of_contrast_is_right() -> None:
    assert _contrast("#000000", "#ffffff") == pytest.approx(21)
    assert _contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize(
    ("theme", "role", "ground"), list(product(THEMES, ("ink", "muted", "accent"), ("page", "card")))
)
def test_texts_have_the_contrast_of_wcag_aa(theme: str, role: str, ground: str) -> None:
    assert _contrast(THEMES[theme][role], THEMES[theme][ground]) >= 4.5


@pytest.mark.parametrize("theme", THEMES)
def test_marks_have_the_contrast_of_wcag_aa(theme: str) -> None:
    colors = THEMES[theme]
    for role in (role for role in colors if role.startswith("bits-") or role == "front"):
        assert _contrast(colors[role], colors["card"]) >= 3, role


def test_both_themes_have_every_role_and_no_color_has_two_in_the_light_one() -> None:
    assert LIGHT.keys() == DARK.keys()
    assert len(set(LIGHT.values())) == len(LIGHT)  # pictures are drawn in these, and each becomes a variable


def _run(bits: int | str, act: int | str = 4, method: str = "quest") -> Run:
    return Run(1, 1, bits, act, "bf16" if bits == 16 else f"int{bits}", method, 1.0)


def test_groups_differ_in_marker_and_widths_in_color() -> None:
    widths = [16, 8, 7, 6, 5, 4, 3, 2, "ternary", 1]
    found = looks(_run(bits, bits) for bits in widths)
    assert next(iter(found)) == "bf16"
    assert len({look.marker for look in found.values()}) == len({look.color for look in found.values()}) == len(widths)


def test_of_equal_bits_the_most_frequent_group_has_the_full_line() -> None:
    found = looks([_run(4, 4, "lsq"), _run(4), _run(4)])
    assert list(found) == ["quest/w4a4/int4", "lsq/w4a4/int4"]
    assert found["quest/w4a4/int4"].dash == "-" != found["lsq/w4a4/int4"].dash
