"""Evaluate a run, a packed model, a Hugging Face model or a model in memory: loss, perplexity and bits per byte."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from questlm.config import DataConfig, TrainConfig
from questlm.data import PreparedData, holds_text, prepare, prepare_all
from questlm.data.byte_count import document_bytes
from questlm.errors import ArtifactError, ConfigError, DataError, quoted
from questlm.evaluation import Evaluation
from questlm.evaluation import evaluate as evaluate_on
from questlm.evaluation.strided import Document, documents_of, summed, token_nats
from questlm.inference import PackedModel
from questlm.models import Llama
from questlm.progress import tell
from questlm.trained.opened import WINDOW, Opened, open_model, refuse_cache

__all__ = ["Measurement", "evaluate", "evaluate_beside"]


@dataclass(frozen=True)
class Measurement(Evaluation):
    """An `Evaluation` of a trained model, beside what its training measured.

    Attributes:
        trained_loss: validation loss at the end of training, nats a token; None where it is not known, or is of other
            tokens or windows.
        documents: each document of the text, where they were asked for.
    """

    trained_loss: float | None = None
    documents: tuple[Document, ...] = ()

    @property
    def gap(self) -> float | None:
        """Loss minus the loss in training, nats a token."""
        return None if self.trained_loss is None else self.loss - self.trained_loss


class _Windows(NamedTuple):
    """How a text is cut: windows of `seq_len` tokens, None for those of training, that begin every `stride`."""

    seq_len: int | None = None
    stride: int | None = None
    by_document: bool = False


_PLAIN = _Windows()


class _Subject(NamedTuple):
    """A model to measure: its settings of data, its windows, and what its training recorded."""

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
    stride: int | None = None,
    by_document: bool = False,
    cache_dtype: torch.dtype | None = None,
    device: str = "auto",
) -> Measurement:
    """Measure loss, perplexity and bits per byte of a model on a text, in float32 unless the model computes otherwise.

    Args:
        model: folder of a run, of which the newest checkpoint is measured with the training code; folder or single file
            of a packed model; Hugging Face folder of a Llama, Mistral, Qwen2 or Qwen3; or a model in memory, measured
            where it is.
        data: text to measure on, all of it: a file, folder, glob or data set as the setting `data.source` takes it.
            None: the validation split that the run or packed model was trained beside.
        tokenizer: path of the tokenizer.json of a model in memory, to which text has to be made tokens. A folder brings
            its own.
        seq_len: length of the windows; None: that of the training, or 512 where there was none.
        stride: tokens from one window to the next, of each of which the last `stride` tokens count, so that each token
            is predicted from more of the text before it; None: `seq_len`, and each window starts with no context.
        by_document: also measure each document.
        cache_dtype: for the folder of a packed model, in what keys and values are kept, as in `questlm.load`.
        device: for a folder, where to compute: 'auto' (CUDA where there is a GPU), 'cpu', 'cuda' or 'cuda:N'.

    Raises:
        ConfigError: no `data` or no `tokenizer` where they are needed, or a folder that brings its own; windows, a
            device or a `cache_dtype` that cannot be used, or the last with another thing than a packed model.
        CheckpointError: not a run folder, no checkpoint, a damaged one, or a plugin that is not loaded or has changed.
        ArtifactError: not a packed model, a damaged one, or one whose loss is not finite.
        DataError: text that cannot be read, that is shorter than two tokens, or in which no token ends documents that
            are to be told apart.
    """
    source = None if data is None else str(data)
    windows = _Windows(seq_len, stride, by_document)
    if isinstance(model, str | Path):
        if tokenizer is not None:
            raise ConfigError(f"{model} brings its own tokenizer; leave it out")
        opened = open_model(Path(model), device, cache_dtype)
        with tempfile.TemporaryDirectory() as scratch:
            result = _measure(_subject(opened, source, Path(scratch)), source is not None, windows)
        if not math.isfinite(result.loss) and isinstance(opened.model, PackedModel):
            raise ArtifactError(f"{model} has a loss of {result.loss}; its weights are out of any sensible range")
        return result
    refuse_cache(cache_dtype, "a model in memory")
    return _measure(_in_memory(model, source, tokenizer), True, windows)


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
        subject = _subject(open_model(Path(model)), source, Path(scratch))
        own = _measure(subject, source is not None)
        return own, _measure(subject._replace(logits=other), source is not None)


def _subject(opened: Opened, source: str | None, scratch: Path) -> _Subject:
    settings = opened.settings(source, scratch)
    if opened.tokenizer is None and holds_text(settings):
        raise ConfigError(
            f"the model has no tokenizer, so {quoted(settings.source, 200)} cannot be made tokens; "
            "name token shards with --data, or put its tokenizer.json beside the model"
        )
    return _Subject(opened.model, settings, opened.seq_len, opened.vocab_size, opened.training, opened.device)


def _in_memory(model: Llama | PackedModel, source: str | None, tokenizer: str | Path | None) -> _Subject:
    if source is None:
        raise ConfigError("a model in memory does not say what it was validated on; give data='TEXT'")
    settings = DataConfig(source=source) if tokenizer is None else DataConfig(source=source, tokenizer=str(tokenizer))
    if tokenizer is None and holds_text(settings):
        raise ConfigError("text has to be made tokens; give tokenizer='PATH' of the model's tokenizer.json")
    device = model.device if isinstance(model, PackedModel) else next(model.parameters()).device
    return _Subject(model, settings, WINDOW, model.config.vocab_size, {}, device)


def _measure(subject: _Subject, whole: bool, windows: _Windows = _PLAIN) -> Measurement:
    """Evaluate on the validation split, or on the `whole` of other text that training has not seen."""
    if windows.seq_len is not None:
        subject = subject._replace(seq_len=TrainConfig(seq_len=windows.seq_len).seq_len)
    if whole:
        return _on(subject, prepare_all(subject.settings, subject.vocab_size), None, windows)
    try:
        data = prepare(subject.settings, subject.vocab_size)
    except DataError as problem:
        raise DataError(
            f"the validation data of training cannot be read ({problem}); name other text with --data"
        ) from None
    final = subject.training.get("final")
    loss = final.get("loss") if isinstance(final, dict) and windows[:2] == (None, None) else None
    if data.val_hash != subject.training.get("val_hash"):
        tell("the validation text is not the one of training; the losses do not compare")
        loss = None
    return _on(subject, data, loss if isinstance(loss, float) else None, windows)


def _on(subject: _Subject, data: PreparedData, trained_loss: float | None, windows: _Windows) -> Measurement:
    for note in data.notes:
        tell(note)
    if windows.stride is not None or windows.by_document:
        return _on_each_token(subject, data, trained_loss, windows)
    result = evaluate_on(
        subject.logits, data.val, subject.seq_len, text_bytes=data.val_bytes, end_of_text=data.end_of_text,
        device=subject.device,
    )  # fmt: skip
    return Measurement(**vars(result) | {"trained_loss": trained_loss})


def _on_each_token(subject: _Subject, data: PreparedData, trained_loss: float | None, windows: _Windows) -> Measurement:
    if windows.by_document:
        _require_documents(data)
    stride = subject.seq_len if windows.stride is None else windows.stride
    nats = token_nats(subject.logits, data.val, subject.seq_len, stride, subject.device)
    tokens = data.val.read(0, len(data.val))
    result = summed(nats, tokens[1:], data.val_bytes, data.end_of_text)
    documents: tuple[Document, ...] = ()
    if windows.by_document and data.tokenizer is not None and data.end_of_text is not None:
        sizes = document_bytes(data.tokenizer, data.val, data.end_of_text)
        documents = documents_of(nats, tokens, sizes, data.end_of_text)
    return Measurement(**vars(result) | {"trained_loss": trained_loss, "documents": documents})


def _require_documents(data: PreparedData) -> None:
    if data.tokenizer is None or data.end_of_text is None:
        what = "a tokenizer" if data.tokenizer is None else "a token that ends a document"
        raise DataError(f"the documents of this text cannot be told apart without {what}; leave out --by-document")
