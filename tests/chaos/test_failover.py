"""Masters that die or hand over, behind Sentinel and in a Cluster: the queue follows by itself.

Replication is asynchronous: what a master accepted and had not passed on goes with it. Only what
was accepted about then is excused; everything before and after must be handled.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from anyio.to_thread import run_sync
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.sentinel import Sentinel
from redis.exceptions import RedisError

from aioredismq.testing import ClusterNodes, SentinelSet, ServerStartError
from aioredismq.testing._server import wait_until
from tests.chaos.ledger import judge
from tests.chaos.load import CONCURRENCY, VISIBILITY, sending, under_load
from tests.services import listeners
from tests.support import eventually, watched

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path
    from random import Random

    from aioredismq.testing import RedisServer
    from tests.chaos.ledger import Ledger
    from tests.chaos.load import Load

pytestmark = [pytest.mark.one_loop, pytest.mark.timeout(240)]

# What ran, and what was acknowledged, retried or put aside, while it was no longer passed on.
MOST_REPEATED = 2 * (CONCURRENCY + 1) + 50


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


@dataclass(slots=True)
class Excuse:
    """What a master that dies may take with it."""

    accepted: set[int] = field(default_factory=set)
    repeated: int = MOST_REPEATED


@asynccontextmanager
async def excused(load: Load, master: RedisServer) -> AsyncIterator[Excuse]:
    """Excuse what is accepted during the block, and then neither handled nor a dead letter.

    Nothing else: not what was accepted before all was passed on for the last time, nor anything
    accepted after it. What was read or acknowledged since then may come again.
    """
    ledger, excuse = load.ledger, Excuse()
    before, done = set[int](), 0

    async def is_passed_on() -> bool:
        nonlocal before, done
        before, done = set(ledger.accepted), _done(load)
        await client.set(f"{{{load.queue.name}}}:mark", 1, ex=60)
        return int(await client.wait(1, 1000)) >= 1

    async with Redis.from_url(master.url) as client:
        await eventually(is_passed_on)
    await load.a_moment()
    yield excuse
    excuse.accepted |= ledger.accepted - before
    excuse.repeated += load.held + _done(load) - done
    await excuse_lost(load, excuse.accepted)


async def excuse_lost(load: Load, excuse: set[int]) -> None:
    """Excuse those of these messages that do not come any more."""
    if excuse:
        await asyncio.sleep(2 * VISIBILITY)
    # A dead letter may have been written where it was lost.
    load.ledger.taken |= excuse & (load.ledger.open | load.ledger.rejected)


def _done(load: Load) -> int:
    return load.ledger.handled.total() + len(load.ledger.rejected)


async def fail_over(own: SentinelSet, chance: Random) -> RedisServer:
    """Ask any of the sentinels for a failover while two connections listen to all of them.

    Returns:
        The former master, once the new one is announced.
    """
    former = own.master
    await eventually(lambda: all(listeners(each) == 2 for each in own.sentinels))
    asked = chance.choice(own.sentinels)

    def has_moved() -> bool:
        return own.master.port != former.port

    def is_over() -> bool:
        # Refused when it has not heard of the replica for a moment, and given up when its clock
        # has jumped: then for half a minute.
        with suppress(RedisError):
            asked.command("SENTINEL", "FAILOVER", own.service)
        with suppress(ServerStartError):
            wait_until("another master", has_moved, 12)
        return has_moved()

    # In a thread: who asks keeps the event loop from hearing what it must hear within 0.1 s.
    await run_sync(wait_until, "the failover", is_over, 60)
    return former


@asynccontextmanager
async def excused_if_held_up(ledger: Ledger) -> AsyncIterator[set[int]]:
    """Excuse what is accepted in the block, if this process was not run for a moment.

    The word that a failover has begun comes some 60 ms before the promotion, and must be heard.
    """
    excuse, before = set[int](), set(ledger.accepted)
    async with watched(0.03) as standstills:
        yield excuse
        if standstills.any_seen:
            excuse |= ledger.accepted - before


def last_id(server: RedisServer, name: str) -> object:
    """Tell the id of the last entry a server has taken in."""
    told = server.command("XINFO", "STREAM", name)
    assert isinstance(told, list)
    return dict(zip(told[::2], told[1::2], strict=True))["last-generated-id"]


async def test_a_killed_master_behind_sentinel_is_followed(
    sentinels: SentinelSet, name: str, seed: int
) -> None:
    """The sentinels agree on another one within seconds, and work goes on there."""
    async with under_load(sentinels.url, name, seed=seed) as load:
        former = sentinels.master
        async with excused(load, former) as excuse:
            await run_sync(former.kill)
        await eventually(lambda: sentinels.master.port != former.port, 60)
        await load.flows()

    async with Redis.from_url(sentinels.master.url) as client:
        verdict = await judge(load.ledger, client, name)
    assert verdict.taken <= 100
    assert verdict.holds(excuse.repeated), verdict


async def test_a_planned_failover_behind_sentinel_loses_nothing(
    sentinels: SentinelSet, name: str, seed: int
) -> None:
    """`SENTINEL FAILOVER`, after which the former master goes on as one for ten seconds.

    It is left before the other one is promoted, so that it takes nothing that would go with its
    demotion: no message, no dead letter, no acknowledgement.
    """
    async with under_load(sentinels.url, name, seed=seed) as load:
        async with excused_if_held_up(load.ledger) as excuse:
            former = await fail_over(sentinels, load.chance)
        left_at = last_id(former, name)
        await load.flows()
        assert last_id(former, name) == left_at
        await excuse_lost(load, excuse)

    async with Redis.from_url(sentinels.master.url) as client:
        verdict = await judge(load.ledger, client, name)
    assert verdict.holds(duplicates=MOST_REPEATED), verdict


@pytest.fixture(params=["URL", "lent client"])
async def target(
    request: pytest.FixtureRequest, sentinels: SentinelSet
) -> AsyncIterator[str | Redis]:
    """What a connection to the set takes."""
    if request.param == "URL":
        yield sentinels.url
        return
    asked = Sentinel(sentinels.addresses)
    async with asked.master_for(sentinels.service) as client:
        yield client
    await asked.aclose()


async def test_what_is_sent_in_a_planned_failover_behind_sentinel_is_all_there(
    sentinels: SentinelSet, target: str | Redis, name: str, seed: int
) -> None:
    """Nobody handles it, so that all of it must be where the new master has it: each once."""
    async with sending(target, name, seed=seed) as sends:
        async with excused_if_held_up(sends.ledger) as excuse:
            await fail_over(sentinels, sends.chance)
        await sends.flows(200)

    async with Redis.from_url(sentinels.master.url) as client:
        stored = [int(fields[b"body"]) for _, fields in await client.xrange(name)]
    assert not sends.ledger.accepted - set(stored) - excuse
    assert not sends.ledger.refused & set(stored)
    assert len(stored) == len(set(stored))


def _replica_of(nodes: ClusterNodes, master: RedisServer) -> RedisServer:
    for node in nodes.nodes:
        about = node.command("INFO", "replication")
        text = about.decode() if isinstance(about, bytes) else str(about)
        if "role:slave" in text and f"master_port:{master.port}" in text:
            return node
    raise AssertionError("that master has no replica")


async def test_a_planned_failover_in_a_cluster_loses_nothing(
    nodes: ClusterNodes, name: str, seed: int
) -> None:
    """`CLUSTER FAILOVER` waits until the replica has everything; the queue follows the slot."""
    async with under_load(nodes.url, name, seed=seed) as load:
        former = await run_sync(nodes.master_of, name)
        replica = _replica_of(nodes, former)
        await eventually(lambda: _has_taken_over(replica), 2)
        await load.flows()

    async with RedisCluster.from_url(nodes.url) as client:
        verdict = await judge(load.ledger, client, name)
    assert verdict.holds(duplicates=MOST_REPEATED), verdict


async def _has_taken_over(replica: RedisServer) -> bool:
    """Ask a replica to become the master, as often as needed: it gives up after some seconds."""
    if "role:master" in _info(replica):
        return True
    with suppress(RedisError):  # it has just become one
        replica.command("CLUSTER", "FAILOVER")
    with suppress(AssertionError):
        await eventually(lambda: "role:master" in _info(replica), 8)
    return "role:master" in _info(replica)


async def test_a_killed_node_of_a_cluster_is_followed(
    nodes: ClusterNodes, name: str, seed: int
) -> None:
    """Its replica is promoted, and the queue's connections find it."""
    async with under_load(nodes.url, name, seed=seed) as load:
        former = await run_sync(nodes.master_of, name)
        replica = _replica_of(nodes, former)
        async with excused(load, former) as excuse:
            await run_sync(former.kill)
        await eventually(lambda: "role:master" in _info(replica), 60)
        await load.flows()

    living = next(node for node in nodes.nodes if node is not former)
    async with RedisCluster.from_url(living.url) as client:
        verdict = await judge(load.ledger, client, name)
    assert verdict.taken <= 100
    assert verdict.holds(excuse.repeated), verdict


def _info(node: RedisServer) -> str:
    about = node.command("INFO", "replication")
    return about.decode() if isinstance(about, bytes) else str(about)
