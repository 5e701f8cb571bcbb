"""Rounds of faults under load at random moments: nothing acknowledged is lost, copies are equal.

HYPERHA_FAULT_KIND says which faults, HYPERHA_FAULT_ROUNDS how many, HYPERHA_FAULT_SEED which ones.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.busy import BusyPair, busy_pair

KINDS = ("kill", "freeze", "cut", "reset", "order", "two")
KIND = os.environ.get("HYPERHA_FAULT_KIND", "")
ROUNDS = int(os.environ.get("HYPERHA_FAULT_ROUNDS", "3"))
ROUND_LIMIT_S = 180.0
REST_LIMIT_S = 120.0
Record = Callable[[str, object], None]

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.netns,
    pytest.mark.timeout(REST_LIMIT_S + ROUNDS * ROUND_LIMIT_S),
]


async def _fault(pair: BusyPair, kind: str, dice: random.Random) -> None:
    await {
        "kill": pair.kill_part,
        "freeze": pair.freeze,
        "cut": pair.cut_cables,
        "reset": pair.reset_connections,
        "order": pair.command_something,
        "two": pair.two_at_once,
    }[kind](dice)


async def test_rounds_of_faults(tmp_path: Path, record_property: Record) -> None:
    """I1-I3: 0 acknowledged barriers lost, both copies identical after each round."""
    seed = int(os.environ.get("HYPERHA_FAULT_SEED") or random.randrange(1 << 24))
    print(f"HYPERHA_FAULT_SEED={seed} HYPERHA_FAULT_KIND={KIND or 'mixed'}")
    dice = random.Random(seed)
    # Without a cable nobody can tell who is left: under `run` both would go on, as is said.
    isolation = "primary" if KIND in ("", "cut", "two") else "run"
    async with busy_pair(tmp_path, isolation) as pair:
        for number in range(ROUNDS):
            kind = KIND or dice.choice(KINDS)
            begun = time.monotonic()
            pair.story = [f"round {number} of {ROUNDS}, {kind}, seed {seed}"]
            async with asyncio.timeout(ROUND_LIMIT_S):
                await asyncio.sleep(dice.random())
                await _fault(pair, kind, dice)
                await asyncio.sleep(dice.random() * dice.choice((0.2, 3)))
                await pair.heal()
                healed = time.monotonic()
                primary = await pair.whole_again()
                record_property("redundant_s", round(time.monotonic() - healed, 3))
                await pair.more_orders(10)
                await pair.check(primary)
            print(*pair.story, f"round took {time.monotonic() - begun:.1f} s", sep="\n  ")
            record_property(kind, 1)
        barriers = pair.observer.count + sum(pair.journals.last.values())
        record_property("barriers", barriers)
        await pair.equal_and_nothing_lost()
    print(f"{ROUNDS} rounds, {barriers} acknowledged barriers, none lost")
