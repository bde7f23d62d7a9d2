from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from anyio import fail_after, move_on_after
from redis.asyncio import Redis

from aioredismq import (
    ConnectionLostError,
    Consumer,
    ConsumerConfig,
    Failure,
    Message,
    MessageQueueError,
    RedisMessageQueue,
    RejectMessage,
    RetryMessage,
)
from aioredismq import _consumer as room_of_consumer
from aioredismq import _dispatcher as room_of_dispatcher
from aioredismq import _held as room_of_held
from aioredismq import _lease as room_of_lease
from aioredismq import _promoter as room_of_promoter
from aioredismq import _reporter as room_of_reporter
from aioredismq._bell import Bell
from aioredismq._clock import elapsed
from aioredismq._keys import QueueKeys
from aioredismq._member import Member
from tests.looking import AT_ONCE, NOTHING, Handled, Left, Messages, left
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aioredismq._assembly import Assembly
    from aioredismq._member import Taken
    from aioredismq.testing import RedisServer


@asynccontextmanager
async def opened(url: str, name: str) -> AsyncIterator[RedisMessageQueue]:
    """Open a queue, and remove it afterwards."""
    async with RedisMessageQueue(name, url) as queue:
        yield queue
        await queue.delete()


def inside(consumer: Consumer) -> Assembly:
    """Look into a started consumer."""
    assert consumer._assembly is not None
    return consumer._assembly


async def calls(client: Redis, command: str) -> int:
    """Count how often a command was called."""
    stats = await client.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])


# How they are wired.


async def test_fast_handlers_are_fed_by_few_reads(
    own_server: RedisServer, name: str
) -> None:
    """Hundreds of messages a read, and one acknowledgement for as many."""
    handled = Handled()
    async with (
        Redis.from_url(own_server.url, protocol=2) as client,
        opened(own_server.url, name) as queue,
    ):
        await queue.produce_many(range(10_000))
        reads, acks = await calls(client, "xreadgroup"), await calls(client, "xack")
        async with Consumer(queue, handled, ConsumerConfig(concurrency=64)):
            await handled.until(10_000)

        assert await calls(client, "xreadgroup") - reads < 100
        assert await calls(client, "xack") - acks < 400


async def test_what_comes_back_goes_before_a_full_stream(
    url: str, name: str, client: Redis
) -> None:
    """Whatever room there is, it gets first: the stream would always fill it."""
    handled = Handled(takes=0.002)
    config = ConsumerConfig(concurrency=1)
    async with opened(url, name) as queue:
        await queue.produce_many(range(400))
        async with Consumer(queue, handled, config) as consumer:
            await handled.until(50)
            for _ in range(20):
                await client.xadd(QueueKeys(name).lane(consumer.group), {"body": '"b"'})

            before = len(handled.bodies)
            inside(consumer)._promoter.ring()
            await eventually(lambda: handled.bodies.count("b") == 20)
            between = len(handled.bodies) - before - 20

            await handled.until(420)

    assert between < 100


async def test_a_read_that_asks_for_room_the_lane_has_taken_asks_again(
    url: str, name: str, client: Redis
) -> None:
    """Otherwise more would be held than there is room for."""
    handled = Handled()
    handled.gate = asyncio.Event()
    config = ConsumerConfig(concurrency=4)
    async with opened(url, name) as queue, Consumer(queue, handled, config) as consumer:
        await eventually(lambda: inside(consumer)._reader.asked == 4)
        for number in range(3):
            await client.xadd(QueueKeys(name).lane(consumer.group), {"body": number})

        inside(consumer)._promoter.ring()

        await handled.until(3)
        await eventually(lambda: inside(consumer)._reader.asked == 1)
        handled.gate.set()


@pytest.mark.one_loop
@pytest.mark.parametrize("visibility_timeout", [1.0, 30.0])
async def test_an_idle_consumer_sends_less_than_a_command_a_second(
    own_server: RedisServer, name: str, visibility_timeout: float
) -> None:
    """With everything on, however short the leases are; what scripts do inside is theirs."""
    config = ConsumerConfig(visibility_timeout=visibility_timeout)
    sent: list[str] = []
    async with (
        Redis.from_url(own_server.url, protocol=2, socket_timeout=None) as client,
        opened(own_server.url, name) as queue,
        Consumer(queue, Handled(), config),
        client.monitor() as seen,
    ):
        await queue.produce(1)
        await asyncio.sleep(3)  # what a start needs is over
        await client.echo("begin")
        with move_on_after(10):
            async for command in seen.listen():
                if command["client_type"] == "lua":
                    continue
                sent.append(command["command"])
                if command["command"] == "ECHO begin":
                    sent.clear()

    assert 3 <= len(sent) <= 12, sent


