"""One table decides which implementation runs, and says why another cannot."""

from __future__ import annotations

import pytest
import torch

from questlm import ops
from questlm.errors import BackendError
from questlm.ops import Grid, Operand, machine
from questlm.ops.machine import no_nvidia
from questlm.ops.survey import survey

CPU = torch.device("cpu")
OF_ROWS = ("quantize", "masked_hadamard", "quantize_other_grids")


def test_the_survey_is_the_table_and_every_operation_has_one_that_runs():
    found = [(title.partition(",")[0], name, reason) for title, name, reason in survey(CPU)]
    table = [(operation, each.name) for operation, all_of_it in ops.IMPLEMENTATIONS.items() for each in all_of_it]
    assert list(dict.fromkeys((operation, name) for operation, name, _ in found)) == table
    assert all(reason is None or 10 < len(reason) < 200 for *_, reason in found)
    for operation, implementations in ops.IMPLEMENTATIONS.items():
        assert (operation, implementations[-1].name, None) in found


@pytest.mark.parametrize("operation", OF_ROWS)
def test_auto_always_finds_one_that_is_available(operation):
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        backend = ops.choose(operation, torch.zeros(1, dtype=dtype))
        assert ops.unavailable(backend) is None


@pytest.mark.parametrize("operation", OF_ROWS)
def test_a_request_is_honoured_and_ends_with_its_block(operation):
    x = torch.zeros(1)
    before = ops.choose(operation, x)
    with ops.using_backend("reference"):
        assert ops.choose(operation, x) == "reference"
        with ops.using_backend("auto"):
            assert ops.choose(operation, x) == before
        assert ops.choose(operation, x) == "reference"
    with pytest.raises(KeyError), ops.using_backend("reference"):
        raise KeyError
    assert ops.choose(operation, x) == before


@pytest.mark.parametrize("backend", ["auto", "reference", "cpu"])
def test_what_no_backend_fuses_is_composed_of_its_parts(backend):
    if ops.unavailable(backend):
        pytest.skip(f"no {backend} backend here")
    x, grid = torch.zeros(1, 128), Grid(16, 1.0)
    with ops.using_backend(backend):
        assert ops.choose("norm_quantize", x, 128, grid, x.dtype) == "composed"
        assert ops.choose("quantize_many", [x], 128, grid) == "one by one"
        assert ops.choose("masked_hadamard_many", [x], x, 128) == "one by one"


def test_an_unknown_backend_gives_the_nearest_name():
    with pytest.raises(BackendError, match=r"'refrence'.*Did you mean 'reference'"), ops.using_backend("refrence"):
        pass


@pytest.mark.parametrize("name", ["cpu", "triton"])
def test_a_backend_that_cannot_run_says_why(name):
    reason = ops.unavailable(name)
    if reason is None:
        with ops.using_backend(name):
            return
    with pytest.raises(BackendError, match=name) as caught, ops.using_backend(name):
        pass
    assert reason in str(caught.value)


def test_a_case_that_a_requested_backend_cannot_run_is_refused_with_the_reason():
    if ops.unavailable("cpu"):
        pytest.skip("no native kernels here")
    with (
        ops.using_backend("cpu"),
        pytest.raises(BackendError, match=r"native kernels take float32, not torch\.float64"),
    ):
        ops.quantize(torch.zeros(1, 128, dtype=torch.float64), Grid(16, 1.0), 128)


@pytest.mark.parametrize(
    ("capability", "grid", "dtype", "expected"),
    [
        ((9, 0), Grid(16, 1.0), torch.bfloat16, "float8"),
        ((9, 0), Grid(3, 1.0), torch.bfloat16, "float8"),
        ((9, 0), Grid(256, 1.0), torch.bfloat16, "int8"),
        ((9, 0), Grid(255, 1.0), torch.bfloat16, "uint8"),
        ((9, 0), Grid(16, 1.0), torch.float32, "uint8"),
        ((8, 0), Grid(16, 1.0), torch.bfloat16, "uint8"),
        ((8, 0), Grid(32, 1.0), torch.bfloat16, "int8"),
        ((8, 0), Grid(3, 1.0), torch.bfloat16, "uint8"),
        ((7, 5), Grid(16, 1.0), torch.bfloat16, "uint8"),
    ],
)
def test_codes_are_written_for_the_fastest_product_of_the_gpu(gpu, capability, grid, dtype, expected):
    gpu(capability)
    assert ops.choose("code_dtype", torch.device("cuda"), grid, dtype) == expected


@pytest.fixture
def gpu(monkeypatch):
    """Pretend that the GPU has some compute capability."""

    def pretend(capability):
        machine._no_nvidia.cache_clear()
        monkeypatch.setattr(torch.version, "cuda", "12.8")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    yield pretend
    machine._no_nvidia.cache_clear()


@pytest.mark.parametrize(
    ("shapes", "dtypes", "reason"),
    [
        ((3, 32, 16), (torch.float8_e4m3fn, torch.bfloat16), None),
        ((3, 100, 16), (torch.float8_e4m3fn, torch.bfloat16), "rows of 100 are not a multiple of 16"),
        ((3, 32, 7), (torch.float8_e4m3fn, torch.bfloat16), "columns of 7 are not a multiple of 16"),
        ((3, 32, 16), (torch.uint8, torch.bfloat16), "the factors are torch.uint8 and torch.uint8"),
        ((3, 32, 16), (torch.float8_e4m3fn, torch.float32), "the result comes in bfloat16, not in torch.float32"),
    ],
)
def test_float8_products_say_what_they_lack(monkeypatch, shapes, dtypes, reason):
    monkeypatch.setattr("questlm.ops.dispatch.no_nvidia", lambda *_: None)
    rows, k, columns = shapes
    a, b = (torch.empty(count, k, dtype=dtypes[0], device="meta") for count in (rows, columns))
    found = dict(ops.reasons("float8_gradient", a, b, dtypes[1]))["float8"]
    assert found == reason or (found is not None and found.startswith(reason))


@pytest.mark.parametrize(("device", "found"), [("cpu", "a CPU"), ("meta", "a META"), ("cuda", "sm_80")])
def test_float8_products_need_a_gpu(gpu, device, found):
    gpu((8, 0))
    reason = no_nvidia(torch.device(device), 9, "float8 products")
    assert reason == f"float8 products need an NVIDIA GPU from Hopper on; this is {found}"


def test_an_int8_product_is_chosen_by_its_factors():
    step = torch.ones(16, 1)
    codes, floats = torch.zeros(16, 32, dtype=torch.int8), torch.zeros(16, 32)
    reason = dict(ops.reasons("scaled_matmul", Operand(codes, None, step), Operand(floats), torch.bfloat16))["int8"]
    assert reason == (ops.unavailable("triton") or "a factor has no steps")
