"""The page as a whole: well-formed, self-contained, escaped, complete, and written where it may be."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from questlm.errors import ConfigError, DataError
from questlm.report import Report, write_report
from questlm.report.write import _csv
from questlm.scaling import fit_law, published_runs

VOID = {"meta", "link", "br", "img", "input", "hr"}
HOSTILE = "x<script>alert(1)</script>&\"'$\\frac{1$"


class Page(HTMLParser):
    """Checks that tags are balanced, and keeps what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def values(self, attribute: str) -> Iterator[str]:
        return (str(attrs[attribute]) for _, attrs in self.tags if attribute in attrs)


@pytest.fixture
def saved_fit(tmp_path: Path) -> Path:
    path = tmp_path / "law.json"
    some = [run for run in published_runs() if run.weight_bits in (16, 4) and run.act_bits in (16, 4)][:14]
    fit_law(some, draws=2).save(path)
    return path


@pytest.fixture
def report(make_run: Any, tmp_path: Path, saved_fit: Path) -> Report:
    for size in (2, 4):
        for bits in (16, 4):
            for seed in (0, 1):
                make_run(f"{size}-w{bits}-s{seed}", bits, size, seed, 5 - size / 4 - bits / 20 + seed / 100)
    make_run(HOSTILE.replace("/", "⁄"), 2, 2, device="<img src=x onerror=alert(1)>")
    make_run("unfinished", 4, 4, 7, None)
    (make_run("damaged") / "record.json").write_text("[]")
    return write_report([tmp_path / "runs"], tmp_path / "report.html", saved_fit, show_progress=False)


@pytest.mark.slow
def test_the_page_is_whole(report: Report) -> None:
    text = report.page.read_text()
    page = Page(text)
    assert (report.runs, report.unfinished, report.fitted) == (10, 1, True)
    assert report.pictures == ["curves", "frontier", "efficiency", "law"]
    _check_references(page)
    _check_nothing_is_loaded(page, text)
    _check_escaping(page, text)
    _check_words(page)
    _check_files(page, report)
    _check_replacing(report)


def _check_references(page: Page) -> None:
    ids = list(page.values("id"))
    assert len(ids) == len(set(ids))
    links = [value for value in page.values("href") if value.startswith("#")]
    named = [name for value in page.values("aria-labelledby") for name in value.split()]
    assert links and named and {link[1:] for link in links} | set(named) <= set(ids)
    svgs = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(svgs) == 8 and all(attrs["role"] == "img" for attrs in svgs)  # wide and narrow
    assert all(attrs.get("scope") in ("row", "col") for tag, attrs in page.tags if tag == "th")
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(headings))


def _check_nothing_is_loaded(page: Page, text: str) -> None:
    for attribute in ("src", "href", "xlink:href", "action", "data", "poster"):
        assert not any(re.match(r"(?i)\s*(https?:|//|javascript:)", value) for value in page.values(attribute))
    assert not re.search(r"url\((?!#)", text) and "@import" not in text
    assert [tag for tag, _ in page.tags].count("script") == 1 and "link" not in {tag for tag, _ in page.tags}
    (policy,) = (attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none';")


def _check_escaping(page: Page, text: str) -> None:
    assert "<script>alert" not in text and "<img" not in text
    assert HOSTILE.replace("/", "⁄") in page.text  # as the reader sees it
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)


def _check_words(page: Page) -> None:
    words = " ".join(" ".join(page.text).split())
    for phrase in (
        "Report on 10 runs", "damaged", "is not a run record", "unfinished", "2 seeds", "1,234", "3 GB",
        "± 0.064", "runs on the front", "Read from",
    ):  # fmt: skip
        assert phrase in words, phrase


def _check_files(page: Page, report: Report) -> None:
    linked = {unquote(value) for value in page.values("href") if not value.startswith("#")}
    written = {f"report_files/{path.name}" for path in report.folder.iterdir()}
    assert linked == written == {f"report_files/{n}.{kind}" for n in report.pictures for kind in ("svg", "png", "csv")}
    for name in report.pictures:
        rows = list(csv.reader(io.StringIO((report.folder / f"{name}.csv").read_text())))
        assert len(rows) > 1 and len({len(row) for row in rows}) == 1
        assert (report.folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (report.folder / f"{name}.svg").read_bytes()[:1000]
    frontier = list(csv.DictReader(io.StringIO((report.folder / "frontier.csv").read_text())))
    assert len(frontier) == 9 and {row["on_front"] for row in frontier} == {"True", "False"}


def _check_replacing(report: Report) -> None:
    """A report may be written again; what is not there any more goes, what is not ours stays."""
    (report.folder / "notes.txt").write_text("mine")
    (report.folder / "law.json").write_text("mine")
    again = write_report([report.page.parent / "runs" / "unfinished"], report.page, show_progress=False)
    assert not again.fitted and again.pictures == ["curves"]
    names = {path.name for path in report.folder.iterdir()}
    assert names == {"curves.svg", "curves.png", "curves.csv", "notes.txt", "law.json"}
    assert "No law was fitted: no run is finished." in report.page.read_text()


def test_why_no_law_was_fitted_is_said(tmp_path: Path) -> None:
    row = {"N": 10**8, "D": 10**10, "w_bits": 4, "a_bits": 4, "format": "int4", "method": "quest", "loss": 2.5}
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([row]))
    written = write_report([rows], tmp_path / "r.html", show_progress=False)
    text = written.page.read_text()
    assert not written.fitted and written.pictures == []
    assert "No law was fitted: " in text and "No run recorded a curve of its loss." in text
    assert "fewer than two finished runs" in text
    Page(text)


def test_a_page_is_written_only_where_it_may_be(make_run: Any, tmp_path: Path) -> None:
    run = make_run("one")
    (tmp_path / "mine.html").write_text("<p>mine")
    with pytest.raises(ConfigError, match="exists and is not a report of questlm"):
        write_report([run], tmp_path / "mine.html")
    with pytest.raises(ConfigError, match=r"its name ends in \.html"):
        write_report([run], tmp_path / "report.pdf")
    with pytest.raises(ConfigError, match="is not a folder; make it first"):
        write_report([run], tmp_path / "nowhere" / "report.html")
    assert (tmp_path / "mine.html").read_text() == "<p>mine"


def test_a_fit_that_cannot_be_read_is_refused(make_run: Any, tmp_path: Path) -> None:
    (tmp_path / "fit.json").write_text("{}")
    with pytest.raises(DataError, match="is not a fitted law"):
        write_report([make_run("one")], tmp_path / "report.html", tmp_path / "fit.json")
    assert not (tmp_path / "report.html").exists()


def test_spreadsheets_take_no_text_for_a_formula() -> None:
    assert _csv(("a", "b"), [("=1+1", -1.5)]) == b"a,b\n'=1+1,-1.5\n"
