"""Put the tables into README.md, from the records under runs/.

python studies/demo-recipe/summarise.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean, median

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from tables import markdown, read_losses, replace_part  # noqa: E402


def main() -> None:
    """Write the table."""
    replace_part(HERE / "README.md", "nano", table())


def table() -> str:
    """Settings of the nano preset, the lowest mean loss first."""
    losses = read_losses(HERE / "runs")
    rows = []
    for name in sorted(losses, key=lambda name: fmean(losses[name].values())):
        by_seed = losses[name]
        values = ", ".join(f"{by_seed[seed]:.4f}" for seed in sorted(by_seed))
        tokens = median(_tokens(name, seed) for seed in by_seed)
        rows.append([name, f"{fmean(by_seed.values()):.4f}", values, f"{tokens:,.0f}"])
    return "\n" + markdown(("setting", "mean loss", "by seed", "tokens in 150 s"), rows)


def _tokens(name: str, seed: int) -> int:
    record = json.loads((HERE / "runs" / f"{name}-s{seed}" / "record.json").read_text(encoding="utf-8"))
    return int(record["tokens"])


if __name__ == "__main__":
    main()
