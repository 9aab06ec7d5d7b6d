"""Native products of packed weights, by every instruction set that this processor has, against exact sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from questlm import ops
from questlm.errors import BackendError
from questlm.grid import packed_width
from questlm.ops import Grid, Operand, PackedFormat
from questlm.ops.cpu import native
from questlm.ops.cpu.linear import NativeWeight
from questlm.ops.reference.matmul import factor, scaled_matmul
from questlm.ops.unpacking import input_operand, stored_rows
from questlm.quant import gaussian_grid
from questlm.quant.grids import fp4_grid, lloydmax_grid

CPU = torch.device("cpu")
SETS = [] if native.unavailable() else native.instruction_sets()

UNIFORM = {str(levels): Grid(levels, 6.0 / levels) for levels in (2, 3, 4, 7, 8, 15, 16, 32, 64, 128, 255, 256)}
OFF_CENTRE = {"16 from 8": Grid(16, 0.3, zero=8), "4 from 0": Grid(4, 0.5, zero=0), "255 from 127": Grid(255, 0.02)}
SPARSE = {f"2:4 of {levels}": Grid(levels, 4.0 / levels, group=2) for levels in (2, 4, 8, 16, 100)}
TABLES = {"fp4": fp4_grid(), "three": Grid(3, 1.0, table=(-1.0, 0.0, 3.0)), "pair": Grid(2, 1.0, table=(-0.5, 2.0))}
FLOAT_TABLES = {f"lloydmax {bits}": lloydmax_grid(bits) for bits in (1, 2, 3, 4, 5)} | {
    "16 from 0.3": Grid(16, 0.4, zero=0.3),
    "200 from 0.3": Grid(200, 0.03, zero=0.3),
    "2:4 of 200": Grid(200, 0.03, group=2),
}
WEIGHTS = UNIFORM | OFF_CENTRE | SPARSE | TABLES
INPUTS = UNIFORM | OFF_CENTRE | TABLES


@pytest.fixture(autouse=True, scope="module")
def built() -> Iterator[None]:
    reason = native.unavailable()
    assert reason is None, f"{reason} (in a checkout: python setup.py build_ext --inplace)"
    before = native.instruction_set()
    yield
    native.use_instruction_set(before)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def matrix(out: int, k: int, grid: Grid, seed: int = 0) -> dict[str, Tensor]:
    """The tensors of a random packed matrix."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {"step": torch.rand(out, 1, generator=generator) + 0.5}
    codes = torch.randint(0, grid.levels, (out, k), generator=generator, dtype=torch.uint8)
    if not grid.group:
        return tensors | {"codes": ops.pack(codes, grid.levels)}
    kept = ops.kept_entries(torch.randn(out, k, generator=generator), grid.group)
    half, bits = ops.pack_sparse(codes, kept, grid.group)
    return tensors | {"codes": ops.pack(half, grid.levels), "kept": bits}


def rows(tokens: int, k: int, seed: int = 0, size: float = 1.0) -> Tensor:
    x = torch.randn(tokens, k, generator=torch.Generator().manual_seed(seed))
    x[::2] *= size
    return x


def exact(x: Tensor, tensors: dict[str, Tensor], format: PackedFormat) -> Tensor:
    """What integers give: sums rounded once to float32, then multiplied by the two steps, one after the other."""
    a, b = input_operand(x, tensors, format, torch.float32), stored_rows(tensors, format)
    assert a.step is not None and b.step is not None
    dots = factor(a.data, a.grid, torch.float64) @ factor(b.data, b.grid, torch.float64).T
    return dots.float() * a.step * b.step.T


