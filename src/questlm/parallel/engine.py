"""How processes share one model: each has all of it (DDP, replicas), or a shard of every weight (FSDP2).

FSDP2 shards each weight by rows and gathers the blocks one after another as the passes reach them. The wrappers are
applied in the order activation checkpointing, compilation, sharding: FSDP2 gathers in hooks around a block, which are
not compiled.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from questlm.config import ParallelConfig
from questlm.errors import ConfigError
from questlm.parallel.processes import Processes
from questlm.parallel.quantized_gather import gather_as_codes, gathered_codes
from questlm.parallel.replicas import Replicas
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

Engine = Literal["none", "ddp", "replicas", "fsdp"]
_DEFAULT = ParallelConfig()
_KEEPS_GATHERED = "keeps_gathered"  # attribute of a model whose blocks stay gathered until the step ends


def pick_engine(setting: Literal["auto", "ddp", "replicas", "fsdp"], processes: Processes) -> Engine:
    """Return 'none' for a single process, else the engine that the setting names; 'auto' is DDP."""
    if processes.world_size == 1:
        return "none"
    return "ddp" if setting == "auto" else setting


def distribute(
    model: nn.Module,
    engine: Engine,
    device: torch.device,
    settings: ParallelConfig = _DEFAULT,
    group: dist.ProcessGroup | None = None,
) -> nn.Module:
    """Set up data-parallel training of `model`, the same in every process, and return the module to call in its place.

    With 'fsdp' the parameters of `model` itself become DTensors of the same names.

    Args:
        group: the processes that train together, if not all.
    """
    if engine == "none":
        return model
    group = group or dist.group.WORLD
    assert group is not None
    if engine == "replicas":
        dtype = torch.bfloat16 if settings.gradients == "bf16" else None
        return Replicas(model, group, settings.bucket_mb * 1e6, dtype)
    if engine == "ddp":
        return _replicate(model, device, settings, group)
    _shard(model, device, settings, group)
    return model


def _replicate(
    model: nn.Module, device: torch.device, settings: ParallelConfig, group: dist.ProcessGroup
) -> DistributedDataParallel:
    if settings.gradients == "bf16" and device.type != "cuda":
        raise ConfigError(
            "parallel.gradients is 'bf16', which torch's DDP can only do on GPUs; use float32, or "
            "train.parallel=replicas"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")  # for a name that 2.11 lacks
        # Buffers say how far quantisation has been faded in, which every process knows, so none are broadcast.
        module = DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            bucket_cap_mb=settings.bucket_mb,
            process_group=group,
        )
    if settings.gradients == "bf16":
        module.register_comm_hook(group, bf16_compress_hook)
    return module


def compile_blocks(model: nn.Module) -> None:
    """Compile the blocks, the embedding and `head_loss`, each by itself, in place. Call it before sharding."""
    # DDP would cut each block at the edges of its buckets, which keeps kernels apart that the compiler fuses. Between
    # blocks it overlaps as well.
    torch._dynamo.config.optimize_ddp = False
    layers = model.layers
    assert isinstance(layers, nn.ModuleList)
    for block in layers:
        block.compile(dynamic=False)
    cast(nn.Module, model.embed).compile(dynamic=False)  # one kernel, where rounding its rows to bf16 takes seven
    vars(model)["head_loss"] = torch.compile(cast(Callable[..., Tensor], model.head_loss), dynamic=False)


def _shard(model: nn.Module, device: torch.device, settings: ParallelConfig, group: dist.ProcessGroup) -> None:
    mesh = DeviceMesh.from_group(group, device.type)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    gather_as_codes(model, mesh.size(), dtype, settings.gather == "packed")
    policy = MixedPrecisionPolicy(reduce_dtype=torch.bfloat16 if settings.gradients == "bf16" else None)
    layers = model.layers
    assert isinstance(layers, nn.ModuleList)
    blocks = [
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=not settings.keep_gathered)
        for block in layers
    ]
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for index, block in enumerate(blocks if settings.prefetch else ()):
        block.set_modules_to_forward_prefetch(blocks[index + 1 : index + 1 + settings.prefetch])
        block.set_modules_to_backward_prefetch(blocks[max(0, index - settings.prefetch) : index][::-1])
    vars(model)[_KEEPS_GATHERED] = settings.keep_gathered


def weight_cache(model: nn.Module, engine: Engine) -> AbstractContextManager[None]:
    """A context for the passes of one optimizer step: weights are quantised once, when it is entered.

    Enter it with autocast as in the passes. Gradients are complete once it is left.
    """
    if engine == "fsdp":
        return gathered_codes(model)
    # What exchanges gradients watches the parameters themselves.
    return cached_weights(model, through_parameters=engine in ("ddp", "replicas"))


@contextmanager
def gradient_exchange(module: nn.Module, on: bool) -> Iterator[None]:
    """Exchange gradients in the backward passes inside the block, or (`on` false) accumulate them for a later one."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(on)
        module.set_is_last_backward(on)
        module.set_reshard_after_backward(on or not vars(module)[_KEEPS_GATHERED])
    with ExitStack() as stack:
        if isinstance(module, Replicas) and on:
            stack.enter_context(module.exchanging())
        if isinstance(module, DistributedDataParallel) and not on:
            stack.enter_context(module.no_sync())
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
