"""Authority, mutual TLS, cluster key, first set-up and local identities (S4, DESIGN 10)."""

from __future__ import annotations

import os
import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest

from hyperha.config import Home, Witness, load_all
from hyperha.errors import ConfigError, DeniedError, NotFoundError, RefusedError, UsageError
from hyperha.security.authority import Authority, Holder, fingerprint, holder_of, issued_by
from hyperha.security.cluster_key import load_cluster_key, new_cluster_key, write_secret
from hyperha.security.identity import Access, access_of, local_identity
from hyperha.security.initialise import ClusterPlan, LanPlan, cluster_text, init_cluster
from hyperha.security.tls import (
    api_client_context,
    api_server_context,
    holder,
    node_client_context,
    node_server_context,
    require_node,
)

PLAN = ClusterPlan(
    "paris", ("node1", "node2"), (LanPlan("prod", {"node1": "127.0.0.1", "node2": "127.0.0.2"}),)
)


@pytest.fixture
def homes(tmp_path: Path) -> dict[str, Home]:
    found = {name: Home.at(tmp_path / name) for name in PLAN.nodes}
    init_cluster(found, PLAN)
    return found


def _files(home: Home) -> tuple[Path, Path, Path]:
    return home.authority_certificate, home.node_certificate, home.node_key


def _shake_hands(
    server: ssl.SSLContext, client: ssl.SSLContext, name: str | None = None
) -> tuple[ssl.SSLSocket | Exception, ssl.SSLSocket | Exception]:
    """Both ends of one TLS connection, or the error that each of them saw."""
    left, right = socket.socketpair()
    left.settimeout(10)
    right.settimeout(10)
    results: list[ssl.SSLSocket | Exception] = [OSError("not run"), OSError("not run")]

    def take_part(index: int, plain: socket.socket, context: ssl.SSLContext) -> None:
        end = plain
        try:
            end = context.wrap_socket(
                plain, server_side=index == 0, server_hostname=name if index else None
            )
            if index == 0:
                end.send(b"x")
            else:
                end.recv(1)
            results[index] = end
        except OSError as problem:
            end.close()
            results[index] = problem

    thread = threading.Thread(target=take_part, args=(0, left, server))
    thread.start()
    take_part(1, right, client)
    thread.join()
    return results[0], results[1]


def _close(*ends: ssl.SSLSocket | Exception) -> None:
    for end in ends:
        if isinstance(end, ssl.SSLSocket):
            end.close()


def test_both_nodes_load_what_was_set_up(homes: dict[str, Home]) -> None:
    for name, home in homes.items():
        found = load_all(home)
        assert found.node == name
        assert stat.S_IMODE(home.node_key.stat().st_mode) == 0o600
        assert stat.S_IMODE(home.cluster_key.stat().st_mode) == 0o600
    one, two = homes["node1"], homes["node2"]
    assert one.cluster_file.read_bytes() == two.cluster_file.read_bytes()
    assert load_cluster_key(one.cluster_key) == load_cluster_key(two.cluster_key)
    assert one.authority_key.exists()
    assert not two.authority_key.exists(), "the authority's key stays on the first node"
    assert issued_by(two.node_certificate.read_bytes(), one.authority_certificate.read_bytes())


def test_nothing_is_overwritten(homes: dict[str, Home]) -> None:
    before = homes["node1"].cluster_key.read_bytes()
    with pytest.raises(RefusedError, match="set up here already"):
        init_cluster(homes, PLAN)
    assert homes["node1"].cluster_key.read_bytes() == before


def test_a_bad_plan_writes_nothing(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "node1")
    bad = ClusterPlan("Paris!", ("node1", "node2"), PLAN.lans)
    with pytest.raises(ConfigError, match="Paris!"):
        init_cluster({"node1": home}, bad)
    with pytest.raises(UsageError, match="node9"):
        init_cluster({"node9": home}, PLAN)
    assert not home.config.exists()


def test_the_text_keeps_every_choice() -> None:
    witness = Witness(kind="lease", url="https://10.0.0.9:9012")
    text = cluster_text(
        ClusterPlan("p", ("a", "b"), PLAN.lans, isolation="hold", witness=witness, api_port=1), "id"
    )
    assert "ttl_ms = 2750" in text
    assert 'isolation = "hold"' in text
    assert "api = 1\n" in text


def test_nodes_know_each_other(homes: dict[str, Home]) -> None:
    identity = load_all(homes["node1"]).cluster.id
    server, client = _shake_hands(
        node_server_context(*_files(homes["node1"])), node_client_context(*_files(homes["node2"]))
    )
    try:
        assert isinstance(server, ssl.SSLSocket), server
        assert isinstance(client, ssl.SSLSocket), client
        assert client.version() == "TLSv1.3"
        require_node(server, "node2", identity)
        require_node(client, "node1", identity)
        with pytest.raises(DeniedError, match="names 'node1'"):
            require_node(client, "node2", identity)
        with pytest.raises(DeniedError, match="expected 'node1' of 'other'"):
            require_node(client, "node1", "other")
    finally:
        _close(server, client)


