"""What the tables of the page say; `templates/parts.html` lays them out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from questlm.humanize import bytes_text, count_text, duration_text
from questlm.report.gather import Entry
from questlm.report.pictures.shared import plural, value_text
from questlm.report.statistics import Cell, differing, ratio_text, settings_text
from questlm.scaling import LawFit

__all__ = ["LawRow", "MethodTable", "RunsTable", "law_rows", "method_tables", "runs_table"]

_ALWAYS = ("run", "group", "N", "tokens", "seed", "loss")
TEXT_COLUMNS = ("device", "written", "settings")
"""Columns of the table of runs that hold words."""
_SYMBOLS = {"alpha": "α", "A": "A", "beta": "β", "B": "B", "E": "E"}

_Column = tuple[str, Callable[[Entry], str]]


@dataclass(frozen=True)
class Loss:
    """A loss in a table, with its interval and whether it is the lowest of its column."""

    mean: str
    best: bool
    details: str


@dataclass(frozen=True)
class MethodTable:
    """A table of groups by model sizes at one budget of tokens. A cell has one loss for each variant of settings."""

    title: str
    sizes: list[str]
    rows: list[tuple[str, list[list[Loss]]]]


@dataclass(frozen=True)
class LawRow:
    """A parameter of the law (its `symbol`) or the efficiency of a `group`, with its interval."""

    symbol: str
    group: str
    value: str
    interval: str
    runs: str


@dataclass(frozen=True)
class RunsTable:
    """The table of all runs.

    Attributes:
        common: a sentence about the settings that all runs share.
        titles: of the columns.
        rows: whether the run is finished, and (title, text) of each cell.
        texts: titles of columns that hold words.
    """

    common: str
    titles: list[str]
    rows: list[tuple[bool, list[tuple[str, str]]]]
    texts: tuple[str, ...] = TEXT_COLUMNS


def method_tables(cells: Sequence[Cell], groups: Iterable[str]) -> list[MethodTable]:
    """Return one table for each budget of tokens; `groups` gives the order of the rows."""
    order = list(groups)
    return [
        _method_table(ratio, [cell for cell in cells if cell.ratio == ratio], order)
        for ratio in sorted({cell.ratio for cell in cells})
    ]


def _method_table(ratio: float, cells: Sequence[Cell], groups: Sequence[str]) -> MethodTable:
    sizes = sorted({cell.parameters for cell in cells})
    best = {size: min(cell.mean for cell in cells if cell.parameters == size) for size in sizes}
    rows = [
        (
            group,
            [
                [_loss(c, c.mean == best[size]) for c in cells if (c.group, c.parameters) == (group, size)]
                for size in sizes
            ],
        )
        for group in groups
        if any(cell.group == group for cell in cells)
    ]
    return MethodTable(f"{ratio_text(ratio)} tokens per parameter", [count_text(size) for size in sizes], rows)


def _loss(cell: Cell, best: bool) -> Loss:
    details = [cell.variant] if cell.variant else []
    if cell.spread is not None and cell.half_width is not None:
        details += [f"± {cell.half_width:.3f}", f"{len(cell.losses)} seeds", f"s.d. {cell.spread:.4f}"]
    if cell.runs > len(cell.losses):
        details.append(f"{cell.runs} runs, {plural(len(cell.losses), 'seed')}")
    return Loss(f"{cell.mean:.3f}", best, ", ".join(details))


def law_rows(fit: LawFit, groups: Iterable[str]) -> list[LawRow]:
    """Return the law's parameters, then the efficiencies in the order of `groups`, each with its interval."""
    order = list(groups)
    fitted = sorted(fit.eff, key=lambda group: order.index(group) if group in order else len(order))
    rows = [(name, "", fit.intervals[key], fit.n_runs) for key, name in _SYMBOLS.items()]
    rows += [("", group, fit.eff[group], fit.groups[group]) for group in fitted]
    return [
        LawRow(symbol, group, value_text(e.value), f"{value_text(e.low)} to {value_text(e.high)}", f"{count:,}")
        for symbol, group, e, count in rows
    ]


def _runs_columns(entries: Sequence[Entry]) -> list[_Column]:
    """What the table of runs says of each: (heading, entry -> text, '' where it is not known)."""
    keys = differing(entries)
    return [
        ("run", lambda entry: entry.name),
        ("group", lambda entry: entry.run.group),
        ("N", lambda entry: count_text(entry.run.parameters)),
        ("tokens", _tokens),
        ("seed", lambda entry: "" if entry.run.seed is None else str(entry.run.seed)),
        ("loss", lambda entry: f"{entry.run.loss:.4f}"),
        ("packed", lambda entry: _megabytes(entry.packed)),
        ("tokens/s", lambda entry: "" if entry.tokens_per_second is None else f"{entry.tokens_per_second:,.0f}"),
        ("peak memory", lambda entry: _megabytes(entry.peak_memory)),
        ("time", lambda entry: "" if entry.seconds is None else duration_text(entry.seconds)),
        ("device", lambda entry: entry.device or ""),
        ("written", lambda entry: entry.date or ""),
        ("settings", lambda entry: settings_text(entry, keys)),
    ]


def runs_table(entries: Sequence[Entry]) -> RunsTable:
    """Return the table of all runs; what they share stands once, above it."""
    columns = [(title, [text(entry) for entry in entries]) for title, text in _runs_columns(entries)]
    common = [
        (title, texts[0]) for title, texts in columns if len(set(texts)) == 1 < len(entries) and title not in _ALWAYS
    ]
    columns = [column for column in columns if (column[0], column[1][0]) not in common]
    return RunsTable(
        common="; ".join(f"{title} {text}" for title, text in common if text),
        titles=[title for title, _ in columns],
        rows=[(e.finished, [(title, texts[number]) for title, texts in columns]) for number, e in enumerate(entries)],
    )


def _tokens(entry: Entry) -> str:
    done = count_text(entry.run.tokens)
    planned = entry.planned_tokens
    return done if entry.finished or not planned else f"{done} of {count_text(planned)}"


def _megabytes(count: float | None) -> str:
    return "" if count is None else bytes_text(count)
