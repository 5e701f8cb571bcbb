"""A busy application for rounds of faults: the order service, journals, a changing tree, a disk.

    python busy_guest.py ORDERS.PY HOST:PORT ARGUMENTS OF ORDERS.PY...

Every record of a journal is told to HOST:PORT once its fsync has returned. Everything else is
changed at random and promised to nobody. Knows nothing of hyperha.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import runpy
import socket
import struct
import sys
import threading
import time
from pathlib import Path

JOURNALS = 3
RECORD = struct.Struct("<8Q")
DISK_BYTES = 8 << 20
TREE_FILES = 40
PAUSE_S = 0.004
_PUNCH = 3


def record(number: int) -> bytes:
    """The bytes of the record with this number."""
    return RECORD.pack(*[number] * 8)


def _journal(journal: int, address: tuple[str, int]) -> None:
    """Records one after the other; `journal` also says by which call they are made durable."""
    told = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    flags = os.O_RDWR | os.O_CREAT | (os.O_DSYNC if journal == 0 else 0)
    while True:
        with contextlib.suppress(OSError):
            file = os.open(f"journal-{journal}", flags, 0o640)
            try:
                number = os.fstat(file).st_size // RECORD.size
                while True:
                    number += 1
                    if os.pwrite(file, record(number), (number - 1) * RECORD.size) != RECORD.size:
                        break
                    if journal == 1:
                        os.fsync(file)
                    elif journal == 2:
                        os.fdatasync(file)
                    news = {"journal": journal, "number": number}
                    told.sendto(json.dumps(news).encode(), address)
                    time.sleep(PAUSE_S)
            finally:
                os.close(file)
        # The folder failed this call; whoever judges that looks at what was promised.
        time.sleep(0.2)


def _disk() -> None:
    """Random writes into one large file, some of them with O_DSYNC, few flushed."""
    while True:
        with contextlib.suppress(OSError):
            flags = os.O_RDWR | os.O_CREAT | random.choice((0, 0, os.O_DSYNC))
            file = os.open("disk.img", flags, 0o600)
            try:
                if os.fstat(file).st_size != DISK_BYTES:
                    os.ftruncate(file, DISK_BYTES)
                for _ in range(100):
                    size = random.choice((512, 4096, 4096, 65536))
                    offset = random.randrange(0, DISK_BYTES - size, 512)
                    os.pwrite(file, os.urandom(size), offset)
                    if random.random() < 0.02:
                        os.fsync(file)
                    time.sleep(PAUSE_S)
            finally:
                os.close(file)
        time.sleep(PAUSE_S)


def _punch(path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    with open(path, "r+b") as file:
        offset = random.randrange(0, 1 << 18, 4096)
        libc.fallocate(file.fileno(), _PUNCH, offset, random.randrange(4096, 1 << 18, 4096))


def _write(path: Path) -> None:
    with open(path, "r+b" if path.exists() else "w+b") as file:
        file.seek(random.randrange(1 << 19))
        file.write(os.urandom(random.randrange(1, 30000)))


def _change(tree: Path) -> None:
    """One change of the tree."""
    files = sorted(one for one in tree.rglob("*") if not one.is_dir() or one.is_symlink())
    directories = [tree, *sorted(one for one in tree.rglob("*") if one.is_dir())]
    place = random.choice(directories) / f"n{random.randrange(1 << 40):x}"
    file = random.choice(files) if files else None
    kind = random.randrange(12)
    if file is None or kind == 0 or (kind == 1 and len(files) < TREE_FILES):
        _write(place)
    elif kind == 1 or len(files) > 2 * TREE_FILES:
        file.unlink()
    elif kind == 2:
        file.rename(place)
    elif kind == 3:
        os.replace(file, random.choice(files))
    elif kind == 4:
        os.link(file, place, follow_symlinks=False)
    elif kind == 5 and len(directories) < 8:
        place.mkdir()
    elif kind == 6:
        place.symlink_to("nowhere" * random.randrange(1, 20))
    elif file.is_symlink():
        os.utime(file, ns=(1, random.randrange(10**18)), follow_symlinks=False)
    elif kind == 7:
        os.truncate(file, random.randrange(1 << 19))
    elif kind == 8:
        _punch(file)
    elif kind == 9:
        os.setxattr(file, "user.note", os.urandom(random.randrange(1, 50)))
    elif kind == 10:
        os.chmod(file, random.choice((0o600, 0o644, 0o755, 0o4755)))
        os.utime(file, ns=(1, random.randrange(2 * 10**18)))
    else:
        _write(file)


def _tree() -> None:
    tree = Path("tree")
    while True:
        with contextlib.suppress(OSError):
            tree.mkdir(exist_ok=True)
            _change(tree)
        time.sleep(PAUSE_S)


def main() -> None:
    """Until the order service ends."""
    host, _, port = sys.argv[2].rpartition(":")
    address = (host, int(port))
    work = [lambda journal=journal: _journal(journal, address) for journal in range(JOURNALS)]
    for one in (*work, _disk, _tree):
        threading.Thread(target=one, daemon=True).start()
    sys.argv = [sys.argv[1], *sys.argv[3:]]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
