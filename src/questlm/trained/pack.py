"""Pack a run or a model into an artifact, which runs without the training code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import nn

from questlm.artifact.budget import Budget, OverBudgetError
from questlm.artifact.write import PackReport
from questlm.config import ModelConfig, QuantSpec
from questlm.errors import ConfigError
from questlm.export.pack import pack as pack_model
from questlm.humanize import bytes_text
from questlm.memory import host_memory, require_memory
from questlm.records import RunRecord
from questlm.scaling.fitting import alternatives
from questlm.scaling.memory import packing_memory
from questlm.training import RunFolder, load_run

__all__ = ["pack", "packed_content"]


def pack(
    model: nn.Module | str | Path,
    out: str | Path,
    *,
    tokenizer: object = None,
    end_of_text: str | None = None,
    chat_template: str | None = None,
    training: Mapping[str, Any] | None = None,
    embeddings: Literal["bf16", "int8"] | None = None,
    single_file: bool = False,
    budget: Budget | int | None = None,
    license: str | None = None,
) -> PackReport:
    """Pack a trained model into the new artifact `out`, load it back, and check that its codes are those that trained.

    Args:
        model: folder of a run, of which the newest checkpoint is packed; or a Llama, ours or that of transformers,
            after `questlm.prepare`, with float32 parameters, on any device.
        out: must not exist.
        tokenizer: content of a tokenizer.json, or a fast tokenizer of transformers. A run brings its own, and
            `end_of_text`, `chat_template` and `training` too; "" leaves that of the run out, and its template.
        end_of_text: name of its token that ends a document; None: the tokenizer's own, or one of a usual name.
        chat_template: content of a chat_template.jinja; None: that of a tokenizer of transformers.
        training: JSON to record: validation loss, data, sequence length.
        embeddings: dtype in which embedding and head are stored; None: the one that they were trained in, or bf16 if
            that was float (the artifact then differs from the model by that rounding).
        single_file: write one file with entropy-coded codes instead of a folder.
        budget: the most bytes that the artifact may take, or a `Budget` with files that count beside it. Where they
            take more, nothing is kept.
        license: name of the licence of the weights (apache-2.0), for README.md of a folder; None: not stated.

    Returns:
        Sizes of what was written.

    Raises:
        ConfigError: `out` exists, the model cannot be packed (other modules or dtypes, non-finite weights), it does
            not fit the memory or the budget (of a run, the message names settings that would fit), or the tokenizer or
            provenance is unusable.
        CheckpointError: not a run folder, no checkpoint, a damaged one, or a plugin that is not loaded or has changed.
        ArtifactError: what was written does not read back as the same codes.
    """
    limit = Budget(budget) if isinstance(budget, int) else budget
    own = {"end_of_text": end_of_text, "chat_template": chat_template, "training": training}
    if isinstance(model, str | Path):
        if tokenizer not in (None, "") or any(each is not None for each in own.values()):
            raise ConfigError(f"the run {model} brings its own tokenizer, {', '.join(own)}; leave these out")
        given = packed_content(Path(model), with_tokenizer=tokenizer is None)
    else:
        given = {"model": model, "tokenizer": None if tokenizer == "" else tokenizer, **own}
    try:
        return pack_model(
            **given, out=out, embeddings=embeddings, single_file=single_file, budget=limit, license=license
        )
    except OverBudgetError as problem:
        if limit is None or not isinstance(model, str | Path):
            raise
        settings = RunFolder(Path(model)).read_config()
        shape, tokenizer_bytes = given["model"].config, len((given["tokenizer"] or "").encode())
        advice = _what_would_fit(shape, settings.quant, problem, limit, single_file, tokenizer_bytes)
        raise ConfigError(f"{problem}. {advice}") from None


def packed_content(run: Path, with_tokenizer: bool) -> dict[str, Any]:
    """Return what is packed of a run, model included, as arguments of `questlm.export.pack.pack`."""
    folder = RunFolder(run)
    needed = packing_memory(folder.read_config().model)
    require_memory(needed, host_memory(), f"packing {run}", "use a machine that has more memory")
    loaded = load_run(run)
    record = RunRecord.load(run)
    training: dict[str, Any] = {
        # Where this machine keeps its cache and tokenizer is nobody else's business.
        "data": loaded.config.data.model_dump(mode="json", exclude={"cache_dir", "tokenizer"}),
        "seq_len": loaded.config.train.seq_len,
        "tokens": loaded.tokens,
        # A run stopped before its end, or between a checkpoint and its record, has no final loss for these weights.
        "final": record.final if record.steps == loaded.step else None,
        "val_hash": record.data.get("val_hash"),
    }
    text, template = (
        file.read_text(encoding="utf-8") if with_tokenizer and file.exists() else None
        for file in (folder.tokenizer_file, folder.chat_template_file)
    )
    end = loaded.config.data.end_of_text
    return {
        "model": loaded.model,
        "tokenizer": text,
        "end_of_text": end,
        "chat_template": template,
        "training": training,
    }


def _what_would_fit(
    model: ModelConfig, quant: QuantSpec, problem: OverBudgetError, budget: Budget, coded: bool, tokenizer: int
) -> str:
    """Settings by which a run would meet the budget that it missed, as a sentence."""
    if budget.left_for_model <= 0:
        return "The counted files alone take the whole budget"
    actual, limit = sum(problem.parts.values()) - sum(budget.counted.values()), budget.left_for_model
    found = alternatives(model, quant, actual=actual, limit=limit, coded=coded)
    hints = [f"{option.settings} ({bytes_text(option.bytes)})" for option in found]
    trained = f"Trained anew, it would fit with any one of: {', '.join(hints)}" if hints else "No one setting would do"
    others = [] if coded else ["--single-file, which codes the weights"]
    others += ["--no-tokenizer"] if tokenizer and problem.over <= problem.parts.get("tokenizer", 0) else []
    return trained + (f". Without training, try {' or '.join(others)}" if others else "")
