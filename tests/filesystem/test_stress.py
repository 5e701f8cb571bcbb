"""stress-ng's verifying file-system stressors on the replicated folder; then the copies compared.

HYPERHA_STRESS_SECONDS says how long each group of them runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hyperha.core import actions
from tests.filesystem.copies import difference, snapshot
from tests.filesystem.pairing import Trio, backing
from tests.support.machine import lacking

SECONDS = int(os.environ.get("HYPERHA_STRESS_SECONDS", "2"))
LONG = "HYPERHA_STRESS_SECONDS" in os.environ
SHORT = ("dentry fallocate flock fpunch iomix lockf mknod open rename sync-file utime xattr",)
GROUPS = (
    "access chdir chmod chown dentry dir dirdeep dirmany dup fallocate fcntl fiemap file-ioctl "
    "filename flock fpunch fsize fstat handle",
    "hdd io iomix lease link locka lockf lockofd mknod mmap msync open readahead rename "
    "revio seek sendfile splice symlink sync-file touch utime xattr",
)
_SIZES = {
    "hdd-bytes": "8M", "iomix-bytes": "8M", "fallocate-bytes": "16M", "dentries": "256",
    "readahead-bytes": "8M", "seek-size": "8M", "revio-bytes": "8M", "sync-file-bytes": "8M",
    "mmap-bytes": "8M",
}  # fmt: skip
_LACKS = ("not supported", "skipping", "skipped")
"""What FUSE cannot do (FS_IOC_FIEMAP) is no failure."""
_WITHOUT_NEIGHBOURS = """
while read -r _ place kind _; do
    case $kind in fuse*) [[ $place == "$1" ]] || umount --lazy "$(printf %b "$place")" ;; esac
done < /proc/self/mounts
shift; exec "$@"
"""
"""The io stressor calls syncfs on every mount that it sees: on one which a neighbour on the same
machine has just cut, that fails."""
pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.timeout(120 + 4 * SECONDS)]


def stress(mounted: Path, place: Path, names: str) -> None:
    """One group at the same time; AssertionError with what stress-ng said."""
    command = ["unshare", "--mount", "--propagation", "private"]
    command += ["bash", "-ec", _WITHOUT_NEIGHBOURS, "bash", str(mounted)]
    command += ["stress-ng", "--temp-path", str(place), "--timeout", str(SECONDS), "--verify"]
    for name, value in _SIZES.items():
        command += [f"--{name}", value]
    for name in names.split():
        command += [f"--{name}", "1"]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        errors="replace",
    )  # fmt: skip
    lines = done.stdout.splitlines()
    bad = [one for one in lines if "fail" in one and not any(word in one for word in _LACKS)]
    assert done.returncode == 0, f"{bad}\n" + "\n".join(lines[-40:])
    assert not bad, bad


def test_stressors(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """Every stressor passes, nothing is lost of the session, and the copies are equal."""
    if shutil.which("stress-ng") is None:
        lacking("needs stress-ng")
    trio = Trio(tmp_path)
    try:
        for number, group in enumerate(GROUPS if LONG else SHORT):
            place = trio.mounted / f"g{number}"
            place.mkdir()
            stress(trio.mounted, place, group)
            record_property("stressors", len(group.split()))
        trio.pair.a.do(actions.Barrier)
        first, second = (snapshot(backing(node)) for node in (trio.pair.a, trio.pair.b))
        assert not difference(first, second, said="primary, secondary", nodes=True)
    finally:
        trio.close()
