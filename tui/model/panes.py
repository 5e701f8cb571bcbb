"""The rows of everything that is not a tile: header, alert, log, scripts, checkers, facts."""

from __future__ import annotations

from hyperha.api.wire import CheckerView, LogLine, ScriptOutput, ScriptRun
from hyperha.client.link import LinkState
from hyperha.text import size_text
from tui.model.alerts import Alert, Severity
from tui.model.console import ConsoleModel
from tui.model.formatting import age_text, minute_text, percent, short_generation, time_text
from tui.model.glyphs import RESOURCE_TONE, Glyphs
from tui.model.log_buffer import matches
from tui.model.rows import Row, Span, Tone, between, cut, fit, fit_row, row, wrapped

LEVEL_TONE = {"I": Tone.PLAIN, "W": Tone.WARN, "E": Tone.BAD}
_LINK_TONE = {
    LinkState.LIVE: Tone.GOOD,
    LinkState.CONNECTING: Tone.WARN,
    LinkState.STALE: Tone.WARN,
    LinkState.LOST: Tone.BAD,
}
TABS = ("Log", "Scripts", "Checkers", "Facts")
ALERT_MARK = {Severity.CRITICAL: "!!", Severity.WARNING: "! ", Severity.NOTE: "i "}
ALERT_TONE = {
    Severity.CRITICAL: Tone.BAD,
    Severity.WARNING: Tone.WARN,
    Severity.NOTE: Tone.PLAIN,
}
INDENT = 11


def header_row(model: ConsoleModel, width: int, now_ms: int, glyphs: Glyphs) -> Row:
    """Who is looked at, through whom, how fresh, and whether commands may leave."""
    cluster = model.cluster
    name = cluster.cluster if cluster else "?"
    via = cluster.answered_by if cluster else model.link.target
    left = row(
        Span(" hyperha ", Tone.STRONG),
        f" cluster {name}   via {via}   ",
        Span(link_word(model, now_ms), _LINK_TONE[model.link.state]),
        Span("   RO" if model.read_only else "   RW", Tone.WARN if model.read_only else Tone.DIM),
    )
    count = len(model.module_names())
    # The age of what is shown needs the room more than the number of modules does.
    text = f"  {count} module{'' if count == 1 else 's'}  " if model.link.live else "  "
    at = model.cluster_time(now_ms)
    clock = f" {at:%H:%M} UTC " if at else ""
    return between(left, row(Span(text + clock, Tone.DIM)), width, glyphs.cut)


