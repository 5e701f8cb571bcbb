"""One way through the states at a time, chosen by a seed: deeper than every state can be visited.

What must hold is checked in every state; where nothing more happens, or would without luck, the
cluster must have come to rest as it should.
"""

from __future__ import annotations

import random

from tests.model.cluster import Cluster, Label, State
from tests.model.explore import Violation, line
from tests.model.nexts import ADDED, UNASKED, after
from tests.model.node import Broken
from tests.model.promises import check, unrest

STEPS = 600
_ADDED_SHARE, _LUCK_SHARE = 0.08, 0.2


def walk(cluster: Cluster, start: State, seed: int) -> int:
    """How many steps it took to come to rest. Raises Violation with the whole way."""
    chance = random.Random(seed)
    state, story = start, [line(cluster, ("start",), start)]
    for number in range(STEPS):
        try:
            nexts = list(after(cluster, state))
            chosen = _choose(chance, nexts)
            if chosen is None:
                _rests(cluster, state)
                return number
            label, state = chosen
            story.append(line(cluster, label, state))
            acknowledged = cluster.between.values[state[2]].acknowledged
            check(cluster.pair(state), acknowledged, cluster.isolation)
        except Exception as error:
            raise Violation("\n".join((f"seed {seed}: {error!r}", *story))) from error
    if not any(node.core.role.value == "STOP" for node in cluster.pair(state)):
        raise Violation("\n".join((f"I9: seed {seed} never comes to rest", *story)))
    return STEPS


def _choose(chance: random.Random, nexts: list[tuple[Label, State]]) -> tuple[Label, State] | None:
    """Mostly what happens by itself, sometimes what only luck or somebody brings about."""
    added = [one for one in nexts if one[0][0] in ADDED]
    own = [one for one in nexts if one[0][0] not in UNASKED]
    luck = [one for one in nexts if one[0][0] in UNASKED and one[0][0] not in ADDED]
    awaited = [one for one in luck if one[0][0] != "tick"]
    if not own and not awaited and not added:
        return None
    draw = chance.random()
    if added and (draw < _ADDED_SHARE or not (own or luck)):
        kind = chance.choice(sorted({str(one[0][0]) for one in added}))
        return chance.choice([one for one in added if one[0][0] == kind])
    if luck and (draw < _LUCK_SHARE or not own):
        return chance.choice(luck)
    return chance.choice(own)


def _rests(cluster: Cluster, state: State) -> None:
    between = cluster.between.values[state[2]]
    if not cluster.connected(state) or not between.witness_up or any(between.apart):
        return
    wrong = unrest(cluster.pair(state), cluster.isolation)
    if wrong:
        raise Broken(f"I9: comes to rest as {wrong}")
