"""Write the report: read the runs, fit the law, draw, and put page and files where they are wanted."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from questlm.errors import ConfigError, QuestError
from questlm.files import atomic_write, remove_leftovers
from questlm.plotting import require_matplotlib, style
from questlm.progress import progress
from questlm.report import pictures
from questlm.report.drawing import Picture, inline_svg, png_file, svg_file
from questlm.report.gather import Gathered, clean, gather
from questlm.report.page import Drawn, Law, page
from questlm.scaling import LawFit, fit_law
from questlm.scaling.group_styles import GroupStyle, group_styles

__all__ = ["Report", "write_report"]

_OURS = re.compile(r"(curves|frontier|efficiency|law|diagnostics-\d+-[a-z-]+)\.(svg|png|csv)")


@dataclass(frozen=True)
class Report:
    """The files of a written report, and what it shows.

    Attributes:
        page: the HTML file.
        folder: the pictures and their data.
        runs, unfinished: how many runs the page shows, and how many of these are not finished.
        pictures: their names.
        fitted: whether the page shows a law.
        notes: a sentence about each thing that could not be read or shown.
    """

    page: Path
    folder: Path
    runs: int
    unfinished: int
    pictures: list[str]
    fitted: bool
    notes: list[str]


def write_report(paths: Sequence[Path], out: Path, fit: Path | None = None, show_progress: bool = True) -> Report:
    """Write a page about runs to `out`, and pictures and data into the folder `<name of out>_files` beside it.

    What an earlier report left there is replaced; nothing else is.

    Args:
        paths: run folders, folders of run folders, JSON files of rows.
        fit: a law saved by `quest fit`, instead of one fitted to these runs.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        ConfigError: `out` cannot be written, or is something else than a report.
        DataError: there is no run to report on, or `fit` cannot be read.
    """
    require_matplotlib("drawing a report")
    _require_writable(out)
    saved = LawFit.load(fit) if fit is not None else None
    with progress("reading runs", None, show_progress) as update:
        gathered = gather(paths, update)
    law = Law(saved, file=clean(fit)) if saved is not None else _fit(gathered, show_progress)
    shown = group_styles(Counter(entry.run.group for entry in gathered.entries))
    notes = list(gathered.notes)
    folder = out.with_name(f"{out.stem}_files")
    with style():
        found = _pictures(gathered, law, shown, notes)
        drawn, files = _draw(found, show_progress)
    folder.mkdir(exist_ok=True)
    remove_leftovers(folder)
    for name, content in files.items():
        atomic_write(folder / name, content)
    atomic_write(out, page(gathered, law, drawn, shown, notes, folder.name))
    # Last, so that a report killed half-way leaves the earlier page with all that it links to.
    for old in (path for path in folder.iterdir() if _OURS.fullmatch(path.name) and path.name not in files):
        old.unlink()
    unfinished = len(gathered.entries) - len(gathered.finished)
    return Report(out, folder, len(gathered.entries), unfinished, list(drawn), law.fit is not None, notes)


def _require_writable(out: Path) -> None:
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {out} does not name a page; its name ends in .html, as in report.html")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out} cannot be written: {out.parent} is not a folder; make it first")
    if out.exists() and not (out.is_file() and _is_report(out)):
        raise ConfigError(f"--out {out} exists and is not a report of questlm; remove it, or name another file")


def _is_report(path: Path) -> bool:
    with path.open("rb") as file:
        return b'name="generator" content="questlm ' in file.read(4096)


def _fit(gathered: Gathered, show_progress: bool) -> Law:
    runs = [entry.run for entry in gathered.finished if entry.fitted]
    if not runs:
        return Law(None, "no run is finished")
    try:
        with progress("fitting the law", 1.0, show_progress) as update:
            return Law(fit_law(runs, update=update))
    except QuestError as problem:
        return Law(None, clean(problem, 400).rstrip("."))


def _pictures(gathered: Gathered, law: Law, shown: Mapping[str, GroupStyle], notes: list[str]) -> list[Picture]:
    entries = gathered.entries
    found = [pictures.curves(entries, shown), pictures.frontier(entries, shown)]
    if law.fit is not None:
        found += [pictures.efficiency(law.fit, shown), pictures.law(law.fit, entries, shown)]
    return [picture for picture in found if picture is not None] + pictures.diagnosed(entries, notes)


def _draw(found: Sequence[Picture], show_progress: bool) -> tuple[dict[str, Drawn], dict[str, bytes]]:
    """The pictures for the page, and the content of their files by name."""
    drawn: dict[str, Drawn] = {}
    files: dict[str, bytes] = {}
    with progress("drawing", len(found), show_progress) as update:
        for number, picture in enumerate(found, 1):
            drawn[picture.name], own = _draw_one(picture)
            files |= own
            update(number, picture.name)
    return drawn, files


def _draw_one(picture: Picture) -> tuple[Drawn, dict[str, bytes]]:
    name, wide = picture.name, picture.draw(False)
    svg = svg_file(wide, name)
    files = {f"{name}.svg": svg, f"{name}.png": png_file(wide), f"{name}.csv": _csv(picture.columns, picture.rows)}
    label, narrow = f"{name}-title", Markup("")
    if picture.narrows:
        drawing = picture.draw(True)
        narrow = inline_svg(svg_file(drawing, name), f"{name}-narrow", label, drawing.tips)
    return Drawn(picture, inline_svg(svg, f"{name}-wide", label, wide.tips), narrow, tuple(files)), files


def _csv(columns: Iterable[object], rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_plain(value) for value in row] for row in rows)
    return text.getvalue().encode()


def _plain(value: object) -> object:
    """A text that spreadsheets do not take for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value
