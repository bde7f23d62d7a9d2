"""Servers that are killed, paused, flushed or tampered with: consumers mend it by themselves."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from anyio.to_thread import run_sync
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.chaos.load import CONCURRENCY, VISIBILITY, under_load
from tests.looking import NOTHING, left

if TYPE_CHECKING:
    from aioredismq.testing import RedisServer

pytestmark = [pytest.mark.one_loop, pytest.mark.timeout(120)]


async def test_a_killed_server_that_comes_back_has_lost_nothing(
    durable_server: RedisServer, name: str
) -> None:
    """SIGKILL under load, twice, with every write on disk: nothing is lost, little is repeated."""
    async with under_load(durable_server.url, name) as load:
        for down in (0.5, 2 * VISIBILITY):
            await run_sync(durable_server.kill)
            await asyncio.sleep(down)
            await run_sync(durable_server.start)
            await load.flows(40, limit=6)

    assert not load.ledger.lost
    assert not load.ledger.unwanted
    assert load.ledger.duplicates == 0


async def test_a_paused_server_is_waited_for(
    durable_server: RedisServer, name: str
) -> None:
    """It stands still for longer than a lease and a reply may take: leases are renewed first."""
    async with under_load(durable_server.url, name) as load:
        await run_sync(durable_server.pause)
        await asyncio.sleep(2 * VISIBILITY)
        await run_sync(durable_server.resume)
        await load.flows(40, limit=10)

    assert not load.ledger.lost
    assert load.ledger.duplicates == 0


async def _flush_scripts(client: Redis) -> None:
    await client.script_flush()


async def _kill_clients(client: Redis) -> None:
    for known in await client.client_list():
        with suppress(RedisError):
            await client.client_kill_filter(_id=known["id"])


async def _destroy_group(client: Redis) -> None:
    for name in await client.keys("[^{]*"):
        await client.xgroup_destroy(name, name + b"_group")


async def _delete_stream(client: Redis) -> None:
    await client.delete(*await client.keys("[^{]*"))


async def _flush_all(client: Redis) -> None:
    await client.flushall()


@pytest.mark.parametrize(
    ("tamper", "takes_messages"),
    [
        (_flush_scripts, False),
        (_kill_clients, False),
        (_destroy_group, False),
        (_delete_stream, True),
        (_flush_all, True),
    ],
)
async def test_tampering_is_mended_by_itself(
    durable_server: RedisServer, name: str, tamper: object, takes_messages: bool
) -> None:
    """Scripts, connections, the group, the stream, everything: gone while in use, three times.

    What DEL and FLUSHALL take away is gone; nothing else is, and only what was held is repeated.
    """
    taken = 0
    async with (
        Redis.from_url(durable_server.url) as client,
        under_load(durable_server.url, name) as load,
    ):
        for _ in range(3):
            await tamper(client)  # type: ignore[operator]
            await load.flows(40, limit=6)
        if takes_messages:
            # Accepted before, and gone with the stream: counted apart, and named.
            await asyncio.sleep(VISIBILITY)
            gone = {
                body
                for body in load.ledger.lost
                if body < max(load.ledger.handled) - 500
            }
            taken = len(gone)
            load.ledger.accepted -= load.ledger.lost

    assert not load.ledger.unwanted
    assert taken < 200
    assert load.ledger.duplicates <= 3 * 2 * (CONCURRENCY + 1)
    async with Redis.from_url(durable_server.url) as client:
        assert await left(client, name) == NOTHING
