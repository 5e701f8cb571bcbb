"""A file without a name whose attributes cannot be read: nothing of it stays known."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from unittest.mock import Mock

import pytest

from hyperha.replication.fuse import requests_nameless
from hyperha.replication.fuse.requests_nameless import NamelessRequests


@pytest.mark.parametrize("fails", ["capability", "xattrs"])
def test_its_id_is_forgotten_where_it_gets_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    broken = Mock(side_effect=OSError(errno.EIO, os.strerror(errno.EIO)))
    monkeypatch.setattr(
        requests_nameless, "capability", broken if fails == "capability" else Mock()
    )
    requests = NamelessRequests.__new__(NamelessRequests)
    requests._c = Mock()
    if fails == "xattrs":
        requests._c.store.xattrs = broken
    with (tmp_path / "file").open("w") as file:
        requests._c.descriptor.return_value.fd = file.fileno()
        source = Mock()
        with pytest.raises(OSError, match="Input/output error"):
            requests._send(source, Mock())
    requests._c.store.assign_id.assert_called_once()
    requests._c.store.forget.assert_called_once_with(source.file)
    requests._c.note.assert_not_called()
