"""Which parts of the dashboard exist at a size, and how high each is. 80x24 is the design size."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

LEAST_WIDTH = 60
LEAST_HEIGHT = 16
LOG_LEAST_ROWS = 6
TILE_LEAST_ROWS = 4
TILE_MOST_ROWS = 6
TILES_MOST_80 = 3
WIDE = 140


class Shape(StrEnum):
    """How the modules are shown."""

    TOO_SMALL = "too small"
    TILES = "tiles"
    TABLE = "table"


@dataclass(frozen=True, slots=True)
class Layout:
    """Heights in rows. Header, alert, tabs, activity and keys take one row each."""

    shape: Shape
    module_rows: int
    """The height of the panel of the modules."""
    tile_rows: int = 0
    """The height of one tile; 0 in a table."""
    why_row: bool = False
    """Whether the sentence of the selected side has a row of its own (tiles too low for it)."""
    side_by_side: bool = False


def layout(width: int, height: int, modules: int, table_wanted: bool) -> Layout:
    """The layout at a size; pure, so that a table can test it."""
    if width < LEAST_WIDTH or height < LEAST_HEIGHT:
        return Layout(Shape.TOO_SMALL, 0)
    fixed = 5
    room = height - fixed - LOG_LEAST_ROWS
    wide = width >= WIDE
    if wide:
        room = height - fixed
    count = max(1, modules)
    tile_rows = min(TILE_MOST_ROWS, room // count)
    if not table_wanted and tile_rows >= TILE_LEAST_ROWS:
        why_row = tile_rows < TILE_LEAST_ROWS + 1
        rows = height - fixed if wide else tile_rows * count + why_row
        return Layout(Shape.TILES, rows, tile_rows, why_row, wide)
    rows = height - fixed if wide else max(4, min(count + 2, room + 1))
    return Layout(Shape.TABLE, rows, 0, True, wide)


def table_window(count: int, rows: int, selected: int) -> tuple[int, int]:
    """First and last+1 module that a table of so many rows shows, with the selected one in it."""
    rows = max(1, rows)
    first = max(0, min(selected - rows // 2, count - rows))
    return first, min(count, first + rows)
