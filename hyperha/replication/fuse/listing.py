"""Directories in an order that two processes find alike, so that a listing goes on in either (M4).

A reader names where it goes on by the cookie of the last entry that it has. Were that a place in
what one process has read, a successor, which reads anew, would take another entry for it whenever
names have come or gone. So entries are ordered by a checksum of their names, their cookie.
"""

from __future__ import annotations

import stat
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

Entry = tuple[bytes, int, int]
"""Name, inode number and type."""

_DOT: Final = 1
_DOT_DOT: Final = 2
_LOWEST: Final = 3
_HASHES: Final = (1 << 31) - (1 << 24)
"""Programs of 32 bits fail on cookies of more than 31 bits; the rest is room to move up."""


class Listing:
    """What a directory of that inode number held at one moment: `found`, itself and its parent."""

    __slots__ = ("_cookies", "_entries")

    def __init__(self, inode: int, found: list[Entry]) -> None:
        digest, hashes, lowest = zlib.crc32, _HASHES, _LOWEST
        entries = {digest(one[0]) % hashes + lowest: one for one in found}
        if len(entries) < len(found):
            _part(entries, found)
        entries[_DOT] = (b".", inode, stat.S_IFDIR)
        entries[_DOT_DOT] = (b"..", inode, stat.S_IFDIR)
        self._entries = entries
        self._cookies = sorted(entries)

    def behind(self, cookie: int) -> Iterator[tuple[int, Entry]]:
        """Cookies and entries behind a cookie, whether its own is there or not; behind 0 all."""
        cookies, entries = self._cookies, self._entries
        for place in range(bisect_right(cookies, cookie), len(cookies)):
            follows = cookies[place]
            yield follows, entries[follows]


def _part(entries: dict[int, Entry], found: list[Entry]) -> None:
    """Give names of one hash cookies of their own: the next ones that are free, in the order of
    the names. Only where one of them has gone meanwhile does a successor find another one moved."""
    crowds: dict[int, list[Entry]] = {}
    for one in found:
        cookie = zlib.crc32(one[0]) % _HASHES + _LOWEST
        if entries[cookie] is not one:
            crowds.setdefault(cookie, [entries[cookie]]).append(one)
    for cookie in sorted(crowds):
        first, *others = sorted(crowds[cookie])
        entries[cookie] = first
        place = cookie
        for one in others:
            while place in entries:
                place += 1
            entries[place] = one
