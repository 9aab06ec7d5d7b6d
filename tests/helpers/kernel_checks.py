"""The Triton kernels against the reference, on any device: what a kernel must give, stated once.

`tests/unit/ops` runs these checks on the CPU under Triton's interpreter, `tests/gpu` on a GPU. The interpreter computes
in numpy, and cuts float32 to bfloat16 where a GPU rounds to the nearest: hence the `spare` of a bfloat16 ulp there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from questlm import Llama, ops, prepare
from questlm.config import ModelConfig, QuantSpec, RunConfig
from questlm.config.quant import Bits
from questlm.ops import Encoded, Grid, Operand
from questlm.ops.reference import fused as reference_fused
from questlm.ops.reference.hadamard import hadamard
from questlm.ops.reference.hadamard import masked_hadamard as reference_masked_hadamard
from questlm.ops.reference.packing import pack, unpack
from questlm.ops.reference.quantize import quantize as reference_quantize
from questlm.quant import cached_weights, gaussian_grid
from questlm.quant.swap import unfused
from questlm.training import train

BITS = ("ternary", *range(1, 9))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EPS = 1e-5

_EDGE = 1e-4  # steps: nearer to the edge of a cell or of the mask than that, float32 may fall to either side


def draw(count: int, k: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Fresh rows of very different sizes, one of them of zeros where there are three or more."""
    x = torch.randn(count, k) * torch.logspace(-2, 1, count).unsqueeze(1)
    x[2:3] = 0
    return x.to(device, dtype)


def draw_mask(count: int, k: int, device: str) -> Tensor:
    return pack(torch.randint(0, 2, (count, k), dtype=torch.uint8), 1).to(device)


def bound_of(grid: Grid) -> float:
    """QuEST's trust mask, in steps."""
    return 0.65 if grid.levels == 2 else grid.levels / 2


def number_arguments(grid: Grid) -> tuple[int, float]:
    assert grid.step_per_scale is not None
    return grid.levels, grid.step_per_scale


def levels_of(data: Tensor, grid: Grid, code_dtype: str) -> Tensor:
    """The levels, in steps and float64, that codes in `code_dtype` stand for."""
    return data.double() + {"uint8": -(grid.levels - 1) / 2, "int8": 0.5, "float8": 0.0}[code_dtype]


def error(found: Tensor, exact: Tensor) -> float:
    assert found.shape == exact.shape
    return float((found.double() - exact).norm() / exact.norm().clamp_min(1e-300))


def spare(device: str, *dtypes: torch.dtype) -> float:
    """What cutting to bfloat16 costs beyond rounding to it."""
    return 2.0**-8 if device == "cpu" and torch.bfloat16 in dtypes else 0.0


def check_no_worse(found: Tensor, reference: Tensor, exact: Tensor, more: float = 0.0) -> None:
    """At most twice the error of the reference in the same dtype, both against float64."""
    assert found.dtype is reference.dtype
    allowed = 2 * error(reference, exact) + 1e-6 + more
    assert error(found, exact) <= allowed, f"error {error(found, exact):.3e}, allowed {allowed:.3e}"


def check_codes(
    found: tuple[Tensor, ...], rotated: Tensor, grid: Grid, bound: float | None, code_dtype: str, slack: float = 0.0
) -> None:
    """Codes, step and mask bits that a kernel made, beside those of rotated rows in float64.

    Args:
        slack: by how much of the row's rms an entry may have been moved before it was rounded.
    """
    data, step, mask = found
    _, exact_step, exact_mask = reference_quantize(rotated, grid, 1, bound)
    assert data.shape == rotated.shape and step.shape == (len(rotated), 1) and step.dtype is torch.float32
    torch.testing.assert_close(step.double(), exact_step, rtol=2e-6 + slack / 4, atol=0)
    levels, position = levels_of(data, grid, code_dtype), rotated / exact_step.clamp_min(1e-300)
    largest, near = (grid.levels - 1) / 2, _EDGE + slack / number_arguments(grid)[1]
    # The nearest level, or where two are nearly as near, either.
    assert torch.equal((levels + largest).round(), levels + largest) and levels.abs().max() <= largest
    assert (levels - position.clamp(-largest, largest)).abs().max() <= 0.5 + near
    if bound is None:
        assert mask.numel() == 0
        return
    k = rotated.shape[1]
    assert exact_mask is not None and mask.shape == exact_mask.shape and mask.dtype is torch.uint8
    alike = unpack(mask, 1, k) == unpack(exact_mask, 1, k)
    assert torch.all(alike | ((position.abs() - bound).abs() <= near))


