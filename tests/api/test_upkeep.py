"""Commands about the copies: who may, where they go, how a verification is followed."""

from __future__ import annotations

import asyncio
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hyperha.api.service import Caller
from hyperha.api.wire import ActionOptions, ActionRequest, OperationView
from hyperha.core.facts import Shortage
from hyperha.core.state import Link, Phase
from hyperha.daemon import verifying
from hyperha.daemon.observed import Observed
from hyperha.daemon.operations import Operations
from hyperha.daemon.safety_copies import SafetyKeeper
from hyperha.daemon.upkeep import Upkeep
from hyperha.daemon.verifying import Verifying
from hyperha.domain import Role
from hyperha.errors import (
    BusyError,
    DeniedError,
    HyperhaError,
    RefusedError,
    ReplicationError,
    UnreachableError,
    UsageError,
)
from hyperha.replication.control import (
    Difference,
    SafetyCopies,
    StartVerify,
    StopVerify,
    VerifyTold,
)
from hyperha.replication.safety.copy import Facts, State
from tests.api.test_views import _other, _report
from tests.support.fake_service import KEPT

pytestmark = pytest.mark.anyio
ANN = Caller("ann", "admin", "local")
CAROL = Caller("carol", "control", "local")


class Host:
    """A module's host with an engine that answers as it is told to."""

    def __init__(self, place: Path, role: Role = Role.PRIM) -> None:
        link = Link.IN_SYNC if role in (Role.PRIM, Role.SECOND) else Link.NONE
        self.name, self.node, self.peer = "VM1", "node1", "node2"
        self.state = SimpleNamespace(role=role, link=link, phase=Phase.RUNNING)
        self.observed = Observed(place, "node1 VM1")
        self.lines: list[tuple[str, str]] = []
        self.reached: list[tuple[int, int]] = []
        self.ended: list[tuple[str, bool, str]] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.asked: list[object] = []
        self.steps: list[VerifyTold] = []
        self.failure: HyperhaError | None = None
        self.engine = self.around = self
        self.safety = SimpleNamespace(views=[], busy="")
        self.verifying = Verifying(self)

    def go(self, work: Any) -> None:
        self.tasks.append(asyncio.ensure_future(work))

    def log(self, level: str, source: str, rule: str, text: str) -> None:
        assert rule in ("R17", "R15")
        self.lines.append((level, text))

    def finished(self, operation: str, done: bool, text: str) -> None:
        self.ended.append((operation, done, text))

    def changed(self) -> None:
        pass

    def progressed(self, operation: str, done_bytes: int, total_bytes: int) -> None:
        self.reached.append((done_bytes, total_bytes))

    async def ask(self, make: Any, kind: type, *, silence_s: float, told: Any) -> VerifyTold:
        self.asked.append(make(5))
        *before, last = self.steps or [VerifyTold(5, finished=True)]
        for step in before:
            told(step)
            await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        return last

    def tell(self, question: object) -> None:
        self.asked.append(question)

    async def run(self, *, repair: bool = False) -> None:
        operation = OperationView(
            id="o1",
            module="VM1",
            node="node1",
            verb="verify",
            by="ann",
            state="running",
            text="",
            started="s",
        )
        self.verifying.begin(operation, repair, 4)
        await asyncio.gather(*self.tasks)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def _step(done: int, **changes: Any) -> VerifyTold:
    return VerifyTold(5, done_bytes=done << 20, total_bytes=100 << 20, **changes)


async def test_a_verification_is_logged_by_tenths_and_told_once_a_second(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(0, 100_000, 400))
    monkeypatch.setattr(verifying, "boottime_ms", lambda: next(now))
    host.steps = [_step(n) for n in range(0, 100, 5)] + [_step(100, objects=7, finished=True)]
    await host.run()
    assert host.asked == [StartVerify(5, False)]
    first, *between, last = [text for _, text in host.lines]
    assert first == "compares both copies, by ann"
    assert between[0] == "10.0 MiB of 100 MiB compared: no difference so far"
    assert len(between) == 9
    assert last == "compared 7 files and directories with 100 MiB: equal"
    assert host.ended == [("o1", True, last)]
    assert 0 < len(host.reached) <= 20 * 400 // 1000
    assert host.verifying.operation is None
    found = host.observed.verify.last
    assert found is not None
    assert (found.serial, found.complete, found.left, found.by) == (4, True, 0, "ann")


