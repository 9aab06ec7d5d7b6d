"""What a report is about: runs from folders and rows, with curves, settings and sizes, and what could not be read.

A run that cannot be read must not hide the others, so it is named in a note and left out. Everything in a record may
have been written by anyone: numbers are checked here, texts are cut and cleaned here and escaped where they are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from questlm.config import ModelConfig, QuantSpec
from questlm.errors import ConfigError, DataError, QuestError
from questlm.records import RECORD_NAME, RunRecord
from questlm.scaling.runs import Run, bits_of, read_runs, run_of_record
from questlm.scaling.size import packed_bytes

__all__ = ["Entry", "Gathered", "Point", "clean", "finite", "gather"]

Point = tuple[float, float]
"""(tokens trained on, loss in nats a token)."""

_LONGEST_TEXT = 100
_LARGEST = 1e30


@dataclass(frozen=True)
class Entry:
    """A run of the report, finished or not.

    Attributes:
        name: what the reader calls it: the folder, or the file and its row.
        run: the run as the law sees it; of an unfinished one, tokens so far and the last loss seen.
        finished: whether its loss is the final one.
        fitted: whether a law may be fitted to it; not to one that went on from other weights.
        curve, validations: losses during training; empty for rows, which have none.
        settings: every setting, flat ("train.lr": "0.001"); empty for rows.
        data: hash of the data trained on, where it is known.
        packed: bytes of the packed model with embeddings, or None where its shape is not known.
        seconds, tokens_per_second, peak_memory, device, date: as recorded, or None; `date` is the record file's.
        planned_tokens: the budget, or None where it is in seconds or not known.
        folder: the run folder, or None for rows.
    """

    name: str
    run: Run
    finished: bool = True
    fitted: bool = True
    curve: tuple[Point, ...] = ()
    validations: tuple[Point, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    data: str = ""
    packed: int | None = None
    seconds: float | None = None
    tokens_per_second: float | None = None
    peak_memory: float | None = None
    device: str | None = None
    date: str | None = None
    planned_tokens: float | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class Gathered:
    """The runs, in order of size, group, tokens and seed, and a sentence about each that is missing or incomplete."""

    entries: list[Entry]
    notes: list[str]

    @property
    def finished(self) -> list[Entry]:
        """Return the runs that have a final loss."""
        return [entry for entry in self.entries if entry.finished]


def gather(paths: Sequence[Path], update: Callable[[int], None] = lambda done: None) -> Gathered:
    """Read run folders, folders of run folders, and JSON files of rows (see `questlm.scaling.read_runs`).

    Args:
        update: called with the number of files that have been read.

    Raises:
        DataError: a path does not exist or holds no run; no run at all could be read (the first fault is named).
    """
    entries: list[Entry] = []
    notes: list[str] = []
    seen: set[Path] = set()
    for done, (path, name) in enumerate(_sources(paths)):
        update(done)
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        try:
            entries += [_of_folder(path, name, notes)] if path.is_dir() else _of_rows(path)
        except QuestError as problem:
            notes.append(clean(f"Left out: {problem}", 400))
    if not entries:
        raise DataError(notes[0].removeprefix("Left out: ") if notes else "no run was named; name run folders or rows")
    texts = {entry.run.validation for entry in entries} - {""}
    if len(texts) > 1:
        notes.append(f"These runs were validated on {len(texts)} different texts, so not all losses compare.")
    notes += _repeats(entries)
    return Gathered(sorted(entries, key=_order), notes)


def _repeats(entries: Sequence[Entry]) -> list[str]:
    """A sentence about each run that is there more than once, bit for bit: a copy, or trained again with its seed."""
    alike: dict[tuple[object, ...], list[str]] = {}
    for entry in entries:
        run = entry.run
        if entry.finished:
            key = (run.group, run.parameters, run.tokens, run.seed, run.loss, run.validation)
            alike.setdefault(key, []).append(entry.name)
    return [
        f"{', '.join(names[:-1])} and {names[-1]} are one run: same group, size, tokens, seed and loss; it counts once."
        for names in alike.values()
        if len(names) > 1
    ]


def clean(value: object, longest: int = _LONGEST_TEXT) -> str:
    """Return `value` as one printable line of at most `longest` characters. The page escapes it for HTML, not this."""
    text = "".join(character if character.isprintable() else "\ufffd" for character in str(value)[: longest + 1])
    return text if len(text) <= longest else text[: longest - 1] + "…"


def finite(value: object) -> float | None:
    """Return `value` if it is a number from 0 to 1e30, else None."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if 0 <= value < _LARGEST else None


