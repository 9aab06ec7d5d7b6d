"""Fronts, means, clusters and shorter curves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from questlm.report.gather import Entry
from questlm.report.statistics import block_bytes, budgets, cells, differing, pareto_front, ratio_text, shorten
from questlm.scaling import Run
from questlm.scaling.runs import bits_of

RUN = Run(10**6, 10**8, 4, 4, "int4", "quest", 3.0, 0)
NUMBERS = st.floats(0.1, 100)


def entry(loss: float = 3.0, seed: int = 0, settings: dict[str, str] | None = None, **changes: Any) -> Entry:
    return Entry("x", replace(RUN, loss=loss, seed=seed, **changes), settings=settings or {})


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=30))
def test_the_front_is_what_nothing_undercuts(points: list[tuple[float, float]]) -> None:
    front = pareto_front(points)
    on_front = [points[index] for index in front]
    assert on_front == sorted(on_front)
    for x, y in on_front:
        assert not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points)
    for x, y in points:
        assert any(a <= x and b <= y for a, b in on_front)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=300), st.integers(2, 50))
def test_a_shorter_curve_keeps_its_end_and_its_range(points: list[tuple[float, float]], most: int) -> None:
    short = shorten(points, most)
    assert len(short) == min(most, len(points))
    assert short[-1] == points[-1]
    losses = [loss for _, loss in points]
    assert all(min(losses) - 1e-9 <= loss <= max(losses) + 1e-9 for _, loss in short)


def test_a_shorter_curve_is_means_of_neighbours() -> None:
    assert shorten([(0, 1), (1, 3), (2, 5), (3, 7), (4, 9)], 3) == [(0.5, 2), (2.5, 6), (4, 9)]


def test_seeds_give_a_mean_with_its_interval() -> None:
    (cell,) = cells([entry(3.00, 0), entry(3.01, 1), entry(3.05, 2)])
    assert cell.mean == pytest.approx(3.02)
    assert cell.spread == pytest.approx(0.0264575, rel=1e-5)
    assert cell.half_width == pytest.approx(4.302653 * 0.0264575 / 3**0.5, rel=1e-5)  # t(0.975, 2 degrees) = 4.302653
    (single,) = cells([entry()])
    assert single.spread is None and single.half_width is None


def test_other_settings_are_not_seeds() -> None:
    one, two = ({"train.lr": lr, "seed": seed} for lr, seed in (("0.1", "0"), ("0.2", "1")))
    first, second = cells([entry(3.0, 0, one), entry(3.1, 1, two)])
    assert (first.variant, second.variant) == ("train.lr = 0.1", "train.lr = 0.2")
    assert first.losses == (3.0,)


def test_seeds_are_a_sample_however_they_were_computed_and_wherever_their_data_lay() -> None:
    usual = {"train.lr": "0.1", "train.micro_batch_size": "8", "train.log_every": "10", "data.source": "a.txt"}
    moved = usual | {"train.micro_batch_size": "4", "train.log_every": "5", "data.source": "/there/a.txt"}
    first, second = (replace(entry(3.0 + seed, seed, it), data="ab12") for seed, it in enumerate((usual, moved)))
    (cell,) = cells([first, second])
    assert (cell.losses, cell.variant) == ((3.0, 4.0), "")
    one, other = cells([first, replace(second, data="cd34")])
    assert (one.variant, other.variant) == ("trained on ab12", "trained on cd34")
    assert len(cells([replace(each, data="") for each in (first, second)])) == 2  # paths are all that is known


def test_two_runs_of_one_seed_are_no_sample_of_seeds() -> None:
    (cell,) = cells([entry(3.0, 0), entry(3.0, 0)])
    assert (cell.losses, cell.runs, cell.spread, cell.half_width) == ((3.0,), 2, None, None)


def test_repeats_of_a_seed_count_once_among_others() -> None:
    (cell,) = cells([entry(3.0, 0), entry(3.2, 0), entry(3.3, 1)])
    assert cell.losses == pytest.approx((3.1, 3.3))
    assert cell.runs == 3
    assert cell.spread == pytest.approx(0.2 / 2**0.5)


def test_runs_of_other_budgets_are_no_sample_of_seeds() -> None:
    budgets_given = [{"budget.tokens": str(10**8)}, {"budget.tokens": str(10**8 + 10**6)}]
    found = cells([entry(3.0, seed, budget) for seed, budget in enumerate(budgets_given)])
    assert [cell.variant for cell in found] == ["budget.tokens = 100000000", "budget.tokens = 101000000"]
    assert [cell.spread for cell in found] == [None, None]
    found = cells([entry(3.0, 0), entry(3.1, 1, tokens=10**8 + 10**6)])  # rows, which have no settings
    assert [cell.variant for cell in found] == ["100,000,000 tokens", "101,000,000 tokens"]


def test_runs_from_other_weights_or_on_other_texts_are_no_sample_of_seeds() -> None:
    from_weights = [{"init_from": "None", "train.lr": "1"}, {"init_from": "llama", "train.lr": "1"}]
    found = cells([entry(3.0, seed, given) for seed, given in enumerate(from_weights)])
    assert [cell.variant for cell in found] == ["init_from = None", "init_from = llama"]
    found = cells([entry(3.0, 0, validation="a" * 64), entry(3.1, 1, validation="b" * 64)])
    assert [cell.variant for cell in found] == ["validated on aaaaaaaa", "validated on bbbbbbbb"]


def test_a_run_whose_seed_is_not_known_adds_nothing_to_a_sample() -> None:
    unknown = replace(entry(3.5), run=replace(RUN, loss=3.5, seed=None))
    (cell,) = cells([unknown, entry(3.0, 0), entry(3.1, 1)])
    assert (cell.losses, cell.runs) == ((3.0, 3.1), 3)
    (cell,) = cells([unknown, unknown])
    assert (cell.losses, cell.spread) == ((3.5,), None)


def test_a_row_and_a_run_folder_are_told_apart() -> None:
    found = cells([entry(3.0, 0), entry(3.1, 1, {"train.lr": "0.1"})])
    assert [cell.variant for cell in found] == ["settings not known", ""]


def test_unfinished_runs_are_in_no_cell() -> None:
    assert cells([replace(entry(), finished=False)]) == []


def test_budgets_within_fifteen_per_cent_are_one() -> None:
    entries = [entry(tokens=tokens * 10**6) for tokens in (97, 101, 98, 25, 49, 50)]
    found = budgets(entries)
    assert [len(cluster) for cluster in found.values()] == [1, 2, 3]
    assert [ratio_text(ratio) for ratio in found] == ["25", "50", "98"]
    assert ratio_text(1234.0) == "1,200" and ratio_text(0.25) == "0.25"


@settings(max_examples=30)
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=20))
def test_every_run_is_in_one_budget(tokens: list[int]) -> None:
    assert sum(len(cluster) for cluster in budgets([entry(tokens=count) for count in tokens]).values()) == len(tokens)


def test_settings_that_follow_from_the_size_do_not_differ() -> None:
    small = {"model.layers": "2", "train.lr": "0.1", "seed": "0", "budget.tokens": "5", "quant.weight_bits": "4"}
    large = {"model.layers": "4", "train.lr": "0.2", "seed": "1", "budget.tokens": "9", "quant.weight_bits": "2"}
    entries = [entry(settings=small), entry(settings=large, parameters=2 * 10**6)]
    assert differing(entries) == ["train.lr"]
    assert differing([entry(settings=small), entry(settings=large)]) == ["model.layers", "train.lr"]


@pytest.mark.parametrize(
    ("bits", "name", "expected"),
    [(4, "int4", 500_000), (1, "int1", 125_000), (16, "bf16", 2_000_000), ("ternary", "ternary", 200_000),
     (4, "int4-2:4", 312_500), (16, "bf16-2:4", 1_125_000)],
)  # fmt: skip
def test_bytes_of_the_blocks(bits: Any, name: str, expected: int) -> None:
    assert block_bytes(replace(RUN, weight_bits=bits, format=name)) == expected


def test_bits_of_a_weight() -> None:
    assert bits_of(4) == 4 and 2 ** bits_of("ternary") == pytest.approx(3)
