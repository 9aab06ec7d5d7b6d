"""Straight-through estimators on the MSE-optimal Gaussian grid (arXiv 1308.3432, 1602.02830)."""

from __future__ import annotations

from dataclasses import replace

from questlm.quant.estimators import identity
from questlm.quant.methods.base import ALL_FORMATS, Method, dynamic, format_grid
from questlm.quant.methods.quest import quest_clip

__all__ = ["clip_ste", "ste"]

ste = Method(
    summary="MSE-optimal Gaussian grid, straight-through estimator",
    source="arXiv 1308.3432 with the grid of arXiv 2502.05003",
    doc="""
Formula: as `quest-noht`. Initialisation: none. Gradient to x: 1 everywhere, clipped entries included.
""",
    weight=dynamic(format_grid, identity),
    act=dynamic(format_grid, identity),
    formats=ALL_FORMATS,
)

clip_ste = replace(
    quest_clip,
    summary="MSE-optimal Gaussian grid, gradient inside the clipping range only",
    source="arXiv 1602.02830 (the estimator) with the grid of arXiv 2502.05003",
    doc="""
Formula: as `quest-noht`. Initialisation: none. Gradient to x: 1 where |x| is not above the outermost level, else 0.
""",
    rotates=False,
)
