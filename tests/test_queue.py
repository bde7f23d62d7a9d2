from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pytest
from anyio import create_task_group, fail_after
from redis.asyncio import Redis

from aioredismq import (
    ConfigurationError,
    Connection,
    ConsumerConfig,
    HandlerSignatureError,
    Message,
    NotInitializedError,
    ProducerConfig,
    QueueConfig,
    QueueDeletedError,
    QueueMismatchError,
    RedisMessageQueue,
    WrongKeyTypeError,
)
from aioredismq._config import ConsumerOptions, QueueOptions
from aioredismq._keys import QueueKeys
from tests.looking import NOTHING, Handled, left
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aioredismq.testing import RedisServer


@pytest.fixture
async def queue(url: str, name: str) -> AsyncIterator[RedisMessageQueue]:
    """An open queue, removed afterwards."""
    async with RedisMessageQueue(name, url) as opened:
        yield opened
        await opened.delete()


async def groups_of(client: Redis, name: str) -> list[str]:
    """List the groups of a stream; none when it does not exist."""
    if not await client.exists(name):
        return []
    return sorted(item["name"].decode() for item in await client.xinfo_groups(name))


# Construction.


def test_making_a_queue_needs_neither_server_nor_loop() -> None:
    """Nothing is opened before `initialize()`."""
    queue = RedisMessageQueue("orders", "redis://nowhere.invalid:1/0")

    assert queue.name == "orders"
    assert not queue.is_initialized
    assert not queue.health().healthy
    assert repr(queue) == "RedisMessageQueue('orders', Connection(nowhere.invalid:1))"


def test_a_port_may_be_given_beside_the_url() -> None:
    """As the original takes them."""
    queue = RedisMessageQueue("orders", "redis://localhost", 7000)

    assert "localhost:7000" in repr(queue)


def test_a_port_goes_with_no_ready_connection() -> None:
    """It has one already."""
    with pytest.raises(ConfigurationError, match="port goes with a URL"):
        RedisMessageQueue("orders", Connection(), 7000)


@pytest.mark.parametrize("name", ["", "{", "{}", "{orders}", "{a}:dead"])
def test_a_name_that_has_no_keys_of_its_own_is_refused(name: str) -> None:
    """At once, with the rule."""
    with pytest.raises(ConfigurationError, match="queue name"):
        RedisMessageQueue(name)


def test_an_option_nobody_has_is_refused_with_those_there_are() -> None:
    """A misspelt one would otherwise mean nothing."""
    with pytest.raises(ConfigurationError, match="unknown option 'max_batches'"):
        RedisMessageQueue("orders", max_batches=1)  # type: ignore[call-arg]


def test_the_options_are_the_fields_of_the_configurations() -> None:
    """No knob is declared twice, and none is missing."""
    assert set(QueueOptions.__annotations__) == {
        item.name for kind in (QueueConfig, ProducerConfig) for item in fields(kind)
    }
    assert set(ConsumerOptions.__annotations__) == {
        item.name for item in fields(ConsumerConfig)
    }


# Initialize.


async def test_initializing_makes_the_stream_and_its_default_group(
    url: str, name: str, client: Redis
) -> None:
    """So that nothing is missed by a group that has not consumed yet."""
    async with RedisMessageQueue(name, url) as queue:
        assert queue.is_initialized
        assert queue.health().healthy
        assert await groups_of(client, name) == [f"{name}_group"]
        await queue.delete()

    assert not queue.is_initialized


async def test_initializing_makes_the_groups_of_the_handlers(
    url: str, name: str, client: Redis
) -> None:
    """Those that are registered, and then no default one."""
    queue = RedisMessageQueue(name, url)

    @queue.handler(group="billing")
    async def bill(body: object) -> None: ...

    @queue.handler(group="shipping", start="latest")
    async def ship(body: object) -> None: ...

    async with queue:
        assert await groups_of(client, name) == ["billing", "shipping"]
        await queue.delete()


async def test_initializing_makes_the_groups_that_are_named(
    url: str, name: str, client: Redis
) -> None:
    """And no others: producers may start before a consumer of each has ever run."""
    queue = RedisMessageQueue(name, url, groups=("a", "b"))

    @queue.handler(group="c")
    async def handler(body: object) -> None: ...

    async with queue:
        assert await groups_of(client, name) == ["a", "b"]
        await queue.delete()


async def test_initializing_may_make_no_group(
    url: str, name: str, client: Redis
) -> None:
    """A producer that leaves that to the consumers."""
    async with RedisMessageQueue(name, url, groups=()) as queue:
        assert await groups_of(client, name) == []
        await queue.produce("hello")
        assert await groups_of(client, name) == []
        await queue.delete()


