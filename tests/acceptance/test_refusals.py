"""Bad input and bad surroundings: one clear sentence, no traceback, nothing lost."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hyperha.api.wire import ActionRequest, Expectation
from hyperha.client.node_client import NodeClient
from hyperha.demo.cluster import ADDRESSES, MODULE, NODES
from hyperha.domain import Role
from hyperha.errors import StaleViewError
from tests.acceptance.pair import Pair
from tests.support import ROOT

pytestmark = pytest.mark.anyio


def clear(said: str, *wanted: str) -> None:
    """One message that has all of it, and no traceback."""
    assert "Traceback" not in said, said
    for text in wanted:
        assert text in said, said
    assert len(said.strip().splitlines()) <= 4, said


def spoil(path: Path, old: str, new: str) -> None:
    """Write one thing wrong."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


async def refused(pair: Pair, path: Path, edit: tuple[str, str], wanted: tuple[str, ...]) -> None:
    """A daemon with a spoilt file does not start, and says why."""
    await asyncio.to_thread(spoil, path, *edit)
    status, said = await pair.cli("node1", "node", "run")
    assert status == 2, said
    clear(said, *wanted)


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("heartbeat_ms", "hartbeat_ms", ("cluster.toml", "hartbeat_ms", "'heartbeat_ms'")),
        ("suspect_ms = 300", 'suspect_ms = "soon"', ("cluster.toml", "suspect_ms", "soon")),
        ("suspect_ms = 300", "suspect_ms = 30000", ("cluster.toml", "suspect_ms")),
        ("[timing]", "[timing", ("cluster.toml", "line")),
        ('nodes = ["node1", "node2"]\n', "", ("cluster.toml", "nodes")),
    ],
)
async def test_wrong_cluster_toml(pair: Pair, old: str, new: str, wanted: tuple[str, ...]) -> None:
    """File, line and key are named, for an unknown key the nearest known one."""
    await refused(pair, pair.homes["node1"].cluster_file, (old, new), wanted)


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("boot = ", "boots = ", ("orders.toml", "boots", "'boot'")),
        ('driver = "process"', 'driver = "qmeu"', ("orders.toml", "driver", "qmeu")),
        ('folder = "/', 'folder = "', ("orders.toml", "folder", "absolute")),
        ("number = 1", "number = 77", ("orders.toml", "number", "77")),
        ("heartbeat = ", "heartbeet = ", ("heartbeet", "'heartbeat'")),
    ],
)
async def test_wrong_module_file(pair: Pair, old: str, new: str, wanted: tuple[str, ...]) -> None:
    """The same for a module's file, down to the driver's own options."""
    await refused(pair, pair.homes["node1"].module_file(MODULE), (old, new), wanted)


async def test_port_taken(pair: Pair) -> None:
    """The port and address are named; nothing was started."""
    text = pair.homes["node1"].cluster_file.read_text(encoding="utf-8")
    port = int(text.partition("\napi = ")[2].split()[0])
    with socket.socket() as taken:
        taken.bind((ADDRESSES["node1"], port))
        taken.listen()
        status, said = await pair.cli("node1", "node", "run")
    assert status == 1, said
    clear(said, str(port), ADDRESSES["node1"])
    assert not pair.mounted("node1")


async def test_second_daemon(pair: Pair) -> None:
    """One daemon per home, the other one goes on."""
    await pair.start("node1")
    status, said = await pair.cli("node1", "node", "run")
    assert status == 3, said
    clear(said, "already runs", str(pair.daemon_pid("node1")))
    assert (await pair.side("node1")).role in ("WAIT", "STOP")


async def test_folder_missing(pair: Pair) -> None:
    """Named with the cure, by preflight and by what would need it; never taken for an empty one."""
    folder = pair.folder("node1")
    text = pair.homes["node1"].module_file(MODULE).read_text(encoding="utf-8")
    pair.homes["node1"].module_file(MODULE).write_text(text.replace('boot = "on"', 'boot = "off"'))
    folder.rmdir()
    await pair.start("node1")
    for verb in ("start", "prim", "second"):
        status, said = await pair.cli("node1", verb, MODULE)
        assert status == 3, said
        clear(said, f"the folder {folder} does not exist on node1", "make the directory")

    async def told() -> bool:
        status, said = await pair.cli("node1", "preflight", MODULE)
        return status == 1 and f"the folder {folder} does not exist" in said

    await pair.eventually(told, 20, "preflight to name the folder")
    assert not folder.exists()
    folder.mkdir()
    await pair.act("node1", "prim")


async def test_small_mistakes_of_operators(pair: Pair) -> None:
    """Each is named; what was meant is not guessed."""
    await pair.start("node1")
    status, said = await pair.cli("node1", "second", MODULE, "--confirm", "oders")
    assert status == 2, said
    clear(said, "'oders'", "'orders'", "nothing was done")
    past = ("--until", "2001-01-01T00:00:00Z", "--reason", "x")
    status, said = await pair.cli("node1", "checker", MODULE, "suspend", *past)
    assert status == 2, said
    clear(said, "2001-01-01T00:00:00Z is not in the future")
    for period in ("soon", "0m", "99999999999d"):
        wrong = ("--for", period, "--reason", "x")
        status, said = await pair.cli("node1", "checker", MODULE, "suspend", *wrong)
        assert status == 2, said
        clear(said, f"--for '{period}' is no duration", "15m")
    for words in (("--json", "state"), ("state", "--json"), ("state", MODULE, "--json")):
        status, said = await pair.cli("node1", *words)
        assert (status, json.loads(said)["answered_by"]) == (0, "node1"), said


