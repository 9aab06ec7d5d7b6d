"""Gradients are averaged in place, in buckets of one order, and only inside the block that asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from questlm.parallel.replicas import Replicas, _buckets


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[dist.ProcessGroup]:
    """A group of one process, through which gradients travel unchanged."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    assert dist.group.WORLD is not None
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_buckets_keep_the_order_and_never_mix_dtypes() -> None:
    parameters = [nn.Parameter(torch.zeros(size)) for size in (10, 1, 1, 3, 2)]
    parameters.append(nn.Parameter(torch.zeros(1, dtype=torch.float64)))
    sizes = [[each.numel() for each in bucket] for bucket in _buckets(parameters, 16.0)]
    assert sizes == [[10], [1, 1], [3], [2], [1]]


def test_every_gradient_travels_once_and_only_when_asked(
    alone: dist.ProcessGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    module = Replicas(model, alone, bucket_bytes=90)
    sent: list[int] = []
    send = module._send
    monkeypatch.setattr(module, "_send", lambda: (sent.append(len(module._sent)), send()))
    x = torch.randn(3, 4)
    module(x).square().mean().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    assert sent == []
    model.zero_grad()
    with module.exchanging():
        module(x).square().mean().backward()
        assert sent == list(range(len(module._buckets)))
    assert all(torch.equal(p.grad, e) for p, e in zip(model.parameters(), expected, strict=True) if p.grad is not None)


def test_a_parameter_that_took_no_part_is_left_out(alone: dist.ProcessGroup) -> None:
    model = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    module = Replicas(model, alone, bucket_bytes=1)
    with module.exchanging():
        model[0](torch.ones(1, 2)).sum().backward()
    assert model[0].weight.grad is not None
    assert model[1].weight.grad is None