async def test_a_group_begins_where_its_handler_says(
    url: str, name: str, client: Redis
) -> None:
    """`initialize()` makes it, so it is there that `start` counts."""
    async with RedisMessageQueue(name, url) as producer:
        await producer.produce("old")
        queue = RedisMessageQueue(name, url)

        @queue.handler(group="all")
        async def everything(body: object) -> None: ...

        @queue.handler(group="new", start="latest")
        async def news(body: object) -> None: ...

        async with queue:
            lag = {item.name: item.last_delivered_id for item in await queue.groups()}

        assert lag["all"] == "0-0"
        assert lag["new"] != "0-0"
        await producer.delete()


async def test_initializing_again_changes_nothing(
    queue: RedisMessageQueue, client: Redis
) -> None:
    """Here, and by other processes: what is stored, and how far groups are, stays."""
    handled = Handled()
    task = asyncio.create_task(queue.consume(handled))
    await queue.produce("hello")
    await handled.until(1)

    await queue.initialize()
    async with RedisMessageQueue(queue.name, queue.channel.connection) as other:
        await other.initialize()

    await queue.produce("again")
    await handled.until(2)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert handled.bodies == ["hello", "again"]


async def test_initializing_at_the_same_time_is_once(
    own_server: RedisServer, name: str
) -> None:
    """Whoever comes second waits, and closing once closes everything."""
    async with Redis.from_url(own_server.url, protocol=2) as client:
        queue = RedisMessageQueue(name, own_server.url)
        async with create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(queue.initialize)
        assert queue.is_initialized
        await queue.produce("hello")

        await queue.close()

        async def only_ours() -> bool:
            return len(await client.client_list()) == 1

        await eventually(only_ours)


async def test_a_queue_can_be_opened_again(url: str, name: str, client: Redis) -> None:
    """After it was closed."""
    queue = RedisMessageQueue(name, url)
    for number in range(2):
        async with queue:
            await queue.produce(number)
    await queue.close()

    assert await client.xlen(name) == 2
    async with queue:
        await queue.delete()


async def test_an_initialization_that_fails_leaves_nothing_open(
    own_server: RedisServer, name: str
) -> None:
    """And can be tried again."""
    async with Redis.from_url(own_server.url, protocol=2) as client:
        await client.set(name, "something else")
        queue = RedisMessageQueue(name, own_server.url)

        with pytest.raises(WrongKeyTypeError):
            await queue.initialize()

        assert not queue.is_initialized

        async def only_ours() -> bool:
            return len(await client.client_list()) == 1

        await eventually(only_ours)
        await client.delete(name)
        async with queue:
            await queue.produce("hello")


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 10, 20, 50])
async def test_an_initialization_that_is_cancelled_leaves_nothing_open(
    own_server: RedisServer, name: str, turns: int
) -> None:
    """At whatever moment."""
    async with Redis.from_url(own_server.url, protocol=2) as client:
        queue = RedisMessageQueue(name, own_server.url)
        task = asyncio.create_task(queue.initialize())
        for _ in range(turns):
            await asyncio.sleep(0)

        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await queue.close()

        async def only_ours() -> bool:
            return len(await client.client_list()) == 1

        await eventually(only_ours)


async def test_all_users_of_a_queue_must_agree(
    queue: RedisMessageQueue, name: str
) -> None:
    """Whoever comes with another wire format is told what is in force."""
    other = RedisMessageQueue(name, queue.channel.connection, wire="original")

    with pytest.raises(QueueMismatchError, match="wire='plain'"):
        await other.initialize()


@pytest.mark.parametrize(
    ("use", "given"),
    [
        ("produce", ["hello"]),
        ("produce_many", [["hello"]]),
        ("consume", [print]),
        ("records", []),
        ("groups", []),
        ("destroy_group", ["billing"]),
        ("delete", []),
    ],
)
async def test_what_needs_the_server_says_that_it_is_not_open(
    use: str, given: list[Any]
) -> None:
    """With what to do about it."""
    with pytest.raises(NotInitializedError, match="initialize"):
        await getattr(RedisMessageQueue("orders"), use)(*given)


# Consume.


async def test_consuming_goes_on_until_it_is_cancelled(
    queue: RedisMessageQueue, client: Redis
) -> None:
    """The blocking way: cancelling is the normal way to stop, and passed on."""
    handled = Handled()
    task = asyncio.create_task(
        queue.consume(handled, consumer_name="worker", count=10, concurrency=4)
    )
    await queue.produce_many(range(20))
    await handled.until(20)
    names = [item.decode() for item in (await left(client, queue.name)).names]
    assert len(names) == 1
    assert names[0].startswith("worker-")

    task.cancel()

    with fail_after(8), pytest.raises(asyncio.CancelledError):
        await task
    assert await left(client, queue.name) == NOTHING


