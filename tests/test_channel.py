from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import anyio
import pytest
import redis.asyncio as redis

from aioredismq import (
    ConfigurationError,
    Connection,
    ConnectionLostError,
    NotInitializedError,
    QueueConfig,
    QueueMismatchError,
    WrongKeyTypeError,
)
from aioredismq._channel import Channel, connection_for
from aioredismq._message import Entry
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis


@pytest.fixture
async def connection(url: str) -> AsyncIterator[Connection]:
    """A connection that nobody keeps open but the channels under test."""
    made = Connection(url)
    yield made
    with pytest.raises(NotInitializedError):
        made.check()  # each has given back what it took


# Which connection.


def test_a_connection_is_taken_as_it_is() -> None:
    """Queues built on it share it."""
    connection = Connection("redis://h")

    assert connection_for(connection) is connection


def test_each_url_is_a_connection_of_its_own() -> None:
    """Whoever wants to share one says so."""
    assert connection_for("redis://h") is not connection_for("redis://h")


async def test_one_client_is_one_connection() -> None:
    """So that what all queues on it need is counted together against its pool."""
    client, other = redis.Redis(), redis.Redis()

    assert connection_for(client) is connection_for(client)
    assert connection_for(client) is not connection_for(other)


async def test_clients_of_one_pool_are_one_connection() -> None:
    """Applications make clients as they need them, on the pool they have."""
    pool = redis.ConnectionPool()

    first = connection_for(redis.Redis(connection_pool=pool))
    second = connection_for(redis.Redis(connection_pool=pool))

    assert first is second


async def test_a_client_that_was_dropped_is_never_taken_for_another() -> None:
    """Its place in memory may be another's by now: the connection keeps what it stands for."""
    kept = [connection_for(redis.Redis(host=f"h{number}")) for number in range(50)]
    gc.collect()

    more = [connection_for(redis.Redis(host=f"g{number}")) for number in range(50)]

    assert [repr(each) for each in kept + more] == [
        f"Connection({letter}{number}:6379)" for letter in "hg" for number in range(50)
    ]


async def test_a_connection_nobody_uses_any_more_is_forgotten() -> None:
    """Nothing is kept for the life of the process."""
    client = redis.Redis()
    seen = weakref.ref(connection_for(client))

    gc.collect()

    assert seen() is None


# One queue.


def test_a_channel_says_what_its_users_must_agree_on(url: str) -> None:
    """As it is stored with the queue."""
    channel = Channel("orders", Connection(url), QueueConfig(wire="original"))

    assert channel.rules["wire"] == "original"
    assert channel.channel is channel


def test_the_default_group_is_named_after_the_queue(url: str) -> None:
    """As in the original library."""
    channel = Channel("orders", Connection(url), QueueConfig())

    assert channel.group_name(None) == "orders_group"
    assert channel.group_name("billing") == "billing"


def test_a_name_that_has_no_keys_of_its_own_is_refused(url: str) -> None:
    """Before anything is opened."""
    with pytest.raises(ConfigurationError, match="queue name"):
        Channel("{orders}", Connection(url), QueueConfig())


async def test_an_open_channel_talks_to_its_queue(
    connection: Connection, client: Redis, name: str
) -> None:
    """And has written down what all users agree on."""
    channel = Channel(name, connection, QueueConfig())

    stream = await channel.open()

    assert await stream.link.call("PING") == b"PONG"
    assert await client.hget(f"{{{name}}}:queue", "wire") == b"plain"
    await channel.close()
    await client.delete(f"{{{name}}}:queue")


async def test_the_last_user_closes_the_connection(
    connection: Connection, client: Redis, name: str
) -> None:
    """Each opens and closes for himself; on the server nothing is left."""
    before = len(await client.client_list())
    first = Channel(name, connection, QueueConfig())
    second = Channel(f"{name}-2", connection, QueueConfig())

    await first.open()
    stream = await second.open()
    await first.close()
    assert await stream.link.call("PING") == b"PONG"
    await second.close()

    async def is_as_before() -> bool:
        return len(await client.client_list()) <= before

    await eventually(is_as_before)
    await client.delete(f"{{{name}}}:queue", f"{{{name}-2}}:queue")


async def test_a_queue_in_use_by_other_rules_is_refused(
    connection: Connection, client: Redis, name: str
) -> None:
    """With both values; the connection is given back."""
    first = Channel(name, connection, QueueConfig())
    await first.open()
    await first.close()
    other = Channel(name, connection, QueueConfig(wire="original"))

    with pytest.raises(QueueMismatchError, match=r"wire='plain'.* 'original'"):
        await other.open()

    await client.delete(f"{{{name}}}:queue")


async def test_a_key_that_is_somebody_elses_is_not_touched(
    connection: Connection, client: Redis, name: str
) -> None:
    """What is no hash cannot hold what the queue's users agree on."""
    await client.set(f"{{{name}}}:queue", "mine")

    with pytest.raises(WrongKeyTypeError):
        await Channel(name, connection, QueueConfig()).open()

    assert await client.getdel(f"{{{name}}}:queue") == b"mine"


async def test_a_server_that_is_away_leaves_nothing_open(name: str) -> None:
    """The next one begins from the start."""
    connection = Connection("redis://127.0.0.1:1")
    channel = Channel(name, connection, QueueConfig())

    for _ in range(2):
        with pytest.raises(ConnectionLostError):
            await channel.open()

    with pytest.raises(NotInitializedError):
        connection.check()


async def test_who_gives_up_opening_leaves_nothing_open(
    connection: Connection, name: str, client: Redis
) -> None:
    """At whichever moment he is cancelled."""
    channel = Channel(name, connection, QueueConfig())
    before = len(await client.client_list())
    for delay in (0.0, 0.001, 0.002, 0.003, 0.005):
        with anyio.move_on_after(delay) as given_up:
            await channel.open()
        if not given_up.cancelled_caught:
            await channel.close()

    async def is_as_before() -> bool:
        return len(await client.client_list()) <= before

    await eventually(is_as_before)
    await client.delete(f"{{{name}}}:queue")


def test_the_dead_letters_of_a_queue_have_a_channel_of_their_own(url: str) -> None:
    """On the same connection, with a default group of their own."""
    channel = Channel("orders", Connection(url), QueueConfig())

    dead = channel.of_dead_letters()

    assert dead.connection is channel.connection
    assert dead.keys.stream == channel.keys.dead
    assert dead.group_name(None) != channel.group_name(None)


def test_a_record_shows_a_stored_entry(url: str) -> None:
    """Its body as it would be decoded without an annotation, or as it is."""
    channel = Channel("orders", Connection(url), QueueConfig())

    good = channel.record(Entry(b"1-0", [b"body", b"[1]", b"h", b"v"], in_lane=False))
    bad = channel.record(Entry(b"2-0", [b"body", b"[1"], in_lane=False))

    assert (good.id, good.body, good.headers) == ("1-0", [1], {"h": "v"})
    assert bad.body == b"[1"
