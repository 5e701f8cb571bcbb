"""How long a service is away, by what has failed: python -m tests.benchmarks.failover [--repeat N].

Two real nodes at their default timing, in network namespaces, with the order service under load. Of
every failure two times are taken: until start_prim begins where the VM is started, and until the
first order is acknowledged after it (for a primary that goes on: until its writes go on). One table
with median and worst is the result; nothing is judged here.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hyperha.client.node_client import NodeClient
from hyperha.errors import HyperhaError
from tests.acceptance.pair import APPLICATION, DAEMON, OTHER, PairOptions
from tests.acceptance.test_network import NetworkPair, network_pair
from tests.acceptance.witnessed import FencedPair, PingedPair, WitnessedPair, guarded_pair

LIMIT_S = 60.0
_DEFAULTS = PairOptions(timing=None)
Strike = Callable[[Any, str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Failure:
    """What is done to the primary, and how the pair becomes redundant again."""

    title: str
    strike: Strike
    mend: Strike
    moves: bool = True
    """Whether the VM starts on the other node; else where it was, or it goes on."""
    starts: bool = True


@dataclass
class Taken:
    """Times of one failure, in seconds."""

    start_prim_s: list[float] = field(default_factory=list)
    service_s: list[float] = field(default_factory=list)


# --- failures -----------------------------------------------------------------------------


async def _lose(pair: NetworkPair, node: str) -> None:
    for lan in range(pair.network.lans + 1):
        pair.network.cut(lan, node)
    await pair.kill(node)


async def _bring_back(pair: NetworkPair, node: str) -> None:
    for lan in range(pair.network.lans + 1):
        pair.network.mend(lan, node)
    await pair.start(node)


async def _kill_daemon(pair: NetworkPair, node: str) -> None:
    pair.signal(node, DAEMON, signal.SIGKILL)


async def _restart_daemon(pair: NetworkPair, node: str) -> None:
    await pair.daemon_gone(node)
    await pair.start(node)


async def _kill_application(pair: NetworkPair, node: str) -> None:
    pair.signal(node, APPLICATION, signal.SIGKILL)


async def _forget_restarts(pair: NetworkPair, node: str) -> None:
    await pair.act(node, "restart")


async def _stop(pair: NetworkPair, node: str) -> None:
    await pair.begin(node, "stop")


async def _start(pair: NetworkPair, node: str) -> None:
    await pair.command(node, "start")


async def _cut(pair: NetworkPair, node: str) -> None:
    del node
    pair.cut_all()


async def _mend(pair: NetworkPair, node: str) -> None:
    del node
    pair.mend_all()


async def _isolate(pair: NetworkPair, node: str) -> None:
    for lan in range(pair.network.lans + 1):
        pair.network.cut(lan, node)


async def _reconnect(pair: NetworkPair, node: str) -> None:
    for lan in range(pair.network.lans + 1):
        pair.network.mend(lan, node)


async def _lose_and_say_so(pair: FencedPair, node: str) -> None:
    """The power switch is asked, and takes no time of its own."""
    await _lose(pair, node)
    asyncio.get_running_loop().create_task(_off(pair, node))


async def _off(pair: FencedPair, node: str) -> None:
    await pair.asked_for(node)
    await pair.off(node)


_PLAIN = (
    Failure("node lost", _lose, _bring_back),
    Failure("daemon crashed", _kill_daemon, _restart_daemon),
    Failure("application crashed", _kill_application, _forget_restarts, moves=False),
    Failure("stopped cleanly", _stop, _start),
)
_GOES_ON = {"moves": False, "starts": False}
_CUTS: tuple[tuple[str, Callable[[Path], Any], tuple[Failure, ...]], ...] = (
    (
        "isolation = primary",
        lambda place: network_pair(place, 1, "primary", _DEFAULTS),
        (Failure("network cut, primary goes on", _cut, _mend, **_GOES_ON),),
    ),
    (
        "ping witness",
        lambda place: guarded_pair(place, PingedPair, _DEFAULTS),
        (Failure("network cut, primary isolated, ping witness", _isolate, _reconnect),),
    ),
    (
        "lease witness",
        lambda place: guarded_pair(place, WitnessedPair, _DEFAULTS),
        (Failure("network cut, primary isolated, lease witness", _isolate, _reconnect),),
    ),
    (
        "fencing",
        lambda place: guarded_pair(place, FencedPair, _DEFAULTS),
        (Failure("node lost, fencing command", _lose_and_say_so, _bring_back),),
    ),
)


# --- measuring ----------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _watched(pair: NetworkPair, node: str) -> AsyncIterator[list[float]]:
    """The moments at which start_prim begins on a node."""
    found: list[float] = []

    async def watch() -> None:
        with contextlib.suppress(HyperhaError):
            async with NodeClient(pair.target(node)) as client:
                async for line in client.stream():
                    log = line.log
                    if log is not None and log.source == "start_prim" and log.text == "begins":
                        found.append(time.monotonic())

    task = asyncio.ensure_future(watch())
    try:
        await asyncio.sleep(0.2)
        yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _once(pair: NetworkPair, failure: Failure, taken: Taken) -> None:
    node = await pair.primary()
    runs = OTHER[node] if failure.moves else node
    await pair.more_orders(20)
    async with _watched(pair, runs) as begun:
        at = time.monotonic()
        await failure.strike(pair, node)

        async def back() -> bool:
            if failure.starts:
                return bool(begun) and pair.observer.first_after(begun[0], runs) is not None
            pause = pair.observer.longest_pause_s(at)
            return pause > 0.5 and len(pair.observer.after(at + pause, node)) > 5

        await pair.eventually(back, LIMIT_S, f"{failure.title}: the service")
        if failure.starts:
            first = pair.observer.first_after(begun[0], runs)
            assert first is not None
            taken.start_prim_s.append(begun[0] - at)
            taken.service_s.append(first.at_s - at)
        else:
            taken.service_s.append(pair.observer.longest_pause_s(at))
    await asyncio.sleep(0.5)
    await failure.mend(pair, node)
    await pair.redundant_again(60)
    assert not pair.observer.faults, pair.observer.faults[:3]


async def _measure(
    place: Path, make: Callable[[Path], Any], failures: tuple[Failure, ...], repeat: int
) -> dict[str, Taken]:
    found: dict[str, Taken] = {}
    async with make(place) as pair:
        for failure in failures:
            taken = found[failure.title] = Taken()
            for _ in range(repeat):
                await _once(pair, failure, taken)
            print(f"# {failure.title}: {repeat} times", file=sys.stderr, flush=True)
        await pair.equal_and_nothing_lost()
    return found


def table(found: dict[str, Taken], repeat: int) -> list[str]:
    """Median and worst."""
    lines = [
        f"{repeat} times each, seconds, default timing",
        f"{'failure':46}{'start_prim':>12}{'worst':>8}{'service':>10}{'worst':>8}",
    ]
    for title, taken in found.items():
        cells = "".join(_cells(times) for times in (taken.start_prim_s, taken.service_s))
        lines.append(f"{title:46}{cells}")
    return lines


def _cells(times: list[float]) -> str:
    if not times:
        return f"{'-':>10}{'-':>9}"
    return f"{statistics.median(times):10.2f}{max(times):9.2f}"


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.failover")
    parser.add_argument("--repeat", type=int, default=30, help="times that each failure is made")
    parser.add_argument("--only", default="", help="failures whose title has this in it")
    options = parser.parse_args()
    found: dict[str, Taken] = {}
    plans = (
        ("isolation = run", lambda place: network_pair(place, 1, "run", _DEFAULTS), _PLAIN),
        *_CUTS,
    )
    for _, make, failures in plans:
        chosen = tuple(one for one in failures if options.only in one.title)
        if not chosen:
            continue
        with tempfile.TemporaryDirectory(prefix="hyperha-failover-") as place:
            found |= asyncio.run(_measure(Path(place), make, chosen, options.repeat))
    print("\n".join(table(found, options.repeat)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
