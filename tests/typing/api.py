"""The public names as a user's type checker sees them: checked by mypy and pyright, never run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_type

import aioredismq
from aioredismq import (
    AuthenticationError,
    BacklogError,
    CommandRefusedError,
    ConfigurationError,
    Connection,
    ConnectionLostError,
    Consumer,
    ConsumerConfig,
    DeadLetter,
    DeadLetters,
    DecodeError,
    EncodeError,
    ExponentialBackoff,
    Failure,
    GroupInfo,
    HandlerSignatureError,
    Health,
    Message,
    MessageQueueError,
    NoRetry,
    NotInitializedError,
    PermissionDeniedError,
    PoolTooSmallError,
    Producer,
    ProducerConfig,
    PublishManyError,
    PublishUncertainError,
    QueueConfig,
    QueueDeletedError,
    QueueMismatchError,
    Record,
    RedisMessageQueue,
    Redriven,
    RejectMessage,
    RetryMessage,
    RetryPolicy,
    ServerError,
    ServerFullError,
    ServerNotReadyError,
    UnsupportedServerError,
    WrongKeyTypeError,
    WrongLoopError,
)
from aioredismq.testing import (
    ClusterNodes,
    FaultyLine,
    NoServerFoundError,
    RedisServer,
    SentinelSet,
    ServerStartError,
    find_servers,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from redis.asyncio import Redis, RedisCluster


@dataclass
class Order:
    """What travels in these examples."""

    sku: str
    quantity: int


class Shop:
    """Handlers may be methods."""

    async def sell(self, order: Order) -> None:
        """Handle one."""


# Making a queue.


def make_queues(client: Redis, cluster: RedisCluster) -> list[RedisMessageQueue]:
    """On whatever one has."""
    connection = Connection(
        "redis+sentinel://one:26379,two:26379/mymaster/0",
        max_connections=8,
        connect_timeout=1.0,
        reply_timeout=2,
        cluster=None,
    )
    return [
        RedisMessageQueue("orders"),
        RedisMessageQueue("orders", "redis://localhost:6379/0"),
        RedisMessageQueue("orders", "localhost", 6379),
        RedisMessageQueue("orders", connection),
        RedisMessageQueue("orders", client),
        RedisMessageQueue("orders", connection=cluster),
        RedisMessageQueue("orders", Connection(client)),
        RedisMessageQueue("orders", Connection(cluster)),
        RedisMessageQueue(
            "orders",
            wire="original",
            groups=("billing", "mail"),
            produce_timeout=5,
            max_batch=32,
            max_batch_bytes=1024,
            max_waiting=100,
            max_waiting_bytes=10_000,
            dumps=json.dumps,
        ),
    ]


def look_at(queue: RedisMessageQueue) -> None:
    """Without asking the server."""
    assert_type(queue.name, str)
    assert_type(queue.is_initialized, bool)
    health = queue.health()
    assert_type(health, Health)
    assert_type(health.healthy, bool)
    assert_type(health.problems, tuple[str, ...])
    assert_type(queue.consumers, list[Consumer])


# Producing.


async def give_in_time() -> AsyncIterator[Order]:
    """Give bodies one by one."""
    yield Order("a", 1)


def give() -> Iterator[dict[str, int]]:
    """Give bodies one by one."""
    yield {"a": 1}


async def produce(queue: RedisMessageQueue, producer: Producer) -> None:
    """One or many, by the queue or by a producer of one's own."""
    async with queue as opened:
        assert_type(opened, RedisMessageQueue)
    await queue.initialize()
    assert_type(await queue.produce({"sku": 1}), str)
    assert_type(await queue.produce(Order("a", 1), headers={"tenant": "acme"}), str)
    assert_type(await queue.produce(b"raw", delay=1.5, expires=60), str)
    assert_type(await queue.produce("text", at=datetime.now(UTC)), str)
    assert_type(await queue.produce(None, at=1.7e9), str)
    assert_type(await queue.produce_many([1, "two", None]), list[str])
    assert_type(await queue.produce_many(give(), headers={"a": "b"}), list[str])
    assert_type(await queue.produce_many(give_in_time(), delay=1), list[str])
    await queue.close()

    async with producer as sending:
        assert_type(sending, Producer)
        assert_type(await sending.produce(1), str)
        assert_type(await sending.produce_many(range(3)), list[str])
    await producer.open()
    await producer.close()


def make_producer(queue: RedisMessageQueue) -> Producer:
    """With a configuration of its own."""
    Producer(queue)
    return Producer(queue, ProducerConfig(produce_timeout=1.0, dumps=dump_to_bytes))


def dump_to_bytes(body: object) -> bytes:
    """Encode as some JSON libraries do."""
    return json.dumps(body).encode()


# Handling.


