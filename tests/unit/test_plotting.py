"""Both themes are legible."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from questlm import plotting
from questlm.errors import ConfigError, MissingDependencyError
from questlm.plotting import DARK, LIGHT, check_picture, decade_ticks, drawing, require_matplotlib, save_figure, style

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


def test_without_matplotlib_the_message_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plotting, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"drawing a report.*pip install 'questlm\[plots\]'"):
        require_matplotlib("drawing a report")


def test_a_picture_of_no_known_form_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"law\.bmp has no known file type; end its name in \.png, \.svg, \.pdf"):
        check_picture(Path("law.bmp"))


def test_a_name_with_dollar_signs_is_no_formula_and_the_users_settings_mean_nothing(tmp_path: Path) -> None:
    import matplotlib as mpl

    users = mpl.rc_context({"axes.facecolor": "#123456", "svg.fonttype": "path"})
    with users:
        with drawing(3, 2) as figure:
            figure.subplots().set_title("a$x_{$b")
        save_figure(figure, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert "a$x_{$b" in text and "#123456" not in text


def test_ticks_of_a_logarithmic_axis_are_plain_numbers() -> None:
    from matplotlib.figure import Figure

    with style():
        figure = Figure()
        axis = figure.subplots()
        axis.set(yscale="log", ylim=(1e-6, 1e5))
        decade_ticks(axis.yaxis)
        figure.draw_without_rendering()
        texts = {label.get_text() for label in axis.get_yticklabels(which="both")}
    assert {"1", "0.01", "100"} <= texts
    assert not any("$" in text for text in texts)
