"""A grid of runs: its file, and the settings of every run in it, checked before any of them starts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator

from questlm.config import Budget, RunConfig, load_config
from questlm.config.quant import Bits
from questlm.config.section import Section
from questlm.config.yaml_text import read_yaml
from questlm.errors import ConfigError, quoted
from questlm.models import Llama
from questlm.quant import prepare
from questlm.training.plugins import record_plugins

__all__ = ["PlannedRun", "SweepGrid", "Widths", "plan_runs", "read_grid"]


class Widths(Section):
    """Bits of weights and of activations."""

    weight: Bits
    act: Bits

    @property
    def quantizes(self) -> bool:
        """Whether weights or activations are quantised; without that a run has no method."""
        return (self.weight, self.act) != (16, 16)


class SweepGrid(Section):
    """What a sweep varies: each combination is one run. Without quantisation there is one run for all methods."""

    sizes: tuple[str, ...] = Field(min_length=1, description="names of presets")
    methods: tuple[str, ...] = Field(default=("quest",), min_length=1, description="see `quest methods`")
    bits: tuple[Widths, ...] = Field(min_length=1, description="of both factors: 4; or {weight: 4, act: 16}")
    tokens_per_parameter: tuple[Annotated[float, Field(gt=0, le=1e9)], ...] = Field(
        min_length=1, description="training tokens per non-embedding parameter"
    )
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63, strict=True)], ...] = Field(default=(0,), min_length=1)
    set: dict[str, Any] = Field(default={}, description="settings of all runs, as {section.key: value}")

    @field_validator("bits", mode="before")
    @classmethod
    def _of_both_factors(cls, values: Any) -> Any:
        if not isinstance(values, list | tuple):
            return values
        return [value if isinstance(value, Mapping | Widths) else {"weight": value, "act": value} for value in values]

    @field_validator("sizes")
    @classmethod
    def _lower_case(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(value.lower() for value in values)  # presets are found in any; folders need one

    @field_validator("sizes", "methods", "bits", "tokens_per_parameter", "seeds")
    @classmethod
    def _no_repeats(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        repeated = next((value for place, value in enumerate(values) if value in values[:place]), None)
        if repeated is not None:
            raise ValueError(f"{quoted(repeated)} is there twice; name it once")
        return values


@dataclass(frozen=True)
class PlannedRun:
    """One run of a grid.

    Attributes:
        name: of its folder, such as `1m-quest-w4a4-20x-s0`.
        config: its settings.
        arguments: the flags by which `quest train` makes these settings.
        plugins: the flags by which it finds methods and recipes of plugins, also to go on with the run.
    """

    name: str
    config: RunConfig
    arguments: tuple[str, ...]
    plugins: tuple[str, ...] = ()


def read_grid(file: Path) -> SweepGrid:
    """Read a grid.

    Raises:
        ConfigError: a file that is absent or not YAML, an unknown key (the nearest name is given) or a bad value.
    """
    content = read_yaml(file, "grid")
    try:
        return SweepGrid(**content)
    except ConfigError as problem:
        raise ConfigError(f"the grid {file} cannot be used: {problem}") from None


def plan_runs(grid: SweepGrid, plugins: Sequence[str] = ()) -> list[PlannedRun]:
    """Every run of the grid, checked as far as it can be without its data.

    Args:
        plugins: as the user named them; they are loaded already.

    Raises:
        ConfigError: the first run that cannot be made, by name, and why.
    """
    methods = [(method, widths) for widths in grid.bits for method in (grid.methods if widths.quantizes else (None,))]
    flags = tuple(itertools.chain.from_iterable(("--plugin", plugin) for plugin in plugins))
    return [
        replace(_planned_run(size, method, widths, ratio, seed, grid.set), plugins=flags)
        for size, (method, widths), ratio, seed in itertools.product(
            grid.sizes, methods, grid.tokens_per_parameter, grid.seeds
        )
    ]


def _planned_run(
    size: str, method: str | None, widths: Widths, ratio: float, seed: int, fixed: Mapping[str, Any]
) -> PlannedRun:
    quant: dict[str, Any] = {"weight_bits": widths.weight, "act_bits": widths.act}
    if method is not None:
        quant["method"] = method
    varied = {"quant": quant, "budget": {"tokens_per_param": ratio}, "seed": seed}
    place = f"{size}, {method or 'unquantised'}, W{widths.weight}A{widths.act}, {ratio:g} tokens/parameter, seed {seed}"
    try:
        overrides = [f"{key}={json.dumps(value)}" for key, value in fixed.items()]  # JSON is YAML
        config = record_plugins(load_config(size, None, varied, overrides))
        _require_varied(config, quant, Budget(tokens_per_param=ratio), seed)
        _require_buildable(config)
    except ConfigError as problem:
        raise ConfigError(f"the run ({place}) cannot be made: {problem}") from None
    arguments = ["--preset", size, *(("--method", method) if method else ())]
    if widths.weight == widths.act:
        arguments += ["--bits", str(widths.weight)]
    else:
        arguments += ["--weight-bits", str(widths.weight), "--act-bits", str(widths.act)]
    arguments += ["--tokens-per-param", f"{ratio!r}", "--seed", str(seed)]
    arguments += itertools.chain.from_iterable(("--set", override) for override in overrides)
    return PlannedRun(f"{size}-{config.quant.label}-{ratio!r}x-s{seed}".replace(".0x", "x"), config, tuple(arguments))


def _require_varied(config: RunConfig, quant: Mapping[str, Any], budget: Budget, seed: int) -> None:
    """Refuse a `set` that overrides what the grid varies, since runs would then not be what their names say."""
    kept = all(getattr(config.quant, name) == value for name, value in quant.items())
    if not kept or config.budget != budget or config.seed != seed or config.init_from is not None:
        raise ConfigError(
            "`set` changes the method, bits, budget, seed or initial model, which a grid varies or leaves alone; "
            "use its keys methods, bits, tokens_per_parameter and seeds"
        )


def _require_buildable(config: RunConfig) -> None:
    """Build the model on the meta device, which finds unknown methods and bits that a method does not have."""
    vocabulary = config.model.vocab_size or config.data.vocab_size
    with torch.device("meta"):
        prepare(Llama(config.model.model_copy(update={"vocab_size": vocabulary})), config.quant)
