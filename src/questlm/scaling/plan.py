"""Which size in which precision: the model of least predicted loss under limits of memory, latency, data and compute.

For each precision that the law was fitted to, every shape within the limits is a candidate; what it is trained on
follows from its size (tokens a parameter, operations, GPU hours) or is given. The best shape of each precision is its
choice, and the choices are sorted by predicted loss.

A law says least where it was not fitted, and a search goes just there: from runs of 24 to 100 tokens a parameter it can
promise the best of losses at one. So a shape that leaves fewer tokens a parameter than were fitted competes only where
all do, unless extrapolation is asked for.

An interval has three parts: the spread of the fit's bootstrap draws, the scatter of single runs about the law (the
fit's rms residual), and, outside the range that was fitted, doubt about the law itself: the logarithmic half-width is
multiplied by 1 + the decades by which N, D and D / N leave that range. The last is a rule of caution and no estimate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from questlm.config import ModelConfig, QuantSpec
from questlm.errors import ConfigError, nearest_name, quoted
from questlm.quant.methods import find_method
from questlm.scaling.artifact_size import artifact_bytes, artifact_overhead, planned_tokenizer
from questlm.scaling.limits import Array, Candidates, Limits
from questlm.scaling.result import LawFit
from questlm.scaling.runs import BASELINE
from questlm.scaling.shapes import shapes, training_flops
from questlm.scaling.size import PackedSizes, packed_bytes

__all__ = [
    "Choice",
    "Plan",
    "best_shapes",
    "make_plan",
    "matching",
    "plannable",
    "spec_of_group",
]

_ALIKE = 1.25  # shapes that lack tokens compete within this factor of the one that lacks fewest


@dataclass(frozen=True)
class Choice:
    """The best model shape in one precision.

    Attributes:
        group: of the fit, such as "quest/w4a4/int4".
        loss, low, high: predicted, nats a token, with a 95 % interval for one run.
        wins: share of the bootstrap draws of the law in which this choice is the best of all.
        outside: sentences that say where it lies outside the range that the law was fitted on.
        unmeasured: a sentence that says which speed was assumed for its training, as it was not measured; or None.
    """

    group: str
    model: ModelConfig
    quant: QuantSpec
    tokens: float
    bytes: int
    loss: float
    low: float
    high: float
    wins: float = 0.0
    outside: tuple[str, ...] = ()
    unmeasured: str | None = None


@dataclass(frozen=True)
class Plan:
    """The models that `make_plan` found, and its warnings.

    Attributes:
        choices: models to train, the one of least predicted loss first.
        notes: sentences that warn of weak assumptions behind the choice.
    """

    choices: list[Choice]
    notes: list[str]

    @property
    def best(self) -> Choice:
        """Return the choice of least predicted loss."""
        return self.choices[0]


def make_plan(fit: LawFit, limits: Limits, groups: Sequence[str] | None = None) -> Plan:
    """Find the best model shape in each precision under the limits.

    Args:
        groups: of the fit; None: all whose packed size is known before packing.

    Raises:
        ConfigError: limits that contradict each other, or that no model keeps to.
    """
    choices = best_shapes(fit, limits, plannable(fit) if groups is None else groups)
    if not choices:
        raise ConfigError(_nothing_fits(limits))
    choices = _with_wins(fit, choices)
    return Plan(choices, _notes(fit, choices))


def best_shapes(fit: LawFit, limits: Limits, groups: Sequence[str]) -> list[Choice]:
    """Return the best choice of each precision in which a model keeps to the limits, the lowest loss first.

    Raises:
        ConfigError: limits that contradict each other.
    """
    limits.check()
    found = (_choose(fit, limits, group) for group in groups)
    return sorted((choice for choice in found if choice is not None), key=lambda choice: choice.loss)


def matching(groups: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Return those of `groups` that `names` name, in full or by a part between slashes ("w4a4", "quest").

    Raises:
        ConfigError: a name of none; the message gives the nearest and all.
    """
    parts = {part for group in groups for part in (group, *group.split("/"))}
    for name in wanted:
        if name not in parts:
            raise ConfigError(
                f"the law has no precision {quoted(name)}.{nearest_name(name, parts)} There are: {', '.join(groups)}."
            )
    return [group for group in groups if any(name == group or name in group.split("/") for name in wanted)]