async def test_file_system_without_extended_attributes(pair: Pair) -> None:
    """Ids and the marker live there: refused, and the folder stays plain."""
    folder = pair.folder("node1")
    await asyncio.to_thread(
        subprocess.run, ["mount", "-t", "ramfs", "none", str(folder)], check=True
    )
    try:
        await pair.start("node1")
        view = await pair.command("node1", "prim")
        assert view.state == "failed", view
        clear(view.text, str(folder), "Use ext4")
        assert not pair.mounted("node1")
        await pair.kill("node1")
    finally:
        await asyncio.to_thread(subprocess.run, ["umount", "-l", str(folder)], check=True)


async def test_secondary_folder_with_other_data(pair: Pair) -> None:
    """Nothing of it is touched; the two ways on are named; emptied, the node follows."""
    stranger = pair.folder("node2") / "letters.txt"
    stranger.write_text("dear")
    await asyncio.gather(*(pair.start(node) for node in NODES))
    await pair.command("node1", "prim")
    await pair.roles(15, node1="ALONE")

    async def refused() -> bool:
        return "--adopt" in (await pair.side("node2")).why.text

    await pair.eventually(refused, 15, "a refusal that names --adopt")
    text = (await pair.side("node2")).why.text
    assert "empty" in text, text
    await pair.act("node2", "stop")
    assert stranger.read_text() == "dear"
    view = await pair.command("node2", "second", adopt=True)
    assert view.state == "done", view
    await pair.roles(30, node1="PRIM", node2="SECOND")
    await pair.equal_and_nothing_lost()
    assert not stranger.exists()


async def test_unknown_module_and_node(pair: Pair) -> None:
    """What is known is named."""
    await pair.start("node1")
    status, said = await pair.cli("node1", "stop", "oders")
    assert status == 3, said
    clear(said, "oders", "orders")
    status, said = await pair.cli("node1", "stop", "orders", "--node", "node3")
    assert status == 3, said
    clear(said, "node3", "node2")
    status, said = await pair.cli("node1", "ready", "orders")
    assert status == 1, said
    status, said = await pair.cli("node2", "state")
    assert status == 5, said
    clear(said, "node2")


async def test_stale_view(protected: Pair) -> None:
    """409: a command that rests on what is no longer so is not done."""
    async with NodeClient(protected.target("node1")) as client:
        request = ActionRequest(
            verb="stop", request_id=secrets.token_hex(8), expect=Expectation(role=Role.SECOND)
        )
        with pytest.raises(StaleViewError, match="PRIM"):
            await client.act(MODULE, request)
        request = ActionRequest(
            verb="stop", request_id=secrets.token_hex(8), expect=Expectation(generation="old")
        )
        with pytest.raises(StaleViewError):
            await client.act(MODULE, request)
    await protected.roles(5, node1="PRIM", node2="SECOND")


async def test_c12_damaged_record(protected: Pair) -> None:
    """C12: both slots unreadable: never a guess to PRIM, the reason is shown, the file kept."""
    await asyncio.gather(*(protected.kill(node) for node in NODES))
    record = protected.homes["node1"].module_state(MODULE) / "lineage"
    raw = bytearray(record.read_bytes())
    raw[:] = bytes(byte ^ 0x55 for byte in raw)
    record.write_bytes(bytes(raw))
    await asyncio.gather(*(protected.start(node) for node in NODES))

    async def told() -> bool:
        return bool((await protected.side("node1")).damage)

    await protected.eventually(told, 15, "the damage to be shown")
    assert not (await protected.side("node1")).role.runs_vm
    kept = [one.name for one in record.parent.iterdir()]
    assert any(name != "lineage" and name.startswith("lineage") for name in kept), kept
    protected.no_faults()


async def test_demo_without_dev_fuse() -> None:
    """No /dev/fuse: exit 1 and what to do, before anything is made."""
    script = (
        "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/urandom "
        'c 1 9 && exec "$0" -m hyperha.cli.main demo --headless --drill'
    )
    done = await asyncio.to_thread(
        subprocess.run,
        ["unshare", "-m", "sh", "-c", script, sys.executable],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1, done
    clear(done.stdout + done.stderr, "/dev/fuse", "modprobe fuse")


async def test_demo_in_a_directory_that_is_not_empty(tmp_path: Path) -> None:
    """Nothing of it is touched."""
    (tmp_path / "mine").write_text("x")
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "hyperha.cli.main", "demo", "--headless", "--home", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2, done
    clear(done.stdout + done.stderr, str(tmp_path), "not empty")
    assert os.listdir(tmp_path) == ["mine"]