def check_quantize(x: Tensor, grid: Grid, block: int, bound: float | None, code_dtype: str = "uint8") -> None:
    from questlm.ops.triton import operators

    found = operators.quantize(x, block, *number_arguments(grid), bound, code_dtype)
    assert found[0].dtype is {"uint8": torch.uint8, "int8": torch.int8, "float8": torch.float8_e4m3fn}[code_dtype]
    check_codes(found, hadamard(x.double(), block), grid, bound, code_dtype)


def check_range(device: str, dtype: torch.dtype) -> None:
    """Rows of any size from 1e-30 to 1e36 beside ordinary ones, in every kernel that quantises: as rows of size 1."""
    x, grid = torch.randn(5, 256, device=device).to(dtype), gaussian_grid(4)
    gate, gain = torch.rand_like(x) + 1, torch.rand(256, device=device) + 0.5
    x[2] = 0

    def found(size: float) -> list[Encoded]:
        sized = x * torch.tensor([[1.0], [size], [1.0], [size], [1.0]], device=device, dtype=dtype)
        normed = ops.norm_encode(x, None, gain * size, EPS, grid, 128, 8.0, dtype, False).encoded
        assert normed.operand.step is not None
        return [
            ops.encode(sized, grid, 128, 8.0, torch.float32),
            *ops.encode_many([sized, x], grid, 128, 8.0, torch.float32),
            ops.swiglu_encode(gate, sized, grid, 128, 8.0, dtype),
            normed._replace(operand=normed.operand._replace(step=normed.operand.step.div(size))),
        ]

    with ops.using_backend("triton"):
        expected = found(1.0)
        for size in (2.0**-96, 2.0**-66, 2.0**65, 2.0**114):
            for ours, (operand, mask) in zip(found(size), expected, strict=True):
                assert torch.equal(ours.operand.data, operand.data)
                assert ours.mask is not None and mask is not None and torch.equal(ours.mask, mask)
                assert ours.operand.step is not None and operand.step is not None
                factor = ours.operand.step.div(operand.step)
                assert set(factor[factor.isfinite()].tolist()) <= {1.0, size}  # NaN of the row of zeros


def check_masked_hadamard(gradient: Tensor, mask: Tensor | None, block: int, dtype: torch.dtype) -> None:
    from questlm.ops.triton import operators

    found = operators.masked_hadamard(gradient, mask, block, dtype)
    exact = reference_masked_hadamard(gradient.double(), mask, block)
    reference = reference_masked_hadamard(gradient, mask, block).to(dtype)
    check_no_worse(found, reference, exact, spare(gradient.device.type, dtype))


