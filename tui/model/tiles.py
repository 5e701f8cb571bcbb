"""The modules as tiles and as a table: one side's role, readiness, data, VM and reason.

Every state is told three times: by word, by shape and by tone.
"""

from __future__ import annotations

from hyperha.api.wire import ModuleNodeView
from hyperha.client.sentences import HELD_BACK
from hyperha.domain import DataState, Role
from hyperha.text import size_text
from tui.model.alerts import vm_is_missing
from tui.model.console import ConsoleModel
from tui.model.formatting import (
    age_text,
    clock_text,
    percent,
    rate_text,
    short_generation,
)
from tui.model.glyphs import READINESS_TONE, READINESS_WORD, UNKNOWN, Glyphs
from tui.model.layout import Layout, Shape, table_window
from tui.model.rows import (
    Row,
    Span,
    Tone,
    between,
    cells,
    cut,
    fit,
    fit_row,
    row,
    width_of,
    wrapped,
)

_DATA_TONE = {
    DataState.UPTODATE: Tone.GOOD,
    DataState.OUTDATED: Tone.WARN,
    DataState.INCONSISTENT: Tone.BAD,
    DataState.UNKNOWN: Tone.DIM,
}


def role_tone(side: ModuleNodeView) -> Tone:
    """The tone of a role: ALONE is never plainly good, since nothing may fail any more."""
    if side.role is Role.ALONE:
        return Tone.WARN
    return READINESS_TONE[side.readiness]


def module_panel(
    model: ConsoleModel, plan: Layout, width: int, now_ms: int, glyphs: Glyphs, focused: bool
) -> list[Row]:
    """The rows of the panel of the modules."""
    names = model.module_names()
    if not names:
        known = model.cluster is not None
        text = "no module yet: hyperha module add NAME" if known else "waiting for the first answer"
        return [row(Span(f"  {text}", Tone.DIM))]
    if plan.shape is Shape.TABLE:
        rows = _table(model, plan, width, now_ms, glyphs, focused)
    else:
        rows = []
        for name in names:
            rows += _tiles(model, name, plan.tile_rows, width, now_ms, glyphs, focused)
    if plan.why_row:
        rows.append(why_row(model, width, now_ms, glyphs))
    return rows


def why_row(model: ConsoleModel, width: int, now_ms: int, glyphs: Glyphs) -> Row:
    """The sentence of the selected side."""
    side = model.side()
    if side is None:
        return row("")
    rule = f" ({side.why.rule})" if side.why.rule else ""
    text = f" {model.module} on {model.node}: {side.why.text}{rule}"
    tone = Tone.DIM if model.stale(model.node, now_ms) else Tone.STRONG
    return fit_row(row(Span(text, tone)), width, glyphs.cut)


def _tiles(
    model: ConsoleModel,
    module: str,
    height: int,
    width: int,
    now_ms: int,
    glyphs: Glyphs,
    focused: bool,
) -> list[Row]:
    nodes = model.node_names()
    each = width // max(1, len(nodes))
    drawn = [
        tile(model, module, node, (each, height), now_ms, glyphs, focused=focused) for node in nodes
    ]
    return [tuple(span for part in line for span in part) for line in zip(*drawn, strict=True)]


def tile(
    model: ConsoleModel,
    module: str,
    node: str,
    size: tuple[int, int],
    now_ms: int,
    glyphs: Glyphs,
    *,
    focused: bool = True,
) -> list[Row]:
    """One side of a module in `size` (width, height): a frame whose form tells the role."""
    width, height = size
    side = model.side(module, node)
    stale = side is None or model.stale(node, now_ms)
    border = glyphs.border[UNKNOWN if side is None or stale else side.role]
    tone = Tone.DIM if side is None or stale else role_tone(side)
    chosen = model.module == module and model.node == node
    here = " (here)" if model.cluster and model.cluster.answered_by == node else ""
    name = cut(f"{'>' if chosen else ' '} {module} on {node}{here} ", width - 3, glyphs.cut)
    title = Span(name, Tone.FOCUS if chosen else Tone.STRONG, chosen and focused)
    top_fill = border.top * (width - 3 - cells(name))
    top = (Span(border.top_left + border.top, tone), title, Span(top_fill + border.top_right, tone))
    inner = width - 4
    lines = _lines(model, module, node, now_ms, glyphs, inner, height - 2)
    body = [
        (
            Span(f"{border.side} ", tone),
            *fit_row(line, inner, glyphs.cut),
            Span(f" {border.side}", tone),
        )
        for line in lines
    ]
    bottom = border.bottom_left + border.below * (width - 2) + border.bottom_right
    return [top, *body, (Span(bottom, tone),)]


