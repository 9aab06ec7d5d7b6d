"""Patterns of `quant.overrides`: which layers they name, and the settings of a layer with them laid over. No torch."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import Any

from questlm.config import LayerOverride, QuantSpec
from questlm.errors import ConfigError, nearest_name, quoted

__all__ = ["override_of", "plain_name", "require_matches"]


def override_of(name: str, spec: QuantSpec) -> LayerOverride | None:
    """All overrides that name a layer, as one; None where none does.

    A pattern names a layer by its whole dotted name or by its end, from a dot on, with * for anything. Where several
    match, the more particular ones win, setting by setting: those with fewer wildcards, then the longer ones.
    """
    matching = sorted((p for p in spec.overrides if _matches(name, p)), key=lambda p: (-p.count("*"), len(p), p))
    if not matching:
        return None
    merged: dict[str, Any] = {}
    for pattern in matching:
        merged |= spec.overrides[pattern].model_dump(exclude_none=True)
    return LayerOverride(**merged)


def plain_name(name: str) -> str:
    """The name of a layer in its model, where an adapter has wrapped it as `base_layer`."""
    return name.removesuffix(".base_layer")


def require_matches(linears: Collection[str], spec: QuantSpec) -> None:
    """Refuse an override that names none of the linear layers.

    Raises:
        ConfigError: naming the pattern and the nearest layer.
    """
    for pattern in spec.overrides:
        if not any(_matches(name, pattern) for name in linears):
            ends = {".".join(name.split(".")[-2:]) for name in linears}
            near = nearest_name(pattern, sorted(ends))
            raise ConfigError(
                f"quant.overrides: {quoted(pattern)} names no linear layer.{near} There are: {_some(ends)}."
            )


def _matches(name: str, pattern: str) -> bool:
    names = (name, plain_name(name))
    return any(fnmatchcase(each, pattern) or fnmatchcase(each, f"*.{pattern}") for each in names)


def _some(names: set[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:12]) + (", ..." if len(listed) > 12 else "")
