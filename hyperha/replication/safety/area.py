"""All safety copies of one folder: opening, ending, listing, restoring, deleting, retention.

Used by the engine of a covered folder, whose changes it guards, and by the daemon for a folder that
is not covered (`of_folder`), where nothing changes. It decides nothing about roles; the core says
when a copy is opened and how it ends (R15, N3).
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from hyperha.core.actions import (
    CloseSafety,
    EngineAction,
    OpenSafety,
    SafetyEnd,
    UndoResync,
)
from hyperha.core.events import SafetyLost
from hyperha.core.facts import Shortage
from hyperha.errors import FailedError, HyperhaError, NotFoundError, RefusedError
from hyperha.replication import syscalls
from hyperha.replication.aside import lost_names, tidy
from hyperha.replication.clock import now_ms
from hyperha.replication.control import LogLine
from hyperha.replication.entries import remove_tree
from hyperha.replication.safety.copy import (
    LEAVING,
    Facts,
    SafetyCopy,
    State,
    delete,
    is_unborn,
    new_id,
    open_area,
)
from hyperha.replication.safety.guard import Guard
from hyperha.replication.safety.restore import Progress, Restore
from hyperha.replication.safety.retention import Ages, Keep, by_age
from hyperha.replication.safety.saver import Saver, check_room, full_disk, shortage, try_room
from hyperha.replication.safety.undo import Undo
from hyperha.text import size_text

if TYPE_CHECKING:
    from hyperha.replication.store import Store

log = logging.getLogger(__name__)

Report = Callable[[SafetyLost | LogLine], None]
_LOOK_MS: Final = 60_000
_CLOSE_S: Final = 10.0
_STILL_THERE: Final = "; what it held is still on the disk: deleting it frees the room"
_TEXT: Final = 1000
"""Characters of a reason in a record."""


def _never() -> bool:
    return False


def _no_report(_: SafetyLost | LogLine) -> None:
    """A folder that is not covered: what goes wrong is an error of the caller's."""


