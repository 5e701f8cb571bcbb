"""Which sockets and addresses to talk to: from homes of this machine, or from URLs.

A node of one's own is asked on its socket, the other one over HTTPS with the cluster's authority.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from hyperha.client.node_client import Target
from hyperha.config.home import Home
from hyperha.errors import UsageError


def home_targets(homes: list[Path]) -> list[Target]:
    """One target per home, by its socket. The console tries them in this order."""
    return [Target(str(home), socket=str(Home.at(home).api_socket)) for home in homes]


def url_targets(urls: list[str], home: Home) -> list[Target]:
    """One target per URL, verified with this home's authority; UsageError for a malformed one."""
    return [_url_target(url, home) for url in urls]


def _url_target(url: str, home: Home) -> Target:
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise UsageError(f"{url!r} is no address of a node", "Write https://ADDRESS:9010.")
    return Target(
        parts.netloc,
        url=url,
        authority=str(home.authority_certificate),
        certificate=str(home.node_certificate),
        key=str(home.node_key),
    )
