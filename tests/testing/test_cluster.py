from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from redis.cluster import RedisCluster

from aioredismq.testing import ClusterNodes, RedisServer, ServerStartError

if TYPE_CHECKING:
    from pathlib import Path


def test_the_masters_share_the_slots(cluster: ClusterNodes) -> None:
    """A client that knows one node reaches keys on all of them."""
    keys = [f"key-{number}" for number in range(50)]

    with closing(RedisCluster.from_url(cluster.url)) as client:
        for key in keys:
            assert client.set(key, "value")

    assert len({cluster.master_of(key).port for key in keys}) == 3


def test_every_master_has_a_replica(cluster: ClusterNodes) -> None:
    """Six nodes, three of which follow."""
    roles = [str(node.command("ROLE")[0]) for node in cluster.nodes]  # type: ignore[index]

    assert roles == ["master"] * 3 + ["slave"] * 3


def test_a_failover_is_seen(server_path: Path | None) -> None:
    """`master_of` names the node that serves the key now."""
    with ClusterNodes(server_path) as nodes:
        before = nodes.master_of("key")
        replica = nodes.nodes[nodes.nodes.index(before) + 3]

        replica.command("CLUSTER", "FAILOVER", "TAKEOVER")

        # Every node hears of it within a heartbeat; ask the one that must know first.
        nodes._any = lambda: replica  # type: ignore[method-assign]
        assert nodes.master_of("key") is replica


def test_a_cluster_that_does_not_come_up_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What had been started is ended again."""
    started: list[RedisServer] = []
    start = RedisServer.start

    def only_two(server: RedisServer) -> None:
        if len(started) == 2:
            raise ServerStartError("no more")
        start(server)
        started.append(server)

    monkeypatch.setattr(RedisServer, "start", only_two)

    with pytest.raises(ServerStartError, match="no more"):
        ClusterNodes().start()

    assert [server.is_running for server in started] == [False, False]
