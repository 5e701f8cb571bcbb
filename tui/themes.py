"""Colours: which colour each tone has, per theme. Shapes and words stand elsewhere.

`deuteranopia` uses the hues of Okabe and Ito; `mono` knows no colour at all; `sixteen` uses the
terminal's own palette.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.style import Style
from textual.theme import BUILTIN_THEMES, Theme

from tui.model.glyphs import ASCII, UNICODE, Glyphs
from tui.model.rows import Tone

_COMMON = {Tone.PLAIN: "", Tone.STRONG: "bold"}


def _palette(good: str, warn: str, bad: str, accent: str, focus: str, dim: str) -> dict[Tone, str]:
    return _COMMON | {
        Tone.GOOD: good,
        Tone.WARN: warn,
        Tone.BAD: bad,
        Tone.ACCENT: accent,
        Tone.FOCUS: focus,
        Tone.DIM: dim,
    }


PALETTES: dict[str, dict[Tone, str]] = {
    "default": _palette("#4ebf71", "#ffa62b", "bold #ff6b6b", "#5fafff", "bold #ffffff", "#9e9e9e"),
    "deuteranopia": _palette(
        "#56b4e9", "#e69f00", "bold #d55e00", "#cc79a7", "bold #ffffff", "#9e9e9e"
    ),
    "sixteen": _palette("green", "yellow", "bold red", "cyan", "bold", "bright_black"),
    "mono": _palette("", "underline", "bold underline", "italic", "bold", "dim"),
}


def _terminal_colours(name: str) -> Theme:
    """Textual's widgets in the terminal's own foreground and background."""
    own = "ansi_default"
    return Theme(
        name=name,
        ansi=True,
        primary=own,
        secondary=own,
        warning=own,
        error=own,
        success=own,
        accent=own,
        foreground=own,
        background=own,
        surface=own,
        panel=own,
        boost=own,
        variables=BUILTIN_THEMES["ansi-dark"].variables,
    )


def _full(name: str, primary: str, success: str, warning: str, error: str) -> Theme:
    return Theme(
        name=name,
        primary=primary,
        success=success,
        warning=warning,
        error=error,
        accent=warning,
        foreground="#e0e0e0",
        background="#121212",
        surface="#1e1e1e",
        panel="#242424",
    )


def textual_themes() -> list[Theme]:
    """What Textual's own widgets (inputs, buttons, palette) are coloured by."""
    return [
        _full("default", "#0178d4", "#4ebf71", "#ffa62b", "#ff6b6b"),
        _full("deuteranopia", "#0072b2", "#56b4e9", "#e69f00", "#d55e00"),
        _terminal_colours("sixteen"),
        _terminal_colours("mono"),
    ]


@dataclass(slots=True)
class Look:
    """Theme and shapes in use; widgets ask it at every drawing, so that a change shows at once."""

    theme: str = "default"
    glyphs: Glyphs = UNICODE

    @classmethod
    def of(cls, theme: str, ascii_only: bool) -> Look:
        """A look by name."""
        return cls(theme, ASCII if ascii_only else UNICODE)

    def style(self, tone: Tone) -> Style:
        """The terminal style of a tone."""
        return _STYLES[self.theme][tone]

    def next_theme(self) -> str:
        """The theme after this one, around."""
        names = list(PALETTES)
        self.theme = names[(names.index(self.theme) + 1) % len(names)]
        return self.theme


_STYLES = {
    name: {tone: Style.parse(text) if text else Style() for tone, text in palette.items()}
    for name, palette in PALETTES.items()
}
