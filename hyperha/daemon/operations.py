"""The commands that were accepted, and how each ended."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

from hyperha.api.wire import OperationView
from hyperha.daemon.views import rfc3339
from hyperha.errors import NotFoundError

KEPT = 500


class Operations:
    """Kept in memory, the newest ones; ids name the node that carries them out."""

    def __init__(self, node: str, changed: Callable[[OperationView], None]) -> None:
        self._node = node
        self._changed = changed
        self._views: OrderedDict[str, OperationView] = OrderedDict()
        self._requests: OrderedDict[str, str] = OrderedDict()

    def repeated(self, request_id: str) -> str | None:
        """The operation that a repeated request began the first time."""
        return self._requests.get(request_id)

    def begin(self, module: str, verb: str, by: str, request_id: str) -> OperationView:
        """A new operation."""
        view = OperationView(
            id=f"{self._node}-{secrets.token_hex(8)}",
            module=module,
            node=self._node,
            verb=verb,
            by=by,
            state="running",
            text="",
            started=rfc3339(time.time_ns() // 1_000_000),
        )
        self._views[view.id] = view
        if request_id:
            self._requests[request_id] = view.id
        for kept in (self._views, self._requests):
            while len(kept) > KEPT:
                kept.popitem(last=False)
        self._changed(view)
        return view

    def progress(self, operation_id: str, done_bytes: int, total_bytes: int) -> None:
        """How far a running one is."""
        view = self._views.get(operation_id)
        if view is None or view.state != "running":
            return
        view = view.model_copy(update={"done_bytes": done_bytes, "total_bytes": total_bytes})
        self._views[operation_id] = view
        self._changed(view)

    def finish(self, operation_id: str, done: bool, text: str) -> OperationView | None:
        """It has ended; None when it is not known (any more)."""
        view = self._views.get(operation_id)
        if view is None or view.state != "running":
            return None
        ended = rfc3339(time.time_ns() // 1_000_000)
        state = "done" if done else "failed"
        view = view.model_copy(update={"state": state, "text": text, "ended": ended})
        self._views[operation_id] = view
        self._changed(view)
        return view

    def get(self, operation_id: str) -> OperationView:
        """Raises NotFoundError."""
        if operation_id not in self._views:
            raise NotFoundError(f"there is no operation {operation_id!r}")
        return self._views[operation_id]
