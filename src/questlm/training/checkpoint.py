"""Checkpoints: safetensors and JSON in a folder with a manifest, complete or absent.

A checkpoint is made under a temporary name and renamed into place, so a kill at any moment leaves either the previous
checkpoints or the previous ones and a complete new one. Resuming verifies every hash first.

The main process writes `model.safetensors` and `optimizer.safetensors`; of a sharded model each process writes its own
shards (`questlm.parallel.storage`). Either kind is read by any number of processes, into full tensors or shards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from questlm.errors import CheckpointError, quoted
from questlm.files import atomic_folder, remove_folder, remove_leftovers
from questlm.manifest import verify, write_manifest
from questlm.parallel import Processes
from questlm.parallel.storage import describe_tensors, load_tensors, save_shards
from questlm.training.counters import STATE_NAME, CheckpointState, read_state

__all__ = [
    "checkpoints_in",
    "fill_tensors",
    "latest_checkpoint",
    "model_tensors",
    "prune",
    "read_checkpoint",
    "verify_checkpoint",
    "weight_files",
    "write_checkpoint",
]

_KIND, _VERSION = "questlm-checkpoint", 1
_NAME = "step-{:08d}"
_SHARDS = "shard-*.safetensors"  # DCP's names for them
_MODEL_SHARDS = "shard-*-model-00001-of-00002.safetensors"
_MISFITS = {"model": "a checkpoint of another model", "optimizer": "not a whole checkpoint of this model"}
_ALONE = Processes()


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: CheckpointState,
    processes: Processes = _ALONE,
    sharded: bool = False,
) -> Path:
    """Write `folder/step-` and at least eight digits: safetensors for each entry of `tensors`, and `state` as JSON.

    All processes call it. If `sharded`, each writes its shards of the tensors; if not, the main process writes them.

    Raises:
        CheckpointError: the disk is full or not writable; what was there before is untouched.
    """
    target = folder / _NAME.format(state.progress.step)
    # A resumed run that is stopped before its first step is where it was: what the checkpoint holds is the same.
    if processes.on_main(target.is_dir):
        return target
    try:
        with ExitStack() as stack:
            temporary = Path(processes.on_main(lambda: str(stack.enter_context(atomic_folder(target)))))
            if sharded:
                save_shards(temporary, tensors, processes)
            processes.on_main(lambda: _finish(temporary, {} if sharded else tensors, state, stack))
    except (OSError, SafetensorError) as problem:
        saved = latest_checkpoint(folder)
        after = f"resume from {saved.name}" if saved else "start the run again, of which nothing is saved yet"
        raise CheckpointError(
            f"cannot write the checkpoint {target}: {problem}; free some space there, then {after}"
        ) from None
    return target


def _finish(
    folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: CheckpointState, renaming: ExitStack
) -> None:
    for name, group in tensors.items():
        save_file({k: v.detach().contiguous() for k, v in group.items()}, folder / f"{name}.safetensors")
    (folder / STATE_NAME).write_text(state.to_json(), encoding="utf-8")
    write_manifest(folder, _KIND, _VERSION, {"step": state.progress.step})
    renaming.close()


def verify_checkpoint(path: Path) -> CheckpointState:
    """Check every file of a checkpoint against its hash, and return its state.

    Raises:
        CheckpointError: damaged, of another version, or its name, manifest and state are not of one step.
    """
    details = verify(path, _KIND, _VERSION, CheckpointError, strict=True)
    state = read_state(path)
    steps = (_step_of(path), details.get("step"), state.progress.step)
    if any(step != state.progress.step for step in steps):  # the manifest's may be of any type
        named, listed, trained = (quoted(step) for step in steps)
        raise CheckpointError(
            f"{path} is of step {named} by its name, of {listed} by its manifest and of {trained} by its state, so it "
            f"was renamed or put together from others; give it its own name again or move it elsewhere"
        )
    return state


def read_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], CheckpointState]:
    """Full tensors of 'model' and 'optimizer', and the state of a checkpoint, after verifying it.

    Raises:
        CheckpointError: as `verify_checkpoint`.
    """
    state = verify_checkpoint(path)
    if any(path.glob(_SHARDS)):
        tensors = {name: torch.empty(item.shape, dtype=item.dtype) for name, item in describe_tensors(path).items()}
        load_tensors(path, tensors)
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            groups[_group(name)][name] = tensor
        return groups, state
    try:
        groups = {file.stem: load(file.read_bytes()) for file in sorted(path.glob("*.safetensors"))}
    except SafetensorError as problem:
        raise CheckpointError(f"{path} holds a damaged tensor file: {problem}") from None
    return groups, state


def fill_tensors(path: Path, group: Literal["model", "optimizer"], into: Mapping[str, Tensor]) -> None:
    """Fill the tensors `into`, sharded or not, with that group of a verified checkpoint, sharded or not.

    Raises:
        CheckpointError: names, shapes or dtypes differ: the checkpoint is of another model.
    """
    stored = {name: item for name, item in describe_tensors(path).items() if _group(name) == group}
    _require_same(into, stored, f"{path} is {_MISFITS[group]}")
    load_tensors(path, into)


def weight_files(path: Path) -> list[Path]:
    """The files that hold a checkpoint's model: one, or one for each process that wrote, in the order of the rows."""
    return sorted(path.glob(_MODEL_SHARDS)) or [path / "model.safetensors"]


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in `folder` by their names, of the lowest step first. Folders of any other name do not count."""
    steps = {path: step for path in folder.glob("step-*") if (step := _step_of(path)) is not None and path.is_dir()}
    return sorted(steps, key=lambda path: steps[path])


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step in `folder`, or None."""
    return next(reversed(checkpoints_in(folder)), None)


def _step_of(path: Path) -> int | None:
    match = re.fullmatch(r"step-([0-9]{8,18})", path.name)
    step = int(match.group(1)) if match else None
    return step if step is not None and path.name == _NAME.format(step) else None


def prune(folder: Path, keep: int) -> None:
    """Delete all but the `keep` latest checkpoints, and what killed writers left behind."""
    remove_leftovers(folder, alone=True)
    for old in checkpoints_in(folder)[:-keep]:
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


def _group(name: str) -> Literal["model", "optimizer"]:
    return "optimizer" if "/" in name else "model"


def _require_same(own: Mapping[str, Tensor], stored: Mapping[str, Any], problem: str) -> None:
    if set(own) != set(stored):
        odd = sorted(set(own) ^ set(stored))[0]
        raise CheckpointError(f"{problem}: they differ in {quoted(odd)}")
    for name, tensor in own.items():
        other = stored[name]
        if tuple(tensor.shape) != tuple(other.shape) or tensor.dtype != other.dtype:
            raise CheckpointError(
                f"{problem}: {name} is {tuple(other.shape)} {other.dtype} there and {tuple(tensor.shape)} "
                f"{tensor.dtype} here"
            )
