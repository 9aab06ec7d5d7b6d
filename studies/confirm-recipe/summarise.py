"""Put the tables into README.md, from the records under runs/.

python studies/confirm-recipe/summarise.py
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev

from scipy.stats import t

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from tables import markdown, read_losses, replace_part  # noqa: E402

WIDTHS = ("w4a4", "w2a2", "w1a1")

Losses = dict[str, dict[int, float]]
"""Run -> seed -> loss in nats a token."""


def main() -> None:
    """Write both tables."""
    found = read_losses(HERE / "runs")
    replace_part(HERE / "README.md", "losses", losses(found))
    replace_part(HERE / "README.md", "gone", gone(found))


def losses(found: Losses) -> str:
    """Every run's mean over its seeds."""
    rows = [[name, str(len(by_seed)), interval(list(by_seed.values()), 4)] for name, by_seed in sorted(found.items())]
    return "\n" + markdown(("run", "seeds", "loss"), rows)


def gone(found: Losses) -> str:
    """How much of each width's distance to BF16 the recipe takes away, paired by seed.

    The distance of `tuned` is to BF16 with the same settings; that of `recipe` is to the best BF16 by its mean.
    """
    dense = [by_seed for name, by_seed in found.items() if name.startswith("bf16")]
    best = min(dense, key=lambda by_seed: fmean(by_seed.values()), default={})
    rows = []
    for width in WIDTHS:
        tuned, recipe = found.get(f"{width}-tuned", {}), found.get(f"{width}-recipe", {})
        seeds = sorted(best.keys() & tuned.keys() & recipe.keys() & found.get("bf16-tuned", {}).keys())
        if seeds:
            before = [tuned[seed] - found["bf16-tuned"][seed] for seed in seeds]
            after = [recipe[seed] - best[seed] for seed in seeds]
            shares = [100 * (1 - b / a) for a, b in zip(before, after, strict=True)]
            rows.append([width.upper(), str(len(seeds)), interval(before, 4), interval(after, 4), interval(shares, 0)])
    return "\n" + markdown(("", "seeds", "distance of tuned", "distance of recipe", "gone, %"), rows)


def interval(values: Sequence[float], digits: int) -> str:
    """Mean of `values`, and half the width of its 95 % interval (Student's t) where there are two or more."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    half = t.ppf(0.975, len(values) - 1) * stdev(values) / sqrt(len(values))
    return f"{fmean(values):.{digits}f} ± {half:.{digits}f}"


if __name__ == "__main__":
    main()