async def register(queue: RedisMessageQueue, shop: Shop, message: Message) -> None:
    """A decorator keeps what it decorates as it is."""

    @queue.handler
    async def plain(order: Order) -> None: ...

    @queue.handler(
        group="billing",
        consumer_name="worker",
        concurrency=32,
        count=10,
        batch_size=50,
        handler_timeout=5.0,
        visibility_timeout=60,
        on_lost_lease="cancel",
        max_crashes=2,
        max_attempts=3,
        retry=ExponentialBackoff(initial=1, multiplier=2, maximum=60, jitter=False),
        expired="drop",
        failover=False,
        dead_letter_retention=86400.0,
        failover_callback=hear_of_failure,
        shutdown_timeout=3,
        start="latest",
        max_read_ahead=0,
        max_read_ahead_bytes=1024,
        loads=json.loads,
    )
    async def tuned(order: Order, message: Message) -> int:
        assert_type(message.attempt, int)
        return order.quantity

    @queue.handler()
    def in_a_thread(body: dict[str, int]) -> None: ...

    @queue.handler(batch_size=10)
    async def batch(messages: list[Message]) -> None:
        messages[0].ack()

    order = Order("a", 1)
    assert_type(await plain(order), None)
    assert_type(await tuned(order, message), int)
    assert_type(in_a_thread({}), None)
    assert_type(await batch([message]), None)
    assert_type(await queue.handler(shop.sell)(order), None)
    assert_type(await queue.handler(group="x")(shop.sell)(order), None)


def hear_of_failure(message: Message, failure: Failure) -> None:
    """Be told of what has failed for good."""
    assert_type(message.id, str)
    assert_type(failure.detail, str)
    assert_type(failure.error, BaseException | None)
    assert_type(failure.error_type, str)
    assert_type(failure.traceback, str)
    if failure.reason == "decode":
        raise RejectMessage(failure.detail)


async def consume(queue: RedisMessageQueue, other: RedisMessageQueue) -> None:
    """Every way to run handlers."""
    await queue.consume(Shop().sell)
    await queue.consume(print, group="billing", failover_callback=hear_of_failure)
    assert_type(queue.consuming(), AbstractAsyncContextManager[None])
    async with queue.consuming() as nothing:
        assert_type(nothing, None)
    async with aioredismq.consuming(queue, other):
        pass
    await queue.run()
    await aioredismq.run(queue, other)


async def consume_by_hand(queue: RedisMessageQueue) -> None:
    """A consumer as an object of its own."""
    consumer = Consumer(queue, Shop().sell, ConsumerConfig(group="billing"))
    async with consumer as running:
        assert_type(running, Consumer)
        assert_type(running.name, str)
        assert_type(running.group, str)
        assert_type(running.held, int)
        assert_type(running.failed, int)
        assert_type(running.is_running, bool)
        assert_type(running.error, BaseException | None)
        await running.wait()
    await consumer.start()
    consumer.cancel()
    await consumer.stop()


async def pull(queue: RedisMessageQueue) -> None:
    """Messages one by one."""
    async with Consumer(queue, None, ConsumerConfig(concurrency=1)) as consumer:
        async for message in consumer:
            assert_type(message, Message)
            async with message as held:
                assert_type(held, Message)


async def settle(message: Message) -> None:
    """What a message has and can."""
    assert_type(message.id, str)
    assert_type(message.body, Any)
    assert_type(message.raw, bytes)
    assert_type(message.headers, Mapping[str, str])
    assert_type(message.reserved, Mapping[str, bytes])
    assert_type(message.attempt, int)
    assert_type(message.queue, str)
    assert_type(message.group, str)
    assert_type(message.content_type, str)
    assert_type(message.is_settled, bool)
    assert_type(message.lease_remaining, float)
    assert_type(message.broken, DecodeError | None)
    assert_type(await message.extend(), bool)
    message.ack()
    message.retry()
    message.retry("busy", delay=1.5)
    message.reject()
    message.reject(detail="no such order")


def signal(number: int) -> None:
    """What a handler raises to steer."""
    if number:
        raise RetryMessage("busy", delay=2)
    raise RejectMessage("never")


class Patient:
    """Any object with the method is a policy."""

    def delay(self, attempt: int, error: BaseException) -> float | None:
        """Wait longer each time, and then no more."""
        del error
        return float(attempt) if attempt < 5 else None


POLICIES: list[RetryPolicy] = [ExponentialBackoff(), NoRetry(), Patient()]
CONFIGS: list[QueueConfig | ProducerConfig | ConsumerConfig] = [
    QueueConfig(wire="plain", groups=None),
    ProducerConfig(),
    ConsumerConfig(retry=Patient()),
]


# Mistakes a type checker finds before anything runs.


