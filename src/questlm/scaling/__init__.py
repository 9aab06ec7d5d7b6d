"""The scaling law: fit it to finished runs, compare its variants, plan the next run by it. No torch."""

from questlm.scaling.fit import fit_law
from questlm.scaling.result import Estimate, LawFit, Residual
from questlm.scaling.runs import Run, published_runs, read_runs

__all__ = ["Estimate", "LawFit", "Residual", "Run", "fit_law", "published_runs", "read_runs"]
