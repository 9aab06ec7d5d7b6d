"""Muon on a GPU: its kernels against the reference, the optimizer against torch's, and a step in a CUDA graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from helpers.optimizer_checks import check_momentum, check_odd_polynomial, check_symmetry
from questlm import ops
from questlm.training.optim import Muon, Optimizers
from questlm.training.optim.muon import orthogonalize

pytestmark = pytest.mark.gpu
SHAPES = ((160, 96), (96, 160), (96, 96), (160, 96), (17, 5), (640, 640))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), [(20, 33), (640, 1792), (257, 70)])
def test_symmetric_products(rows: int, columns: int, dtype: torch.dtype) -> None:
    check_symmetry(rows, columns, "cuda", dtype)


@pytest.mark.parametrize("shape", [(3, 32, 48), (1, 48, 32), (2, 640, 1792)])
def test_odd_polynomial(shape: tuple[int, int, int]) -> None:
    check_odd_polynomial(shape, "cuda", torch.bfloat16)


@pytest.mark.parametrize(
    ("count", "shape", "transposed", "lr_on_device"), [(11, (17, 70), 3, False), (9, (640, 1792), 5, True)]
)
def test_momentum(count: int, shape: tuple[int, int], transposed: int, lr_on_device: bool) -> None:
    check_momentum(count, shape, transposed, "cuda", torch.bfloat16, lr_on_device)


def test_orthogonal_matrices_are_as_exact_as_those_of_the_reference() -> None:
    x = torch.randn(4, 256, 640, device="cuda")
    exact = orthogonalize(x.double())
    errors = []
    for backend in ("auto", "reference"):
        with ops.using_backend(backend):
            errors.append(float((orthogonalize(x.bfloat16()).double() - exact).norm() / exact.norm()))
    assert errors[0] < 1.3 * errors[1]


def _parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).cuda()) for shape in SHAPES]


def _gradients(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).cuda() for shape in SHAPES]


def _moved(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [(after - before).detach() for after, before in zip(parameters, _parameters(), strict=True)]


def test_muon_moves_matrices_as_torchs_muon_does() -> None:
    ours, theirs = _parameters(), _parameters()
    own = Muon([{"params": ours, "weight_decay": 0.1, "lr_ratio": 1.0}], lr=0.02)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for seed in range(5):
        for optimizer, parameters in ((own, ours), (reference, theirs)):
            for parameter, gradient in zip(parameters, _gradients(seed), strict=True):
                parameter.grad = gradient
            optimizer.step()
    for one, other in zip(_moved(ours), _moved(theirs), strict=True):
        # Each is some 1 % from the exact update, as its products are rounded to bfloat16.
        assert (one - other).norm() / other.norm() < 4e-2


def test_a_recorded_step_moves_what_a_plain_one_moves() -> None:
    plain, recorded = _parameters(), _parameters()
    optimizers = [
        Optimizers([Muon([{"params": each, "weight_decay": 0.1, "lr_ratio": 1.0}], lr=0.02)])
        for each in (plain, recorded)
    ]
    optimizers[1].prepare_recording(torch.device("cuda"))
    for parameters in (plain, recorded):
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)

    def take(optimizer: Optimizers, parameters: list[nn.Parameter], seed: int) -> None:
        for parameter, gradient in zip(parameters, _gradients(seed), strict=True):
            assert parameter.grad is not None
            parameter.grad.copy_(gradient)
        optimizer.set_learning_rate(0.02 / (1 + seed))

    for seed in range(2):
        for optimizer, parameters in zip(optimizers, (plain, recorded), strict=True):
            take(optimizer, parameters, seed)
            optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizers[1].step()
    for seed in range(2, 5):
        take(optimizers[0], plain, seed)
        optimizers[0].step()
        take(optimizers[1], recorded, seed)
        graph.replay()
    for one, other in zip(_moved(plain), _moved(recorded), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
