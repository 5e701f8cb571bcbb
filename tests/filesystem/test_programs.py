"""A database in the folder, its node killed under load; `rows_programs` has more of the kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.pair import Pair
from tests.filesystem.loads import SQLite
from tests.filesystem.rounds import LIMIT_S, rounds

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.anyio, pytest.mark.timeout(LIMIT_S)]


async def test_sqlite(
    pair: Pair, place: Path, record_property: Callable[[str, object], None]
) -> None:
    """Both journal modes: every commit that was told of is there, and the databases are whole."""
    await rounds(pair, SQLite(place), record_property)
