"""The native kernels against the reference: same codes off the rounding boundaries, same masks, same gradients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from questlm import Llama, ops, prepare
from questlm.config import ModelConfig, QuantSpec
from questlm.ops import Grid, cpu
from questlm.ops.cpu import native
from questlm.ops.reference.hadamard import hadamard
from questlm.ops.reference.hadamard import masked_hadamard as reference_masked_hadamard
from questlm.ops.reference.packing import unpack
from questlm.ops.reference.quantize import quantize as reference_quantize
from questlm.quant import gaussian_grid

LEVELS = [3, *(2**bits for bits in range(1, 9))]
BLOCKS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 1024]
QUANTIZE = torch.ops.questlm.cpu_quantize.default
MASKED_HADAMARD = torch.ops.questlm.cpu_masked_hadamard.default


@pytest.fixture(autouse=True, scope="module")
def built() -> None:
    reason = cpu.unavailable()
    assert reason is None, f"{reason} (in a checkout: python setup.py build_ext --inplace)"


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rows(count: int, k: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, k, generator=generator) * torch.rand(count, 1, generator=generator) * 3


def grid_of(levels: int) -> Grid:
    return Grid(levels, 1.6 if levels == 2 else 6.0 / levels)


def check_against_reference(x: Tensor, grid: Grid, block: int, bound: float | None) -> None:
    codes, step, mask = cpu.quantize(x, grid, block, bound)
    expected_codes, expected_step, expected_mask = reference_quantize(x, grid, block, bound)
    assert (codes.dtype, step.dtype, codes.shape) == (torch.uint8, torch.float32, x.shape)
    torch.testing.assert_close(step, expected_step, rtol=1e-6, atol=0)
    position = hadamard(x.double(), block) / step.double().clamp_min(1e-300)
    offset = 0.5 if grid.levels % 2 == 0 else 0.0
    far = ((position + offset).remainder(1) - 0.5).abs() >= 1e-4
    assert torch.equal(codes[far], expected_codes[far])
    assert codes.int().sub(expected_codes.int()).abs().max() <= 1
    if bound is None:
        assert mask is None
    else:
        assert mask is not None and expected_mask is not None and mask.shape == expected_mask.shape
        k = x.shape[-1]
        far = (position.abs() - bound).abs() >= 1e-4
        assert torch.equal(unpack(mask, 1, k)[far], unpack(expected_mask, 1, k)[far])
        assert k % 8 == 0 or torch.all(mask[..., -1].int() >> (k % 8) == 0)  # spare bits are zero


@pytest.mark.parametrize("levels", LEVELS)
def test_quantize_equals_the_reference_off_the_boundaries(levels: int) -> None:
    grid = grid_of(levels)
    for block in BLOCKS:
        check_against_reference(rows(7, 3 * block if block > 8 else 24 * block), grid, block, levels / 2)
        check_against_reference(rows(3, block, seed=1), grid, block, None)


@pytest.mark.parametrize("bits", range(1, 9))
def test_quantize_on_the_solved_grids(bits: int) -> None:
    check_against_reference(rows(16, 256), gaussian_grid(bits), 128, 2 ** (bits - 1))


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(0, 5),
    blocks=st.integers(1, 5),
    block=st.sampled_from(BLOCKS),
    levels=st.sampled_from(LEVELS),
    bound=st.none() | st.floats(0.25, 200),
    seed=st.integers(0, 2**20),
)
def test_quantize_any_shape(count: int, blocks: int, block: int, levels: int, bound: float | None, seed: int) -> None:
    x = rows(count, blocks * block, seed)
    if count:
        check_against_reference(x, grid_of(levels), block, bound)
    else:
        codes, step, mask = cpu.quantize(x, grid_of(levels), block, bound)
        assert (codes.shape, step.shape) == (x.shape, (0, 1))
        assert (mask is None) == (bound is None)


@pytest.mark.parametrize("k", [1, 3, 7, 9, 15, 17, 255, 513, 1031])
def test_rows_of_any_length_without_rotation(k: int) -> None:
    check_against_reference(rows(5, k), grid_of(16), 1, 4.0)
    gradient, mask = rows(5, k, seed=2), cpu.quantize(rows(5, k), grid_of(16), 1, 4.0)[2]
    assert torch.equal(cpu.masked_hadamard(gradient, mask, 1), reference_masked_hadamard(gradient, mask, 1))
    assert torch.equal(cpu.masked_hadamard(gradient, None, 1), gradient)


@pytest.mark.parametrize("levels", LEVELS)
def test_halves_round_to_even(levels: int) -> None:
    # Entries of -1 and 1 have an rms of exactly 1, and a step of 1/4 puts them on boundaries: 4 + 1/2, -4 + 1/2.
    signs = torch.ones(4, 64)
    signs[:, ::3] = -1
    for step in (0.25, 0.5, 2.0 / 3, 1.0, 2.0):
        grid = Grid(levels, step)
        expected_codes, expected_step, expected_mask = reference_quantize(signs, grid, 1, 1 / step)
        codes, found_step, mask = cpu.quantize(signs, grid, 1, 1 / step)
        assert torch.equal(found_step, expected_step)
        assert torch.equal(codes, expected_codes)
        assert mask is not None and expected_mask is not None and torch.equal(mask, expected_mask)


def test_rows_of_zeros_have_step_zero_and_pass_their_gradient() -> None:
    x = rows(3, 128)
    x[1] = 0
    for block in (1, 128):
        codes, step, mask = cpu.quantize(x, grid_of(16), block, 7.0)
        expected = reference_quantize(x, grid_of(16), block, 7.0)
        assert step[1] == 0 and torch.equal(codes[1], expected[0][1])
        assert mask is not None and torch.all(mask[1] == 255)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("block", [1, 2, 128])
def test_a_row_that_is_not_finite_has_a_step_that_is_not(bad: float, block: int) -> None:
    x = rows(3, 256)
    x[1, 5] = bad
    codes, step, mask = cpu.quantize(x, grid_of(8), block, 3.0)
    assert step.isfinite().flatten().tolist() == [True, False, True]
    assert codes.max() < 8 and mask is not None
    check_against_reference(x[[0, 2]], grid_of(8), block, 3.0)


def test_a_mask_does_not_hide_nan_and_infinity() -> None:
    gradient = rows(2, 128)
    gradient[0, 3], gradient[1, 4] = float("nan"), float("inf")
    nothing = torch.zeros(2, 16, dtype=torch.uint8)
    for block in (1, 2, 128):
        found = cpu.masked_hadamard(gradient, nothing, block)
        assert torch.equal(found.isnan(), reference_masked_hadamard(gradient, nothing, block).isnan())
        assert found.isnan().any(-1).all()


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("masked", [True, False])
def test_masked_hadamard_is_as_accurate_as_the_reference(block: int, masked: bool) -> None:
    gradient = torch.randn(9, 3 * block, generator=torch.Generator().manual_seed(block))
    mask = None
    if masked:
        generator = torch.Generator().manual_seed(0)
        mask = torch.randint(0, 256, (9, -(-3 * block // 8)), dtype=torch.uint8, generator=generator)
    exact = reference_masked_hadamard(gradient.double(), mask, block)
    error = (cpu.masked_hadamard(gradient, mask, block) - exact).abs().max()
    assert error <= 1e-6 * exact.abs().max()
    assert error <= 2 * (reference_masked_hadamard(gradient, mask, block) - exact).abs().max() + 1e-7


def test_inputs_need_not_be_contiguous() -> None:
    x, mask = rows(256, 128), torch.randint(0, 256, (32, 128), dtype=torch.uint8)
    for strided in (x.T, x[::2, ::2], x[:1].expand(6, 128), rows(4, 300)[:, 7:263]):
        found = cpu.quantize(strided, grid_of(16), 64, 4.0)
        expected = cpu.quantize(strided.contiguous(), grid_of(16), 64, 4.0)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True) if a is not None and b is not None)
    assert torch.equal(
        cpu.masked_hadamard(x.T, mask.T, 128), cpu.masked_hadamard(x.T.contiguous(), mask.T.contiguous(), 128)
    )


def results(x: Tensor, block: int) -> list[Tensor]:
    codes, step, mask = cpu.quantize(x, grid_of(16), block, 5.0)
    assert mask is not None
    return [codes, step, mask, cpu.masked_hadamard(x, mask, block), cpu.masked_hadamard(x, None, block)]


@pytest.mark.parametrize("k", [128, 768])
def test_result_depends_on_the_row_alone(k: int, threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows(700, k)  # enough for several threads
    torch.set_num_threads(1)
    one = results(x, 128)
    few = results(x[350:353], 128)
    torch.set_num_threads(2)
    two, again = results(x, 128), results(x, 128)
    monkeypatch.setattr(native, "_parallel", lambda: None)
    own_threads = results(x, 128)
    for a, b, c, d, part in zip(one, two, again, own_threads, few, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c) and torch.equal(a, d) and torch.equal(a[350:353], part)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_instruction_set_gives_the_same_bits(block: int) -> None:
    x = rows(5, 3 * block + (5 if block == 1 else 0))
    widest = results(x, block)
    try:
        for width in (8, 4):
            native.limit_vector_width(width)
            assert all(torch.equal(a, b) for a, b in zip(widest, results(x, block), strict=True))
    finally:
        native.limit_vector_width(16)


@pytest.mark.parametrize("bound", [4.0, None])
def test_quantize_is_a_well_formed_operator(bound: float | None) -> None:
    torch.library.opcheck(QUANTIZE, (rows(3, 64), 32, 16, 0.4, bound))
    torch.library.opcheck(QUANTIZE, (rows(3, 9), 1, 3, 0.4, bound))


def test_masked_hadamard_is_a_well_formed_operator() -> None:
    mask = torch.randint(0, 256, (3, 8), dtype=torch.uint8)
    torch.library.opcheck(MASKED_HADAMARD, (rows(3, 64), mask, 32))
    torch.library.opcheck(MASKED_HADAMARD, (rows(3, 64), None, 32))


def test_shapes_are_known_without_data() -> None:
    codes, step, mask = QUANTIZE(torch.empty(5, 20, device="meta"), 4, 16, 0.4, 1.0)
    assert [codes.shape, step.shape, mask.shape] == [(5, 20), (5, 1), (5, 3)]


@pytest.mark.parametrize(
    ("x", "block", "message"),
    [
        (torch.zeros(2, 24), 3, "power of two"),
        (torch.zeros(2, 24), 16, "divides the dimension 24"),
        (torch.zeros(2, 24), 0, "power of two"),
        (torch.zeros(2, 24, dtype=torch.float64), 8, "float32"),
    ],
)
def test_what_the_kernels_cannot_read_is_refused(x: Tensor, block: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cpu.quantize(x, grid_of(16), block, None)
    with pytest.raises(ValueError, match=message):
        cpu.masked_hadamard(x, torch.zeros(2, 3, dtype=torch.uint8), block)


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="mask must be"):
        cpu.masked_hadamard(torch.zeros(2, 64), torch.zeros(2, 7, dtype=torch.uint8), 64)


def test_dispatch_uses_the_kernels_for_float32() -> None:
    assert ops.choose("quantize", torch.zeros(1, 16)) == "cpu"
    assert ops.choose("quantize", torch.zeros(1, 16, dtype=torch.bfloat16)) == "reference"
    with ops.using_backend("cpu"):
        x = rows(4, 64)
        assert torch.equal(ops.quantize(x, grid_of(16), 64).codes, cpu.quantize(x, grid_of(16), 64, None)[0])


def test_a_library_that_was_not_built_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "EXTENSION_SUFFIXES", [".none"])
    native._library.cache_clear()
    native.unavailable.cache_clear()
    try:
        assert "were not built" in str(native.unavailable())
    finally:
        monkeypatch.undo()
        native._library.cache_clear()
        native.unavailable.cache_clear()


@pytest.mark.slow
def test_a_prepared_model_compiles_to_one_graph() -> None:
    torch.manual_seed(0)
    model = prepare(
        Llama(ModelConfig(vocab_size=32, layers=1, hidden=32, heads=2)), QuantSpec(weight_bits=4, act_bits=4)
    )
    tokens = torch.randint(0, 32, (2, 8))

    def gradients(forward: object) -> list[Tensor]:
        model.zero_grad()
        forward(tokens).square().mean().backward()  # type: ignore[operator]
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    eager = gradients(model)
    torch._dynamo.reset()
    compiled = gradients(torch.compile(model, fullgraph=True, backend="aot_eager"))
    for a, b in zip(eager, compiled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
