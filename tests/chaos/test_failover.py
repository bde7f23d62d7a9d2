"""Masters that die or hand over, behind Sentinel and in a Cluster: the queue follows by itself.

Replication is asynchronous: what a master accepted and had not passed on dies with it. That is
counted apart; everything else must be handled.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from anyio.to_thread import run_sync

from aioredismq.testing import ClusterNodes, SentinelSet
from tests.chaos.load import CONCURRENCY, under_load
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aioredismq.testing import RedisServer

pytestmark = [pytest.mark.one_loop, pytest.mark.timeout(90)]


@pytest.fixture
def sentinels(server_path: Path | None) -> Iterator[SentinelSet]:
    """A set for one test, which loses its master."""
    with SentinelSet(server_path) as running:
        yield running


@pytest.fixture
def nodes(server_path: Path | None) -> Iterator[ClusterNodes]:
    """A cluster for one test, which loses a node."""
    with ClusterNodes(server_path) as running:
        yield running


async def test_a_killed_master_behind_sentinel_is_followed(
    sentinels: SentinelSet, name: str
) -> None:
    """The sentinels agree on another one within seconds, and work goes on there."""
    async with under_load(sentinels.url, name, limit=30) as load:
        former = sentinels.master
        await run_sync(former.kill)
        await eventually(lambda: sentinels.master.port != former.port, 20)
        await load.flows(40, limit=15)
        # Accepted and not passed on: gone with the master. Nothing else may be missing.
        await asyncio.sleep(2)
        gone = load.ledger.lost
        load.ledger.accepted -= gone

    assert len(gone) <= 50
    assert not load.ledger.unwanted
    assert load.ledger.duplicates <= 2 * (CONCURRENCY + 1) + 50


async def test_a_planned_failover_behind_sentinel_loses_nothing(
    sentinels: SentinelSet, name: str
) -> None:
    """`SENTINEL FAILOVER` under load: the former master refuses writes, the new one is found."""
    async with under_load(sentinels.url, name, limit=30) as load:
        former = sentinels.master
        sentinels.sentinels[0].command("SENTINEL", "FAILOVER", "mymaster")
        await eventually(lambda: sentinels.master.port != former.port, 20)
        await load.flows(40, limit=15)
        await asyncio.sleep(2)
        gone = load.ledger.lost
        load.ledger.accepted -= gone

    assert len(gone) <= 50
    assert not load.ledger.unwanted


def _replica_of(nodes: ClusterNodes, master: RedisServer) -> RedisServer:
    for node in nodes.nodes:
        about = node.command("INFO", "replication")
        text = about.decode() if isinstance(about, bytes) else str(about)
        if "role:slave" in text and f"master_port:{master.port}" in text:
            return node
    raise AssertionError("that master has no replica")


async def test_a_planned_failover_in_a_cluster_loses_nothing(
    nodes: ClusterNodes, name: str
) -> None:
    """`CLUSTER FAILOVER` waits until the replica has everything; the queue follows the slot."""
    async with under_load(nodes.url, name, limit=30) as load:
        former = await run_sync(nodes.master_of, name)
        _replica_of(nodes, former).command("CLUSTER", "FAILOVER")
        await eventually(lambda: nodes.master_of(name).port != former.port, 20)
        await load.flows(40, limit=10)

    assert not load.ledger.lost
    assert not load.ledger.unwanted


async def test_a_killed_node_of_a_cluster_is_followed(
    nodes: ClusterNodes, name: str
) -> None:
    """Its replica is promoted, and the queue's connections find it."""
    async with under_load(nodes.url, name, limit=30) as load:
        former = await run_sync(nodes.master_of, name)
        replica = _replica_of(nodes, former)
        await run_sync(former.kill)
        await eventually(lambda: "role:master" in _info(replica), 20)
        await load.flows(40, limit=15)
        await asyncio.sleep(2)
        gone = load.ledger.lost
        load.ledger.accepted -= gone

    assert len(gone) <= 50
    assert not load.ledger.unwanted


def _info(node: RedisServer) -> str:
    about = node.command("INFO", "replication")
    return about.decode() if isinstance(about, bytes) else str(about)
