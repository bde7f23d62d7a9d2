from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio import create_task_group, fail_after
from redis.asyncio import Redis

from aioredismq import (
    Connection,
    ConnectionLostError,
    Consumer,
    ConsumerConfig,
    HandlerSignatureError,
    MessageQueueError,
    NotInitializedError,
    PermissionDeniedError,
    PoolTooSmallError,
    RedisMessageQueue,
    RejectMessage,
    WrongKeyTypeError,
)
from aioredismq import _consumer as room_of_consumer
from aioredismq import _promoter as room_of_promoter
from aioredismq._clock import elapsed
from aioredismq.testing import FaultyLine
from tests.looking import (
    AT_ONCE,
    NOTHING,
    Handled,
    Left,
    Messages,
    dead_letters,
    deliver,
    left,
)
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aioredismq.testing import RedisServer


@asynccontextmanager
async def opened(url: str, name: str) -> AsyncIterator[RedisMessageQueue]:
    """Open a queue, and remove it afterwards."""
    async with RedisMessageQueue(name, url) as queue:
        yield queue
        await queue.delete()


# Start and stop.


async def test_a_consumer_works_in_its_block(
    url: str, name: str, client: Redis
) -> None:
    """It handles what comes; leaving stops it, and removes its name."""
    handled = Handled()
    async with opened(url, name) as queue:
        async with Consumer(queue, handled) as consumer:
            assert consumer.is_running
            ids = await queue.produce_many(range(5))
            await handled.until(5)

        assert len(ids) == 5
        assert not consumer.is_running
        assert consumer.error is None
        assert await left(client, name) == NOTHING


async def test_its_name_is_a_label_and_unique(
    url: str, name: str, client: Redis
) -> None:
    """Two processes that say the same must never share a list of pending messages."""
    handled = Handled()
    config = ConsumerConfig(consumer_name="worker")
    async with (
        opened(url, name) as queue,
        Consumer(queue, handled, config) as first,
        Consumer(queue, handled, config) as second,
    ):
        handled.gate = asyncio.Event()
        await queue.produce_many(range(50))
        await handled.until(32)

        shown = {item.decode() for item in (await left(client, name)).names}

        handled.gate.set()
    assert first.name != second.name
    assert shown == {first.name, second.name}
    assert all(item.startswith("worker-") for item in shown)


async def test_a_consumer_is_started_once(url: str, name: str) -> None:
    """Its name has gone with it: another start is another consumer."""
    async with opened(url, name) as queue:
        consumer = Consumer(queue, Handled())
        async with consumer:
            pass

        with pytest.raises(MessageQueueError, match="make another"):
            await consumer.start()


def test_a_handler_that_cannot_be_called_is_refused_at_once() -> None:
    """Before anything is opened, and without an event loop."""

    async def handler(body: object, order: int, extra: str) -> None:
        raise AssertionError

    with pytest.raises(HandlerSignatureError, match="order"):
        Consumer(RedisMessageQueue("orders"), handler)


async def test_stopping_a_consumer_that_never_started_is_nothing(name: str) -> None:
    """As in a `finally`."""
    consumer = Consumer(RedisMessageQueue(name), Handled())

    await consumer.stop()
    consumer.cancel()

    assert not consumer.is_running
    assert consumer.held == 0


async def test_it_may_be_entered_in_one_task_and_left_in_another(
    url: str, name: str, client: Redis
) -> None:
    """Lifespans and fixtures do so."""
    handled = Handled()
    async with opened(url, name) as queue:
        consumer = Consumer(queue, handled)

        await asyncio.create_task(consumer.__aenter__())
        await queue.produce("hello")
        await handled.until(1)
        await asyncio.create_task(consumer.__aexit__(None, None, None))

        assert await left(client, name) == NOTHING


async def test_a_pool_that_is_too_small_is_refused_with_the_number(
    url: str, name: str
) -> None:
    """At start: an exhausted pool in operation would stop acknowledgements."""
    connection = Connection(url, max_connections=3)
    async with RedisMessageQueue(name, connection) as queue:
        async with Consumer(queue, Handled()):
            with pytest.raises(PoolTooSmallError, match="max_connections=4") as caught:
                await Consumer(queue, Handled()).start()
        assert (caught.value.available, caught.value.needed) == (3, 4)

        async with Consumer(queue, Handled()):  # the first has gone: there is room
            pass
        await queue.delete()