class SafetyArea:
    """The copies below `.hyperha/safety`. Owns a duplicate of the folder's descriptor.

    With a `store` its changes are guarded as long as there is a copy to guard. `serving`: whether
    the folder is a primary's, whose guest never waits for room for a copy. Thread-safe.
    """

    def __init__(
        self,
        root: int,
        folder: str,
        store: Store | None = None,
        keep: Keep | None = None,
        serving: Callable[[], bool] = _never,
        report: Report = _no_report,
    ) -> None:
        self._root = os.open(
            ".", os.O_RDONLY | syscalls.O_DIRECTORY | syscalls.O_CLOEXEC, dir_fd=root
        )
        self._root_handle, _ = syscalls.file_handle(self._root)
        self._folder = folder
        self._store = store
        self._report = report
        self._keep = keep
        self._next_ms = 0
        self._serving = serving
        self._lock = threading.RLock()
        self._idle = threading.Condition(self._lock)
        self._closing = False
        self._busy: set[str] = set()
        """Copies that are being restored."""
        self._copies: dict[str, SafetyCopy] = {}
        self._ages = Ages()
        self._savers: dict[str, Saver] = {}
        self._told_short = False
        """Whether it was said that what must not go takes room that is short."""
        self._guard = Guard(self._failed, self._drop_lost, serving)
        self._load()

    @classmethod
    def of_folder(cls, folder: str) -> SafetyArea:
        """For a folder that no module covers. OSError when it cannot be opened."""
        flags = os.O_RDONLY | syscalls.O_DIRECTORY | syscalls.O_NOFOLLOW | syscalls.O_CLOEXEC
        root = os.open(folder, flags)
        try:
            if syscalls.file_system_type(root) == syscalls.FUSE_SUPER_MAGIC:
                raise RefusedError(f"{folder} is covered by a mount", "Ask the module instead.")
            return cls(root, folder)
        finally:
            os.close(root)

    @contextmanager
    def _area(self) -> Iterator[int]:
        area = open_area(self._root)
        try:
            yield area
        finally:
            os.close(area)

    def _load(self) -> None:
        with self._area() as area:
            for name in sorted(os.listdir(area)):
                if not stat.S_ISDIR(os.stat(name, dir_fd=area, follow_symlinks=False).st_mode):
                    # Not of ours.
                    continue
                if name.startswith(LEAVING) or is_unborn(area, name):
                    remove_tree(area, name)
                    continue
                try:
                    copy = SafetyCopy(area, None, name)
                except (HyperhaError, OSError) as problem:
                    self._report(LogLine("E", "R15", f"safety copy {name}: {problem}"))
                    continue
                self._copies[name] = copy
                if copy.facts.state is not State.OPEN:
                    self._ages.begin(copy)
                if self._store is not None and copy.facts.state is not State.LOST:
                    self._guard_copy(copy)
        self._attach_guard()

    def _guard_copy(self, copy: SafetyCopy) -> None:
        try:
            self._savers[copy.id] = Saver(copy, self._root_handle)
        except (HyperhaError, OSError) as problem:
            # What it holds stays: somebody may get more out of it than this program can.
            self._give_up(copy, f"it cannot be read: {problem}", drop=False)

    def _attach_guard(self) -> None:
        if self._store is None:
            return
        self._guard.set_savers(self._savers.values())
        self._store.guard = self._guard if self._savers else None

    # --- the core's orders ----------------------------------------------------------------

    def perform(self, order: EngineAction) -> None:
        """Do what the core orders; when it is durable this returns. HyperhaError or OSError."""
        if isinstance(order, OpenSafety):
            try:
                self._open(order)
            except (OSError, HyperhaError) as problem:
                full = full_disk(self._root, problem)
                if full is None:
                    raise
                raise full from problem
        elif isinstance(order, CloseSafety):
            self._close_copy(order.end)
        elif isinstance(order, UndoResync):
            self._undo()
        else:
            raise RefusedError(f"{type(order).__name__} does not concern safety copies")

    def _open_copy(self) -> SafetyCopy | None:
        for copy in self._copies.values():
            if copy.facts.state is State.OPEN:
                return copy
        return None

    def _open(self, order: OpenSafety) -> None:
        assert self._store is not None
        if not self._store.privileged:
            raise RefusedError("safety copies need the rights of root")
        with self._lock, self._guard.lock:
            copy = self._open_copy()
            if order.resume:
                if copy is None or copy.id not in self._savers:
                    # Said again: the node may have died before the core had noted it durably.
                    text = "the safety copy of this resync was given up"
                    self._report(SafetyLost(text))
                    raise RefusedError(text)
                if order.required and not copy.facts.required:
                    copy.change(required=True)
                if copy.facts.required:
                    try_room(copy.directory)
                return
            if copy is not None:
                self._end(copy, keep=not self._savers[copy.id].empty)
            check_room(self._root, 0)
            # What the copy holds without saving it is the disk's from here on.
            self._store.sync_all()
            facts = Facts(
                id=new_id(self._copies),
                opened_wall_ms=time.time_ns() // 1_000_000,
                state=State.OPEN,
                required=order.required,
                rule=order.rule,
                generation=order.generation.id,
                ordinal=order.generation.ordinal,
                gives_up=order.gives_up,
            )
            with self._area() as area:
                made = SafetyCopy.create(area, facts)
            self._copies[made.id] = made
            self._savers[made.id] = Saver(made, self._root_handle)
            self._attach_guard()

    def _close_copy(self, end: SafetyEnd) -> None:
        with self._lock, self._guard.lock:
            copy = self._open_copy()
            if copy is not None:
                keep = end is SafetyEnd.FORCED or (end is SafetyEnd.COPIED and copy.facts.required)
                self._end(copy, keep=keep)

    def _end(self, copy: SafetyCopy, *, keep: bool) -> None:
        if keep:
            saver = self._savers[copy.id]
            copy.change(state=State.KEPT, saved_bytes=copy.size(), files=saver.files)
            self._ages.begin(copy)
            what = f"safety copy {copy.id} keeps the former state"
            told = f"{size_text(copy.facts.saved_bytes)} of {saver.files} files so far"
            self._report(LogLine("I", "R15", f"{what}: {told}"))
        else:
            self._delete(copy)

    def _undo(self) -> None:
        assert self._store is not None
        with self._lock, self._guard.tidying, self._guard.lock:
            copy = self._open_copy()
            if copy is None:
                raise RefusedError("there is no safety copy to go back to")
            undo = Undo(self._root, copy)
            undo.run()
            for handle in undo.made:
                # It stands for one that the copy knows: saved as well, both would want its names.
                self._savers[copy.id].created(handle)
            self._tidy(copy)
            for saver in self._savers.values():
                saver.release(self._guard.kept_names)
            self._store.reset()

    def _tidy(self, undone: SafetyCopy) -> None:
        """What the resync had moved aside has names of its own again, or came with the resync;
        other copies may still keep it."""
        assert self._store is not None
        others = [saver for name, saver in self._savers.items() if name != undone.id]
        names = lost_names(self._store)
        if names:
            self._guard.set_savers(others)
            try:
                tidy(self._store, names)
            finally:
                self._attach_guard()

    # --- losing one -----------------------------------------------------------------------

    def _failed(self, saver: Saver, text: str, full: bool) -> bool:
        """Nothing more can be saved, `full`: for want of room. False when the change must not be
        made then (N3)."""
        facts = saver.copy.facts
        if full and facts.gives_up:
            self._tell_short()
            return False
        if not (self._serving() or facts.state is State.KEPT or not facts.required):
            return False
        # Without the area's lock: the guard's is held, and who opens takes them in order.
        # What it holds stays where nobody else has it: more can be got out of it than nothing.
        self._give_up(saver.copy, text, drop=not facts.gives_up)
        self._attach_guard()
        return True

    def shortage(self) -> Shortage | None:
        """What is short while kept copies stand that are not given up for it; None when nothing."""
        if not any(one.facts.stands for one in list(self._copies.values())):
            return None
        return shortage(self._root)

    def _tell_short(self) -> None:
        """Once, until there is room again."""
        lacks = self.shortage()
        if lacks is None or self._told_short:
            return
        self._told_short = True
        names = ", ".join(one.id for one in self._copies.values() if one.facts.stands)
        free, least = size_text(lacks.free_bytes), size_text(lacks.needed_bytes)
        text = (
            f"only {free} are free, less than {least}, and nobody else holds what the safety "
            f"copies {names} do: they are not given up. Make room, or restore them elsewhere and "
            "delete them by the command `safety`"
        )
        self._report(LogLine("W", "N3", text))

    def _give_up(self, copy: SafetyCopy, text: str, *, drop: bool = True) -> None:
        """Durable before anything is changed that is not saved."""
        saver = self._savers.pop(copy.id, None)
        if saver is not None:
            saver.close()
        was_open = copy.facts.state is State.OPEN
        # Whoever finds it ended finds its age; an ended one goes on growing older.
        self._ages.begin(copy)
        copy.give_up(text[:_TEXT], drop=drop)
        if was_open:
            self._report(SafetyLost(text))
        else:
            self._report(LogLine("E", "R15", f"safety copy {copy.id} was given up: {text}"))

    def _drop_lost(self) -> bool:
        """Free what a copy that was given up has left on the disk, unless nobody else holds it.
        False when there is none. The guard's lock is held: none is deleted meanwhile."""
        for copy in list(self._copies.values()):
            if copy.facts.state is not State.LOST or copy.facts.gives_up:
                continue
            try:
                size = copy.size()
                if not size:
                    continue
                copy.drop()
            except OSError as problem:
                # Whoever looks for room has an error of its own.
                log.warning("what is left of the safety copy %s stays: %s", copy.id, problem)
                continue
            what = f"what was left of the safety copy {copy.id} makes room: {size_text(size)}"
            self._report(LogLine("W", "R15", what))
            return True
        return False

    def _delete(self, copy: SafetyCopy) -> None:
        with self._guard.lock:
            saver = self._savers.pop(copy.id, None)
            self._copies.pop(copy.id, None)
            self._ages.forget(copy)
            self._attach_guard()
            if saver is not None:
                saver.close()
        copy.close()
        with self._area() as area:
            delete(area, copy.id)

    # --- people ---------------------------------------------------------------------------

    def facts(self) -> tuple[Facts, ...]:
        """Every copy, oldest first."""
        with self._lock:
            found = []
            for copy in sorted(self._copies.values(), key=by_age):
                saver = self._savers.get(copy.id)
                lived_ms = self._ages.lived_ms(copy)
                facts = replace(copy.facts, saved_bytes=copy.size(), lived_ms=lived_ms)
                if facts.state is not State.LOST:
                    with self._guard.lock:
                        files = facts.files if saver is None else saver.files
                    facts = replace(facts, files=files)
                elif facts.saved_bytes:
                    facts = replace(facts, text=facts.text + _STILL_THERE)
                found.append(facts)
            return tuple(found)

    def _named(self, name: str) -> SafetyCopy:
        copy = self._copies.get(name)
        if copy is None:
            known = ", ".join(sorted(self._copies)) or "none"
            raise NotFoundError(f"there is no safety copy {name!r}", f"There are: {known}")
        return copy

    def delete(self, name: str) -> None:
        """Delete a copy that nothing depends on."""
        with self._lock:
            copy = self._named(name)
            if copy.facts.state is State.OPEN:
                raise RefusedError(
                    f"the safety copy {name} belongs to a resync that has not ended",
                    "It can be deleted when this node's copy is equal again.",
                )
            if name in self._busy:
                raise RefusedError(f"the safety copy {name} is being restored")
            self._delete(copy)

    def restore(self, name: str, to: str, progress: Progress) -> None:
        """Make the state that a copy holds anew in `to`; takes as long as it takes."""
        with self._lock:
            copy = self._named(name)
            if copy.facts.state is State.LOST:
                raise RefusedError(f"the safety copy {name} was given up: {copy.facts.text}")
            if name in self._busy:
                raise RefusedError(f"the safety copy {name} is being restored already")
            self._busy.add(name)

        def go_on(done: int, total: int) -> None:
            if self._closing:
                raise FailedError("the restore was broken off: the folder is being let go")
            progress(done, total)

        try:
            Restore(self._root, copy, go_on).run(self._folder, to)
        except OSError as error:
            raise FailedError(
                f"the safety copy {name} cannot be restored: {error.strerror or error}"
            ) from error
        finally:
            with self._idle:
                self._busy.discard(name)
                self._idle.notify_all()

    def tick(self) -> None:
        """Look after the retention of kept copies, now and then, in a thread of its own."""
        if now_ms() < self._next_ms:
            return
        self._next_ms = now_ms() + _LOOK_MS
        if self._copies:
            threading.Thread(target=self.expire, name="retention", daemon=True).start()

    def expire(self) -> None:
        """Delete ended copies that are too old, and give up the oldest of those that are too large
        together, or that the disk has no room for any more; for want of room none that nobody else
        holds what is in it (N3)."""
        keep = self._keep
        if keep is None:
            return
        try:
            with self._lock:
                self._end_forgotten()
                idle = [one for one in self._copies.values() if one.id not in self._busy]
                ended = [one for one in idle if one.facts.state is not State.OPEN]
                for copy in ended:
                    self._ages.record(copy, self._guard.lock)
                    if self._ages.too_old(copy, keep):
                        self._delete(copy)
                        what = f"safety copy {copy.id} was deleted after its time"
                        self._report(LogLine("I", "R15", what))
                for copy in keep.too_large(one for one in ended if one.id in self._savers):
                    with self._guard.lock:
                        what = f"kept safety copies are larger than max_gib = {keep.gib}"
                        self._give_up(copy, what)
                        self._attach_guard()
            while shortage(self._root) is not None:
                if not self._guard.make_room(ahead=True):
                    return
            self._told_short = False
        except (OSError, HyperhaError) as problem:
            self._report(LogLine("E", "R15", f"old safety copies cannot be deleted: {problem}"))

    def _end_forgotten(self) -> None:
        """A copy that was opened when the node died, before anything of the resync was durable,
        or that was undone and not closed: the folder's history has gone on since."""
        copy = self._open_copy()
        if copy is not None and self._serving():
            with self._guard.lock:
                saver = self._savers.get(copy.id)
                self._end(copy, keep=saver is not None and not saver.empty)

    def close(self) -> None:
        """Let go of everything; open and kept copies go on at the next start."""
        self._closing = True
        with self._idle:
            self._idle.wait_for(lambda: not self._busy, _CLOSE_S)
        with self._lock, self._guard.lock:
            if self._store is not None:
                self._store.guard = None
            for saver in self._savers.values():
                saver.close()
            self._savers.clear()
            for copy in self._copies.values():
                copy.close()
            self._copies.clear()
            os.close(self._root)
