"""What a session remembers of the kernel when an operation ends with an error (M4, M7, N1)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperha.replication.fuse import protocol
from hyperha.replication.fuse.connection import Connection, Kept
from hyperha.replication.fuse.nodes import Node
from hyperha.replication.fuse.requests_attributes import AttributeRequests
from hyperha.replication.fuse.requests_files import FileRequests
from hyperha.replication.fuse.requests_names import NameRequests
from hyperha.replication.fuse.session import Session
from hyperha.replication.fuse.succession import Progress, SharedTable
from hyperha.replication.operations import ROOT_ID, FileId, Target
from hyperha.replication.store import Store
from tests.support.fuse_local import LocalPipeline

pytestmark = pytest.mark.root

FILE = FileId(b"f" * 16)


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    """One whose kernel takes every answer, over a folder with one file."""
    (tmp_path / "file").write_text("x")
    folder = os.open(tmp_path, os.O_RDONLY)
    store = Store(folder)
    os.close(folder)
    kernel = os.open(os.devnull, os.O_WRONLY)
    one = Connection(store, LocalPipeline(store, None), kernel, SharedTable())
    one.primary = True
    yield one
    one.close()
    store.close()


def looked_up(connection: Connection) -> tuple[Node, bytes]:
    """The node of the file, one lookup counted, and what the kernel is to be answered."""
    store = connection.store
    found = store.find(ROOT_ID, b"file")
    store.assign_id(found.handle, FILE)
    node = connection.nodes.looked_up(found.handle, FILE, directory=False)
    return node, protocol.encode_entry(node.number, store.status(Target(FILE)), 0)


def finish(connection: Connection, payload: bytes, error: int) -> None:
    """As for an operation that a predecessor did and its successor answers."""
    slot = connection.table.start_operation(7, FILE)
    kept = Kept(slot, FILE, Progress.DONE, error, payload)
    connection.finish_kept(7 | protocol.UNIQUE_RESEND, kept)


@pytest.mark.parametrize(("size", "left"), [(10, b"mark"), (2000, b"")])
def test_a_mark_is_there_until_the_result_is(size: int, left: bytes) -> None:
    """M4: noting the result must not write over what tells whether there is one."""
    table = SharedTable()
    slot = table.start_operation(9, FILE, b"mark")
    heir = SharedTable(table.descriptor)
    (begun,) = heir.operations()
    assert (begun.progress, begun.mark, begun.body) == (Progress.STARTED, b"mark", None)
    heir.close()
    body = (0, bytes(size), ())
    table.finish_operation(slot, body)
    heir = SharedTable(table.descriptor)
    (done,) = heir.operations()
    assert (done.progress, done.mark, done.body) == (Progress.DONE, left, body)
    heir.close()
    table.close()


def test_a_kept_entry_that_ends_with_an_error_is_not_looked_up(connection: Connection) -> None:
    node, entry = looked_up(connection)
    finish(connection, entry, errno.EIO)
    assert connection.nodes.known(node.handle) is None
    node, entry = looked_up(connection)
    finish(connection, entry, 0)
    assert connection.nodes.known(node.handle) is node


def test_a_kept_creation_that_ends_with_an_error_is_not_open(connection: Connection) -> None:
    node, entry = looked_up(connection)
    handle = connection.handles.add(node, os.O_WRONLY, 0, None)
    finish(connection, entry + protocol.OPEN_OUT.pack(handle.number, 0, 0), errno.EIO)
    assert connection.nodes.known(node.handle) is None
    assert connection.handles.open_files() == 0
    assert not node.writers


def test_a_kept_removal_that_ends_with_an_error_forgets_nothing(connection: Connection) -> None:
    node, _ = looked_up(connection)
    finish(connection, b"", errno.EIO)
    assert connection.nodes.known(node.handle) is node
    assert node.lookups == 1
    assert stat.S_ISREG(connection.status(node).st_mode)


@pytest.mark.parametrize("late", [True, False])
def test_a_creation_that_met_a_file_and_failed_is_not_looked_up(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """The kernel believed the name free, and gets an error for the opening: M7, or at once."""
    pipeline = connection.pipeline
    assert isinstance(pipeline, LocalPipeline)
    names, attributes = NameRequests(connection), AttributeRequests(connection)
    create = FileRequests(connection, names, attributes).handlers()[protocol.Op.CREATE]
    flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
    body = protocol.CREATE_IN.pack(flags, 0o600, 0, 0) + b"file\0"
    end = protocol.IN_SIZE + len(body)
    connection.view[protocol.IN_SIZE : end] = body
    if late:
        pipeline.holding = True
        create(9, protocol.ROOT_NODE, end)
        assert connection.handles.open_files() == 1
        pipeline.release(errno.EIO)
    else:
        node, _ = looked_up(connection)
        connection.nodes.forget(node.number, 1)

        def broken(*_: object) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(connection, "change", broken)
        with pytest.raises(OSError, match="Input/output"):
            create(9, protocol.ROOT_NODE, end)
    assert connection.handles.open_files() == 0
    assert [node.number for node in connection.nodes] == [protocol.ROOT_NODE]


def test_what_could_not_be_cleared_for_one_write_is_cleared_by_the_next(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A program that a stranger has written to must not keep its owner's rights."""
    program = tmp_path / "file"
    program.chmod(0o4755)
    node, _ = looked_up(connection)
    names, attributes = NameRequests(connection), AttributeRequests(connection)
    write = FileRequests(connection, names, attributes).handlers()[protocol.Op.WRITE]
    handle = connection.handles.add(node, os.O_WRONLY, 0, None)
    kill = protocol.WRITE_KILL_SUIDGID
    body = protocol.WRITE_IN.pack(handle.number, 0, 1, kill, 0, os.O_WRONLY, 0)
    end = protocol.IN_SIZE + len(body)
    connection.view[protocol.IN_SIZE : end] = body
    connection.payload[:1] = b"y"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(connection, "note", full)
        with pytest.raises(OSError, match="No space left"):
            write(9, node.number, end)
    assert program.read_text() == "x"
    write(11, node.number, end)
    assert program.read_text() == "y"
    assert stat.S_IMODE(program.stat().st_mode) == 0o755


def test_what_was_kept_is_sent_when_the_connection_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nothing behind it would ever leave: no barrier, no goodbye, no sign of life."""
    folder = os.open(tmp_path, os.O_RDONLY)
    store = Store(folder)
    os.close(folder)
    pipeline = LocalPipeline(store, None)
    reading, writing = os.pipe()
    os.write(writing, b"a request waits")
    sent: list[bool] = []

    def ended(*_: object) -> int:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    pipeline.keeps = object()
    monkeypatch.setattr(pipeline, "send_kept", lambda: sent.append(True))
    monkeypatch.setattr(os, "readv", ended)
    served = Session(store, pipeline, reading)
    served.start()
    assert served.ended.wait(5)
    assert sent == [True]
    assert served.close()
    os.close(writing)
    store.close()
