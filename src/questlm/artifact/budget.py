"""A limit on the bytes of a packed model and of what is counted beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from questlm.errors import ConfigError

__all__ = ["Budget", "OverBudgetError"]


class OverBudgetError(ConfigError):
    """A packed model takes more bytes than its budget.

    Attributes:
        parts: bytes by part, the files counted beside the model included.
        over: bytes above the budget.
    """

    def __init__(self, parts: Mapping[str, int], limit: int) -> None:
        self.parts, self.over = dict(parts), sum(parts.values()) - limit
        listed = ", ".join(f"{name} {size:,}" for name, size in sorted(parts.items(), key=lambda part: -part[1]))
        super().__init__(
            f"the packed model takes {sum(parts.values()):,} bytes, {self.over:,} more than the budget of "
            f"{limit:,}; nothing was kept. Bytes by part: {listed}"
        )


@dataclass(frozen=True)
class Budget:
    """The most bytes that a packed model and the files counted beside it may take together.

    Attributes:
        limit: bytes; 16 MB are 16,000,000.
        counted: bytes of each file that counts beside the model, by name: the code of a contest.
    """

    limit: int
    counted: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of_files(cls, limit: int, files: Sequence[str | Path] = ()) -> Budget:
        """A budget in which the sizes of `files` count.

        Raises:
            ConfigError: one of them is no plain file.
        """
        for file in map(Path, files):
            if not file.is_file():
                raise ConfigError(f"{file} cannot be counted, because it is no file; name each file of the code")
        return cls(limit, {str(file): Path(file).stat().st_size for file in files})

    @property
    def left_for_model(self) -> int:
        """Bytes that the model may take; not above 0 where the files alone take all."""
        return self.limit - sum(self.counted.values())

    def check(self, bytes_by_part: Mapping[str, int]) -> None:
        """Refuse a packed model that is too large.

        Raises:
            OverBudgetError: it says by how much, and what takes how much.
        """
        parts = {**bytes_by_part, **{f"file {name}": size for name, size in self.counted.items()}}
        if sum(parts.values()) > self.limit:
            raise OverBudgetError(parts, self.limit)