@pytest.fixture
def without_pulse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing that comes back be found by the slow pulse."""
    monkeypatch.setattr(room_of_promoter, "_PULSE", (60.0, 60.0))


@pytest.mark.usefixtures("without_pulse")
async def test_the_bell_brings_what_comes_back_at_once(
    url: str, name: str, client: Redis
) -> None:
    """A retry of one consumer is taken by an idle one; nobody polls."""
    messages = Messages()
    async with opened(url, name) as queue:
        await queue.produce_many(range(3))
        async with Consumer(queue, messages, ConsumerConfig(group="idle")) as idle:
            await messages.until(3)
            lane = QueueKeys(name).lane("idle")
            await client.xadd(lane, {"body": "42", "mq-id": "1-1", "mq-attempt": "1"})

            inside(idle)._channel.connection.bell._ring(QueueKeys(name).bell)

            await messages.until(4)

    assert messages.seen[-1].body == 42
    assert (messages.seen[-1].id, messages.seen[-1].attempt) == ("1-1", 2)


@pytest.mark.usefixtures("without_pulse")
@pytest.mark.parametrize("delay", [0.0, 0.1])
async def test_a_consumers_own_retries_need_no_bell(
    url: str, name: str, monkeypatch: pytest.MonkeyPatch, delay: float
) -> None:
    """Pub/Sub promises nothing: what it has put there itself, it looks for by itself."""
    monkeypatch.setattr(Bell, "_ring", lambda self, channel: None)
    attempts: list[int] = []

    async def handler(message: Message) -> None:
        attempts.append(message.attempt)
        if message.attempt < 3:
            raise RetryMessage("busy", delay=delay)

    async with opened(url, name) as queue, Consumer(queue, handler):
        await queue.produce("hello")
        await eventually(lambda: attempts == [1, 2, 3])


async def test_what_a_look_brings_while_it_stops_is_handed_back(
    url: str, name: str, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last word is not said before the last answer has come."""
    handled = Handled()
    answered, go_on = asyncio.Event(), asyncio.Event()
    async with opened(url, name) as queue:
        consumer = Consumer(queue, handled)
        await consumer.start()
        member = inside(consumer)._member
        await eventually(lambda: inside(consumer)._reader.asked > 0)
        await queue.produce_many(range(3))
        await handled.until(3)
        take = member.take

        async def slow(room: int) -> Taken:
            taken = await take(room)
            answered.set()
            await go_on.wait()
            return taken

        monkeypatch.setattr(member, "take", slow)
        await client.xadd(QueueKeys(name).lane(consumer.group), {"body": "42"})
        inside(consumer)._promoter.ring()
        await eventually(answered.is_set)
        assert (await left(client, name)).pending_lane > 0

        stopping = asyncio.ensure_future(consumer.stop())
        await asyncio.sleep(0.02)
        go_on.set()
        await stopping

        assert handled.bodies == [0, 1, 2]
        assert await left(client, name) == Left(undelivered_lane=1)


async def test_what_a_read_brings_while_it_stops_is_handed_back(
    url: str, name: str, client: Redis
) -> None:
    """Delivered after the intake was closed: not started, and not kept."""
    handled = Handled()
    async with opened(url, name) as queue:
        consumer = Consumer(queue, handled)
        await consumer.start()
        assembly = inside(consumer)
        await eventually(lambda: assembly._reader.asked > 0)
        assembly._stop_intake()

        await client.xadd(name, {"body": "1"})
        await eventually(lambda: assembly._reader.asked == 0)
        await consumer.stop()

        assert handled.bodies == []
        assert await left(client, name) == Left(undelivered_lane=1)


