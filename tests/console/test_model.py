"""The console's model without a terminal: link, logs, layout, shapes, alerts, texts."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from hyperha.api.wire import CheckerView, OperationView, VmView, VmWord
from hyperha.client import link as links
from hyperha.client.link import Link, LinkState
from hyperha.client.targets import home_targets, url_targets
from hyperha.config.home import Home
from hyperha.domain import DataState, Readiness, ResourceState, Role
from hyperha.errors import UsageError
from hyperha.text import size_text
from tests.console.fake_node import AT, RESYNC, SUSPENDED, cluster, log, module, side
from tests.support import ROOT
from tui.actions import REGISTRY, Level, availability, footer_actions, key_sheet, level_of, look
from tui.model.alerts import Severity, alerts
from tui.model.cleaning import cleaned
from tui.model.console import ConsoleModel, Issued
from tui.model.formatting import age_text, clock_text, percent
from tui.model.glyphs import ASCII, UNICODE, Glyphs
from tui.model.layout import Shape, layout, table_window
from tui.model.log_buffer import LevelFilter, LogBuffer, LogView, find
from tui.model.rows import Span, Tone, between, cells, cut, fit, fit_row, plain, row, wrapped
from tui.model.scroller import Scroller
from tui.model.tiles import module_panel, resync_bar, tile
from tui.screens.lists import help_items
from tui.themes import PALETTES, Look

NOW = 1_000_000


def shown(view: object = None, **changes: object) -> ConsoleModel:
    """A live model that has just seen a cluster."""
    model = ConsoleModel(link=Link(LinkState.LIVE, "node1", NOW))
    model.take_cluster(view or cluster(**changes), NOW)  # type: ignore[arg-type]
    return model


# --- link ------------------------------------------------------------------------------------


def test_the_link_goes_live_stale_lost_and_comes_back() -> None:
    link = links.attempting(Link(), "node1")
    assert link.state is LinkState.CONNECTING
    assert link.age_ms(NOW) is None
    link = links.heard(link, NOW)
    assert link.live
    assert links.ticked(link, NOW + 9_999).live
    stale = links.ticked(link, NOW + 10_000)
    assert stale.state is LinkState.STALE
    assert links.heard(stale, NOW + 10_001).live
    lost = links.failed(stale, NOW + 11_000, "reset", 1, 1.0)
    assert lost.state is LinkState.LOST
    assert lost.wait_ms(NOW + 11_000) == 500
    assert lost.age_ms(NOW + 11_000) == 11_000
    again = links.attempting(lost, "node1")
    assert again.state is LinkState.LOST, "what was heard before is not CONNECTING again"
    assert links.heard(again, NOW + 12_000).failures == 0


def test_the_pause_grows_to_ten_seconds_and_never_ends() -> None:
    pauses = [links.delay_ms(count, 1, 1.0) for count in range(1, 40)]
    assert pauses[:6] == [500, 1000, 2000, 4000, 8000, 10_000]
    assert set(pauses[6:]) == {10_000}


def test_every_target_is_tried_before_a_pause() -> None:
    assert [links.delay_ms(count, 3, 1.0) for count in range(1, 7)] == [0, 0, 500, 0, 0, 1000]


def test_the_pause_stays_within_its_bounds() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(500):
        pause = links.delay_ms(chance.randrange(1, 60), 1, chance.random())
        assert 500 <= pause <= 10_000


def test_another_boot_id_means_reading_everything_again() -> None:
    link, changed = links.identified(Link(), "b1")
    assert changed
    assert not links.identified(link, "b1")[1]
    assert links.identified(link, "b2")[1]


def test_targets_come_from_homes_and_urls(tmp_path: Path) -> None:
    (target,) = home_targets([tmp_path])
    assert target.socket == str(tmp_path / "run" / "api.sock")
    (remote,) = url_targets(["https://10.0.0.1:9010"], Home.at(tmp_path))
    assert remote.authority == str(tmp_path / "config" / "pki" / "ca.crt")
    for wrong in ("http://10.0.0.1", "node1", "https://"):
        with pytest.raises(UsageError, match="is no address of a node"):
            url_targets([wrong], Home.at(tmp_path))


# --- logs ------------------------------------------------------------------------------------


def test_the_buffer_keeps_order_drops_doubles_and_counts_what_gave_way() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    numbers = [chance.randrange(1, 200) for _ in range(400)]
    whole, bounded = LogBuffer(limit=1000), LogBuffer(limit=20)
    for number in numbers:
        whole.add(log(number, f"line {number}"))
        bounded.add(log(number, f"line {number}"))
    assert [line.seq for line in whole.lines] == sorted(set(numbers))
    assert [line.seq for line in bounded.lines] == sorted(set(numbers))[-20:]
    assert bounded.dropped > 0


def test_a_page_fills_what_the_stream_did_not_bring() -> None:
    buffer = LogBuffer()
    buffer.add(log(5, "five"))
    buffer.merge([log(number, "old") for number in (3, 4, 5)])
    assert [(line.seq, line.text) for line in buffer.lines] == [(3, "old"), (4, "old"), (5, "old")]
    before = buffer.version
    buffer.merge([log(4, "old")])
    assert buffer.version == before


def test_a_paused_view_does_not_move_while_lines_come_and_go() -> None:
    buffer, view = LogBuffer(limit=5), LogView()
    for number in range(1, 6):
        buffer.add(log(number, str(number)))
    assert view.update(buffer, LevelFilter.ALL, True)
    for number in range(6, 12):
        buffer.add(log(number, str(number)))
        view.update(buffer, LevelFilter.ALL, False)
    assert [line.seq for line in view.lines] == [1, 2, 3, 4, 5]
    assert view.waiting == 5, "what is still in the buffer and was not seen"
    assert view.update(buffer, LevelFilter.ALL, True)
    assert [line.seq for line in view.lines] == [7, 8, 9, 10, 11]
    assert view.waiting == 0


def test_levels_and_search() -> None:
    lines = [log(1, "Alpha"), log(2, "beta", level="W"), log(3, "alpha", level="E")]
    assert [LevelFilter.WARNINGS.shows(line.level) for line in lines] == [False, True, True]
    assert [LevelFilter.ERRORS.shows(line.level) for line in lines] == [False, False, True]
    assert find(lines, "ALPHA", 0, 1) == 2
    assert find(lines, "alpha", 2, 1) == 0
    assert find(lines, "alpha", 0, -1) == 2
    assert find(lines, "gamma", 0, 1) is None
    assert find([], "a", 0, 1) is None


def test_the_scroller_follows_until_it_is_moved_up() -> None:
    scroller = Scroller(follow=True)
    scroller.resize(100, 10)
    assert (scroller.top, scroller.cursor) == (90, 99)
    scroller.move(-1)
    scroller.resize(120, 10)
    assert (scroller.top, scroller.cursor, scroller.follow) == (90, 98, False)
    scroller.end(follow=True)
    assert (scroller.top, scroller.cursor) == (110, 119)
    scroller.resize(0, 10)
    assert (scroller.top, scroller.cursor) == (0, 0)


# --- layout and drawing ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "modules", "table", "shape", "rows"),
    [
        ((59, 24), 1, False, Shape.TOO_SMALL, 0),
        ((80, 15), 1, False, Shape.TOO_SMALL, 0),
        ((60, 16), 1, False, Shape.TILES, 5),
        ((80, 24), 1, False, Shape.TILES, 6),
        ((80, 24), 2, False, Shape.TILES, 12),
        ((80, 24), 3, False, Shape.TILES, 13),
        ((80, 24), 4, False, Shape.TABLE, 6),
        ((80, 24), 1, True, Shape.TABLE, 4),
        ((120, 40), 4, False, Shape.TILES, 24),
        ((120, 40), 32, False, Shape.TABLE, 30),
        ((160, 40), 5, False, Shape.TILES, 35),
    ],
)
def test_layout(size: tuple[int, int], modules: int, table: bool, shape: Shape, rows: int) -> None:
    plan = layout(*size, modules, table)
    assert (plan.shape, plan.module_rows) == (shape, rows)
    if shape is not Shape.TOO_SMALL and not plan.side_by_side:
        assert plan.module_rows + 5 + 5 <= size[1], "the log keeps five rows at least"


def test_the_table_keeps_the_selected_module_in_its_window() -> None:
    for count, rows in itertools.product(range(1, 33), range(1, 12)):
        for selected in range(count):
            first, last = table_window(count, rows, selected)
            assert first <= selected < last <= count
            assert last - first <= rows


@pytest.mark.parametrize("size", [(60, 16), (80, 24), (120, 40), (160, 50)])
@pytest.mark.parametrize("count", [1, 3, 32])
@pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])
def test_the_panel_fits_its_place_exactly(
    size: tuple[int, int], count: int, glyphs: Glyphs
) -> None:
    names = {f"module-with-a-long-name-{n}": module(n) for n in range(1, count + 1)}
    model = shown(cluster(names))
    plan = layout(*size, count, False)
    width = size[0] // 2 if plan.side_by_side else size[0]
    rows = module_panel(model, plan, width, NOW, glyphs, focused=True)
    assert len(rows) <= plan.module_rows
    for one in rows:
        assert cells(plain(one)) <= width
    if glyphs.ascii_only:
        assert all(plain(one).isascii() for one in rows)


@pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])
def test_every_state_differs_without_colour(glyphs: Glyphs) -> None:
    drawn = {}
    for role, readiness in itertools.product(Role, Readiness):
        sides = {"node1": side(role, readiness=readiness), "node2": side(Role.STOP)}
        model = shown(cluster({"web": module(nodes=sides)}))
        lines = tile(model, "web", "node1", (40, 4), NOW, glyphs)
        drawn[f"{role} {readiness}"] = "\n".join(plain(one) for one in lines)
    gone = shown()
    old = tile(gone, "web", "node1", (40, 4), NOW, glyphs)
    gone.link = links.failed(gone.link, NOW, "reset", 1, 0.0)
    drawn["unknown"] = "\n".join(
        plain(one) for one in tile(gone, "web", "node1", (40, 4), NOW + 5000, glyphs)
    )
    assert len(set(drawn.values())) == len(drawn)
    assert drawn["unknown"] != "\n".join(plain(one) for one in old)
    assert len({glyphs.role[role] for role in glyphs.role}) == len(glyphs.role)


def test_every_theme_styles_every_tone_and_mono_has_no_colour() -> None:
    for name in PALETTES:
        look_ = Look.of(name, False)
        styles = {tone: look_.style(tone) for tone in PALETTES[name]}
        if name == "mono":
            assert all(style.color is None and style.bgcolor is None for style in styles.values())
            assert len({str(style) for style in styles.values()}) >= 6


def test_the_resync_bar_says_who_to_whom_how_far_and_what_it_means() -> None:
    sides = {"node1": side(Role.ALONE, resync=RESYNC), "node2": side(Role.SECOND)}
    model = shown(cluster({"web": module(nodes=sides)}))
    bar = resync_bar(model, 120, NOW, UNICODE)
    assert bar is not None
    text = plain(bar)
    assert "node1→node2" in text
    assert "43%  430 MiB of 1.0 GiB  212 MiB/s  02:10 left" in text
    assert "node2 cannot take over yet" in text
    wide = resync_bar(model, 140, NOW, UNICODE)
    assert wide is not None
    assert "02:10 left, slowed for the guest  node2 cannot take over yet" in plain(wide)
    assert resync_bar(shown(), 120, NOW, UNICODE) is None


@pytest.mark.parametrize("text", ["plain", "größe", "漢字漢字漢字", "e\u0301e\u0301", ""])
def test_widths_are_exact_in_cells(text: str) -> None:
    for width in range(1, 14):
        assert cells(cut(text, width)) <= width
        assert cells(fit(text, width)) == width
        assert cells(plain(fit_row(row(text, "tail"), width))) == width
        assert cells(plain(between(row(text), row("R"), width))) == width
        assert "".join(wrapped(text, width)).replace(" ", "") == text.replace(" ", "")


def test_numbers_for_people() -> None:
    assert [size_text(n) for n in (0, 999, 2048, 222298112)] == [
        "0 B",
        "999 B",
        "2.0 KiB",
        "212 MiB",
    ]
    assert [clock_text(n) for n in (None, 5, 130, 3730)] == ["--:--", "00:05", "02:10", "1:02:10"]
    assert [age_text(n) for n in (None, 400, 12_000, 400_000)] == [
        "never",
        "0.4 s",
        "12 s",
        "6 min",
    ]
    assert [percent(*pair) for pair in ((0, 0), (999_999, 1_000_000), (5, 5))] == [0, 99, 100]


# --- what is known ---------------------------------------------------------------------------


def test_the_selection_stays_on_its_name_when_others_come_and_go() -> None:
    model = shown(cluster({"a": module(1), "b": module(2), "c": module(3)}))
    model.choose_module(1)
    model.choose_node(1)
    model.take_cluster(cluster({"b": module(2), "c": module(3)}), NOW)
    assert (model.module, model.node) == ("b", "node2")
    model.take_cluster(cluster({"c": module(3)}), NOW)
    assert model.module == "c"


def test_the_worst_alert_comes_first() -> None:
    sides = {"node1": side(Role.ALONE), "node2": side(Role.WAIT, readiness=Readiness.NOT_READY)}
    view = cluster({"web": module(nodes=sides, failover=False)})
    node = view.nodes["node1"].model_copy(update={"lans": {"repl": ResourceState.DOWN}})
    model = shown(view.model_copy(update={"nodes": view.nodes | {"node1": node}}))
    texts = [alert.text for alert in alerts(model, NOW)]
    assert any("ALONE, no redundancy" in text for text in texts)
    assert any("LAN repl is down" in text for text in texts)
    assert any("failover is switched off" in text for text in texts)
    model.link = links.failed(model.link, NOW, "reset", 1, 0.0)
    found = alerts(model, NOW + 3000)
    assert found[0].severity is Severity.CRITICAL
    assert "LOST, shown as it was 3 s ago" in found[0].text


def test_both_running_and_nobody_running_are_critical() -> None:
    both = shown(cluster({"web": module(nodes={"node1": side(), "node2": side(Role.ALONE)})}))
    assert alerts(both, NOW)[0].text == "web: node1 and node2 both run it"
    sides = {"node1": side(Role.WAIT), "node2": side(Role.STOP)}
    nobody = shown(cluster({"web": module(nodes=sides)}))
    assert alerts(nobody, NOW)[0].text.startswith("web runs nowhere")
    calm = shown(cluster({"web": module(nodes={n: side(Role.STOP) for n in ("node1", "node2")})}))
    assert alerts(calm, NOW) == []


@pytest.mark.parametrize("role", [Role.PRIM, Role.ALONE])
@pytest.mark.parametrize(
    ("word", "told"),
    [("absent", True), ("stopping", False), ("starting", False), ("running", False)],
)
def test_a_vm_that_is_not_there_where_it_should_run_is_critical(
    role: Role, word: VmWord, told: bool
) -> None:
    """Whatever the checkers say, and also when the one that would say it is suspended."""
    held = CheckerView(name="web", kind="vm", state=ResourceState.UNKNOWN, suspended=SUSPENDED)
    here = side(role, vm=VmView(state=word), checkers=[held])
    model = shown(cluster({"web": module(1, nodes={"node1": here})}))
    found = [one for one in alerts(model, NOW) if "absent" in one.text]
    assert bool(found) is told
    if told:
        assert found[0].severity is Severity.CRITICAL
        assert (found[0].module, found[0].node) == ("web", "node1")
    for table, resync in itertools.product((False, True), (None, RESYNC)):
        sides = {"node1": here.model_copy(update={"resync": resync})}
        model = shown(cluster({"web": module(1, nodes=sides)}))
        plan = layout(60, 16, 1, table)
        spans = [
            span
            for one in module_panel(model, plan, 60, NOW, UNICODE, focused=True)
            for span in one
            if isinstance(span, Span) and "absent" in span.text
        ]
        assert [span.tone for span in spans] == ([Tone.BAD] if told else [])


@pytest.mark.parametrize(
    ("readiness", "fresh", "expected"),
    [
        (Readiness.READY, True, [Severity.CRITICAL]),
        (Readiness.TRANSIENT, True, [Severity.WARNING]),
        (Readiness.READY, False, []),
        (Readiness.TRANSIENT, False, []),
    ],
)
def test_how_grave_an_absent_vm_is(
    readiness: Readiness, fresh: bool, expected: list[Severity]
) -> None:
    """A warning on a node that moves; nothing about a node whose present state is not known."""
    view = cluster(
        {"web": module(1, nodes={"node1": side(readiness=readiness, vm=VmView(state="absent"))})}
    )
    if not fresh:
        silent = view.nodes["node1"].model_copy(update={"reachable": False, "seen_ms_ago": 4000})
        view = view.model_copy(update={"nodes": view.nodes | {"node1": silent}})
    model = shown(view)
    assert model.stale("node1", NOW) is not fresh
    assert [one.severity for one in alerts(model, NOW) if "VM is absent" in one.text] == expected


def test_a_vm_is_absent_without_an_alert_where_none_should_run() -> None:
    model = shown(cluster({"web": module(1, nodes={"node2": side(Role.SECOND)})}))
    there = model.side(node="node2")
    assert there is not None
    assert there.vm.state == "absent"
    assert not [one for one in alerts(model, NOW) if "absent" in one.text]


def test_an_end_that_comes_before_the_answer_is_not_lost() -> None:
    model = shown()
    ended = OperationView(
        id="op-1",
        module="web",
        node="node1",
        verb="stop",
        by="root",
        state="done",
        text="stopped",
        started=AT,
    )
    model.take_operation(ended, NOW)
    model.requested(Issued("web", "node1", "stop", "op-1", NOW))
    assert model.running_commands() == []
    assert model.issued[0].state == "done"


def test_foreign_text_is_cleaned_wherever_it_stands() -> None:
    evil = "a\x1b]0;x\x07b\x1b[2Jc\x9bd\u202ee"
    sides = {"node1": side(why={"rule": evil, "text": evil}, losses={"prim": evil})}
    view = cleaned(cluster({"web": module(nodes=sides, folder=evil)}, cluster=evil))
    assert "\\u001b" not in view.model_dump_json()
    assert not set("\x1b\x07\x9b\u202e") & set(str(view))


# --- registry --------------------------------------------------------------------------------


def test_ids_and_keys_are_unique_and_avoid_what_terminals_use() -> None:
    ids = [action.id for action in REGISTRY]
    keys = [key for action in REGISTRY for key in action.keys]
    assert len(set(ids)) == len(ids)
    assert len(set(keys)) == len(keys)
    assert not {"ctrl+a", "ctrl+b", "ctrl+z", "ctrl+s", "ctrl+enter"} & set(keys)
    assert not any(key.startswith("alt+") for key in keys)
    assert len(footer_actions()) <= 7
    assert sum(len(action.title) + 4 for action in footer_actions()) <= 79


def test_every_change_says_what_it_does_and_what_not() -> None:
    for action in REGISTRY:
        if action.changes:
            assert action.effect, action.id
            assert action.spares, action.id
        assert action.title in "\n".join(plain(one) for item in help_items(80) for one in item)


def test_the_documented_keys_are_the_ones_of_the_registry() -> None:
    sheet = ROOT / "hyperha" / "docs" / "console-keys.md"
    assert sheet.read_text("utf-8") == key_sheet(), "write tui.actions.key_sheet() to it"


def test_stopping_the_last_running_side_is_a_loss() -> None:
    stop = next(action for action in REGISTRY if action.id == "stop")
    redundant = look(shown(), stop, "web", "node1")
    assert redundant is not None
    assert level_of(stop, redundant) is Level.CONFIRM
    sides = {"node1": side(Role.ALONE), "node2": side(Role.STOP, data=DataState.OUTDATED)}
    alone = look(shown(cluster({"web": module(nodes=sides)})), stop, "web", "node1")
    assert alone is not None
    assert level_of(stop, alone) is Level.LOSS


@pytest.mark.parametrize("action", [a for a in REGISTRY if a.changes], ids=lambda a: a.id)
def test_nothing_is_allowed_over_a_link_that_is_not_live(action: object) -> None:
    model = shown()
    seen = look(model, action, "web", "node1")  # type: ignore[arg-type]
    assert seen is not None
    for state in (LinkState.CONNECTING, LinkState.STALE, LinkState.LOST):
        model.link = Link(state, "node1", NOW)
        now = availability(model, action, seen, NOW)  # type: ignore[arg-type]
        assert not now.allowed
        assert str(state) in now.reason
