"""Slow, independent statements of every method in float64: nearest levels from written-out lists, no code of questlm.

`answer` gives what a quantizer of one factor must return: values and gradient, and its learned numbers with theirs.
`layer_answer` composes two of them to a linear layer. A case without a statement raises `NoOracleError`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from helpers.oracle import SCALE, level_count, rotation

ROTATING = {"quest", "quest-clip", "quarot"}
NORMED = {"bitnet", "extra-rmsnorm", "pquant"}  # the layer norms its input first
Learned = dict[str, Tensor] | None  # numbers by their names; None: as initialised from the data
LEARNED = {"lsq", "lsq-row", "lsq+", "pact", "adabin", "seq"}  # have learned numbers (adabin: activations only)
FORMAT_BITS = {"ternary": ("ternary",), "fp4": (4,), "lloydmax": (2, 3, 4), "int-2:4": (4,), "bf16-2:4": (16,)}
WEIGHT_FORMATS = {"int-2:4", "bf16-2:4"}


class NoOracleError(LookupError):
    """The table of methods allows something that nothing here states."""


class Case(NamedTuple):
    method: str
    role: str
    bits: int | str
    format: str = "int"
    trust: float | None = None

    def __str__(self) -> str:
        return "-".join(str(part) for part in self if part is not None)


class Answer(NamedTuple):
    values: Tensor
    dx: Tensor
    learned: dict[str, Tensor] = {}  # noqa: RUF012 - never changed
    grads: dict[str, Tensor] = {}  # noqa: RUF012


def answer(case: Case, x: Tensor, dy: Tensor, learned: Learned = None) -> Answer:
    """x, dy (rows, K) float64; `learned` None: as initialised from this x. Values in the method's own domain."""
    if case.method not in METHODS:
        raise NoOracleError(f"no oracle states the method {case.method!r}: add one to method_oracles.py")
    h = rotation(x.shape[-1]) if case.method in ROTATING else torch.eye(x.shape[-1], dtype=torch.float64)
    x_h = x.detach().double() @ h
    if case.bits == 16 and case.format == "int":
        return Answer(x_h, dy @ h.T)
    got = METHODS[case.method](case, x_h, dy, learned)
    return got._replace(dx=got.dx @ h.T)


def unstated(case: Case) -> NoOracleError:
    return NoOracleError(f"no oracle states {case}: add it to method_oracles.py")


# Grids on N(0, 1)


def nearest(x: Tensor, levels: Tensor) -> Tensor:
    return levels[(x.unsqueeze(-1) - levels).abs().argmin(-1)]


def evenly(top: float | Tensor, n: int) -> Tensor:
    """n levels from -top to top."""
    return top * (2 * torch.arange(n, dtype=torch.float64) - (n - 1)) / (n - 1)


def density(z: float) -> float:
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def cells(levels: list[float]) -> list[tuple[float, float]]:
    """Of each level's cell on N(0, 1): its probability, and the mean of z over it times that."""
    edges = [-math.inf, *[(a + b) / 2 for a, b in pairwise(levels)], math.inf]
    below = [math.erf(e / math.sqrt(2)) / 2 for e in edges]
    return [(below[i + 1] - below[i], density(edges[i]) - density(edges[i + 1])) for i in range(len(levels))]


def gaussian_error(levels: list[float]) -> float:
    return 1 - sum(2 * level * m - level * level * p for level, (p, m) in zip(levels, cells(levels), strict=True))


E2M1 = [-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6]


@cache
def fp4_scale() -> float:
    """The best of a dense search over scales, then the scale that is stationary for its own cells."""
    scale = min((i / 1000 for i in range(100, 1500)), key=lambda k: gaussian_error([k * e for e in E2M1]))
    for _ in range(500):
        stats = cells([scale * e for e in E2M1])
        pairs = list(zip(E2M1, stats, strict=True))
        scale = sum(e * m for e, (_, m) in pairs) / sum(e * e * p for e, (p, _) in pairs)
    return scale


