"""Text from and for people: foreign text is cleaned, words and durations are understood.

Foreign is whatever a guest, a script, a peer, a file name or an exception brought along. Textual
lets raw escape sequences through, so nothing may reach it uncleaned.
"""

from __future__ import annotations

import datetime
import re
import unicodedata

_ESCAPE_SEQUENCE = re.compile(
    r"""\x1b(?:
        \[ [0-?]* [ -/]* [@-~]        # CSI
      | \] [^\x07\x1b]* (?:\x07|\x1b\\)?   # OSC, ended by BEL or ST
      | [PX^_] [^\x1b]* (?:\x1b\\)?   # DCS, SOS, PM, APC
      | [ -/]* [0-~]                  # two-character sequences
    )""",
    re.VERBOSE,
)
_DURATION = re.compile(r"([0-9]{1,6})([smhd])")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def clean(text: str) -> str:
    """One line of printable text: escape sequences dropped, control characters shown as `?`.

    Tabs become four spaces; line ends become a space. Bidirectional overrides and other
    format characters are dropped, since they can make a line read differently from what it is.
    """
    text = _ESCAPE_SEQUENCE.sub("", text)
    text = text.replace("\t", "    ").replace("\r\n", " ").replace("\n", " ").replace("\r", " ")
    if text.isascii() and text.isprintable():
        return text
    out = []
    for character in text:
        category = unicodedata.category(character)
        if category not in _INVISIBLE:
            out.append(character)
        elif category == "Cc":
            out.append("?")
    return "".join(out)


def clean_bytes(raw: bytes) -> str:
    """Like `clean`, for bytes of unknown encoding (UTF-8 assumed, the rest shown as `\\xNN`)."""
    return clean(raw.decode("utf-8", "backslashreplace"))


def shorten(text: str, width: int) -> str:
    """At most `width` characters, the cut shown by an ellipsis."""
    if width <= 0:
        return ""
    return text if len(text) <= width else text[: width - 1] + "…"


def nearest(word: str, known: list[str]) -> str | None:
    """The known word that `word` was probably meant to be, or None."""
    import difflib

    found = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return found[0] if found else None


def duration_s(text: str) -> int | None:
    """Seconds of `90s`, `15m`, `1h` or `2d`, at least one; None for anything else."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        return None
    return int(found[1]) * _UNITS_S[found[2]] or None


def sentence_list(items: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(items) < 2:
        return "".join(items)
    return ", ".join(items[:-1]) + " and " + items[-1]


def size_text(size_bytes: int) -> str:
    """`0 B`, `212 MiB`, `1.4 GiB`: a fixed form, so that nothing jumps."""
    value = float(max(0, size_bytes))
    for unit in _SIZES[:-1]:
        if value < 1000:
            return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} {_SIZES[-1]}"


def minute_text(wall_ms: int) -> str:
    """`2026-11-25 10:02 UTC` from milliseconds of the wall clock."""
    moment = datetime.datetime.fromtimestamp(wall_ms / 1000, datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def count_text(count: int, one: str, many: str = "") -> str:
    """`1 file`, `1,204 files`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
