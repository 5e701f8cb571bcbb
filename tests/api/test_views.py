"""What one node and the other one say, put together for those who look."""

from __future__ import annotations

import pytest

from hyperha.api.wire import ModuleReport, NodeReport, NodeView, ResyncView
from hyperha.daemon.views import merged
from hyperha.domain import Role
from tests.support.fake_service import side

KNOWN = ResyncView(rule="R7", done_bytes=5, total_bytes=9, bytes_per_s=1, seconds_left=4)
BEGUN = ResyncView(
    rule="R6", done_bytes=0, total_bytes=0, bytes_per_s=0, seconds_left=None, safety_copy=True
)


def _report(role: Role, resync: ResyncView | None) -> ModuleReport:
    return ModuleReport(
        number=1,
        driver="process",
        folder="/f",
        generation="g",
        failover=True,
        side=side(role).model_copy(update={"resync": resync}),
    )


def _other(name: str, module: ModuleReport) -> NodeReport:
    view = NodeView(reachable=True, seen_ms_ago=0)
    return NodeReport(node=name, view=view, modules={"VM1": module})


@pytest.mark.parametrize("asked", ["node1", "node2"])
@pytest.mark.parametrize(
    ("target", "shown"), [(BEGUN, 5), (None, None)], ids=["both know of it", "only the source"]
)
def test_a_resync_is_shown_on_the_node_that_takes_part_in_it(
    asked: str, target: ResyncView | None, shown: int | None
) -> None:
    reports = {"node1": _report(Role.ALONE, KNOWN), "node2": _report(Role.SECOND, target)}
    peer = "node2" if asked == "node1" else "node1"
    view = merged("VM1", asked, reports[asked], peer, _other(peer, reports[peer]), why_unseen="")
    source, taking = view.nodes["node1"].resync, view.nodes["node2"].resync
    if shown is None:
        assert (source, taking) == (KNOWN, None)
    else:
        # Only the target knows whether there is a way back.
        assert (source, taking) == (None, KNOWN.model_copy(update={"safety_copy": True}))


def test_a_node_that_was_never_seen_says_why() -> None:
    why = "refused: another key"
    view = merged("VM1", "node1", _report(Role.PRIM, None), "node2", None, why_unseen=why)
    assert view.nodes["node2"].resync is None
    assert view.nodes["node2"].why.text == why
