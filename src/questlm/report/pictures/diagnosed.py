"""The pictures of `quest diagnose`, drawn again from its JSON, where a run folder holds one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from questlm.errors import DataError, QuestError
from questlm.json_files import read_json
from questlm.report.drawing import Drawing, Picture
from questlm.report.gather import Entry, clean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["diagnosed"]

_RESULT_NAME = "diagnostics.json"
_MOST_RUNS = 3
_PICTURES = {  # file name in questlm.diagnostics.pictures: title, part of the JSON that it shows
    "gradient-alignment.png": ("Gradient alignment", "gradient_alignment"),
    "mask-share.png": ("Trust masks: share of masked weights", "masks"),
    "mask-persistence.png": ("Trust masks: persistence", "masks"),
    "normality.png": ("Normality", "normality"),
    "normality-worst.png": ("Normality: the layers least Gaussian", "normality"),
    "quantisation-error.png": ("Rounding error", "error"),
}
_FAULTS = (QuestError, KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError)


def diagnosed(entries: Sequence[Entry], notes: list[str]) -> list[Picture]:
    """The pictures of the first few runs with diagnostics; what cannot be drawn is said in `notes`."""
    files = [(entry, file) for entry in entries if entry.folder for file in _results(entry.folder)]
    pictures: list[Picture] = []
    for number, (entry, file) in enumerate(files[:_MOST_RUNS], 1):
        try:
            pictures += _of_run(entry, file, number)
        except _FAULTS as problem:  # anything may stand in that file
            what = str(problem) if isinstance(problem, QuestError) else f"{file} is damaged ({problem!r})"
            notes.append(clean(f"No diagnostics of {entry.name}: {what}", 400))
    if len(files) > _MOST_RUNS:
        notes.append(f"{len(files)} runs have diagnostics; the pictures of the first {_MOST_RUNS} are shown.")
    return pictures


def _results(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*/{_RESULT_NAME}"))[:1]


def _of_run(entry: Entry, file: Path, number: int) -> list[Picture]:
    from questlm.diagnostics.pictures import PICTURES

    result: Any = _cleaned(read_json(file, DataError))
    pictures = []
    for file_name, (title, part) in _PICTURES.items():
        figure = PICTURES[file_name](result)
        if figure is None:
            continue
        pictures.append(
            Picture(
                f"diagnostics-{number}-{file_name.removesuffix('.png')}",
                f"{title}: {entry.name}",
                f"Drawn by quest diagnose: {clean(result['title'], 200)}.",
                partial(_drawn, figure),
                ("path", "value"),
                list(_leaves(result[part], part)),
                narrows=False,
            )
        )
    return pictures


def _drawn(figure: Figure, narrow: bool) -> Drawing:
    return Drawing(figure)


def _cleaned(value: object) -> object:
    """The same JSON with texts of at most 200 printable characters."""
    if isinstance(value, dict):
        return {str(_cleaned(key)): _cleaned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    return clean(value, 200) if isinstance(value, str) else value


def _leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, f"{path}.{name}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{path}.{number}")
    else:
        yield path, value