def _sources(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """(run folder or JSON file, its name) for each run or file named, folders searched at any depth."""
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} does not exist; name run folders, folders of them, or JSON files of rows")
        if not path.is_dir():
            yield path, path.name
        elif (path / RECORD_NAME).exists():
            yield path, path.resolve().name
        else:
            folders = [record.parent for record in sorted(path.rglob(RECORD_NAME))]
            if not folders:
                raise DataError(f"{path} is neither a run folder nor a folder of them: no {RECORD_NAME} in it")
            yield from ((folder, str(folder.relative_to(path))) for folder in folders)


def _order(entry: Entry) -> tuple[Any, ...]:
    run = entry.run
    bits = [-bits_of(bits) for bits in (run.weight_bits, run.act_bits)]
    return run.parameters, bits, run.group, run.tokens, run.seed or 0, entry.name


def _of_rows(path: Path) -> list[Entry]:
    name, runs = clean(path.name, 40), read_runs([path])
    return [Entry(f"{name}, row {number}", _clean_run(run)) for number, run in enumerate(runs, 1)]


def _clean_run(run: Run) -> Run:
    return replace(run, method=clean(run.method, 40), format=clean(run.format, 40))


def _of_folder(folder: Path, name: str, notes: list[str]) -> Entry:
    """The run in a run folder.

    Raises:
        QuestError: it cannot be used at all.
    """
    record = RunRecord.load(folder)
    where = str(folder)
    curve, validations = (_points(points) for points in (record.curve, record.validations))
    finished = record.final is not None
    if not finished:
        last = (validations or curve)[-1:]
        if not last:
            raise DataError(f"{where} has no loss yet: its training has only begun")
        record = replace(record, final={"loss": last[0][1]})
    run = _clean_run(run_of_record(record, where))
    entry = Entry(
        name=clean(name),
        run=run,
        finished=finished,
        fitted=record.initial_weights is None,
        curve=curve,
        validations=validations,
        settings=dict(_flat(record.config)),
        data=clean(record.data.get("hash") or ""),
        seconds=finite(record.seconds),
        tokens_per_second=finite(record.tokens_per_second),
        peak_memory=finite(record.peak_memory_bytes),
        device=clean(record.device) if isinstance(record.device, str) else None,
        date=datetime.fromtimestamp((folder / RECORD_NAME).stat().st_mtime, UTC).strftime("%Y-%m-%d"),
        planned_tokens=_planned(record.config, run.parameters),
        folder=folder,
    )
    if not entry.fitted:
        notes.append(f"No law is fitted to {entry.name}: it went on from other weights.")
    try:
        packed = packed_bytes(ModelConfig(**record.config["model"]), QuantSpec(**record.config["quant"]))
    except (KeyError, TypeError, ConfigError) as problem:
        notes.append(clean(f"No packed size for {entry.name}: {problem}", 400))
        return entry
    return replace(entry, packed=packed)


def _points(points: Sequence[Mapping[str, float]]) -> tuple[Point, ...]:
    """(tokens, loss) of a curve; entries that lack one of them are left out."""
    pairs = ((finite(point.get("tokens")), finite(point.get("loss"))) for point in points)
    return tuple((tokens, loss) for tokens, loss in pairs if tokens is not None and loss is not None)


def _planned(config: Mapping[str, Any], parameters: int) -> float | None:
    budget = config.get("budget")
    if not isinstance(budget, dict):
        return None
    ratio = finite(budget.get("tokens_per_param"))
    return finite(budget.get("tokens")) or (ratio * parameters if ratio else None)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings one level deep: deeper ones (overrides) stay whole, as text."""
    for name, value in values.items():
        if isinstance(value, dict) and not prefix and isinstance(name, str):
            yield from _flat(value, f"{name}.")
        else:
            yield clean(f"{prefix}{name}", 60), clean(value, 60)
