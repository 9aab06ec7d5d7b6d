"""The Triton kernels on a GPU against the reference: each check that `tests/unit/ops` runs under the interpreter.

Each new combination of shape, levels, form and dtype takes a second or so to compile, so they are chosen sparingly.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from helpers.kernel_checks import (
    BITS,
    bound_of,
    check_compiled,
    check_float8_product,
    check_masked_hadamard,
    check_model,
    check_norm,
    check_operator,
    check_quantize,
    check_range,
    check_runs_agree,
    check_swiglu,
    draw,
    draw_mask,
    opcheck_cases,
)
from questlm.config import RunConfig
from questlm.ops.machine import no_nvidia
from questlm.quant import gaussian_grid

pytestmark = pytest.mark.gpu
FULL, BF16, HALF = torch.float32, torch.bfloat16, torch.float16
FOUR = gaussian_grid(4)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(torch.seed() % 2**31)


@pytest.mark.parametrize(
    ("count", "k", "block", "dtype"),
    [(37, 48, 16, FULL), (1, 640, 128, FULL), (37, 1792, 16, BF16), (37, 2816, 256, HALF), (5000, 80, 1, FULL)],
)
def test_quantize_in_odd_shapes(count: int, k: int, block: int, dtype: torch.dtype) -> None:
    check_quantize(draw(count, k, "cuda", dtype), FOUR, block, 8.0)


@pytest.mark.parametrize("bits", BITS)
def test_quantize_to_every_number_of_levels(bits: int | str) -> None:
    grid = gaussian_grid(bits)
    check_quantize(draw(37, 640, "cuda"), grid, 128, bound_of(grid))


@pytest.mark.parametrize("dtype", [FULL, BF16])
def test_rows_of_any_size_are_quantised_like_rows_of_size_one(dtype: torch.dtype) -> None:
    check_range("cuda", dtype)


@pytest.mark.parametrize("bits", ["ternary", 1, 2, 3, 4])
def test_quantize_to_float8(bits: int | str) -> None:
    check_quantize(draw(37, 640, "cuda", BF16), gaussian_grid(bits), 128, None, "float8")


@pytest.mark.parametrize("bits", [1, 8])
def test_quantize_to_int8(bits: int) -> None:
    check_quantize(draw(37, 640, "cuda"), gaussian_grid(bits), 128, None, "int8")


@pytest.mark.parametrize(
    ("k", "block", "given", "dtype", "masked"),
    [
        (48, 16, FULL, FULL, True),
        (640, 128, BF16, FULL, True),
        (640, 128, BF16, BF16, False),
        (2816, 256, FULL, BF16, True),
        (1792, 1, HALF, FULL, True),
    ],
)
def test_masked_hadamard(k: int, block: int, given: torch.dtype, dtype: torch.dtype, masked: bool) -> None:
    mask = draw_mask(37, k, "cuda") if masked else None
    check_masked_hadamard(torch.randn(37, k, device="cuda").to(given), mask, block, dtype)


@pytest.mark.parametrize(
    ("count", "k", "block", "dtypes", "bits", "masked"),
    [
        (37, 640, 128, (FULL, BF16, BF16), 4, True),
        (37, 2816, 256, (FULL, FULL, FULL), 8, True),
        (3, 48, 16, (BF16, None, BF16), 1, False),
        (2001, 1792, 16, (FULL, None, BF16), "ternary", True),
    ],
)
def test_norm_quantize(count: int, k: int, block: int, dtypes: tuple, bits: int | str, masked: bool) -> None:
    check_norm(count, k, block, "cuda", dtypes, gaussian_grid(bits), masked)


@pytest.mark.parametrize(
    ("count", "k", "block", "dtype", "bits", "masked"),
    [
        (2001, 1792, 256, BF16, 4, True),
        (37, 640, 128, FULL, 8, True),
        (3, 48, 16, HALF, 1, False),
        (37, 2816, 128, BF16, "ternary", True),
    ],
)
def test_swiglu_quantize(count: int, k: int, block: int, dtype: torch.dtype, bits: int | str, masked: bool) -> None:
    check_swiglu(count, k, block, "cuda", dtype, gaussian_grid(bits), masked)


@pytest.mark.parametrize("levels", [2, 16])
def test_a_product_of_float8_levels_is_as_exact_as_one_of_bf16(levels: int) -> None:
    if no_nvidia(torch.device("cuda"), 9, "float8 products"):
        pytest.skip("this GPU multiplies no float8 matrices with a scale for each row")
    check_float8_product(33, 48, 256, levels, "cuda")
    check_float8_product(1000, 640, 2816, levels, "cuda")


@pytest.mark.parametrize("case", opcheck_cases("cpu"))
def test_operators_are_well_formed(case: str) -> None:
    check_operator(case, "cuda")


@pytest.mark.parametrize(("bits", "held"), [(4, True), ("ternary", False)])
def test_a_whole_model_equals_the_reference(bits: int | str, held: bool) -> None:
    check_model("cuda", bits, held=held)


@pytest.mark.parametrize("bits", [1, 4])
def test_a_whole_model_under_autocast(bits: int) -> None:
    check_model("cuda", bits, bf16=True, held=True, hidden=128, mlp_hidden=256)


def test_a_compiled_block_is_one_graph_with_cached_weights() -> None:
    check_compiled("cuda", "inductor")


@pytest.mark.parametrize("bits", [2, 4])
def test_runs_on_the_kernels_and_on_the_reference_agree(
    bits: int, tiny_settings: Callable[..., RunConfig], tmp_path: Path
) -> None:
    settings = tiny_settings(
        model={"hidden": 128, "mlp_hidden": 256},
        quant={"weight_bits": bits, "act_bits": bits},
        train={"device": "cuda", "compile": "off", "lr": 2e-3},
        budget={"tokens": 40 * 4 * 32},
    )
    check_runs_agree(settings, tmp_path)
