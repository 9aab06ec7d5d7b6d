"""What a format has to offer to the driver."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from helpers.fuzzing.folders import Folder

__all__ = ["FolderFormat", "Format", "WrongError", "require"]


class WrongError(Exception):
    """An input was accepted and what was read from it is wrong."""


def require(condition: bool, problem: str) -> None:
    """Raise WrongError saying `problem` unless the condition holds."""
    if not condition:
        raise WrongError(problem)


class Format(ABC):
    """One kind of input. `build` runs once, `open` once in each process, the others for every input."""

    name: ClassVar[str]
    seconds: ClassVar[float] = 10.0
    """Longest time for one input; what does not answer even then is killed after twice that."""

    @abstractmethod
    def build(self, samples: Path) -> None:
        """Write undamaged samples into the empty folder `samples`."""

    @abstractmethod
    def open(self, samples: Path, scratch: Path) -> None:
        """Get ready to mutate copies of the samples in the empty folder `scratch`."""

    @abstractmethod
    def mutate(self, draw: random.Random) -> str:
        """Make the next input; return in words what was done."""

    @abstractmethod
    def read(self) -> None:
        """Read it as questlm does.

        Raises:
            QuestError: it is refused, which is right.
            WrongError: it is accepted, and what was read is wrong.
        """

    def restore(self) -> None:  # noqa: B027 - most have nothing to undo
        """Undo what `mutate` and `read` did to the scratch folder."""


class FolderFormat(Format):
    """A format whose input is a folder."""

    folder: Folder

    def open(self, samples: Path, scratch: Path) -> None:
        self.folder = Folder(samples, scratch / "it")

    def restore(self) -> None:
        self.folder.restore()
