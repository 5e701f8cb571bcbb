"""Fixtures of the acceptance rows: every row gets a pair of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hyperha.demo.cluster import NODES
from tests.acceptance.pair import Pair, PairOptions, running_pair

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every row needs root and FUSE."""
    for item in items:
        if Path(item.path).is_relative_to(_HERE):
            item.add_marker(pytest.mark.root)
            item.add_marker(pytest.mark.fuse)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(400))


@pytest.fixture
def options() -> PairOptions:
    """What the row's pair is like; rows override it by parametrising."""
    return PairOptions()


@pytest.fixture
async def pair(tmp_path: Path, anyio_backend: str, options: PairOptions) -> AsyncIterator[Pair]:
    """Two configured nodes; the row starts them."""
    async with running_pair(tmp_path, options) as made:
        yield made


@pytest.fixture
async def protected(pair: Pair) -> Pair:
    """node1 PRIM, node2 SECOND, orders flowing."""
    await pair.protected()
    assert set(NODES) == {"node1", "node2"}
    return pair
