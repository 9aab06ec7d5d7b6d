"""The page: one HTML text that needs nothing beside it.

Pictures are inline SVG, so that one file can be mailed, printed and shown in both themes; the files beside the page are
for those who want a picture or its numbers elsewhere, and are linked, not embedded, since second copies would make it
several times as large. A content security policy forbids it any request and any script but its own, whatever stands
in the runs.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from questlm import __version__
from questlm.humanize import count_text, duration_text
from questlm.report.drawing import Picture
from questlm.report.gather import Entry, Gathered, clean
from questlm.report.pictures.shared import plural
from questlm.report.statistics import Cell, cells
from questlm.report.stylesheet import SCRIPT, STYLESHEET
from questlm.report.tables import law_rows, method_tables, runs_table
from questlm.scaling import LawFit
from questlm.scaling.group_styles import GroupStyle

__all__ = ["Drawn", "Law", "page"]


@dataclass(frozen=True)
class Law:
    """The fitted law, or the reason why there is none; and whether it was read from a file."""

    fit: LawFit | None
    reason: str = ""
    file: str = ""


@dataclass(frozen=True)
class Drawn:
    """A picture as the page shows it: inline SVG, wide and (or '') narrow, and the names of its files."""

    picture: Picture
    wide: Markup
    narrow: Markup = field(default_factory=Markup)
    files: Sequence[str] = field(default_factory=tuple)


def page(
    gathered: Gathered,
    law: Law,
    drawn: Mapping[str, Drawn],
    styles: Mapping[str, GroupStyle],
    notes: Sequence[str],
    folder: str,
) -> str:
    """Return the whole page as HTML.

    Args:
        drawn: pictures by name: "curves", "frontier", "efficiency", "law" and "diagnostics-...", where they exist.
        notes: sentences about what could not be read or shown.
        folder: path of the pictures' files, relative to the page.
    """
    diagnostics = [part for name, part in drawn.items() if name.startswith("diagnostics-")]
    sections = {
        "summary": "Summary",
        "curves": "Loss during training",
        "frontier": "Loss over model size",
        "scaling-law": "The scaling law",
        "methods": "Methods and sizes",
        "diagnostics": "Diagnostics",
        "runs": "Runs",
    }
    results = cells(gathered.entries)
    fit = law.fit
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return _template().render(
        title=f"Report on {plural(len(gathered.entries), 'run')}",
        now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'",
        stylesheet=Markup(STYLESHEET),
        script=Markup(SCRIPT),
        sections={name: text for name, text in sections.items() if name != "diagnostics" or diagnostics},
        drawn=drawn,
        diagnostics=diagnostics,
        styles=styles,
        folder=folder,
        facts=_facts(gathered),
        remarks=notes,
        law=law,
        law_runs="" if fit is None else plural(fit.n_runs, "run"),
        law_rms="" if fit is None else f"{100 * fit.rms_log_residual:.2f}",
        law_warnings=[] if fit is None else [clean(warning, 400) for warning in fit.warnings],
        law_rows=[] if fit is None else law_rows(fit, styles),
        methods_text=_methods_text(results),
        method_tables=method_tables(results, styles),
        runs=runs_table(gathered.entries),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("questlm.report"), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template("page.html")


def _facts(gathered: Gathered) -> list[tuple[str, str, str]]:
    """(name, value, more about it) of each fact of the summary."""
    entries, finished = gathered.entries, gathered.finished
    sizes = sorted({entry.run.parameters for entry in entries})
    span = " to ".join(dict.fromkeys((count_text(sizes[0]), count_text(sizes[-1]))))
    unfinished = len(entries) - len(finished)
    facts = [
        ("finished runs", f"{len(finished):,}", f"{unfinished:,} unfinished" if unfinished else ""),
        ("model sizes", f"{len(sizes):,}", f"N = {span}"),
        ("groups", f"{len({entry.run.group for entry in entries}):,}", "method, bits and format"),
        ("tokens trained on", count_text(sum(entry.run.tokens for entry in entries)), "all runs together"),
    ]
    if finished:
        best = min(finished, key=lambda entry: entry.run.loss)
        facts.insert(
            0, ("lowest loss", f"{best.run.loss:.4f}", f"{best.run.group}, N = {count_text(best.run.parameters)}")
        )
    seconds = sum(entry.seconds or 0 for entry in entries)
    if seconds:
        facts.append(("training time", duration_text(seconds), _devices(entries)))
    return facts


def _devices(entries: Sequence[Entry]) -> str:
    devices = sorted({entry.device for entry in entries if entry.device})
    return ", ".join(devices[:2]) + (f" and {len(devices) - 2} more" if len(devices) > 2 else "")


def _methods_text(results: Sequence[Cell]) -> str:
    if not results:
        return "No run is finished, so there is nothing to compare."
    repeated = [cell for cell in results if cell.spread is not None]
    text = "Final validation loss by group (rows) and size (columns); the lowest of each size is bold. "
    if repeated:
        widest = max(repeated, key=lambda cell: cell.spread or 0)
        text += (
            f"{plural(len(repeated), 'cell')} of {len(results):,} hold several seeds: mean, half of its 95 % interval "
            f"(Student's t) and standard deviation, which is at most {widest.spread:.4f} "
            f"({widest.group}, N = {count_text(widest.parameters)}). "
        )
    if len(repeated) < len(results):
        text += "A single seed has no interval: differences about as large as that between seeds mean nothing. "
    if any(cell.runs > len(cell.losses) for cell in results):
        text += "Repeated runs of one seed count once, by their mean: they are no sample of seeds. "
    return text.strip()
