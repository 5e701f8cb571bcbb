"""One step of a sequence as a value: who does what. Made from a seed, printed, done again.

Knows no folder; `world` performs steps.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct

USERS = ((0, 0, ()), (1001, 2001, (2003,)), (1002, 2002, (2003, 2004)))
"""User, group and further groups of who does a step; the first one may do everything."""
LONG = "n" * 255
NAMES = (
    "a", "b", "c", "d", "e", "d/a", "d/b", "e/a", "e/d", "e/d/a", "d/e", "\udcff\n", "d/\udcfe\t",
    LONG, "d/" + LONG,
)  # fmt: skip
ODD_NAMES = (LONG + "x", "d/../a", "./b", "a/", "d/", ".", "d/..", "d/.", "", "a/b/c", "x" * 5000)
SLOTS = 5
SIZE = 300_000
PAGE = 4096
_MODES = (0o600, 0o640, 0o644, 0o660, 0o666, 0o700, 0o755, 0o777, 0o000, 0o444, 0o4755, 0o2775,
          0o2644, 0o6777, 0o1777, 0o1755)  # fmt: skip
_OWNERS = (0, 1001, 1002, 12, 65534, 100_000, -1)
_GROUPS = (0, 2001, 2002, 2003, 2004, -1)
_XATTRS = ("user.a", "user.b", "user." + "l" * 250, "user." + "l" * 251, "trusted.t", "security.s",
           "security.capability", "nonsense.x", "user.")  # fmt: skip
_ACCESS, _DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
_ACL_ENTRY = Struct("<HHI")
_CREATING = os.O_RDWR | os.O_CREAT
_CREATES = {"open": (1,), "mkdir": (0,), "link": (1,), "name_again": (1,), "symlink": (1,),
            "node": (0,), "rename": (1,)}  # fmt: skip
"""Which arguments are names that may exist afterwards, and below, that do not."""
_REMOVES = {"unlink": (0,), "rmdir": (0,)}
_ACCESS_MODES = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR, os.O_RDWR)


@dataclass(frozen=True, slots=True)
class Step:
    """`user` is a place in USERS; `kind` names a method of `World`."""

    user: int
    kind: str
    arguments: tuple[object, ...]


def access_list(dice: random.Random) -> bytes:
    """The bytes of a POSIX access list, mostly a valid one."""

    def some() -> int:
        return dice.randrange(8)

    entries = [(0x01, some(), 0xFFFFFFFF)]
    named = dice.random() < 0.8
    if named and dice.random() < 0.7:
        entries.append((0x02, some(), dice.choice((1001, 1002))))
    entries.append((0x04, some(), 0xFFFFFFFF))
    if named and dice.random() < 0.5:
        entries.append((0x08, some(), dice.choice((2002, 2003))))
    if named and dice.random() < 0.95:
        entries.append((0x10, some(), 0xFFFFFFFF))
    entries.append((0x20, some(), 0xFFFFFFFF))
    return b"\2\0\0\0" + b"".join(_ACL_ENTRY.pack(*one) for one in entries)


class Dice:
    """Chooses steps; the same seed chooses the same ones."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self._users = self._dice.choice(((0,), (0, 0, 1, 2), (0, 1, 1, 2, 2)))
        self._kinds, self._weights = zip(*_WEIGHTS.items(), strict=True)
        self._names: list[str] = []
        """What may exist, so that most steps meet something."""
        self._open: list[int] = []

    def sequence(self, shortest: int = 30, longest: int = 80) -> list[Step]:
        """A whole sequence: a small tree first, then anything."""
        length = self._dice.randint(shortest, longest)
        steps = [Step(0, "mkdir", (name, 0o777)) for name in ("d", "e", "e/d")]
        self._names += ["d", "e", "e/d"]
        while len(steps) < 8:
            steps.append(self._made("open", (self._slot(), self._new(), _CREATING, self._mode())))
        return steps + [self.step() for _ in range(length)]

    def top(self) -> tuple[int, int, int]:
        """Mode, owner and group of the directory that a sequence works in."""
        mode = self._dice.choice((0o777, 0o777, 0o1777, 0o2777, 0o755))
        return mode, self._dice.choice((0, 0, 1001)), self._dice.choice((0, 2001, 2003))

    def step(self) -> Step:
        """The next one."""
        kind = self._dice.choices(self._kinds, self._weights)[0]
        return self._made(kind, _ARGUMENTS[kind](self))

    def _made(self, kind: str, arguments: tuple[object, ...]) -> Step:
        for place in _CREATES.get(kind, ()):
            self._names.append(str(arguments[place]))
        for place in _REMOVES.get(kind, ()):
            self._names = [one for one in self._names if one != arguments[place]]
        if kind in ("open", "temporary"):
            self._open.append(int(str(arguments[0])))
        return Step(self._dice.choice(self._users), kind, arguments)

    # --- arguments ------------------------------------------------------------------------

    def _one(self, choices: tuple[object, ...]) -> object:
        return self._dice.choice(choices)

    def _new(self) -> str:
        return self._dice.choice(ODD_NAMES if self._dice.random() < 0.03 else NAMES)

    def _name(self) -> str:
        if self._names and self._dice.random() < 0.8:
            return self._dice.choice(self._names)
        return self._new()

    def _slot(self) -> int:
        if self._open and self._dice.random() < 0.85:
            return self._dice.choice(self._open)
        return self._dice.randrange(SLOTS)

    def _mode(self) -> int:
        return self._dice.choice(_MODES)

    def _offset(self) -> int:
        kind = self._dice.random()
        if kind < 0.03:
            return self._dice.choice((1 << 31, (1 << 33) + 5, (1 << 40) + 1))
        if kind < 0.3:
            return self._dice.randrange(0, SIZE, PAGE)
        return self._dice.randrange(SIZE) if kind < 0.6 else self._dice.randrange(9000)

    def _length(self) -> int:
        kind = self._dice.random()
        if kind < 0.05:
            return self._dice.choice((0, 1 << 20, (1 << 20) + 77))
        return self._dice.choice((1, 10, 511, PAGE, PAGE, PAGE + 1, 9000, 70_000))

    def _data(self) -> tuple[int, int]:
        return self._dice.randrange(256), self._length()

    def _time(self) -> int:
        return self._dice.choice(
            (0, 1, 999_999_999, -1, -1_500_000_001, 10**18 - 1, self._dice.randrange(10**18))
        )

    def _flags(self) -> int:
        dice = self._dice
        flags = dice.choice(_ACCESS_MODES)
        flags |= dice.choice((0, os.O_CREAT, os.O_CREAT, os.O_CREAT | os.O_EXCL))
        for flag, chance in (
            (os.O_TRUNC, 0.12), (os.O_APPEND, 0.15), (os.O_DIRECT, 0.1), (os.O_NOFOLLOW, 0.1),
            (os.O_DSYNC, 0.05), (os.O_SYNC, 0.03), (os.O_DIRECTORY, 0.03),
        ):  # fmt: skip
            if dice.random() < chance:
                flags |= flag
        return flags

    def _owner(self) -> tuple[object, object]:
        owner = self._dice.choice(_OWNERS)
        # Of nobody and no group the kernel does not ask a FUSE mount at all.
        return owner, self._dice.choice(_GROUPS[: -1 if owner == -1 else None])

    def _xattr(self) -> str:
        return self._dice.choice((*_XATTRS[:2] * 3, *_XATTRS, _ACCESS, _DEFAULT))

    def _set_xattr(self) -> tuple[object, ...]:
        dice = self._dice
        name, flags = self._xattr(), dice.choice((0, 0, 1, 2))
        value = dice.randbytes(dice.choice((0, 1, 20, 20, 300, 3000)))
        if name in (_ACCESS, _DEFAULT):
            value = access_list(dice) if dice.random() < 0.9 else b"\2\0\0\0"
        if name == "security.capability":
            value = bytes((1, 0, 0, 2)) + bytes((dice.randrange(256), 4, 0, 0)) + bytes(12)
        return self._name(), name, value, flags

    def _acl(self) -> tuple[object, ...]:
        kind = self._dice.choice((_ACCESS, _DEFAULT))
        return self._name(), kind, access_list(self._dice), 0

    def _device(self) -> tuple[object, ...]:
        kind = self._dice.choice((stat.S_IFIFO, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR,
                                  stat.S_IFBLK, stat.S_IFREG))  # fmt: skip
        device = os.makedev(self._dice.choice((0, 1, 259)), self._dice.choice((0, 3, 70_000)))
        return self._new(), kind | self._mode(), device


