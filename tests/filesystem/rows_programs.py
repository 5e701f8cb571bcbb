"""Programs of the campaign `programs`: too slow for the suite, so only collected when named."""

from __future__ import annotations

import glob
import pwd
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.pair import Pair
from tests.filesystem.loads import Fio, GitLoad, PostgreSQL, SQLite
from tests.filesystem.rounds import LIMIT_S, rounds
from tests.support.machine import lacking

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.anyio, pytest.mark.timeout(LIMIT_S)]


async def test_sqlite(
    pair: Pair, place: Path, record_property: Callable[[str, object], None]
) -> None:
    """As in the suite, more often."""
    await rounds(pair, SQLite(place), record_property)


async def test_git(pair: Pair, place: Path, record_property: Callable[[str, object], None]) -> None:
    """Every commit that was told of is there, and git fsck finds nothing."""
    await rounds(pair, GitLoad(place), record_property)


async def test_fio(pair: Pair, place: Path, record_property: Callable[[str, object], None]) -> None:
    """Eight jobs; every block whose write was acknowledged verifies by xxhash on the survivor."""
    if shutil.which("fio") is None:
        lacking("needs fio")
    await rounds(pair, Fio(place), record_property)


async def test_pgbench(
    pair: Pair, place: Path, record_property: Callable[[str, object], None]
) -> None:
    """PostgreSQL recovers: sums agree, checksums too, and no reported transaction is missing."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    if not found:
        lacking("needs postgresql")
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        lacking("needs the user postgres")
    load = PostgreSQL(place, Path(found[-1]), user)
    try:
        await rounds(pair, load, record_property)
    finally:
        load.close()
