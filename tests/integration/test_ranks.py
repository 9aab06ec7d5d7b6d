"""Several processes, each with data of its own, learn one set of steps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from questlm import QuantSpec, prepare


def _rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    for method in ("lsq", "lsq-row", "lsq+", "pact", "adabin", "seq"):
        bits = 1 if method in ("adabin", "seq") else 4
        torch.manual_seed(0)
        model = prepare(nn.Sequential(nn.Linear(32, 16)), QuantSpec(method=method, weight_bits=bits, act_bits=bits))
        parallel = DistributedDataParallel(model)
        optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-2)
        generator = torch.Generator().manual_seed(rank)
        for _ in range(3):
            parallel(torch.randn(8, 32, generator=generator) * (1 + rank)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        torch.save(model.state_dict(), f"{folder}/{method}-{rank}.pt")
    dist.barrier()
    os._exit(0)  # at once: gloo's threads can keep an interpreter from its ordinary end


@pytest.mark.slow
def test_two_processes_learn_the_same_steps(tmp_path: Path) -> None:
    ranks = [subprocess.Popen([sys.executable, __file__, str(rank), "2", str(tmp_path)]) for rank in (0, 1)]
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    for path in tmp_path.glob("*-0.pt"):
        first, second = (torch.load(str(path).replace("-0.pt", f"-{rank}.pt"), weights_only=True) for rank in (0, 1))
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            assert torch.equal(tensor, second[name]), f"{path.stem}: {name}"


if __name__ == "__main__":
    _rank(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
