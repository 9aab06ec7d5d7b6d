"""A fitted law: what it predicts, and the JSON file it travels in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from questlm.errors import ConfigError, DataError, nearest_name, quoted
from questlm.json_files import read_json, write_json
from questlm.scaling.runs import BASELINE
from questlm.terminal import command_text

__all__ = ["LAW_PARAMETERS", "Estimate", "LawFit", "Residual"]

_Parameter = Literal["alpha", "A", "beta", "B", "E"]
_Quantity = Literal["parameters", "tokens", "tokens_per_parameter"]

LAW_PARAMETERS: tuple[_Parameter, ...] = get_args(_Parameter)
"""Names of the law's own parameters, as in its formula."""

_FORMAT = 1
_RANGES: tuple[_Quantity, ...] = get_args(_Quantity)
_DIGITS = 7  # significant, of each draw: far finer than the draws are spread
_MOST_BYTES = 16 * 1024 * 1024  # hundreds of times a law of the published runs


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % profile-likelihood interval. `low` is 0, or `high` infinite, where a side is open."""

    value: float
    low: float
    high: float

    @property
    def identified(self) -> bool:
        """Return whether the runs bound the value on both sides."""
        return self.low > 0 and math.isfinite(self.high)


@dataclass(frozen=True)
class Residual:
    """A run that was fitted, and its error `log_residual`, which is log L_predicted - log L."""

    group: str
    parameters: int
    tokens: int
    loss: float
    log_residual: float
    source: str = ""


@dataclass(frozen=True)
class LawFit:
    """The law L(N, D, P) = A / (N eff(P))^alpha + B / D^beta + E, fitted to runs.

    Attributes:
        alpha, A, beta, B, E: of the best fit; N in parameters, D in tokens, L in nats a token.
        eff: by group; "bf16" is not in it (1 by definition).
        intervals: of alpha, A, beta, B and E.
        draws: bootstrap draws (draws,) of alpha, A, beta, B, E and each group's eff; equal places belong together.
        groups: how many runs each group has, "bf16" included.
        range: smallest and largest "parameters", "tokens" and "tokens_per_parameter" that were fitted.
        residuals: one for each run.
        rms_log_residual: root of the mean of the squared residuals.
        n_runs: how many runs were fitted.
        warnings: sentences about what the runs do not determine.
    """

    alpha: float
    A: float
    beta: float
    B: float
    E: float
    eff: dict[str, Estimate]
    intervals: dict[str, Estimate]
    draws: dict[str, NDArray[np.float64]]
    groups: dict[str, int]
    range: dict[str, tuple[float, float]]
    residuals: list[Residual]
    rms_log_residual: float
    n_runs: int
    warnings: list[str]

    def efficiency(self, group: str) -> float:
        """Return eff of a group.

        Raises:
            ConfigError: the group was not fitted.
        """
        if group == BASELINE:
            return 1.0
        if group not in self.eff:
            raise ConfigError(
                f"the law was not fitted to {quoted(group)}; it knows {', '.join(self.groups)}."
                f"{nearest_name(group, self.groups)}"
            )
        return self.eff[group].value

    def predict(self, parameters: float, tokens: float, group: str) -> float:
        """Predict the loss of a model, in nats a token.

        Raises:
            ConfigError: the group was not fitted.
        """
        return float(self.predict_many(np.array(parameters), np.array(tokens), group))

    def predict_many(
        self, parameters: NDArray[np.float64], tokens: NDArray[np.float64], group: str
    ) -> NDArray[np.float64]:
        """Predict the losses of many models at once, as `predict` does, from arrays of one shape."""
        size = np.asarray(parameters, dtype=float) * self.efficiency(group)
        return _losses(vars(self), size, np.asarray(tokens, dtype=float))

    def predict_draws(self, parameters: float, tokens: float, group: str) -> NDArray[np.float64]:
        """Predict the loss with each bootstrap draw of the parameters, (draws,).

        Their spread is the uncertainty of the fit; the noise of a single run is not in it.

        Raises:
            ConfigError: the group was not fitted.
        """
        self.efficiency(group)
        size = parameters * self.draws.get(group, np.ones(1))
        return _losses(self.draws, size, tokens)

    def bootstrap_interval(self, name: str) -> tuple[float, float]:
        """Return the 2.5 % and 97.5 % points of the draws of a parameter of the law, or of a group's eff."""
        low, high = np.quantile(self.draws[name], [0.025, 0.975])
        return float(low), float(high)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `canonical_json`; an open upper end is null."""
        return {
            "format": _FORMAT,
            "law": "L = A / (N eff)^alpha + B / D^beta + E",
            **{name: getattr(self, name) for name in LAW_PARAMETERS},
            "eff": {group: _plain(estimate) for group, estimate in self.eff.items()},
            "intervals": {name: _plain(estimate) for name, estimate in self.intervals.items()},
            "bootstrap": {name: list(self.bootstrap_interval(name)) for name in self.draws},
            "draws": {name: [_rounded(value) for value in values] for name, values in self.draws.items()},
            "groups": dict(self.groups),
            "range": {name: list(ends) for name, ends in self.range.items()},
            "residuals": [vars(residual) for residual in self.residuals],
            "rms_log_residual": self.rms_log_residual,
            "n_runs": self.n_runs,
            "warnings": list(self.warnings),
        }

    def save(self, path: Path) -> None:
        """Write the law to a JSON file, atomically."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> LawFit:
        """Read a law from a JSON file that `save` wrote.

        Raises:
            DataError: the file is absent, damaged, or not a law in this format.
        """
        content = read_json(path, DataError, _MOST_BYTES)
        if not isinstance(content, dict) or "format" not in content or "eff" not in content:
            fit = command_text("fit", "RUNS", "--json", Path(path.name))
            raise DataError(f"{path} is not a fitted law; write one with: {fit}")
        if content["format"] != _FORMAT:
            raise DataError(
                f"{path} is a fitted law of format {quoted(content['format'])}, but this version reads {_FORMAT}; "
                f"fit the runs again"
            )
        try:
            file = _File(**content)
        except (ValidationError, TypeError) as problem:
            raise DataError(f"{path} is damaged: {_first(problem)}; fit the runs again") from None
        fault = _inconsistent(file)
        if fault:
            raise DataError(f"{path} is damaged: {fault}; fit the runs again")
        return cls(
            **{name: getattr(file, name) for name in LAW_PARAMETERS},
            eff={group: _estimate(interval) for group, interval in file.eff.items()},
            intervals={name: _estimate(interval) for name, interval in file.intervals.items()},
            draws={name: np.array(values) for name, values in file.draws.items()},
            groups=file.groups,
            range={name: file.range[name] for name in _RANGES},
            residuals=[Residual(**vars(residual)) for residual in file.residuals],
            rms_log_residual=file.rms_log_residual,
            n_runs=file.n_runs,
            warnings=file.warnings,
        )


