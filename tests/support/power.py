"""Power cuts for real, from the test's side: asks the process that owns the nodes' power.

Nothing here waits without a limit or touches a path on a node's disk; see
`tests.support.power_supply` for what happens to disks and processes.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.support import ROOT

LIMIT_S = 100.0
"""For one order; a cut of both nodes waits at most 2 s for its write and 15 s for each step."""


class PoweredDisks:
    """The power of some nodes: a real disk and a control group each; `close` leaves nothing."""

    def __init__(self, place: Path, homes: dict[str, Path]) -> None:
        self.dark: set[str] = set(homes)
        """Nodes without power: their homes are not there."""
        arguments = [f"{node}={home}" for node, home in homes.items()]
        self._supply = subprocess.Popen(
            [sys.executable, "-m", "tests.support.power_supply", str(place), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            start_new_session=True,
        )
        self._heard = b""
        try:
            ready = self._answer("the power supply to be ready")
            if ready["freed"]:
                print(f"freed what a killed run had left: {', '.join(ready['freed'])}")
            for node in homes:
                self.on(node)
            self.groups = {node: self._order(order="group", node=node) for node in homes}
        except BaseException:
            self.close()
            raise

    def cut(self, seed: str, writes: int, nodes: tuple[str, ...]) -> tuple[float, str]:
        """The power of these nodes fails at one moment: when, and what their disks forgot.

        At the WRITES-th write from now on to the first one's disk; `seed` is `all`, or a number
        that says which sectors had reached the medium. Afterwards no process of them is left.
        """
        self.dark |= set(nodes)
        told = self._order(order="cut", seed=seed, writes=writes, nodes=list(nodes))
        return float(told["at_s"]), str(told["told"])

    def on(self, node: str) -> None:
        """Power again: the node's home is there as the disk remembers it."""
        self._order(order="on", node=node)
        self.dark.discard(node)

    def kill(self, node: str) -> None:
        """End every process of a node; its disk goes on."""
        self._order(order="kill", node=node)

    def close(self) -> None:
        """End everything; what could not be taken away fails the test."""
        for stream in (self._supply.stdin, self._supply.stdout):
            if stream is not None:
                stream.close()
        try:
            status = self._supply.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self._supply.kill()  # The next supply frees what it leaves.
            self._supply.wait()
            raise
        assert status == 0, "the power supply has left something behind, see above"

    def _order(self, **order: Any) -> Any:
        assert self._supply.stdin is not None
        self._supply.stdin.write(json.dumps(order).encode() + b"\n")
        self._supply.stdin.flush()
        answer = self._answer(f"the answer to {order}")
        assert "failed" not in answer, f"{order}: {answer['failed']}"
        return answer["done"]

    def _answer(self, what: str) -> dict[str, Any]:
        assert self._supply.stdout is not None
        descriptor = self._supply.stdout.fileno()
        deadline = time.monotonic() + LIMIT_S
        while b"\n" not in self._heard:
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"waited {LIMIT_S:.0f} s for {what}"
            if not select.select([descriptor], [], [], left_s)[0]:
                continue
            got = os.read(descriptor, 65536)
            assert got, f"the power supply has ended, waiting for {what}"
            self._heard += got
        line, _, self._heard = self._heard.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer
