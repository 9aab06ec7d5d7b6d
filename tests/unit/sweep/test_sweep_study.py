"""The grid of the CPU study can be made, and has what a law needs."""

from __future__ import annotations

from pathlib import Path

from questlm.sweep import cells, read_grid

ROOT = Path(__file__).parents[3]


def test_the_cpu_study_has_three_sizes_and_budgets_for_every_width() -> None:
    runs = cells(read_grid(ROOT / "studies" / "cpu-law" / "grid.yaml"))
    for label in ("bf16", "quest-w4a4", "quest-w1a1"):
        own = [cell.config for cell in runs if cell.config.quant.label == label]
        sizes = {config.model.block_parameters for config in own}
        budgets = {config.budget.tokens_per_param for config in own}
        assert len(sizes) == len(budgets) == 3
        assert len(own) == 9
