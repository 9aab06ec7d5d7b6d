"""Checkpoints: safetensors and JSON in a sealed folder, whole or absent.

A checkpoint is made under a temporary name and renamed into place, so a kill at any moment leaves either the previous
checkpoints or the previous ones and a whole new one. Resuming verifies every hash first.

The first process writes `model.safetensors` and `optimizer.safetensors`; of a model that is cut between processes each
writes its own pieces (`questlm.parallel.storage`). Either kind is read whole or in pieces, by any number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from questlm.errors import CheckpointError, quoted
from questlm.files import atomic_folder, canonical_json, read_json, remove_folder, remove_leftovers, seal, verify
from questlm.parallel import Ranks
from questlm.parallel.storage import describe_tensors, load_tensors, save_pieces

__all__ = [
    "fill_tensors",
    "latest_checkpoint",
    "load_model_tensors",
    "model_tensors",
    "prune",
    "read_checkpoint",
    "read_state",
    "verify_checkpoint",
    "weight_files",
    "write_checkpoint",
]

_KIND, _VERSION = "questlm-checkpoint", 1
_PREFIX = "step-"
_PIECES = "shard-*.safetensors"  # DCP's names for them
_MODEL_PIECES = "shard-*-model-00001-of-00002.safetensors"
_MISFITS = {"model": "a checkpoint of another model", "optimizer": "not a whole checkpoint of this model"}
_ALONE = Ranks()


def write_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: dict[str, Any],
    ranks: Ranks = _ALONE,
    pieces: bool = False,
) -> Path:
    """Write `folder/step-` and eight digits, with a group of safetensors for each entry of `tensors`, `state` as JSON.

    All processes call it. With `pieces` each writes what it has of the tensors; without, the first writes them whole.

    Raises:
        CheckpointError: the disk is full or not writable; what was there before is untouched.
    """
    target = folder / f"{_PREFIX}{step:08d}"
    # A resumed run arrives at a step it had reached before: what it holds is the same.
    if ranks.first(target.exists):
        return target
    try:
        with ExitStack() as stack:
            temporary = Path(ranks.first(lambda: str(stack.enter_context(atomic_folder(target)))))
            if pieces:
                save_pieces(temporary, tensors, ranks)
            ranks.first(lambda: _finish(temporary, {} if pieces else tensors, state, step, stack))
    except (OSError, SafetensorError) as problem:
        raise CheckpointError(
            f"cannot write the checkpoint {target}: {problem}; free some space, then resume from the last good one"
        ) from None
    return target


def _finish(
    folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: dict[str, Any], step: int, renaming: ExitStack
) -> None:
    for name, group in tensors.items():
        save_file({k: v.detach().contiguous() for k, v in group.items()}, folder / f"{name}.safetensors")
    (folder / "state.json").write_text(canonical_json(state), encoding="utf-8")
    seal(folder, _KIND, _VERSION, {"step": step})
    renaming.close()


def verify_checkpoint(path: Path) -> None:
    """Check every file of a checkpoint against its hash.

    Raises:
        CheckpointError: damaged or of another version.
    """
    verify(path, _KIND, _VERSION, CheckpointError, strict=True)


def read_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Whole tensors of 'model' and 'optimizer', and the state of a checkpoint, after verifying it.

    Raises:
        CheckpointError: damaged or of another version.
    """
    verify_checkpoint(path)
    if any(path.glob(_PIECES)):
        tensors = {name: torch.empty(item.shape, dtype=item.dtype) for name, item in describe_tensors(path).items()}
        load_tensors(path, tensors)
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            groups[_group(name)][name] = tensor
        return groups, read_state(path)
    try:
        groups = {file.stem: load(file.read_bytes()) for file in sorted(path.glob("*.safetensors"))}
    except SafetensorError as problem:
        raise CheckpointError(f"{path} holds a damaged tensor file: {problem}") from None
    return groups, read_state(path)


def read_state(path: Path) -> dict[str, Any]:
    """The state of a checkpoint.

    Raises:
        CheckpointError: damaged.
    """
    state = read_json(path / "state.json", CheckpointError)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path / 'state.json'} is not a checkpoint's state; it is damaged")
    return state


def fill_tensors(path: Path, group: Literal["model", "optimizer"], into: Mapping[str, Tensor]) -> None:
    """Fill the tensors `into`, plain or cut between processes, with that group of a verified checkpoint of any form.

    Raises:
        CheckpointError: names, shapes or dtypes differ: the checkpoint is of another model.
    """
    held = {name: item for name, item in describe_tensors(path).items() if _group(name) == group}
    _require_same(into, held, f"{path} is {_MISFITS[group]}")
    load_tensors(path, into)


def weight_files(path: Path) -> list[Path]:
    """The files that hold a checkpoint's model: one, or one for each process that wrote, in the order of the rows."""
    return sorted(path.glob(_MODEL_PIECES)) or [path / "model.safetensors"]


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step in `folder`, or None."""
    return max(folder.glob(f"{_PREFIX}*"), default=None)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the `keep` latest checkpoints, and what killed writers left behind."""
    remove_leftovers(folder, alone=True)
    for old in sorted(folder.glob(f"{_PREFIX}*"))[:-keep]:
        remove_folder(old)


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; a tensor with two names (a tied head) once, under the first.

    What quantisers were made for is left out: a checkpoint holds the settings of its run.
    """
    seen: set[int] = set()
    unique = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen and not name.endswith("._extra_state"):
            seen.add(id(tensor))
            unique[name] = tensor.detach()
    return unique


@torch.no_grad()
def load_model_tensors(model: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Copy `tensors` into a model with the same names and shapes.

    Raises:
        CheckpointError: names, shapes or dtypes differ: the checkpoint is of another model.
    """
    _require_same(model_tensors(model), tensors, f"{source} is {_MISFITS['model']}")
    model.load_state_dict(tensors, strict=False)  # names are checked above; a tied head is there once


def _group(name: str) -> Literal["model", "optimizer"]:
    return "optimizer" if "/" in name else "model"


def _require_same(own: Mapping[str, Tensor], held: Mapping[str, Any], problem: str) -> None:
    if set(own) != set(held):
        odd = sorted(set(own) ^ set(held))[0]
        raise CheckpointError(f"{problem}: they differ in {quoted(odd)}")
    for name, tensor in own.items():
        other = held[name]
        if tuple(tensor.shape) != tuple(other.shape) or tensor.dtype != other.dtype:
            raise CheckpointError(
                f"{problem}: {name} is {tuple(other.shape)} {other.dtype} there and {tuple(tensor.shape)} "
                f"{tensor.dtype} here"
            )
