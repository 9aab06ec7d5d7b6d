"""Put the tables into README.md, from the records under runs/ and those of the baseline in ../fair-baseline.

python studies/better-recipe/summarise.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from tables import markdown, read_losses, replace_part  # noqa: E402

WIDTHS = ("bf16", "w4a4", "w2a2", "w1a1")
BASELINE = "muon-b32-lr1.2-cosine"
BASES = {"tuned-": "head-x4-linear50", "e16-": "tuned-embedding-19.2"}
"""Beginning of a name -> the change on top of which changes so named are made. Others are changes of the baseline."""

Losses = dict[str, dict[str, float]]
"""Change -> width -> mean loss over seeds, in nats a token."""


def main() -> None:
    """Write the tables."""
    losses = read()
    replace_part(HERE / "README.md", "best", best(losses))
    replace_part(HERE / "README.md", "changes", changes(losses))


def read() -> Losses:
    """Losses by change and width, from names such as `w1a1-linear50`; the baseline first."""
    found: Losses = {"none": {}}
    for name, by_seed in read_losses(HERE.parent / "fair-baseline" / "runs").items():
        width, _, change = name.partition("-")
        if change == BASELINE:
            found["none"][width] = fmean(by_seed.values())
    for name, by_seed in read_losses(HERE / "runs").items():
        width, _, change = name.partition("-")
        found.setdefault("none again" if change == "none" else change, {})[width] = fmean(by_seed.values())
    return found


def best(losses: Losses) -> str:
    """Each width's lowest loss, its distance to the lowest of BF16, and how much of the baseline's is gone.

    The lowest of BF16 is over all changes, because whatever helps BF16 too is no gain of few bits.
    """
    dense, rows = min(own["bf16"] for own in losses.values() if "bf16" in own), []
    for width in WIDTHS[1:]:
        gap = losses["none"][width] - losses["none"]["bf16"]
        found = {change: own[width] for change, own in losses.items() if width in own and "only" not in change}
        change = min(found, key=lambda each: found[each])
        over, both = found[change] - dense, losses[change].get("bf16")
        alike = "BF16 not run" if both is None else f"{found[change] - both:.3f}"
        rows.append(
            [width.upper(), f"{gap:.3f}", change, f"{found[change]:.4f}", f"{over:.3f}", f"{1 - over / gap:.0%}", alike]
        )
    header = ("", "distance of the baseline", "best change", "loss", "distance", "gone", "distance to BF16 with it")
    return "\n" + markdown(header, rows)


def changes(losses: Losses) -> str:
    """Every change that has a run: loss at each width, and the difference from what it changes."""
    rows = []
    for change, own in losses.items():
        base = next((base for start, base in BASES.items() if change.startswith(start)), "none")
        without = losses.get(base, {}) if change != base else {}
        cells = [_cell(own.get(width), without.get(width)) for width in WIDTHS]
        rows.append([change, *cells])
    return "\n" + markdown(("change", *(width.upper() for width in WIDTHS)), rows)


def _cell(loss: float | None, baseline: float | None) -> str:
    if loss is None:
        return ""
    return f"{loss:.4f}" if baseline is None else f"{loss:.4f} ({loss - baseline:+.3f})"


if __name__ == "__main__":
    main()
