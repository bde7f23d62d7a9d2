from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Literal

import pytest
from anyio import fail_after
from redis.asyncio import RedisCluster

from aioredismq import (
    Consumer,
    ConsumerConfig,
    QueueDeletedError,
    RedisMessageQueue,
)
from aioredismq._reader import LONGEST_BLOCK
from tests.looking import NOTHING, Handled, left
from tests.support import eventually

if TYPE_CHECKING:
    from tests.support import Client

# The oldest servers wake nobody when a stream goes: it is noticed when the read ends. The rest is
# for a busy machine.
NOTICED = LONGEST_BLOCK + 15.0


async def group_names(look: Client, name: str) -> list[str]:
    """List the groups of a stream; none when it does not exist."""
    if not await look.exists(name):
        return []
    return sorted(item["name"].decode() for item in await look.xinfo_groups(name))


async def is_pending(look: Client, name: str, count: int) -> bool:
    """Say whether the group `billing` holds so many messages, so that all others are settled."""
    return bool((await look.xpending(name, "billing"))["pending"] == count)


# On purpose.


async def test_deleting_a_queue_ends_its_consumers(
    queue: RedisMessageQueue, look: Client
) -> None:
    """With the reason, and none of them makes it again."""
    handled = Handled()
    consumers = [Consumer(queue, handled) for _ in range(2)]
    for consumer in consumers:
        await consumer.start()
    await queue.produce("hello")
    await handled.until(1)

    await queue.delete()

    for consumer in consumers:
        with fail_after(NOTICED), pytest.raises(QueueDeletedError, match="was deleted"):
            await consumer.wait()
    assert not await look.exists(queue.name)


async def test_destroying_a_group_ends_its_consumers_alone(
    queue: RedisMessageQueue, look: Client
) -> None:
    """Other groups go on."""
    billing, others = Handled(), Handled()
    async with Consumer(queue, others):
        consumer = Consumer(queue, billing, ConsumerConfig(group="billing"))
        await consumer.start()
        await queue.produce(1)
        await billing.until(1)

        assert await queue.destroy_group("billing")

        with fail_after(NOTICED), pytest.raises(QueueDeletedError, match="billing"):
            await consumer.wait()
        await queue.produce(2)
        await others.until(2)
    assert await group_names(look, queue.name) == [f"{queue.name}_group"]
    assert billing.bodies == [1]
    assert await left(look, queue.name) == NOTHING


@pytest.mark.parametrize("error", [None, ValueError("no")])
async def test_a_handler_that_runs_when_its_queue_is_deleted_may_finish(
    queue: RedisMessageQueue, look: Client, error: Exception | None
) -> None:
    """Well or badly: there is nothing left to settle, and the end does not wait for it."""
    handled = Handled(error=error)
    handled.gate = asyncio.Event()
    consumer = Consumer(queue, handled)
    await consumer.start()
    await queue.produce("hello")
    await handled.until(1)

    await queue.delete()
    await eventually(lambda: consumer.error is not None, limit=NOTICED)
    handled.gate.set()

    # Who takes leave of a server that does not answer waits for 5 s.
    with fail_after(4.5), pytest.raises(QueueDeletedError):
        await consumer.wait()
    assert handled.running == 0
    assert not await look.exists(queue.name)


async def test_a_queue_that_is_made_again_at_once_is_not_touched(
    queue: RedisMessageQueue, look: Client
) -> None:
    """The consumers of its former life end; those of the new one are not theirs."""
    old, new = Handled(), Handled()
    consumer = Consumer(queue, old)
    await consumer.start()
    await queue.produce("old")
    await old.until(1)

    await queue.delete()
    async with (
        RedisMessageQueue(queue.name, queue.channel.connection) as again,
        Consumer(again, new),
    ):
        await again.produce("new")
        with fail_after(NOTICED), pytest.raises(QueueDeletedError):
            await consumer.wait()
        await eventually(lambda: len(old.bodies) + len(new.bodies) >= 2)
        await again.produce("newer")
        await eventually(lambda: "newer" in new.bodies)

    assert "newer" not in old.bodies


async def test_a_queue_deleted_after_a_loss_ends_all_its_consumers(
    queue: RedisMessageQueue, look: Client
) -> None:
    """One of them made it again; whoever did not is told all the same."""
    handled = Handled()
    async with RedisMessageQueue(queue.name, queue.channel.connection) as other:
        consumers = [Consumer(one, handled) for one in (queue, other)]
        for consumer in consumers:
            await consumer.start()
        await queue.produce(0)
        await handled.until(1)
        await flush(look)

        async def is_there_again() -> bool:
            return bool(await group_names(look, queue.name))

        await eventually(is_there_again, limit=NOTICED)
        await queue.produce_many([1, 2])
        await handled.until(3)

        await queue.delete()

        # 6.2 tells neither when its read ends: they look at the bell, and at a slow pulse.
        for consumer in consumers:
            with fail_after(NOTICED + 5), pytest.raises(QueueDeletedError):
                await consumer.wait()
    assert not await look.exists(queue.name)


