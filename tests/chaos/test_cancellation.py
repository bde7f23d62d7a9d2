"""Callers that are cancelled, at every await: nothing leaks, is crossed, or is left behind."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from aioredismq import Connection, RedisMessageQueue
from aioredismq.testing import FaultyLine
from tests.looking import NOTHING, left
from tests.sending import stored
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from redis.asyncio import Redis

pytestmark = [pytest.mark.one_loop, pytest.mark.timeout(120)]

# More turns of the event loop than a send, or the start of a consumer, takes on a quick line.
TURNS = 40


async def cancel_after(turns: int, work: Coroutine[object, object, object]) -> bool:
    """Cancel after so many turns of the event loop; says whether it had not ended before."""
    task = asyncio.ensure_future(work)
    for _ in range(turns):
        await asyncio.sleep(0)
    cancelled = task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return cancelled and task.cancelled()


async def connections(client: Redis) -> int:
    """Count the server's clients."""
    return len(await client.client_list())


async def test_a_send_cancelled_at_any_await_leaks_and_crosses_nothing(
    url: str, name: str, client: Redis, seed: int
) -> None:
    """Beside it others send: each gets the id of what it has sent, and no connection is left.

    What is cancelled may be stored, once.
    """
    chance = random.Random(seed)
    async with (
        FaultyLine(url) as line,
        RedisMessageQueue(name, Connection(line.url, reply_timeout=1)) as queue,
    ):
        sent: dict[str, int] = {}
        before = await connections(client)

        async def send(body: int) -> None:
            await asyncio.sleep(chance.random() * 0.3)
            sent[await queue.produce(body)] = body

        line.delay(0.0005)
        others = asyncio.gather(*[send(body) for body in range(400)])
        cancelled = 0
        for turns in range(TURNS):
            for burst in range(4):
                body = 1000 + 4 * turns + burst
                cancelled += await cancel_after(turns, queue.produce(body))
        await others

        assert cancelled > TURNS
        there = await stored(client, name)
        assert {there[entry_id]: 1 for entry_id in sent} == dict.fromkeys(
            map(str, range(400)), 1
        )
        assert all(there[entry_id] == str(body) for entry_id, body in sent.items())
        assert max(Counter(there.values()).values()) == 1
        await eventually(lambda: are_no_more(client, before))
        assert await queue.produce("afterwards")


async def are_no_more(client: Redis, before: int) -> bool:
    """Say whether no more are connected than before; of those some may have been going."""
    return await connections(client) <= before


async def test_opening_cancelled_at_any_await_leaves_nothing_open(
    url: str, name: str, client: Redis
) -> None:
    """Connections, tasks and what was begun on the way; it can be opened afterwards."""
    before, tasks = await connections(client), len(asyncio.all_tasks())
    for turns in range(0, TURNS, 2):
        queue = RedisMessageQueue(name, url)
        if not await cancel_after(turns, queue.initialize()):
            await queue.close()

    await eventually(lambda: are_no_more(client, before))
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks)
    async with RedisMessageQueue(name, url) as queue:
        await queue.produce(1)


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
async def test_consuming_cancelled_at_any_await_leaves_nothing_pending(
    url: str, name: str, client: Redis, seed: int, again: bool
) -> None:
    """What was not handled is handed back, no name is left, and nothing is handled twice."""
    chance = random.Random(seed)
    handled: Counter[int] = Counter()

    async def handle(body: int) -> None:
        await asyncio.sleep(chance.random() * 0.004)
        handled[body] += 1

    async with RedisMessageQueue(name, url) as queue:
        await queue.produce_many(range(300))
        before = await connections(client)
        for round_ in range(60):
            work = asyncio.ensure_future(
                queue.consume(handle, concurrency=4, shutdown_timeout=0.002)
            )
            if round_ < TURNS:
                for _ in range(round_):
                    await asyncio.sleep(0)
            else:
                await asyncio.sleep(chance.random() * 0.02)
            work.cancel()
            if again:
                await asyncio.sleep(chance.random() * 0.002)
                work.cancel()
            with suppress(asyncio.CancelledError):
                await work
            assert (await left(client, name)).names == ()

        await eventually(lambda: are_no_more(client, before))
        last = asyncio.ensure_future(queue.consume(handle))
        await eventually(lambda: len(handled) == 300)
        last.cancel()
        with suppress(asyncio.CancelledError):
            await last

    assert set(handled.values()) == {1}
    assert await left(client, name) == NOTHING


@pytest.mark.long
async def test_consuming_cancelled_during_an_outage_is_recovered_from(
    url: str, name: str, client: Redis
) -> None:
    """It cannot hand back: it ends in time all the same, and others take over."""
    handled: Counter[int] = Counter()

    async def hang(body: int) -> None:
        await asyncio.sleep(3600)

    async def handle(body: int) -> None:
        handled[body] += 1

    async with FaultyLine(url) as line:
        queue = RedisMessageQueue(name, Connection(line.url, reply_timeout=0.5))
        async with queue:
            await queue.produce_many(range(8))
            work = asyncio.ensure_future(
                queue.consume(
                    hang, concurrency=4, visibility_timeout=0.6, shutdown_timeout=0.1
                )
            )

            async def is_held() -> bool:
                return (await left(client, name)).pending >= 4

            await eventually(is_held)
            line.cut()
            work.cancel()
            await asyncio.wait([work], timeout=7)
            assert work.done()
            line.heal()

    async with RedisMessageQueue(name, url) as queue:
        last = asyncio.ensure_future(queue.consume(handle, visibility_timeout=0.6))
        await eventually(lambda: len(handled) == 8)
        last.cancel()
        with suppress(asyncio.CancelledError):
            await last

    assert set(handled.values()) == {1}
