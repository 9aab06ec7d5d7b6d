"""The table of methods, and quantisers made from it.

To add a method, put a `Method` into METHODS, or `register_method` it in a plugin (docs/howto/add-a-method.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from questlm.config import QuantSpec
from questlm.config.quant import Bits
from questlm.errors import ConfigError, nearest_name, quoted
from questlm.grid import Steps, fit_block_size
from questlm.plugins import Table
from questlm.quant.methods import adabin, bitnet, extra_rmsnorm, lsq, lsq_plus, pact, pquant, quarot, quest, seq, ste
from questlm.quant.methods.base import ALL_BITS, FactorSpec, Method, Request, Role, dynamic, format_grid, learned

if TYPE_CHECKING:
    from questlm.quant.quantizers import Quantizer

__all__ = [
    "ALL_BITS",
    "FORMAT_BITS",
    "METHODS",
    "FactorSpec",
    "LayerQuantizers",
    "Method",
    "Request",
    "Role",
    "dynamic",
    "find_method",
    "format_grid",
    "gradual_share",
    "layer_quantizers",
    "layer_requests",
    "learned",
    "make_quantizer",
    "narrow_quantizer",
    "narrow_request",
    "register_method",
    "with_usual_bits",
]

_BUILT_IN: dict[str, Method] = {
    "quest": quest.quest,
    "quest-noht": quest.quest_noht,
    "quest-clip": quest.quest_clip,
    "ste": ste.ste,
    "clip-ste": ste.clip_ste,
    "quarot": quarot.quarot,
    "lsq": lsq.lsq,
    "lsq-row": lsq.lsq_row,
    "lsq+": lsq_plus.lsq_plus,
    "pact": pact.pact,
    "adabin": adabin.adabin,
    "bitnet": bitnet.bitnet,
    "extra-rmsnorm": extra_rmsnorm.extra_rmsnorm,
    "seq": seq.seq,
    "pquant": pquant.pquant,
}
METHODS: Table[Method] = Table(
    "method", "questlm.methods", lambda value: isinstance(value, Method), "a questlm.quant.Method", _BUILT_IN
)

FORMAT_BITS: dict[str, tuple[Bits, ...]] = {
    "int": ALL_BITS,
    "ternary": ("ternary",),
    "fp4": (4,),
    "lloydmax": (4, 2, 3),
    "int-2:4": (4,),
    "bf16-2:4": (16,),
}
"""The widths of each format, its usual one first."""

_SPARSE = ("int-2:4", "bf16-2:4")


class LayerQuantizers(NamedTuple):
    """The quantisers of a linear layer, None for a factor in 16 or 32 bits, and the Hadamard block size of both."""

    weight: Quantizer | None
    act: Quantizer | None
    block_size: int


class LayerRequests(NamedTuple):
    """Requests for the quantisers of a linear layer, as `LayerQuantizers`."""

    weight: Request | None
    act: Request | None
    block_size: int


def find_method(name: str) -> Method:
    """Look a method up by name: built in, of a plugin, or of an installed package (entry point group questlm.methods).

    Raises:
        ConfigError: no such method; the message gives the nearest name and all of them.
    """
    return METHODS.find(name)


def register_method(name: str, method: Method) -> None:
    """Add a method of your own under a name, by which settings, `prepare` and every command then know it.

    Args:
        name: up to 64 letters, digits, '.', '+', '_' and '-'.
        method: its parts.

    Raises:
        ConfigError: the name is taken or is not such a word.
    """
    METHODS.register(name, method)


def with_usual_bits(spec: QuantSpec) -> QuantSpec:
    """Fill in the usual widths of a method for the bits that `spec` does not set.

    Raises:
        ConfigError: no such method.
    """
    method = find_method(spec.method)
    usual = {"weight_bits": method.weight.bits[0], "act_bits": method.act.bits[0]}
    return spec.model_copy(update={key: bits for key, bits in usual.items() if key not in spec.model_fields_set})


def gradual_share(spec: QuantSpec) -> float:
    """Return the share of the training over which `spec` fades quantisation in; 0: not at all."""
    return find_method(spec.method).gradual if spec.gradual is None else spec.gradual


def make_quantizer(
    method: str = "quest",
    bits: Bits | None = None,
    role: Role = "weight",
    shape: tuple[int, ...] = (),
    format: str = "int",
    block_size: int = 128,
    trust: float | None = None,
) -> Quantizer:
    """Make the quantiser of one tensor.

    It is an `nn.Module` from x (..., K) to its quantised values (..., K), with the method's gradient.

    Args:
        method: name of a method (`quest methods` lists them).
        bits: 1 to 8 or 'ternary', as far as the method and format have them; None: their usual width.
        role: which factor of the product the tensor is.
        shape: of the tensor, (..., K). Its last dimension is a row. Where a method learns a parameter for each row of a
            weight, the other dimensions give the number of rows.
        format: of the grid: 'int', 'ternary', 'fp4', 'lloydmax', 'int-2:4' or 'bf16-2:4'.
        block_size: of the Hadamard transform, for methods that rotate.
        trust: outer trust factor s; None: the method's own.

    Raises:
        ConfigError: an unknown name, or a combination that is not defined; the message names the nearest one that is.
    """
    return _made(method, role, _request(method, bits, role, shape, format, block_size, trust))


def _made(method: str, role: Role, request: Request) -> Quantizer:
    quantizer = find_method(method).factor(role).make(request)
    quantizer.setting = f"{method}, {request.bits} bits, {request.format}"
    return quantizer


def _request(
    method: str,
    bits: Bits | None,
    role: Role,
    shape: tuple[int, ...],
    format: str,
    block_size: int,
    trust: float | None,
) -> Request:
    """The checked request for a quantiser; arguments and ConfigError as of `make_quantizer`."""
    chosen, spec = find_method(method), find_method(method).factor(role)
    if not shape:
        raise ConfigError("shape = (): give the tensor's shape, (rows, K)")
    if bits is None:
        bits = spec.bits[0] if format == "int" else FORMAT_BITS.get(format, spec.bits)[0]
    _check(method, role, bits, format, trust)
    block = _block_size(chosen, shape[-1], block_size)
    group = {"int-2:4": 2, "bf16-2:4": 1}.get(format)
    if group and shape[-1] % (4 * group):
        raise ConfigError(f"{format} sparsity needs rows of a multiple of {4 * group} entries, not {shape[-1]}")
    return Request(bits, format, block, prod(shape[:-1]) if role == "weight" else 1, trust)


def layer_quantizers(spec: QuantSpec, out_features: int, in_features: int) -> LayerQuantizers:
    """Make the quantisers of a linear layer with weight (out_features, in_features) by `spec`.

    Raises:
        ConfigError: an unknown method, a combination that is not defined, or no Hadamard block divides `in_features`.
    """
    weight, act, block_size = layer_requests(spec, out_features, in_features)
    return LayerQuantizers(
        None if weight is None else _with_steps(_made(spec.method, "weight", weight), spec.steps),
        None if act is None else _made(spec.method, "activation", act),
        block_size,
    )


def _with_steps(quantizer: Quantizer, steps: Steps) -> Quantizer:
    if steps == "fp32" or quantizer.grid is None:
        return quantizer
    from questlm.quant.quantizers.stored_steps import StoredStepsQuantizer

    return StoredStepsQuantizer(quantizer, steps)


def narrow_quantizer(method: str, out_features: int, in_features: int) -> Quantizer:
    """Return the quantiser of the narrow branch of a full weight (out_features, in_features)."""
    return _made(method, "weight", narrow_request(method, (out_features, in_features)))


def layer_requests(spec: QuantSpec, out_features: int, in_features: int) -> LayerRequests:
    """Return what is asked of the quantisers of a linear layer with weight (out_features, in_features); no torch.

    Raises:
        ConfigError: as `layer_quantizers`.
    """
    block_size = _block_size(find_method(spec.method), in_features, spec.block_size)
    weight = act = None
    if spec.steps != "fp32" and find_method(spec.method).branches:
        raise ConfigError(f"{spec.method} has branches with scales of their own, so its steps are fp32 only")
    if spec.weight_bits == 16 and spec.format == "int-2:4":
        raise ConfigError("the format int-2:4 is of 4-bit weights, not 16; sparse weights of 16 bits are bf16-2:4")
    if spec.weight_bits != 16 or spec.format == "bf16-2:4":
        shape = (out_features, in_features)
        weight = _request(spec.method, spec.weight_bits, "weight", shape, spec.format, spec.block_size, spec.trust)
    if spec.act_bits != 16:
        shape = (1, in_features)
        act_format = spec.act_format or ("int" if spec.format in (*_SPARSE, "ternary") else spec.format)
        act = _request(spec.method, spec.act_bits, "activation", shape, act_format, spec.block_size, spec.trust)
    return LayerRequests(weight, act, block_size)


def narrow_request(method: str, shape: tuple[int, int]) -> Request:
    """Return the request for the 8-bit narrow branch of a full weight (out, in), for methods that have branches."""
    return _request(method, 8, "weight", shape, "int", 128, None)


def _block_size(method: Method, in_features: int, block_size: int) -> int:
    try:
        return fit_block_size(in_features, block_size) if method.rotates else 1
    except ValueError as problem:
        raise ConfigError(f"{problem} (on the command line --set quant.block_size=N)") from None


def _check(name: str, role: Role, bits: Bits, format: str, trust: float | None) -> None:
    """Refuse combinations that are not defined, with the reason and the nearest one that is."""
    method = find_method(name)
    spec, factor = method.factor(role), "weights" if role == "weight" else "activations"
    if format not in FORMAT_BITS:
        raise ConfigError(
            f"no format {quoted(format)}.{nearest_name(format, FORMAT_BITS)} There are: {_list(FORMAT_BITS)}."
        )
    if format not in method.formats:
        others = [other for other, value in METHODS.items() if format in value.formats]
        raise ConfigError(
            f"{name} has no format {quoted(format)}, only {_list(method.formats)}; "
            f"methods that have it: {_list(others)}"
        )
    if role == "activation" and format in _SPARSE:
        raise ConfigError(f"{format} sparsity is for weights, which stay where they are; activations can take 'int'")
    allowed = FORMAT_BITS[format] if format != "int" else spec.bits
    if bits not in allowed:
        what = f"{name} quantises {factor}" if format == "int" else f"the format {format} quantises"
        others = [other for other, value in METHODS.items() if format == "int" and bits in value.factor(role).bits]
        elsewhere = f", or a method that has {bits}: {_list(others)}" if others else ""
        if format != "int" and bits in spec.bits:
            key = "format" if role == "weight" else "act_format"
            elsewhere = f"; for {quoted(bits)} bits say {key} = 'int'"
        raise ConfigError(
            f"{what} to {_list(allowed)} bits, not {quoted(bits)}; "
            f"the nearest is {_nearest(bits, allowed)!r}{elsewhere}"
        )
    if trust is not None and not trust > 0:
        raise ConfigError(f"trust = {trust}; the outer trust factor is above 0")
    if trust is not None and not method.trusts:
        others = [other for other, value in METHODS.items() if value.trusts]
        raise ConfigError(
            f"{name} has no trust factor, so trust = {trust} means nothing; it belongs to {_list(others)}"
        )


def _nearest(bits: object, allowed: tuple[Bits, ...]) -> Bits:
    def width(value: object) -> float:
        return 1.6 if value == "ternary" else float(value) if isinstance(value, int) else 4.0

    return min(allowed, key=lambda value: abs(width(value) - width(bits)))


def _list(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)