def test_a_node_of_another_cluster_is_refused(homes: dict[str, Home], tmp_path: Path) -> None:
    other = Home.at(tmp_path / "foreign")
    init_cluster({"node2": other}, PLAN)
    server, client = _shake_hands(
        node_server_context(*_files(homes["node1"])), node_client_context(*_files(other))
    )
    _close(server, client)
    assert isinstance(client, ssl.SSLError)
    assert isinstance(server, OSError)


def test_a_node_without_a_certificate_is_refused(homes: dict[str, Home]) -> None:
    bare = api_client_context(homes["node1"].authority_certificate)
    server, client = _shake_hands(node_server_context(*_files(homes["node1"])), bare, "node1")
    _close(server, client)
    assert isinstance(server, ssl.SSLError)


def test_people_reach_the_api_without_a_certificate(homes: dict[str, Home]) -> None:
    context = api_server_context(*_files(homes["node1"]))
    tool = api_client_context(homes["node1"].authority_certificate)
    for name in ("127.0.0.1", "node1"):
        server, client = _shake_hands(context, tool, name)
        assert isinstance(server, ssl.SSLSocket), server
        assert isinstance(client, ssl.SSLSocket), client
        assert holder(server) is None
        with pytest.raises(DeniedError, match="sent no certificate"):
            require_node(server, "node2", "x")
        _close(server, client)
    server, client = _shake_hands(context, tool, "127.0.0.2")
    _close(server, client)
    assert isinstance(client, ssl.SSLCertVerificationError)


def test_a_wrong_clock_refuses_nobody(homes: dict[str, Home]) -> None:
    from cryptography import x509

    for path in (homes["node1"].node_certificate, homes["node1"].authority_certificate):
        found = x509.load_pem_x509_certificate(path.read_bytes())
        assert found.not_valid_before_utc.year == 1970
        assert found.not_valid_after_utc.year == 9999


def test_the_authority_can_be_loaded_and_checked(homes: dict[str, Home]) -> None:
    one, two = homes["node1"], homes["node2"]
    loaded = Authority.load(one.authority_certificate, one.authority_key)
    issued = loaded.issue("node2", ["10.0.0.2"])
    der = ssl.PEM_cert_to_DER_cert(issued.certificate.decode())
    assert holder_of(der) == Holder("node2", load_all(one).cluster.id)
    assert len(fingerprint(issued.certificate)) == 95
    with pytest.raises(NotFoundError, match="not on this node"):
        Authority.load(two.authority_certificate, two.authority_key)
    with pytest.raises(ConfigError, match="is not the key of"):
        Authority.load(one.authority_certificate, one.node_key)


@pytest.mark.parametrize("damage", [b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
@pytest.mark.parametrize("name", ["authority_certificate", "node_certificate", "node_key"])
def test_a_damaged_file_is_named(homes: dict[str, Home], name: str, damage: bytes) -> None:
    home = homes["node1"]
    path: Path = getattr(home, name)
    path.write_bytes(damage)
    with pytest.raises(ConfigError) as caught:
        node_client_context(home.authority_certificate, home.node_certificate, home.node_key)
    assert str(caught.value).startswith(f"{path} is damaged")
    assert "Restore" in caught.value.fix
    assert "None" not in str(caught.value)


def test_files_that_do_not_fit_are_named(homes: dict[str, Home], tmp_path: Path) -> None:
    one, two = homes["node1"], homes["node2"]
    with pytest.raises(ConfigError, match="do not fit together"):
        node_server_context(one.authority_certificate, one.node_certificate, two.node_key)
    with pytest.raises(NotFoundError, match="none"):
        node_server_context(tmp_path / "none", one.node_certificate, one.node_key)


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cluster.key"
    with pytest.raises(NotFoundError, match="cluster init"):
        load_cluster_key(path)
    write_secret(path, new_cluster_key())
    assert len(load_cluster_key(path)) == 32
    with pytest.raises(RefusedError):
        write_secret(path, b"again")
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="mode 0640"):
        load_cluster_key(path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(ConfigError, match="5 bytes"):
        load_cluster_key(path)


def test_the_kernel_says_who_is_there() -> None:
    left, right = socket.socketpair()
    with left, right:
        found = local_identity(left)
    assert found.access is Access.ADMIN, "the daemon's own user"
    assert str(os.getpid()) in found.origin


@pytest.mark.parametrize(
    ("user", "groups", "role"),
    [
        (0, set(), Access.ADMIN),
        (500, set(), Access.ADMIN),
        (7, {"hyperha-control", "hyperha-monitor"}, Access.CONTROL),
        (7, {"hyperha-monitor"}, Access.MONITOR),
        (7, {"hyperha-admin", "hyperha-monitor"}, Access.ADMIN),
        (7, {"wheel"}, None),
    ],
)
def test_roles_of_groups(user: int, groups: set[str], role: Access | None) -> None:
    assert access_of(user, groups, 500) is role


def test_roles_include_the_lesser_ones() -> None:
    assert Access.ADMIN.includes(Access.MONITOR)
    assert not Access.MONITOR.includes(Access.CONTROL)