async def test_a_callback_that_cannot_be_called_is_refused(
    queue: RedisMessageQueue,
) -> None:
    """Before anything is consumed."""

    async def handler(body: object, order: int, extra: str) -> None: ...

    with pytest.raises(HandlerSignatureError, match="order"):
        await queue.consume(handler)


async def test_an_option_of_a_consumer_nobody_has_is_refused(
    queue: RedisMessageQueue,
) -> None:
    """In `consume` as in `handler`."""
    with pytest.raises(ConfigurationError, match="unknown option 'concurency'"):
        await queue.consume(print, concurency=1)  # type: ignore[call-arg]
    with pytest.raises(ConfigurationError, match="unknown option 'concurency'"):
        queue.handler(concurency=1)  # type: ignore[call-overload]


def test_registering_a_handler_gives_it_back() -> None:
    """It can still be called by itself, in a test for instance."""
    queue = RedisMessageQueue("orders")

    @queue.handler
    async def plain(body: object) -> None: ...

    @queue.handler(group="billing", concurrency=32)
    async def with_options(message: Message) -> None: ...

    assert plain.__name__ == "plain"
    assert with_options.__name__ == "with_options"
    assert [config.group for _, config in queue._handlers] == [None, "billing"]


def test_a_handler_is_refused_where_it_is_registered() -> None:
    """Not when the service runs."""
    queue = RedisMessageQueue("orders")

    with pytest.raises(HandlerSignatureError, match="one list"):

        @queue.handler
        async def handler(messages: list[Message], body: object) -> None: ...


async def test_closing_a_queue_ends_what_consumes(
    url: str, name: str, client: Redis
) -> None:
    """In order: `consume` returns, and nothing is left pending."""
    handled = Handled(takes=0.05)
    queue = RedisMessageQueue(name, url)
    await queue.initialize()
    task = asyncio.create_task(queue.consume(handled))
    await queue.produce_many(range(5))
    await handled.until(1)

    with fail_after(8):
        await queue.close()
        await task

    assert handled.running == 0
    after = await left(client, name)
    assert (after.pending, after.pending_lane, after.names) == (0, 0, ())
    async with queue:
        await queue.delete()


async def test_closing_that_is_cancelled_hands_back_and_closes(
    own_server: RedisServer, name: str
) -> None:
    """A cancellation hurries; it does not leave half of it open."""
    async with Redis.from_url(own_server.url, protocol=2) as client:
        handled = Handled(takes=60)
        queue = RedisMessageQueue(name, own_server.url)
        await queue.initialize()
        consuming = asyncio.create_task(queue.consume(handled))
        await queue.produce("hello")
        await handled.until(1)
        closing = asyncio.create_task(queue.close())
        await asyncio.sleep(0.02)

        closing.cancel()

        with fail_after(8):
            with pytest.raises(asyncio.CancelledError):
                await closing
            await consuming

        async def only_ours() -> bool:
            return len(await client.client_list()) == 1

        await eventually(only_ours)
        after = await left(client, name)
        assert (after.pending, after.undelivered_lane, after.names) == (0, 1, ())


# Looking in.


async def test_records_lists_what_is_stored(queue: RedisMessageQueue) -> None:
    """Oldest first, whoever has or has not handled it."""
    first = await queue.produce({"n": 1}, headers={"trace": "abc"})
    second = await queue.produce(b"\x00")

    records = await queue.records()

    assert [record.id for record in records] == [first, second]
    assert [record.body for record in records] == [{"n": 1}, b"\x00"]
    assert records[0].headers == {"trace": "abc"}
    assert records[0].fields[b"body"] == b'{"n":1}'


async def test_records_can_be_paged(queue: RedisMessageQueue) -> None:
    """Behind an id, and so many."""
    ids = await queue.produce_many(range(1200))

    everything = await queue.records()
    page = await queue.records(after=ids[9], limit=5)

    assert [record.id for record in everything] == ids
    assert [record.body for record in page] == [10, 11, 12, 13, 14]
    assert await queue.records(limit=0) == []
    assert await queue.records(after=ids[-1]) == []
    with pytest.raises(ConfigurationError, match="limit must be 0 or more"):
        await queue.records(limit=-1)


async def test_records_show_what_cannot_be_decoded(
    queue: RedisMessageQueue, client: Redis
) -> None:
    """As bytes, or as nothing but fields."""
    await client.xadd(queue.name, {"body": b"{not json"})
    await client.xadd(queue.name, {"temperature": "21"})

    broken, foreign = await queue.records()

    assert broken.body == b"{not json"
    assert foreign.body is None
    assert foreign.headers == {"temperature": "21"}