def _losses(law: Mapping[str, Any], size: NDArray[np.float64], tokens: NDArray[np.float64] | float) -> Any:
    """The law, of effective parameters and tokens."""
    return np.asarray(law["A"] / size ** law["alpha"] + law["B"] / tokens ** law["beta"] + law["E"])


# -- the file ----------------------------------------------------------------------------------------------------------

# Limits far beyond any law of losses, within which no power, logarithm or exponential of ours leaves its range.
_Positive = Annotated[float, Field(gt=0, le=1e100)]
_NotNegative = Annotated[float, Field(ge=0, le=1e100)]
_Exponent = Annotated[float, Field(gt=0, le=10)]
_Efficiency = Annotated[float, Field(gt=1e-9, lt=1e9)]
_Amount = Annotated[float, Field(ge=1e-9, le=1e27)]
_Count = Annotated[int, Field(ge=1, le=10**18)]
_Text = Annotated[str, Field(max_length=4096)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Interval(_Part):
    value: _NotNegative
    low: _NotNegative
    high: _NotNegative | None


class _EffInterval(_Interval):
    value: _Efficiency


class _Residual(_Part):
    group: _Text
    parameters: _Count
    tokens: _Count
    loss: _Positive
    log_residual: float
    source: _Text


class _File(_Part):
    format: int
    law: _Text
    alpha: _Exponent
    A: _Positive
    beta: _Exponent
    B: _Positive
    E: _NotNegative
    eff: Annotated[dict[_Text, _EffInterval], Field(max_length=1000)]
    intervals: dict[_Parameter, _Interval]
    bootstrap: dict[_Text, list[float]]
    draws: dict[_Text, list[_NotNegative]]
    groups: dict[_Text, _Count]
    range: dict[_Quantity, Annotated[tuple[_Amount, _Amount], Field(strict=False)]]
    residuals: list[_Residual]
    rms_log_residual: Annotated[float, Field(ge=0, le=10)]
    n_runs: _Count
    warnings: list[_Text]


def _inconsistent(file: _File) -> str:
    """What of a file's values contradict one another, or ''."""
    names = {*LAW_PARAMETERS, *file.eff}
    if set(file.intervals) != set(LAW_PARAMETERS) or set(file.range) != set(_RANGES):
        return "an interval or range is missing"
    if set(file.groups) != {BASELINE, *file.eff} or sum(file.groups.values()) != file.n_runs:
        return "its groups do not match its efficiencies or its number of runs"
    if set(file.draws) != names or len({len(values) for values in file.draws.values()}) != 1:
        return "its draws do not match its parameters"
    if not file.draws["alpha"] or any(min(file.draws[name]) <= 0 for name in names - {"E"}):
        return "a draw is not above 0, or there is none"
    if max(*file.draws["alpha"], *file.draws["beta"]) > 10 or any(low > high for low, high in file.range.values()):
        return "an exponent or a range cannot be"
    if any(not text.isprintable() for text in (*file.warnings, *file.eff)):
        return "a text in it does not print"
    return ""


def _first(problem: ValidationError | TypeError) -> str:
    if not isinstance(problem, ValidationError):
        return "its keys are not text"
    error = problem.errors(include_url=False)[0]
    place = ".".join(str(part)[:60] for part in error["loc"])
    return f"{place}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _plain(estimate: Estimate) -> dict[str, float | None]:
    high = estimate.high if math.isfinite(estimate.high) else None
    return {"value": estimate.value, "low": estimate.low, "high": high}


def _estimate(interval: _Interval) -> Estimate:
    return Estimate(interval.value, interval.low, math.inf if interval.high is None else interval.high)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
