"""Checkpoints: safetensors and JSON in a sealed folder, whole or absent.

A checkpoint is made under a temporary name and renamed into place, so a kill at any moment leaves either the previous
checkpoints or the previous ones and a whole new one. Resuming verifies every hash first.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from questlm.errors import CheckpointError
from questlm.files import atomic_folder, canonical_json, read_json, remove_leftovers, seal, verify

__all__ = [
    "latest_checkpoint",
    "load_model_tensors",
    "model_tensors",
    "prune",
    "read_checkpoint",
    "verify_checkpoint",
    "write_checkpoint",
]

_KIND, _VERSION = "questlm-checkpoint", 1
_PREFIX = "step-"


def write_checkpoint(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> Path:
    """Write `folder/step-` and eight digits, with one safetensors file per entry of `tensors` and `state` as JSON.

    Raises:
        CheckpointError: the disk is full or not writable; what was there before is untouched.
    """
    target = folder / f"{_PREFIX}{step:08d}"
    if target.exists():  # a resumed run arrives at a step it had reached before: what it holds is the same
        return target
    try:
        with atomic_folder(target) as temporary:
            for name, group in tensors.items():
                save_file({k: v.detach().contiguous() for k, v in group.items()}, temporary / f"{name}.safetensors")
            (temporary / "state.json").write_text(canonical_json(state), encoding="utf-8")
            seal(temporary, _KIND, _VERSION, {"step": step})
    except (OSError, SafetensorError) as problem:
        raise CheckpointError(
            f"cannot write the checkpoint {target}: {problem}; free some space, then resume from the last good one"
        ) from None
    return target


def verify_checkpoint(path: Path) -> None:
    """Check every file of a checkpoint against its hash.

    Raises:
        CheckpointError: damaged or of another version.
    """
    verify(path, _KIND, _VERSION, CheckpointError, strict=True)


def read_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Tensors by file and the state of a checkpoint, after verifying it.

    Raises:
        CheckpointError: damaged or of another version.
    """
    verify_checkpoint(path)
    try:
        tensors = {file.stem: load(file.read_bytes()) for file in sorted(path.glob("*.safetensors"))}
    except SafetensorError as problem:
        raise CheckpointError(f"{path} holds a damaged tensor file: {problem}") from None
    state = read_json(path / "state.json", CheckpointError)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path / 'state.json'} is not a checkpoint's state; it is damaged")
    return tensors, state


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step in `folder`, or None."""
    return max(folder.glob(f"{_PREFIX}*"), default=None)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the `keep` latest checkpoints, and what killed writers left behind."""
    remove_leftovers(folder)
    for old in sorted(folder.glob(f"{_PREFIX}*"))[:-keep]:
        # Renamed first, so that a kill half-way through the deletion leaves no damaged checkpoint under a good name.
        doomed = old.rename(folder / f".tmp-{old.name}")
        shutil.rmtree(doomed, ignore_errors=True)


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; a tensor with two names (a tied head) once, under the first."""
    seen: set[int] = set()
    unique = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            unique[name] = tensor.detach()
    return unique


@torch.no_grad()
def load_model_tensors(model: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Copy `tensors` into a model with the same names and shapes.

    Raises:
        CheckpointError: names, shapes or dtypes differ: the checkpoint is of another model.
    """
    own = model_tensors(model)
    if set(own) != set(tensors):
        odd = sorted(set(own) ^ set(tensors))[0]
        raise CheckpointError(f"{source} is a checkpoint of another model: they differ in {odd!r}")
    for name, tensor in own.items():
        other = tensors[name]
        if tensor.shape != other.shape or tensor.dtype != other.dtype:
            raise CheckpointError(
                f"{source} is a checkpoint of another model: {name} is {tuple(other.shape)} {other.dtype} there "
                f"and {tuple(tensor.shape)} {tensor.dtype} here"
            )
    model.load_state_dict(tensors, strict=False)  # names are checked above; a tied head is there once
