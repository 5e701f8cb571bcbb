"""Where `hyperha console` looks, told by the home it is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperha.cli import console
from hyperha.cli.context import options
from hyperha.config import load_cluster
from hyperha.config.home import Home
from tests.api.test_routes import _cluster


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    made = _cluster(tmp_path, "paris")["node1"]
    # What a command of an earlier test was given.
    monkeypatch.setattr(options, "home", None)
    monkeypatch.setattr(options, "url", None)
    monkeypatch.setenv("HYPERHA_HOME", str(made.config.parent))
    made.api_socket.parent.mkdir(parents=True, exist_ok=True)
    made.api_socket.touch()
    return made


def test_this_node_comes_first_and_the_other_one_behind_it(home: Home) -> None:
    here, there = console.targets([])
    assert here.socket == str(home.api_socket)
    assert "127.0.0.2:9010" in there.name


@pytest.mark.parametrize("text", ["", "cluster = 3\n", "\xff"], ids=["empty", "wrong", "no text"])
def test_files_that_are_broken_meanwhile_hide_no_daemon(home: Home, text: str) -> None:
    home.cluster_file.write_text(text, encoding="latin-1")
    assert [target.socket for target in console.targets([])] == [str(home.api_socket)]


def test_addresses_of_both_families_become_urls(home: Home) -> None:
    text = home.cluster_file.read_text().replace("127.0.0.2", "fd00::2")
    home.cluster_file.write_text(text.replace("127.0.0.1", "fd00::1"))
    assert load_cluster(home.cluster_file).api_urls("node2") == ("https://[fd00::2]:9010",)
