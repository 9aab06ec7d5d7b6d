"""The tables of the page, as HTML. Every text is escaped here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

from questlm.readable import bytes_text, count_text, duration_text
from questlm.report.gather import Entry
from questlm.report.pictures.shared import plural, value_text
from questlm.report.statistics import Cell, differing, ratio_text, settings_text
from questlm.scaling import LawFit
from questlm.scaling.looks import Look

__all__ = ["law_table", "method_tables", "runs_table"]

_ABSENT = '<span class="absent">–</span>'


def _scrolling(table: str, label: str) -> str:
    """A table that scrolls sideways on narrow screens, by keyboard too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{table}</div>'


def _swatch(group: str, looks: Mapping[str, Look]) -> str:
    """A group's name behind a spot of its colour."""
    look = looks.get(group)
    role = look.role if look else "muted"
    return f'<span class="name"><span class="swatch" style="background:var(--{role})"></span>{escape(group)}</span>'


def method_tables(cells: Sequence[Cell], looks: Mapping[str, Look]) -> str:
    """One table a budget of tokens: groups by sizes; mean loss, half of its 95 % interval, seeds."""
    return "".join(
        _method_table(ratio, [cell for cell in cells if cell.ratio == ratio], looks)
        for ratio in sorted({cell.ratio for cell in cells})
    )


def _method_table(ratio: float, cells: Sequence[Cell], looks: Mapping[str, Look]) -> str:
    sizes = sorted({cell.parameters for cell in cells})
    best = {size: min(cell.mean for cell in cells if cell.parameters == size) for size in sizes}
    title = f"{ratio_text(ratio)} tokens per parameter"
    head = "".join(f'<th scope="col">{count_text(size)}</th>' for size in sizes)
    body = ""
    for group in (group for group in looks if any(cell.group == group for cell in cells)):
        body += f'<tr><th scope="row">{_swatch(group, looks)}</th>'
        for size in sizes:
            found = [cell for cell in cells if (cell.group, cell.parameters) == (group, size)]
            body += f"<td>{''.join(_loss(cell, cell.mean == best[size]) for cell in found) or _ABSENT}</td>"
        body += "</tr>"
    caption = f"<caption>{title}</caption>"
    table = f'<table>{caption}<thead><tr><th scope="col">group</th>{head}</tr></thead><tbody>{body}</tbody></table>'
    return _scrolling(table, f"Losses at {title}")


def _loss(cell: Cell, best: bool) -> str:
    """One line a variant of settings: the mean, and where there are seeds how far it can be trusted."""
    mean = f"{cell.mean:.3f}"
    details = [cell.variant] if cell.variant else []
    if cell.spread is not None and cell.half_width is not None:
        details += [f"± {cell.half_width:.3f}", f"{len(cell.losses)} seeds", f"s.d. {cell.spread:.4f}"]
    if cell.runs > len(cell.losses):
        details.append(f"{cell.runs} runs, {plural(len(cell.losses), 'seed')}")
    small = f"<small>{escape(', '.join(details))}</small>" if details else ""
    return f"<div>{f'<strong>{mean}</strong>' if best else mean}{small}</div>"


def law_table(fit: LawFit, looks: Mapping[str, Look]) -> str:
    """The law's parameters and efficiencies with their intervals."""
    rows = [(f"<var>{name}</var>", fit.intervals[key], fit.n_runs) for key, name in _SYMBOLS.items()]
    groups = sorted(fit.eff, key=lambda group: list(looks).index(group) if group in looks else len(looks))
    rows += [(_swatch(group, looks), fit.eff[group], fit.groups[group]) for group in groups]
    body = ""
    for name, estimate, count in rows:
        interval = f"{value_text(estimate.low)} to {value_text(estimate.high)}"
        cells = "".join(f"<td>{text}</td>" for text in (value_text(estimate.value), interval, f"{count:,}"))
        body += f'<tr><th scope="row">{name}</th>{cells}</tr>'
    caption = "<caption>Parameters of the law, and eff of each group</caption>"
    head = "".join(f'<th scope="col">{name}</th>' for name in ("parameter", "value", "95 % interval", "runs"))
    table = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return _scrolling(table, "Parameters of the law")


_ALWAYS = ("run", "group", "N", "tokens", "seed", "loss")
_TEXTS = ("device", "written", "settings")
_TEXT = ' class="text"'
_SYMBOLS = {"alpha": "α", "A": "A", "beta": "β", "B": "B", "E": "E"}

_Column = tuple[str, Callable[[Entry], str]]


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


def runs_table(entries: Sequence[Entry], looks: Mapping[str, Look]) -> str:
    """Every run; what is the same of all is said once, above."""
    columns = [(title, [text(entry) for entry in entries]) for title, text in _runs_columns(entries)]
    common = [
        (title, texts[0]) for title, texts in columns if len(set(texts)) == 1 < len(entries) and title not in _ALWAYS
    ]
    columns = [column for column in columns if (column[0], column[1][0]) not in common]
    said = "; ".join(f"{title} {escape(text)}" for title, text in common if text)
    head = "".join(
        f'<th scope="col"{_TEXT if title in ("group", *_TEXTS) else ""}>{title}</th>' for title, _ in columns
    )
    body = ""
    for number, entry in enumerate(entries):
        body += "<tr>" if entry.finished else '<tr class="unfinished">'
        for title, texts in columns:
            body += _cell(title, texts[number], entry, looks)
        body += "</tr>"
    table = f'<table class="runs"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    note = f"<p>Of all runs: {said}.</p>" if said else ""
    return note + _scrolling(table, "All runs")


def _cell(title: str, text: str, entry: Entry, looks: Mapping[str, Look]) -> str:
    if title == "run":
        return f'<th scope="row">{escape(text)}{"" if entry.finished else " <small>unfinished</small>"}</th>'
    if title == "group":
        return f'<td class="group">{_swatch(text, looks)}</td>'
    kind = ' class="text"' if title in _TEXTS else ""
    return f"<td{kind}>{escape(text) or _ABSENT}</td>"


def _tokens(entry: Entry) -> str:
    done = count_text(entry.run.tokens)
    planned = entry.planned_tokens
    return done if entry.finished or not planned else f"{done} of {count_text(planned)}"


def _megabytes(count: float | None) -> str:
    return "" if count is None else bytes_text(count)