def check_norm(
    count: int,
    k: int,
    block: int,
    device: str,
    dtypes: tuple[torch.dtype, torch.dtype | None, torch.dtype],
    grid: Grid,
    masked: bool = True,
) -> None:
    """Forward and backward of RMSNorm with quantisation.

    Args:
        dtypes: of the residual stream, of what is added to it (None: nothing is), and of the product.
        masked: whether there is a mask, and a gradient along the residual stream.
    """
    from questlm.ops.triton import operators

    residual_dtype, delta_dtype, dtype = dtypes
    x, gain = draw(count, k, device, residual_dtype), torch.rand(k, device=device) + 0.5
    delta = None if delta_dtype is None else draw(count, k, device, delta_dtype)
    bound = bound_of(grid) if masked else None
    arguments = (EPS, dtype, block, *number_arguments(grid), bound, "uint8")
    found = operators.norm_quantize(x, delta, gain, *arguments, True)
    residual, data, step, mask, unit, rstd = found
    exact_residual, reference_residual = x.double(), x
    if delta is None:
        assert residual.numel() == 0
    else:
        exact_residual, reference_residual = exact_residual + delta.double(), x + delta
        check_no_worse(residual, reference_residual, exact_residual, spare(device, residual_dtype))
        exact_residual, reference_residual = residual.double(), residual  # what is normed is what is stored
    exact, exact_unit, exact_rstd = reference_fused.norm(exact_residual, gain.double(), EPS, torch.float64)
    # Entries that were rounded to sixteen bits before they were rotated.
    slack = 0.0 if dtype is torch.float32 else 0.04
    check_codes((data, step, mask), hadamard(exact, block), grid, bound, "uint8", slack)
    normed, reference_unit, _ = reference_fused.norm(reference_residual, gain, EPS, dtype)
    check_no_worse(unit, reference_unit, exact_unit, spare(device, dtype))
    torch.testing.assert_close(rstd.double(), exact_rstd, rtol=2e-6, atol=0)
    # Whole codes, too, must be about as near. A few in thousands stand on an edge; so much is spared.
    values, exact_values = (
        ops.dequantize(*reference_quantize(rows, grid, block, None)[:2], grid) for rows in (normed, exact)
    )
    flips = number_arguments(grid)[1] * (6 / data.numel()) ** 0.5
    check_no_worse(ops.dequantize(data, step, grid), values, exact_values, spare(device, dtype) + flips)
    without = operators.norm_quantize(
        x, delta, gain, *arguments, False
    )  # another kernel, which may sum in another order
    assert torch.equal(without[0], residual) and not without[4].numel()
    torch.testing.assert_close(without[2], step, rtol=1e-4, atol=0)  # an entry in 16 bits may round to its other side
    assert (without[1] != data).sum() <= 1 + 1e-3 * data.numel()

    gradient = torch.randn(count, k, device=device).to(dtype)
    along = torch.randn(count, k, device=device).to(residual_dtype) if masked else None
    bits = mask if masked else None
    dx, ddelta, dgain = operators.norm_quantize_backward(
        gradient, bits, unit, rstd, gain, block, along, residual_dtype, delta_dtype
    )
    exact_dx, exact_dgain = reference_fused.norm_backward(
        gradient.double(), bits, unit.double(), rstd.double(), gain.double(), block
    )
    reference_dx, reference_dgain = reference_fused.norm_backward(gradient, bits, unit, rstd, gain, block)
    if along is not None:
        exact_dx, reference_dx = exact_dx + along.double(), reference_dx + along
    check_no_worse(dx, reference_dx.to(residual_dtype), exact_dx, spare(device, residual_dtype))
    if delta_dtype is None:
        assert ddelta.numel() == 0
    else:
        check_no_worse(ddelta, reference_dx.to(delta_dtype), exact_dx, spare(device, delta_dtype))
    check_no_worse(dgain, reference_dgain, exact_dgain)


def check_swiglu(
    count: int, k: int, block: int, device: str, dtype: torch.dtype, grid: Grid, masked: bool = True
) -> None:
    """Forward and backward of SwiGLU with quantisation, gate and up of `dtype`."""
    from questlm.ops.triton import operators

    gate, up = (torch.randn(count, k, device=device).mul(2).to(dtype) for _ in range(2))
    gate[2:3] = 0
    bound, slack = bound_of(grid) if masked else None, 0.0 if dtype is torch.float32 else 0.04
    data, step, mask = operators.swiglu_quantize(gate, up, dtype, block, *number_arguments(grid), bound, "uint8")
    exact = reference_fused.swiglu(gate.double(), up.double(), torch.float64)
    check_codes((data, step, mask), hadamard(exact, block), grid, bound, "uint8", slack)
    gradient, bits = torch.randn(count, k, device=device).to(dtype), mask if masked else None
    found = operators.swiglu_quantize_backward(gradient, bits, gate, up, block)
    exact_both = reference_fused.swiglu_backward(gradient.double(), bits, gate.double(), up.double(), block)
    reference_both = reference_fused.swiglu_backward(gradient, bits, gate, up, block)
    assert found.shape == (count, 2 * k)
    for each in zip(found.chunk(2, 1), reference_both.chunk(2, 1), exact_both.chunk(2, 1), strict=True):
        check_no_worse(*each, spare(device, dtype))


