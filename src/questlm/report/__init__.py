"""One self-contained HTML page about finished runs."""

from questlm.report.gather import Entry, Gathered, gather
from questlm.report.write import Report, write_report

__all__ = ["Entry", "Gathered", "Report", "gather", "write_report"]