def _lines(
    model: ConsoleModel,
    module: str,
    node: str,
    now_ms: int,
    glyphs: Glyphs,
    width: int,
    count: int,
) -> list[Row]:
    side = model.side(module, node)
    if side is None:
        return [row(Span("? nothing known", Tone.DIM))] + [row("")] * (count - 1)
    age_ms = model.node_age_ms(node, now_ms)
    lines = [between(role_row(side, age_ms, glyphs), _right(side, age_ms, glyphs), width)]
    # A rate that is old says nothing: only what the copy was worth is kept.
    moving = side.resync is not None and age_ms == 0
    lines.append(resync_row(side, width) if moving else data_row(side, age_ms))
    rule = f" ({side.why.rule})" if side.why.rule else ""
    why = wrapped(f"{side.why.text}{rule}", width)
    room = count - 2
    if len(why) > room > 0:
        why = [*why[: room - 1], cut(" ".join(why[room - 1 :]), width, glyphs.cut)]
    tone = Tone.DIM if age_ms != 0 else Tone.PLAIN
    lines += [row(Span(text, tone)) for text in why[:room]]
    return (lines + [row("")] * count)[:count]


def role_row(side: ModuleNodeView, age_ms: int | None, glyphs: Glyphs) -> Row:
    """Shape and word of the role; with a `?` when it is an old observation."""
    if age_ms != 0:
        return row(
            Span(f"{glyphs.role[UNKNOWN]} {side.role} seen {age_text(age_ms)} ago", Tone.DIM)
        )
    return row(Span(f"{glyphs.role[side.role]} {side.role}", role_tone(side)))


def _right(side: ModuleNodeView, age_ms: int | None, glyphs: Glyphs) -> Row:
    if age_ms != 0:
        return row(Span("unknown now", Tone.DIM))
    held = (Span("WRITES HELD ", Tone.BAD),) if side.frozen else ()
    busy = (Span(f"{side.operation.verb}{glyphs.cut} ", Tone.ACCENT),) if side.operation else ()
    word = f"{glyphs.readiness[side.readiness]} {READINESS_WORD[side.readiness]}"
    return (*held, *busy, Span(word, READINESS_TONE[side.readiness]))


def data_row(side: ModuleNodeView, age_ms: int | None) -> Row:
    """VM, data and generation."""
    fresh = age_ms == 0
    vm = Tone.GOOD if side.vm.state == "running" else Tone.PLAIN
    if vm_is_missing(side):
        vm = Tone.BAD
    return row(
        Span("vm ", Tone.DIM),
        Span(f"{side.vm.state} ", vm if fresh else Tone.DIM),
        Span(" data ", Tone.DIM),
        Span(f"{side.data} ", _DATA_TONE[side.data] if fresh else Tone.DIM),
        Span(f" g {short_generation(side.generation)}", Tone.DIM),
    )


def resync_row(side: ModuleNodeView, width: int) -> Row:
    """How far the resync is, in a tile; the VM's state too where there is room."""
    r = side.resync
    if r is None:
        return row("")
    done = Span(f"resync {percent(r.done_bytes, r.total_bytes):3d}% ", Tone.WARN)
    rate = Span(f"{rate_text(r.recent_bytes_per_s)} {clock_text(r.seconds_left)} left")
    if vm_is_missing(side):
        return (Span(f"vm {side.vm.state}  ", Tone.BAD), done)
    vm = Span(f"vm {side.vm.state}  ", Tone.DIM)
    return (vm, done, rate) if width_of((vm, done, rate)) <= width else (done, rate)