@cache
def lloyd(n: int) -> list[float]:
    """Lloyd's iteration: each level moves to the mean of its cell until nothing moves."""
    levels = [2.5 * (2 * c - (n - 1)) / n for c in range(n)]
    for _ in range(20_000):
        moved = [m / p for p, m in cells(levels)]
        if max(abs(a - b) for a, b in zip(moved, levels, strict=True)) < 1e-15:
            break
        levels = moved
    return levels


def unit_levels(format: str, bits: int | str) -> Tensor:
    """The levels of a row whose rms is 1, ascending."""
    if format == "fp4":
        return torch.tensor([fp4_scale() * e for e in E2M1], dtype=torch.float64)
    if format == "lloydmax":
        return torch.tensor(lloyd(2 ** int(bits)), dtype=torch.float64)
    if format in ("int", "ternary", "int-2:4"):
        return evenly(SCALE[bits], level_count(bits))
    raise NoOracleError(f"no oracle states the format {format!r}: add it to method_oracles.py")


# Methods with dynamic scales


def bound(case: Case) -> float:
    """The |x| / rms up to which the gradient passes."""
    if case.method == "ste":
        return math.inf
    levels = unit_levels(case.format, case.bits)
    top = levels.max().item()
    if case.method in ("quest-clip", "clip-ste"):
        return top
    if case.trust is not None:
        return case.trust * top
    if case.bits == 1:
        return top * (1.30 if case.method in ROTATING else 1.25)
    return top + levels.diff().max().item() / 2


def gaussian(case: Case, x: Tensor, dy: Tensor, _: Learned) -> Answer:
    if case.format.endswith("2:4"):
        return sparse(case, x, dy)
    levels, limit = unit_levels(case.format, case.bits), bound(case)
    values, mask = torch.zeros_like(x), torch.zeros_like(x)
    for i, row in enumerate(x):
        rms = row.square().mean().sqrt()
        values[i] = nearest(row, levels * rms)
        mask[i] = (row.abs() <= limit * rms).double()
    return Answer(values, mask * dy)