def link_word(model: ConsoleModel, now_ms: int) -> str:
    """The link's state; with age and next attempt when it is not live."""
    link = model.link
    if link.state is LinkState.LIVE:
        return str(link.state)
    age = age_text(link.age_ms(now_ms))
    if link.state is LinkState.LOST:
        wait = -(-link.wait_ms(now_ms) // 1000)
        again = f"again in {wait} s" if wait else "trying"
        return f"{link.state} {age}, {again}"
    return f"{link.state} {age}" if link.heard_ms is not None else str(link.state)


def alert_row(found: list[Alert], shown: int, width: int, glyphs: Glyphs) -> Row:
    """One alert, the worst by default, and how many more there are."""
    if not found:
        return fit_row(row(Span(" no alert", Tone.DIM)), width)
    at = shown % len(found)
    alert = found[at]
    more = len(found) - 1
    right = row(Span(f"  {at + 1} of {more + 1}: n shows more " if more else " ", Tone.DIM))
    text = f" {ALERT_MARK[alert.severity]} {alert.text}"
    return between(row(Span(text, ALERT_TONE[alert.severity])), right, width, glyphs.cut)


def tabs_row(model: ConsoleModel, tab: int, note: str, width: int, glyphs: Glyphs) -> Row:
    """The heading of the pane: what it is about, which tab, and a note such as the follow mode."""
    parts: list[Span] = [Span(f"{glyphs.rule * 2} {model.module or '-'} on {model.node or '-'} ")]
    parts[0] = Span(parts[0].text, Tone.STRONG)
    for index, name in enumerate(TABS):
        text = f"[{index + 1} {name}]" if index == tab else f" {index + 1} {name} "
        parts.append(Span(text, Tone.FOCUS if index == tab else Tone.DIM, index == tab))
    right = row(Span(f" {note} " if note else "", Tone.ACCENT), Span(glyphs.rule * 2, Tone.DIM))
    return between(tuple(parts), right, width, glyphs.cut)


def absent_row(model: ConsoleModel, what: str, nothing: str, read: bool) -> Row:
    """Instead of an empty pane: why nothing of the selected node is shown."""
    reason = model.unread.get(model.place)
    if reason:
        text = f"  {reason}: its {what} {'is' if what == 'log' else 'are'} not shown"
        return row(Span(text, Tone.WARN))
    return row(Span(f"  no {nothing}" if read else "  not read yet", Tone.DIM))


def log_rows(line: LogLine, width: int, wrap: bool, search: str, glyphs: Glyphs) -> list[Row]:
    """One line of the log as one row, or several when wrapped."""
    mark = glyphs.output if line.run else " "
    found = bool(search) and matches(line, search)
    rule = f" ({line.rule})" if line.rule else ""
    text = f"{line.source}: {line.text}{rule}"
    head = row(
        Span(f" {time_text(line.at)} ", Tone.DIM),
        Span(line.level, LEVEL_TONE[line.level]),
        Span(mark, Tone.ACCENT),
    )
    tone = Tone.FOCUS if found else LEVEL_TONE[line.level]
    room = max(8, width - INDENT - 1)
    if not wrap:
        return [(*head, Span(cut(text, room, glyphs.cut), tone))]
    first, *rest = wrapped(text, room)
    return [
        (*head, Span(first, tone)),
        *(row(" " * (INDENT + 1), Span(piece.lstrip(), tone)) for piece in rest),
    ]


def run_row(run: ScriptRun, glyphs: Glyphs) -> Row:
    """One run of a script in the list."""
    word, tone = run_end(run)
    took = "" if run.duration_ms is None else f"{run.duration_ms / 1000:.1f} s"
    return row(
        Span(f" {minute_text(run.started)}:{run.started[17:19]} ", Tone.DIM),
        Span(fit(f"{run.script} on {run.node}", 30, glyphs.cut), Tone.STRONG),
        Span(f" {word:<16}", tone),
        f"{took:>9}  {run.lines} lines",
    )


def run_end(run: ScriptRun) -> tuple[str, Tone]:
    """How a run ended, as facts and not as text of its own."""
    if run.state == "running":
        return "running", Tone.WARN
    if run.timed_out:
        return "timed out", Tone.BAD
    if run.signal is not None:
        return f"signal {run.signal}", Tone.BAD
    if run.exit_status == 0:
        return "exit status 0", Tone.GOOD
    return f"exit status {run.exit_status}", Tone.BAD


def output_rows(output: ScriptOutput, width: int) -> list[Row]:
    """Everything that a run said, and its end."""
    rows: list[Row] = []
    if output.dropped:
        rows.append(row(Span(f" {output.dropped} earlier lines were not kept", Tone.WARN)))
    for line in output.output:
        tone = Tone.WARN if line.stream == "err" else Tone.PLAIN
        head = row(Span(f" {time_text(line.at)} ", Tone.DIM), Span(f"{line.stream} ", Tone.DIM))
        first, *rest = wrapped(line.text, max(8, width - 15))
        rows.append((*head, Span(first, tone)))
        rows += [row(" " * 14, Span(piece.lstrip(), tone)) for piece in rest]
    word, tone = run_end(output.run)
    took = output.run.duration_ms
    after = "" if took is None else f" after {took / 1000:.1f} s"
    rows.append(row(Span(f" {output.run.script} on {output.run.node}: {word}{after}", tone)))
    return rows


def checker_names(model: ConsoleModel) -> list[str]:
    """What the rows of the checkers' pane stand for: `all` first."""
    side = model.side()
    if side is None or not side.checkers:
        return []
    return ["all", *(checker.name for checker in side.checkers)]


def checker_items(model: ConsoleModel, width: int, now_ms: int, glyphs: Glyphs) -> list[list[Row]]:
    """The checkers of the selected side; a suspended one with who, why and until when below it."""
    side = model.side()
    if side is None or not side.checkers:
        return [[row(Span("  no checker is configured", Tone.DIM))]]
    held = sum(checker.suspended is not None for checker in side.checkers)
    text = f"  all {len(side.checkers)} checkers, {held} suspended"
    head = between(row(text), row(Span("Space suspends or resumes ", Tone.DIM)), width)
    items = [[head]]
    for checker in side.checkers:
        until = checker.suspended.until if checker.suspended else None
        left = model.seconds_until(until, now_ms) if until else None
        items.append(_checker_item(checker, left, width, glyphs))
    return items


def _checker_item(
    checker: CheckerView, left_s: int | None, width: int, glyphs: Glyphs
) -> list[Row]:
    state = f"{glyphs.resource[checker.state]} {checker.state:<8}"
    first = row(
        f"  {fit(f'{checker.kind}.{checker.name}', 22, glyphs.cut)} ",
        Span(state, RESOURCE_TONE[checker.state]),
        Span(f" {checker.action:<10}", Tone.DIM),
        checker.text,
    )
    rows = [fit_row(first, width, glyphs.cut)]
    if checker.suspended is not None:
        until = checker.suspended.until
        end = f" until {minute_text(until)} UTC" if until else ", without an end"
        if left_s is not None:
            end += f" ({age_text(max(0, left_s) * 1000)} left)"
        text = f"    SUSPENDED by {checker.suspended.by}{end}: {checker.suspended.reason}"
        rows.append(fit_row(row(Span(text, Tone.WARN)), width, glyphs.cut))
    return rows


def facts_rows(model: ConsoleModel, found: list[Alert], width: int, now_ms: int) -> list[Row]:
    """Every alert in full, then all that is known of the selected module and of the nodes."""
    view = model.module_view()
    if view is None or model.cluster is None:
        return [row(Span("  nothing known yet", Tone.DIM))]
    facts: list[tuple[str, str]] = [("alert", alert.text) for alert in found]
    facts += [
        ("module", f"{model.module}, number {view.number}, driver {view.driver}"),
        ("folder", view.folder),
        ("redundant", "yes" if view.redundant else "no"),
        ("failover", "on" if view.failover else "OFF"),
    ]
    for node, side in sorted(view.nodes.items()):
        rule = f" ({side.why.rule})" if side.why.rule else ""
        facts.append((node, f"{side.role} since {minute_text(side.since)}: {side.why.text}{rule}"))
        vm = f"vm {side.vm.state} (seen by {side.vm.seen_by}), boot {side.boot}"
        line = f"generation {short_generation(side.generation)}, epoch {side.epoch}"
        facts.append(("", f"{vm}, {line}"))
        if side.replication_lan:
            facts.append(("", f"replication over {side.replication_lan}"))
        if side.restarts is not None:
            r = side.restarts
            facts.append(("", f"automatic restarts: {r.used} of {r.of} in {r.window_h} h"))
        if side.damage:
            facts.append(("damage", side.damage))
        for kept in side.safety_copies:
            end = f", deleted {minute_text(kept.expires)} UTC" if kept.expires else ""
            text = f"{kept.state} {kept.id}, {size_text(kept.bytes)}{end} {kept.text}"
            facts.append(("safety copy", text.rstrip()))
    for item in view.preflight:
        facts.append(("preflight", f"{item.node}: {item.text} {item.fix}".rstrip()))
    for name, one in sorted(model.cluster.nodes.items()):
        age_ms = model.node_age_ms(name, now_ms)
        seen = "heard" if age_ms == 0 else f"last heard {age_text(age_ms)} ago"
        lans = ", ".join(f"{lan} {state}" for lan, state in sorted(one.lans.items())) or "no LAN"
        facts.append((f"node {name}", f"version {one.version}, {seen}, {lans}"))
        if one.witness is not None:
            facts.append(("", f"witness {one.witness.kind}: {one.witness.state}"))
        facts += [("limit", limit) for limit in one.limits]
    rows: list[Row] = []
    for label, text in facts:
        first, *rest = wrapped(text, max(8, width - 16))
        rows.append(row(Span(f"  {fit(label, 13)}", Tone.DIM), first))
        rows += [row(" " * 15, piece.lstrip()) for piece in rest]
    return rows


def activity_row(model: ConsoleModel, width: int, now_ms: int, glyphs: Glyphs) -> Row | None:
    """The newest command of this console: requested, or how it ended."""
    one = model.newest_command(now_ms)
    if one is None:
        return None
    tone = {"requested": Tone.WARN, "done": Tone.GOOD}.get(one.state, Tone.BAD)
    text = f" {one.verb} {one.module} on {one.node}: {one.text}"
    if one.ended_ms is None:
        waiting = age_text(now_ms - one.requested_ms)
        text = f" {one.verb} {one.module} on {one.node}, not ended yet ({waiting})"
        if one.total_bytes is not None and one.done_bytes is not None:
            far = percent(one.done_bytes, one.total_bytes)
            text += f", {far} % of {size_text(one.total_bytes)}"
    return fit_row(row(Span(f" {one.state}:", tone), text), width, glyphs.cut)
