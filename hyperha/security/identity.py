"""Who is at the other end of the local socket: the kernel tells, so no password is needed.

root and the daemon's own user are admin; the groups hyperha-admin, -control and -monitor give the
role of their name; everybody else is refused.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from dataclasses import dataclass
from enum import StrEnum

from hyperha.errors import DeniedError

_CREDENTIALS = struct.Struct("iII")


class Access(StrEnum):
    """What somebody may do: everything, steer modules, or only look."""

    ADMIN = "admin"
    CONTROL = "control"
    MONITOR = "monitor"

    def includes(self, needed: Access) -> bool:
        """Whether this role may do what `needed` may."""
        order = (Access.MONITOR, Access.CONTROL, Access.ADMIN)
        return order.index(self) >= order.index(needed)


GROUPS = {
    "hyperha-admin": Access.ADMIN,
    "hyperha-control": Access.CONTROL,
    "hyperha-monitor": Access.MONITOR,
}


@dataclass(frozen=True, slots=True)
class Identity:
    """A person or program: name for the audit, role, and where it came from."""

    name: str
    access: Access
    origin: str


def local_identity(connection: socket.socket) -> Identity:
    """Who connected to a Unix socket; DeniedError when that user has no role here."""
    if sys.platform == "win32":
        raise DeniedError("identities of local users are known on Linux only")
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    process, user, group = _CREDENTIALS.unpack(raw)
    name, groups = _user_of(user, group)
    access = access_of(user, groups, os.geteuid())
    if access is None:
        raise DeniedError(
            f"user {name} (process {process}) may not use this cluster",
            f"Ask the administrator to add {name} to one of the groups {', '.join(GROUPS)}.",
        )
    return Identity(name, access, f"local process {process}")


def access_of(user: int, groups: set[str], daemon_user: int) -> Access | None:
    """The highest role that a user id and its groups give."""
    if user in (0, daemon_user):
        return Access.ADMIN
    roles = [role for name, role in GROUPS.items() if name in groups]
    return roles[0] if roles else None


def _user_of(user: int, group: int) -> tuple[str, set[str]]:
    if sys.platform == "win32":
        raise DeniedError("identities of local users are known on Linux only")
    import grp
    import pwd

    try:
        name = pwd.getpwuid(user).pw_name
        numbers = set(os.getgrouplist(name, group))
    except KeyError:
        name, numbers = f"uid {user}", {group}
    known = set()
    for wanted in GROUPS:
        try:
            entry = grp.getgrnam(wanted)
        except KeyError:
            continue
        if entry.gr_gid in numbers or name in entry.gr_mem:
            known.add(wanted)
    return name, known
