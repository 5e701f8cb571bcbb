"""What two real daemons cost while their module's VM does nothing (`sleep infinity`)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import psutil

from hyperha.demo.cluster import MODULE, NODES
from hyperha.demo.observer import Observer
from tests.acceptance.pair import DAEMON, ENGINE, GUARDIAN, Pair, PairOptions, free_ports
from tests.benchmarks.table import Verdict, within

_CORE_PERCENT: Final = 1.0
_MIB: Final = 80.0
_SETTLE_S: Final = 3.0
_KINDS: Final = {"daemon": DAEMON, "replication process": ENGINE, "guardian": GUARDIAN}


class IdlePair(Pair):
    """The demonstration's cluster at its default timing, with a VM that sleeps."""

    def _module_file(self, node: str, application: Path) -> str:
        del application
        return (
            "schema = 1\n"
            f'name = "{MODULE}"\nnumber = 1\nfolder = "{self.folder(node)}"\n'
            'driver = "process"\nboot = "on"\n\n'
            '[driver_options]\ncommand = ["/bin/sleep", "infinity"]\n'
        )


async def _watch(base: Path, seconds: float) -> dict[str, list[tuple[float, float]]]:
    """Per kind of process, on each node: percent of a core, MiB resident."""
    observer = Observer()
    cluster = IdlePair(base, free_ports(), observer, PairOptions(timing=None))
    try:
        await cluster.create(temporary=True)
        await asyncio.gather(*(cluster.start(node) for node in NODES))
        await cluster.act("node1", "prim")
        await cluster.roles(30, node1="PRIM", node2="SECOND")
        await asyncio.sleep(_SETTLE_S)
        watched = {
            kind: [psutil.Process(cluster.one(node, command)) for node in NODES]
            for kind, command in _KINDS.items()
        }
        before = {one.pid: _busy_s(one) for kind in watched.values() for one in kind}
        await asyncio.sleep(seconds)
        return {
            kind: [
                (
                    (_busy_s(one) - before[one.pid]) * 100 / seconds,
                    one.memory_info().rss / (1 << 20),
                )
                for one in processes
            ]
            for kind, processes in watched.items()
        }
    finally:
        await asyncio.shield(cluster.close())
        observer.close()


def _busy_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def idle(base: Path, seconds: float) -> list[Verdict]:
    """The daemon against its budget; the other processes of a node are printed."""
    found = asyncio.run(_watch(base, seconds))
    verdicts = []
    for kind, nodes in found.items():
        core, mib = max(one[0] for one in nodes), max(one[1] for one in nodes)
        if kind == "daemon":
            verdicts.append(within("idle daemon, core", core, _CORE_PERCENT, "%", ".2f"))
            verdicts.append(within("idle daemon, memory", mib, _MIB, "MiB", ".0f"))
        else:
            verdicts.append(Verdict(f"idle {kind}: {core:.2f} % of a core, {mib:.0f} MiB"))
    return verdicts
