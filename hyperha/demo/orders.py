"""The protected application of the demonstration: a small order service on SQLite.

Run as a program in the replicated folder: opens `orders.db` (journal WAL, synchronous FULL),
checks its integrity, then commits numbered orders; after each commit has returned it tells an
observer outside the cluster by UDP. It answers on a Unix socket for the heartbeat. It knows
nothing of hyperha: what it relies on is what any database relies on.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sqlite3
import sys
import threading
import time
from pathlib import Path

DATABASE = "orders.db"
SOCKET = "heartbeat.sock"
REPORTS = "reports.bin"
REPORT_BYTES = 16384


def open_database(path: str) -> sqlite3.Connection:
    """The database, checked. Ends the program with status 3 when it is damaged."""
    database = sqlite3.connect(path, timeout=30, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    found = database.execute("PRAGMA integrity_check").fetchone()[0]
    if found != "ok":
        print(f"database damaged: {found}", file=sys.stderr, flush=True)
        sys.exit(3)
    database.execute(
        "CREATE TABLE IF NOT EXISTS orders(number INTEGER PRIMARY KEY, node TEXT NOT NULL, "
        "at REAL NOT NULL, body TEXT NOT NULL)"
    )
    return database


def _answer_heartbeats(stop: threading.Event) -> None:
    """A Unix socket in the working directory: who can connect knows that the service lives."""
    directory = os.environ.get("ORDERS_SOCKET_DIRECTORY", ".")
    path = Path(directory) / SOCKET
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(path))
    listening.listen(8)
    listening.settimeout(0.5)
    while not stop.is_set():
        try:
            connection, _ = listening.accept()
        except TimeoutError:
            continue
        connection.close()


class Reports:
    """A file that grows old with the orders: something to resynchronise, as a VM's disk is."""

    def __init__(self, mib: int) -> None:
        self._size = mib << 20
        self._file = os.open(REPORTS, os.O_RDWR | os.O_CREAT, 0o644)
        found = os.lseek(self._file, 0, os.SEEK_END)
        while found < self._size:
            found += os.write(self._file, os.urandom(1 << 20))

    def add(self) -> None:
        """Another page somewhere in it."""
        offset = random.randrange(self._size // REPORT_BYTES) * REPORT_BYTES
        os.pwrite(self._file, os.urandom(REPORT_BYTES), offset)


def serve(observer: tuple[str, int], pause_s: float, reports_mib: int) -> None:
    """Commit orders until SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    node = os.environ.get("HYPERHA_NODE", "?")
    database = open_database(DATABASE)
    last = database.execute("SELECT coalesce(max(number), 0) FROM orders").fetchone()[0]
    print(f"orders: {last} orders found, database intact", flush=True)
    threading.Thread(target=_answer_heartbeats, args=(stop,), daemon=True).start()
    reports = Reports(reports_mib) if reports_mib else None
    told = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    number = last
    while not stop.is_set():
        number += 1
        body = f"order {number} " + "x" * (number % 300)
        database.execute("BEGIN IMMEDIATE")
        database.execute(
            "INSERT INTO orders VALUES (?, ?, ?, ?)", (number, node, time.time(), body)
        )
        database.execute("COMMIT")
        news = {"number": number, "node": node, "pid": os.getpid()}
        told.sendto(json.dumps(news).encode(), observer)
        if reports is not None:
            reports.add()
        stop.wait(pause_s)
    database.close()
    print(f"orders: stopped after order {number}", flush=True)


def main() -> None:
    """`python orders.py HOST:PORT [PAUSE_MS [REPORTS_MIB]]`."""
    host, _, port = sys.argv[1].rpartition(":")
    pause_ms = float(sys.argv[2]) if len(sys.argv) > 2 else 5.0
    reports_mib = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    serve((host, int(port)), pause_ms / 1000, reports_mib)


if __name__ == "__main__":
    main()