def to_bf16(value: float) -> float:
    """The nearest number with eight significant bits, ties to even."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(mantissa * 256), exponent - 8)


def kept(row: list[float], size: int) -> set[int]:
    """Of every 4 neighbouring units of `size` entries, the entries of the 2 with the largest L2 norm."""
    keep = set()
    for start in range(0, len(row), 4 * size):
        units = [range(start + u * size, start + (u + 1) * size) for u in range(4)]
        units.sort(key=lambda unit: -sum(row[i] ** 2 for i in unit))
        keep |= {i for unit in units[:2] for i in unit}
    return keep


def sparse(case: Case, x: Tensor, dy: Tensor) -> Answer:
    if case.role != "weight" or case.method not in ("quest", "quest-noht", "ste") or case.trust is not None:
        raise unstated(case)
    values, mask = torch.zeros_like(x), torch.ones_like(x)
    for i, row in enumerate(x.tolist()):
        rms = math.sqrt(sum(entry * entry for entry in row) / len(row))
        for j in kept(row, 2 if case.format == "int-2:4" else 1):
            if case.format == "int-2:4":
                values[i, j] = nearest(x[i, j], unit_levels("int", 4) * rms)
            else:
                values[i, j] = to_bf16(row[j])
        if case.format == "int-2:4" and case.method != "ste":
            mask[i] = ((values[i] - x[i]).abs() <= SCALE[4] / 15 * rms).double()
    return Answer(values, mask * dy)


def quarot(case: Case, x: Tensor, dy: Tensor, _: Learned) -> Answer:
    n = level_count(case.bits)
    return Answer(torch.stack([nearest(row, evenly(row.abs().max(), n)) for row in x]), dy)


def absmax_255(x: Tensor) -> Tensor:
    return torch.stack([nearest(row, evenly(row.abs().max(), 255)) for row in x])


def bitnet(case: Case, x: Tensor, dy: Tensor, _: Learned) -> Answer:
    if (case.role, case.bits) == ("weight", "ternary"):
        return Answer(nearest(x, evenly(x.abs().mean(), 3)), dy)
    if (case.role, case.bits) == ("activation", 8):
        return Answer(absmax_255(x), dy)
    raise unstated(case)


def pquant(case: Case, x: Tensor, dy: Tensor, _: Learned) -> Answer:
    if case.bits == 8:
        return Answer(absmax_255(x), dy)
    if (case.role, case.bits) == ("weight", 1):
        return Answer(x.abs().mean() * (x - x.mean()).sign(), dy)
    raise unstated(case)


# Methods with learned numbers


def per_entry(case: Case, x: Tensor, relative: bool) -> tuple[Tensor, int]:
    """What multiplies a learned number (each row's rms, or 1), and how many entries share the number."""
    if not relative:
        return torch.ones_like(x[:, :1]), x.numel()
    if case.role == "weight":
        return torch.ones_like(x[:, :1]), x.shape[1]
    return x.square().mean(1, keepdim=True).sqrt(), x.numel()


def shared(case: Case, relative: bool, entries: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    """Reduced over the entries that share a number: a row (weights with a number per row) or everything."""
    return reduce(entries, dim=1, keepdim=True) if relative and case.role == "weight" else reduce(entries)


def signed_range(bits: int | str) -> tuple[int, int]:
    """-Qn and Qp."""
    return (-1, 1) if bits == "ternary" else (-(2 ** (int(bits) - 1)), 2 ** (int(bits) - 1) - 1)


def lsq(case: Case, x: Tensor, dy: Tensor, learned: Learned, relative: bool = False) -> Answer:
    low, high = signed_range(case.bits)
    unit, sharing = per_entry(case, x, relative)
    if learned is None:
        mean = shared(case, relative, (x / unit).abs(), torch.mean)
        learned = {"scale": mean if case.bits == 1 else 2 * mean / math.sqrt(high)}
    scale = learned["scale"] * unit
    if case.bits == 1:
        level, inside = x.sign(), x.abs() <= scale
        slope = level
    else:
        level = nearest(x / scale, torch.arange(low, high + 1).double())
        inside = (low <= x / scale) & (x / scale <= high)
        slope = torch.where(inside, level - x / scale, level)
    grad = shared(case, relative, dy * slope * unit, torch.sum) / math.sqrt(sharing * max(high, 1))
    return Answer(level * scale, inside * dy, learned, {"scale": grad})


def lsq_row(case: Case, x: Tensor, dy: Tensor, learned: Learned) -> Answer:
    return lsq(case, x, dy, learned, relative=True)


def shrunk_range(x: Tensor, bits: int | str, factor: float) -> dict[str, Tensor]:
    """Scale and offset whose levels span `factor` of the range of x, about its middle."""
    low, high = signed_range(bits)
    scale = (x.max() - x.min()) * factor / (high - low)
    return {"scale": scale, "offset": (x.max() + x.min()) / 2 - scale * (low + high) / 2}


def lsq_plus(case: Case, x: Tensor, dy: Tensor, learned: Learned) -> Answer:
    """Its initial numbers depend on which factors are searched: here 250 of them, so equal only in the error."""
    if case.role == "weight":
        return lsq(case, x, dy, learned)
    low, high = signed_range(case.bits)
    if learned is None:
        tried = [shrunk_range(x, case.bits, i / 250) for i in range(1, 251)]
        learned = min(tried, key=lambda t: (lsq_plus(case, x, dy, t).values - x).square().sum().item())
    scale, offset = learned["scale"], learned["offset"]
    u = (x - offset) / scale
    level, inside = nearest(u, torch.arange(low, high + 1).double()), (low <= u) & (u <= high)
    factor = 1 / math.sqrt(x.numel() * max(high, 1))
    slope = torch.where(inside, level - u, level)
    grads = {"scale": (dy * slope).sum() * factor, "offset": (dy * ~inside).sum() * factor}
    return Answer(scale * level + offset, inside * dy, learned, grads)


def pact(case: Case, x: Tensor, dy: Tensor, learned: Learned) -> Answer:
    learned = learned or {"clip": SCALE[case.bits] * x.square().mean().sqrt()}
    clip = learned["clip"]
    beyond = x.abs() >= clip
    values = nearest(x.clamp(-clip, clip), evenly(clip, level_count(case.bits)))
    return Answer(values, ~beyond * dy, learned, {"clip": (beyond * x.sign() * dy).sum()})


def adabin(case: Case, x: Tensor, dy: Tensor, learned: Learned) -> Answer:
    """y = alpha S(u) + beta with u = (x - beta) / alpha, so dy = S dalpha + S' (dx - dbeta - u dalpha) + dbeta."""
    if case.bits != 1:
        raise unstated(case)
    if case.role == "activation":
        if learned is None:
            learned = {"offset": x.mean(), "scale": (x - x.mean()).abs().mean()}
        u = (x - learned["offset"]) / learned["scale"]
        slope = (2 - 2 * u.abs()).clamp(min=0)
        grads = {"scale": (dy * (u.sign() - slope * u)).sum(), "offset": (dy * (1 - slope)).sum()}
        return Answer(learned["scale"] * u.sign() + learned["offset"], slope * dy, learned, grads)
    values, dx = torch.zeros_like(x), torch.zeros_like(x)
    for i, (row, up) in enumerate(zip(x, dy, strict=True)):
        beta = row.mean()
        alpha = (row - beta).square().mean().sqrt()
        u = (row - beta) / alpha
        slope = 1 - (0.1 * u).tanh() ** 2
        values[i] = alpha * u.sign() + beta
        to_alpha, to_beta = (up * (u.sign() - slope * u)).sum(), (up * (1 - slope)).sum()
        dx[i] = slope * up + (to_alpha * u + to_beta) / len(row)  # dalpha/dx = u/K, dbeta/dx = 1/K
    return Answer(values, dx)


def seq(case: Case, x: Tensor, dy: Tensor, learned: Learned) -> Answer:
    if case.bits not in (1, 2, "ternary"):
        raise unstated(case)
    table: dict[int | str, list[float]] = {1: [-1, 1], "ternary": [-2 / 3, 0, 2 / 3], 2: [-3 / 4, -1 / 4, 1 / 4, 3 / 4]}
    levels = table[case.bits]  # times alpha
    unit, sharing = per_entry(case, x, True)
    if learned is None:
        learned = {"scale": shared(case, True, (x / unit).abs(), torch.mean if case.bits == 1 else torch.amax)}
    alpha = learned["scale"] * unit
    level, inside = nearest(x / alpha, torch.tensor(levels, dtype=torch.float64)), x.abs() <= 0.99 * alpha
    slope = level if case.bits == 1 else torch.where(inside, level - x / alpha, level)
    grad = shared(case, True, dy * slope * unit, torch.sum) / math.sqrt(sharing * max(levels))
    return Answer(level * alpha, inside * dy, learned, {"scale": grad})


METHODS: dict[str, Callable[[Case, Tensor, Tensor, Learned], Answer]] = {
    **dict.fromkeys(("quest", "quest-noht", "quest-clip", "ste", "clip-ste"), gaussian),
    "quarot": quarot,
    "lsq": lsq,
    "lsq-row": lsq_row,
    "lsq+": lsq_plus,
    "pact": pact,
    "adabin": adabin,
    "bitnet": bitnet,
    "extra-rmsnorm": bitnet,
    "seq": seq,
    "pquant": pquant,
}


# The layer


def normed(x: Tensor, gain: Tensor, eps: float, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """RMSNorm, and what an upstream gradient becomes for x and the gain."""
    inverse = (x.square().mean(1, keepdim=True) + eps) ** -0.5
    pull = dy * gain
    dx = inverse * pull - x * inverse**3 * (x * pull).mean(1, keepdim=True)
    return x * inverse * gain, dx, (dy * x * inverse).sum(0)


class Norm(NamedTuple):
    gain: Tensor
    eps: float


def layer_answer(
    weight: Case,
    act: Case,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    dy: Tensor,
    norm: Norm | None = None,
    learned: tuple[Learned, Learned] = (None, None),
) -> tuple[dict[str, Tensor], Answer, Answer]:
    """Output and gradients of x (tokens, K), w (out, K), dy (tokens, out); then the two quantizers' answers."""
    inner = normed(x, norm.gain, norm.eps, torch.zeros_like(x))[0] if norm else x
    w_q = answer(weight, w, torch.zeros_like(w), learned[0]).values
    x_q = answer(act, inner, torch.zeros_like(x), learned[1]).values
    of_w = answer(weight, w, dy.T @ x_q, learned[0])
    of_x = answer(act, inner, dy @ w_q, learned[1])
    y = x_q @ w_q.T
    result = {"y": y if bias is None else y + bias, "dx": of_x.dx, "dw": of_w.dx}
    if bias is not None:
        result["db"] = dy.sum(0)
    if norm:
        _, result["dx"], result["dgain"] = normed(x, norm.gain, norm.eps, of_x.dx)
    return result, of_w, of_x


# What tests of the whole table share


def cases(table: Mapping[str, Any]) -> list[Case]:
    """Every combination of method, role, width and format that a table (`questlm.quant.METHODS`) allows."""
    found = []
    for name, method in table.items():
        for role, factor in (("weight", method.weight), ("activation", method.act)):
            for form in method.formats:
                widths = factor.bits if form == "int" else FORMAT_BITS.get(form, factor.bits)
                if (role == "activation" and form in WEIGHT_FORMATS) or (form == "ternary" and form not in factor.bits):
                    continue
                found += [Case(name, role, width, form) for width in widths]
    return found


def rows(seed: int, *shape: int) -> Tensor:
    """Rows of different scales and centres with tails beyond a Gaussian's, so that no statistic is skipped unseen."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(shape, generator=generator, dtype=torch.float64)
    scale = torch.logspace(-0.5, 0.5, shape[0], dtype=torch.float64).unsqueeze(1)
    return scale * (z * (1 + 0.2 * z.square()) + 0.3)


def pair_up(parameters: list[Tensor], case: Case, x: Tensor, want: dict[str, Tensor]) -> dict[str, Tensor]:
    """A module's learned numbers under the oracle's names: found by what they were initialised to from x."""
    if case.method == "lsq+" and case.role == "activation":
        for scale, offset in (parameters, parameters[::-1]):
            factor = scale.item() / shrunk_range(x, case.bits, 1.0)["scale"].item()
            middle = shrunk_range(x, case.bits, factor)["offset"].item()
            if 0 < factor < 1 + 1e-9 and math.isclose(offset.item(), middle, abs_tol=1e-9):
                return {"scale": scale, "offset": offset}
        raise AssertionError(f"{case}: {[p.item() for p in parameters]} is no shrunk range about the middle")
    found = {}
    for name, number in want.items():
        same = [p for p in parameters if p.numel() == number.numel() and torch.allclose(p.flatten(), number.flatten())]
        assert len(same) == 1, f"{case}: no parameter was initialised to {name} = {number.flatten().tolist()}"
        found[name] = same[0]
    assert len(found) == len(parameters), f"{case}: {len(parameters)} learned tensors, expected {sorted(want)}"
    return found
