"""Write the table of docs/howto/several-gpus.md from what `bench_scale_out.py` measured.

python benchmarks/scale_out_page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import common

from questlm.files import atomic_write

RECORD = common.RESULTS / "scale_out-h200-x2.json"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "howto" / "several-gpus.md"
BEGIN, END = "<!-- begin: benchmarks/scale_out_page.py -->", "<!-- end -->"


def page_text(page: str, record: dict[str, Any]) -> str:
    """The page with the table of a record between its two marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n\n{table(record)}\n\n{END}{after}"


def table(record: dict[str, Any]) -> str:
    """A line for each setting that was measured: its speed, and milliseconds a step of the profile."""
    lines = [
        "| | tokens/s | spread | windows | share of linear | step, ms | computing | exchange | exposed | idle |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in record["results"]:
        if "tokens_per_second" not in result:
            continue
        speed, times = result["tokens_per_second"], result["profile"]["milliseconds_per_step"]
        parts = ("step", "computing", "communicating", "exposed", "idle")
        shown = " | ".join(f"{times[part]:.1f}" for part in parts)
        lines.append(
            f"| {result['setting']} | {speed['median']:,.0f} | {speed['spread']:.1%} | {speed['count']} | "
            f"{result['share_of_linear']:.3f} | {shown} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    content = page_text(PAGE.read_text(encoding="utf-8"), json.loads(RECORD.read_text(encoding="utf-8")))
    atomic_write(PAGE, content.encode())
