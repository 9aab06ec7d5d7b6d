"""How processes share one model: DDP (each has all of it) or FSDP2 (each has a shard of every weight).

FSDP2 shards each weight by rows and gathers the blocks one after another as the passes reach them. The wrappers are
applied in the order activation checkpointing, compilation, sharding: FSDP2 gathers in hooks around a block, which are
not compiled.
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
    "full_tensor",
    "gathered",
    "gradient_exchange",
    "local_shard",
    "pick_engine",
    "weight_cache",
]

Engine = Literal["none", "ddp", "fsdp"]


def pick_engine(setting: Literal["auto", "ddp", "fsdp"], processes: Processes) -> Engine:
    """Return 'none' for a single process, else the engine that the setting names; 'auto' is DDP."""
    if processes.world_size == 1:
        return "none"
    return "ddp" if setting == "auto" else setting


def distribute(model: nn.Module, engine: Engine, device: torch.device) -> nn.Module:
    """Set up data-parallel training of `model`, the same in every process, and return the module to call in its place.

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
        # Buffers say how far quantisation has been faded in, which every process knows, so none are broadcast.
        return DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )


def compile_blocks(model: nn.Module) -> None:
    """Compile the blocks, the embedding and `head_loss`, each by itself, in place. Call it before sharding."""
    layers = model.layers
    assert isinstance(layers, nn.ModuleList)
    for block in layers:
        block.compile(dynamic=False)
    cast(nn.Module, model.embed).compile(dynamic=False)  # one kernel, where rounding its rows to bf16 takes seven
    vars(model)["head_loss"] = torch.compile(cast(Callable[..., Tensor], model.head_loss), dynamic=False)


def _shard(model: nn.Module, device: torch.device) -> None:
    world_size = torch.distributed.get_world_size()
    mesh = init_device_mesh(device.type, (world_size,))
    gather_as_codes(model, world_size, torch.bfloat16 if device.type == "cuda" else torch.float32)
    layers = model.layers
    assert isinstance(layers, nn.ModuleList)
    for block in layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def weight_cache(model: nn.Module, engine: Engine) -> AbstractContextManager[None]:
    """A context for the passes of one optimizer step: weights are quantised once, when it is entered.

    Enter it with autocast as in the passes. Gradients are complete once it is left.
    """
    if engine == "fsdp":
        return gathered_codes(model)
    return cached_weights(model, through_parameters=engine == "ddp")  # DDP watches the parameters themselves


@contextmanager
def gradient_exchange(module: nn.Module, on: bool) -> Iterator[None]:
    """Exchange gradients in the backward passes inside the block, or (`on` false) accumulate them for a later one."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(on)
        module.set_is_last_backward(on)
    with module.no_sync() if isinstance(module, DistributedDataParallel) and not on else nullcontext():
        yield


def clip_gradients(model: nn.Module, largest: float) -> Tensor:
    """Scale all gradients so that their norm is at most `largest`; returns the norm before that, on all processes."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), largest)
    return full_tensor(norm)


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor, on every process, of one that may be sharded. All processes call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_shard(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """This process's shard of a tensor; an unsharded one is first sharded as `like` is."""
    if isinstance(like, DTensor) and not isinstance(tensor, DTensor):
        tensor = distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Give `module` and its submodules full parameters inside the block; what is written to them is lost.

    All processes enter it. It costs nothing where no parameter is sharded.
    """
    sharded = {
        (owner, name): parameter
        for owner in module.modules()
        for name, parameter in owner.named_parameters(recurse=False)
        if isinstance(parameter.data, DTensor)
    }
    try:
        for (owner, name), parameter in sharded.items():
            owner._parameters[name] = nn.Parameter(full_tensor(parameter.detach()), parameter.requires_grad)
        yield
    finally:
        for (owner, name), parameter in sharded.items():
            owner._parameters[name] = parameter
