"""`quest eval`: the validation loss of a run or of a packed model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from questlm.cli.options import Plugins, load_plugins, print_table
from questlm.cli.train import metric_rows
from questlm.config import DataConfig, TrainConfig
from questlm.errors import ArtifactError, DataError
from questlm.progress import tell
from questlm.vocabulary import usual_end_of_text

if TYPE_CHECKING:
    from questlm.data import PreparedData
    from questlm.evaluation import Evaluation

__all__ = ["evaluate", "evaluate_artifact", "evaluate_run"]


def evaluate(
    path: Annotated[Path, typer.Argument(help="Artifact or run folder.")],
    data: Annotated[str | None, typer.Option(help="Other text to evaluate on, all of it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plugin: Plugins = None,
) -> None:
    """Measure loss, perplexity and bits per byte in float32, on the run's own validation split unless --data is given.

    An artifact is run by the inference engine; the gap to the loss measured in training is printed beside it.

    Examples:

        quest eval model/

        quest eval model/ --data 'tests/*.txt'

        quest eval runs/nano-quest-w4a4 --json
    """
    load_plugins(plugin)
    is_run = (path / "config.yaml").exists()
    result, training = evaluate_run(path, data) if is_run else evaluate_artifact(path, data)
    rows = metric_rows(result.as_dict())
    gap = None
    if training is not None:
        gap = result.loss - training["loss"]
        rows.append(("loss in training", f"{training['loss']:.6f}: gap {gap:+.2e} nats"))
    if as_json:
        typer.echo(json.dumps(result.as_dict() | {"gap": gap}))
    else:
        print_table(str(path), rows)


def evaluate_artifact(path: Path, data: str | None = None) -> tuple[Evaluation, dict[str, Any] | None]:
    """Evaluate a packed model; also the final metrics of its training, where the validation tokens are the same."""
    from questlm.inference import load

    model = load(path)
    training = model.training
    try:
        seq_len = TrainConfig(seq_len=training.get("seq_len", 512)).seq_len
        named = {k: v for k, v in dict(training.get("data") or {}).items() if k not in ("cache_dir", "tokenizer")}
        settings = DataConfig(source=data) if data is not None else DataConfig(**named)
    except (TypeError, ValueError) as problem:
        raise ArtifactError(f"{path} says nonsense of its training: {problem}") from None
    if data is None and not named:
        raise ArtifactError(f"{path} does not say what it was validated on; name a text with --data")
    tokenizer = path / "tokenizer.json"
    if model.tokenizer is not None:
        token, usual = model.end_of_text, usual_end_of_text(model.tokenizer)
        end = None if token in (None, usual) else model.tokenizer.id_to_token(token or 0)
        settings = settings.model_copy(update={"tokenizer": str(tokenizer), "end_of_text": end})
    result, final = _measure(model, settings, data is not None, seq_len, model.config.vocab_size, training)
    if not math.isfinite(result.loss):
        raise ArtifactError(f"{path} has a loss of {result.loss}; its weights are out of any sensible range")
    return result, final


def evaluate_run(path: Path, data: str | None = None) -> tuple[Evaluation, dict[str, Any] | None]:
    """Evaluate a run's newest checkpoint with the training code; also its final metrics, likewise."""
    from questlm.records import RunRecord
    from questlm.training import RunFolder, load_run

    loaded = load_run(path)
    record, config = RunRecord.load(path), loaded.config
    final = record.final if record.steps == loaded.step else None
    settings = RunFolder(path).data_settings(data)
    training = {"final": final, "val_hash": record.data.get("val_hash")}
    return _measure(loaded.model, settings, data is not None, config.train.seq_len, config.model.vocab_size, training)


def _measure(
    model: Any, settings: DataConfig, whole: bool, seq_len: int, vocab_size: int | None, training: dict[str, Any]
) -> tuple[Evaluation, dict[str, Any] | None]:
    """Evaluate on the validation split of `settings`, or on the whole of other text that training has not seen."""
    from questlm.data import prepare, prepare_all

    if whole:
        return _evaluate(model, prepare_all(settings, vocab_size), seq_len), None
    try:
        data = prepare(settings, vocab_size)
    except DataError as problem:
        raise DataError(
            f"the validation data of training cannot be read ({problem}); name other text with --data"
        ) from None
    result = _evaluate(model, data, seq_len)
    if data.val_hash != training.get("val_hash"):
        typer.echo("quest: note: the validation text is not the one of training; the losses do not compare", err=True)
        return result, None
    final = training.get("final")
    return result, final if isinstance(final, dict) and isinstance(final.get("loss"), float) else None


def _evaluate(model: Any, data: PreparedData, seq_len: int) -> Evaluation:
    from questlm.evaluation import evaluate as measure

    for note in data.notes:
        tell(note)
    return measure(model, data.val, seq_len, text_bytes=data.val_bytes, end_of_text=data.end_of_text)
