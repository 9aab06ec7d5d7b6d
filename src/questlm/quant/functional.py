"""Methods applied to a single tensor: for experiments, tests and pictures."""

from __future__ import annotations

from torch import Tensor

from questlm import ops
from questlm.config.quant import Bits
from questlm.errors import ConfigError
from questlm.ops import Grid, Operand
from questlm.quant.methods import METHODS, Role, make_quantizer
from questlm.quant.quantizers import Quantizer

__all__ = ["dequantize", "fake_quantize", "quantize"]


def fake_quantize(
    x: Tensor,
    method: str = "quest",
    bits: Bits | None = None,
    role: Role = "weight",
    rotate_back: bool = False,
    block_size: int = 128,
    format: str = "int",
    trust: float | None = None,
) -> Tensor:
    """Return the values of `x` after quantisation, with the method's gradient.

    Args:
        x: (..., K) floating point; the last dimension is a row (an output channel's weights, or a token).
        method: name in `questlm.quant.METHODS` of a method that learns nothing for this factor.
        bits: 1 to 8 or 'ternary'; 16 for no rounding (only the rotation, if the method has one); None: the usual width.
        role: which factor of the product this is; some methods treat weights and activations differently.
        rotate_back: return to the domain of `x`; by default the result stays in the Hadamard domain.
        block_size: of the Hadamard transform.
        format: of the grid: 'int', 'ternary', 'fp4', 'lloydmax', 'int-2:4' or 'bf16-2:4'.
        trust: outer trust factor s; None: the method's own.

    Returns:
        (..., K), of the dtype of `x`.

    Raises:
        ConfigError: unknown method, format or role, a combination that makes no sense, a method that learns (use
            `make_quantizer`), or no block divides K.
    """
    if bits == 16 and format == "int":
        block = _unrounded(x, method, role, block_size)
        values = ops.hadamard(x, block)
    else:
        quantizer = _stateless(x, method, bits, role, block_size, format, trust)
        block, values = quantizer.block_size, quantizer(x)
    return ops.hadamard(values, block) if rotate_back else values


def quantize(
    x: Tensor,
    method: str = "quest",
    bits: Bits | None = None,
    role: Role = "weight",
    block_size: int = 128,
    format: str = "int",
) -> tuple[Tensor, Tensor]:
    """Return the codes of `x`, (..., K) uint8, and the step size of each row, (..., 1).

    The arguments are those of `fake_quantize`.

    Raises:
        ConfigError: as `fake_quantize`; also for methods and formats whose values are not codes times one step.
    """
    quantizer, _ = _coded(x, method, bits, role, block_size, format)
    operand = quantizer.operand(x.detach().reshape(-1, x.shape[-1]))
    if operand.step is None or operand.offset is not None:
        raise ConfigError(f"{method} has offsets beside codes and steps; use make_quantizer(...).operand(x)")
    return operand.data.reshape(x.shape), operand.step.expand(operand.data.shape[0], 1).reshape(*x.shape[:-1], 1)


def dequantize(
    codes: Tensor,
    steps: Tensor,
    method: str = "quest",
    bits: Bits | None = None,
    role: Role = "weight",
    rotate_back: bool = False,
    block_size: int = 128,
    format: str = "int",
) -> Tensor:
    """Return the values (..., K) of `codes` (..., K) uint8 with step sizes `steps` (..., 1), in the dtype of `steps`.

    The other arguments are those of the `quantize` that made the codes; `rotate_back` undoes the Hadamard transform.
    """
    quantizer, grid = _coded(codes, method, bits, role, block_size, format)
    values = ops.operand_values(Operand(codes, grid, steps))
    return ops.hadamard(values, quantizer.block_size) if rotate_back else values


def _stateless(
    x: Tensor, method: str, bits: Bits | None, role: Role, block_size: int, format: str, trust: float | None
) -> Quantizer:
    quantizer = make_quantizer(method, bits, role, (1, x.shape[-1]), format, block_size, trust)
    if any(True for _ in quantizer.parameters()):
        free = ", ".join(name for name, value in METHODS.items() if not value.factor(role).learned)
        raise ConfigError(
            f"{method} learns from one call to the next; use make_quantizer({method!r}, ...), or one of {free}"
        )
    return quantizer


def _coded(
    x: Tensor, method: str, bits: Bits | None, role: Role, block_size: int, format: str
) -> tuple[Quantizer, Grid]:
    if bits == 16 or format == "bf16-2:4":
        raise ConfigError("16 bits mean not quantised, so there are no codes; use 1 to 8 or 'ternary'")
    quantizer = _stateless(x, method, bits, role, block_size, format, None)
    assert quantizer.grid is not None
    return quantizer, quantizer.grid


def _unrounded(x: Tensor, method: str, role: Role, block_size: int) -> int:
    """Return the block size of a rotation without rounding. Making a quantiser of the usual width checks the names."""
    quantizer = make_quantizer(method, None, role, (1, x.shape[-1]), "int", block_size)
    return quantizer.block_size
