"""M7: when a freeze is ended, everything that waits is answered, whatever it is just doing."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import pytest

from hyperha.core.actions import Acknowledge
from hyperha.core.events import SessionLost
from tests.support.engine_pair import ROOT_ID, Guest, Pair, wait_for


@pytest.mark.parametrize("kind", ["write", "barrier write"])
def test_what_the_end_of_a_freeze_overtakes_is_answered(tmp_path: Path, kind: str) -> None:
    """It waits for this node's own disk when the order comes."""
    pair = Pair(tmp_path)
    node = pair.a
    inside, go = threading.Event(), threading.Event()
    try:
        pair.in_sync()
        guest = Guest(node)
        file = guest.create(ROOT_ID, b"disk")
        wait_for(lambda: guest.answers == 1)
        pair.b.acceptor.close()
        node.wait(SessionLost)
        node.primary.set_mode(Acknowledge.NONE)
        activate = node.intent.activate

        def slow(*arguments: Any, **named: Any) -> Any:
            inside.set()
            assert go.wait(20)
            return activate(*arguments, **named)

        node.intent.activate = slow
        answers: list[int] = []

        def do() -> None:
            node.primary.write(
                file, 4 << 20, b"z" * 4096, barrier=kind != "write",
                answer=lambda error, _: answers.append(error),
            )  # fmt: skip

        working = threading.Thread(target=do)
        working.start()
        assert inside.wait(20)
        node.primary.end_parked()
        go.set()
        working.join()
        wait_for(lambda: len(answers) == 1)
        assert answers == [errno.EIO]
        assert node.primary.parked_count() == 0
    finally:
        go.set()
        pair.close()