@pytest.mark.parametrize("name", SETS)
@settings(deadline=None, max_examples=150)
@given(
    out=st.integers(1, 140),
    k=st.integers(1, 40),
    tokens=st.one_of(st.integers(1, 8), st.integers(1, 65)),
    weight=st.sampled_from(sorted(WEIGHTS)),
    act=st.sampled_from(sorted(INPUTS)),
    size=st.sampled_from((0.0, 2.0**-66, 1.0, 2.0**60)),
    rotated=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_sums_of_integers_are_exact(
    name: str, out: int, k: int, tokens: int, weight: str, act: str, size: float, rotated: bool, seed: int
) -> None:
    grid, block = WEIGHTS[weight], 1
    if rotated:
        k, block = 16 * k, 16
    elif grid.group:
        k *= 8
    tensors, format = matrix(out, k, grid, seed), PackedFormat(k, block, grid, INPUTS[act])
    x = rows(tokens, k, seed, size)
    native.use_instruction_set(name)
    packed = NativeWeight(tensors, format, CPU, torch.float32)
    assert packed._packed.in_integers
    assert torch.equal(packed.linear(x), exact(x, tensors, format))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("levels", [2, 3, 8, 16, 256])
def test_sums_of_long_rows_are_exact(name: str, levels: int) -> None:
    """The longest rows that 8 bits allow, all at one end of their grids, where sums are largest."""
    k = 33_000 if levels == 256 else 40_000
    grid = Grid(levels, 6.0 / levels)
    tensors = {"codes": ops.pack(torch.full((3, k), levels - 1, dtype=torch.uint8), levels), "step": torch.ones(3, 1)}
    format = PackedFormat(k, 1, grid, Grid(levels, 1e-3))
    native.use_instruction_set(name)
    packed = NativeWeight(tensors, format, CPU, torch.float32)
    assert packed._packed.in_integers
    for x in (torch.ones(7, k), -torch.ones(1, k)):
        assert torch.equal(packed.linear(x), exact(x, tensors, format))


def test_rows_too_long_for_integers_are_summed_as_floats() -> None:
    tensors, format = matrix(2, 40_000, UNIFORM["256"]), PackedFormat(40_000, 1, UNIFORM["256"], UNIFORM["256"])
    packed, x = NativeWeight(tensors, format, CPU, torch.float32), rows(2, 40_000)
    assert not packed._packed.in_integers
    torch.testing.assert_close(packed.linear(x), exact(x, tensors, format), rtol=1e-4, atol=1.0)


@pytest.mark.parametrize("name", SETS)
@settings(deadline=None, max_examples=120)
@given(
    out=st.integers(1, 140),
    k=st.integers(1, 30),
    tokens=st.one_of(st.integers(1, 8), st.integers(1, 65)),
    weight=st.sampled_from([*sorted(WEIGHTS | FLOAT_TABLES), "int8", "bf16", "float32", "bf16-2:4"]),
    act=st.sampled_from([None, "16", "lloydmax 3"]),
    seed=st.integers(0, 2**20),
)
def test_sums_of_floats_are_within_their_rounding(
    name: str, out: int, k: int, tokens: int, weight: str, act: str | None, seed: int
) -> None:
    k, grid = 16 * k, (WEIGHTS | FLOAT_TABLES).get(weight)
    tensors = stored_matrix(out, k, weight, seed) if grid is None else matrix(out, k, grid, seed)
    block = 1 if weight == "int8" else 16
    format = PackedFormat(k, block, grid, (INPUTS | FLOAT_TABLES)[act] if act else None)
    x = rows(tokens, k, seed)
    native.use_instruction_set(name)
    found = NativeWeight(tensors, format, CPU, torch.float32).linear(x)
    a, b = input_operand(x, tensors, format, torch.float32), stored_rows(tensors, format)
    a64, b64 = in_float64(a), in_float64(b)
    error, size = (found - a64 @ b64.T).abs(), a64.abs() @ b64.abs().T
    assert bool((error <= size * 2.0**-24 * (k**0.5 + 8)).all())  # what K roundings of a float32 sum come to


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("weight", ["2", "3", "16", "256", "lloydmax 4", "int8", "bf16", "float32"])
@pytest.mark.parametrize("k", [256, 2048, 5632])
def test_sums_of_floats_are_as_accurate_as_the_reference(name: str, weight: str, k: int) -> None:
    grid = (WEIGHTS | FLOAT_TABLES).get(weight)
    tensors = stored_matrix(100, k, weight, 0) if grid is None else matrix(100, k, grid)
    format, x = PackedFormat(k, 1, grid, None), rows(9, k)
    native.use_instruction_set(name)
    found = NativeWeight(tensors, format, CPU, torch.float32).linear(x)
    a, b = input_operand(x, tensors, format, torch.float32), stored_rows(tensors, format)
    exactly = in_float64(a) @ in_float64(b).T
    terms = in_float64(a).float()[:, None] * in_float64(b).float()
    in_turn = torch.from_numpy(np.cumsum(terms.numpy(), axis=-1, dtype=np.float32)[..., -1])
    # torch adds in an order of its own, on some machines with hardly an error: one term after the other will do, too.
    allowed = max(error_of(sums, exactly) for sums in (scaled_matmul(a, b, torch.float32), in_turn))
    assert error_of(found, exactly) <= 2 * allowed


def error_of(found: Tensor, exactly: Tensor) -> float:
    return float((found - exactly).square().mean().sqrt())


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("weight", sorted(WEIGHTS))
@pytest.mark.parametrize("tokens", [1, 2, 3, 40])
def test_numbers_of_few_digits_are_multiplied_exactly(name: str, weight: str, tokens: int) -> None:
    grid = WEIGHTS[weight]
    tensors, format = matrix(70, 144, grid), PackedFormat(144, 1, grid, None)
    x = torch.randint(-200, 201, (tokens, 144)).float()
    x[:, 0] = 2.0**13
    native.use_instruction_set(name)
    packed = NativeWeight(tensors, format, CPU, torch.float32)
    assert packed._packed.by_digits
    levels = stored_rows(tensors, format)
    assert levels.step is not None
    sums = x.double() @ factor(levels.data, levels.grid, torch.float64).T
    assert torch.equal(packed.linear(x), sums.float() * levels.step.T)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("size", [0.0, 2.0**-149, 2.0**-126, 2.0**-110, 2.0**-66, 2.0**60, 2.0**115])
def test_numbers_may_have_any_size(name: str, size: float) -> None:
    tensors, format = matrix(20, 64, UNIFORM["16"]), PackedFormat(64, 1, UNIFORM["16"], None)
    x = rows(3, 64)
    x[1] *= size
    native.use_instruction_set(name)
    found = NativeWeight(tensors, format, CPU, torch.float32).linear(x)
    expected = in_float64(Operand(x, None, None)) @ in_float64(stored_rows(tensors, format)).T
    error = (found - expected).abs() / x.abs().amax(-1, keepdim=True).clamp(min=2.0**-104)
    assert error.max() <= 64 * 8 * 2.0**-22


@pytest.mark.parametrize("name", SETS)
def test_a_table_of_large_levels_is_exact(name: str) -> None:
    grid, act = Grid(4, 1.0, table=(-60.0, -1.0, 0.5, 60.0)), UNIFORM["256"]
    tensors, format = matrix(30, 100, grid), PackedFormat(100, 1, grid, act)
    tensors["codes"] = ops.pack(torch.full((30, 100), 3, dtype=torch.uint8), 4)
    native.use_instruction_set(name)
    x = torch.full((2, 100), 3.0)
    assert torch.equal(NativeWeight(tensors, format, CPU, torch.float32).linear(x), exact(x, tensors, format))


def in_float64(operand: Operand) -> Tensor:
    """The exact values of an operand."""
    levels = factor(operand.data, operand.grid, torch.float64)
    return levels if operand.step is None else levels * operand.step


def stored_matrix(out: int, k: int, kind: str, seed: int) -> dict[str, Tensor]:
    weight = rows(out, k, seed)
    if kind == "int8":
        return {"codes": torch.randint(-127, 128, (out, k), dtype=torch.int8), "scale": torch.rand(out, 1)}
    if kind == "bf16-2:4":
        half, kept = ops.pack_sparse(weight, ops.kept_entries(weight, 1), 1)
        return {"weight": half.bfloat16(), "kept": kept}
    return {"weight": weight.bfloat16() if kind == "bf16" else weight}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("weight", ["2", "3", "4", "8", "16", "256", "fp4", "lloydmax 4", "lloydmax 5", "float32"])
@pytest.mark.parametrize("act", [None, "2", "16", "256"])
def test_a_token_has_the_same_output_in_any_batch(name: str, weight: str, act: str | None) -> None:
    grid = (WEIGHTS | FLOAT_TABLES).get(weight)
    tensors = matrix(200, 1104, grid) if grid else stored_matrix(200, 1104, weight, 0)
    native.use_instruction_set(name)
    format = PackedFormat(1104, 16, grid, INPUTS[act] if act else None)
    packed, x = NativeWeight(tensors, format, CPU, torch.float32), rows(70, 1104)
    one_by_one = torch.cat([packed.linear(row) for row in x.split(1)])
    for size in (2, 3, 5, 70):
        assert torch.equal(torch.cat([packed.linear(some) for some in x.split(size)]), one_by_one)


@pytest.mark.parametrize("act", [None, "2", "16"])
def test_threads_change_nothing(act: str | None, threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    format = PackedFormat(2048, 128, UNIFORM["2"], INPUTS[act] if act else None)
    packed, x = NativeWeight(matrix(1000, 2048, UNIFORM["2"]), format, CPU, torch.float32), rows(600, 2048)
    torch.set_num_threads(1)
    one = packed.linear(x)
    torch.set_num_threads(2)
    assert torch.equal(packed.linear(x), one)
    monkeypatch.setattr(native, "_parallel", lambda: None)
    assert torch.equal(packed.linear(x), one)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("act", [None, "2", "16", "256"])
def test_a_row_that_is_not_finite_spoils_its_own_output_alone(name: str, act: str | None) -> None:
    tensors, format = matrix(40, 64, UNIFORM["8"]), PackedFormat(64, 16, UNIFORM["8"], INPUTS[act] if act else None)
    x = rows(7, 64)
    x[1, 3], x[4, 5] = float("nan"), float("inf")
    native.use_instruction_set(name)
    packed = NativeWeight(tensors, format, CPU, torch.float32)
    y = packed.linear(x)
    assert not y[[1, 4]].isfinite().any()
    others = [0, 2, 3, 5, 6]
    assert torch.equal(y[others], packed.linear(x[others]))


def test_no_tokens_give_no_outputs() -> None:
    for act in (None, UNIFORM["16"]):
        packed = NativeWeight(matrix(5, 32, UNIFORM["4"]), PackedFormat(32, 16, UNIFORM["4"], act), CPU, torch.float32)
        assert packed.linear(torch.empty(0, 32)).shape == (0, 5)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8, "ternary"])
