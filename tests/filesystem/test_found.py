"""Sequences that once ended otherwise than on a plain folder, and such as chance seldom makes."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from tests.filesystem.sequences import Runner
from tests.filesystem.steps import Step, access_list

pytestmark = [pytest.mark.root, pytest.mark.fuse]
CREATE = os.O_RDWR | os.O_CREAT
TOP = (0o777, 0, 0)
LIST = access_list(random.Random(1))

FOUND: dict[str, list[Step]] = {
    # Was taken for a failed disk: the folder stood still.
    "a time before 1970": [
        Step(0, "open", (0, "a", CREATE, 0o644)),
        Step(0, "times", ("a", -1, -1_500_000_001, True)),
        Step(0, "times_open", (0, None, -7)),
        Step(0, "status", ("a", True)),
    ],
    # Written back behind it, the page had the file's time set once more.
    "a time behind a write through a mapping": [
        Step(0, "mkdir", ("d", 0o777)),
        Step(0, "open", (1, "d/a", CREATE | os.O_EXCL, 0o666)),
        Step(1, "write", (1, 146_411, 138, 10)),
        Step(0, "map", (1, True)),
        Step(0, "map_write", (1, 140_015, 211, 70_000, False)),
        Step(0, "times", ("d/a", 1, -1, False)),
    ],
    # Set-group-id without the group's right to execute stays for members only.
    "a stranger's write and set-group-id": [
        Step(0, "open", (0, "a", CREATE, 0o2644)),
        Step(0, "chown", ("a", 1001, 2003)),
        Step(0, "chmod", ("a", 0o2644)),
        Step(2, "write", (0, 0, 1, 4096)),
        Step(2, "status_open", (0,)),
        Step(0, "chown", ("a", 1001, 2001)),
        Step(0, "chmod", ("a", 0o2644)),
        Step(2, "write", (0, 0, 1, 4096)),
        Step(2, "status_open", (0,)),
    ],
    "a stranger's truncation and set-group-id": [
        Step(1, "open", (0, "a", CREATE, 0o2644)),
        Step(2, "cut", (0, 3000)),
        Step(2, "status_open", (0,)),
    ],
    "a stranger's allocation and set-id bits": [
        Step(1, "open", (0, "a", CREATE, 0o6777)),
        Step(2, "allocate", (0, 0x11, 10_000, 10)),
        Step(2, "status_open", (0,)),
        Step(0, "chmod", ("a", 0o6777)),
        Step(0, "allocate", (0, 0, 10_000, 10)),
        Step(0, "status_open", (0,)),
        Step(0, "set_xattr", ("a", "security.capability", b"\1\0\0\2\4\4\0\0" + bytes(12), 0)),
        Step(0, "allocate", (0, 3, 0, 4096)),
        Step(0, "list_xattr", ("a",)),
    ],
    "a stranger's write to a file without a name": [
        Step(1, "open", (0, "a", CREATE, 0o6777)),
        Step(0, "unlink", ("a",)),
        Step(2, "write", (0, 0, 1, 4096)),
        Step(2, "status_open", (0,)),
    ],
    # Was sent before it failed here: the secondary could not do it either, and left.
    "a write beyond what files can hold": [
        Step(0, "open", (0, "a", CREATE, 0o666)),
        Step(1, "write", (0, 1 << 50, 1, 4096)),
        Step(1, "write", (0, (1 << 44) - 4096 - 5, 1, 10)),
        Step(1, "write", (0, (1 << 62) + 1, 1, 1)),
        Step(1, "status_open", (0,)),
    ],
    "a file that gets its first name when it is whole": [
        Step(1, "mkdir", ("d", 0o2777)),
        Step(1, "acl", ("d", "system.posix_acl_default", LIST, 0)),
        Step(1, "temporary", (0, "d", 0, 0o640)),
        Step(1, "write", (0, 20_000, 7, 9000)),
        Step(1, "set_xattr_open", (0, "user.a", b"x", 0)),
        Step(1, "times_open", (0, None, 77)),
        Step(1, "name_again", (0, "d/a")),
        Step(1, "write", (0, 1_000_000, 8, 70_000)),
        Step(1, "status", ("d/a", True)),
        Step(1, "name_again", (0, "d/a")),
        Step(1, "name_again", (0, "b")),
        Step(1, "list", ("d",)),
        Step(1, "temporary", (1, ".", os.O_EXCL, 0o600)),
        Step(1, "name_again", (1, "c")),
        Step(2, "temporary", (2, "d", 0, 0o4755)),
        Step(0, "name_again", (2, "d/b")),
    ],
    "a sticky directory and foreign files": [
        Step(0, "mkdir", ("d", 0o1777)),
        Step(0, "chmod", ("d", 0o1777)),
        Step(1, "open", (0, "d/a", CREATE, 0o666)),
        Step(2, "unlink", ("d/a",)),
        Step(2, "rename", ("d/a", "d/b", 0)),
        Step(2, "open", (1, "d/b", CREATE, 0o600)),
        Step(2, "rename", ("d/b", "d/a", 0)),
        Step(2, "rename", ("d/b", "d/a", 2)),
        Step(1, "chmod", ("d/b", 0o777)),
        Step(1, "times", ("d/b", 5, 5, True)),
        Step(1, "open", (2, "d/b", os.O_RDONLY, 0)),
        Step(1, "link", ("d/b", "d/c", False)),
        Step(1, "set_xattr", ("d/b", "user.a", b"x", 0)),
        Step(1, "set_xattr", ("d/a", "trusted.a", b"x", 0)),
        Step(1, "unlink", ("d/a",)),
    ],
    # The kernel marks every access list of a stranger; only that for access takes the bit away.
    "a stranger's default list and set-group-id": [
        Step(1, "mkdir", ("d", 0o755)),
        Step(0, "chown", ("d", 1001, 0)),
        Step(0, "chmod", ("d", 0o2755)),
        Step(1, "acl", ("d", "system.posix_acl_default", LIST, 0)),
        Step(1, "status", ("d", True)),
        Step(1, "acl", ("d", "system.posix_acl_access", LIST, 0)),
        Step(1, "status", ("d", True)),
    ],
    "a directory's new owner and its capabilities": [
        Step(0, "mkdir", ("d", 0o755)),
        Step(0, "set_xattr", ("d", "security.capability", b"\1\0\0\2\4\4\0\0" + bytes(12), 0)),
        Step(0, "chown", ("d", 12, 2002)),
        Step(0, "list_xattr", ("d",)),
    ],
}


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    made = Runner(tmp_path_factory.mktemp("found"))
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("name", FOUND)
def test_found(runner: Runner, name: str) -> None:
    assert not runner.play(TOP, FOUND[name])
