"""Settings under which a model that misses a budget of bytes would fit it, by the planner's formula. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar, get_args

from pydantic import ValidationError

from questlm.config import ModelConfig, QuantSpec
from questlm.config.quant import Embeddings
from questlm.errors import ConfigError
from questlm.scaling.artifact_size import artifact_overhead
from questlm.scaling.size import PackedSizes

__all__ = ["Alternative", "alternatives"]

_WIDTH = 128  # of which widths are multiples, as Hadamard blocks are
_EMBEDDINGS = get_args(Embeddings)  # from the widest to the narrowest
_Settings = TypeVar("_Settings", ModelConfig, QuantSpec)


class Alternative(NamedTuple):
    """Settings to train with instead, and the bytes that the packed model would have."""

    settings: str
    bytes: int


def alternatives(model: ModelConfig, quant: QuantSpec, *, actual: int, limit: int, coded: bool) -> list[Alternative]:
    """Return, for each kind of setting that saves bytes, the least change by which the model would fit.

    The formula's error on the model at hand is taken off: what changes is the difference of two planned sizes. Names of
    layers in the config are counted as the present precision takes them.

    Args:
        model, quant: settings of the run that is too large; `model.vocab_size` is set.
        actual: bytes that it takes when it is packed.
        limit: bytes that it may take.
        coded: whether it is packed as a single file.
    """

    def planned(shape: ModelConfig, precision: QuantSpec) -> int:
        return PackedSizes(precision, coded).of(shape) + artifact_overhead(shape.layers, quant, coded, tokenizer=0)

    before, found = planned(model, quant), []
    for changes in _changes(model, quant):
        for settings in changes:
            try:
                other = _changed(model, settings, "model."), _changed(quant, settings, "quant.")
                size = actual + planned(*other) - before
            except (ConfigError, ValidationError):  # no model of these settings can be made
                continue
            if size <= limit:
                found.append(Alternative(" ".join(f"{name}={value}" for name, value in settings.items()), size))
                break
    return found


def _changes(model: ModelConfig, quant: QuantSpec) -> Iterator[Iterator[dict[str, Any]]]:
    """For each kind of change, the settings to try, those that change least first."""
    if quant.steps == "fp32":
        yield iter([{"quant.steps": "fp16"}])
    narrower = _EMBEDDINGS[_EMBEDDINGS.index(quant.embeddings) + 1 :]
    yield ({"quant.embeddings": name} for name in narrower)
    if not model.tied_head:
        yield iter([{"model.tied_head": "true"}])
    if isinstance(quant.weight_bits, int) and quant.format == "int":
        yield ({"quant.weight_bits": bits} for bits in range(min(quant.weight_bits, 9) - 1, 0, -1))
    yield ({"model.layers": layers} for layers in range(model.layers - 1, 0, -1))
    if not (model.head_dim or model.mlp_hidden or model.kv_heads):
        head = model.hidden // model.heads
        widths = range((model.hidden - 1) // _WIDTH * _WIDTH, 0, -_WIDTH)
        yield ({"model.hidden": width, "model.heads": width // head} for width in widths if width % head == 0)


def _changed(section: _Settings, settings: dict[str, Any], prefix: str) -> _Settings:
    own = {name.removeprefix(prefix): value for name, value in settings.items() if name.startswith(prefix)}
    return type(section)(**section.model_dump() | own) if own else section
