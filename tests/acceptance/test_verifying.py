"""C07: what differs is found under load, located and mended; what a return would move is told."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hyperha.api.wire import ActionRequest
from hyperha.api.wire_copies import VerifyView
from hyperha.client.node_client import NodeClient
from hyperha.demo.cluster import MODULE
from hyperha.errors import BusyError, RefusedError
from tests.acceptance.pair import DAEMON, Pair

pytestmark = pytest.mark.anyio
BLOCK = 64 * 1024
SIZE = 16 << 20
SECONDS = float(os.environ.get("HYPERHA_VERIFY_SECONDS", "5"))


@contextmanager
def writing(path: Path, seed: int) -> Iterator[None]:
    """Full load: random writes, now and then with fsync, in another file of the folder."""
    chance, stop = random.Random(seed), threading.Event()
    print(f"seed {seed}")

    def load() -> None:
        with path.open("r+b", buffering=0) as file:
            while not stop.is_set():
                os.pwrite(
                    file.fileno(), chance.randbytes(4096), chance.randrange(SIZE // 4096) * 4096
                )
                if chance.random() < 0.02:
                    os.fsync(file.fileno())

    thread = threading.Thread(target=load)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def below_the_mount(pair: Pair, node: str) -> Path:
    """The plain folder of a node while it is covered: through the descriptor that its daemon
    keeps for a successor (M4)."""
    folder = pair.folder(node)
    covering = os.stat(folder).st_dev
    place = Path(f"/proc/{pair.one(node, DAEMON)}/fd")
    for one in place.iterdir():
        try:
            if os.readlink(one) == str(folder) and os.stat(one).st_dev != covering:
                return one
        except OSError:
            continue
    raise AssertionError(f"{place} holds no {folder}")


def turn_a_bit(path: Path, offset: int) -> None:
    """As a disk does that forgets: the times stay as they are."""
    status = path.stat()
    descriptor = os.open(path, os.O_RDWR)
    try:
        byte = os.pread(descriptor, 1, offset)
        os.pwrite(descriptor, bytes((byte[0] ^ 1,)), offset)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


async def told(pair: Pair, node: str, *arguments: str) -> tuple[int, Any]:
    """A command's exit status and its JSON."""
    status, said = await pair.cli(node, "--json", *arguments)
    print(arguments, status, said[:2000])
    try:
        return status, json.loads(said)
    except ValueError:
        return status, said


async def verified(pair: Pair, node: str, *, repair: bool = False) -> tuple[str, VerifyView]:
    """A verification asked of a node: how its operation ended, and what was found."""
    view = await pair.command(node, "verify", repair=repair)
    async with NodeClient(pair.target(node)) as client:
        found = (await client.verify_report(MODULE)).last
    assert found is not None
    print(view.state, found)
    return view.state, found


