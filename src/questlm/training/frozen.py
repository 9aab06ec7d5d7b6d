"""Reading a finished model, which computes beside the one that trains: a run, a packed model, or a Llama."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from questlm.config import ModelConfig, RunConfig
from questlm.data import load_tokenizer
from questlm.errors import ConfigError, quoted
from questlm.files import sha256_files
from questlm.inference import load as load_packed
from questlm.manifest import MANIFEST_NAME
from questlm.memory import host_memory, require_memory
from questlm.models import Llama
from questlm.scaling.memory import loading_memory
from questlm.training.build import load_run
from questlm.training.checkpoint import weight_files
from questlm.training.device import autocast
from questlm.training.initial import find_initial
from questlm.training.recipes import FrozenModel
from questlm.training.run_folder import RunFolder

__all__ = ["load_frozen"]


def load_frozen(path: Path, device: torch.device) -> FrozenModel:
    """The model in a folder, on `device`, computing in bf16 on a GPU and in float32 on a CPU.

    Raises:
        ConfigError: not the folder of a model that can be used here, or it does not fit the memory.
        CheckpointError, ArtifactError: it is damaged.
    """
    if not path.is_dir():
        raise ConfigError(
            f"{quoted(str(path), 200)} is not a folder; give a run folder, a packed model, or a Hugging Face folder of "
            "a Llama on this machine"
        )
    if (path / "config.yaml").is_file():
        return _of_run(path, device)
    if (path / MANIFEST_NAME).is_file():
        return _of_packed(path, device)
    return _of_hugging_face(path, device)


def _of_run(path: Path, device: torch.device) -> FrozenModel:
    folder = RunFolder(path)
    loaded = load_run(path)
    digest = sha256_files(weight_files(loaded.checkpoint))  # not of a newer one, where the run still trains
    tokenizer = load_tokenizer(folder.tokenizer_file) if folder.tokenizer_file.is_file() else None
    return FrozenModel(_computing(loaded.model, device), loaded.config.model.vocab_size or 0, tokenizer, digest)


def _of_packed(path: Path, device: torch.device) -> FrozenModel:
    model = load_packed(path, device, torch.bfloat16 if device.type == "cuda" else torch.float32)

    def logits(ids: Tensor) -> Tensor:
        return model.logits(ids).clone()  # which, made outside inference mode, may be kept for the backward pass

    return FrozenModel(logits, model.config.vocab_size or 0, model.tokenizer, sha256_files([path / MANIFEST_NAME]))


def _of_hugging_face(path: Path, device: torch.device) -> FrozenModel:
    initial = find_initial(RunConfig(init_from=str(path)))
    assert initial is not None
    _require_memory(initial.shape, path)
    model = Llama(initial.shape)
    initial.copy_into(model)
    tokenizer = None if initial.tokenizer is None else load_tokenizer(initial.tokenizer)
    return FrozenModel(_computing(model, device), initial.shape.vocab_size or 0, tokenizer, initial.weights_hash())


def _require_memory(shape: ModelConfig, path: Path) -> None:
    require_memory(loading_memory(shape), host_memory(), f"the model of {path}", "use a machine that has more memory")


def _computing(model: Llama, device: torch.device) -> Callable[[Tensor], Tensor]:
    model = model.to(device).eval().requires_grad_(False)

    def logits(ids: Tensor) -> Tensor:
        with torch.no_grad(), autocast(device):
            result: Tensor = model(ids)
            return result

    return logits
