"""Export a packed model to the format of another program, and say what that costs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from questlm.artifact.read import load_artifact
from questlm.errors import ConfigError
from questlm.export.formats import find_format
from questlm.progress import tell
from questlm.trained.evaluate import Measurement, evaluate_beside

__all__ = ["ExportReport", "export"]


@dataclass(frozen=True)
class ExportReport:
    """The result of exporting.

    Attributes:
        path: what was written.
        bytes: size of all its files.
        difference: what the other program computes otherwise; None: nothing.
        before, after: the packed model, and what the other program computes, on the same text; None: not measured.
        next_step: how to use what was written.
    """

    path: Path
    bytes: int
    difference: str | None
    before: Measurement | None
    after: Measurement | None
    next_step: str

    @property
    def gap(self) -> float | None:
        """Loss of the export minus that of the packed model, nats a token."""
        return None if self.before is None or self.after is None else self.after.loss - self.before.loss


def export(
    model: str | Path,
    out: str | Path,
    format: str = "hf",
    data: str | Path | None = None,
    allow_inexact: bool = False,
) -> ExportReport:
    """Write a packed model in another program's format, after measuring the loss before and after.

    Args:
        model: an artifact.
        out: must not exist.
        format: a name in `questlm.export.formats.FORMATS`.
        data: text to measure on; None: the validation split that the model was trained beside, if it names one. An
            export that computes the same is written without measuring where there is no text.
        allow_inexact: write an export that computes otherwise, too.

    Raises:
        ConfigError: `out` exists, no such format, one that cannot hold the model, or one that computes otherwise and is
            not allowed to, or no text to measure by how much.
        ArtifactError: not an artifact, or a damaged one.
        DataError: text that cannot be read.
    """
    target, chosen = Path(out), find_format(format)
    if target.exists() or target.is_symlink():
        raise ConfigError(f"{target} exists already; choose a new name or remove it first")
    artifact = load_artifact(model)
    difference = chosen.difference(artifact)
    before = after = None
    if data is not None or artifact.config.training.get("data"):
        before, after = evaluate_beside(model, chosen.logits(artifact), data)
        if difference is not None:
            change = f"{difference}: that changes the loss by {after.loss - before.loss:+.4f} nats a token"
            if not allow_inexact:
                raise ConfigError(f"{change}, so nothing was written; add --allow-inexact if you can take that")
            tell(change)
    elif difference is not None:
        raise ConfigError(
            f"{difference}, and {model} names no text to measure by how much that changes the loss; "
            "name one with --data, and add --allow-inexact"
        )
    chosen.write(artifact, target)
    files = [path for path in target.rglob("*") if path.is_file()] if target.is_dir() else [target]
    size = sum(path.stat().st_size for path in files)
    return ExportReport(target, size, difference, before, after, chosen.next_step.format(out=str(target)))
