"""The oracle against numbers worked out by hand, and against autograd on surrogates written another way."""

from __future__ import annotations

import math

import pytest
import torch

from helpers.method_oracles import Answer, Case, answer, fp4_scale, gaussian_error, lloyd, normed, shrunk_range, to_bf16
from helpers.oracle import SCALE

WIDTHS = {"ternary": (1, 1), 2: (2, 1), 3: (4, 3), 4: (8, 7), 8: (128, 127)}  # Qn, Qp


def tensor(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def straight(value: torch.Tensor, through: torch.Tensor) -> torch.Tensor:
    """`value` forward, the gradient of `through` backward."""
    return through + (value - through).detach()


def given(method: str, role: str, bits, x, **learned: float) -> Answer:
    """The answer for an upstream gradient of ones."""
    numbers = {name: torch.tensor(number, dtype=torch.float64) for name, number in learned.items()}
    return answer(Case(method, role, bits), x, torch.ones_like(x), numbers or None)


def close(got: torch.Tensor, want) -> None:
    torch.testing.assert_close(
        got, torch.as_tensor(want, dtype=torch.float64).expand(got.shape), rtol=1e-12, atol=1e-12
    )


# By hand


def test_two_bit_gaussian_grid_by_hand():
    x = tensor([2.9, 0.1, -0.9, 0.0] * 4)  # one row; rms sqrt((8.41 + .01 + .81) / 4)
    rms = math.sqrt(9.23 / 4)
    a, third = SCALE[2] * rms, SCALE[2] * rms / 3
    got = given("quest-noht", "weight", 2, x)
    assert got.values[0, :3].tolist() == pytest.approx([a, third, -third])
    assert got.dx[0, :3].tolist() == [1, 1, 1]  # 2.9 < a * 4/3 = 3.02
    assert given("quest-clip", "weight", 2, x).values.abs().max() == pytest.approx(a)
    assert given("clip-ste", "weight", 2, x).dx[0, :3].tolist() == [0, 1, 1]  # 2.9 > a = 2.27
    assert given("ste", "weight", 2, 10 * x).dx.min() == 1


def test_the_outer_trust_factor_of_one_bit_by_hand():
    x = tensor([1.6, 0.3, 1.02, -1.01] * 4)
    rms = math.sqrt((1.6**2 + 0.3**2 + 1.02**2 + 1.01**2) / 4)  # 1.0836
    assert 1.01 < 1.25 * SCALE[1] * rms < 1.6
    assert given("quest-noht", "weight", 1, x).dx[0, :4].tolist() == [0, 1, 1, 1]
    tight = answer(Case("quest-noht", "weight", 1, trust=1.02 / SCALE[1] / rms - 1e-3), x, torch.ones_like(x))
    assert tight.dx[0, :4].tolist() == [0, 1, 0, 1]


def test_rotation_spreads_one_entry_over_its_block():
    x = torch.zeros(1, 32, dtype=torch.float64)
    x[0, 16] = 4.0  # blocks of 32: the row of H_32 with index 16 is + for columns below 16, - beyond
    close(given("quarot", "weight", 4, x).values, tensor([4 / math.sqrt(32)] * 16 + [-4 / math.sqrt(32)] * 16))
    close(given("quarot", "weight", 4, x).dx[0, 0], math.sqrt(32))  # ones, rotated back


def test_fp4_scale_and_levels():
    k = fp4_scale()
    assert k == pytest.approx(0.48708, abs=5e-6)
    x = tensor([1.0] * 15 + [9.0])
    rms = math.sqrt(96 / 16)
    got = answer(Case("quest-noht", "weight", 4, "fp4"), x, torch.ones_like(x))
    assert (got.values / (k * rms))[0, [0, -1]].tolist() == pytest.approx([1.0, 6.0])  # 1 / (k rms) = 0.84
    assert got.dx[0, -1] == 0  # 9 > 7 k rms = 8.35
    x = tensor([1.0] * 15 + [6.0])  # rms 1.785: 6 k rms = 5.22 < 6 < 7 k rms = 6.09
    assert answer(Case("quest-noht", "weight", 4, "fp4"), x, torch.ones_like(x)).dx[0, -1] == 1
    assert answer(Case("clip-ste", "weight", 4, "fp4"), x, torch.ones_like(x)).dx[0, -1] == 0


@pytest.mark.parametrize(
    ("n", "levels", "error"),  # J. Max, 1960, table I
    [(4, [0.4528, 1.510], 0.1175), (8, [0.2451, 0.7560, 1.344, 2.152], 0.03454), (16, [0.1284, 0.3881], 0.009497)],
)
def test_lloyd_max_levels_are_the_published_ones(n, levels, error):
    assert lloyd(n)[n // 2 :][: len(levels)] == pytest.approx(levels, rel=3e-4)
    assert gaussian_error(lloyd(n)) == pytest.approx(error, rel=5e-4)


def test_pairs_and_entries_that_are_kept_by_hand():
    x = tensor([3.0, 0.02, 1.0, 1.0, -2.0, 2.0, 0.5, -0.1] * 2)  # norms of pairs: 3, 1.41, 2.83, .51
    pairs = answer(Case("quest-noht", "weight", 4, "int-2:4"), x, torch.ones_like(x))
    step = 2 * SCALE[4] / 15 * math.sqrt((9 + 0.02**2 + 1 + 1 + 4 + 4 + 0.25 + 0.01) / 8)
    assert (pairs.values / step).tolist()[0][:8] == pytest.approx([5.5, 0.5, 0, 0, -3.5, 3.5, 0, 0])
    assert pairs.dx[0, :8].tolist() == [1, 1, 0, 0, 1, 1, 0, 1]  # dropped ones within half a step of zero still learn
    entries = answer(Case("ste", "weight", 16, "bf16-2:4"), x + 0.001, torch.ones_like(x))
    assert entries.values.tolist()[0][:8] == [3.0, 0, 1.0, 0, -2.0, 2.0, 0, 0]
    assert entries.dx.min() == 1


def test_rounding_to_bf16():
    for value in [*draw(0, 50).tolist(), 0.0, 1.00390625, 1.01171875]:
        assert to_bf16(value) == torch.tensor(value, dtype=torch.float64).bfloat16().item()


def test_absmean_and_absmax_by_hand():
    x = tensor([4.0, -0.9, 0.0, 3.1], [-0.5, 1.5, 1.0, 5.0])  # mean |W| = 2
    close(given("bitnet", "weight", "ternary", x).values, [[2, 0, 0, 2], [0, 2, 0, 2]])
    x = tensor([127.0, -0.6, 3.4, 0.2], [-254.0, 3.1, 0.0, 0.9])
    close(given("extra-rmsnorm", "activation", 8, x).values, [[127, -1, 3, 0], [-254, 4, 0, 0]])
    close(given("pquant", "activation", 8, x).values, [[127, -1, 3, 0], [-254, 4, 0, 0]])
    x = tensor([4.0, -2.0], [1.5, 0.5])  # mean 1, mean |W| 2
    close(given("pquant", "weight", 1, x).values, [[2, -2], [2, -2]])


def test_quarot_reaches_the_largest_entry():
    x = torch.eye(16, dtype=torch.float64)[:1] * 3 + 0.25
    x_h = (answer(Case("quarot", "weight", 16), x, x)).values
    for bits, n in ((1, 2), ("ternary", 3), (2, 4), (4, 16)):
        values = given("quarot", "weight", bits, x).values
        step = 2 * x_h.abs().max() / (n - 1)
        close(values.abs().max(), x_h.abs().max())
        assert (values - x_h).abs().max() <= step / 2


def test_learned_step_by_hand():
    x = tensor([0.6, -0.6, 1.4, -9.0], [2.6, 0.2, -1.2, 7.0])
    got = given("lsq", "weight", 2, x, scale=1.0)  # levels -2..1
    close(got.values, [[1, -1, 1, -2], [1, 0, -1, 1]])
    close(got.dx, [[1, 1, 0, 0], [0, 1, 1, 0]])
    close(got.grads["scale"], (0.4 - 0.4 + 1 - 2 + 1 - 0.2 + 0.2 + 1) / math.sqrt(8 * 1))
    close(given("lsq", "weight", 3, x).learned["scale"], 2 * 22.6 / 8 / math.sqrt(3))
    one = given("lsq", "weight", 1, x, scale=1.3)
    close(one.values, 1.3 * x.sign())
    close(one.dx, [[1, 1, 0, 0], [0, 1, 1, 0]])
    close(one.grads["scale"], 2 / math.sqrt(8))
    close(given("lsq", "weight", 1, x).learned["scale"], 22.6 / 8)
    rows = given("lsq-row", "weight", 2, x)
    close(rows.learned["scale"], [[2 * 11.6 / 4], [2 * 11.0 / 4]])
    assert rows.grads["scale"].shape == (2, 1)


def test_learned_balanced_levels_by_hand():
    x = tensor([0.9, -0.2, 3.0, -4.0])
    got = given("seq", "weight", 2, x, scale=4.0)  # levels -3, -1, 1, 3; u = x / 2
    close(got.values, [[1, -1, 3, -3]])
    close(got.dx, [[1, 1, 1, 0]])  # 4 > 3.96
    close(got.grads["scale"], (2 / 4) * ((0.5 - 0.45) + (-0.5 + 0.1) + (1.5 - 1.5) - 1.5) / math.sqrt(4 * 3 / 4))
    got = given("seq", "weight", "ternary", x, scale=3.0)  # levels -2, 0, 2; u = x / 2
    close(got.values, [[0, 0, 2, -2]])
    close(got.dx, [[1, 1, 0, 0]])  # 3 > 2.97
    close(got.grads["scale"], (2 / 3) * ((0 - 0.45) + (0 + 0.1) + 1 - 1) / math.sqrt(4 * 2 / 3))
    close(given("seq", "weight", 2, x).learned["scale"], 4.0)
    close(given("seq", "weight", 1, x).learned["scale"], 8.1 / 4)


def test_learned_clip_by_hand():
    x = tensor([0.9, -0.2, 3.0, -4.0])
    got = given("pact", "weight", 2, x, clip=3.0)
    close(got.values, [[1, -1, 3, -3]])
    close(got.dx, [[1, 1, 0, 0]])
    close(got.grads["clip"], 1 - 1)
    close(given("pact", "weight", 2, x).learned["clip"], SCALE[2] * math.sqrt((0.81 + 0.04 + 9 + 16) / 4))


def test_one_bit_with_centre_and_distance_by_hand():
    x = tensor([1.0, 3.0, 3.0, 1.0])
    close(given("adabin", "weight", 1, x).values, x)  # two values: mean 2, deviation 1
    got = given("adabin", "activation", 1, x, scale=2.0, offset=2.0)
    close(got.values, [[0, 4, 4, 0]])
    close(got.dx, 2 - 2 * 0.5)
    close(got.grads["offset"], 0)
    close(given("adabin", "activation", 1, tensor([0.0, 1.0, 5.0])).learned["scale"], 2.0)


def test_the_range_search_covers_the_tensor_and_shrinks_about_its_middle():
    x = tensor([-1.0, 0.0, 5.0, 7.0])
    full = shrunk_range(x, 2, 1.0)  # levels -2..1 times 8/3, plus the offset
    close(full["offset"] - 2 * full["scale"], -1.0)
    close(full["offset"] + full["scale"], 7.0)
    half = shrunk_range(x, 2, 0.5)
    close(half["offset"] - 2 * half["scale"], 1.0)
    close(half["offset"] + half["scale"], 5.0)
    close(given("lsq+", "activation", 2, tensor([-1.0, -0.5, 0.0, 0.5])).values, [[-1.0, -0.5, 0.0, 0.5]])


# By autograd


def compare(case: Case, surrogate, seed: int = 0, relative: bool = False, factor: float = 1.0) -> None:
    """`surrogate(x, unit, *learned)`, differentiated; `factor` is the gradient scale of learned numbers."""
    x, dy = draw(seed, 5, 48) * 2 + 0.3, draw(seed + 1, 5, 48)
    start = answer(case, x, dy)
    learned = {name: number * 0.4 for name, number in start.learned.items()}
    got = answer(case, x, dy, learned)
    assert start.learned == {} or not torch.equal(got.values, start.values)
    leaf = x.clone().requires_grad_()
    leaves = {name: number.clone().requires_grad_() for name, number in learned.items()}
    unit = x.square().mean(1, keepdim=True).sqrt() if relative and case.role == "activation" else 1.0
    y = surrogate(leaf, unit, **leaves)
    close(got.values, y.detach())
    grads = torch.autograd.grad(y, (leaf, *leaves.values()), dy)
    close(got.dx, grads[0])
    for name, grad in zip(leaves, grads[1:], strict=True):
        close(got.grads[name], grad * factor)


@pytest.mark.parametrize("role", ["weight", "activation"])
@pytest.mark.parametrize("bits", [*WIDTHS])
@pytest.mark.parametrize("relative", [False, True])
def test_learned_steps_equal_autograd_on_a_straight_through_round(bits, role, relative):
    qn, qp = WIDTHS[bits]

    def surrogate(x, unit, scale):
        u = (x / (scale * unit)).clamp(-qn, qp)
        return straight(u.round(), u) * scale * unit

    m = 48 if relative and role == "weight" else 240
    compare(Case("lsq-row" if relative else "lsq", role, bits), surrogate, relative=relative, factor=(m * qp) ** -0.5)


@pytest.mark.parametrize("role", ["weight", "activation"])
@pytest.mark.parametrize("relative", [False, True])
def test_one_bit_learned_scales_equal_autograd(role, relative):
    def surrogate(x, unit, scale):
        return scale * unit * x.detach().sign() + (x - x.detach()) * (x.detach().abs() <= scale.detach() * unit)

    factor = (48 if relative and role == "weight" else 240) ** -0.5
    compare(Case("lsq-row" if relative else "lsq", role, 1), surrogate, relative=relative, factor=factor)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_learned_offset_equals_autograd(bits):
    qn, qp = 2 ** (bits - 1), 2 ** (bits - 1) - 1

    def surrogate(x, unit, scale, offset):
        u = ((x - offset) / scale).clamp(-qn, qp)
        return straight(u.round(), u) * scale + offset

    compare(Case("lsq+", "activation", bits), surrogate, factor=(240 * max(qp, 1)) ** -0.5)


@pytest.mark.parametrize("role", ["weight", "activation"])
@pytest.mark.parametrize("bits", [2, "ternary"])
def test_balanced_levels_equal_autograd(bits, role):
    n, shift = (4, 0.5) if bits == 2 else (3, 0.0)

    def surrogate(x, unit, scale):
        step = 2 * scale * unit / n
        u = x / step
        level = (u.detach() - shift).round().clamp(-(n // 2), 1) + shift
        return step * torch.where(u.abs() <= 0.99 * n / 2, straight(level, u), level)

    m = 48 if role == "weight" else 240
    compare(Case("seq", role, bits), surrogate, relative=True, factor=(m * (n - 1) / n) ** -0.5)


@pytest.mark.parametrize("bits", [1, "ternary", 2, 4, 8])
def test_learned_clip_equals_autograd(bits):
    n = 3 if bits == "ternary" else 2**bits

    def surrogate(x, unit, clip):
        inner = torch.minimum(torch.maximum(x, -clip), clip)
        step = 2 * clip.detach() / (n - 1)
        level = ((inner.detach() / step) + (n - 1) / 2).round() - (n - 1) / 2
        return straight(level * step, inner)

    compare(Case("pact", "weight", bits), surrogate)


def test_one_bit_centre_and_distance_equal_autograd():
    def weights(x, unit):
        beta = x.mean(1, keepdim=True)
        alpha = (x - beta).square().mean(1, keepdim=True).sqrt()
        u = (x - beta) / alpha
        return alpha * straight(u.sign(), 10 * torch.tanh(0.1 * u)) + beta

    def activations(x, unit, offset, scale):
        u = ((x - offset) / scale).clamp(-1, 1)
        return scale * straight(u.sign(), u.sign().detach() * (2 * u.abs() - u * u)) + offset

    compare(Case("adabin", "weight", 1), weights)
    compare(Case("adabin", "activation", 1), activations)


def test_the_norm_equals_autograd():
    x, gain, dy = draw(0, 5, 48).requires_grad_(), draw(1, 48).requires_grad_(), draw(2, 5, 48)
    y, dx, dgain = normed(x.detach(), gain.detach(), 1e-3, dy)
    want = torch.nn.functional.rms_norm(x, (48,), gain, 1e-3)
    close(y, want.detach())
    for got, grad in zip((dx, dgain), torch.autograd.grad(want, (x, gain), dy), strict=True):
        close(got, grad)