async def test_a_slow_verification_is_logged_once_a_minute(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(0, 10**9, 10_000))
    monkeypatch.setattr(verifying, "boottime_ms", lambda: next(now))
    host.steps = [_step(1)] * 18 + [_step(100, finished=True)]
    await host.run()
    assert 2 <= len(host.lines) - 2 <= 4


@pytest.mark.parametrize(
    ("repair", "repaired", "others", "done"),
    [(False, 0, 0, False), (True, 3, 0, True), (True, 3, 1, False), (True, 2, 0, False)],
)
async def test_only_what_is_mended_or_equal_is_a_success(
    host: Host, repair: bool, repaired: int, others: int, done: bool
) -> None:
    examples = (Difference("disk", 65536, 196608),)
    end = _step(100, blocks=3, others=others, repaired=repaired, examples=examples, finished=True)
    host.steps = [end]
    await host.run(repair=repair)
    ((_, ok, text),) = host.ended
    assert ok is done
    assert "3 blocks of 64 KiB differ in disk at 65,536" in text
    assert ("by a resync now" in text) == bool(repair and others)
    assert (host.observed.verify.standing is None) is done
    again = Observed(host.observed._record.path.parent, "node1 VM1")
    assert again.load() == ""
    assert again.verify == host.observed.verify
    assert host.lines[-1][0] == ("I" if done else "E")


async def test_a_verification_whose_process_dies_keeps_what_it_found(host: Host) -> None:
    host.steps = [_step(10, blocks=1), _step(0)]
    host.failure = ReplicationError("the replication process has ended")
    await host.run()
    ((_, ok, text),) = host.ended
    assert not ok
    assert text.startswith("not complete, the replication process has ended")
    assert isinstance(host.asked[-1], StopVerify)
    standing = host.observed.verify.standing
    assert standing is not None
    assert (standing.complete, standing.left) == (False, 1)


@pytest.mark.parametrize(
    ("role", "text"),
    [(Role.ALONE, "no equal copy"), (Role.SECOND, "node1 is SECOND"), (Role.STOP, "node1 is STOP")],
)
async def test_copies_are_compared_only_beside_an_equal_one(
    tmp_path: Path, role: Role, text: str
) -> None:
    assert text in Host(tmp_path, role).verifying.refusal()
    assert Host(tmp_path).verifying.refusal() == ""


# --- commands -----------------------------------------------------------------------------


class Peer:
    """The other node, which does not answer."""

    async def verify_report(self, module: str) -> None:
        raise UnreachableError("node2 does not answer")


def upkeep(report: Any = None) -> tuple[Upkeep, Operations]:
    operations = Operations("node1", lambda view: None)
    daemon = SimpleNamespace(peer_report=report, peer_api=Peer())
    return Upkeep(daemon, operations), operations


def request(verb: str, node: str | None = None, **options: Any) -> ActionRequest:
    sent = ActionOptions(**options)
    return ActionRequest(verb=verb, node=node, request_id=secrets.token_hex(8), options=sent)


async def test_safety_copies_are_for_administrators(host: Host) -> None:
    keeper, _ = upkeep()
    for verb in ("safety-restore", "safety-delete"):
        with pytest.raises(DeniedError, match="admin is needed"):
            await keeper.begin(host, request(verb, id="a", to="/x"), CAROL)
    assert host.lines == []


@pytest.mark.parametrize("options", [{}, {"id": "a"}, {"id": "a", "to": "x/y"}, {"to": "/x"}])
async def test_a_restore_needs_a_copy_and_an_absolute_place(host: Host, options: Any) -> None:
    keeper, _ = upkeep()
    with pytest.raises(UsageError):
        await keeper.begin(host, request("safety-restore", **options), ANN)


async def test_one_verification_at_a_time_and_only_one_that_runs_is_stopped(host: Host) -> None:
    keeper, _ = upkeep()
    with pytest.raises(RefusedError, match="no verification runs"):
        await keeper.begin(host, request("verify-stop"), ANN)
    await keeper.begin(host, request("verify"), ANN)
    with pytest.raises(BusyError, match="begun by ann"):
        await keeper.begin(host, request("verify"), CAROL)
    await keeper.begin(host, request("verify-stop"), CAROL)
    assert isinstance(host.asked[-1], StopVerify)
    await asyncio.gather(*host.tasks)
    await keeper.begin(host, request("verify"), CAROL)
    await asyncio.gather(*host.tasks)


