"""What is drawn and said of runs, and how much of it where there are many."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from questlm.plotting import style
from questlm.report import pictures
from questlm.report.gather import Entry
from questlm.report.pictures.shared import value_text
from questlm.scaling import Estimate, LawFit, Run
from questlm.scaling.group_styles import group_styles

RUN = Run(10**6, 10**8, 4, 4, "int4", "quest", 3.0, 0)


def entry(bits: int = 4, size: int = 10**6, loss: float = 3.0, points: int = 0, packed: int | None = None) -> Entry:
    form, method = ("bf16", "bf16") if bits == 16 else (f"int{bits}", "quest")
    run = replace(
        RUN, parameters=size, tokens=100 * size, weight_bits=bits, act_bits=bits, format=form, method=method, loss=loss
    )
    curve = tuple((100.0 * size * (n + 1) / points, loss + 1 / (n + 1)) for n in range(points))
    return Entry(f"w{bits}-{size}", run, curve=curve, packed=packed)


def law(high: float = 0.75) -> LawFit:
    names = ("alpha", "A", "beta", "B", "E")
    values = dict(zip(names, (0.3, 100.0, 0.4, 500.0, 1.0), strict=True))
    return LawFit(
        **values,
        eff={"quest/w4a4/int4": Estimate(0.7, 0.65, high), "quest/w2a2/int2": Estimate(0.16, 0.1, 0.2)},
        intervals={name: Estimate(value, value, value) for name, value in values.items()},
        draws={name: np.ones(2) for name in (*names, "quest/w4a4/int4", "quest/w2a2/int2")},
        groups={"bf16": 1, "quest/w4a4/int4": 1, "quest/w2a2/int2": 1},
        range=dict.fromkeys(("parameters", "tokens", "tokens_per_parameter"), (1.0, 2.0)),
        residuals=[],
        rms_log_residual=0.01,
        n_runs=3,
        warnings=[],
    )


def test_a_thousand_long_curves_are_thinned_and_the_caption_says_so() -> None:
    entries = [entry(points=300, size=10**6 * (1 + n % 20)) for n in range(1000)]
    picture = pictures.curves(entries, group_styles(Counter(e.run.group for e in entries)))
    assert picture is not None
    assert len(picture.rows) <= 60 * 121
    assert "Of 1,000 recorded curves these 60 are drawn" in picture.caption
    assert "Curves of more than 120 points are drawn as that many means" in picture.caption


def test_without_curves_there_is_no_picture_of_them() -> None:
    assert pictures.curves([entry()], group_styles({RUN.group: 1})) is None


def test_the_frontier_names_its_ends_and_counts_its_groups() -> None:
    entries = [
        entry(4, 10**6, 3.0, packed=10**6),
        entry(4, 10**7, 2.5, packed=10**7),
        entry(16, 10**6, 2.9, packed=10**8),
    ]
    picture = pictures.frontier(entries, group_styles(Counter(e.run.group for e in entries)))
    assert picture is not None
    assert [row[-1] for row in picture.rows] == [True, True, False]
    assert picture.caption.startswith(
        "100 tokens per parameter: 2 of 3 runs on the front, from 1 MB at 3.000 (quest/w4a4/int4, N = 1M) to "
        "10 MB at 2.500 (quest/w4a4/int4, N = 10M); 2 quest/w4a4/int4.\n"
    )
    assert "embedding and head included" in picture.caption


def test_where_one_size_is_not_known_none_counts_embeddings() -> None:
    entries = [entry(4, packed=10**6), entry(16)]
    picture = pictures.frontier(entries, group_styles(Counter(e.run.group for e in entries)))
    assert picture is not None
    assert [(row[4], row[5]) for row in picture.rows] == [(500_000, False), (2_000_000, False)]
    assert "not counted" in picture.caption


def test_fewer_than_two_finished_runs_have_no_frontier() -> None:
    entries = [entry(), replace(entry(16), finished=False)]
    assert pictures.frontier(entries, group_styles(Counter(e.run.group for e in entries))) is None


def test_efficiency_is_by_bit_and_an_open_interval_is_said_to_be_open() -> None:
    picture = pictures.efficiency(law(math.inf), {})
    assert picture is not None
    assert [(row[0], row[2]) for row in picture.rows] == [
        ("quest/w4a4/int4", pytest.approx(0.175)),
        ("quest/w2a2/int2", pytest.approx(0.08)),
    ]
    assert picture.caption.startswith(
        "Most is had from quest/w4a4/int4: eff = 0.7 [0.65, ∞] over 4 bits is 0.175 a bit"
    )
    with style():
        picture.draw(True)


def test_the_law_is_held_against_the_runs_of_its_groups() -> None:
    fit = law()
    exact = fit.predict(10**6, 10**8, "quest/w4a4/int4")
    entries = [entry(4, loss=exact), entry(2, loss=1.05 * fit.predict(10**6, 10**8, "quest/w2a2/int2")), entry(1)]
    picture = pictures.law(fit, entries, group_styles(Counter(e.run.group for e in entries)))
    assert picture is not None
    residuals = [row[-1] for row in picture.rows]
    assert residuals == [pytest.approx(0, abs=1e-12), pytest.approx(-math.log(1.05))]
    assert "1 run of groups that were not fitted are not drawn" in picture.caption
    assert "Furthest off is quest/w2a2/int2" in picture.caption and "(-4.88 %)" in picture.caption


def test_damaged_diagnostics_are_a_note(tmp_path: Path) -> None:
    (tmp_path / "diagnostics").mkdir()
    (tmp_path / "diagnostics" / "diagnostics.json").write_text('{"title": "x"}')
    notes: list[str] = []
    assert pictures.diagnosed([replace(entry(), folder=tmp_path)], notes) == []
    assert len(notes) == 1 and notes[0].startswith("No diagnostics of w4-1000000: ")


def test_numbers_for_people() -> None:
    assert [value_text(n) for n in (0.0123456, 1643.9, 12.345, math.inf)] == ["0.0123", "1,644", "12.3", "∞"]
