"""What several tests of the replication share; a file may have a `pair` of its own kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engine_pair import Pair, pair_at


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Two copies with their streams, in this process and without mounts."""
    with pair_at(tmp_path) as both:
        yield both