def plannable(fit: LawFit) -> list[str]:
    """Return the groups of a fit that `quest train` can train and whose packed size is known."""
    model, groups = ModelConfig(vocab_size=2), []
    for group in fit.groups:
        try:
            packed_bytes(model, spec_of_group(group, "bf16"))
        except ConfigError:
            continue
        groups.append(group)
    return groups


def spec_of_group(group: str, embeddings: str) -> QuantSpec:
    """Return the quantisation settings that a group stands for.

    Raises:
        ConfigError: none that is known here.
    """
    if group == BASELINE:  # whose matrices are stored in the dtype of the embeddings
        return QuantSpec(weight_bits=16, act_bits=16, embeddings="bf16")
    try:
        method, bits, format = group.split("/")
        weight, act = (16 if b == "16" else "ternary" if b == "t" else int(b) for b in bits[1:].split("a"))
    except ValueError:
        raise ConfigError(f"{quoted(group)} is not a group like 'quest/w4a4/int4'") from None
    grid = next((name for name in ("int", "lloydmax") if format == f"{name}{weight if weight != 16 else act}"), format)
    settings: dict[str, Any] = {
        "method": method, "weight_bits": weight, "act_bits": act, "embeddings": embeddings,
        "format": "int-2:4" if format == "int4-2:4" else grid,
    }  # fmt: skip
    return QuantSpec(**settings)


@cache
def _candidates(quant: QuantSpec, vocab_size: int, tied_head: bool, coded: bool, tokenizer: int) -> Candidates:
    models, sizes = shapes(vocab_size, tied_head), PackedSizes(quant, coded)
    beside = {layers: artifact_overhead(layers, quant, coded, tokenizer) for layers in {m.layers for m in models}}
    read = PackedSizes(quant)
    rows = [
        (model.block_parameters, sizes.of(model) + beside[model.layers], read.of(tied), training_flops(model))
        for model, tied in zip(models, shapes(vocab_size, True), strict=True)
    ]
    return Candidates(*np.array(rows, dtype=float).T)


def _choose(fit: LawFit, limits: Limits, group: str) -> Choice | None:
    quant = _spec(group, limits)
    precision = BASELINE if group == BASELINE else group.split("/")[1]
    tokenizer = planned_tokenizer(limits.vocab_size) if limits.tokenizer is None else limits.tokenizer
    candidates = _candidates(quant, limits.vocab_size, limits.tied_head, limits.coded, tokenizer)
    admitted = limits.admitted(candidates)
    if not admitted.any():
        return None
    tokens = np.maximum(limits.training_tokens(candidates, precision), 1.0)
    if not limits.extrapolate:
        short = fit.range["tokens_per_parameter"][0] * candidates.parameters / tokens  # above 1: of tokens
        admitted &= short <= max(1.0, _ALIKE * short[admitted].min())
    losses = np.where(admitted, fit.predict_many(candidates.parameters, tokens, group), np.inf)
    best, exact = _best_that_fits(losses, limits, quant, tokenizer)
    if not math.isfinite(losses[best]):
        return None
    parameters, amount, loss = candidates.parameters[best], float(tokens[best]), float(losses[best])
    low, high = _interval(fit, loss, parameters, amount, group)
    return Choice(
        group=group,
        model=shapes(limits.vocab_size, limits.tied_head)[best],
        quant=quant,
        tokens=amount,
        bytes=exact,
        loss=loss,
        low=low,
        high=high,
        outside=tuple(_outside(fit, parameters, amount)),
        unmeasured=limits.gpu.unmeasured(candidates.flops[best], precision)
        if limits.gpu_hours and limits.gpu
        else None,
    )


def _spec(group: str, limits: Limits) -> QuantSpec:
    spec = spec_of_group(group, limits.embeddings)
    branches = group != BASELINE and find_method(spec.method).branches  # whose steps are fp32 only
    return spec if group == BASELINE or branches else spec.model_copy(update={"steps": limits.steps})


