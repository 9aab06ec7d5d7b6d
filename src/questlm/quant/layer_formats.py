"""What `prepare` makes of each linear layer and a packed model holds of it, known from settings and shapes alone.

Imports no torch: `quest plan` counts the bytes of models that nobody has built. The layers themselves say the same of
their quantisers (`FakeQuantLinear.packed_format`), and a test holds the two together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from questlm.config import LayerOverride, QuantSpec
from questlm.errors import ConfigError, quoted
from questlm.grid import Factor, LayerFormat, Narrow
from questlm.quant.methods import find_method, layer_requests, narrow_request
from questlm.quant.patterns import override_of, plain_name, require_matches

__all__ = ["INPUT_NORM_EPS", "branch_axis", "layer_formats", "narrow_width", "require_packable"]

INPUT_NORM_EPS = 1e-5
"""Epsilon of the RMSNorm before a layer, for methods that have one."""

_SHARE = 16  # the narrow branch has 1/16 of the width, rounded down to a multiple of 16, and at least 16


def layer_formats(spec: QuantSpec, shapes: Mapping[str, tuple[int, int]]) -> dict[str, LayerFormat]:
    """The format of each linear layer that `prepare` would quantise; layers that are left out are not in it.

    Args:
        shapes: (out, in) of each linear layer by dotted name.

    Raises:
        ConfigError: an unknown method, a combination that makes no sense, or an override that names no layer.
    """
    require_matches(shapes, spec)
    found = {}
    for name, shape in shapes.items():
        override = override_of(name, spec)
        own = spec.overridden(override or LayerOverride())
        if own.quantizes and (override is not None or name.rpartition(".")[2] != "lm_head"):
            found[name] = _layer_format(own, name, shape)
    return found


def require_packable(name: str) -> None:
    """Refuse a method whose layers have something that the packed format does not hold.

    Raises:
        ConfigError: with what that is.
    """
    method = find_method(name)
    parts = ("the mean of a layer's inputs" * method.centers, "a diagonal beside the matrix" * method.diagonal)
    for part in filter(None, (*parts, method.unpackable)):
        raise ConfigError(f"the packed format does not hold {part}, which the method {quoted(name)} has")


def _layer_format(spec: QuantSpec, name: str, shape: tuple[int, int]) -> LayerFormat:
    require_packable(spec.method)
    method, requests = find_method(spec.method), layer_requests(spec, *shape)
    narrow = None
    if (axis := branch_axis(spec, name)) is not None:
        width = narrow_width(shape[0] if axis == "rows" else shape[1])
        grid = method.weight.factor(narrow_request(spec.method, shape)).grid
        assert grid is not None  # the narrow branch is codes
        narrow = Narrow(axis, width, grid)
    return LayerFormat(
        block_size=requests.block_size,
        weight=None if requests.weight is None else _with_steps(method.weight.factor(requests.weight), spec),
        act=None if requests.act is None else method.act.factor(requests.act),
        input_norm=INPUT_NORM_EPS if method.input_norm else None,
        narrow=narrow,
    )


def _with_steps(weight: Factor, spec: QuantSpec) -> Factor:
    return weight if weight.grid is None else replace(weight, steps=spec.steps)


def branch_axis(spec: QuantSpec, name: str) -> Literal["rows", "columns"] | None:
    """How the layer `name` is cut in two branches: along its output rows, its input columns, or not at all (None)."""
    match = re.search(r"(?:^|\.)(gate|up|down)(?:_proj)?$", plain_name(name))
    if not find_method(spec.method).branches or spec.weight_bits == 16 or match is None:
        return None
    return "columns" if match.group(1) == "down" else "rows"


def narrow_width(width: int) -> int:
    """How many of a layer's `width` rows or columns the narrow branch has.

    Raises:
        ConfigError: the layer is too small to cut.
    """
    narrow = max(_SHARE, width // _SHARE // _SHARE * _SHARE)
    if narrow >= width:
        raise ConfigError(f"a width of {width} is too small for two branches; at least {2 * _SHARE} is needed")
    return narrow
