"""Which campaigns there are: what a round is, what a tally covers, how much is enough."""

from __future__ import annotations

import ast
import random
from dataclasses import dataclass
from pathlib import Path

from hyperha.errors import UsageError
from tests.acceptance import test_fault_rounds as faults
from tests.acceptance.test_power import REST_LIMIT_S, ROUND_LIMIT_S
from tests.campaigns.rounds import DrillRound, Kind, Order, SwarmRound, TestRound
from tests.campaigns.tally import Tally
from tests.support import ROOT

_PRODUCT = ("hyperha", ":(exclude)hyperha/docs", ":(exclude)hyperha/ARCHITECTURE.md")
_ON_DAEMONS = (*_PRODUCT, "tests/acceptance", "tests/support")
_IN_THE_WORLD = (
    "hyperha/core",
    "hyperha/domain.py",
    "hyperha/study",
    "tests/support/world.py",
    "tests/simulation",
    "tests/campaigns/swarm.py",
)
_CUTS = 4
"""Of one round: enough for nodes to change their places often, few enough to end one early."""
_FAULT_ROUNDS = "tests/acceptance/test_fault_rounds.py"
_FAULTS = 6
"""Of one process: a pair takes as long to begin and to end as a round."""
_DEATHS = "tests/acceptance/test_deaths.py"
_ON_PROCESSES = ("hyperha/replication", "hyperha/domain.py", "tests/filesystem", "tests/support")
_POSIX = "tests/filesystem/test_posix.py"
_SEQUENCES = 500
_BREAKS = 20
_FSX_MINUTES = 5
_PROGRAM_ROUNDS = 5
_VERIFY_MINUTES = 5
_BAD_MINUTES = 10
_BAD_HOURS = 6
_FULL_RETURN = {
    "HYPERHA_RETURN_SET_MIB": str(20 << 10),
    "HYPERHA_RETURN_MIB": str(1 << 10),
    "HYPERHA_POWER_DISK_MIB": str(8 << 10),
}
_CRASHES = "tests/crash/test_pipeline.py"
_CRASH_DEPTH = 4
DRILL_PORTS = 9610
"""Not those of a demonstration that somebody may be watching."""


@dataclass(frozen=True, slots=True)
class Campaign:
    """`goal` units of every row are enough; `step` units at most are made by one process."""

    name: str
    purpose: str
    unit: str
    goal: int
    rows: tuple[str, ...]
    covers: tuple[str, ...]
    """git's paths; a change in one of them makes a tally stale."""
    kind: Kind
    seeds: str = ""
    """`random`, `next` for one after the other, or empty when a round has none."""
    step: int = 1
    step_limit_s: float = 300.0
    needs_root: bool = True

    def order(self, tally: Tally, wanted: int) -> Order:
        """The next round, for the row that has the fewest."""
        row, _ = tally.least(self.rows)
        seed = tally.next_seed if self.seeds == "next" else random.randrange(1, 1 << 24)
        return Order(row, max(1, min(self.step, wanted)), seed)


def _cuts(order: Order) -> dict[str, str]:
    return {"HYPERHA_POWER_ROUNDS": str(order.count), "HYPERHA_POWER_SEED": str(order.seed)}


def _crash_states(order: Order) -> dict[str, str]:
    return {"HYPERHA_CRASH_SEED": str(order.seed), "HYPERHA_CRASH_DEPTH": str(_CRASH_DEPTH)}


def _faults(order: Order) -> dict[str, str]:
    return {
        "HYPERHA_FAULT_KIND": order.row,
        "HYPERHA_FAULT_ROUNDS": str(order.count),
        "HYPERHA_FAULT_SEED": str(order.seed),
    }


def _power(name: str, row: str, purpose: str, goal: int) -> Campaign:
    return Campaign(
        name=name,
        purpose=purpose,
        unit="cuts",
        goal=goal,
        rows=(row,),
        covers=_ON_DAEMONS,
        kind=TestRound("tests/acceptance/test_power.py", _cuts),
        seeds="random",
        step=_CUTS,
        # pytest ends a row first that hangs, and says where.
        step_limit_s=60 + REST_LIMIT_S + _CUTS * ROUND_LIMIT_S,
    )


