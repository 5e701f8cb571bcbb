"""Configuration: every mistake is named with file, line, key and cure (L3', W11, CONTRACTS)."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperha.config import (
    Home,
    Timing,
    find_home,
    load_all,
    load_cluster,
    load_module,
    parse_cluster,
    parse_module,
    this_node,
    timing_rules,
)
from hyperha.config.loading import line_numbers
from hyperha.errors import ConfigError, NotFoundError, UsageError
from tests.support import ROOT

TEMPLATES = ROOT / "config"
CLUSTER = (TEMPLATES / "cluster.toml").read_text("utf-8")
MODULE = (TEMPLATES / "module-process.toml").read_text("utf-8")
RULE = '[[rule]]\nname = "a"\nwhen = "vm.APP is down"\naction = "swap"\n[scripts]'
WITNESS = '[witness]\nkind = "lease"\nurl = "https://10.0.0.254:9012"\nttl_ms = 2750\n[ports]'


def test_the_templates_load_and_hold_the_defaults() -> None:
    cluster = load_cluster(TEMPLATES / "cluster.toml")
    assert cluster.timing == Timing()
    assert [lan.name for lan in cluster.replication_lans()] == ["repl", "prod"]
    assert cluster.ttl_ms is None
    assert cluster.peer_of("node1") == "node2"
    module = parse_module(MODULE, cluster=cluster)
    assert module.checker[0].resource == "vm.APP"
    assert module.folder_of("node2") == "/srv/hyperha/APP"
    least = parse_module(
        'schema=1\nname="V"\nnumber=3\nfolder="/v"\ndriver="process"\n'
        '[driver_options]\ncommand="sleep 1"'
    )
    assert least.stop == module.stop
    assert least.replication == module.replication
    assert least.safety_copy == module.safety_copy
    assert least.restart_budget == module.restart_budget
    assert (least.boot, least.failover, least.priority) == ("on", True, 100)


def test_the_fast_profile_loads_with_and_without_a_witness() -> None:
    fast = Timing(heartbeat_ms=100, suspect_ms=300, stall_limit_ms=600, takeover_wait_ms=1000)
    assert list(timing_rules(fast, None)) == []
    assert list(timing_rules(fast, fast.scaled(2750))) == []


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "heartbeat_ms = 250",
            "heartbaet_ms = 250",
            "line 24: timing.heartbaet_ms: unknown key. Did you mean 'heartbeat_ms'?",
        ),
        ("schema = 1", "schema = 2", "line 3: schema: 2: input should be 1"),
        ('id = "0', 'di = "0', "id: this key is missing"),
        ("heartbeat_ms = 250", 'heartbeat_ms = "fast"', "line 24: timing.heartbeat_ms: 'fast'"),
        ("heartbeat_ms = 250", "heartbeat_ms = true", "line 24: timing.heartbeat_ms"),
        ("heartbeat_ms = 250", "heartbeat_ms = 600", "three heartbeats of 600 ms do not fit"),
        (
            "suspect_ms = 1500",
            "suspect_ms = 3000",
            "stall_limit_ms = 3000 must be above suspect_ms = 3000",
        ),
        (
            "takeover_wait_ms = 3500",
            "takeover_wait_ms = 3400",
            "line 27: timing.takeover_wait_ms: L3'",
        ),
        ("pause_after_ms = 5000", "pause_after_ms = 2000", "M7: pause_after_ms = 2000"),
        (
            '"10.0.0.1"',
            '"node1.example"',
            "line 13: lan[1].addresses.node1: 'node1.example' is not an IPv4",
        ),
        ('"10.0.0.1"', '"0.0.0.0"', "no address of one machine"),
        ('"10.9.0.2"', '"10.0.0.2"', "address 10.0.0.2 is also node2 on LAN 'prod'"),
        ('"10.9.0.2"', '"fd00::2"', "mixes IPv4 and IPv6"),
        ('node2 = "10.9.0.2"', 'node3 = "10.9.0.2"', "needs one address for each"),
        ('lans = ["repl", "prod"]', 'lans = ["rapl"]', "Did you mean 'repl'?"),
        (
            'nodes = ["node1", "node2"]',
            'nodes = ["node1"]',
            "line 7: nodes: a cluster has two nodes",
        ),
        ('nodes = ["node1", "node2"]', 'nodes = ["node1", "Node2"]', "'Node2' is not a name"),
        ('isolation = "run"', 'isolation = "maybe"', "arbitration.isolation: 'maybe'"),
        ("api = 9010", "api = 9011", "is also the API's port"),
        ("api = 9010", "api = 99999", "ports.api: 99999"),
        ("[ports]", WITNESS.replace("2750", "2700"), "2750 is more than ttl_ms = 2700"),
        ("[ports]", WITNESS.replace("2750", "2800"), "takeover_wait_ms = 3550 would fit"),
        ("[ports]", WITNESS.replace("254", "1"), "is node1 itself"),
        ("[ports]", WITNESS.replace("https", "ftp"), "needs a URL like"),
        ("[ports]", '[witness]\nkind = "ping"\n[ports]', "needs at least one address"),
        ("[ports]", '[fence]\nnode9 = ["x"]\n[ports]', "'node9' is no node"),
        ("[ports]", WITNESS, "witness.fingerprint: a lease witness is known by its"),
        (
            "[ports]",
            '[fence]\nnode1 = ["/sbin/off", "node1"]\n[ports]',
            "fence: there is no command that switches node2 off",
        ),
        (
            "[ports]",
            f'[fence]\nnode1 = ["/sbin/off"]\nnode2 = ["/sbin/off"]\n{WITNESS}',
            "only one of them can decide",
        ),
        ("[ports]", '[fence]\nnode1 = ["off", "node1"]\n[ports]', "the whole path of a program"),
        ("[ports]", "[ports", "not valid TOML"),
    ],
)
def test_mistakes_in_cluster_toml(old: str, new: str, says: str) -> None:
    assert old in CLUSTER
    with pytest.raises(ConfigError) as caught:
        parse_cluster(CLUSTER.replace(old, new, 1))
    assert says in str(caught.value)
    assert str(caught.value).startswith("cluster.toml")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('name = "APP"', 'name = "A P"', "line 4: name: 'A P' is not a module name"),
        ('name = "APP"', 'name = "../x"', "is not a module name"),
        ("number = 1", "number = 33", "line 5: number: 33"),
        ('"/srv/hyperha/APP"', '"srv"', "is not an absolute path"),
        ('"/srv/hyperha/APP"', '"/srv/../etc"', "may not contain '..'"),
        ('"/srv/hyperha/APP"', '"/"', "root of a file system"),
        ('driver = "process"', 'driver = "proces"', "driver: 'proces'"),
        ("failover = true", 'failover = "yes"', "failover: 'yes'"),
        ('default_primary = "none"', 'default_primary = "node3"', "Did you mean 'node2'?"),
        (
            'command = ["/usr/bin/python3", "-m", "http.server", "8080"]',
            "command = []",
            "needs command =",
        ),
        ('kind = "vm"', 'kind = "tcp"', "tcp.APP needs a port"),
        ('kind = "vm"', 'kind = "ping"', "ping.APP needs a host: host = ..."),
        ('kind = "vm"', 'kind = "vm"\nport = 80', "a checker of kind 'vm' has no port"),
        ('when = "prim"', 'when = "pre"', "can only make the module wait"),
        ("[scripts]", RULE.replace("vm.APP", "vm.APQ"), "no checker of this module is called"),
        ("[scripts]", RULE.replace("vm.APP", "vm.APQ"), "Did you mean 'vm.APP'?"),
        ("[scripts]", RULE.replace("is down", "is gone"), "'gone' is no state: up, down, init or"),
        ("[scripts]", RULE.replace("swap", "swop"), "rule[1].action: 'swop'"),
        ('kind = "vm"', 'kidn = "vm"', "Did you mean 'kind'?"),
        ("failures = 2", "failures = 0", "checker[1].failures: 0"),
        ("replace = []", 'replace = ["begin"]', "scripts.replace[1]"),
        *(
            (
                'driver = "process"',
                f'driver = "{driver}"',
                f"APP.toml, line 7: driver: '{driver}': not in this release. Use driver =",
            )
            for driver in ("qemu", "libvirt", "hyperv")
        ),
        ('normal = "stop"', 'normal = "save"', "stop.normal: 'save': not in this release"),
        ("replace = []", 'replace = ["transition"]', "'transition': not in this release"),
        (
            "[driver_options]",
            'folder_on = { node5 = "/x" }\n[driver_options]',
            "'node5' is no node",
        ),
    ],
)
def test_mistakes_in_a_module_file(old: str, new: str, says: str) -> None:
    assert old in MODULE
    with pytest.raises(ConfigError) as caught:
        parse_module(MODULE.replace(old, new, 1), "APP.toml", parse_cluster(CLUSTER))
    assert says in str(caught.value)


def test_every_mistake_is_told_at_once() -> None:
    text = CLUSTER.replace("heartbeat_ms", "heartbeet_ms").replace("[ports]", "[porst]")
    with pytest.raises(ConfigError) as caught:
        parse_cluster(text)
    assert str(caught.value).count("Did you mean") == 2


def empty_home(tmp_path: Path) -> Home:
    home = Home.at(tmp_path / "node1")
    home.create()
    home.cluster_file.write_text(CLUSTER)
    home.node_file.write_text("node1\n")
    return home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = empty_home(tmp_path)
    home.module_file("APP").write_text(MODULE)
    return home


def _second_module(text: str = MODULE) -> str:
    return text.replace("APP", "TWO").replace("number = 1 ", "number = 2 ")


def test_a_whole_home_loads(home: Home) -> None:
    home.module_file("TWO").write_text(_second_module())
    found = load_all(home)
    assert (found.node, found.peer) == ("node1", "node2")
    assert list(found.modules) == ["APP", "TWO"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("number = 2 ", "number = 1 "), "number 1 is also APP's number"),
        (("/srv/hyperha/TWO", "/srv/hyperha/APP/inner"), "overlaps with /srv/hyperha/APP of APP"),
        (('name = "TWO"', 'name = "OTHER"'), "Call the file OTHER.toml"),
    ],
)
def test_modules_that_contradict_each_other(home: Home, change: tuple[str, str], says: str) -> None:
    text = _second_module()
    assert change[0] in text
    home.module_file("TWO").write_text(text.replace(*change))
    with pytest.raises(ConfigError) as caught:
        load_all(home)
    assert says in str(caught.value)
    assert str(home.module_file("TWO")) in str(caught.value)


@pytest.mark.parametrize("place", ["state", "log/inner", "config/pki", "run", "", ".."])
def test_a_node_does_not_replicate_its_own_files(home: Home, place: str) -> None:
    folder = (home.config.parent / place).resolve()
    home.module_file("APP").write_text(MODULE.replace("/srv/hyperha/APP", str(folder)))
    with pytest.raises(ConfigError, match=f"folder {folder} overlaps with the .* of node1 itself"):
        load_all(home)


def test_a_folder_beside_the_homes_directories_is_right(home: Home) -> None:
    folder = home.config.parent / "data" / "APP"
    home.module_file("APP").write_text(MODULE.replace("/srv/hyperha/APP", str(folder)))
    assert load_all(home).modules["APP"].folder == str(folder)


def test_a_node_file_that_names_a_stranger(home: Home) -> None:
    home.node_file.write_text("node7\n")
    with pytest.raises(ConfigError, match="node7"):
        this_node(home, load_cluster(home.cluster_file))
    home.node_file.unlink()
    with pytest.raises(NotFoundError, match="cluster init"):
        load_all(home)


def test_missing_and_unreadable_files(home: Home) -> None:
    with pytest.raises(NotFoundError):
        load_module(home.module_file("NONE"))
    home.module_file("APP").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_all(home)


def test_homes(tmp_path: Path) -> None:
    assert find_home(str(tmp_path), {}).api_socket == tmp_path / "run" / "api.sock"
    assert find_home(None, {"HYPERHA_HOME": str(tmp_path)}).config == tmp_path / "config"
    assert find_home(None, {}).cluster_file == Path("/etc/hyperha/cluster.toml")
    assert Home.default().node_record == Path("/var/lib/hyperha/node.record")
    with pytest.raises(UsageError, match="HYPERHA_HOME is empty"):
        find_home(None, {"HYPERHA_HOME": " "})


def test_line_numbers_survive_texts_that_look_like_tables() -> None:
    text = 'a = [\n  "[x]",\n  "b = 1",\n]\n[t]\nb = "# [y]"\n[[l]]\nc=1\n[[l]]\nc=2\n'
    lines = line_numbers(text)
    assert lines["a",] == 1
    assert lines["t", "b"] == 6
    assert lines["l", 1, "c"] == 10
    assert ("b",) not in lines


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 10**6))
def test_no_timing_passes_that_lets_the_secondary_act_first(
    heartbeat: int, suspect: int, stall: int, takeover: int
) -> None:
    timing = Timing(
        heartbeat_ms=heartbeat,
        suspect_ms=suspect,
        stall_limit_ms=stall,
        takeover_wait_ms=takeover,
        pause_after_ms=10**7,
    )
    if not list(timing_rules(timing, None)):
        assert heartbeat * 3 <= suspect < stall <= takeover
