"""Measure the bytes that one training step communicates, with the quantised all-gather and without.

    torchrun --nproc-per-node 2 -m questlm.parallel.traffic --preset nano --bits 4

Counts the tensors that each process puts into collectives. It runs on the CPU, where these are the same as on a GPU.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from questlm.config import ModelConfig, QuantSpec, preset
from questlm.models import Llama
from questlm.parallel.engine import distribute, weight_cache
from questlm.parallel.processes import Processes, connect
from questlm.quant import prepare

__all__ = ["counted_traffic", "step_traffic"]

_KINDS = {"allgather": "all-gather", "reduce_scatter": "reduce-scatter", "allreduce": "all-reduce"}


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func.namespace == "c10d":
            kind = next((name for part, name in _KINDS.items() if part in func.__name__), None)
            if kind is not None:  # a base collective has (output, input), the others their tensors
                sent = args[1] if isinstance(args[1], Tensor) else args[0]
                self.bytes[kind] += sum(t.nbytes for t in tree_leaves(sent) if isinstance(t, Tensor))
        return func(*args, **(kwargs or {}))


@contextmanager
def counted_traffic() -> Iterator[Counter[str]]:
    """Count the bytes that this process puts into collectives inside the block, by kind of collective."""
    with _Counting() as counting:
        yield counting.bytes


def step_traffic(model: nn.Module, share: Callable[[nn.Module], nn.Module], ids: Tensor) -> Counter[str]:
    """Bytes, by kind, that a forward and a backward pass of `share(model)` communicate; ids are (batch, tokens)."""
    module = share(model)
    with counted_traffic() as sent, weight_cache(model, "fsdp"):
        module(ids).float().square().mean().backward()
    return sent


def shard_plainly(policy: MixedPrecisionPolicy) -> Callable[[nn.Module], nn.Module]:
    """A function that shards a model with FSDP2 alone, block by block, without the quantised all-gather."""

    def share(model: nn.Module) -> nn.Module:
        assert isinstance(model, Llama)
        for block in model.layers:
            fully_shard(block, mp_policy=policy)
        fully_shard(model, mp_policy=policy)
        return model

    return share


def _main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--preset", default="nano")
    arguments.add_argument("--bits", type=int, default=4)
    given = arguments.parse_args()
    shape = ModelConfig(**{"vocab_size": 2048} | preset(given.preset)["model"])
    off = QuantSpec(weight_bits=16, act_bits=16, embeddings="float")
    on = QuantSpec(weight_bits=given.bits, act_bits=given.bits)
    cpu = torch.device("cpu")
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    rows: dict[str, tuple[QuantSpec, Callable[[nn.Module], nn.Module]]] = {
        "FSDP2, float32": (off, shard_plainly(MixedPrecisionPolicy())),
        "FSDP2, bf16": (off, shard_plainly(half)),
        f"codes of {given.bits} bits": (on, lambda model: distribute(model, "fsdp", cpu)),
    }
    with connect(Processes.from_environment(), cpu, 60) as processes:
        ids = torch.randint(2048, (1, 16))
        for name, (spec, share) in rows.items():
            sent = step_traffic(prepare(Llama(shape).initialize(0), spec), share, ids)
            if processes.is_main:
                print(
                    f"{name:18}",
                    *(f"{kind} {size / 1e6:9.3f} MB" for kind, size in sorted(sent.items())),
                    sep="  ",
                )


if __name__ == "__main__":
    _main()
