"""Two daemons for programs that run as other users too."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.acceptance.pair import Pair, running_pair
from tests.acceptance.test_content import QUIET


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user may pass through, unlike those of pytest."""
    made = Path(tempfile.mkdtemp(prefix="hyperha-programs-"))
    made.chmod(0o755)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
async def pair(place: Path, anyio_backend: str) -> AsyncIterator[Pair]:
    """Two daemons whose protected program writes nothing itself."""
    nodes = place / "nodes"
    nodes.mkdir()
    async with running_pair(nodes, QUIET) as made:
        for path in [nodes, *nodes.glob("*"), *nodes.glob("*/data"), *nodes.glob("*/data/*")]:
            if path.is_dir():
                path.chmod(0o755)
        yield made
