"""How processes share one model: DDP (each has all of it) or FSDP2 (each has a part of every weight).

FSDP2 cuts each weight by rows and gathers the blocks one after another as the passes come to them. The order of the
wrappers is recompute, compile, shard, from the inside out, as FSDP2 needs it: it gathers in hooks around a block, which
are no part of what is compiled.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from questlm.parallel.processes import Processes
from questlm.parallel.quantized_gather import gather_as_codes, gathered_codes
from questlm.quant import cached_weights

__all__ = [
    "Engine",
    "clip_gradients",
    "compile_blocks",
    "distribute",
    "gathered",
    "gradient_exchange",
    "local_shard",
    "pick_engine",
    "weight_cache",
    "whole",
]

Engine = Literal["none", "ddp", "fsdp"]


def pick_engine(setting: Literal["auto", "ddp", "fsdp"], ranks: Processes) -> Engine:
    """The engine for these processes: none for a single one, which has nobody to share with."""
    if ranks.world_size == 1:
        return "none"
    return "ddp" if setting == "auto" else setting


def distribute(model: nn.Module, engine: Engine, device: torch.device) -> nn.Module:
    """Share `model`, whole and alike on all processes, between them; returns the module to call in its place.

    With 'fsdp' the parameters of `model` itself become DTensors of the same names.
    """
    if engine == "ddp":
        return _replicate(model, device)
    if engine == "fsdp":
        _shard(model, device)
    return model


def _replicate(model: nn.Module, device: torch.device) -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")  # for a name that 2.11 lacks
        # Buffers say how far quantisation has got, which every process knows; so none are sent around.
        return DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )


def compile_blocks(model: nn.Module) -> None:
    """Compile each block of `model.layers` by itself, in place, and the loss behind them; before sharding."""
    layers = model.layers
    assert isinstance(layers, nn.ModuleList)
    for block in layers:
        block.compile(dynamic=False)
    cast(nn.Module, model.embed).compile(dynamic=False)  # one kernel, where rounding its rows to bf16 takes seven
    vars(model)["head_loss"] = torch.compile(cast(Callable[..., Tensor], model.head_loss), dynamic=False)


def _shard(model: nn.Module, device: torch.device) -> None:
    processes = torch.distributed.get_world_size()
    mesh = init_device_mesh(device.type, (processes,))
    gather_as_codes(model, processes, torch.bfloat16 if device.type == "cuda" else torch.float32)
    layers = model.layers
    assert isinstance(layers, nn.ModuleList)
    for block in layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def weight_cache(model: nn.Module, engine: Engine) -> AbstractContextManager[None]:
    """A context for the passes of one optimizer step: weights are quantised once, at its beginning.

    Enter it with autocast as in the passes; gradients are whole behind it.
    """
    if engine == "fsdp":
        return gathered_codes(model)
    return cached_weights(model, through_parameters=engine == "ddp")  # DDP watches the parameters themselves


@contextmanager
def gradient_exchange(module: nn.Module, on: bool) -> Iterator[None]:
    """Whether backward passes inside the block exchange their gradients, or keep them for a later one that does."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(on)
        module.set_is_last_backward(on)
    with module.no_sync() if isinstance(module, DistributedDataParallel) and not on else nullcontext():
        yield


def clip_gradients(model: nn.Module, largest: float) -> Tensor:
    """Scale all gradients so that their norm is at most `largest`; returns the norm that they had, on all processes."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), largest)
    return whole(norm)


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be cut between processes, put together on each of them. All must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_shard(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """What this process has of a tensor that may be cut; of a whole `tensor` the part that it has of `like`."""
    if isinstance(like, DTensor) and not isinstance(tensor, DTensor):
        tensor = distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Inside the block the parameters of `module`, and of those in it, are whole; what is written to them is lost.

    All processes must enter it. Costs nothing where no parameter is cut.
    """
    cut = {
        (owner, name): parameter
        for owner in module.modules()
        for name, parameter in owner.named_parameters(recurse=False)
        if isinstance(parameter.data, DTensor)
    }
    try:
        for (owner, name), parameter in cut.items():
            owner._parameters[name] = nn.Parameter(whole(parameter.detach()), parameter.requires_grad)
        yield
    finally:
        for (owner, name), parameter in cut.items():
            owner._parameters[name] = parameter
