"""Nothing that must happen waits for what may hang: a log, an audit, a stranger, another's disk."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hyperha.core import actions as a
from hyperha.core.events import VmDone
from hyperha.core.records import Lineage, Settings
from hyperha.daemon.engine_host import Kept
from hyperha.daemon.fencing import ABORT_FILE
from hyperha.daemon.guardian import Armed, Guardian
from hyperha.daemon.module_task import ModuleTask
from hyperha.daemon.operations import Operations
from hyperha.daemon.records import ModuleRecords
from hyperha.daemon.service import Service
from hyperha.daemon.steps import StepArchive
from hyperha.daemon.vm_host import Stops, VmHost
from hyperha.demo.cluster import until
from hyperha.domain import Epoch
from hyperha.durable import DurableRecord
from hyperha.logbook.audit import Audit
from hyperha.logbook.outputs import OutputArchive
from hyperha.scripts.runner import ScriptRunner
from hyperha.spawn import looking
from hyperha.spawn.looking import MARKER
from hyperha.spawn.tree import ProcessTree
from hyperha.threads import OwnThread, in_own_thread
from hyperha.vm.port import StopMode, VmSpec
from hyperha.vm.process import ProcessDriver
from tests.api.test_routes import request

pytestmark = pytest.mark.anyio
MODULES = (os.cpu_count() or 1) + 8
"""More than asyncio's pool has threads."""


@pytest.fixture
def hung() -> Iterator[threading.Event]:
    """What does not answer until the test ends."""
    event = threading.Event()
    yield event
    event.set()


async def until_posted(posted: list[Any], count: int = 1, limit_s: float = 10) -> None:
    async def enough() -> bool:
        return len(posted) >= count

    await until(enough, limit_s, "an answer")


def host_of(posted: list[Any], spec: VmSpec | None = None, **parts: Any) -> VmHost:
    async def yes() -> bool:
        return True

    async def cut() -> None:
        return None

    spec = spec or VmSpec("VM1", 1, "node1", "node2", "/none", {})
    stops = Stops(StopMode.STOP, StopMode.OFF, 2)
    found = {"scripts": None, "steps": None, "guardian": None, **parts}
    return VmHost(
        spec, stops, found["scripts"], found["steps"], found["guardian"], posted.append, yes, cut
    )


# --- threads ------------------------------------------------------------------------------


async def test_what_was_given_up_is_not_begun(hung: threading.Event) -> None:
    thread, did = OwnThread("test"), []
    first = asyncio.ensure_future(thread.do(hung.wait))
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await thread.do(did.append, 1)
    last = asyncio.ensure_future(thread.do(did.append, 2))
    await asyncio.sleep(0)
    hung.set()
    await asyncio.gather(first, last)
    assert did == [2]


