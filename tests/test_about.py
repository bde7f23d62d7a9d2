from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import pytest

from aioredismq import UnsupportedServerError
from aioredismq._about import ask_about, is_cluster_node, refuse_too_old
from tests.roads import Road

if TYPE_CHECKING:
    from aioredismq.testing import ClusterNodes, RedisServer


def info(*lines: str) -> bytes:
    """Write what a server answers to `INFO server`."""
    return "\r\n".join(["# Server", *lines, "os:Linux", ""]).encode()


@pytest.mark.parametrize("version", ["6.0.16", "6.1.240", "5.0.7", "2.8.0", "3.2.100"])
def test_a_server_that_lacks_commands_is_refused(version: str) -> None:
    """With its version and what is needed."""
    short = ".".join(version.split(".")[:2])

    with pytest.raises(UnsupportedServerError, match=f"Redis {short} is too old: 6.2"):
        refuse_too_old(info(f"redis_version:{version}"))


@pytest.mark.parametrize(
    "lines",
    [
        ["redis_version:6.2.0"],
        ["redis_version:7.0.15"],
        ["redis_version:10.1.0"],
        ["redis_version:5.0.0", "valkey_version:9.1.2"],
        [],
        ["redis_version:unknown"],
    ],
    ids=" ".join,
)
def test_a_server_that_may_have_them_is_not(lines: list[str]) -> None:
    """Valkey's version of Redis says nothing, and neither does no version."""
    refuse_too_old(info(*lines))


@pytest.mark.parametrize("word", ["redis_mode", "server_mode"])
def test_a_node_of_a_cluster_says_so(word: str) -> None:
    """In the words of Redis, or of Valkey."""
    assert is_cluster_node(info(f"{word}:cluster"))
    assert not is_cluster_node(info(f"{word}:standalone"))
    assert not is_cluster_node(info(f"executable:/{word}:cluster"))


def test_real_servers_are_understood(
    server: RedisServer, cluster: ClusterNodes
) -> None:
    """Whichever is tested."""
    for answering, expected in ((server, False), (cluster.nodes[0], True)):
        told = str(answering.command("INFO", "server")).encode()
        refuse_too_old(told)
        assert is_cluster_node(told) is expected


@pytest.mark.parametrize(
    ("kind", "rules", "expected"),
    [
        ("single", (), b"redis_version:"),
        ("cluster", ("-info",), b"redis_mode:cluster"),
        ("single", ("-info",), b""),
        ("cluster", ("-info", "-cluster"), b""),
    ],
)
async def test_what_may_not_be_asked_is_found_out_otherwise(
    server: RedisServer,
    cluster: ClusterNodes,
    kind: str,
    rules: tuple[str, ...],
    expected: bytes,
) -> None:
    """As far as that goes: managed servers deny INFO."""
    answering = server if kind == "single" else cluster.nodes[0]
    road = Road(answering.url)
    road.user = f"u{secrets.token_hex(4)}"
    answering.command("ACL", "SETUSER", road.user, "on", "nopass", "+@all", *rules)
    wire = await road.open(lambda: None)

    told = await ask_about(wire, within=8.0)

    assert expected in told if expected else told == b""
    road.close()
    answering.command("ACL", "DELUSER", road.user)
