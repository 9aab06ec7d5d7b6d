"""Every format that questlm reads."""

from fuzzing.formats.artifacts import Artifacts, Tensors
from fuzzing.formats.base import Format, WrongError
from fuzzing.formats.data import Cache, Shards, Texts, Tokenizers
from fuzzing.formats.laws import Laws, Records, Rows
from fuzzing.formats.runs import Checkpoints, HuggingFace
from fuzzing.formats.settings import Grids, Overrides, Settings

__all__ = ["FORMATS", "Format", "WrongError"]

_ALL: tuple[type[Format], ...] = (
    Artifacts, Tensors, Shards, Cache, Checkpoints, Records, Settings, Overrides, Grids, Laws, Rows, Tokenizers,
    HuggingFace, Texts,
)  # fmt: skip
FORMATS = {kind.name: kind for kind in _ALL}
"""By name."""
