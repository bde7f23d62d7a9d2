"""A consumer keeps no more than its handlers will use soon, also when they become slow."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aioredismq import Consumer, ConsumerConfig, RedisMessageQueue
from tests.looking import Handled
from tests.support import eventually

if TYPE_CHECKING:
    from tests.support import Client


async def test_what_was_read_ahead_for_fast_handlers_goes_back_when_they_become_slow(
    url: str, name: str, client: Client
) -> None:
    """The pile of a consumer whose handlers have become slow is handled by an idle one."""
    slow_from, gate = 3000, asyncio.Event()
    fast = pile = 0

    async def becomes_slow(number: int) -> None:
        nonlocal fast, pile
        if number >= slow_from:
            pile = max(pile, first.held)
            await gate.wait()
        fast += 1

    other = Handled()
    config = ConsumerConfig(concurrency=4)
    async with (
        RedisMessageQueue(name, url) as queue,
        Consumer(queue, becomes_slow, config) as first,
    ):
        await queue.produce_many(range(slow_from + 400))
        await eventually(lambda: fast == slow_from)

        async with Consumer(queue, other, config):
            await other.until(396)
            await eventually(lambda: first.held == 4)
            gate.set()
            await eventually(lambda: fast == slow_from + 4)

    assert pile > 4
    assert max(other.bodies) == slow_from + 399
    assert await client.xlen(name) == 0


async def test_slow_handlers_leave_the_rest_to_others(
    url: str, name: str, client: Client
) -> None:
    """With handlers that take long, nothing is read ahead at all."""
    gate = asyncio.Event()
    started: list[int] = []

    async def slow(number: int) -> None:
        started.append(number)
        await gate.wait()

    async with RedisMessageQueue(name, url) as queue:
        await queue.produce_many(range(20))
        async with Consumer(queue, slow, ConsumerConfig(concurrency=2)) as consumer:
            await eventually(lambda: len(started) == 2)
            await eventually(lambda: consumer.held == 2)
            pending = await client.xpending(name, f"{name}_group")
            gate.set()

    assert pending["pending"] == 2