async def test_groups_say_how_far_they_are(
    queue: RedisMessageQueue, client: Redis
) -> None:
    """Consumers, pending messages, the last one delivered, and how many are not yet."""
    handled = Handled()
    handled.gate = asyncio.Event()
    task = asyncio.create_task(queue.consume(handled, concurrency=2))
    ids = await queue.produce_many(range(5))
    await handled.until(2)

    [group] = await queue.groups()

    assert group.name == f"{queue.name}_group"
    assert group.consumers == 1
    assert group.pending >= 2
    assert group.last_delivered_id in ids
    assert group.lag is None or group.lag <= 3
    handled.gate.set()
    await handled.until(5)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_queue_that_is_gone_has_no_groups_and_no_records(
    queue: RedisMessageQueue,
) -> None:
    """It is no error to look."""
    await queue.delete()

    assert await queue.groups() == []
    assert await queue.records() == []


async def test_deleting_a_queue_removes_all_its_keys(
    queue: RedisMessageQueue, client: Redis
) -> None:
    """Stream, lanes, delayed retries, dead letters: only a tombstone, with its end, is left."""

    async def handler(body: int, message: Message) -> None:
        if body == 0:
            message.retry("later", delay=60)
        elif body == 1:
            message.reject("no")
        elif message.attempt == 1:
            raise ValueError("again")

    task = asyncio.create_task(queue.consume(handler))
    await queue.produce_many(range(3))
    keys = QueueKeys(queue.name)

    async def all_there() -> bool:
        group = f"{queue.name}_group"
        return await client.exists(keys.due(group), keys.dead, keys.lane(group)) == 3

    await eventually(all_there)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await queue.produce("one more")

    assert await queue.delete()

    here = {key async for key in client.scan_iter(match=f"*{queue.name}*", count=1000)}
    remaining = {key for key in here if await client.ttl(key) < 0}
    assert not remaining
    assert not await queue.delete()


async def test_destroying_a_group_removes_what_it_held(
    queue: RedisMessageQueue, client: Redis
) -> None:
    """Its lane and delayed retries go with it; other groups stay."""
    queue_of_two = RedisMessageQueue(
        queue.name, queue.channel.connection, groups=("billing",)
    )
    await queue_of_two.initialize()

    async def handler(message: Message) -> None:
        message.retry("later", delay=60)

    task = asyncio.create_task(queue.consume(handler, group="billing"))
    await queue.produce("hello")

    async def is_delayed() -> bool:
        return (await left(client, queue.name, "billing")).delayed == 1

    await eventually(is_delayed)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task

    assert await queue.destroy_group("billing")
    assert not await queue.destroy_group("billing")
    assert not await queue.destroy_group("never there")
    assert await groups_of(client, queue.name) == [f"{queue.name}_group"]
    keys = QueueKeys(queue.name)
    assert not await client.exists(
        keys.lane("billing"), keys.due("billing"), keys.later("billing")
    )
    await queue_of_two.close()


# Health.


async def test_health_shows_a_consumer_that_has_ended(
    queue: RedisMessageQueue, caplog: pytest.LogCaptureFixture
) -> None:
    """By its group and its reason, until another is started."""
    handled = Handled()
    task = asyncio.create_task(queue.consume(handled, group="billing"))
    await queue.produce("hello")
    await handled.until(1)
    assert queue.health().healthy

    await queue.destroy_group("billing")

    with fail_after(20), pytest.raises(QueueDeletedError):
        await task
    health = queue.health()
    assert not health.healthy
    assert "billing" in health.problems[0]
    assert "deleted" in health.problems[0]
    errors = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert len(errors) == 1

    again = asyncio.create_task(queue.consume(handled, group="billing"))
    await handled.until(1)
    await eventually(lambda: queue.health().healthy)
    again.cancel()
    with suppress(asyncio.CancelledError):
        await again


async def test_health_shows_a_server_that_is_away(
    own_server: RedisServer, name: str
) -> None:
    """And is well again when it is back."""
    async with RedisMessageQueue(name, own_server.url) as queue:
        assert queue.health().healthy
        await asyncio.to_thread(own_server.kill)
        await eventually(lambda: not queue.health().healthy)
        assert "connection" in queue.health().problems[0].lower()

        await asyncio.to_thread(own_server.start)

        await eventually(lambda: queue.health().healthy)


async def test_a_consumer_that_is_not_started_yet_is_not_forgotten(
    queue: RedisMessageQueue,
) -> None:
    """A second `consume` meanwhile does not hide it from `close()` and `health()`."""
    registered = RedisMessageQueue(queue.name, queue.channel.connection)
    registered.handler(Handled())
    [first] = registered.make_consumers()

    [second] = registered.make_consumers()

    assert registered.consumers == [first, second]


async def test_the_default_group_is_made_only_where_there_is_none(
    url: str, name: str
) -> None:
    """A process that only produces adds no group, which would hold everything back."""
    async with RedisMessageQueue(name, url, groups=("billing",)):
        pass

    async with RedisMessageQueue(name, url) as producing:
        await producing.initialize()
        groups = [group.name for group in await producing.groups()]

    assert groups == ["billing"]
