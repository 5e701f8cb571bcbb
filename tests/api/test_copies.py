"""What is told about the copies: routes, what stands of verifications, what a plan says."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hyperha.api.wire_copies import (
    CandidatesView,
    CandidateView,
    CopyView,
    VerdictView,
    VerifyReport,
    VerifyView,
)
from hyperha.cli.context import options as cli_options
from hyperha.cli.main import app
from hyperha.config import Home
from hyperha.core.messages import Summary
from hyperha.core.records import DataLabel, Generation, Lineage
from hyperha.core.state import Resync
from hyperha.daemon.observed import Observed, Pace, after, joined, next_serial
from hyperha.daemon.planning import _loss, _most, _safety_plan, summary_of
from hyperha.daemon.verifying import sentence
from hyperha.daemon.views import merged
from hyperha.domain import DataState, Role
from hyperha.encoding import to_plain
from hyperha.errors import RefusedError, UsageError
from hyperha.replication.control import Difference, VerifyTold
from tests.api.test_routes import local
from tests.api.test_views import _other, _report
from tests.support.fake_service import AHEAD, AT, BEHIND, DIFF, KEPT, PLAN, VERIFIED


def verified(
    serial: int, *, left: int = 0, complete: bool = True, node: str = "node1"
) -> VerifyView:
    changes = {"serial": serial, "left": left, "complete": complete, "node": node}
    return VERIFIED.model_copy(update=changes)


# --- what stands of verifications ---------------------------------------------------------


def test_differences_stand_until_a_complete_verification_finds_none() -> None:
    report = after(VerifyReport(), verified(1, left=2))
    assert report.standing == report.last == verified(1, left=2)
    broken_off = after(report, verified(2, complete=False))
    assert broken_off.standing == verified(1, left=2), "half a comparison clears nothing"
    assert broken_off.last == verified(2, complete=False)
    more = after(broken_off, verified(3, left=5, complete=False))
    assert more.standing == verified(3, left=5, complete=False)
    clean = after(more, verified(4))
    assert (clean.standing, clean.clean_serial) == (None, 4)


def test_a_later_clean_verification_on_the_other_node_counts() -> None:
    own = after(VerifyReport(), verified(1, left=2))
    other = after(VerifyReport(), verified(2, node="node2"))
    assert joined(own, VerifyReport()).standing is not None
    for both in (joined(own, other), joined(other, own)):
        assert both.standing is None
        assert both.last == verified(2, node="node2")
        assert next_serial(both) == 3
    again = after(own, verified(3, left=1))
    assert joined(again, other).standing == verified(3, left=1)
    assert next_serial(VerifyReport()) == 1


def test_what_was_found_outlasts_the_daemon(tmp_path: Path) -> None:
    observed = Observed(tmp_path, "node1 VM1")
    assert observed.load() == ""
    observed.verify = after(observed.verify, verified(1, left=2))
    observed.resync_bytes_per_s = 7
    observed.store()
    found = Observed(tmp_path, "node1 VM1")
    assert found.load() == ""
    assert (found.verify, found.resync_bytes_per_s) == (observed.verify, 7)
    (tmp_path / "observed").write_bytes(b"x" * 200_000)
    damaged = Observed(tmp_path, "node1 VM1")
    assert "verify again" in damaged.load()
    assert damaged.verify == VerifyReport()
    damaged.store()


def test_differences_are_a_reason_for_whoever_asks() -> None:
    own = _report(Role.PRIM, None).model_copy(
        update={"verify": after(VerifyReport(), verified(1, left=1))}
    )
    theirs = _report(Role.SECOND, None)
    view = merged("VM1", "node1", own, "node2", _other("node2", theirs), why_unseen="")
    (item,) = view.preflight
    assert (item.code, item.node) == ("copies-differ", "node1")
    assert "disk at 65,536" in item.text
    assert AT in item.text
    assert item.fix == "hyperha verify VM1 --repair"
    clean = theirs.model_copy(update={"verify": after(VerifyReport(), verified(2))})
    view = merged("VM1", "node1", own, "node2", _other("node2", clean), why_unseen="")
    assert view.preflight == []


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (
            VerifyTold(1, objects=1204, done_bytes=21_582_210_826),
            "compared 1,204 files and directories with 20.1 GiB: equal",
        ),
        (
            VerifyTold(
                1,
                objects=1,
                done_bytes=3 << 20,
                blocks=3,
                repaired=3,
                examples=(Difference("disk.qcow2", 12_582_912, 196_608),),
            ),
            "compared 1 file or directory with 3.0 MiB: 3 blocks of 64 KiB differ in disk.qcow2 at "
            "12,582,912, 3 written again on node2",
        ),
        (
            VerifyTold(
                1,
                objects=2,
                blocks=1,
                others=1,
                examples=(Difference("a", 0, 0), Difference("b", 65_536, 65_536)),
            ),
            "compared 2 files and directories with 0 B: 1 block of 64 KiB differs in b at 65,536; "
            "1 with other names or attributes, first a",
        ),
    ],
)
def test_findings_are_one_sentence(told: VerifyTold, text: str) -> None:
    assert sentence(told, "node2") == text


def test_the_pace_of_a_resync_is_known_when_it_has_ended() -> None:
    pace = Pace()
    resync = Resync("R6", total_bytes=100 << 20)
    assert pace.note(resync) is None
    assert pace.note(replace(resync, done_bytes=90 << 20, bytes_per_s=20 << 20)) is None
    assert pace.note(None) == 20 << 20
    assert pace.note(None) is None
    pace.note(replace(resync, done_bytes=1000, bytes_per_s=1000))
    assert pace.note(None) is None, "so little says nothing about much"


# --- plans --------------------------------------------------------------------------------


def _copy(node: str, *entries: CandidateView) -> CopyView:
    total = sum(one.bytes for one in entries)
    found = CandidatesView(files=len(entries), bytes=total, listed=list(entries))
    return CopyView(node=node, data=DataState.UPTODATE, candidates=found)


TO_NODE2 = PLAN.verdict


def test_what_stands_in_both_logs_is_compared_once_where_that_is_certain() -> None:
    zones, whole = CandidateView(path="f", bytes=2), CandidateView(path="f", bytes=9, whole=True)
    mine = CandidateView(path="g", bytes=4)
    both = {"node1": _copy("node1", zones, mine), "node2": _copy("node2", whole)}
    assert _most(TO_NODE2, both) == (2, 13)
    both["node2"] = _copy("node2", zones)
    assert _most(TO_NODE2, both) == (2, 8), "other zones of the same file may be meant"


def test_a_full_compare_is_as_large_as_the_source() -> None:
    full = TO_NODE2.model_copy(update={"start": "full"})
    sized = AHEAD.model_copy(update={"tree_bytes": 77})
    assert _most(full, {"node1": sized, "node2": BEHIND}) == (None, 77)


@pytest.mark.parametrize(
    ("kind", "free", "most", "fits", "text"),
    [
        ("none", 9, 5, None, "no safety copy"),
        ("best_effort", 9, 5, True, "keeps what node2 has"),
        ("best_effort", 4, 5, False, "no way back"),
        ("required", 4, 5, False, "nothing is overwritten"),
        ("required", 4, None, None, "not known"),
    ],
)
def test_a_plan_says_whether_there_would_be_a_way_back(kind, free, most, fits, text) -> None:
    target = BEHIND.model_copy(update={"safety": kind, "free_bytes": free + 2, "reserve_bytes": 2})
    found = _safety_plan(TO_NODE2, {"node1": AHEAD, "node2": target}, most)
    assert (found.kind, found.fits) == (kind, fits)
    assert text in found.text


def test_a_line_that_gives_way_is_a_stated_loss() -> None:
    verdict = VerdictView(
        rule="R9", source="node2", target="node1", start="full", text="split brain", gives_up=True
    )
    text = _loss(verdict, {"node1": AHEAD, "node2": BEHIND})
    assert text == (
        "what node1 has written since 2026-11-22 08:50 UTC is given up: "
        "2 files with at most 1.0 MiB"
    )
    assert _loss(TO_NODE2, {"node1": AHEAD, "node2": BEHIND}) == ""


def test_a_summary_travels_and_nonsense_is_refused() -> None:
    lineage = Lineage(
        "r" * 32, "node1", "node2", Generation("g", 3, "x", 5), "b", ("a",) * 16, DataLabel.OUTDATED
    )
    summary = Summary.of(lineage, -1, False, unknown=True)
    text = json.dumps(to_plain(summary))
    assert summary_of(text) == summary
    for bad in ("{", "[]", '{"resource": 3}', "null", text.replace("node1", '", "x": "')):
        with pytest.raises(UsageError):
            summary_of(bad)


# --- over HTTP ----------------------------------------------------------------------------


@pytest.mark.anyio
async def test_what_is_told_about_copies_comes_over_the_api(tmp_path: Path) -> None:
    async with local(tmp_path, "monitor") as (service, client):
        assert (await client.verify_report("VM1")).last == VERIFIED
        assert await client.plan("VM1") == PLAN
        assert await client.diff("VM1") == DIFF
        assert (await client.safety_copies("VM1")).copies == [KEPT]
        with pytest.raises(RefusedError, match="R7"):
            await client.plan("VM1", "node1")
        answer = await client._http.get("/v1/modules/VM1/copy?against=%7B%7D&to=node2&sizes=1")
        assert answer.status_code == 200
        assert service.asked[-1][1] == ("{}", "node2", True)
        assert (await client._http.get("/v1/modules/VM1/plan?to=a%2Fb")).status_code == 422


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"id": "20261122-085042-a1b2", "to": "/srv/x"}, 202),
        ({"id": "../x"}, 422),
        ({"id": "a/b"}, 422),
        ({"to": "x" * 5000}, 422),
        ({"repair": "perhaps"}, 422),
    ],
)
async def test_options_are_checked_at_the_edge(tmp_path: Path, options, status) -> None:
    async with local(tmp_path) as (service, client):
        body = {"verb": "safety-restore", "request_id": "12345678", "options": options}
        answer = await client._http.post("/v1/modules/VM1/actions", json=body)
        assert answer.status_code == status, answer.text
        assert len(service.asked) == (status == 202)
    await asyncio.sleep(0)


# --- the command line ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("safety", "VM1", "burn"), "list, restore or delete"),
        (("safety", "VM1", "restore"), "needs an ID"),
        (("safety", "VM1", "restore", "x"), "--to DIR"),
    ],
)
def test_wrong_usage_of_safety_says_what_is_right(tmp_path: Path, arguments, text) -> None:
    home = Home.at(tmp_path)
    home.create()
    try:
        done = CliRunner().invoke(app, ["--home", str(tmp_path), *arguments])
    finally:
        cli_options.home = None
    assert isinstance(done.exception, UsageError)
    assert text in str(done.exception)
