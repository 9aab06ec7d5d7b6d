"""Steps in fewer bits are rounded as a cast rounds them."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from questlm.ops.reference.storage import load_steps, round_steps, store_steps

positive = st.lists(st.floats(0, 2.0**127, width=32), min_size=1, max_size=20)


@given(positive)
def test_fp16_is_the_cast_and_ends_at_its_largest(values: list[float]) -> None:
    step = torch.tensor(values)
    assert torch.equal(round_steps(step, "fp16"), step.clamp_max(65504).to(torch.float16).float())


@given(positive)
def test_fp8_is_the_cast_of_256_times_the_step(values: list[float]) -> None:
    step = torch.tensor(values)
    expected = (256 * step.clamp_max(1.75)).to(torch.float8_e4m3fn).float() / 256
    assert torch.equal(round_steps(step, "fp8"), expected)


@given(positive, st.sampled_from(("fp32", "fp16", "fp8")))
def test_rounded_steps_come_back(values: list[float], steps: str) -> None:
    rounded = round_steps(torch.tensor(values), steps)
    assert torch.equal(load_steps(store_steps(rounded, steps), steps), rounded)
    assert torch.equal(round_steps(rounded, steps), rounded)


def test_what_is_not_finite_stays_so() -> None:
    step = torch.tensor([float("nan"), float("inf")])
    for steps in ("fp16", "fp8"):
        assert not round_steps(step, steps).isfinite().any()