@pytest.mark.parametrize("act", [None, 4])
def test_a_weight_takes_no_more_memory_than_its_codes(bits: int, act: int | None) -> None:
    grid = gaussian_grid(bits)
    tensors = matrix(2048, 2048, grid)
    format = PackedFormat(2048, 128, grid, None if act is None else gaussian_grid(act))
    packed = NativeWeight(tensors, format, CPU, torch.float32)
    assert packed.nbytes <= 1.03 * sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": torch.zeros(5, 15, dtype=torch.uint8)}, r"codes must be torch.uint8 \(5, 16\)"),
        ({"step": torch.ones(4, 1)}, r"step must be torch.float32 \(5, 1\)"),
        ({"offset": torch.ones(5, 1, dtype=torch.float64)}, r"offset must be torch.float32 \(5, 1\)"),
    ],
)
def test_what_the_kernels_cannot_read_is_refused(change: dict[str, Tensor], message: str) -> None:
    format = PackedFormat(32, 16, UNIFORM["16"], UNIFORM["16"])
    with pytest.raises(ValueError, match=message):
        NativeWeight(matrix(5, 32, UNIFORM["16"]) | change, format, CPU, torch.float32)
    with pytest.raises(ValueError, match="block size 64 is not a power of two that divides"):
        NativeWeight(matrix(5, 32, UNIFORM["16"]), PackedFormat(32, 64, UNIFORM["16"], None), CPU, torch.float32)