async def test_commands_go_to_the_node_that_they_concern(tmp_path: Path) -> None:
    side = _report(Role.PRIM, None)
    held = side.model_copy(update={"side": side.side.model_copy(update={"safety_copies": [KEPT]})})
    keeper, _ = upkeep(_other("node2", held))
    second, prim = Host(tmp_path, Role.SECOND), Host(tmp_path)
    where = keeper.node_for
    assert where(second, request("verify", "node1")) == "node2"
    assert where(prim, request("verify", "node2")) == "node1"
    assert where(prim, request("safety-delete", id=KEPT.id)) == "node2"
    assert where(prim, request("safety-delete", id="other")) == "node1"
    assert where(prim, request("safety-delete", "node1", id=KEPT.id)) == "node1"
    alone, _ = upkeep(None)
    assert alone.node_for(second, request("verify")) == "node2", "whom it follows"
    stale, _ = upkeep(_other("node2", _report(Role.WAIT, None)))
    assert stale.node_for(second, request("verify")) == "node2"


async def test_a_verification_asked_for_twice_is_not_refused_for_its_own_sake(host: Host) -> None:
    """A client that heard nothing asks again, by the same request, while the first is still waiting
    for what the other node knows."""
    keeper, operations = upkeep()
    both = request("verify")
    first, second = await asyncio.gather(
        keeper.begin(host, both, ANN), keeper.begin(host, both, ANN)
    )
    assert first.operation == second.operation == operations.repeated(both.request_id)
    await asyncio.gather(*host.tasks)
    assert len([one for one in host.asked if isinstance(one, StartVerify)]) == 1


def keeper_of(answers: list[SafetyCopies]) -> SafetyKeeper:
    """Of a module whose copies are kept for 7 days, and whose engine answers so."""

    async def ask(make: object, kind: type, *, silence_s: float) -> SafetyCopies:
        return answers.pop(0)

    engine = SimpleNamespace(ask=ask)
    state = SimpleNamespace(attached=True, unknown_data=False, phase=Phase.RUNNING)
    config = SimpleNamespace(safety_copy=SimpleNamespace(keep_days=7))
    around = SimpleNamespace(changed=lambda: None)
    return SafetyKeeper(
        SimpleNamespace(
            name="VM1", node="node1", engine=engine, state=state, config=config, around=around
        )
    )


async def test_when_a_copy_ends_is_told_by_how_long_it_was_kept() -> None:
    """Not by when it was opened: by a clock that was wrong then, or long before it was kept."""
    day_ms = 86_400_000
    kept = Facts("c1", 0, State.KEPT, True, "R9", "ab", 1, lived_ms=2 * day_ms)
    opened = Facts("c2", 0, State.OPEN, True, "R9", "ab", 1)
    keeper = keeper_of([SafetyCopies(1, (kept, opened)), SafetyCopies(2, (kept, opened))])
    first, second = await keeper.look()
    assert second.expires == ""
    ends = datetime.fromisoformat(first.expires)
    left = ends - datetime.now(UTC)
    assert timedelta(days=5) - timedelta(seconds=5) < left <= timedelta(days=5, minutes=10)
    assert (ends.minute % 10, ends.second) == (0, 0), "the same at the next look"


async def test_a_copy_that_takes_room_and_must_not_go_is_a_reason() -> None:
    """N3: it is said for as long as room is short, with what to do."""
    stands = Facts("c1", 0, State.KEPT, True, "R9", "ab", 1, gives_up=True)
    goes = Facts("c2", 0, State.KEPT, True, "R7", "ab", 1)
    answers = [SafetyCopies(1, (stands, goes), lacks=Shortage(5 << 20, 1 << 20))]
    answers.append(SafetyCopies(2, (stands, goes)))
    keeper = keeper_of(answers)
    await keeper.look()
    (reason,) = keeper.reasons()
    assert (reason.code, reason.node) == ("safety-room", "node1")
    assert "c1" in reason.text
    assert "c2" not in reason.text
    assert "safety VM1 delete" in reason.fix
    await keeper.look()
    assert keeper.reasons() == []
