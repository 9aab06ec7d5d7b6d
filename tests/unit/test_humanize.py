"""Numbers as people read them."""

from __future__ import annotations

import pytest

from questlm.humanize import bytes_text, count_text, duration_text


@pytest.mark.parametrize(
    ("value", "text"), [(999, "999"), (3_410_176, "3.41M"), (80e9, "80B"), (999_960, "1M"), (0.5, "0.5")]
)
def test_counts(value: float, text: str) -> None:
    assert count_text(value) == text


def test_bytes_and_durations() -> None:
    assert [bytes_text(n) for n in (0, 512, 999.6, 401_234, 15.6e6, 999e6, 4.76e9, 2e12)] == [
        *("0 bytes", "512 bytes", "1 kB", "401 kB", "15.6 MB", "999 MB", "4.76 GB", "2 TB"),
    ]
    assert [duration_text(n) for n in (5, 119, 600, 8000)] == ["5 s", "119 s", "10 min", "2.2 h"]
    assert [duration_text(n) for n in (100_000, 405_510, 1e9)] == ["27.8 h", "4.7 days", "11,574.1 days"]
