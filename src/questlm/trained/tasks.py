"""Score the multiple-choice and last-word tasks of `questlm.evaluation.tasks` with a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from questlm.config import TrainConfig
from questlm.errors import ConfigError
from questlm.evaluation.task_result import TaskResult, score_items
from questlm.evaluation.tasks import find_task, read_items
from questlm.tokenizer_files import encode_text
from questlm.trained.opened import open_model

__all__ = ["evaluate_tasks"]


def evaluate_tasks(
    model: str | Path,
    tasks: Sequence[str],
    folder: str | Path,
    *,
    limit: int | None = None,
    seq_len: int | None = None,
    cache_dtype: torch.dtype | None = None,
    device: str = "auto",
) -> dict[str, TaskResult]:
    """Score tasks, by their names in `questlm.evaluation.tasks.TASKS`.

    Args:
        model: folder of a run, packed model or Hugging Face folder, as `questlm.evaluate` takes them.
        folder: holds a JSONL file of items for each task.
        limit: score only so many items of each task, from the first on.
        seq_len: most tokens to give the model at once, of longer texts the last ones; None: as many as it was trained
            with, of a Hugging Face model as many as its config.json says.
        cache_dtype, device: as for `questlm.evaluate`.

    Raises:
        ConfigError: an unknown task, a model without a tokenizer, or what `questlm.evaluate` refuses.
        DataError: no items of a task, or an item that cannot be scored.
        CheckpointError, ArtifactError: a model that cannot be opened.
    """
    items = {name: read_items(find_task(name), Path(folder), limit) for name in dict.fromkeys(tasks)}
    opened = open_model(Path(model), device, cache_dtype)
    tokenizer = opened.tokenizer
    if tokenizer is None:
        raise ConfigError(f"{model} has no tokenizer, so the text of a task cannot be made tokens")
    longest = opened.longest if seq_len is None else TrainConfig(seq_len=seq_len).seq_len
    return {
        name: score_items(
            name, each, opened.model, partial(encode_text, tokenizer), opened.end_of_text, longest,
            opened.vocab_size,
        )
        for name, each in items.items()
    }  # fmt: skip
