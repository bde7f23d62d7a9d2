"""A slot that moves to another node of a Cluster, key by key, as rebalancing does."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import pytest
from anyio.to_thread import run_sync
from redis.asyncio import RedisCluster

from aioredismq.testing import ClusterNodes
from tests.chaos.ledger import judge
from tests.chaos.load import under_load

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aioredismq.testing import RedisServer

pytestmark = [pytest.mark.one_loop, pytest.mark.timeout(90)]


@pytest.fixture
def nodes(server_path: Path | None) -> Iterator[ClusterNodes]:
    """A cluster for one test, of masters alone."""
    with ClusterNodes(server_path, replicas=0) as running:
        yield running


class Move:
    """A slot on its way from the node that has it to another."""

    def __init__(self, nodes: ClusterNodes, key: str) -> None:
        """Tell both nodes what is coming."""
        self._nodes = nodes
        self._from = nodes.master_of(key)
        self._to = next(node for node in nodes.nodes if node is not self._from)
        self.slot = int(str(self._from.command("CLUSTER", "KEYSLOT", key)))
        self._set(self._to, "IMPORTING", _id(self._from))
        self._set(self._from, "MIGRATING", _id(self._to))

    @property
    def connections(self) -> int:
        """How many the node that has it has taken, since it was started."""
        about = str(self._from.command("INFO", "stats"))
        found = re.search(r"total_connections_received\D+(\d+)", about)
        assert found is not None
        return int(found[1])

    def move_a_key(self) -> bool:
        """Move one; False when none is left."""
        keys = self._from.command("CLUSTER", "GETKEYSINSLOT", self.slot, 1)
        assert isinstance(keys, list)
        if keys:
            at = ("127.0.0.1", self._to.port, "", 0, 5000, "KEYS")
            self._from.command("MIGRATE", *at, *keys)
        return bool(keys)

    def finish(self) -> None:
        """Tell every node where the slot is now."""
        for node in (self._to, *self._nodes.nodes):
            self._set(node, "NODE", _id(self._to))

    def _set(self, node: RedisServer, state: str, other: str) -> None:
        node.command("CLUSTER", "SETSLOT", self.slot, state, other)


def _id(node: RedisServer) -> str:
    answer = node.command("CLUSTER", "MYID")
    return answer.decode() if isinstance(answer, bytes) else str(answer)


async def test_a_queue_whose_slot_moves_is_followed(
    nodes: ClusterNodes, name: str, seed: int
) -> None:
    """While some keys are here and some there, Redis lets nobody use them: all waits."""
    async with under_load(nodes.url, name, seed=seed) as load:
        for _ in range(2):
            move = await run_sync(Move, nodes, name)
            await load.a_moment(0.3)
            while await run_sync(move.move_a_key):
                await load.a_moment(0.3)
            await run_sync(move.finish)
            await load.flows()

    async with RedisCluster.from_url(nodes.url) as client:
        verdict = await judge(load.ledger, client, name)
    assert verdict.holds(duplicates=0), verdict


async def test_a_slot_that_is_long_on_its_way_is_waited_for(
    nodes: ClusterNodes, name: str, logged: list[str]
) -> None:
    """Its keys have left, and no node has been told: nobody looks for it over and over."""
    async with under_load(nodes.url, name) as load:
        move = await run_sync(Move, nodes, name)
        while await run_sync(move.move_a_key):
            pass
        await asyncio.sleep(0.5)
        del logged[:]
        before = move.connections
        await asyncio.sleep(2)
        connections, lines = move.connections - before, len(logged)
        await run_sync(move.finish)
        await load.flows()

    assert lines / 2 < 2
    assert connections / 2 < 8
