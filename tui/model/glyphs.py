"""Shapes: every state has one of its own, in Unicode and ASCII, so that colour is never alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from hyperha.domain import Readiness, ResourceState, Role
from tui.model.rows import Tone

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Border:
    """The characters of a frame."""

    top_left: str
    top: str
    top_right: str
    side: str
    bottom_left: str
    bottom_right: str
    bottom: str = ""

    @property
    def below(self) -> str:
        """The character of the lower edge."""
        return self.bottom or self.top


@dataclass(frozen=True, slots=True)
class Glyphs:
    """One set of shapes."""

    role: dict[str, str]
    border: dict[str, Border]
    readiness: dict[Readiness, str]
    resource: dict[ResourceState, str]
    bar_full: str
    bar_empty: str
    cut: str
    dot: str
    rule: str
    arrow: str
    output: str
    """Marks a log line with a script's output behind it."""
    ascii_only: bool = field(default=False)


UNICODE = Glyphs(
    role={
        Role.PRIM: "●",
        Role.SECOND: "○",
        Role.ALONE: "▲",
        Role.WAIT: "◐",
        Role.STOP: "×",  # noqa: RUF001
        UNKNOWN: "?",
    },
    border={
        Role.PRIM: Border("┏", "━", "┓", "┃", "┗", "┛"),
        Role.SECOND: Border("╭", "─", "╮", "│", "╰", "╯"),
        Role.ALONE: Border("╔", "═", "╗", "║", "╚", "╝"),
        Role.WAIT: Border("┌", "╌", "┐", "┆", "└", "┘"),
        Role.STOP: Border("+", "-", "+", "|", "+", "+"),
        UNKNOWN: Border("·", "╌", "·", "┊", "·", "·"),
    },
    readiness={Readiness.READY: "✓", Readiness.TRANSIENT: "~", Readiness.NOT_READY: "✗"},
    resource={
        ResourceState.UP: "✓",
        ResourceState.DOWN: "✗",
        ResourceState.INIT: "~",
        ResourceState.UNKNOWN: "?",
    },
    bar_full="█",
    bar_empty="░",
    cut="…",
    dot="·",
    rule="─",
    arrow="→",
    output="↵",
)

ASCII = Glyphs(
    role={
        Role.PRIM: "#",
        Role.SECOND: "o",
        Role.ALONE: "!",
        Role.WAIT: "~",
        Role.STOP: "x",
        UNKNOWN: "?",
    },
    border={
        Role.PRIM: Border("#", "=", "#", "#", "#", "#"),
        Role.SECOND: Border("+", "-", "+", "|", "+", "+"),
        Role.ALONE: Border("+", "=", "+", "!", "+", "+"),
        Role.WAIT: Border("+", "~", "+", ":", "+", "+"),
        Role.STOP: Border("x", "-", "x", "|", "x", "x"),
        UNKNOWN: Border("?", ".", "?", "?", "?", "?"),
    },
    readiness={Readiness.READY: "+", Readiness.TRANSIENT: "~", Readiness.NOT_READY: "x"},
    resource={
        ResourceState.UP: "+",
        ResourceState.DOWN: "x",
        ResourceState.INIT: "~",
        ResourceState.UNKNOWN: "?",
    },
    bar_full="#",
    bar_empty=".",
    cut="~",
    dot="-",
    rule="-",
    arrow=">",
    output="<",
    ascii_only=True,
)

READINESS_WORD = {
    Readiness.READY: "Ready",
    Readiness.TRANSIENT: "Transient",
    Readiness.NOT_READY: "NotReady",
}
READINESS_TONE = {
    Readiness.READY: Tone.GOOD,
    Readiness.TRANSIENT: Tone.WARN,
    Readiness.NOT_READY: Tone.BAD,
}
RESOURCE_TONE = {
    ResourceState.UP: Tone.GOOD,
    ResourceState.DOWN: Tone.BAD,
    ResourceState.INIT: Tone.WARN,
    ResourceState.UNKNOWN: Tone.DIM,
}
