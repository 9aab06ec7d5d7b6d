"""The Triton kernels under Triton's interpreter, against the reference; `tests/gpu` runs the same checks on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.kernel_checks import (
    BITS,
    DTYPES,
    EPS,
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
    levels_of,
    number_arguments,
    opcheck_cases,
)
from questlm import ops
from questlm.config import RunConfig
from questlm.errors import BackendError
from questlm.ops import Grid
from questlm.ops.reference.hadamard import hadamard
from questlm.ops.reference.quantize import quantize as reference_quantize
from questlm.ops.triton import fits, interpreted, operators
from questlm.ops.triton.tiles import matrix, tiles_of
from questlm.quant import gaussian_grid
from questlm.quant.grids import fp4_grid

pytestmark = pytest.mark.skipif(not interpreted(), reason="there is a GPU, and tests/gpu uses it")

WIDTHS = (16, 48, 80, 128, 256, 640, 1792, 2816)
BLOCKS = (1, 16, 32, 128, 256)
SHAPES = [(k, block) for k in WIDTHS for block in BLOCKS if k % block == 0]
CODE_DTYPES = [
    (bits, code_dtype)
    for bits in BITS
    for code_dtype in ("uint8", "float8", "int8")
    if not (code_dtype == "float8" and bits in (5, 6, 7, 8)) and not (code_dtype == "int8" and bits == "ternary")
]
few = settings(deadline=None, max_examples=12)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(torch.seed() % 2**31)  # fresh, and printed with a failure


@pytest.mark.slow
@pytest.mark.parametrize(("k", "block"), SHAPES)
def test_quantize_in_every_shape(k: int, block: int) -> None:
    for count in (1, 37):  # less than one tile of rows, and several with a rest
        grid = gaussian_grid(BITS[(k // 16 + block + count) % len(BITS)])
        check_quantize(draw(count, k, "cpu"), grid, block, bound_of(grid))


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "code_dtype"), CODE_DTYPES)
@pytest.mark.parametrize("block", [1, 64])
def test_quantize_to_every_number_of_levels_in_every_dtype(bits: int | str, code_dtype: str, block: int) -> None:
    grid = gaussian_grid(bits)
    check_quantize(draw(5, 320, "cpu"), grid, block, bound_of(grid), code_dtype)
    check_quantize(draw(2, 64, "cpu"), grid, block, None, code_dtype)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("block", BLOCKS)
def test_quantize_reads_sixteen_bits(dtype: torch.dtype, block: int) -> None:
    check_quantize(draw(9, 768, "cpu", dtype), gaussian_grid(4), block, 8.0)


@pytest.mark.parametrize("levels", [2, 3, 4, 16, 256])
def test_halves_round_to_even(levels: int) -> None:
    signs = torch.ones(4, 64)
    signs[:, ::3] = -1  # an rms of exactly 1, and steps that put the entries on boundaries
    for step in (0.25, 0.5, 1.0, 2.0):
        expected = reference_quantize(signs, Grid(levels, step), 1, 1 / step)
        found = operators.quantize(signs, 1, levels, step, 1 / step, "uint8")
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_rows_of_zeros_have_step_zero_and_pass_their_gradient() -> None:
    x = torch.zeros(3, 128)
    for block in (1, 128):
        codes, step, mask = operators.quantize(x, block, 16, 0.4, 7.0, "uint8")
        assert torch.equal(codes, reference_quantize(x, Grid(16, 0.4), block, 7.0)[0])
        assert torch.all(step == 0) and torch.all(mask == 255)


def test_no_rows_make_no_codes() -> None:
    x, gain, mask = torch.empty(0, 64), torch.ones(64), torch.empty(0, 8, dtype=torch.uint8)
    codes, step, bits = operators.quantize(x, 16, 16, 0.4, 8.0, "uint8")
    assert [codes.shape, step.shape, bits.shape] == [(0, 64), (0, 1), (0, 8)]
    assert operators.masked_hadamard(x, mask, 16, torch.bfloat16).shape == (0, 64)
    normed = operators.norm_quantize(x, x, gain, EPS, torch.bfloat16, 16, 16, 0.4, 8.0, "uint8", True)
    assert [t.shape for t in normed] == [(0, 64), (0, 64), (0, 1), (0, 8), (0, 64), (0, 1)]
    found = operators.norm_quantize_backward(x, mask, *normed[4:], gain, 16, x, torch.float32, torch.bfloat16)
    assert [t.shape for t in found[:2]] == [(0, 64)] * 2 and torch.equal(found[2], torch.zeros(64))
    assert operators.swiglu_quantize(x, x, torch.float32, 16, 16, 0.4, 8.0, "uint8")[2].shape == (0, 8)
    assert operators.swiglu_quantize_backward(x, mask, x, x, 16).shape == (0, 128)


@pytest.mark.filterwarnings("ignore:(invalid value|overflow):RuntimeWarning")  # numpy's
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_has_a_step_that_is_not_and_leaves_the_others_alone(bad: float) -> None:
    x, grid = torch.randn(3, 192), gaussian_grid(3)
    x[1, 5] = bad
    for block in (1, 16, 64):
        codes, step, mask = operators.quantize(x, block, *number_arguments(grid), 4.0, "uint8")
        assert step.isfinite().flatten().tolist() == [True, False, True]
        for found, alone in zip(
            (codes, step, mask), operators.quantize(x[::2], block, *number_arguments(grid), 4.0, "uint8"), strict=True
        ):
            torch.testing.assert_close(found[::2], alone, rtol=1e-6, atol=0)
        for bits in (draw_mask(3, 192, "cpu"), None):
            rotated = operators.masked_hadamard(x, bits, block, torch.float32)
            assert rotated.isfinite().all(-1).tolist() == [True, False, True]


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # numpy's, of squares
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_rows_of_any_size_are_quantised_like_rows_of_size_one(dtype: torch.dtype) -> None:
    check_range("cpu", dtype)


@pytest.mark.slow
@pytest.mark.parametrize(("k", "block"), SHAPES)
def test_masked_hadamard_in_every_shape(k: int, block: int) -> None:
    for count in (1, 37):
        gradient = torch.randn(count, k)
        check_masked_hadamard(gradient, draw_mask(count, k, "cpu"), block, torch.float32)
        check_masked_hadamard(gradient, None, block, torch.float32)


@pytest.mark.parametrize("given_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_hadamard_from_and_to_sixteen_bits(given_dtype: torch.dtype, dtype: torch.dtype) -> None:
    check_masked_hadamard(torch.randn(5, 384).to(given_dtype), draw_mask(5, 384, "cpu"), 128, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(("k", "block"), SHAPES[::2])
def test_norm_quantize_in_every_shape(k: int, block: int) -> None:
    full = torch.float32
    for count, delta in ((1, None), (3, full), (37 if k < 1000 else 9, full)):
        check_norm(count, k, block, "cpu", (full, delta, full), gaussian_grid(4), masked=count != 3)


@pytest.mark.slow
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_quantize_to_every_number_of_levels(bits: int | str, dtype: torch.dtype) -> None:
    check_norm(11, 384, 128, "cpu", (torch.float32, dtype, dtype), gaussian_grid(bits))


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("adds", [True, False])
def test_norm_quantize_of_a_residual_in_sixteen_bits(dtype: torch.dtype, adds: bool) -> None:
    check_norm(9, 256, 64, "cpu", (dtype, dtype if adds else None, dtype), gaussian_grid(4), masked=adds)


@pytest.mark.slow
@pytest.mark.parametrize(("k", "block"), SHAPES[1::2])
def test_swiglu_quantize_in_every_shape(k: int, block: int) -> None:
    for count in (1, 3, 37 if k < 1000 else 9):
        check_swiglu(count, k, block, "cpu", torch.float32, gaussian_grid(4), masked=count != 3)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu_quantize_to_every_number_of_levels(bits: int | str, dtype: torch.dtype) -> None:
    check_swiglu(11, 384, 128, "cpu", dtype, gaussian_grid(bits))


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # numpy's: what overflows here becomes a sigmoid of 0
def test_sigmoid_reaches_its_ends_without_nan() -> None:
    gate = torch.tensor([-1e4, -200.0, -88.0, 0.0, 88.0, 200.0, 1e4, 1.0]).repeat(1, 2)
    up, gradient = torch.ones(1, 16), torch.ones(1, 16)
    dgate, dup = operators.swiglu_quantize_backward(gradient, None, gate, up, 1).chunk(2, dim=1)
    wide = gate.double()
    share = torch.sigmoid(wide)
    torch.testing.assert_close(dup.double(), wide * share, rtol=1e-6, atol=1e-30)
    torch.testing.assert_close(dgate.double(), share * (1 + wide * (1 - share)), rtol=1e-5, atol=1e-30)


def test_inputs_need_not_be_contiguous() -> None:
    gain, grid = torch.rand(256)[::2], (16, 0.4, 8.0, "uint8")
    for x in (torch.randn(128, 6).T, torch.randn(5, 256)[:, ::2], torch.randn(1, 128).expand(4, -1)):
        plain, bits = x.contiguous(), draw_mask(128, len(x), "cpu").view(-1)[: len(x) * 16].view(16, -1).T
        pairs = [
            (operators.quantize(x, 64, *grid), operators.quantize(plain, 64, *grid)),
            (
                operators.masked_hadamard(x, bits, 64, torch.float32),
                operators.masked_hadamard(plain, bits.contiguous(), 64, torch.float32),
            ),
            (
                operators.norm_quantize(x, x, gain, EPS, torch.float32, 64, *grid, True),
                operators.norm_quantize(plain, plain, gain.contiguous(), EPS, torch.float32, 64, *grid, True),
            ),
            (
                operators.swiglu_quantize(x, x, torch.float32, 64, *grid),
                operators.swiglu_quantize(plain, plain, torch.float32, 64, *grid),
            ),
        ]
        for found, expected in pairs:
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("part", ["gradient", "residual", "gain"])
def test_tensors_of_a_backward_pass_need_not_be_contiguous(part: str) -> None:
    tensors = {
        "gradient": torch.randn(5, 64),
        "mask": draw_mask(5, 64, "cpu"),
        "unit": torch.randn(5, 64),
        "rstd": torch.rand(5, 1),
        "gain": torch.rand(64),
        "residual": torch.randn(5, 64),
    }

    def norm(gradient: Tensor, mask: Tensor, unit: Tensor, rstd: Tensor, gain: Tensor, residual: Tensor) -> list:
        return [
            *operators.norm_quantize_backward(gradient, mask, unit, rstd, gain, 16, residual, torch.float32, None),
            operators.swiglu_quantize_backward(gradient, mask, unit, residual, 16),
        ]

    expected = norm(**tensors)
    spread = torch.stack([tensors[part], tensors[part]], dim=-1)[..., 0]
    assert not spread.is_contiguous()
    for a, b in zip(norm(**tensors | {part: spread}), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("levels", [2, 3, 4, 16])
def test_a_product_of_float8_levels_is_as_exact_as_any(levels: int) -> None:
    check_float8_product(33, 48, 256, levels, "cpu")


@pytest.mark.parametrize("held", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("bits", [1, 4, "ternary"])
def test_a_whole_model_equals_the_reference(bits: int | str, held: bool) -> None:
    check_model("cpu", bits, held=held)


@pytest.mark.parametrize("bits", [1, 4])
def test_a_whole_model_under_autocast(bits: int) -> None:
    check_model("cpu", bits, bf16=True, held=True, hidden=128, mlp_hidden=256)


@pytest.mark.slow
def test_a_compiled_block_is_one_graph_with_cached_weights() -> None:
    check_compiled("cpu", "aot_eager")


def test_runs_on_the_fastest_backend_and_on_the_reference_agree(
    tiny_settings: Callable[..., RunConfig], tmp_path: Path
) -> None:
    check_runs_agree(tiny_settings(train={"device": "cpu"}), tmp_path)


@pytest.mark.parametrize("case", opcheck_cases("cpu"))
def test_operators_are_well_formed(case: str) -> None:
    check_operator(case, "cpu")


# Properties


@few
@given(st.integers(0, 2**20), st.sampled_from(BITS), st.sampled_from(SHAPES), st.integers(-30, 30))
def test_a_power_of_two_scales_steps_and_nothing_else(
    seed: int, bits: int | str, shape: tuple[int, int], power: int
) -> None:
    torch.manual_seed(seed)
    x, (levels, step_per_rms), block = torch.randn(3, shape[0]), number_arguments(gaussian_grid(bits)), shape[1]
    codes, step, mask = operators.quantize(x, block, levels, step_per_rms, levels / 2, "uint8")
    scaled = operators.quantize(x * 2.0**power, block, levels, step_per_rms, levels / 2, "uint8")
    assert torch.equal(scaled[0], codes) and torch.equal(scaled[1], step * 2.0**power) and torch.equal(scaled[2], mask)


@few
@given(st.integers(0, 2**20), st.sampled_from(SHAPES), st.integers(2, 40))
def test_the_order_of_rows_means_nothing(seed: int, shape: tuple[int, int], count: int) -> None:
    torch.manual_seed(seed)
    x, order = torch.randn(count, shape[0]), torch.randperm(count)
    codes, step, mask = operators.quantize(x, shape[1], 16, 0.335, 8.0, "uint8")
    moved = operators.quantize(x[order], shape[1], 16, 0.335, 8.0, "uint8")
    torch.testing.assert_close(moved[1], step[order], rtol=1e-6, atol=0)  # sums in another order
    assert (moved[0].int() - codes[order].int()).abs().max() <= 1
    assert (moved[0] != codes[order]).sum() <= 2 and (moved[2] != mask[order]).sum() <= 2


@few
@given(st.integers(0, 2**20), st.sampled_from(BITS), st.sampled_from(SHAPES))
def test_masks_widen_with_their_bound(seed: int, bits: int | str, shape: tuple[int, int]) -> None:
    torch.manual_seed(seed)
    x, grid = torch.randn(3, shape[0]), number_arguments(gaussian_grid(bits))
    nothing, some, all_ = (operators.quantize(x, shape[1], *grid, bound, "uint8")[2] for bound in (0.0, 1.0, 1e9))
    assert torch.all(nothing & ~some == 0) and torch.all(all_ == 255)


@few
@given(st.integers(0, 2**20), st.sampled_from(SHAPES))
def test_negating_rows_mirrors_their_codes(seed: int, shape: tuple[int, int]) -> None:
    torch.manual_seed(seed)
    x, grid = torch.randn(3, shape[0]), gaussian_grid(4)
    plus, minus = (operators.quantize(each, shape[1], *number_arguments(grid), 8.0, "uint8") for each in (x, -x))
    assert torch.equal(levels_of(minus[0], grid, "uint8"), -levels_of(plus[0], grid, "uint8"))
    assert torch.equal(minus[1], plus[1]) and torch.equal(minus[2], plus[2])


@few
@given(st.integers(0, 2**20), st.sampled_from(SHAPES), st.integers(1, 20))
def test_the_transform_is_its_own_inverse_and_keeps_lengths(seed: int, shape: tuple[int, int], count: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(count, shape[0])
    rotated = operators.masked_hadamard(x, None, shape[1], torch.float32)
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(operators.masked_hadamard(rotated, None, shape[1], torch.float32), x)


# Tiles


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 40_000), st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128, 256, 512]))
def test_rows_that_fit_are_cut_into_whole_pieces(k: int, block: int) -> None:
    if k % block or not fits(k, block):
        return
    pieces, rows, size, width = tiles_of(k, block)
    assert pieces * width == k and width % block == 0 and width % 16 == 0
    assert size & (size - 1) == 0 and width & (width - 1) == 0
    assert rows >= 1 and rows * pieces <= size < 2 * max(rows * pieces, 16, 8192 // width)
    assert size * width <= 65536


@pytest.mark.parametrize(
    ("k", "block", "expected"),
    [
        (16, 1, True),
        (2048, 128, True),
        (2816, 128, True),
        (11008, 256, True),
        (32768, 128, True),
        (24, 8, False),  # pieces of 8
        (8, 1, False),
        (1000, 8, False),
        (48, 32, False),  # no whole blocks
        (1024, 512, False),  # a matrix too large for a program
        (128 * 257, 128, False),  # too many pieces
    ],
)
def test_which_rows_fit(k: int, block: int, expected: bool) -> None:
    assert fits(k, block) is expected


@pytest.mark.parametrize(("width", "block"), [(16, 1), (16, 16), (64, 16), (128, 2), (128, 128), (256, 256)])
def test_the_matrix_is_blocks_of_the_reference_s(width: int, block: int) -> None:
    identity = torch.eye(width, dtype=torch.float64)
    expected = hadamard(identity, block) * block**0.5
    assert torch.equal(matrix(width, block, torch.device("cpu")).double(), expected.round())
    torch.testing.assert_close(expected, expected.round())


# What is asked for, and what is chosen


def test_auto_leaves_the_interpreter_alone() -> None:
    for dtype in DTYPES:
        rows, fused = (torch.zeros(1, 128, dtype=dtype), 128), (gaussian_grid(4), torch.float32)
        cases = {
            "quantize": rows,
            "masked_hadamard": rows,
            "norm_quantize": rows + fused,
            "swiglu_quantize": rows + fused,
        }
        for operation, case in cases.items():
            assert ops.choose(operation, *case) not in ("triton", "fused")
            with ops.using_backend("triton"):
                assert ops.choose(operation, *case) in ("triton", "fused")


@pytest.mark.parametrize(
    ("x", "block"),
    [
        (torch.zeros(2, 128, dtype=torch.float64), 128),
        (torch.zeros(2, 24), 8),
        (torch.zeros(2, 1024), 512),
        (torch.zeros(2, 8), 1),
    ],
)
def test_what_no_kernel_takes_is_refused(x: Tensor, block: int) -> None:
    grid, gain = gaussian_grid(4), torch.ones(x.shape[1])
    float64 = x.dtype is torch.float64
    reason = "not torch.float64" if float64 else f"do not take rows of {x.shape[1]} in blocks of {block};"
    with ops.using_backend("triton"):
        with pytest.raises(BackendError, match=f"triton backend cannot run quantize here: .* {reason}"):
            ops.quantize(x, grid, block, 8.0)
        with pytest.raises(BackendError, match=f"cannot run masked_hadamard here: .* {reason}"):
            ops.masked_hadamard(x, None, block)
        with pytest.raises(BackendError, match=reason):
            ops.norm_encode(x, None, gain, EPS, grid, block, 8.0, torch.float32, True)
        with pytest.raises(BackendError, match=reason):
            ops.swiglu_encode(x, x, grid, block, 8.0, torch.float32)
        with pytest.raises(BackendError, match=reason):
            ops.encode_many([x], grid, block, 8.0, torch.float32)
    ops.quantize(x, grid, block, 8.0)  # with 'auto' it runs


def test_other_grids_go_to_the_reference_on_request_too() -> None:
    x = torch.randn(3, 128)
    with ops.using_backend("triton"):
        found = ops.quantize(x, fp4_grid(), 128, 3.0)
    for a, b in zip(found, reference_quantize(x, fp4_grid(), 128, 3.0), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_public_operations_use_the_kernels(dtype: torch.dtype) -> None:
    x, up, gain, grid = torch.randn(5, 192).to(dtype), torch.randn(5, 192).to(dtype), torch.rand(192), gaussian_grid(4)
    arguments = (64, *number_arguments(grid), 8.0, "uint8")
    with ops.using_backend("triton"):
        found = ops.encode(x, grid, 64, 8.0, dtype)
        normed = ops.norm_encode(x, up, gain, EPS, grid, 64, 8.0, dtype, True)
        activated = ops.swiglu_encode(x, up, grid, 64, 8.0, dtype)
    for encoded, expected in (
        (found, operators.quantize(x, *arguments)),
        (normed.encoded, operators.norm_quantize(x, up, gain, EPS, dtype, *arguments, True)[1:4]),
        (activated, operators.swiglu_quantize(x, up, dtype, *arguments)),
    ):
        assert encoded.operand.grid == grid and encoded.mask is not None
        for a, b in zip((encoded.operand.data, encoded.operand.step, encoded.mask), expected, strict=True):
            assert torch.equal(a, b)