async def test_a_key_that_is_no_stream_is_one_clear_error(
    url: str, name: str, client: Redis
) -> None:
    """At start, by its own class, and nothing is left running."""
    await client.set(name, "something else")
    connection = Connection(url)
    async with connection:
        channel = RedisMessageQueue(name, connection).channel

        with pytest.raises(WrongKeyTypeError):
            await Consumer(channel, Handled()).start()

        assert connection._readers == []
    await client.delete(name)


async def test_an_unreachable_server_is_one_clear_error(name: str) -> None:
    """At start; nothing hangs."""
    queue = RedisMessageQueue(name, "redis://127.0.0.1:1/0")
    consumer = Consumer(queue, Handled())

    with fail_after(8), pytest.raises(ConnectionLostError):
        await consumer.start()

    assert not consumer.is_running


async def test_nothing_is_open_after_the_last_has_stopped(
    own_server: RedisServer, name: str
) -> None:
    """Neither the command connection, nor the blocked one, nor the bell."""
    async with Redis.from_url(own_server.url, protocol=2) as client:
        async with opened(own_server.url, name) as queue, Consumer(queue, Handled()):
            assert len(await client.client_list()) >= 3

        async def only_ours() -> bool:
            return len(await client.client_list()) == 1

        await eventually(only_ours)


# Draining.


async def test_running_handlers_finish(url: str, name: str, client: Redis) -> None:
    """Stopping waits for them, and their messages are settled."""
    finished: list[object] = []
    started = asyncio.Event()

    async def handler(body: object) -> None:
        started.set()
        await anyio.sleep(0.1)
        finished.append(body)

    async with opened(url, name) as queue:
        async with Consumer(queue, handler):
            await queue.produce("slow")
            await eventually(started.is_set)

        assert finished == ["slow"]
        assert await left(client, name) == NOTHING


async def test_a_handler_may_not_wait_for_the_end_of_its_own_consumer(
    url: str, name: str, client: Redis
) -> None:
    """Each would wait for the other, for ever; to ask for the end is allowed."""
    refused: list[MessageQueueError] = []

    async def try_to_wait() -> None:
        for stop in (consumer.stop, consumer.stop_from_user_task, queue.close):
            with pytest.raises(MessageQueueError, match="in another task") as caught:
                await stop()
            refused.append(caught.value)

    async def handler(body: object) -> None:
        await try_to_wait()
        raise RejectMessage

    async def callback(message: object, failure: object) -> None:
        await try_to_wait()
        consumer.request_stop()

    config = ConsumerConfig(failover=False, failover_callback=callback)
    async with opened(url, name) as queue:
        consumer = Consumer(queue, handler, config)
        queue.consumers.append(consumer)
        async with consumer:
            await queue.produce("the last")
            with fail_after(8):
                await consumer.ended()

        assert len(refused) == 6
        assert queue.is_initialized
        assert await left(client, name) == NOTHING


async def test_what_runs_too_long_is_cancelled_and_handed_back(
    url: str, name: str, client: Redis
) -> None:
    """After `shutdown_timeout`; the next consumer has it at once, with its attempt unchanged."""
    handled = Handled(takes=60)
    async with opened(url, name) as queue:
        await queue.produce("stuck")
        with fail_after(8):
            async with Consumer(queue, handled, ConsumerConfig(shutdown_timeout=0.05)):
                await handled.until(1)
        assert handled.running == 0
        assert await left(client, name) == Left(undelivered_lane=1)

        others = Messages()
        async with Consumer(queue, others):
            await others.until(1)

        assert others.seen[0].attempt == 1
        assert await left(client, name) == NOTHING


