"""Neighbouring numbers, of blocks for example, taken together."""

from __future__ import annotations


def runs(blocks: list[int]) -> list[tuple[int, int]]:
    """Neighbouring numbers as (first, count)."""
    found: list[tuple[int, int]] = []
    for block in blocks:
        if found and found[-1][0] + found[-1][1] == block:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((block, 1))
    return found
