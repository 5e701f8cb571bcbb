"""What is found of a module's folder and of the file system that it lies on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hyperha.domain import Marker


class MarkerState(StrEnum):
    """What the folder's marker says (R12)."""

    MATCHES = "matches"
    ABSENT = "absent"
    DIFFERS = "differs"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class AttachFacts:
    """What was found when the folder was covered."""

    marker: MarkerState
    found: Marker | None
    folder_empty: bool
    candidates: int
    """Records in the log plus dirty zones; -1 when log or map are damaged (Z6)."""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Shortage:
    """Room that a folder's file system lacks: bytes needed at least, and free."""

    needed_bytes: int
    free_bytes: int
    text: str = ""
    """What is short where these figures do not show it: a quota, inodes."""
