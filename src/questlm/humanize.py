"""Format numbers for people."""

from __future__ import annotations

__all__ = ["bytes_text", "count_text", "duration_text"]


def count_text(value: float) -> str:
    """Format a count with three digits and a suffix: 3.41M, 80B, 0.5."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def bytes_text(count: float) -> str:
    """Format bytes with three digits and a decimal unit: 512 bytes, 401 kB, 15.6 MB, 4.76 GB."""
    for size, unit in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= 0.9995 * size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.3g} bytes"


def duration_text(seconds: float) -> str:
    """Format seconds as seconds, minutes, hours or days, in the largest unit of which there are at least two."""
    for size, unit in ((86_400, "days"), (3_600, "h")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