def check_float8_product(count: int, out: int, k: int, levels: int, device: str) -> None:
    """The product of float8 levels against exact whole numbers, and against bf16 factors that carry their steps."""
    from questlm.ops.triton import operators

    grid = gaussian_grid("ternary" if levels == 3 else levels.bit_length() - 1)
    factors, steps, exact, rounded = [], [], [], []
    for rows in (count, out):
        x = torch.randn(rows, k, device=device)
        data, step, _ = operators.quantize(x, 16, *number_arguments(grid), None, "float8")
        factors.append(Operand(data, None, step))
        steps.append(step.double())
        exact.append(data.double())
        rounded.append((data.float() * step).bfloat16())
    y = ops.scaled_matmul(factors[0], factors[1], torch.bfloat16)
    assert y.dtype is torch.bfloat16
    whole = (2 * exact[0]) @ (2 * exact[1]).T  # whole numbers below 2^53
    expected = whole / 4 * steps[0] * steps[1].T
    assert error(y, expected) <= error(rounded[0] @ rounded[1].T, expected)


def opcheck_cases(device: str) -> dict[str, tuple[Any, ...]]:
    """Arguments of each registered operator, with and without what is optional."""
    x, gain, step, unit = draw(3, 64, device), torch.rand(64), 0.4, torch.randn(3, 64, device=device).bfloat16()
    gain, mask, rstd = gain.to(device), draw_mask(3, 64, device), torch.rand(3, 1, device=device)
    narrow = x.bfloat16()
    codes = [torch.randint(-128, 128, (rows, 32), dtype=torch.int8, device=device) for rows in (5, 16)]
    of_codes = (*(torch.rand(len(m), 1, device=device) for m in codes), *(m.sum(-1, dtype=torch.int32) for m in codes))
    return {
        "int8_matmul": (*codes, *of_codes, torch.bfloat16),
        "quantize": (x, 32, 16, step, 8.0, "uint8"),
        "quantize-float8": (narrow, 1, 4, step, None, "float8"),
        "masked_hadamard": (x, mask, 32, torch.bfloat16),
        "masked_hadamard-all": (narrow, None, 32, torch.float32),
        "norm_quantize": (x, unit, gain, EPS, torch.bfloat16, 32, 16, step, 8.0, "int8", True),
        "norm_quantize-evaluating": (x, None, gain, EPS, torch.float32, 32, 3, step, None, "uint8", False),
        "norm_quantize_backward": (narrow, mask, unit, rstd, gain, 32, x, torch.float32, torch.bfloat16),
        "norm_quantize_backward-all": (narrow, None, unit, rstd, gain, 32, None, torch.bfloat16, None),
        "swiglu_quantize": (narrow, unit, torch.bfloat16, 32, 16, step, 8.0, "uint8"),
        "swiglu_quantize-all": (x, x.flip(0), torch.float32, 1, 2, step, None, "int8"),
        "swiglu_quantize_backward": (narrow, mask, narrow, unit, 32),
        "swiglu_quantize_backward-all": (x, None, x, x.flip(0), 1),
    }


def check_operator(case: str, device: str) -> None:
    """Schema and fake kernel of an operator say what the kernel does."""
    from questlm.ops.triton import operators

    assert set(operators.__all__) == {name.partition("-")[0] for name in opcheck_cases(device)}
    operator = getattr(torch.ops.questlm, f"triton_{case.partition('-')[0]}").default
    torch.library.opcheck(operator, opcheck_cases(device)[case], test_utils=("test_schema", "test_faketensor"))


