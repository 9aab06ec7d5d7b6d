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
from html import escape
from urllib.parse import quote

from questlm import __version__
from questlm.readable import count_text, duration_text
from questlm.report.drawing import Picture
from questlm.report.gather import Entry, Gathered, clean
from questlm.report.pictures.shared import plural
from questlm.report.statistics import cells
from questlm.report.stylesheet import SCRIPT, STYLESHEET
from questlm.report.tables import law_table, method_tables, runs_table
from questlm.scaling import LawFit
from questlm.scaling.looks import Look

__all__ = ["Drawn", "Law", "page"]


@dataclass(frozen=True)
class Law:
    """The fitted law, or why there is none; and whether it was read from a file."""

    fit: LawFit | None
    reason: str = ""
    file: str = ""


@dataclass(frozen=True)
class Drawn:
    """A picture as the page shows it: inline SVG, wide and (or '') narrow, and the names of its files."""

    picture: Picture
    wide: str
    narrow: str = ""
    files: Sequence[str] = field(default_factory=tuple)


def page(
    gathered: Gathered,
    law: Law,
    drawn: Mapping[str, Drawn],
    looks: Mapping[str, Look],
    notes: Sequence[str],
    folder: str,
) -> str:
    """The whole page.

    Args:
        drawn: pictures by name: "curves", "frontier", "efficiency", "law" and "diagnostics-...", where they exist.
        notes: sentences about what could not be read or shown.
        folder: where the pictures' files are, relative to the page.
    """
    diagnostics = [part for name, part in drawn.items() if name.startswith("diagnostics-")]
    sections = {
        "summary": ("Summary", _summary(gathered, looks) + _notes(notes)),
        "curves": ("Loss during training", _figure(drawn, "curves", folder, "No run recorded a curve of its loss.")),
        "frontier": ("Loss over model size", _figure(drawn, "frontier", folder, _TOO_FEW)),
        "scaling-law": ("The scaling law", _law(law, drawn, looks, folder)),
        "methods": ("Methods and sizes", _methods(gathered, looks)),
        "diagnostics": ("Diagnostics", "".join(_one_figure(part, folder, heading=True) for part in diagnostics)),
        "runs": ("Runs", runs_table(gathered.entries, looks)),
    }
    shown = {name: section for name, section in sections.items() if section[1]}
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, (title, _) in shown.items())
    body = "".join(
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>{content}</section>'
        for name, (title, content) in shown.items()
    )
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    title = f"Report on {plural(len(gathered.entries), 'run')}"
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="generator" content="questlm {__version__}"><title>{title}</title>'
        f"<style>{STYLESHEET}</style></head><body>"
        f"<header><div><div><h1>{title}</h1><p>Written {now} by questlm {__version__}</p></div>"
        f'<button id="theme" type="button" hidden>Theme</button></div></header>'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav><main>{body}</main>'
        f"<footer><p>Losses are validation losses in nats a token. Groups are method/wXaY/format: bits of weights and "
        f"activations, and the grid of the weights; N counts the parameters outside embedding and head.</p></footer>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


_TOO_FEW = "There are fewer than two finished runs, so there is nothing to compare."


def _summary(gathered: Gathered, looks: Mapping[str, Look]) -> str:
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
    cards = "".join(
        f"<div><dt>{name}</dt><dd>{escape(value)}<small>{escape(more)}</small></dd></div>"
        for name, value, more in facts
    )
    return f'<dl class="facts">{cards}</dl>'


def _devices(entries: Sequence[Entry]) -> str:
    devices = sorted({entry.device for entry in entries if entry.device})
    return ", ".join(devices[:2]) + (f" and {len(devices) - 2} more" if len(devices) > 2 else "")


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<div class="notes" role="note"><strong>To be noted</strong><ul>{items}</ul></div>' if notes else ""


def _figure(drawn: Mapping[str, Drawn], name: str, folder: str, otherwise: str) -> str:
    return _one_figure(drawn[name], folder) if name in drawn else f"<p>{otherwise}</p>"


def _one_figure(part: Drawn, folder: str, heading: bool = False) -> str:
    picture = part.picture
    links = ", ".join(
        f'<a href="{quote(f"{folder}/{file}")}" download>{file.rpartition(".")[2].upper()}</a>' for file in part.files
    )
    title = f'<h3 id="{picture.name}-title">{escape(picture.title)}</h3>' if heading else ""
    kind = "wide" if part.narrow else "sideways"
    wide = f'<div class="{kind}"{"" if part.narrow else _FOCUSABLE.format(escape(picture.title))}>{part.wide}</div>'
    narrow = f'<div class="narrow">{part.narrow}</div>' if part.narrow else ""
    caption = f'<span>{escape(picture.caption)}</span><span class="files">Files beside this page: {links}</span>'
    return f"<figure>{title}{wide}{narrow}<figcaption>{caption}</figcaption></figure>"


_FOCUSABLE = ' tabindex="0" role="region" aria-label="{}"'


def _law(law: Law, drawn: Mapping[str, Drawn], looks: Mapping[str, Look], folder: str) -> str:
    fit = law.fit
    if fit is None:
        return f"<p>No law was fitted: {escape(law.reason)}.</p>"
    source = f"Read from {escape(law.file)}" if law.file else "Fitted to the finished runs of this report"
    text = (
        f'<p class="law"><var>L</var>(<var>N</var>, <var>D</var>, <var>P</var>) = <var>A</var> / (<var>N</var> '
        f"eff(<var>P</var>))<sup><var>α</var></sup> + <var>B</var> / <var>D</var><sup><var>β</var></sup> + "
        f"<var>E</var></p><p>{source}: {plural(fit.n_runs, 'run')}, root mean square of the log residuals "
        f"{100 * fit.rms_log_residual:.2f} %. eff(P) says how many parameters of BF16 one of the group is worth.</p>"
    )
    text += _notes([clean(warning, 400) for warning in fit.warnings])
    for name in ("efficiency", "law"):
        if name in drawn:
            text += _one_figure(drawn[name], folder, heading=True)
    return text + law_table(fit, looks)


def _methods(gathered: Gathered, looks: Mapping[str, Look]) -> str:
    results = cells(gathered.entries)
    if not results:
        return "<p>No run is finished, so there is nothing to compare.</p>"
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
    return f"<p>{escape(text)}</p>" + method_tables(results, looks)
