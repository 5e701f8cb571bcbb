"""The stamp of life of a covered folder, renewed while it is ours; a crash leaves the last one."""

from __future__ import annotations

import threading
from collections.abc import Callable

from hyperha.replication.touched import INTERVAL_S, Stamp, StampFile


class Stamping:
    """Owns the stamp of one folder, and the thread that renews it. `beside` is called with each
    renewal, `failed` with what a renewal met."""

    def __init__(
        self, private: int, beside: Callable[[], None], failed: Callable[[OSError], None]
    ) -> None:
        self._stamp = StampFile(private)
        self._beside = beside
        self._failed = failed
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def read(self) -> Stamp | None:
        """The stamp that was left the last time."""
        return self._stamp.read()

    def start(self) -> None:
        """From now on the folder is ours."""
        self._thread = threading.Thread(target=self._run, name="stamp", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                self._stamp.write(clean=False)
            except OSError as error:
                self._failed(error)
            self._beside()
            if self._stop.wait(INTERVAL_S):
                return

    def end(self, last: Stamp | None) -> None:
        """It is ours no more since `last`, the moment from which on nothing here was our doing;
        without one something may be left unsaid."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if last is not None:
            self._stamp.write(clean=True, at=last)
        self._stamp.close()