def _sequences(order: Order) -> dict[str, str]:
    return {"HYPERHA_POSIX_COUNT": str(order.count), "HYPERHA_POSIX_SEED": str(order.seed)}


def _posix(
    name: str, rows: tuple[str, ...], goal: int, step: int, limit_s: float, purpose: str
) -> Campaign:
    return Campaign(
        name=name,
        purpose=purpose,
        unit="sequences",
        goal=goal,
        rows=rows,
        covers=_ON_PROCESSES,
        kind=TestRound(_POSIX, _sequences),
        seeds="random",
        step=step,
        step_limit_s=limit_s,
    )


def _minutes(order: Order) -> dict[str, str]:
    return {"HYPERHA_FSX_SECONDS": str(60 * order.count), "HYPERHA_FSX_SEED": str(order.seed)}


def _bad_minutes(order: Order) -> dict[str, str]:
    return {"HYPERHA_BAD_SECONDS": str(60 * order.count), "HYPERHA_BAD_SEED": str(order.seed)}


def _bad_hours(order: Order) -> dict[str, str]:
    return {"HYPERHA_BAD_HOURS": str(order.count), "HYPERHA_BAD_SEED": str(order.seed)}


def tests_of(file: Path) -> tuple[str, ...]:
    """The tests of a file, in its order."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    named = (one.name for one in tree.body if isinstance(one, kinds))
    return tuple(name for name in named if name.startswith("test_"))


def campaigns() -> dict[str, Campaign]:
    """All of them by name."""
    made = [
        _power(
            "power-primary", "test_c01_power_cut_of_the_primary", "the primary's power fails", 70
        ),
        _power(
            "power-both", "test_c01_power_cut_of_both_nodes", "the power of both nodes fails", 30
        ),
        _power(
            "power-secondary",
            "test_c01_power_cut_of_the_secondary",
            "the secondary's power fails",
            20,
        ),
        Campaign(
            name="simulation",
            purpose="seeded faults against two real cores, every seed under every policy",
            unit="seeds",
            goal=6000,
            rows=("seeds",),
            covers=_IN_THE_WORLD,
            kind=SwarmRound(),
            seeds="next",
            step=200,
            needs_root=False,
        ),
        Campaign(
            name="bad-days",
            purpose="a network that loses and stands still in simulated time: nobody takes over",
            unit="simulated hours",
            goal=24,
            rows=("test_nobody_takes_over",),
            covers=_IN_THE_WORLD,
            kind=TestRound("tests/simulation/test_bad_days.py", _bad_hours),
            seeds="random",
            step=_BAD_HOURS,
            step_limit_s=1800,
            needs_root=False,
        ),
        Campaign(
            name="drill",
            purpose="hyperha demo --headless --drill",
            unit="drills",
            goal=20,
            rows=("drill",),
            covers=_ON_DAEMONS,
            kind=DrillRound(DRILL_PORTS),
        ),
        Campaign(
            name="deaths",
            purpose="kill -9 of daemons, replication processes, guardians and applications",
            unit="runs of each row",
            goal=10,
            rows=tests_of(ROOT / _DEATHS),
            covers=_ON_DAEMONS,
            kind=TestRound(_DEATHS),
        ),
        _posix(
            "posix",
            ("test_sequences",),
            10_000,
            _SEQUENCES,
            600,
            "random steps of several users, against a plain folder, the copies compared",
        ),
        Campaign(
            name="fsx",
            purpose="one file worked on in every way at once, read back, the peer's compared",
            unit="minutes",
            goal=30,
            rows=("test_fsx",),
            covers=_ON_PROCESSES,
            kind=TestRound("tests/filesystem/test_fsx.py", _minutes),
            seeds="random",
            step=_FSX_MINUTES,
            step_limit_s=60.0 * _FSX_MINUTES + 120,
        ),
        Campaign(
            name="stress",
            purpose="stress-ng's verifying file-system stressors, a minute each group",
            unit="runs",
            goal=5,
            rows=("test_stressors",),
            covers=_ON_PROCESSES,
            kind=TestRound(
                "tests/filesystem/test_stress.py", lambda order: {"HYPERHA_STRESS_SECONDS": "60"}
            ),
            step_limit_s=480,
        ),
        Campaign(
            name="programs",
            purpose="databases, git and fio, their node killed under load",
            unit="rounds",
            goal=20,
            rows=("test_sqlite", "test_git", "test_fio", "test_pgbench"),
            covers=(*_ON_DAEMONS, "tests/filesystem"),
            kind=TestRound(
                "tests/filesystem/rows_programs.py",
                lambda order: {"HYPERHA_PROGRAM_ROUNDS": str(order.count)},
            ),
            step=_PROGRAM_ROUNDS,
            step_limit_s=180.0 + 60 * _PROGRAM_ROUNDS,
        ),
        _posix(
            "posix-breaks",
            ("test_sequences_without_the_peer", "test_sequences_with_a_successor"),
            500,
            _BREAKS,
            300,
            "the same while the secondary or the replication process of the primary dies",
        ),
        Campaign(
            name="faults",
            purpose="kills, freezes, cuts, resets, orders, and two of them at once, under load",
            unit="rounds of each kind",
            goal=50,
            rows=faults.KINDS,
            covers=_ON_DAEMONS,
            kind=TestRound(_FAULT_ROUNDS, _faults, "test_rounds_of_faults"),
            seeds="random",
            step=_FAULTS,
            step_limit_s=60 + faults.REST_LIMIT_S + _FAULTS * faults.ROUND_LIMIT_S,
        ),
        Campaign(
            name="verify",
            purpose="verifications under load, which find two equal copies equal",
            unit="minutes",
            goal=30,
            rows=("test_c07_verifications_under_load_raise_no_false_alarm",),
            covers=_ON_DAEMONS,
            kind=TestRound(
                "tests/acceptance/test_verifying.py",
                lambda order: {"HYPERHA_VERIFY_SECONDS": str(60 * order.count)},
            ),
            step=_VERIFY_MINUTES,
            step_limit_s=60.0 * _VERIFY_MINUTES + 180,
        ),
        Campaign(
            name="bad-network",
            purpose="1 % loss, spikes of 200 ms, pauses of 2 s: nobody takes over",
            unit="minutes",
            goal=60,
            rows=("test_no_false_failover",),
            covers=_ON_DAEMONS,
            kind=TestRound("tests/acceptance/test_bad_network.py", _bad_minutes),
            seeds="random",
            step=_BAD_MINUTES,
            step_limit_s=60.0 * _BAD_MINUTES + 240,
        ),
        Campaign(
            name="returning",
            purpose="1 GiB written alone in 20 GiB, and a power cut: what travels on return",
            unit="runs",
            goal=1,
            rows=("test_a36_a37_a_return_moves_what_was_written",),
            covers=_ON_DAEMONS,
            kind=TestRound("tests/acceptance/test_returning.py", lambda order: _FULL_RETURN),
            step_limit_s=1800,
        ),
        Campaign(
            name="tls",
            purpose="TLS in both directions at full load",
            unit="minutes",
            goal=10,
            rows=("test_e15_both_directions_of_tls_are_busy_at_once",),
            covers=_ON_PROCESSES,
            kind=TestRound(
                "tests/adapters/test_experiments.py",
                lambda order: {"HYPERHA_TLS_SECONDS": str(60 * order.count)},
            ),
            step=1,
        ),
        Campaign(
            name="crash-states",
            purpose="every legal state of both disks after a power cut, recovered and judged",
            unit="guests of each scenario",
            goal=15,
            rows=tests_of(ROOT / _CRASHES),
            covers=(*_PRODUCT, "tests/crash", "tests/support/engine_pair.py"),
            kind=TestRound(_CRASHES, _crash_states),
            seeds="random",
            step_limit_s=600.0,
        ),
    ]
    return {one.name: one for one in made}


def named(name: str) -> Campaign:
    """One of them. Raises UsageError that lists them."""
    known = campaigns()
    if name not in known:
        raise UsageError(f"there is no campaign {name!r}", f"There are: {', '.join(known)}.")
    return known[name]
