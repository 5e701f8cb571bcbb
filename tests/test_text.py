"""What people write and read: durations. How foreign text is cleaned is tested with the console."""

from __future__ import annotations

import pytest

from hyperha.text import duration_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("15m", 900),
        ("2h", 7200),
        (" 2d ", 172_800),
        ("05m", 300),
        ("999999d", 86_399_913_600),
        *((wrong, None) for wrong in ("", "0s", "00d", "5", "m", "-3m", "1.5h", "1h30m", "soon")),
        *((wrong, None) for wrong in ("1000000d", "5 m", "5M", "\u0665m", "5m\n5m")),
    ],
)
def test_durations(text: str, seconds: int | None) -> None:
    assert duration_s(text) == seconds