_Arguments = Callable[[Dice], tuple[object, ...]]
_WEIGHTS = {
    "open": 14, "temporary": 3, "close": 3, "write": 14, "read": 6, "cut": 3, "cut_name": 2,
    "sync": 2, "allocate": 5, "map": 2, "map_write": 4, "map_read": 2, "unmap": 1, "copy": 3,
    "holes": 2, "status": 6, "status_open": 2, "chmod": 4, "chmod_open": 1, "chown": 4,
    "chown_open": 1, "times": 3, "times_open": 1, "mkdir": 7, "rmdir": 3, "unlink": 5, "link": 4,
    "name_again": 2, "symlink": 3, "node": 2, "rename": 9, "readlink": 1, "list": 3, "access": 3,
    "set_xattr": 4, "get_xattr": 2, "remove_xattr": 2, "list_xattr": 2, "acl": 3, "umask": 1,
    "set_xattr_open": 1, "sync_all": 1,
}  # fmt: skip
_ARGUMENTS: dict[str, _Arguments] = {
    "open": lambda d: (d._slot(), d._name(), d._flags(), d._mode()),
    "temporary": lambda d: (d._slot(), d._name(), d._one((0, os.O_EXCL)), d._mode()),
    "close": lambda d: (d._slot(),),
    "write": lambda d: (d._slot(), d._offset(), *d._data()),
    "read": lambda d: (d._slot(), d._offset(), d._length()),
    "cut": lambda d: (d._slot(), d._offset()),
    "cut_name": lambda d: (d._name(), d._offset()),
    "sync": lambda d: (d._slot(), d._one((True, False))),
    "sync_all": lambda d: (),
    "allocate": lambda d: (
        d._slot(), d._one((0, 1, 3, 3, 0x10, 0x11, 2, 7)), d._offset(), d._length(),
    ),
    "map": lambda d: (d._slot(), d._one((True, True, False))),
    "map_write": lambda d: (d._slot(), d._offset(), *d._data(), d._one((True, False))),
    "map_read": lambda d: (d._slot(), d._offset(), d._length()),
    "unmap": lambda d: (d._slot(),),
    "copy": lambda d: (d._slot(), d._slot(), d._offset(), d._offset(), d._length()),
    "holes": lambda d: (d._slot(), d._offset()),
    "status": lambda d: (d._name(), d._one((True, False))),
    "status_open": lambda d: (d._slot(),),
    "chmod": lambda d: (d._name(), d._mode()),
    "chmod_open": lambda d: (d._slot(), d._mode()),
    "chown": lambda d: (d._name(), *d._owner()),
    "chown_open": lambda d: (d._slot(), *d._owner()),
    "times": lambda d: (d._name(), d._time(), d._time(), d._one((True, False))),
    "times_open": lambda d: (d._slot(), d._one((None, 1)), d._time()),
    "mkdir": lambda d: (d._one(("d", "e", d._new(), d._new())), d._mode()),
    "rmdir": lambda d: (d._name(),),
    "unlink": lambda d: (d._name(),),
    "link": lambda d: (d._name(), d._new(), d._one((True, False))),
    "name_again": lambda d: (d._slot(), d._new()),
    "symlink": lambda d: (d._one(("a", "b", "d", "../b", "x" * 300, d._name())), d._new()),
    "node": lambda d: d._device(),
    "rename": lambda d: (
        d._name(), d._one((d._name(), d._new())), d._one((0, 0, 0, 0, 1, 2, 2, 3)),
    ),
    "readlink": lambda d: (d._name(),),
    "list": lambda d: (d._name(),),
    "access": lambda d: (d._name(), d._one((0, 1, 2, 4, 6, 7))),
    "set_xattr": lambda d: d._set_xattr(),
    "set_xattr_open": lambda d: (d._slot(), *d._set_xattr()[1:]),
    "get_xattr": lambda d: (d._name(), d._xattr()),
    "remove_xattr": lambda d: (d._name(), d._xattr()),
    "list_xattr": lambda d: (d._name(),),
    "acl": lambda d: d._acl(),
    "umask": lambda d: (d._one((0, 0o022, 0o077, 0o027)),),
}  # fmt: skip