async def err(queue: RedisMessageQueue) -> None:
    """Each line would be refused; an ignore that is not needed is an error itself."""
    RedisMessageQueue("orders", wire="json")  # type: ignore[arg-type]
    RedisMessageQueue("orders", max_batches=3)  # type: ignore[call-arg]
    QueueConfig("plain")  # type: ignore[call-arg]
    ConsumerConfig(concurrency="16")  # type: ignore[arg-type]
    ConsumerConfig(retry=3)  # type: ignore[arg-type]
    queue.handler(concurency=3)  # type: ignore[call-overload]
    await queue.consume(print, start="now")  # type: ignore[arg-type]
    await queue.produce(1, {"tenant": "acme"})  # type: ignore[call-arg]
    await queue.produce_many(3)  # type: ignore[arg-type]
    QueueConfig().wire = "original"  # type: ignore[misc]


# Looking in.


async def look_in(queue: RedisMessageQueue) -> None:
    """What is stored, and who reads it."""
    records = await queue.records(after="1-0", limit=10)
    assert_type(records, list[Record])
    assert_type(records[0].id, str)
    assert_type(records[0].body, object)
    assert_type(records[0].headers, Mapping[str, str])
    assert_type(records[0].fields, Mapping[bytes, bytes])
    groups = await queue.groups()
    assert_type(groups, list[GroupInfo])
    assert_type(groups[0].name, str)
    assert_type(groups[0].consumers, int)
    assert_type(groups[0].pending, int)
    assert_type(groups[0].last_delivered_id, str)
    assert_type(groups[0].lag, int | None)
    assert_type(await queue.destroy_group("billing"), bool)
    assert_type(await queue.delete(), bool)


async def look_at_the_dead(queue: RedisMessageQueue) -> None:
    """List them, bring them back, let them go."""
    letters = queue.dead_letters
    assert_type(letters, DeadLetters)
    assert_type(await letters.count(), int)
    assert_type(
        await letters.list(reason="attempts", since=datetime.now(UTC), limit=None),
        list[DeadLetter],
    )
    letter = await letters.get("1-0")
    assert_type(letter, DeadLetter | None)
    if letter is not None:
        assert_type(letter.reason, str)
        assert_type(letter.produced_at, datetime | None)
        assert_type(letter.died_at, datetime)
        assert_type(letter.attempts, int)
    redriven = await letters.redrive("1-0", "2-0", reset_attempts=False)
    assert_type(redriven, Redriven)
    assert_type(redriven.missing, tuple[str, ...])
    await letters.redrive(reason="decode")
    assert_type(await letters.discard(all=True), int)
    await letters.consume(Shop().sell, group="undertaker")


# Errors.


async def fail(queue: RedisMessageQueue) -> str | list[str]:
    """What can be caught, and what it says."""
    try:
        return await queue.produce(1)
    except PublishUncertainError as error:
        return await error.retry()
    except PublishManyError as error:
        assert_type(error.ids, list[str | None])
        assert_type(error.uncertain, list[int])
        assert_type(await error.retry(), list[str | None])
        return error.stored
    except PoolTooSmallError as error:
        assert_type(error.available, int)
        assert_type(error.needed, int)
        raise
    except ServerError as error:
        assert_type(error.code, str)
        raise


ROOT: list[type[MessageQueueError]] = [
    BacklogError,
    ConfigurationError,
    DecodeError,
    EncodeError,
    NotInitializedError,
    PublishManyError,
    PublishUncertainError,
    QueueDeletedError,
    WrongLoopError,
]
SERVER: list[type[ServerError]] = [
    AuthenticationError,
    CommandRefusedError,
    ConnectionLostError,
    PermissionDeniedError,
    ServerFullError,
    ServerNotReadyError,
    UnsupportedServerError,
    WrongKeyTypeError,
]
SETTINGS: list[type[ConfigurationError]] = [
    HandlerSignatureError,
    PoolTooSmallError,
    QueueMismatchError,
]
PYTHONS_OWN: list[type[ValueError]] = [ConfigurationError]


# Servers for tests.


async def use_a_real_server() -> None:
    """As an application's own tests would."""
    with RedisServer(password="", args=("--maxmemory", "10mb")) as server:
        assert_type(server, RedisServer)
        assert_type(server.url, str)
        assert_type(server.port, int)
        assert_type(server.command("PING"), object)
        server.pause()
        server.resume()
        server.kill()
        async with FaultyLine(server.url) as line:
            assert_type(line, FaultyLine)
            assert_type(line.url, str)
            line.cut()
            line.heal()
    with ClusterNodes() as nodes, SentinelSet() as watched:
        assert_type(nodes.url, str)
        assert_type(watched.url, str)
    assert_type(find_servers(), dict[str, Path])


STARTING: list[type[Exception]] = [NoServerFoundError, ServerStartError]