# By accident.


async def flush(look: Client) -> None:
    """Remove everything there is."""
    if isinstance(look, RedisCluster):
        await look.flushall(target_nodes=RedisCluster.PRIMARIES)
    else:
        await look.flushall()


@pytest.mark.parametrize("how", ["stream", "group", "everything"])
async def test_what_was_removed_by_hand_is_made_again(
    queue: RedisMessageQueue, look: Client, how: str
) -> None:
    """The consumer says so and goes on, with what is produced afterwards."""
    handled = Handled()
    async with Consumer(queue, handled) as consumer:
        await queue.produce(1)
        await handled.until(1)

        if how == "stream":
            await look.delete(queue.name)
        elif how == "group":
            await look.xgroup_destroy(queue.name, f"{queue.name}_group")
        else:
            await flush(look)

        async def is_there_again() -> bool:
            return bool(await group_names(look, queue.name))

        await eventually(is_there_again, limit=NOTICED)
        await queue.produce(2)
        await handled.until(2)
        assert consumer.error is None

    assert handled.bodies == [1, 2]
    assert await left(look, queue.name) == NOTHING


@pytest.mark.parametrize("start", ["earliest", "latest"])
async def test_a_group_removed_by_hand_repeats_nothing_another_still_needs(
    queue: RedisMessageQueue, look: Client, start: Literal["earliest", "latest"]
) -> None:
    """What it has settled is still stored, for a group that is behind; what runs goes on."""
    handled = Handled()
    config = ConsumerConfig(group="billing", start=start, concurrency=4)
    await queue.produce("before")
    await look.xgroup_create(queue.name, "slow", "0")
    async with Consumer(queue, handled, config):
        await queue.produce_many(range(500))
        await eventually(lambda: set(range(500)) <= set(handled.bodies))
        handled.gate = asyncio.Event()
        await queue.produce_many(range(500, 503))
        await eventually(lambda: handled.running == 3)
        await eventually(partial(is_pending, look, queue.name, 3))

        await look.xgroup_destroy(queue.name, "billing")
        await queue.produce_many(range(503, 510))
        handled.gate.set()
        await eventually(lambda: 509 in handled.bodies, limit=NOTICED)

        await eventually(partial(is_pending, look, queue.name, 0))

    before = ["before"] if start == "earliest" else []
    assert sorted(handled.bodies, key=str) == sorted([*before, *range(510)], key=str)
    assert await look.xlen(queue.name) == 511


async def test_a_latest_group_removed_at_once_misses_nothing(
    queue: RedisMessageQueue, look: Client
) -> None:
    """It begins again where it began, although nothing was settled and nobody has looked."""
    handled = Handled(takes=0.3)
    config = ConsumerConfig(group="news", start="latest", concurrency=2)
    await queue.produce("before")
    async with Consumer(queue, handled, config):
        await queue.produce_many(range(10))
        await handled.until(1)

        await look.xgroup_destroy(queue.name, "news")

        await eventually(lambda: set(range(10)) <= set(handled.bodies), NOTICED + 2)
    assert "before" not in handled.bodies


async def test_a_group_removed_by_hand_misses_nothing_that_is_stored(
    queue: RedisMessageQueue, look: Client
) -> None:
    """It begins again where nothing can be left out."""
    handled = Handled()
    async with Consumer(queue, handled):
        await queue.produce(1)
        await handled.until(1)

        await look.xgroup_destroy(queue.name, f"{queue.name}_group")
        await queue.produce(2)

        await eventually(lambda: 2 in handled.bodies, limit=NOTICED)

    assert await left(look, queue.name) == NOTHING


@pytest.mark.parametrize("error", [None, ValueError("no")])
async def test_what_ran_while_its_stream_was_removed_ends_nothing(
    queue: RedisMessageQueue, look: Client, error: Exception | None
) -> None:
    """Its message is gone: there is nothing to acknowledge, and nothing to try again."""
    handled = Handled(error=error)
    handled.gate = asyncio.Event()
    async with Consumer(queue, handled, ConsumerConfig(max_attempts=1)) as consumer:
        await queue.produce(1)
        await handled.until(1)

        await look.delete(queue.name)
        handled.gate.set()
        await eventually(lambda: consumer.held == 0)

        async def is_there_again() -> bool:
            return bool(await group_names(look, queue.name))

        await eventually(is_there_again, limit=NOTICED)
        await queue.produce(2)
        await handled.until(2)
        assert consumer.error is None


async def test_a_producer_that_was_first_after_a_removal_loses_nothing(
    queue: RedisMessageQueue, look: Client
) -> None:
    """It makes the stream again without a group; the group then begins at the beginning."""
    handled = Handled()
    async with Consumer(queue, handled):
        await queue.produce(1)
        await handled.until(1)

        await look.delete(queue.name)
        await queue.produce_many(range(2, 50))

        await eventually(lambda: set(range(2, 50)) <= set(handled.bodies), NOTICED)

    assert await left(look, queue.name) == NOTHING