def resync_bar(model: ConsoleModel, width: int, now_ms: int, glyphs: Glyphs) -> Row | None:
    """The bar of the selected module's resync; None when there is none."""
    view = model.module_view()
    if view is None:
        return None
    found = [
        (node, side.resync)
        for node, side in view.nodes.items()
        if side.resync is not None and not model.stale(node, now_ms)
    ]
    if not found:
        return None
    # The node that runs the VM sends; its figures are the ones of both.
    found.sort(key=lambda pair: not view.nodes[pair[0]].role.runs_vm)
    node, r = found[0]
    runs = view.nodes[node].role.runs_vm
    target = model.other_node(node) if runs else node
    source = node if runs else model.other_node(node)
    figures = (
        f" {percent(r.done_bytes, r.total_bytes):3d}%  {size_text(r.done_bytes)} of "
        f"{size_text(r.total_bytes)}  {rate_text(r.recent_bytes_per_s)}  "
        f"{clock_text(r.seconds_left)} left"
    )
    label = f" resync {source}{glyphs.arrow}{target} "
    end = f"  {target} cannot take over yet"
    room = width - cells(label) - cells(figures)
    if room - cells(end) < 10:
        end = ""
    held = f", {HELD_BACK[r.held_back]}" if r.held_back in HELD_BACK else ""
    if room - cells(end) - cells(held) >= 10:
        figures += held
        room -= cells(held)
    room = max(4, min(40, room - cells(end)))
    full = room * percent(r.done_bytes, r.total_bytes) // 100
    bar = glyphs.bar_full * full + glyphs.bar_empty * (room - full)
    return row(Span(label, Tone.STRONG), Span(bar, Tone.WARN), figures, Span(end, Tone.WARN))


def _table(
    model: ConsoleModel, plan: Layout, width: int, now_ms: int, glyphs: Glyphs, focused: bool
) -> list[Row]:
    nodes = model.node_names()
    names = model.module_names()
    label = max(8, min(16, max(cells(name) for name in names) + 1))
    each = (width - label - 3) // max(1, len(nodes))
    head = "   " + fit("MODULE", label)
    for node in nodes:
        here = " (here)" if model.cluster and model.cluster.answered_by == node else ""
        head += fit(f"{node}{here}", each, glyphs.cut)
    rows: list[Row] = [fit_row(row(Span(head, Tone.DIM)), width)]
    space = plan.module_rows - 1 - plan.why_row
    at = names.index(model.module) if model.module in names else 0
    first, last = table_window(len(names), space, at)
    for name in names[first:last]:
        mark = ">" if name == model.module else " "
        parts: list[Span] = [Span(f" {mark} "), Span(fit(name, label, glyphs.cut), Tone.STRONG)]
        for node in nodes:
            chosen = name == model.module and node == model.node
            parts += _cell(model, name, node, each, now_ms, glyphs, chosen and focused)
        rows.append(fit_row(tuple(parts), width, glyphs.cut))
    return rows


def _cell(
    model: ConsoleModel,
    module: str,
    node: str,
    width: int,
    now_ms: int,
    glyphs: Glyphs,
    chosen: bool,
) -> Row:
    side = model.side(module, node)
    age_ms = model.node_age_ms(node, now_ms)
    if side is None:
        return (Span(fit("? unknown", width), Tone.DIM),)
    if age_ms != 0:
        text = f"{glyphs.role[UNKNOWN]} {side.role:<7} {age_text(age_ms)} ago"
        return (Span(fit(text, width, glyphs.cut), Tone.DIM, chosen),)
    role = Span(f"{glyphs.role[side.role]} {side.role:<7}", role_tone(side), chosen)
    ready = Span(f"{READINESS_WORD[side.readiness]:<10}", READINESS_TONE[side.readiness])
    if vm_is_missing(side):
        # Before the rest, which is cut where there is no room.
        return fit_row((role, Span(f"vm {side.vm.state} ", Tone.BAD), ready), width, glyphs.cut)
    if side.resync is not None:
        r = side.resync
        done = percent(r.done_bytes, r.total_bytes)
        data = Span(f"{done:3d}% {clock_text(r.seconds_left)}", Tone.WARN)
    else:
        data = Span(str(side.data), _DATA_TONE[side.data])
    return fit_row((role, ready, data), width, glyphs.cut)