def test_codes_beyond_their_grid_read_no_memory_of_others() -> None:
    """An artifact is checked when it is read; here any bytes must do no harm."""
    for levels, grid in (
        (3, UNIFORM["3"]),
        (7, UNIFORM["7"]),
        (15, TABLES["fp4"]),
        (200, FLOAT_TABLES["200 from 0.3"]),
    ):
        codes = torch.full((20, packed_width(40, levels)), 255, dtype=torch.uint8)
        for act in (None, UNIFORM["16"]):
            weight = NativeWeight(
                {"codes": codes, "step": torch.ones(20, 1)}, PackedFormat(40, 1, grid, act), CPU, torch.float32
            )
            assert weight.linear(rows(3, 40)).shape == (3, 20)


@pytest.fixture
def load_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Loads the library as a new process does that has the variable QUESTLM_CPU; gives the set that is then in use."""

    def load(variable: str) -> str:
        monkeypatch.setenv("QUESTLM_CPU", variable)
        native._library.__wrapped__()
        return native.instruction_set()

    return load


@pytest.mark.parametrize("name", SETS)
def test_the_environment_chooses_an_instruction_set(name: str, load_with: Callable[[str], str]) -> None:
    native.use_instruction_set(next((other for other in SETS if other != name), name))
    assert load_with(name) == name


def test_an_unknown_instruction_set_is_an_error(load_with: Callable[[str], str]) -> None:
    with pytest.raises(BackendError, match=r"QUESTLM_CPU = 'skalar': there is no such instruction set.*scalar"):
        load_with("skalar")
    with pytest.raises(BackendError, match="there is no such instruction set"):
        native.use_instruction_set("avx1024")


def test_an_instruction_set_that_the_processor_lacks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_sets", lambda library: [("scalar", True), ("later", False)])
    with pytest.raises(
        BackendError, match=r"'later': this processor does not have it\. This processor can run: scalar\."
    ):
        native.use_instruction_set("later")


@pytest.mark.parametrize("size", [0, 1, 255, 2**18 + 100])
def test_reading_memory_takes_any_size(size: int) -> None:
    native.read(torch.ones(size, dtype=torch.uint8))
