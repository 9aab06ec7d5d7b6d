"""One self-contained HTML page about finished runs, and their losses as a figure."""

from questlm.report.gather import Entry, Gathered, gather
from questlm.report.loss_figure import loss_figure
from questlm.report.write import Report, write_report

__all__ = ["Entry", "Gathered", "Report", "gather", "loss_figure", "write_report"]
