"""Every format that questlm reads."""

from helpers.fuzzing.formats.artifacts import Artifacts, SingleFiles, Tensors
from helpers.fuzzing.formats.base import Format, WrongError
from helpers.fuzzing.formats.data import Cache, Shards, Texts, Tokenizers
from helpers.fuzzing.formats.laws import Laws, Records, Rows
from helpers.fuzzing.formats.runs import Checkpoints, HuggingFace
from helpers.fuzzing.formats.settings import Grids, Overrides, Settings

__all__ = ["FORMATS", "Format", "WrongError"]

_ALL: tuple[type[Format], ...] = (
    Artifacts, Tensors, SingleFiles, Shards, Cache, Checkpoints, Records, Settings, Overrides, Grids, Laws, Rows,
    Tokenizers, HuggingFace, Texts,
)  # fmt: skip
FORMATS = {kind.name: kind for kind in _ALL}
"""By name."""