def _best_that_fits(losses: Array, limits: Limits, quant: QuantSpec, tokenizer: int) -> tuple[int, int]:
    """The shape of least loss, and its bytes to the byte: what lies beside tensors was only about known before."""
    models = shapes(limits.vocab_size, limits.tied_head)
    while True:
        best = int(losses.argmin())
        exact = artifact_bytes(models[best], quant, coded=limits.coded, tokenizer=tokenizer)
        if limits.memory is None or exact <= limits.memory or not math.isfinite(losses[best]):
            return best, exact
        losses[best] = np.inf


def _outside(fit: LawFit, parameters: float, tokens: float) -> dict[str, float]:
    """How N, D and D / N leave the fitted range: in words, and by how many decades."""
    values = {"parameters": parameters, "tokens": tokens, "tokens_per_parameter": tokens / parameters}
    found = {}
    for name, value in values.items():
        low, high = fit.range[name]
        decades = max(math.log10(low / value), math.log10(value / high))
        side = f"below {low:.3g}" if value < low else f"above {high:.3g}"
        if decades > 0.01:  # less is not worth a word
            found[f"{value:.3g} {name.replace('_', ' ')} is {side}"] = decades
    return found


def _interval(fit: LawFit, loss: float, parameters: float, tokens: float, group: str) -> tuple[float, float]:
    logs = np.log(fit.predict_draws(parameters, tokens, group)) - math.log(loss)
    low, high = np.quantile(logs, (0.025, 0.975))
    scatter, doubt = 1.96 * fit.rms_log_residual, 1 + sum(_outside(fit, parameters, tokens).values())
    down, up = (math.hypot(max(0.0, side), scatter) * doubt for side in (-float(low), float(high)))
    return loss * math.exp(-down), loss * math.exp(up)


def _with_wins(fit: LawFit, choices: list[Choice]) -> list[Choice]:
    drawn = np.stack([fit.predict_draws(c.model.block_parameters, c.tokens, c.group) for c in choices])
    shares = np.bincount(drawn.argmin(axis=0), minlength=len(choices)) / drawn.shape[1]
    return [replace(choice, wins=float(share)) for choice, share in zip(choices, shares, strict=True)]


def _notes(fit: LawFit, choices: list[Choice]) -> list[str]:
    best = choices[0]
    notes = [best.unmeasured] if best.unmeasured else []
    if best.outside:
        notes.append(
            f"outside the range that the law was fitted on: {', '.join(best.outside)}; the interval is widened"
        )
    ends = (shapes(best.model.vocab_size or 0, best.model.tied_head)[i].block_parameters for i in (0, -1))
    if best.model.block_parameters in ends:
        notes.append("this is the end of the list of shapes; the law might go on, the planner does not")
    rivals = [choice for choice in choices[1:] if choice.low <= best.high and choice.wins >= 0.05]
    if rivals:
        names = ", ".join(f"{choice.group} ({choice.wins:.0%})" for choice in rivals)
        notes.append(f"the law does not tell the best apart ({best.wins:.0%} of its draws) from {names}")
    notes.append("losses are nats a token of the tokenizer, and on the text, that the law's own runs had")
    return notes + [f"of the law: {warning}" for warning in fit.warnings]


def _nothing_fits(limits: Limits) -> str:
    smallest = shapes(limits.vocab_size, limits.tied_head)[0]
    quant = QuantSpec(weight_bits=1, act_bits=1, embeddings=limits.embeddings, steps=limits.steps)
    size = artifact_bytes(smallest, quant, coded=limits.coded, tokenizer=limits.tokenizer)
    return (
        f"no model keeps to these limits; the smallest, {smallest.block_parameters:,} parameters of 1 bit, has "
        f"{size:,} bytes, most of them embedding and head of {limits.vocab_size:,} entries in {limits.embeddings}; "
        f"allow more, or take a smaller --vocab, --embeddings int4 or --tied"
    )
