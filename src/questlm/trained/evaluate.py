"""Evaluate a run, a packed model or a model in memory: loss, perplexity and bits per byte on a text."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from questlm.artifact.format import TOKENIZER_NAME
from questlm.config import DataConfig, TrainConfig
from questlm.data import PreparedData, holds_text, prepare, prepare_all
from questlm.errors import ArtifactError, ConfigError, DataError
from questlm.evaluation import Evaluation
from questlm.evaluation import evaluate as evaluate_on
from questlm.inference import PackedModel, load
from questlm.models import Llama
from questlm.progress import tell
from questlm.records import RunRecord
from questlm.tokenizer_files import usual_end_of_text
from questlm.training import RunFolder, load_run

__all__ = ["Measurement", "evaluate", "evaluate_beside"]

_SEQ_LEN = 512  # of windows, where no training says another


@dataclass(frozen=True)
class Measurement(Evaluation):
    """An `Evaluation` of a trained model, beside what its training measured.

    Attributes:
        trained_loss: validation loss at the end of training, nats a token; None where it is not known, or is of other
            tokens.
    """

    trained_loss: float | None = None

    @property
    def gap(self) -> float | None:
        """Loss minus the loss in training, nats a token."""
        return None if self.trained_loss is None else self.loss - self.trained_loss


class _Subject(NamedTuple):
    """A model to measure, and how: its settings of data, its windows, and what its training recorded."""

    logits: Callable[[Tensor], Tensor]
    settings: DataConfig
    seq_len: int
    vocab_size: int | None
    training: Mapping[str, Any]
    device: torch.device = torch.device("cpu")


def evaluate(
    model: str | Path | Llama | PackedModel,
    data: str | Path | None = None,
    *,
    tokenizer: str | Path | None = None,
    seq_len: int | None = None,
    cache_dtype: torch.dtype | None = None,
) -> Measurement:
    """Measure loss, perplexity and bits per byte of a model on a text, in float32 unless the model computes otherwise.

    Args:
        model: folder of a run, of which the newest checkpoint is measured with the training code; folder or single file
            of a packed model; or a model in memory, measured where it is.
        data: text to measure on, all of it: a file, folder, glob or data set as the setting `data.source` takes it.
            None: the validation split that the run or packed model was trained beside.
        tokenizer: path of the tokenizer.json of a model in memory, to which text has to be made tokens. A folder brings
            its own.
        seq_len: length of the windows, each of which starts with no context, for a model in memory; None: 512. A folder
            takes that of its training.
        cache_dtype: for the folder of a packed model, in what keys and values are kept, as in `questlm.load`.

    Raises:
        ConfigError: no `data` or no `tokenizer` where they are needed, or a folder that brings its own; a `cache_dtype`
            that cannot be used, or with another thing than the folder of a packed model.
        CheckpointError: not a run folder, no checkpoint, a damaged one, or a plugin that is not loaded or has changed.
        ArtifactError: not a packed model, a damaged one, or one whose loss is not finite.
        DataError: text that cannot be read, or that is shorter than two tokens.
    """
    source = None if data is None else str(data)
    if isinstance(model, str | Path):
        if tokenizer is not None or seq_len is not None:
            raise ConfigError(f"{model} brings its own tokenizer and seq_len; leave these out")
        path = Path(model)
        if (path / "config.yaml").exists():
            _refuse_cache(cache_dtype, f"the run {path}")
            return _measure(_run(path, source), source is not None)
        with tempfile.TemporaryDirectory() as scratch:
            result = _measure(_artifact(path, source, cache_dtype, Path(scratch)), source is not None)
        if not math.isfinite(result.loss):
            raise ArtifactError(f"{path} has a loss of {result.loss}; its weights are out of any sensible range")
        return result
    _refuse_cache(cache_dtype, "a model in memory")
    return _measure(_in_memory(model, source, tokenizer, seq_len or _SEQ_LEN), whole=True)


def evaluate_beside(
    model: str | Path, other: Callable[[Tensor], Tensor], data: str | Path | None = None
) -> tuple[Measurement, Measurement]:
    """Measure a packed model, and the logits of `other` in its place, on the same tokens.

    Args:
        model, data: as for `evaluate`.
        other: ids (batch, tokens) -> logits (batch, tokens, vocab_size).

    Raises:
        ArtifactError, ConfigError, DataError: as `evaluate`.
    """
    source = None if data is None else str(data)
    with tempfile.TemporaryDirectory() as scratch:
        subject = _artifact(Path(model), source, None, Path(scratch))
        own = _measure(subject, source is not None)
        return own, _measure(subject._replace(logits=other), source is not None)


def _refuse_cache(cache_dtype: torch.dtype | None, what: str) -> None:
    if cache_dtype is not None:
        raise ConfigError(
            f"{what} is measured without a cache of keys and values; give the folder of a packed model "
            "(quest pack), or a model that questlm.load(..., cache_dtype=...) returned"
        )


def _run(path: Path, source: str | None) -> _Subject:
    loaded = load_run(path)
    record, config = RunRecord.load(path), loaded.config
    final = record.final if record.steps == loaded.step else None
    settings = RunFolder(path).data_settings(source)
    training = {"final": final, "val_hash": record.data.get("val_hash")}
    return _Subject(loaded.model, settings, config.train.seq_len, config.model.vocab_size, training)


def _artifact(path: Path, source: str | None, cache_dtype: torch.dtype | None, scratch: Path) -> _Subject:
    """`scratch`: a folder for the tokenizer of a single file, which data are prepared with."""
    model = load(path, cache_dtype=cache_dtype)
    training = model.training
    try:
        seq_len = TrainConfig(seq_len=training.get("seq_len", _SEQ_LEN)).seq_len
        named = {k: v for k, v in dict(training.get("data") or {}).items() if k not in ("cache_dir", "tokenizer")}
        settings = DataConfig(source=source) if source is not None else DataConfig(**named)
    except (TypeError, ValueError) as problem:
        raise ArtifactError(f"{path} says nonsense of its training: {problem}") from None
    if source is None and not named:
        raise ArtifactError(f"{path} does not say what it was validated on; name a text with --data")
    if model.tokenizer is not None:
        token, usual = model.end_of_text, usual_end_of_text(model.tokenizer)
        end = None if token in (None, usual) else model.tokenizer.id_to_token(token or 0)
        tokenizer = path / TOKENIZER_NAME
        if path.is_file():
            tokenizer = scratch / TOKENIZER_NAME
            tokenizer.write_text(model.tokenizer.to_str(), encoding="utf-8")
        settings = settings.model_copy(update={"tokenizer": str(tokenizer), "end_of_text": end})
    return _Subject(model, settings, seq_len, model.config.vocab_size, training)


def _in_memory(model: Llama | PackedModel, source: str | None, tokenizer: str | Path | None, seq_len: int) -> _Subject:
    if source is None:
        raise ConfigError("a model in memory does not say what it was validated on; give data='TEXT'")
    settings = DataConfig(source=source) if tokenizer is None else DataConfig(source=source, tokenizer=str(tokenizer))
    if tokenizer is None and holds_text(settings):
        raise ConfigError("text has to be made tokens; give tokenizer='PATH' of the model's tokenizer.json")
    device = model.device if isinstance(model, PackedModel) else next(model.parameters()).device
    return _Subject(model, settings, TrainConfig(seq_len=seq_len).seq_len, model.config.vocab_size, {}, device)


def _measure(subject: _Subject, whole: bool) -> Measurement:
    """Evaluate on the validation split, or on the `whole` of other text that training has not seen."""
    if whole:
        return _on(subject, prepare_all(subject.settings, subject.vocab_size), None)
    try:
        data = prepare(subject.settings, subject.vocab_size)
    except DataError as problem:
        raise DataError(
            f"the validation data of training cannot be read ({problem}); name other text with --data"
        ) from None
    final = subject.training.get("final")
    loss = final.get("loss") if isinstance(final, dict) else None
    if data.val_hash != subject.training.get("val_hash"):
        tell("the validation text is not the one of training; the losses do not compare")
        loss = None
    return _on(subject, data, loss if isinstance(loss, float) else None)


def _on(subject: _Subject, data: PreparedData, trained_loss: float | None) -> Measurement:
    for note in data.notes:
        tell(note)
    result = evaluate_on(
        subject.logits, data.val, subject.seq_len, text_bytes=data.val_bytes, end_of_text=data.end_of_text,
        device=subject.device,
    )  # fmt: skip
    return Measurement(**vars(result) | {"trained_loss": trained_loss})