def small_llama(device: str, bits: Bits = 4, **shape: int) -> Llama:
    """A prepared Llama whose norms have gains other than 1 and whose blocks matter to its logits."""
    sizes: dict[str, Any] = {"layers": 1, "hidden": 64, "heads": 2, "mlp_hidden": 96, "vocab_size": 48}
    config = ModelConfig(**sizes | shape)
    model = Llama(config).initialize(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif "layers" in name:
                parameter.mul_(4)
    return prepare(model, QuantSpec(weight_bits=bits, act_bits=bits)).to(device)


def copied(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    return gradient.clone()


def outcome(model: Llama, ids: Tensor, backend: str, *, bf16: bool, held: bool) -> dict[str, Tensor]:
    """Logits of one batch and the gradients of its loss, computed on `backend`."""
    model.zero_grad()
    with (
        ops.using_backend(backend),
        torch.autocast(ids.device.type, torch.bfloat16, enabled=bf16),
        cached_weights(model) if held else nullcontext(),
    ):
        logits: Tensor = model(ids)
        nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids.flatten()).backward()
    return {"logits": logits.detach(), **{name: copied(p.grad) for name, p in model.named_parameters()}}


def check_model(device: str, bits: Bits, *, bf16: bool = False, held: bool = False, **shape: int) -> None:
    """A whole prepared model: kernels, fused, against the reference, every layer by itself."""
    torch.manual_seed(0)  # in one draw of hundreds the reference in bfloat16 happens to be nearly exact
    model = small_llama(device, bits, **shape)
    ids = torch.randint(0, 48, (2, 9), device=device)
    with unfused(model):
        exact = outcome(model, ids, "reference", bf16=False, held=False)
        expected = outcome(model, ids, "reference", bf16=bf16, held=False)
    found = outcome(model, ids, "triton", bf16=bf16, held=held)
    assert found.keys() == expected.keys()
    for name, want in exact.items():
        assert found[name].dtype is expected[name].dtype
        # In float32 one code of hundreds may stand on an edge. Rounding to bf16 moves far more, for the reference too.
        # On a CPU that is Triton's interpreter, which truncates where the reference rounds.
        factor = 5 if bf16 and device == "cpu" else 2
        allowed = factor * error(expected[name], want.double()) + 2e-2
        assert error(found[name], want.double()) < allowed, name


def check_compiled(device: str, compiler: str) -> None:
    """A compiled block with cached weights: one graph, compiled once, and the numbers of the block run plainly."""
    model = small_llama(device, hidden=128, mlp_hidden=256)
    block = model.layers[0]
    width = model.config.head_width
    angles = tuple(torch.randn(9, width, device=device) for _ in range(2))
    x, dy = (torch.randn(2, 9, 128, device=device) for _ in range(2))
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(compiler)

    def run(forward: Callable[..., Tensor]) -> dict[str, Tensor]:
        model.zero_grad()
        own = x.clone().requires_grad_()
        with torch.autocast(device, torch.bfloat16), cached_weights(block):
            y = forward(own, angles, 0, None)
            y.backward(dy)
        return {
            "y": y.detach(),
            "x": copied(own.grad),
            **{name: copied(p.grad) for name, p in block.named_parameters()},
        }

    with ops.using_backend("triton"):
        expected = run(block)
        compiled = torch.compile(block, fullgraph=True, backend=counter)
        for _ in range(2):
            found = run(compiled)
            assert counter.frame_count == 1
            for name, want in expected.items():
                assert found[name].dtype is want.dtype
                assert error(found[name], want.double()) < 5e-2, name


def check_runs_agree(settings: RunConfig, folder: Path) -> None:
    """The same training on the fastest backend and on the reference: losses that differ by rounding."""
    found = train(settings, folder / "auto")
    plain = settings.model_copy(update={"train": settings.train.model_copy(update={"cuda_graphs": "off"})})
    with ops.using_backend("reference"):
        expected = train(plain, folder / "reference")
    losses, wanted = ([entry["loss"] for entry in record.curve] for record in (found, expected))
    assert len(losses) == len(wanted) > 2 and losses[-1] < losses[0]
    differences = [abs(a - b) for a, b in zip(losses, wanted, strict=True)]
    assert max(differences) < 0.08 and sum(differences) / len(differences) < 0.03