async def test_c07_a_turned_bit_is_found_under_load_located_and_mended(protected: Pair) -> None:
    pair = protected
    folder = pair.folder("node1")
    for name in ("disk.img", "busy.img"):
        with (folder / name).open("wb") as file:
            file.write(random.Random(7).randbytes(SIZE))
            os.fsync(file.fileno())
    place = 5 * (1 << 20) + 3 * BLOCK + 17
    with writing(folder / "busy.img", 11):
        state, found = await verified(pair, "node1")
        assert (state, found.complete, found.left, found.differences) == ("done", True, 0, [])
        assert found.done_bytes >= 2 * SIZE
        turn_a_bit(below_the_mount(pair, "node2") / "disk.img", place)
        # Asked of the node that does not run it: it is forwarded.
        status, raw = await told(pair, "node2", "verify", MODULE)
        assert status == 1
        found = VerifyView.model_validate(raw)
        (difference,) = found.differences
        assert (found.blocks, found.left, found.repaired) == (1, 1, 0)
        assert difference.path == "disk.img"
        assert (difference.offset, difference.length) == (place // BLOCK * BLOCK, BLOCK)
    async with NodeClient(pair.target("node1")) as client:
        (reason,) = await client.preflight(MODULE)
    assert (reason.code, reason.node) == ("copies-differ", "node1")
    assert "disk.img" in reason.text
    assert reason.fix == f"hyperha verify {MODULE} --repair"
    await pair.log_has("node1", "1 block of 64 KiB differs in disk.img")
    with writing(folder / "busy.img", 13):
        status, raw = await told(pair, "node1", "verify", MODULE, "--repair")
        assert status == 0
        assert (raw["blocks"], raw["repaired"], raw["left"]) == (1, 1, 0)
        state, found = await verified(pair, "node1")
        assert (state, found.blocks) == ("done", 0)
        await one_at_a_time_until_stopped(pair)
    async with NodeClient(pair.target("node1")) as client:
        assert await client.preflight(MODULE) == []
    plain = below_the_mount(pair, "node2") / "disk.img"
    assert plain.read_bytes() == (folder / "disk.img").read_bytes()
    await pair.equal_and_nothing_lost()


async def one_at_a_time_until_stopped(pair: Pair) -> None:
    large = pair.folder("node1") / "large.img"
    with large.open("wb") as file:
        # Takes many times longer to compare than the commands below.
        file.truncate(8 << 30)
    async with NodeClient(pair.target("node1")) as client:
        request = ActionRequest(verb="verify", request_id=os.urandom(8).hex())
        begun = (await client.act(MODULE, request)).operation
        again = ActionRequest(verb="verify", request_id=os.urandom(8).hex())
        with pytest.raises(BusyError, match="runs already"):
            await client.act(MODULE, again)
        assert (await pair.command("node2", "verify-stop")).state == "done"

        async def ended() -> bool:
            return (await client.operation(begun)).state == "failed"

        await pair.eventually(ended, 10, "the verification to end")
        assert "it was stopped" in (await client.operation(begun)).text
    large.unlink()


@pytest.mark.timeout(SECONDS + 120)
async def test_c07_verifications_under_load_raise_no_false_alarm(
    protected: Pair, record_property: Callable[[str, object], None]
) -> None:
    """R17: one after the other while everything changes, also names and sizes, with repair and
    without; two equal copies are never found to differ. HYPERHA_VERIFY_SECONDS says for how long.
    """
    pair = protected
    folder = pair.folder("node1")
    with (folder / "busy.img").open("wb") as file:
        file.write(random.Random(7).randbytes(SIZE))
        os.fsync(file.fileno())
    count, end = 0, time.monotonic() + SECONDS
    with writing(folder / "busy.img", 11), coming_and_going(folder):
        while time.monotonic() < end:
            state, found = await verified(pair, "node1", repair=count % 2 == 1)
            assert (state, found.complete, found.left, found.differences) == ("done", True, 0, [])
            count += 1
    record_property("verifications", count)
    print(f"{count} verifications in {SECONDS:.0f} s, no false alarm")
    await pair.equal_and_nothing_lost()


@contextmanager
def coming_and_going(folder: Path) -> Iterator[None]:
    """Files that are made, grow, shrink, move and go, without an end."""
    over, problems = threading.Event(), []

    def work() -> None:
        dice = random.Random(3)
        place = folder / "coming"
        place.mkdir()
        try:
            while not over.is_set():
                path = place / f"f{dice.randrange(30)}"
                path.write_bytes(dice.randbytes(dice.randrange(300_000)))
                os.truncate(path, dice.randrange(400_000))
                path.chmod(dice.choice((0o600, 0o644)))
                path.rename(place / f"f{dice.randrange(30)}")
                (place / f"f{dice.randrange(30)}").unlink(missing_ok=True)
        except OSError as problem:
            problems.append(problem)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert not problems, problems


async def test_a_plan_before_a_return_and_what_differs(protected: Pair) -> None:
    pair = protected
    async with NodeClient(pair.target("node1")) as one, NodeClient(pair.target("node2")) as two:
        assert "in sync" in (await two.plan(MODULE)).text
        await pair.act("node2", "stop")
        await pair.roles(10, node1="ALONE", node2="STOP")
        (pair.folder("node1") / "new.bin").write_bytes(os.urandom(3 << 20))
        await pair.more_orders(10)
        for client in (one, two):
            plan = await client.plan(MODULE)
            print(plan)
            assert (plan.agree, plan.moves) == (True, True)
            rules = {node: verdict.rule for node, verdict in plan.verdicts.items()}
            assert rules == {"node1": "R7", "node2": "R6"}
            verdict = plan.verdict
            assert (verdict.source, verdict.target) == ("node1", "node2")
            assert verdict.start == "candidates"
            assert 3 << 20 <= (plan.bytes or 0) < 64 << 20
            assert plan.safety.kind == "best_effort"
            assert plan.safety.fits is not None
            assert plan.time_text == "unknown: nothing was copied yet" or plan.bytes_per_s
        found = await two.diff(MODULE)
        listed = {entry.path for entry in found.copies["node1"].candidates.listed}
        assert {"new.bin", "orders.db"} <= listed
        assert found.copies["node1"].alone_since
        assert not found.copies["node2"].alone_since
        with pytest.raises(RefusedError, match="node1"):
            await one.plan(MODULE, "node1")
        with pytest.raises(RefusedError, match="no equal copy"):
            await pair.command("node2", "verify")
        status, said = await pair.cli("node1", "diff", MODULE)
        assert status == 0
        assert "new.bin" in said
        before = _everything_of(pair.folder("node2"))
        await two.plan(MODULE)
        await two.diff(MODULE)
        assert _everything_of(pair.folder("node2")) == before, "looking changed the folder"
        await pair.act("node2", "start")
        await pair.roles(40, node1="PRIM", node2="SECOND")
        plan = await one.plan(MODULE)
        assert "in sync" in plan.text
        assert plan.copies["node1"].resync_bytes_per_s, "the pace of a resync is remembered"
    await pair.equal_and_nothing_lost()


def _everything_of(folder: Path) -> dict[str, tuple[int, int]]:
    paths = sorted([folder, *folder.rglob("*")])
    return {str(one): (one.lstat().st_mtime_ns, one.lstat().st_ctime_ns) for one in paths}
