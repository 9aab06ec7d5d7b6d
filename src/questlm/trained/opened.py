"""Open any model that can be measured: the folder of a run, a packed model, or a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from questlm.artifact.format import FORMAT, TOKENIZER_NAME
from questlm.config import DataConfig, TrainConfig
from questlm.data import end_of_text_id, load_tokenizer
from questlm.data.tokenizer import stated_end_of_text
from questlm.errors import ArtifactError, ConfigError, QuestError
from questlm.inference import PackedModel, load
from questlm.json_files import read_json
from questlm.manifest import MANIFEST_NAME
from questlm.memory import host_memory, require_memory
from questlm.models import Llama
from questlm.records import RunRecord
from questlm.scaling.memory import loading_memory
from questlm.tokenizer_files import usual_end_of_text
from questlm.training import RunFolder, load_run
from questlm.training.device import pick_device
from questlm.training.initial import open_hugging_face

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["WINDOW", "Opened", "open_model", "refuse_cache"]

WINDOW = 512
"""Tokens of a window of text where no training says another length."""

_LONGEST = 2048  # tokens that a model reads at once where it does not say


@dataclass(frozen=True)
class Opened:
    """A model to measure.

    Attributes:
        model: it computes in float32, unless a packed model was asked for otherwise.
        vocab_size: of the model.
        tokenizer: None where the folder has none.
        end_of_text: id of the token that ends a document, None where none is known.
        seq_len: tokens of the windows that its training was validated in.
        longest: most tokens to give it at once.
        training: what was recorded of the training: "final" measures and "val_hash", the hash of the validation tokens.
        settings: the data settings of the validation split (None) or of other text; a scratch folder takes the
            tokenizer of a single file.
    """

    model: Llama | PackedModel
    vocab_size: int
    tokenizer: Tokenizer | None
    end_of_text: int | None
    seq_len: int
    longest: int
    training: Mapping[str, Any]
    settings: Callable[[str | None, Path], DataConfig]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        model = self.model
        return model.device if isinstance(model, PackedModel) else model.embed.weight.device


def open_model(path: Path, device: str = "cpu", cache_dtype: torch.dtype | None = None) -> Opened:
    """Open the model in `path`.

    Args:
        path: folder of a run, at its newest checkpoint; folder or single file of a packed model; or Hugging Face folder
            of a Llama, Mistral, Qwen2 or Qwen3.
        device: as the setting `train.device`: 'auto', 'cpu', 'cuda' or 'cuda:N'.
        cache_dtype: of a packed model, in what keys and values are kept, as in `questlm.load`.

    Raises:
        ConfigError: a device or `cache_dtype` that cannot be used, or a Hugging Face model of another kind.
        CheckpointError: a run without a checkpoint, a damaged one, or a plugin that is not loaded or has changed.
        ArtifactError: neither a run nor a Hugging Face folder nor a packed model, or a damaged packed model.
    """
    place = pick_device(device)
    if (path / "config.yaml").exists():
        refuse_cache(cache_dtype, f"the run {path}")
        return _open_run(path, place)
    if _is_hugging_face(path):
        refuse_cache(cache_dtype, f"the Hugging Face model {path}")
        return _open_hugging_face(path, place)
    return _open_artifact(path, place, cache_dtype)


def refuse_cache(cache_dtype: torch.dtype | None, what: str) -> None:
    """Refuse a dtype of keys and values for a model that is measured without them."""
    if cache_dtype is not None:
        raise ConfigError(
            f"{what} is measured without a cache of keys and values; give the folder of a packed model "
            "(quest pack), or a model that questlm.load(..., cache_dtype=...) returned"
        )


def _open_run(path: Path, device: torch.device) -> Opened:
    loaded, folder, record = load_run(path), RunFolder(path), RunRecord.load(path)
    tokenizer = load_tokenizer(folder.tokenizer_file) if folder.tokenizer_file.is_file() else None
    name, end = loaded.config.data.end_of_text, None
    if tokenizer is not None:
        end = usual_end_of_text(tokenizer) if name is None else end_of_text_id(tokenizer, name)
    seq_len = loaded.config.train.seq_len
    return Opened(
        model=loaded.model.to(device).eval(),
        vocab_size=loaded.config.model.vocab_size or 0,
        tokenizer=tokenizer,
        end_of_text=end,
        seq_len=seq_len,
        longest=seq_len,
        training={
            "final": record.final if record.steps == loaded.step else None,
            "val_hash": record.data.get("val_hash"),
        },
        settings=lambda source, _: folder.data_settings(source),
    )


def _open_artifact(path: Path, device: torch.device, cache_dtype: torch.dtype | None) -> Opened:
    model = load(path, device, cache_dtype=cache_dtype)
    training = model.training
    try:
        seq_len = TrainConfig(seq_len=training.get("seq_len", WINDOW)).seq_len
        named = {k: v for k, v in dict(training.get("data") or {}).items() if k not in ("cache_dir", "tokenizer")}
        recorded = DataConfig(**named)
    except (TypeError, ValueError) as problem:
        raise ArtifactError(f"{path} says nonsense of its training: {problem}") from None

    def settings(source: str | None, scratch: Path) -> DataConfig:
        if source is None and not named:
            raise ArtifactError(f"{path} does not say what it was validated on; name a text with --data")
        chosen = recorded if source is None else DataConfig(source=source)
        if model.tokenizer is None:
            return chosen
        token, usual = model.end_of_text, usual_end_of_text(model.tokenizer)
        end = None if token in (None, usual) else model.tokenizer.id_to_token(token or 0)
        tokenizer = path / TOKENIZER_NAME
        if path.is_file():
            tokenizer = scratch / TOKENIZER_NAME
            tokenizer.write_text(model.tokenizer.to_str(), encoding="utf-8")
        return chosen.model_copy(update={"tokenizer": str(tokenizer), "end_of_text": end})

    return Opened(
        model=model,
        vocab_size=model.config.vocab_size or 0,
        tokenizer=model.tokenizer,
        end_of_text=model.end_of_text,
        seq_len=seq_len,
        longest=seq_len if "seq_len" in training else _LONGEST,
        training=training,
        settings=settings,
    )


def _is_hugging_face(path: Path) -> bool:
    """Whether a folder has a config.json of a model, and not that of a packed one."""
    if not (path / "config.json").is_file() or (path / MANIFEST_NAME).exists():
        return False
    try:
        config = read_json(path / "config.json", ConfigError)
    except QuestError:
        return False  # the reader of packed models says what is wrong with it
    return isinstance(config, dict) and "model_type" in config and config.get("format") != FORMAT


def _open_hugging_face(path: Path, device: torch.device) -> Opened:
    initial = open_hugging_face(path)
    needed = loading_memory(initial.shape)
    require_memory(needed, host_memory(), f"the model in {path}", "use a machine that has more memory")
    model = Llama(initial.shape)
    initial.copy_into(model)
    tokenizer = None if initial.tokenizer is None else load_tokenizer(initial.tokenizer)
    end = None
    if tokenizer is not None:
        name = stated_end_of_text(tokenizer, path)
        end = usual_end_of_text(tokenizer) if name is None else tokenizer.token_to_id(name)
    longest = read_json(path / "config.json", ConfigError).get("max_position_embeddings")

    def settings(source: str | None, _: Path) -> DataConfig:
        if source is None:
            raise ConfigError(f"{path} does not say what it was validated on; name a text with --data")
        return DataConfig(source=source, tokenizer="train" if initial.tokenizer is None else str(initial.tokenizer))

    return Opened(
        model=model.to(device).eval(),
        vocab_size=initial.shape.vocab_size or 0,
        tokenizer=tokenizer,
        end_of_text=end,
        seq_len=WINDOW,
        longest=longest if isinstance(longest, int) and longest > 0 else _LONGEST,
        training={},
        settings=settings,
    )
