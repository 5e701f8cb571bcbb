"""What a machine lacks: a reason to skip a test, or to fail it where everything must be there."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def lacking(text: str) -> NoReturn:
    """This machine lacks what the test needs: skip it; with HYPERHA_REQUIRE=all fail it."""
    if os.environ.get("HYPERHA_REQUIRE") == "all":
        pytest.fail(f"HYPERHA_REQUIRE=all, and this test cannot run: {text}", pytrace=False)
    pytest.skip(text)
