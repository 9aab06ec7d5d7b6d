"""The formats of other programs that packed models can be exported to. Each has a file of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from questlm.errors import ConfigError, nearest_name, quoted

if TYPE_CHECKING:
    from torch import Tensor

    from questlm.artifact.read import Artifact

__all__ = ["FORMATS", "ExportFormat", "find_format"]


@dataclass(frozen=True)
class ExportFormat:
    """What exporting needs to know of a format; all functions take a packed model that has been read.

    Attributes:
        difference: what the other program computes otherwise, as one clause, or None where it computes the same.
            ConfigError where the format cannot hold the model at all.
        logits: what the other program computes of the weights that `write` gives it: a function from ids
            (batch, tokens) to logits (batch, tokens, vocab_size).
        write: writes the new folder or file `out`, whole or not at all.
        next_step: how to use what was written, with {out} for its path.
    """

    difference: Callable[[Artifact], str | None]
    logits: Callable[[Artifact], Callable[[Tensor], Tensor]]
    write: Callable[[Artifact, Path], None]
    next_step: str


FORMATS = {
    "hf": "questlm.export.hugging_face",
    "compressed-tensors": "questlm.export.compressed_tensors",
    "gguf": "questlm.export.gguf",
}
"""By name, the module whose FORMAT it is; imported when it is asked for, because some need packages of their own."""


def find_format(name: str) -> ExportFormat:
    """The format of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in FORMATS:
        near = nearest_name(name, sorted(FORMATS))
        raise ConfigError(f"there is no format {quoted(name)} to export to.{near} There are: {', '.join(FORMATS)}")
    found: ExportFormat = import_module(FORMATS[name]).FORMAT
    return found
