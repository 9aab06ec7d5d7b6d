"""Score packed models as openai/parameter-golf does: bits per byte of its validation text, and bytes that must fit.

A score is the sum of cross-entropies over the bytes of the text, by the table of `questlm.data.token_bytes`. Only whole
windows count, each without context from the one before. Three things that have voided scores are checked: that the
counted bytes are those of the text, that probabilities sum to one, and that a prediction does not see what it predicts.
Probabilities are the softmax of logits here, so the second can fail only where logits are not finite.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from questlm.artifact.budget import Budget
from questlm.config import TrainConfig
from questlm.data import PreparedData, TokenStream, holds_text, prepare, prepare_all
from questlm.data.token_bytes import TokenBytes
from questlm.errors import ArtifactError, ConfigError, DataError
from questlm.evaluation.strided import token_nats
from questlm.inference import PackedModel
from questlm.trained.opened import Opened, open_model

__all__ = ["Entry", "Score", "score", "submission"]

_SUM_ERROR = 1e-3  # that a sum of float32 probabilities may differ from one
_LEAK = 1e-3  # that a logit may move, relative to the largest, when a later token is another: rounding of products


@dataclass(frozen=True)
class Score:
    """The score of one packed model.

    Attributes:
        model: its path.
        bytes_model, bytes_code: of the file or folder, and of the files counted beside it.
        val_loss: nats a token.
        val_bpb: bits per byte.
        tokens, text_bytes: that were predicted, and that they stand for.
    """

    model: str
    bytes_model: int
    bytes_code: int
    val_loss: float
    val_bpb: float
    tokens: int
    text_bytes: int

    @property
    def bytes_total(self) -> int:
        """What has to be within the budget."""
        return self.bytes_model + self.bytes_code


@dataclass(frozen=True)
class Entry:
    """What a submission says beside its numbers."""

    name: str = ""
    author: str = ""
    github_id: str = ""
    date: str = ""
    blurb: str = ""


def score(
    model: str | Path,
    budget: Budget,
    data: str | None = None,
    *,
    sentencepiece: Path | None = None,
    seq_len: int | None = None,
    device: str = "auto",
) -> Score:
    """Measure a packed model as the contest does.

    Args:
        model: folder or single file.
        budget: with the files that count beside the model.
        data: text or token shards, all of it; None: the validation split of the model's training.
        sentencepiece: model by which bytes are counted, for shards; None: the model's own tokenizer.
        seq_len: tokens of a window; None: as in training.
        device: 'auto', 'cpu', 'cuda' or 'cuda:N'.

    Raises:
        ConfigError: the budget is missed, or no tokenizer says what bytes tokens stand for.
        DataError: bytes do not add up to those of the text, or there is less than a window of it.
        ArtifactError: not a packed model, probabilities that do not sum to one, or a model that sees what comes.
    """
    opened = open_model(Path(model), device)
    if not isinstance(opened.model, PackedModel):
        raise ArtifactError(f"{model} is not a packed model, and only a packed model has the bytes that count; pack it")
    size = _size(Path(model))
    budget.check({"model": size})
    with tempfile.TemporaryDirectory() as scratch:
        text = _text(opened, data, Path(scratch))
    table = _table(opened, sentencepiece)
    tokens = text.val.read(0, len(text.val)).astype(np.int64)
    decoded = text.val_bytes if sentencepiece is None else table.decoded_bytes(sentencepiece, tokens)
    _check_bytes(table, tokens, decoded)
    window = opened.seq_len if seq_len is None else TrainConfig(seq_len=seq_len).seq_len
    counted = (len(tokens) - 1) // window * window
    if counted <= 0:
        raise DataError(f"the text has {len(tokens)} tokens, less than a window of {window} and one to predict")
    check_probabilities(opened.model, tokens[: window + 1], opened.device)
    with torch.no_grad():
        nats = token_nats(opened.model, TokenStream([tokens[: counted + 1]]), window, window, opened.device)
    total, text_bytes = float(np.asarray(nats, np.float64).sum()), int(table.counts(tokens[: counted + 1]).sum())
    if not text_bytes:
        raise DataError(f"the {counted} tokens that are predicted stand for no bytes of text")
    if not math.isfinite(total):
        raise ArtifactError(f"{model} has a loss of {total / counted}; its weights are out of any sensible range")
    return Score(
        model=str(model),
        bytes_model=size,
        bytes_code=sum(budget.counted.values()),
        val_loss=total / counted,
        val_bpb=total / math.log(2) / text_bytes,
        tokens=counted,
        text_bytes=text_bytes,
    )


def submission(entry: Entry, scores: Sequence[Score]) -> dict[str, Any]:
    """Return what a submission file holds: the mean over models of several seeds, its spread, and each of them."""
    losses, per_byte = [each.val_loss for each in scores], [each.val_bpb for each in scores]
    return {
        **asdict(entry),
        "val_loss": statistics.fmean(losses),
        "val_bpb": statistics.fmean(per_byte),
        "val_bpb_std": statistics.stdev(per_byte) if len(scores) > 1 else None,
        "bytes_total": max(each.bytes_total for each in scores),
        "bytes_code": scores[0].bytes_code,
        "seeds": [asdict(each) | {"model": Path(each.model).name} for each in scores],
    }


def check_probabilities(
    logits: Callable[[Tensor], Tensor], tokens: np.ndarray[Any, np.dtype[np.int64]], device: torch.device
) -> None:
    """Refuse a model whose probabilities do not sum to one, or whose predictions depend on later tokens.

    Raises:
        ArtifactError: it says which.
    """
    ids = torch.from_numpy(tokens[:-1]).to(device)[None]
    middle = ids.shape[1] // 2
    with torch.no_grad():
        before = logits(ids)[0].float()
        other = ids.clone()
        other[:, middle:] = (ids[:, middle:] + 1) % before.shape[-1]
        after = logits(other)[0, :middle].float()
    sums = before.softmax(-1).double().sum(-1)
    if not bool(((sums - 1).abs() < _SUM_ERROR).all()):
        raise ArtifactError(f"probabilities of a token sum to {float(sums.min()):.6f} up to {float(sums.max()):.6f}")
    moved = float((after - before[:middle]).abs().max()) if middle else 0.0
    if moved > _LEAK * float(before.abs().max()):
        raise ArtifactError(f"predictions change by {moved:.3g} with tokens that come after them; the model sees them")


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _text(opened: Opened, data: str | None, scratch: Path) -> PreparedData:
    settings = opened.settings(data, scratch)
    if opened.tokenizer is None and holds_text(settings):
        raise ConfigError("the model has no tokenizer, so text cannot be made tokens; name token shards with --data")
    return prepare(settings, opened.vocab_size) if data is None else prepare_all(settings, opened.vocab_size)


def _table(opened: Opened, sentencepiece: Path | None) -> TokenBytes:
    if sentencepiece is not None:
        return TokenBytes.of_sentencepiece(sentencepiece)
    if opened.tokenizer is None:
        raise ConfigError("the model has no tokenizer that says what bytes tokens stand for; name --sentencepiece FILE")
    return TokenBytes.of_tokenizer(opened.tokenizer)


def _check_bytes(table: TokenBytes, tokens: np.ndarray[Any, np.dtype[np.int64]], text_bytes: int | None) -> None:
    """Compare the bytes of all tokens with those of the text."""
    counted = table.total(tokens)
    if counted != text_bytes:
        raise DataError(
            f"by its tokens the text has {counted:,} bytes, but it has {text_bytes or 0:,}: the tokenizer loses some "
            "of it, or is another than the one it was made tokens with; bits per byte would be wrong"
        )
