"""Every method at every width, role and format: values, gradients and learned numbers against the oracle."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from helpers.method_oracles import (
    LEARNED,
    Case,
    NoOracleError,
    answer,
    cases,
    fp4_scale,
    lloyd,
    pair_up,
    rows,
    shrunk_range,
)
from helpers.oracle import SCALE, rotation
from questlm import QuantSpec, prepare
from questlm.errors import ConfigError
from questlm.quant import METHODS, fake_quantize, make_quantizer

SHAPES = [(5, 48), (3, 128), (4, 96)]
TRUSTED = [
    Case(m, r, b, "int", 1.1) for m in ("quest", "quest-noht") for r in ("weight", "activation") for b in (1, 2, 4)
]
CASES = [*cases(METHODS), *TRUSTED]
STATEFUL = [case for case in CASES if case.method in LEARNED and case[:2] != ("adabin", "weight")]
STATELESS = [case for case in CASES if case not in STATEFUL]


def by_kind(cases: list[Case]) -> list[list[Case]]:
    """The cases of each method, role and format, from the narrowest to the widest."""
    kinds: dict[tuple, list[Case]] = {}
    for case in sorted(cases, key=lambda case: 1.6 if case.bits == "ternary" else case.bits):
        kinds.setdefault((case.method, case.role, case.format), []).append(case)
    return [*kinds.values()]


def each_kind(cases: list[Case]) -> list[Case]:
    """Three widths of each method, role and format: for what does not depend on the number of levels."""
    return [case for kind in by_kind(cases) for case in dict.fromkeys((kind[0], kind[len(kind) // 2], kind[-1]))]


def in_shapes(cases: list[Case], shapes: list[tuple[int, int]]) -> list[tuple[Case, tuple[int, int]]]:
    """Every case in one shape, and every method, role and format in every shape."""
    return [
        (kind[number % len(kind)], shapes[number % len(shapes)])
        for kind in by_kind(cases)
        for number in range(max(len(kind), len(shapes)))
    ]


def make(case: Case, shape: tuple[int, int] = (5, 48)) -> nn.Module:
    method, role, bits, form, trust = case
    return make_quantizer(method, bits, role=role, shape=shape, format=form, trust=trust).double()


def expected(case: Case, *arguments):
    try:
        return answer(case, *arguments)
    except NoOracleError as error:
        pytest.fail(str(error))


def differentiate(function, x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    values = function(x)
    values.backward(dy)
    return values.detach(), x.grad


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want.reshape(got.shape), rtol=1e-8, atol=1e-9)


def compare_grads(learned: dict[str, nn.Parameter], grads: dict[str, torch.Tensor]) -> None:
    for name, parameter in learned.items():
        assert parameter.grad is not None, name
        close(parameter.grad, grads[name])


@pytest.mark.parametrize(("case", "shape"), in_shapes(CASES, SHAPES), ids=str)
def test_the_first_call_equals_the_oracle(case, shape):
    x, dy = rows(0, *shape), rows(1, *shape)
    if case[:2] == ("lsq+", "activation"):
        dy[(x == x.min()) | (x == x.max())] = 0  # the ends of an unshrunk range lie on the boundary itself
    quantizer = make(case, shape)
    values, dx = differentiate(quantizer, x, dy)
    want = expected(case, x, dy)
    learned = pair_up([*quantizer.parameters()], case, x, want.learned)
    if case[:2] == ("lsq+", "activation"):  # which factors are searched is free, how well is not
        least = (want.values - x).square().sum()
        want = expected(case, x, dy, {name: p.detach().squeeze() for name, p in learned.items()})
        assert least <= (values - x).square().sum() * (1 + 1e-9)
        assert (values - x).square().sum() <= 1.05 * least
    close(values, want.values)
    close(dx, want.dx)
    assert dx.abs().max() > 0
    compare_grads(learned, want.grads)


@pytest.mark.parametrize(("case", "shape"), in_shapes(STATEFUL, SHAPES[:2]), ids=str)
def test_a_later_call_with_moved_numbers_equals_the_oracle(case, shape):
    first, x, dy = rows(2, *shape), rows(3, *shape), rows(4, *shape)
    quantizer = make(case, shape)
    quantizer(first)
    learned = pair_up([*quantizer.parameters()], case, first, expected(case, first, dy).learned)
    with torch.no_grad():
        for parameter in learned.values():  # well inside the range of x, so that entries are clipped
            parameter.mul_(torch.linspace(0.2, 0.5, parameter.numel(), dtype=torch.float64).view_as(parameter))
    numbers = {name: p.detach() if p.numel() > 1 else p.detach().squeeze() for name, p in learned.items()}
    values, dx = differentiate(quantizer, x, dy)
    want = expected(case, x, dy, numbers)
    close(values, want.values)
    close(dx, want.dx)
    assert dx.abs().max() > 0
    assert (dx == 0).any()
    compare_grads(learned, want.grads)


@pytest.mark.parametrize("case", each_kind(STATELESS), ids=str)
def test_the_function_is_the_module(case):
    x, dy = rows(5, 5, 48), rows(6, 5, 48)
    assert not [*make(case).parameters()]

    def function(x):
        return fake_quantize(x, case.method, case.bits, case.role, format=case.format, trust=case.trust)

    for got, want in zip(differentiate(function, x, dy), differentiate(make(case), x, dy), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("case", each_kind(STATELESS), ids=str)
def test_rotated_back_it_equals_the_oracle_rotated_back(case):
    x, dy = rows(7, 5, 48), rows(8, 5, 48)
    h = rotation(48) if METHODS[case.method].rotates else torch.eye(48, dtype=torch.float64)

    def function(x):
        return fake_quantize(x, case.method, case.bits, case.role, True, format=case.format, trust=case.trust)

    values, dx = differentiate(function, x, dy)
    want = expected(case, x, dy @ h)
    close(values, want.values @ h)
    close(dx, want.dx)


@pytest.mark.parametrize("case", each_kind(STATEFUL), ids=str)
def test_learned_numbers_need_the_module(case):
    with pytest.raises(ConfigError, match="make_quantizer"):
        fake_quantize(rows(0, 5, 48), case.method, case.bits, case.role)


@pytest.mark.parametrize("case", each_kind(STATEFUL), ids=str)
def test_a_reloaded_quantizer_is_the_same_and_is_not_initialised_again(case):
    first, second = rows(9, 5, 48), 7 * rows(10, 5, 48)
    quantizer, other = make(case), make(case)
    assert not any(bool(b) for b in quantizer.buffers())
    quantizer(first)
    state = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    assert state["initialized"].dtype == torch.bool
    assert state["initialized"].item()
    values = quantizer(second)
    other.load_state_dict(state)
    assert torch.equal(other(second), values)
    for module in (quantizer, other):
        assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    assert not torch.equal(make(case)(second), values)  # so that a second initialisation would have been seen


@pytest.mark.parametrize("case", each_kind(STATEFUL), ids=str)
def test_leading_dimensions_are_rows(case):
    x, flat, folded = rows(11, 6, 48), make(case, (6, 48)), make(case, (6, 48))
    if case.role == "activation":
        assert torch.equal(folded(x.view(2, 3, 48)), flat(x).view(2, 3, 48))
    assert torch.equal(flat(x), make(case, (6, 48))(x))


@pytest.mark.parametrize("role", ["weight", "activation"])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("method", ["lsq", "lsq-row", "lsq+"])
def test_one_bit_learned_steps_stay_finite(method, role, scale):
    x = (rows(12, 5, 48) * scale).float().requires_grad_()
    quantizer = make_quantizer(method, 1, role=role, shape=(5, 48))
    values = quantizer(x)
    values.sum().backward()
    assert values.isfinite().all()
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() > 0
    assert all(p.isfinite().all() and p.grad.isfinite().all() for p in quantizer.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_the_default_width_is_one_of_the_table(name):
    for role, factor in (("weight", METHODS[name].weight), ("activation", METHODS[name].act)):
        x = rows(13, 5, 48)
        default = make_quantizer(name, role=role, shape=(5, 48)).double()(x)
        assert any(torch.equal(default, make(Case(name, role, bits))(x)) for bits in factor.bits)


# Where the gradient stops


FP4_TOP, LLOYD2 = 6 * fp4_scale(), lloyd(4)
BOUNDS = [
    (Case("quest", "weight", 1), 1.30 * SCALE[1]),
    (Case("quest-noht", "weight", 1), 1.25 * SCALE[1]),
    (Case("quest", "activation", 1), 1.30 * SCALE[1]),
    (Case("quest-noht", "activation", 1), 1.25 * SCALE[1]),
    *[(case, 1.1 * SCALE[case.bits]) for case in TRUSTED],
    (Case("quest", "weight", 4), SCALE[4] * 16 / 15),
    (Case("quest-noht", "activation", "ternary"), SCALE["ternary"] * 3 / 2),
    (Case("quest-clip", "weight", 4), SCALE[4]),
    (Case("clip-ste", "weight", 1), SCALE[1]),
    (Case("quest", "weight", 4, "fp4"), FP4_TOP + fp4_scale()),  # half of the interval from 4 k to 6 k
    (Case("quest-noht", "activation", 4, "fp4"), FP4_TOP + fp4_scale()),
    (Case("clip-ste", "weight", 4, "fp4"), FP4_TOP),
    (Case("quest-noht", "weight", 2, "lloydmax"), LLOYD2[3] + (LLOYD2[3] - LLOYD2[2]) / 2),
    (Case("quest-clip", "weight", 2, "lloydmax"), LLOYD2[3]),
]


@pytest.mark.parametrize(("case", "bound"), BOUNDS, ids=str)
def test_the_gradient_passes_up_to_its_bound_and_not_beyond(case, bound):
    for excess, passes in ((-1e-6, 1.0), (1e-6, 0.0)):
        entry = bound * (1 + excess)
        rest = math.sqrt((128 - entry**2) / 127)  # so that the row's rms is 1
        x_h = torch.full((1, 128), rest, dtype=torch.float64)
        x_h[0, 0] = entry
        h = rotation(128) if METHODS[case.method].rotates else torch.eye(128, dtype=torch.float64)
        up = torch.zeros(1, 128, dtype=torch.float64)
        up[0, 0] = 1.0
        _, dx = differentiate(make(case, (1, 128)), x_h @ h, up)
        close((dx @ h)[0, 0], torch.tensor(passes, dtype=torch.float64))


@pytest.mark.parametrize("bits", [1, "ternary", 2])
def test_balanced_levels_stop_the_gradient_one_percent_before_their_scale(bits):
    row = torch.full((1, 32), 0.3, dtype=torch.float64)
    if bits == 1:  # alpha is the mean magnitude, which must be 1
        row[0, :24], row[0, 24:] = 0.5, 2.5
    row[0, :5] = torch.tensor([0.99 - 1e-6, 0.99 + 1e-6, 1e-6 - 0.99, -1e-6 - 0.99, 1.0], dtype=torch.float64)
    if bits == 1:
        row[0, -1] = 0
        row[0, -1] = 32 - row.abs().sum()
    _, dx = differentiate(make(Case("seq", "weight", bits), (1, 32)), row, torch.ones_like(row))
    assert dx[0, :6].tolist() == [1, 0, 1, 0, 0, 1]


def test_half_of_the_largest_fp4_interval_is_the_published_one():
    assert BOUNDS[-5][1] - FP4_TOP == pytest.approx(0.487, abs=5e-4)


def test_a_range_is_what_the_search_for_an_offset_shrinks():
    x = rows(14, 5, 48)
    x[0, 0] = 1e3  # one outlier: at 8 bits the range is better cut
    quantizer = make(Case("lsq+", "activation", 2))
    quantizer(x)
    scale, _ = pair_up([*quantizer.parameters()], Case("lsq+", "activation", 2), x, {}).values()
    assert scale < shrunk_range(x, 2, 1.0)["scale"]


# What is refused


REFUSED = [
    ({"method": "adabin", "weight_bits": 4}, ("adabin", r"\b4\b", r"\b1\b")),
    ({"method": "seq", "weight_bits": 4}, ("seq", r"\b4\b", r"\b2\b")),
    ({"method": "bitnet", "weight_bits": 4, "act_bits": 8}, ("bitnet", r"\b4\b", "ternary")),
    ({"method": "quest", "weight_bits": 3, "format": "fp4"}, ("fp4", r"\b3\b", r"\b4\b")),
    ({"method": "quest", "weight_bits": 8, "format": "lloydmax"}, ("lloydmax", r"\b8\b", r"\b4\b|int")),
    ({"method": "lsq", "weight_bits": 4, "format": "fp4"}, ("lsq", "fp4", "int|quest")),
    ({"method": "quest-clip", "weight_bits": 4, "format": "int-2:4"}, ("quest-clip", "int-2:4", "int|quest")),
    ({"method": "ste", "weight_bits": 4, "trust": 1.3}, ("ste", "trust", "quest")),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED, ids=str)
def test_a_combination_without_sense_is_refused_with_the_nearest_that_has(arguments, words):
    spec = {"act_bits": 16, **arguments}
    single = {"bits": arguments["weight_bits"], **{k: v for k, v in arguments.items() if not k.endswith("_bits")}}
    ways = [
        lambda: make_quantizer(shape=(8, 128), **single),
        lambda: prepare(nn.Linear(128, 8), QuantSpec(**spec)),
    ]
    if arguments["method"] not in LEARNED:
        ways.append(lambda: fake_quantize(torch.ones(8, 128), **single))
    for build in ways:
        with pytest.raises(ConfigError) as refusal:
            build()
        for word in words:
            assert refusal.match(word)


@pytest.mark.parametrize("form", ["int-2:4", "bf16-2:4"])
def test_sparse_activations_are_refused(form):
    bits = 4 if form == "int-2:4" else 16
    with pytest.raises(ConfigError, match=f"{form}.*activation|activation.*{form}"):
        make_quantizer("quest", bits, role="activation", shape=(8, 128), format=form)
    with pytest.raises(ConfigError, match="int"):
        prepare(nn.Linear(128, 8), QuantSpec(weight_bits=bits, act_bits=4, format=form, act_format=form))
