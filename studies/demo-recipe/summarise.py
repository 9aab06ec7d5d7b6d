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

PRESETS = ("nano", "1m", "8m")


def main() -> None:
    """Write a table for each preset."""
    for preset in PRESETS:
        replace_part(HERE / "README.md", preset, table(preset))


def table(preset: str) -> str:
    """Settings of one preset, the lowest mean loss first."""
    losses = {name: by_seed for name, by_seed in read_losses(HERE / "runs").items() if _preset(name) == preset}
    rows = []
    for name in sorted(losses, key=lambda name: fmean(losses[name].values())):
        by_seed = losses[name]
        values = ", ".join(f"{by_seed[seed]:.4f}" for seed in sorted(by_seed))
        tokens = median(_tokens(name, seed) for seed in by_seed)
        rows.append([name, f"{fmean(by_seed.values()):.4f}", values, f"{tokens:,.0f}"])
    return "\n" + markdown(("setting", "mean loss", "by seed", "tokens in 150 s"), rows)


def _preset(name: str) -> str:
    return next((preset for preset in PRESETS[1:] if name.startswith(f"{preset}-")), PRESETS[0])


def _tokens(name: str, seed: int) -> int:
    record = json.loads((HERE / "runs" / f"{name}-s{seed}" / "record.json").read_text(encoding="utf-8"))
    return int(record["tokens"])


if __name__ == "__main__":
    main()