async def test_a_failure_is_told() -> None:
    with pytest.raises(ZeroDivisionError):
        await in_own_thread("test", lambda: 1 // 0)


async def test_a_fence_waits_for_no_disk(
    tmp_path: Path, hung: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K1, L5': every module's record hangs; what a failed record asks for is done nevertheless."""
    lineage, settings = Lineage("ab" * 16, "node1", "node2"), Settings()
    stores = []
    for number in range(MODULES):
        place = tmp_path / f"m{number}"
        place.mkdir()
        records = ModuleRecords(place, "node1", f"m{number}")
        records.store(lineage, settings)
        stores.append(records)
    monkeypatch.setattr(DurableRecord, "_overwrite", lambda *_: hung.wait())
    tasks = [
        ModuleTask(SimpleNamespace(module="m"), lineage, settings, lambda _: None)  # type: ignore[arg-type]
        for _ in stores
    ]

    async def persist(task: ModuleTask, records: ModuleRecords) -> None:
        storing = task._records_thread.do(records.store, lineage, replace(settings, boot="off"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(storing, 0.2)

    await asyncio.gather(*map(persist, tasks, stores))
    reading, writing = os.pipe()
    posted: list[Any] = []
    host = host_of(posted)
    host._kept = Kept(("fence",), (writing,), "abort-file")
    host.perform(a.Fence(7))
    await until_posted(posted)
    assert posted == [VmDone(7, True)]
    assert os.read(reading, 8) == b"1"
    os.close(reading)
    os.close(writing)


# --- a log that cannot be written ---------------------------------------------------------


class FullArchive(OutputArchive):
    """On a disk without room."""

    def store(self, *_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")


class HungArchive(OutputArchive):
    """On a disk that does not answer."""

    def __init__(self, directory: Path, hung: threading.Event) -> None:
        super().__init__(directory)
        self._hung = hung

    def store(self, *_: Any, **__: Any) -> Any:
        self._hung.wait()
        raise OSError(errno.EIO, "given up")


@pytest.mark.parametrize("how", ["full", "hung"])
async def test_a_vm_starts_and_stops_without_its_log(
    tmp_path: Path, hung: threading.Event, how: str
) -> None:
    """B09 is about the VM: what is wrong with the archive of outputs changes nothing for it."""

    class Guardian:
        connected = True

        async def arm(self, *_: object, **__: object) -> None:
            return None

    (tmp_path / "folder").mkdir()
    spec = VmSpec(
        "VM1", 1, "node1", "node2", str(tmp_path / "folder"), {"command": ["/bin/sleep", "1000"]}
    )
    said: list[str] = []
    archive = FullArchive(tmp_path) if how == "full" else HungArchive(tmp_path, hung)
    steps = StepArchive("VM1", "node1", archive, lambda *line: said.append(line[3]))
    scripts = ScriptRunner("VM1", tmp_path / "scripts", place=None, timeout_s=5)
    posted: list[Any] = []
    host = host_of(posted, spec, scripts=scripts, steps=steps, guardian=Guardian())
    host.use(ProcessDriver(spec, place=None, on_exit=host.on_exit))
    try:
        host.perform(a.StartVm(1, 1, Epoch(1, "node1"), True))
        await until_posted(posted)
        assert posted[0].ok, posted[0]
        host.perform(a.StopVm(2, 1, False))
        await until_posted(posted, 2)
        assert posted[1].ok, posted[1]
    finally:
        await host.close()
    hung.set()
    await steps.close()
    assert sum("cannot be kept on the disk" in line for line in said) == 2
    start = next(run for run in steps.runs() if run.script == "start_prim")
    assert any("done after" in line.text for line in (await steps.output(start.id)).output)


async def test_reading_an_output_keeps_nobody_waiting(
    tmp_path: Path, hung: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = OutputArchive(tmp_path)
    steps = StepArchive("VM1", "node1", archive, lambda *_: None)
    run = steps.begin("start_prim")
    steps.end(run, True, "")
    await steps.close()
    monkeypatch.setattr(OutputArchive, "read", lambda *_: hung.wait(10))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(steps.output(run.id), 0.1)
    assert not hung.is_set()


# --- the audit ----------------------------------------------------------------------------


async def test_a_command_is_carried_out_without_its_audit(tmp_path: Path) -> None:
    """It is told in the log instead; a repetition is the same operation, and begins nothing."""
    posted: list[Any] = []
    untold: list[tuple[str, str]] = []
    audit = Audit(tmp_path / "audit", lambda line, why: untold.append((line, why)))
    (tmp_path / "audit").write_text("a file where the directory should be")
    service: Any = object.__new__(Service)
    service.node, service.peer = "node1", "node2"
    host = SimpleNamespace(
        name="VM1", operation=None, post=posted.append, task=SimpleNamespace(broken="")
    )
    service._daemon = SimpleNamespace(modules={"VM1": host}, audit=audit)
    service.operations = Operations("node1", lambda _: None)
    service._check = lambda *_: None

    async def fine(*_: object) -> None:
        await asyncio.sleep(0)  # Both may be here at once.

    service._check_folder = fine
    caller = SimpleNamespace(name="ann", role="admin", origin="local", peer_node="")
    asked = request("stop")
    first, second = await asyncio.gather(
        service.act("VM1", asked, caller), service.act("VM1", asked, caller)
    )
    assert first == second
    assert [event.operation_id for event in posted] == [first.operation]
    audit.close()
    ((line, why),) = untold
    assert json.loads(line)["what"] == "stop VM1"
    assert why


def test_the_audit_is_one_line_each(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit", lambda *_: None)
    for number in range(3):
        audit.note({"what": f"stop VM{number}"})
    audit.close()
    lines = (tmp_path / "audit" / "audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["what"] for line in lines] == ["stop VM0", "stop VM1", "stop VM2"]


def test_a_line_that_finds_no_room_leaves_the_next_one_whole(tmp_path: Path) -> None:
    failed: list[str] = []
    audit = Audit(tmp_path / "audit", lambda line, _: failed.append(line))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    audit.note({"what": "first"})
    while not (tmp_path / "audit" / "audit.jsonl").exists():
        time.sleep(0.01)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        audit.note({"what": "x" * (2 << 20)})
        while not failed:
            time.sleep(0.01)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    audit.note({"what": "last"})
    audit.close()
    lines = (tmp_path / "audit" / "audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["what"] for line in lines] == ["first", "last"]


def test_an_audit_without_memory_goes_on_with_the_next_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, told = Audit._append, []

    def append(audit: Audit, line: str) -> None:
        if "first" in line:
            raise MemoryError
        real(audit, line)

    monkeypatch.setattr(Audit, "_append", append)
    audit = Audit(tmp_path / "audit", lambda line, why: told.append((json.loads(line), why)))
    audit.note({"what": "first"})
    audit.note({"what": "second"})
    audit.close()
    assert told == [({"what": "first"}, "no memory")]
    assert "second" in (tmp_path / "audit" / "audit.jsonl").read_text()


def test_what_an_audit_cannot_keep_at_its_end_is_told(
    tmp_path: Path, hung: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyperha.logbook.audit.CLOSE_LIMIT_S", 0.1)
    monkeypatch.setattr(Audit, "_append", lambda *_: hung.wait())
    told: list[str] = []
    audit = Audit(tmp_path / "audit", lambda line, _: told.append(json.loads(line)["what"]))
    for number in range(3):
        audit.note({"what": f"stop VM{number}"})
    audit.close()
    audit.note({"what": "late"})
    assert told == ["stop VM0", "stop VM1", "stop VM2", "late"]


# --- strangers ----------------------------------------------------------------------------


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch, hung: threading.Event) -> Iterator[int]:
    """A process whose environment cannot be read."""
    with subprocess.Popen(["/bin/sleep", "100"]) as process:
        real = looking._marker_of

        def marker_of(one: int) -> str:
            if one == process.pid:
                hung.wait()
            return real(one)

        monkeypatch.setattr(looking, "_marker_of", marker_of)
        monkeypatch.setattr(looking, "SILENT_S", 0.2)
        yield process.pid
        process.kill()


def test_a_stranger_that_cannot_be_looked_at_hides_nobody(
    stranger: int, hung: threading.Event
) -> None:
    """Others are found and killed; nobody says that all are gone before it could be looked at."""
    environment = {**os.environ, MARKER: "run-1"}
    command = [sys.executable, "-c", "import time; time.sleep(100)"]
    with subprocess.Popen(command, env=environment, start_new_session=True) as own:
        run = ProcessTree("run-1")
        assert run.members() == [own.pid]
        run.kill()
        own.wait(10)
    threads = threading.active_count()
    at = time.monotonic()
    for _ in range(20):
        assert run.members() == [stranger]
    assert time.monotonic() - at < 4, "it is asked once, and waited for once"
    assert threading.active_count() <= threads
    hung.set()
    while run.members():
        time.sleep(0.01)


def test_with_a_cgroup_a_stranger_is_no_matter(stranger: int, tmp_path: Path) -> None:
    del stranger
    (tmp_path / "cgroup.procs").write_text("")
    assert ProcessTree("run-1", str(tmp_path)).members() == []


def test_all_are_fenced_before_any_process_is_looked_for() -> None:
    """L5': looking for the processes of one module may take its time; no other one waits for it."""
    did: list[str] = []

    class Tree(ProcessTree):
        def kill_group(self) -> None:
            did.append("group")

        def kill(self, *, thorough: bool = True) -> None:
            did.append(f"search {thorough}")

    guardian: Any = object.__new__(Guardian)
    guardian._acting, guardian._armed = [], {}
    guardian._log = guardian._notify = lambda _: None
    pipes = [os.pipe() for _ in range(2)]
    for number, (_, writing) in enumerate(pipes):
        fences = ((ABORT_FILE, writing),)
        one = Armed(f"m{number}", number, 1, Epoch(1, "n"), (Tree("r"),), fences, "", True)
        guardian._armed[one.module] = one
    guardian._fire(list(guardian._armed.values()), "test")
    assert did == ["group", "group", "search True", "search True"]
    assert [one.fired_ms is not None for one in guardian._acting] == [True, True]
    for reading, writing in pipes:
        assert os.read(reading, 8) == b"1"
        os.close(reading)
        os.close(writing)
