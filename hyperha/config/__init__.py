"""Configuration: what cluster.toml and the module files may say, and where a node keeps its files.

Responsible for reading, checking and naming every mistake with file, line and key. Must not start,
open or change anything that the configuration talks about.
"""

from hyperha.config.checking import Problem, timing_rules
from hyperha.config.cluster import Arbitration, Cluster, Lan, Ports, Replication, Timing, Witness
from hyperha.config.home import Home, find_home
from hyperha.config.loading import (
    Configuration,
    cluster_problems,
    load_all,
    load_cluster,
    load_module,
    module_problems,
    parse_cluster,
    parse_module,
    read_text,
    this_node,
)
from hyperha.config.module import (
    Checker,
    ModuleConfig,
    ModuleReplication,
    RestartBudget,
    SafetyCopy,
    Scripts,
    Stop,
)

__all__ = [
    "Arbitration",
    "Checker",
    "Cluster",
    "Configuration",
    "Home",
    "Lan",
    "ModuleConfig",
    "ModuleReplication",
    "Ports",
    "Problem",
    "Replication",
    "RestartBudget",
    "SafetyCopy",
    "Scripts",
    "Stop",
    "Timing",
    "Witness",
    "cluster_problems",
    "find_home",
    "load_all",
    "load_cluster",
    "load_module",
    "module_problems",
    "parse_cluster",
    "parse_module",
    "read_text",
    "this_node",
    "timing_rules",
]