async def test_what_was_not_started_is_taken_by_another_at_once(
    url: str, name: str, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first still finishes what it has begun."""
    monkeypatch.setattr(room_of_promoter, "_PULSE", (60.0, 60.0))
    slow = Handled()
    slow.gate = asyncio.Event()
    others = Messages()
    async with opened(url, name) as queue:
        config = ConsumerConfig(concurrency=1)
        first = Consumer(queue, slow, config)
        async with first:
            await queue.produce(0)
            await slow.until(1)
            entries = await deliver(
                queue._require_stream(), client, first.group, first.name, b"1", b"2"
            )
            first._assembly._deliver(entries)
            async with Consumer(queue, others):
                stopping = asyncio.ensure_future(first.stop())
                await others.until(2)
                assert not stopping.done()
                slow.gate.set()
                await stopping

        assert [message.body for message in others.seen] == [1, 2]
        assert {message.attempt for message in others.seen} == {1}
        assert slow.bodies == [0]
        assert await left(client, name) == NOTHING


async def test_a_handler_that_swallows_its_cancellation_may_finish(
    url: str, name: str, client: Redis
) -> None:
    """What it has done is acknowledged."""
    started = asyncio.Event()

    async def stubborn(body: object) -> None:
        started.set()
        try:
            await anyio.sleep(60)
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.1)

    async with opened(url, name) as queue:
        await queue.produce("stubborn")
        with fail_after(8):
            async with Consumer(queue, stubborn, ConsumerConfig(shutdown_timeout=0)):
                await eventually(started.is_set)

        assert await left(client, name) == NOTHING


async def test_a_handler_that_cannot_be_cancelled_is_named_in_the_log(
    url: str,
    name: str,
    client: Redis,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nobody can end it; it says at least what the end waits for, and the rest is handed back."""
    monkeypatch.setattr(room_of_consumer, "_LAST_GRACE", 1.5)
    started, give_in = asyncio.Event(), asyncio.Event()

    async def stubborn(body: int) -> None:
        started.set()
        while not give_in.is_set():
            with suppress(asyncio.CancelledError):
                await anyio.sleep(60)

    async with opened(url, name) as queue:
        await queue.produce_many(range(3))
        config = ConsumerConfig(shutdown_timeout=0, concurrency=1)
        consumer = Consumer(queue, stubborn, config)
        await consumer.start()
        await eventually(started.is_set)

        stopping = asyncio.ensure_future(consumer.stop())
        await eventually(lambda: "1 cancelled handlers have not ended" in caplog.text)
        after = await left(client, name)
        assert (after.pending, after.stream + after.undelivered_lane) == (1, 3)
        assert not stopping.done()
        give_in.set()

        with fail_after(8):
            await stopping


async def test_a_thread_that_does_not_end_is_left_behind(
    url: str, name: str, client: Redis
) -> None:
    """Its message is handed back: nobody can end a thread."""
    started, go_on = threading.Event(), threading.Event()

    def stubborn(body: object) -> None:
        started.set()
        go_on.wait(30)

    async with opened(url, name) as queue:
        await queue.produce("stubborn")
        with fail_after(8):
            async with Consumer(queue, stubborn, ConsumerConfig(shutdown_timeout=0.01)):
                await eventually(started.is_set)
        go_on.set()

        assert await left(client, name) == Left(undelivered_lane=1)


async def test_cancelling_hurries_a_drain(url: str, name: str, client: Redis) -> None:
    """What would have been waited for is handed back now."""
    handled = Handled(takes=60)
    async with opened(url, name) as queue:
        await queue.produce("slow")
        consumer = Consumer(queue, handled)
        await consumer.start()
        await handled.until(1)
        stopping = asyncio.ensure_future(consumer.stop())
        await asyncio.sleep(0)

        consumer.cancel()

        with fail_after(8):
            await stopping
            await consumer.wait()
        assert await left(client, name) == Left(undelivered_lane=1)


async def test_a_drain_may_begin_hurried(url: str, name: str, client: Redis) -> None:
    """Cancelled out of the blue: running handlers are not waited for."""
    handled = Handled(takes=60)
    async with opened(url, name) as queue:
        await queue.produce("slow")
        consumer = Consumer(queue, handled)
        await consumer.start()
        await handled.until(1)

        consumer.cancel()

        with fail_after(8):
            await consumer.wait()
        assert await left(client, name) == Left(undelivered_lane=1)


async def test_a_server_that_is_away_does_not_hold_up_the_end(
    url: str, name: str, monkeypatch: pytest.MonkeyPatch, client: Redis
) -> None:
    """What could not be said is recovered by others; leaving raises nothing."""
    monkeypatch.setattr(room_of_consumer, "_LAST_GRACE", 0.2)
    handled = Handled()
    async with FaultyLine(url) as line:
        queue = RedisMessageQueue(name, line.url)
        await queue.initialize()
        consumer = Consumer(queue, handled, ConsumerConfig(shutdown_timeout=0.1))
        await consumer.start()
        handled.gate = asyncio.Event()
        await queue.produce("hello")
        await handled.until(1)

        line.cut()
        handled.gate.set()

        with fail_after(4.5):  # half a second before the end of the grace by default
            await consumer.stop()
            await consumer.wait()
        assert (await left(client, name)).pending == 1
        line.heal()
        await queue.delete()
        await queue.close()


# What ends it.


@asynccontextmanager
async def restricted(server: RedisServer) -> AsyncIterator[tuple[Redis, str]]:
    """Give a client of the administrator, and the URL of a user whose rights can be taken."""
    async with Redis.from_url(server.url, protocol=2) as client:
        await client.execute_command(
            "ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all"
        )
        yield client, server.url.replace("redis://", "redis://app:secret@")


async def forbid(client: Redis, command: str) -> None:
    """Take a right away, from the connections that are open, too."""
    await client.execute_command("ACL", "SETUSER", "app", f"-{command}")
    await client.execute_command("CLIENT", "KILL", "USER", "app")


async def test_what_cannot_be_mended_ends_it_and_is_raised_on_leaving(
    own_server: RedisServer, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Logged once, shown as its error meanwhile, and raised as it is."""
    handled = Handled()
    async with restricted(own_server) as (client, url):
        queue = RedisMessageQueue(name, url)
        await queue.initialize()
        consumer = Consumer(queue, handled)

        async def work() -> None:
            async with consumer:
                await queue.produce("hello")
                await handled.until(1)
                await forbid(client, "xreadgroup")
                with fail_after(8):
                    await consumer.ended()
                assert isinstance(consumer.error, PermissionDeniedError)
                assert not consumer.is_running

        with pytest.raises(PermissionDeniedError, match="xreadgroup"):
            await work()

        errors = [one for one in caplog.records if one.levelno == logging.ERROR]
        assert len(errors) == 1
        assert consumer.name in errors[0].getMessage()
        await client.execute_command("ACL", "SETUSER", "app", "+@all")
        await queue.close()


async def test_an_error_in_the_block_is_not_hidden_by_what_ended_it(
    own_server: RedisServer, name: str
) -> None:
    """The block's own comes first."""
    async with restricted(own_server) as (client, url):
        queue = RedisMessageQueue(name, url)
        await queue.initialize()

        async def work() -> None:
            async with Consumer(queue, Handled()) as consumer:
                await forbid(client, "xreadgroup")
                with fail_after(8):
                    await consumer.ended()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await work()
        await client.execute_command("ACL", "SETUSER", "app", "+@all")
        await queue.close()


async def test_running_handlers_finish_when_something_else_has_ended_it(
    own_server: RedisServer, name: str
) -> None:
    """Their work is not thrown away: it is acknowledged as far as that is allowed."""
    handled = Handled()
    async with restricted(own_server) as (client, url):
        queue = RedisMessageQueue(name, url)
        await queue.initialize()
        handled.gate = asyncio.Event()
        async with create_task_group() as tasks:
            consumer = Consumer(queue, handled)
            await consumer.start()
            await queue.produce("hello")
            await handled.until(1)
            await forbid(client, "client")  # not needed: it goes on
            await client.execute_command("ACL", "SETUSER", "app", "-xreadgroup")
            await client.execute_command("CLIENT", "KILL", "USER", "app")
            await eventually(lambda: consumer.error is not None)
            assert handled.running == 1

            handled.gate.set()

            with fail_after(20):
                await consumer.ended()
            tasks.cancel_scope.cancel()
        assert (await left(client, name)).pending == 0
        await client.execute_command("ACL", "SETUSER", "app", "+@all")
        await queue.close()


async def test_a_worker_that_was_cancelled_unseen_does_not_leave_it_deaf(
    url: str, name: str
) -> None:
    """A handler that cancels its own task and returns ends the consumer with the reason."""

    async def handler(body: object) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    async with opened(url, name) as queue:
        consumer = Consumer(queue, handler, ConsumerConfig(concurrency=2))
        await consumer.start()
        await queue.produce("hello")

        with (
            fail_after(8),
            pytest.raises(MessageQueueError, match="cancelled the task"),
        ):
            await consumer.wait()


async def test_a_failing_handler_does_not_end_it(
    url: str, name: str, client: Redis
) -> None:
    """Whatever it raises."""
    seen: list[object] = []

    async def handler(body: int) -> None:
        seen.append(body)
        if body == 0:
            raise asyncio.CancelledError
        if body == 1:
            raise ExceptionGroup("two", [ValueError(), KeyError()])
        if body == 2:
            raise TimeoutError
        if body == 3:
            raise BaseException("a panic of an extension")  # noqa: TRY002 -- as theirs

    config = ConsumerConfig(max_attempts=1, concurrency=1)
    async with opened(url, name) as queue, Consumer(queue, handler, config) as consumer:
        await queue.produce_many(range(5))
        await eventually(lambda: 4 in seen)
        await settled_but_names(client, name)

        assert consumer.is_running


async def settled_but_names(client: Redis, name: str) -> None:
    """Wait until everything is settled, while a consumer still runs."""

    async def nothing_left() -> bool:
        now = await left(client, name)
        return (now.stream, now.pending, now.undelivered_lane, now.pending_lane) == (
            (0,) * 4
        )

    await eventually(nothing_left)


async def test_held_counts_what_was_read_and_not_settled(
    url: str, name: str, client: Redis
) -> None:
    """Running and waiting."""
    handled = Handled()
    async with opened(url, name) as queue, Consumer(queue, handled) as consumer:
        handled.gate = asyncio.Event()
        await queue.produce_many(range(3))
        await handled.until(3)
        assert consumer.held == 3

        handled.gate.set()

        await eventually(lambda: consumer.held == 0)


# Pulling.


async def test_messages_can_be_pulled(url: str, name: str, client: Redis) -> None:
    """One after the other, each settled by leaving its block."""
    got: list[Any] = []
    async with opened(url, name) as queue:
        await queue.produce_many(range(10))
        async with Consumer(queue, None) as consumer:
            async for message in consumer:
                async with message:
                    got.append(message.body)
                if len(got) == 10:
                    break

        assert got == list(range(10))
        assert await left(client, name) == NOTHING


async def test_an_expired_message_is_not_pulled(
    url: str, name: str, client: Redis
) -> None:
    """Neither one that was too late from the start nor one that waited for somebody to pull."""
    async with opened(url, name) as queue:
        await queue.produce("too late", expires=0.001)
        await asyncio.sleep(0.01)
        async with Consumer(queue, None) as consumer:
            await eventually(lambda: has_dead_letters(client, name, 1))
            await queue.produce("nobody came", expires=1.0)
            await eventually(lambda: consumer.held == 1)
            await asyncio.sleep(1.05)
            await queue.produce("fresh", expires=60)
            await eventually(lambda: consumer.held == 2)

            async for message in consumer:
                assert message.body == "fresh"
                async with message:
                    break

        letters = await queue.dead_letters.list()
        assert [(one.body, one.reason) for one in letters] == [
            ("too late", "expired"),
            ("nobody came", "expired"),
        ]
        assert await left(client, name) == NOTHING


async def has_dead_letters(client: Redis, name: str, count: int) -> bool:
    """Say whether there are so many."""
    return len(await dead_letters(client, name)) == count


async def test_leaving_a_pulling_consumer_hands_back_what_nobody_took(
    url: str, name: str, client: Redis
) -> None:
    """At once, untried."""
    async with opened(url, name) as queue:
        await queue.produce_many(range(10))
        with fail_after(8):
            async with Consumer(queue, None, ConsumerConfig(concurrency=5)) as consumer:
                async for message in consumer:
                    async with message:
                        break

        after = await left(client, name)
        assert (after.pending, after.pending_lane, after.names) == (0, 0, ())
        assert after.stream + after.undelivered_lane == 9
        rest = Messages()
        async with Consumer(queue, rest):
            await rest.until(9)
        assert sorted(message.body for message in rest.seen) == list(range(1, 10))
        assert {message.attempt for message in rest.seen} == {1}


async def test_an_error_in_the_block_of_a_pulled_message_is_tried_again(
    url: str, name: str, client: Redis
) -> None:
    """As a handler's would be."""
    attempts: list[int] = []
    config = ConsumerConfig(retry=AT_ONCE)
    async with opened(url, name) as queue, Consumer(queue, None, config) as consumer:
        await queue.produce("hello")
        async for message in consumer:
            attempts.append(message.attempt)
            async with message:
                if message.attempt < 3:
                    raise ValueError("not yet")
            if len(attempts) == 3:
                break

    assert attempts == [1, 2, 3]


async def test_iterations_end_when_the_consumer_stops(url: str, name: str) -> None:
    """Without an error: what is being handled may be finished."""
    ended: list[int] = []

    async def pull(consumer: Consumer) -> None:
        async for message in consumer:
            async with message:
                pass
        ended.append(1)

    async with opened(url, name) as queue:
        consumer = Consumer(queue, None)
        await consumer.start()
        with fail_after(8):
            async with create_task_group() as tasks:
                tasks.start_soon(pull, consumer)
                tasks.start_soon(pull, consumer)
                await asyncio.sleep(0)
                await consumer.stop()

    assert ended == [1, 1]


async def test_iterations_end_although_redis_is_away_for_longer_than_a_lease(
    url: str, name: str
) -> None:
    """A message is offered, and nobody can know any more whose it is: it is not given out."""
    ended: list[int] = []

    async def pull(consumer: Consumer) -> None:
        async for message in consumer:
            async with message:
                ended.append(message.body)
        ended.append(-1)

    async with opened(url, name) as there, FaultyLine(url) as line:
        await there.produce(1)
        connection = Connection(line.url, reply_timeout=0.5)
        async with RedisMessageQueue(name, connection) as queue, connection:
            config = ConsumerConfig(visibility_timeout=0.5, shutdown_timeout=0.1)
            consumer = Consumer(queue, None, config)
            await consumer.start()
            await eventually(lambda: consumer.held == 1)
            line.cut()
            assert consumer._assembly is not None
            held = consumer._assembly.held
            await eventually(lambda: elapsed() > held.sound_until)
            with fail_after(20):
                async with create_task_group() as tasks:
                    tasks.start_soon(pull, consumer)
                    await asyncio.sleep(0)
                    await consumer.stop()
            line.heal()

    assert ended == [-1]


async def test_a_pulling_task_that_is_cancelled_hands_its_message_back(
    url: str, name: str, client: Redis
) -> None:
    """Leaving the consumer does not wait for a message nobody works on any more."""
    inside = asyncio.Event()

    async def work(queue: RedisMessageQueue) -> None:
        async with Consumer(queue, None) as consumer:
            async for message in consumer:
                async with message:
                    inside.set()
                    await anyio.sleep(60)

    async with opened(url, name) as queue:
        await queue.produce("hello")
        task = asyncio.create_task(work(queue))
        await eventually(inside.is_set)

        task.cancel()

        with fail_after(8), suppress(asyncio.CancelledError):
            await task
        assert await left(client, name) == Left(undelivered_lane=1)


async def test_only_a_started_consumer_without_a_handler_can_be_pulled_from(
    url: str, name: str
) -> None:
    """Otherwise it says so, instead of waiting for ever."""
    async with opened(url, name) as queue:
        with pytest.raises(NotInitializedError, match="no handler"):
            await anext(aiter(Consumer(queue, None)))
        async with Consumer(queue, Handled()) as consumer:
            with pytest.raises(NotInitializedError, match="no handler"):
                await anext(aiter(consumer))


async def test_what_ended_a_pulling_consumer_is_raised_by_its_iteration(
    own_server: RedisServer, name: str
) -> None:
    """A loop that just ended would look like success."""
    async with restricted(own_server) as (client, url):
        queue = RedisMessageQueue(name, url)
        await queue.initialize()
        consumer = Consumer(queue, None)
        await consumer.start()
        await forbid(client, "xreadgroup")

        with fail_after(8), pytest.raises(PermissionDeniedError):
            await anext(aiter(consumer))

        await consumer.stop()
        await client.execute_command("ACL", "SETUSER", "app", "+@all")
        await queue.close()
