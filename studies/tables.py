"""What the scripts of several studies share: reading records, and putting tables into pages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from questlm.files import atomic_write

__all__ = ["markdown", "read_losses", "replace_part"]


def read_losses(folder: Path) -> dict[str, dict[int, float]]:
    """Final validation loss in nats a token of the runs in `folder`: name -> seed -> loss."""
    found: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("*/record.json")):
        name, _, seed = path.parent.name.rpartition("-s")
        found.setdefault(name, {})[int(seed)] = json.loads(path.read_text(encoding="utf-8"))["final"]["loss"]
    return found


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def replace_part(page: Path, name: str, text: str) -> None:
    """Put `text` between the comments `<!-- name -->` and `<!-- end of name -->` of a page."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    page_text = page.read_text(encoding="utf-8")
    before, after = page_text.split(begin)[0], page_text.split(end)[1]
    atomic_write(page, f"{before}{begin}\n{text}\n{end}{after}")
