"""QuEST and its ablations (arXiv 2502.05003)."""

from __future__ import annotations

from dataclasses import replace

from questlm.quant.estimators import clip, trust_bound
from questlm.quant.methods.base import ALL_FORMATS, DENSE_FORMATS, Method, dynamic, format_grid

__all__ = ["quest", "quest_clip", "quest_noht"]

quest = Method(
    summary="Hadamard normalisation, MSE-optimal Gaussian grid, trust estimator",
    source="arXiv 2502.05003",
    doc="""
Formula: x_h = HT(x) in blocks of 128; x_q is the nearest level of a grid that is MSE-optimal for N(0, 1), scaled by the
row's rms. Integer grids are half-integer: step 2 a* rms / (2^b - 1), no zero.
Initialisation: none; scales are dynamic and constants for the gradient.
Gradient to x_h: 1 where |x_q - x_h| <= T rms, T half of the largest interval between levels (a* / (2^b - 1)); else 0.
At 1 bit, 1 where |x_h| <= s a* rms with s = 1.30 (1.25 without rotation). `trust` sets s for any grid.
Formats: int 1 to 8 bits, ternary, fp4, lloydmax (2 to 4 bits), int-2:4 (of each 4 neighbouring pairs the 2 of largest
norm; the mask is taken against the sparse value), bf16-2:4.
Differs: a* is solved to machine precision (the published runs used a coarser solution); FP4's T is half the largest
interval, 0.487 rms (the public code has 0.319).
""",
    weight=dynamic(format_grid, trust_bound),
    act=dynamic(format_grid, trust_bound),
    rotates=True,
    formats=ALL_FORMATS,
    trusts=True,
)

quest_noht = replace(
    quest,
    summary="QuEST without the Hadamard transform",
    source="arXiv 2502.05003, ablation",
    doc="""
Formula, initialisation and gradient as `quest`, with x in the place of HT(x); at 1 bit s = 1.25.
""",
    rotates=False,
)

quest_clip = Method(
    summary="QuEST with the clipping estimator in place of trust",
    source="arXiv 2502.05003, ablation",
    doc="""
Formula and initialisation as `quest`. Gradient to x_h: 1 where |x_h| is not above the outermost level, else 0.
""",
    weight=dynamic(format_grid, clip),
    act=dynamic(format_grid, clip),
    rotates=True,
    formats=DENSE_FORMATS,
)
