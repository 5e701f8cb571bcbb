"""The shell around a core: Persist is a barrier that only a fence overtakes (K1)."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import fields, replace

import pytest

from hyperha.core import actions as a
from hyperha.core import events as e
from hyperha.core.facts import AttachFacts, MarkerState
from hyperha.core.invariants import InvariantBroken
from hyperha.core.options import Config, Timing
from hyperha.core.records import DataLabel, Lineage, Proof, ProofKind, Settings
from hyperha.core.state import Phase, Vm
from hyperha.daemon import module_task
from hyperha.daemon.module_task import ModuleTask, Ports, boottime_ms
from hyperha.domain import Epoch, Role
from hyperha.errors import FailedError

pytestmark = pytest.mark.anyio


class World:
    """Every port at once; remembers what was done, in order."""

    def __init__(self) -> None:
        self.done: list[object] = []
        self.gate = threading.Event()
        self.gate.set()
        self.fails = False
        self.news = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.stored: list[Lineage] = []

    def _note(self, what: object) -> None:
        self.done.append(what)
        self.news.set()

    def store(self, lineage: Lineage, settings: Settings) -> None:
        self.loop.call_soon_threadsafe(self._note, "store begins")
        self.gate.wait(10)
        if self.fails:
            raise FailedError("no space left")
        self.stored.append(lineage)
        self.loop.call_soon_threadsafe(self._note, "stored")

    def perform(self, action: a.EngineAction | a.VmAction) -> None:
        self._note(action)

    def send(self, message: object) -> None:
        self._note(message)

    def probe(self, operation: int) -> None:
        self._note(("probe", operation))

    def tell(self, level: a.Level, rule: str, text: str, cause: str) -> None:
        self._note(("tell", rule, text))

    def finish(self, operation_id: str, done: bool, text: str) -> None:
        self._note(("finish", operation_id, done, text))

    def record(self, before: object, stimulus: object, actions: object) -> None:
        pass

    async def until(self, check) -> None:
        async with asyncio.timeout(5):
            while not check():
                self.news.clear()
                await self.news.wait()

    def kinds(self) -> list[str]:
        return [one if isinstance(one, str) else type(one).__name__ for one in self.done]


@pytest.fixture
async def running():
    world = World()
    config = Config("VM1", 1, "node1", "node2", timing=Timing(stall_limit_ms=1000))
    task = ModuleTask(config, Lineage("r1", "node1", "node2"), Settings(), lambda state: None)
    task.connect(Ports(*[world] * len(fields(Ports))))
    job = asyncio.ensure_future(task.run())
    yield world, task
    world.gate.set()
    job.cancel()
    await asyncio.gather(job, return_exceptions=True)
    task.cancel_timers()


def start() -> e.CommandGiven:
    return e.CommandGiven(e.Verb.START, "op1", "ann")


async def test_nothing_behind_a_persist_begins_before_it_is_durable(running):
    world, task = running
    world.gate.clear()
    task.post(start())
    await world.until(lambda: "store begins" in world.kinds())
    # Also what a later event wants done waits for it.
    task.post(e.SettingsChanged("op2", "ann", failover=False))
    await asyncio.sleep(0)
    assert "Attach" not in world.kinds()
    assert ("finish", "op2", True, "done") not in world.done
    world.gate.set()
    await world.until(lambda: ("finish", "op2", True, "done") in world.done)
    kinds = world.kinds()
    assert kinds.index("stored") < kinds.index("Attach")


async def test_a_failed_persist_drops_everything_behind_and_is_told(running):
    world, task = running
    world.fails = True
    task.post(start())
    await world.until(
        lambda: any(one[:2] == ("tell", "K1") for one in world.done if isinstance(one, tuple))
    )
    assert "Attach" not in world.kinds()
    assert not world.stored
    # The core went on from the last durable state, and uncovers what may be covered.
    await world.until(lambda: "Detach" in world.kinds())
    assert task.state.lineage.marker is None


async def test_a_disk_that_does_not_answer_counts_as_failed(running):
    world, task = running
    world.gate.clear()
    begun = boottime_ms()
    task.post(start())
    await world.until(lambda: any("did not answer" in str(one) for one in world.done))
    assert boottime_ms() - begun >= 900


async def test_a_fence_overtakes_a_persist_that_hangs(running):
    world, task = running
    lineage = replace(
        task.state.lineage,
        label=DataLabel.UPTODATE,
        intent_primary=True,
        peer_out=Proof(ProofKind.PEER_SAID_SO, Epoch(1, "node1")),
    )
    task.state = replace(
        task.state,
        lineage=lineage,
        role=Role.ALONE,
        phase=Phase.RUNNING,
        vm=Vm.RUNNING,
        run=3,
        facts=AttachFacts(MarkerState.MATCHES, None, False, 0),
    )
    world.gate.clear()
    task.post(e.SettingsChanged("op2", "ann", failover=False))
    await world.until(lambda: "store begins" in world.kinds())
    task.post(e.LocalDiskFailed("EIO"))
    await world.until(lambda: "KillVm" in world.kinds())
    assert "stored" not in world.kinds()
    assert world.kinds().index("Fence") < world.kinds().index("KillVm")


async def test_a_contradiction_makes_the_module_safe(running, monkeypatch):
    world, task = running

    def broken(state, stimulus):
        raise InvariantBroken("P4: runs without intent")

    monkeypatch.setattr(module_task, "step", broken)
    task.post(start())
    await world.until(lambda: "KillVm" in world.kinds())
    assert "P4" in task.broken
    assert world.kinds().index("Fence") < world.kinds().index("KillVm")


async def test_timers_fire_once_and_can_be_replaced(running):
    _, task = running
    fired: asyncio.Queue[e.Event] = asyncio.Queue()
    task.post = fired.put_nowait  # type: ignore[method-assign]
    task._arm(a.Timer.RETRY, boottime_ms() + 10_000)
    task._arm(a.Timer.RETRY, boottime_ms())
    async with asyncio.timeout(5):
        assert await fired.get() == e.TimerFired(a.Timer.RETRY)
    assert fired.empty()
    task._arm(a.Timer.PAUSE, boottime_ms() + 10)
    task._cancel(a.Timer.PAUSE)
    assert not task._timers


async def test_others_are_told_only_what_is_durable(running):
    """P7: heartbeats speak of the state whose record is stored."""
    world, task = running
    world.gate.clear()
    task.post(start())
    await world.until(lambda: "store begins" in world.kinds())
    assert task.state.role is Role.WAIT
    assert task.durable_state.role is Role.STOP
    world.gate.set()
    await world.until(lambda: task.durable_state.role is Role.WAIT)


async def test_a_state_that_could_not_be_stored_is_never_told(running):
    """P7, K1: the core goes back to what is durable, and so does what others hear."""
    world, task = running
    world.fails = True
    task.post(start())
    await world.until(lambda: "Detach" in world.kinds())
    assert task.durable_state.lineage.marker is None
