from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from anyio import fail_after

from aioredismq import (
    ConfigurationError,
    Consumer,
    ConsumerConfig,
    ExponentialBackoff,
    Message,
    RedisMessageQueue,
    RejectMessage,
)
from tests.looking import NOTHING, Handled, Messages, left
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aioredismq import Connection, DeadLetters
    from tests.support import Client

TWICE_AT_ONCE = ExponentialBackoff(initial=0)


@pytest.fixture
async def queue(name: str, connection: Connection) -> AsyncIterator[RedisMessageQueue]:
    """An open queue with two groups: what `fails` has not handled, `works` has."""
    async with RedisMessageQueue(name, connection, groups=("fails", "works")) as opened:
        yield opened
        await opened.delete()


async def die(queue: RedisMessageQueue) -> None:
    """Let five messages die in one of the groups: two rejected, three tried too often."""

    async def handler(number: int) -> None:
        raise RejectMessage("no") if number < 2 else LookupError("gone")

    handled = Handled()
    config = ConsumerConfig(group="fails", max_attempts=2, retry=TWICE_AT_ONCE)
    async with (
        Consumer(queue, handler, config),
        Consumer(queue, handled, ConsumerConfig(group="works")),
    ):
        for number in range(5):
            await queue.produce(number)
        await handled.until(5)
        await eventually(lambda: has_letters(queue, 5))


async def has_letters(queue: RedisMessageQueue, count: int) -> bool:
    """Say whether there are so many."""
    return await queue.dead_letters.count() == count


async def bodies(letters: DeadLetters, **choice: str) -> list[object]:
    """List the bodies of letters."""
    found = await letters.list(**choice)  # type: ignore[arg-type]
    return sorted(one.body for one in found)  # type: ignore[type-var]


async def test_letters_are_looked_at_brought_back_and_let_go(
    queue: RedisMessageQueue, look: Client
) -> None:
    """What is brought back comes to the group it died in alone, as a first attempt."""
    await die(queue)
    letters = queue.dead_letters
    assert await bodies(letters) == [0, 1, 2, 3, 4]
    assert await bodies(letters, reason="rejected") == [0, 1]
    first, second, *_ = await letters.list(limit=2)
    assert await letters.get(first.id) == first
    assert (first.group, first.attempts, first.body) == ("fails", 1, 0)

    works, again = Handled(), Messages()
    async with (
        Consumer(queue, again, ConsumerConfig(group="fails")),
        Consumer(queue, works, ConsumerConfig(group="works")),
    ):
        by_id = await letters.redrive(first.id, "1-1")
        assert (by_id.count, by_id.missing, by_id.without_group) == (1, ("1-1",), ())
        await again.until(1)
        by_reason = await letters.redrive(reason="attempts")
        assert by_reason.count == 3
        await again.until(4)
        await queue.produce("new")
        await works.until(1)
        await again.until(5)

    assert [(one.id, one.attempt) for one in again.seen[:1]] == [(first.message_id, 1)]
    assert works.bodies == ["new"]
    assert await bodies(letters) == [1]
    assert await letters.get(first.id) is None
    assert await letters.discard(second.id) == 1
    assert await letters.discard(all=True) == await letters.count() == 0
    for group in ("fails", "works"):
        assert await left(look, queue.name, group) == NOTHING
    with pytest.raises(ConfigurationError, match="say which"):
        await letters.redrive()


async def test_all_that_die_again_are_redriven_once(queue: RedisMessageQueue) -> None:
    """It ends, although a live consumer makes letters of them again."""
    await die(queue)
    rejecting = Handled(error=RejectMessage("still not"))
    async with Consumer(queue, rejecting, ConsumerConfig(group="fails")):
        with fail_after(30):
            done = await queue.dead_letters.redrive(all=True)
        await rejecting.until(5)
        await eventually(lambda: has_letters(queue, 5))

    assert done.count == 5
    assert await bodies(queue.dead_letters, reason="rejected") == [0, 1, 2, 3, 4]


async def test_letters_of_a_destroyed_group_are_said_and_stay(
    queue: RedisMessageQueue,
) -> None:
    """They can still be looked at, consumed, and discarded."""
    await die(queue)
    await queue.destroy_group("fails")

    done = await queue.dead_letters.redrive(all=True)

    assert (done.count, done.missing, len(done.without_group)) == (0, (), 5)
    assert await bodies(queue.dead_letters) == [0, 1, 2, 3, 4]
    assert await queue.dead_letters.discard(*done.without_group) == 5


async def test_letters_are_consumed_and_those_that_fail_or_are_cut_off_stay(
    queue: RedisMessageQueue, look: Client
) -> None:
    """Handled, failed, or in hand when it ends: what is not handled is a letter, once."""
    await die(queue)
    started: set[int] = set()

    async def mourn(message: Message) -> None:
        started.add(message.body)
        assert message.reserved["mq-group"] == b"fails"
        if message.body == 0:
            return
        if message.body < 3:
            raise LookupError("cannot be mended")
        await asyncio.sleep(60)

    task = asyncio.ensure_future(
        queue.dead_letters.consume(mourn, shutdown_timeout=0.01)
    )
    await eventually(lambda: len(started) == 5)
    await eventually(lambda: has_letters(queue, 4))
    task.cancel()
    with fail_after(30):
        await asyncio.wait([task])

    letters = queue.dead_letters
    assert await letters.count() == 4
    assert await bodies(letters) == [1, 2, 3, 4]
    assert await bodies(letters, reason="attempts") == [2, 3, 4]
    # Those that were cut off come again, those that have failed do not.
    rest = Handled()
    task = asyncio.ensure_future(letters.consume(rest))
    await eventually(lambda: has_letters(queue, 2))
    task.cancel()
    with fail_after(30):
        await asyncio.wait([task])
    assert sorted(rest.bodies) == [3, 4]
    assert (await letters.redrive(all=True)).count == 2
    assert (await left(look, queue.name, "fails")).undelivered_lane == 2