async def test_the_failover_callback_gets_the_message_as_it_failed(
    url: str, name: str
) -> None:
    """With the attempt that failed, body and headers."""
    told: list[Message] = []

    async def callback(message: Message, failure: object) -> None:
        told.append(message)

    config = ConsumerConfig(max_attempts=3, failover_callback=callback, retry=AT_ONCE)
    handled = Handled(error=ValueError("no"))
    async with opened(url, name) as queue, Consumer(queue, handled, config):
        message_id = await queue.produce({"n": 1}, headers={"trace": "abc"})
        await eventually(lambda: bool(told))

    [message] = told
    assert (message.id, message.attempt) == (message_id, 3)
    assert message.body == {"n": 1}
    assert message.headers == {"trace": "abc"}


async def test_a_leave_that_cannot_be_taken_is_said(
    url: str,
    name: str,
    caplog: pytest.LogCaptureFixture,
    client: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody puts an entry under its name: the name stays, or the entry would be lost."""
    async with opened(url, name) as queue:
        consumer = Consumer(queue, Handled())
        await consumer.start()
        await eventually(lambda: inside(consumer)._reader.asked > 0)
        lane = QueueKeys(name).lane(consumer.group)
        await client.xgroup_create(lane, consumer.group, "0", mkstream=True)
        member = inside(consumer)._member
        forget = member.forget

        async def forget_too_late() -> bool:
            await client.xadd(lane, {"body": "1"})
            await client.xreadgroup(consumer.group, consumer.name, {lane: ">"})
            return await forget()

        monkeypatch.setattr(member, "forget", forget_too_late)

        await consumer.stop()

        assert (await left(client, name)).pending_lane > 0
        assert "leaves pending messages behind" in caplog.text


async def test_a_task_that_cannot_go_on_ends_the_consumer_in_order(
    url: str, name: str, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody put something else in the lane's place: handlers finish, and it says why."""
    handled = Handled()
    handled.gate = asyncio.Event()
    lane = QueueKeys(name).lane(f"{name}_group")
    async with opened(url, name) as queue:
        consumer = Consumer(queue, handled)
        await consumer.start()
        await queue.produce("hello")
        await handled.until(1)
        await client.set(lane, "something else")

        inside(consumer)._promoter.ring()
        await eventually(lambda: consumer.error is not None)
        assert handled.running == 1
        handled.gate.set()
        await consumer.ended()

        assert "WRONGTYPE" in str(consumer.error)
        assert await client.xlen(name) == 0
        errors = [one for one in caplog.records if one.levelno == logging.ERROR]
        assert len(errors) == 1
        await client.delete(lane)


async def test_a_callback_that_hangs_does_not_hold_up_the_end(
    url: str, name: str, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds up reading while the consumer runs; what was settled before stays settled."""
    monkeypatch.setattr(room_of_reporter, "_MOST", 2)
    monkeypatch.setattr(room_of_consumer, "_LAST_GRACE", 1.5)
    told: list[Message] = []

    async def callback(message: Message, failure: object) -> None:
        told.append(message)
        await asyncio.sleep(60)

    handled = Handled(error=RejectMessage("no"))
    config = ConsumerConfig(
        concurrency=2, failover_callback=callback, shutdown_timeout=0.1
    )
    async with opened(url, name) as queue:
        consumer = Consumer(queue, handled, config)
        await consumer.start()
        await queue.produce_many(range(50))
        await eventually(lambda: bool(told))
        await eventually(lambda: len(handled.bodies) >= 3)

        with fail_after(8):
            await consumer.stop()

        after = await left(client, name)
        assert (after.pending, after.pending_lane, after.names) == (0, 0, ())
        assert after.stream + after.undelivered_lane == 50 - len(handled.bodies)


# The original's streams.


async def original_entries(client: Redis, name: str, *bodies: str) -> list[bytes]:
    """Write a stream as the JavaScript library does: a marker, then the text as field name."""
    await client.xadd(
        name, {f'{{"queueInitialized":true,"queueName":"{name}"}}': "0.123"}
    )
    return [await client.xadd(name, {body: "0.456"}) for body in bodies]


async def test_the_originals_messages_are_handled_and_its_marker_is_not(
    url: str, name: str, client: Redis
) -> None:
    """Its stream is taken over as it is, with its default group."""
    messages = Messages()
    ids = await original_entries(client, name, '{"n":1}', '"text"', "[1,2]")
    await client.xgroup_create(name, f"{name}_group", "0")

    async with RedisMessageQueue(name, url, wire="original") as queue:
        async with Consumer(queue, messages, ConsumerConfig(concurrency=1)):
            await messages.until(3)

        assert [message.body for message in messages.seen] == [{"n": 1}, "text", [1, 2]]
        assert [message.id.encode() for message in messages.seen] == ids
        assert await left(client, name) == NOTHING
        await queue.delete()


async def test_what_is_produced_for_the_original_is_written_as_it_does(
    url: str, name: str, client: Redis
) -> None:
    """So its consumers can go on beside ours."""
    async with RedisMessageQueue(name, url, wire="original") as queue:
        await queue.produce({"n": 1})

        [(_, fields)] = await client.xrange(name)
        [record] = await queue.records()

        assert list(fields) == [b'{"n":1}']
        assert 0 <= float(fields[b'{"n":1}']) < 1
        assert record.body == {"n": 1}
        await queue.delete()


async def test_a_failure_of_the_originals_messages_is_tried_again_and_buried(
    url: str, name: str, client: Redis
) -> None:
    """As any other: its text comes back as it was."""
    attempts: list[int] = []

    async def handler(body: dict[str, Any], message: Message) -> None:
        attempts.append(message.attempt)
        raise ValueError("no")

    await original_entries(client, name, '{"n":1}')
    async with RedisMessageQueue(name, url, wire="original") as queue:
        async with Consumer(
            queue, handler, ConsumerConfig(max_attempts=2, retry=AT_ONCE)
        ):
            await eventually(lambda: len(attempts) == 2)

        [(_, letter)] = await client.xrange(QueueKeys(name).dead)
        assert b'{"n":1}' in letter
        assert letter[b"mq-reason"] == b"attempts"
        assert attempts == [1, 2]
        assert await left(client, name) == NOTHING
        await queue.delete()


async def test_what_the_original_left_pending_is_handled_once(
    url: str, name: str, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure stays pending there for ever, with a copy in `failover_…`, which is reported."""
    messages = Messages()
    await original_entries(client, name, '{"n":1}')
    group = f"{name}_group"
    await client.xgroup_create(name, group, "0")
    await client.xreadgroup(
        group, "consumer", {name: ">"}
    )  # the marker and the message
    await client.xadd(f"failover_{name}", {'{"n":1}': "0.789"})

    async with RedisMessageQueue(name, url, wire="original") as queue:
        config = ConsumerConfig(visibility_timeout=0.5, concurrency=1)
        async with Consumer(queue, messages, config):
            await messages.until(1)

            async def is_empty() -> bool:
                after = await left(client, name)
                return (after.stream, after.pending) == (0, 0)

            await eventually(is_empty)

        assert [message.body for message in messages.seen] == [{"n": 1}]
        assert await client.xlen(f"failover_{name}") == 1
        assert (
            f"failover_{name} has copies of earlier failures, 1 of them" in caplog.text
        )
        await client.delete(f"failover_{name}")
        await queue.delete()


@pytest.mark.parametrize("how", ["the process stood still", "the machine slept"])
async def test_what_waits_is_not_started_when_somebody_else_has_had_it(
    server: RedisServer, name: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For longer than a lease: it asks before it starts anything."""
    group = f"{name}_group"
    ran: list[int] = []
    stolen: set[int] = set()

    def settle_as_another() -> None:
        pending = server.command("XPENDING", name, group, "-", "+", 1000)
        ids = [row[0] for row in pending]  # type: ignore[attr-defined]
        server.command("XCLAIM", name, group, "another", 0, *ids, "JUSTID")
        for entry_id in ids:
            [[_, fields]] = server.command("XRANGE", name, entry_id, entry_id)  # type: ignore[misc]
            stolen.add(int(fields[1]))
        server.command("XACK", name, group, *ids)
        server.command("XDEL", name, *ids)

    async def handle(body: int) -> None:
        ran.append(body)
        # With something in stock: behind a slow moment it reads nothing ahead.
        if body >= 300 and not stolen and inside(consumer)._dispatcher.waiting > 20:
            if how == "the machine slept":
                for room in (room_of_dispatcher, room_of_held, room_of_lease):
                    monkeypatch.setattr(room, "elapsed", lambda: elapsed() + 3600)
            else:
                time.sleep(1)  # noqa: ASYNC251 -- what must not be done
            settle_as_another()
            stolen.difference_update(ran)

    config = ConsumerConfig(concurrency=1, visibility_timeout=0.6)
    async with RedisMessageQueue(name, server.url) as queue:
        await queue.produce_many(range(2000))
        async with Consumer(queue, handle, config) as consumer:
            await eventually(lambda: 1999 in ran)
            await eventually(lambda: consumer.held == 0)

    assert len(stolen) > 10
    assert stolen.isdisjoint(ran)
    assert len(ran) == len(set(ran)) == 2000 - len(stolen)


@pytest.mark.parametrize("is_stolen", [False, True])
async def test_what_was_long_on_its_way_is_asked_for_before_it_starts(
    url: str, name: str, client: Redis, is_stolen: bool
) -> None:
    """Redis has handed it out, and the answer was not read for longer than a lease lasts.

    As when the process stood still just then. Whether it is still ours, only Redis knows.
    """
    handled = Handled()
    config = ConsumerConfig(visibility_timeout=0.5)
    async with opened(url, name) as queue, Consumer(queue, handled, config) as consumer:
        reader = inside(consumer)._reader
        await eventually(lambda: reader.asked > 0)
        assert reader._wire is not None
        reader._wire._transport.pause_reading()
        message_id = await queue.produce("late")

        async def is_pending() -> bool:
            return (await left(client, name)).pending == 1

        await eventually(is_pending)
        if is_stolen:
            await client.xclaim(name, consumer.group, "another", 0, [message_id])
            await client.xack(name, consumer.group, message_id)
            await client.xdel(name, message_id)
        await asyncio.sleep(0.6)
        reader._wire._transport.resume_reading()

        await queue.produce("in time")
        await eventually(lambda: "in time" in handled.bodies)

    assert handled.bodies == (["in time"] if is_stolen else ["late", "in time"])


async def test_when_the_servers_clock_was_set_ahead_nothing_is_claimed_for_a_while(
    url: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All leases look older than they are, those of the living too."""
    monkeypatch.setattr(room_of_lease, "_LEAST_GRACE", 0.0)
    config = ConsumerConfig(visibility_timeout=3.0)
    async with (
        opened(url, name) as queue,
        Consumer(queue, Handled(), config) as consumer,
    ):
        await eventually(lambda: inside(consumer)._recoverer._take_until() is not None)

        inside(consumer)._promoter._set_clock(time.time() + 600)

        assert inside(consumer)._recoverer._take_until() is None
        await eventually(lambda: inside(consumer)._recoverer._take_until() is not None)


async def test_what_was_abandoned_does_not_wait_for_the_end_of_a_backlog(
    url: str, name: str, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind one, no worker is ever free by chance: each takes the next at once."""
    monkeypatch.setattr(room_of_lease, "_LEAST_GRACE", 0.0)
    handled = Handled(takes=0.02)
    config = ConsumerConfig(concurrency=2, visibility_timeout=0.5)
    async with opened(url, name) as queue:
        for number in range(3):
            await queue.produce(f"abandoned {number}")
        await client.xreadgroup(f"{name}_group", "gone", {name: ">"}, count=3)
        await queue.produce_many(range(600))
        async with Consumer(queue, handled, config):
            await handled.until(603, limit=30)

    behind = [body for body in handled.bodies[500:] if isinstance(body, str)]
    assert not behind


async def test_what_a_lost_answer_has_left_is_handed_back_at_the_end(
    url: str, name: str, client: Redis
) -> None:
    """Pending under a consumer that does not know of it, in the stream and in the lane."""
    handled = Handled()
    keys = QueueKeys(name)
    async with opened(url, name) as queue:
        async with Consumer(queue, handled) as consumer:
            await queue.produce("before")
            await handled.until(1)
            inside(consumer)._recoverer.stop()  # it would find them, in a while
            inside(consumer)._promoter.stop()
            await inside(consumer)._reader.stop()
            lane = keys.lane(consumer.group)
            await client.xgroup_create(lane, consumer.group, "0", mkstream=True)
            for key, body in ((name, b'"a"'), (lane, b'"b"')):
                await client.xadd(key, {b"body": body})
                await client.xreadgroup(consumer.group, consumer.name, {key: ">"})

        after = await left(client, name)
        assert (after.pending, after.pending_lane, after.names) == (0, 0, ())
        rest = Messages()
        async with Consumer(queue, rest):
            await rest.until(2)
        assert sorted(message.body for message in rest.seen) == ["a", "b"]
        assert {message.attempt for message in rest.seen} == {1}


async def test_a_task_of_it_that_others_cancel_ends_it_with_an_error(
    url: str, name: str
) -> None:
    """A consumer that lacks one would be deaf, and look alive."""
    async with opened(url, name) as queue:
        before = asyncio.all_tasks()
        consumer = Consumer(queue, Handled())
        await consumer.start()
        await eventually(lambda: len(asyncio.all_tasks() - before) > 5)
        tasks = {task.get_name(): task for task in asyncio.all_tasks() - before}
        tasks["aioredismq Reader.run"].cancel()

        with pytest.raises(MessageQueueError, match="cancelled by others"):
            await consumer.wait()


@pytest.mark.parametrize(
    "first",
    [
        "aioredismq Settler.run",
        "aioredismq Reporter.run",
        "aioredismq Bell.listen",
        "aioredismq Connection._give_back",
        "aioredismq Link.keep",
        "aioredismq connection",
        "aioredismq consumer",
    ],
)
async def test_who_cancels_one_task_after_the_other_need_not_wait_for_ever(
    url: str, name: str, client: Redis, first: str
) -> None:
    """Some programs end so, waiting for each: whichever is the first, all of them end then."""
    before = asyncio.all_tasks()
    queue = RedisMessageQueue(name, url)
    await queue.initialize()
    handled = Handled()
    handled.gate = asyncio.Event()
    consumer = Consumer(queue, handled, ConsumerConfig(shutdown_timeout=0.1))
    await consumer.start()
    await queue.produce("held")
    await handled.until(1)

    ours = asyncio.all_tasks() - before
    last = [task for task in ours if not task.get_name().startswith(first)]
    assert len(last) < len(ours)
    with fail_after(8):
        for task in [*(ours - set(last)), *last]:
            task.cancel()
            await asyncio.wait({task})

    assert await left(client, name) == Left(undelivered_lane=1)


async def test_what_fails_for_good_at_the_end_of_all_tasks_is_told(
    url: str, name: str
) -> None:
    """Else the end would wait for that, in vain, until its grace is over."""
    told: list[str] = []
    before = asyncio.all_tasks()
    started = asyncio.Event()

    async def refuse(body: str) -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise RejectMessage("too late") from None

    async def tell(message: Message, failure: Failure) -> None:
        told.append(f"{message.body}: {failure.reason}")

    queue = RedisMessageQueue(name, url)
    await queue.initialize()
    await Consumer(queue, refuse, ConsumerConfig(failover_callback=tell)).start()
    await queue.produce("a")
    await started.wait()

    ours = asyncio.all_tasks() - before
    for task in ours:
        task.cancel()
    await asyncio.wait(ours)

    assert told == ["a: rejected"]


async def test_what_has_expired_is_not_handled_when_no_look_succeeds(
    url: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look into the lane tells the time, and reading does not wait for one that fails."""

    async def fail(self: Member, room: int) -> Taken:
        raise ConnectionLostError("for a while")

    monkeypatch.setattr(Member, "take", fail)
    handled = Handled()
    async with opened(url, name) as queue:
        await queue.produce("late", expires=0.001)
        await queue.produce("in time", expires=600)
        await asyncio.sleep(0.01)
        async with Consumer(queue, handled):
            await handled.until(1)
            await eventually(lambda: has_dead(queue, 1))

        assert handled.bodies == ["in time"]
        [letter] = await queue.dead_letters.list(reason="expired")
        assert letter.body == "late"


async def has_dead(queue: RedisMessageQueue, count: int) -> bool:
    """Say whether there are so many dead letters."""
    return await queue.dead_letters.count() == count
