"""Sharded checkpoints, through torch.distributed.checkpoint (DCP).

Each process writes its own rows into its own safetensors files, so no process needs memory for the full model, and all
write at once. DCP reads the rows back for any number of processes. Its usual format has an index that is a pickle,
which could run code when it is read. So this is its Hugging Face format, in which the header of each file says, as
JSON, which rows it holds.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

from questlm.errors import CheckpointError, quoted
from questlm.parallel.processes import Processes, reporting_lost_peers

__all__ = ["TensorInfo", "describe_tensors", "load_tensors", "save_shards"]

_UNREADABLE = (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, AssertionError, RuntimeError)
"""Exceptions that DCP and safetensors raise on hostile or damaged files."""


class TensorInfo(NamedTuple):
    """Shape and dtype of a stored tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def save_shards(folder: Path, groups: Mapping[str, Mapping[str, Tensor]], processes: Processes) -> None:
    """Write this process's shards of the tensors of all groups into `folder`. All processes call it.

    Args:
        groups: names of tensors must differ between groups too; each process writes one file for each group.

    Raises:
        CheckpointError: a process cannot write; on all processes.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    tensors = {name: tensor.detach() for group in groups.values() for name, tensor in group.items()}
    files = {name: number for number, group in enumerate(groups.values(), 1) for name in group}
    writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=files, save_distributed=True)
    try:
        with reporting_lost_peers(processes, "resume from the last checkpoint"):
            save(tensors, storage_writer=writer)
    except CheckpointException as problem:
        reasons = {str(failure[0]) for failure in problem.failures.values()}
        raise CheckpointError(f"{folder} cannot be written: {'; '.join(sorted(reasons))}") from None


def describe_tensors(folder: Path) -> dict[str, TensorInfo]:
    """Shapes and dtypes of all tensors in the safetensors files of `folder`, sharded or not, by name.

    Raises:
        CheckpointError: a file is damaged, or shards are missing.
    """
    found = {}
    for name, item in _metadata(folder).state_dict_metadata.items():
        stored = sum(chunk.sizes.numel() for chunk in item.chunks)
        if stored != item.size.numel():
            raise CheckpointError(f"{folder} holds {stored} of the {item.size.numel()} entries of {quoted(name)}")
        found[name] = TensorInfo(tuple(item.size), item.properties.dtype)
    return found


def load_tensors(folder: Path, into: Mapping[str, Tensor]) -> None:
    """Fill the tensors `into`, plain ones or DTensors, from those of the same names in `folder`; each process its own.

    The caller has checked shapes and dtypes (`describe_tensors`).

    Raises:
        CheckpointError: a file cannot be read.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            # Each process reads for itself, so they need not communicate.
            load({name: tensor.detach() for name, tensor in into.items()},
                 storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)  # fmt: skip
    except (CheckpointException, *_UNREADABLE) as problem:
        raise CheckpointError(f"{folder} cannot be read: {' '.join(str(problem).split()):.200}") from None


def _metadata(folder: Path) -> Any:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    try:
        return HuggingFaceStorageReader(str(folder)).read_metadata()
    except _UNREADABLE as problem:
        raise CheckpointError(f"{folder} holds a damaged tensor file: {' '.join(str(problem).split()):.200}") from None
