"""Numbers for people: sizes, rates, durations, times. Fixed forms, so that nothing jumps."""

from __future__ import annotations

from datetime import datetime

from hyperha.text import size_text


def rate_text(bytes_per_s: int) -> str:
    """A size per second."""
    return f"{size_text(bytes_per_s)}/s"


def clock_text(seconds: int | None) -> str:
    """`02:10` for minutes and seconds, `1:02:10` above an hour, `--:--` when not known."""
    if seconds is None:
        return "--:--"
    minutes, second = divmod(max(0, seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute:02d}:{second:02d}"


def age_text(age_ms: int | None) -> str:
    """`0.4 s`, `12 s`, `5 min`, `3 h`, `2 d`; `never` when nothing was heard."""
    if age_ms is None:
        return "never"
    if age_ms < 1000:
        return f"{age_ms / 1000:.1f} s"
    seconds = age_ms // 1000
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds // divisor} {unit}"
    return f"{seconds // 86400} d"


def time_text(rfc3339: str) -> str:
    """The time of day of an RFC 3339 text: `12:40:51`."""
    return rfc3339[11:19] if len(rfc3339) >= 19 else rfc3339


def minute_text(rfc3339: str) -> str:
    """Day and minute of an RFC 3339 text: `2026-11-22 12:40`."""
    return f"{rfc3339[:10]} {rfc3339[11:16]}" if len(rfc3339) >= 16 else rfc3339


def seconds_between(start: str, end: str) -> int | None:
    """From one RFC 3339 time to another; None when one of them is none."""
    try:
        return int((datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds())
    except (ValueError, TypeError):
        return None


def short_generation(generation: str) -> str:
    """Enough of a generation id to tell two apart."""
    return generation[:6] if generation else "none"


def percent(done: int, total: int) -> int:
    """Whole per cent; 100 only when really all is done."""
    if total <= 0:
        return 0
    return max(0, min(100 if done >= total else 99, done * 100 // total))
