"""The pictures of the report, one file each: what is drawn, its caption, its data."""

from questlm.report.pictures.curves import curves
from questlm.report.pictures.diagnosed import diagnosed
from questlm.report.pictures.efficiency import efficiency
from questlm.report.pictures.frontier import frontier
from questlm.report.pictures.law import law

__all__ = ["curves", "diagnosed", "efficiency", "frontier", "law"]
