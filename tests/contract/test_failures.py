from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from aioredismq import (
    Consumer,
    ConsumerConfig,
    Failure,
    Message,
    NoRetry,
    RedisMessageQueue,
    RejectMessage,
    RetryMessage,
)
from aioredismq._keys import QueueKeys
from tests.looking import AT_ONCE, NOTHING, Handled, Messages, dead_letters, left
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support import Client


async def buried(look: Client, queue: RedisMessageQueue, count: int = 1) -> list[Any]:
    """Wait for so many dead letters, and give their fields."""

    async def are_there() -> bool:
        return await look.xlen(QueueKeys(queue.name).dead) >= count

    await eventually(are_there)
    return await dead_letters(look, queue.name)


async def emptied(look: Client, queue: RedisMessageQueue) -> None:
    """Wait until the default group has settled everything; its consumer may still run."""

    async def is_empty() -> bool:
        now = await left(look, queue.name)
        return not any(
            (
                now.stream,
                now.pending,
                now.undelivered_lane,
                now.pending_lane,
                now.delayed,
            )
        )

    await eventually(is_empty)


# Retries and dead letters.


async def test_a_failing_message_is_tried_again_at_once(
    queue: RedisMessageQueue, look: Client
) -> None:
    """Where no wait is asked for: under its id, with its attempts counted, until it is handled."""
    seen: list[tuple[str, int]] = []

    async def handler(message: Message) -> None:
        seen.append((message.id, message.attempt))
        if message.attempt < 40:
            raise ValueError("not yet")

    config = ConsumerConfig(retry=AT_ONCE, max_attempts=50)
    async with Consumer(queue, handler, config):
        begun = time.monotonic()
        message_id = await queue.produce("hello")
        await eventually(lambda: len(seen) == 40)
        assert time.monotonic() - begun < 15

    assert seen == [(message_id, attempt) for attempt in range(1, 41)]
    assert await left(look, queue.name) == NOTHING
    assert not await dead_letters(look, queue.name)


async def test_by_default_what_fails_waits_and_holds_no_slot(
    queue: RedisMessageQueue, look: Client
) -> None:
    """For up to 1 s, each as long as it draws: in the only slot they would take 60 s."""
    failed: dict[int, float] = {}
    waited: list[float] = []

    async def handler(number: int, message: Message) -> None:
        if message.attempt == 1:
            failed[number] = time.monotonic()
            raise ValueError("not yet")
        waited.append(time.monotonic() - failed[number])

    async with Consumer(queue, handler, ConsumerConfig(concurrency=1)):
        begun = time.monotonic()
        await queue.produce_many(range(120))
        await eventually(lambda: len(waited) == 120)
        took = time.monotonic() - begun

    assert 0.5 < max(waited) <= took < 20
    assert await left(look, queue.name) == NOTHING


async def test_what_fails_too_often_becomes_a_dead_letter(
    queue: RedisMessageQueue, look: Client
) -> None:
    """With its body, headers, reason, words, attempts, group and original id."""
    handled = Handled(error=ValueError("no such customer"))
    async with Consumer(queue, handled, ConsumerConfig(max_attempts=3, retry=AT_ONCE)):
        message_id = await queue.produce({"n": 1}, headers={"trace": "abc"})
        [letter] = await buried(look, queue)

    assert len(handled.bodies) == 3
    assert json.loads(letter[b"body"]) == {"n": 1}
    assert letter[b"trace"] == b"abc"
    assert letter[b"mq-id"].decode() == message_id
    assert letter[b"mq-group"].decode() == f"{queue.name}_group"
    assert letter[b"mq-reason"] == b"attempts"
    assert letter[b"mq-detail"] == b"no such customer"
    assert letter[b"mq-error-type"] == b"ValueError"
    assert letter[b"mq-attempt"] == b"3"
    assert b"ValueError" in letter[b"mq-traceback"]
    assert await left(look, queue.name) == NOTHING


async def test_a_rejected_message_is_put_aside_at_once(
    queue: RedisMessageQueue, look: Client
) -> None:
    """With the handler's words; there is no second attempt."""
    handled = Handled(error=RejectMessage("negative total"))
    async with Consumer(queue, handled):
        await queue.produce({"total": -1})
        [letter] = await buried(look, queue)

    assert len(handled.bodies) == 1
    assert (letter[b"mq-reason"], letter[b"mq-detail"]) == (
        b"rejected",
        b"negative total",
    )
    assert await left(look, queue.name) == NOTHING


async def test_a_policy_may_allow_one_attempt(
    queue: RedisMessageQueue, look: Client
) -> None:
    """`NoRetry`."""
    handled = Handled(error=ValueError("no"))
    async with Consumer(queue, handled, ConsumerConfig(retry=NoRetry())):
        await queue.produce("hello")
        [letter] = await buried(look, queue)

    assert len(handled.bodies) == 1
    assert letter[b"mq-reason"] == b"attempts"


async def test_a_handler_may_ask_for_a_retry(
    queue: RedisMessageQueue, look: Client
) -> None:
    """Without an error in the log's sense, and after the delay it names."""
    seen: list[float] = []

    async def handler(message: Message) -> None:
        seen.append(time.monotonic())
        if message.attempt == 1:
            raise RetryMessage("busy", delay=0.2)

    async with Consumer(queue, handler):
        await queue.produce("hello")
        await eventually(lambda: len(seen) == 2)

    assert 0.15 < seen[1] - seen[0] < 20
    assert await left(look, queue.name) == NOTHING


async def test_a_failure_in_one_group_is_no_other_groups_business(
    queue: RedisMessageQueue, look: Client
) -> None:
    """Its retries come to it alone."""
    failing, fine = Handled(error=ValueError("no")), Messages()
    await queue.produce("hello")
    async with (
        Consumer(queue, failing, ConsumerConfig(max_attempts=3, retry=AT_ONCE)),
        Consumer(queue, fine, ConsumerConfig(group="fine")),
    ):
        [letter] = await buried(look, queue)
        await fine.until(1)

    assert len(failing.bodies) == 3
    assert len(fine.seen) == 1
    assert letter[b"mq-group"].decode() == f"{queue.name}_group"
    assert await look.xlen(queue.name) == 0


async def test_another_consumer_may_have_the_next_attempt(
    queue: RedisMessageQueue,
) -> None:
    """A retry is the group's: what fails here, because of this host, is handled elsewhere."""
    fine = Messages()

    async def broken(body: str) -> None:
        first.request_stop()  # so that it does not come back here
        raise RetryMessage("this host is broken", delay=0.05)

    async with Consumer(queue, broken, ConsumerConfig(concurrency=1)) as first:
        await queue.produce("hello")
        await first.wait()
        async with Consumer(queue, fine):
            await fine.until(1)

    assert fine.seen[0].attempt == 2


async def test_many_failures_are_as_many_dead_letters(
    queue: RedisMessageQueue, look: Client
) -> None:
    """None is lost on its way, and none is put aside twice."""
    handled = Handled(error=ValueError("no"))
    config = ConsumerConfig(max_attempts=2, concurrency=32, retry=AT_ONCE)
    async with Consumer(queue, handled, config):
        ids = await queue.produce_many(range(300))
        letters = await buried(look, queue, 300)

    assert sorted(letter[b"mq-id"].decode() for letter in letters) == sorted(ids)
    assert len(handled.bodies) == 600
    assert await left(look, queue.name) == NOTHING


# Without dead letters, and telling of them.


async def test_without_failover_what_fails_for_good_is_dropped(
    queue: RedisMessageQueue, look: Client
) -> None:
    """It is reported and counted, and then nowhere."""
    told: list[tuple[str, Failure]] = []

    async def callback(message: Message, failure: Failure) -> None:
        told.append((message.id, failure))

    config = ConsumerConfig(
        failover=False, failover_callback=callback, max_attempts=2, retry=AT_ONCE
    )
    handled = Handled(error=ValueError("no"))
    async with Consumer(queue, handled, config) as consumer:
        assert consumer.failed == 0
        message_id = await queue.produce("hello")
        await eventually(lambda: bool(told))
        await emptied(look, queue)

    assert consumer.failed == 1
    [(reported, failure)] = told
    assert reported == message_id
    assert (failure.reason, failure.detail) == ("attempts", "no")
    assert isinstance(failure.error, ValueError)
    assert not await dead_letters(look, queue.name)


def record_sync(told: list[Message]) -> Callable[[Message, Failure], object]:
    """Make a callback that runs in a thread."""
    return lambda message, _: told.append(message)


def record_async(told: list[Message]) -> Callable[[Message, Failure], object]:
    """Make a callback that is awaited."""

    async def callback(message: Message, failure: Failure) -> None:
        await asyncio.sleep(0)
        told.append(message)

    return callback


def record_and_raise(told: list[Message]) -> Callable[[Message, Failure], object]:
    """Make a callback that fails."""

    async def callback(message: Message, failure: Failure) -> None:
        told.append(message)
        raise ZeroDivisionError

    return callback


@pytest.mark.parametrize("make", [record_sync, record_async, record_and_raise])
async def test_the_failover_callback_hears_of_each_dead_letter(
    queue: RedisMessageQueue,
    look: Client,
    make: Callable[[list[Message]], Callable[[Message, Failure], object]],
) -> None:
    """After it was put aside; what the callback raises changes nothing."""
    told: list[Message] = []
    handled = Handled(error=RejectMessage("no"))
    config = ConsumerConfig(failover_callback=make(told))
    async with Consumer(queue, handled, config):
        ids = await queue.produce_many([{"n": n} for n in range(5)])
        await eventually(lambda: len(told) == 5)

    assert sorted(message.id for message in told) == sorted(ids)
    assert [message.body for message in told] == handled.bodies
    assert len(await dead_letters(look, queue.name)) == 5
    assert await left(look, queue.name) == NOTHING


async def test_what_was_reported_is_reported_before_the_consumer_ends(
    queue: RedisMessageQueue,
) -> None:
    """Stopping waits for the callback."""
    told: list[str] = []

    async def callback(message: Message, failure: Failure) -> None:
        await anyio.sleep(0.02)
        told.append(message.id)

    handled = Handled(error=RejectMessage("no"))
    async with Consumer(queue, handled, ConsumerConfig(failover_callback=callback)):
        ids = await queue.produce_many(range(3))
        await handled.until(3)

    assert sorted(told) == sorted(ids)


# What somebody else wrote, or nobody can read.


@dataclass
class Order:
    """What the handlers below ask for."""

    n: int


FOREIGN: dict[str, dict[bytes | str, bytes | str]] = {
    "no body": {"temperature": "21", "place": "roof"},
    "rubbish": {"body": "{not json"},
    "not UTF-8": {"body": b"\xff\xfe\xfd"},
    "another type": {"body": '{"n": "many"}'},
    "another shape": {"body": "[1, 2]"},
    "nothing in it": {"body": ""},
    "a name that is not UTF-8": {b"\xff": b"\xff", b"body": b"?"},
    "an empty name": {"": ""},
    "an empty name beside a body": {"": "x", "body": "?"},
    "5 MB": {"body": b"{" * 5_000_000},
    "5 MB in a header": {"body": "?", "h": "h" * 5_000_000},
    "5 MB of another encoding in a header": {b"body": b"?", b"h": b"\xe9" * 5_000_000},
    "thousands of fields": {f"f{number}": "v" for number in range(12_000)},
    "thousands of fields before a body": {
        **{f"f{number}": "v" for number in range(9_000)},
        "body": "?",
    },
    "nonsense in our headers": {
        "body": "?",
        "mq-attempt": "1000",
        "mq-crashes": "1000",
        "mq-expires": "soon",
        "mq-reason": "\x00",
    },
    "numbers beyond reason in our headers": {
        "body": "?",
        "mq-attempt": "-1",
        "mq-crashes": "9" * 400,
        "mq-died": "9" * 15,
        "mq-expires": "9" * 20,
        "mq-produced": "9" * 15,
    },
    "bytes in our headers": {
        b"body": b"?",
        b"mq-": b"\xff",
        b"mq-attempt": b"\xff",
        b"mq-crashes": b"",
        b"mq-expires": b"\xb2",
        b"mq-group": b"\xff",
        b"mq-\xff": b"",
    },
    "an id of another's making": {"body": "?", "mq-id": b"\xff" * 1_000},
    "an empty id": {"body": "?", "mq-id": ""},
    "another content type": {"body": "<n>1</n>", "content-type": "text/xml"},
}


def stored_body(fields: dict[bytes | str, bytes | str]) -> bytes:
    """Give the bytes of an entry's body, none when it has none."""
    body = fields.get("body", fields.get(b"body", b""))
    return body.encode() if isinstance(body, str) else body


def found_as(entry_id: bytes, fields: dict[bytes | str, bytes | str]) -> str:
    """Give the id of an entry's message: the one it says, as that of a delayed message is."""
    said = fields.get("mq-id")
    return (said or entry_id).decode(errors="backslashreplace")  # type: ignore[union-attr]


async def test_foreign_entries_are_put_aside_and_never_loop(
    queue: RedisMessageQueue, look: Client
) -> None:
    """A handler that asks for something else never sees them; what is between them is handled."""
    seen: list[Order] = []

    async def handler(order: Order) -> None:
        seen.append(order)

    expected: dict[str, bytes] = {}
    for number, fields in enumerate(FOREIGN.values()):
        entry_id = await look.xadd(queue.name, dict(fields))
        expected[found_as(entry_id, fields)] = stored_body(fields)
        await queue.produce({"n": number})
    begun = time.monotonic()
    async with Consumer(queue, handler, ConsumerConfig(concurrency=1)) as consumer:
        await eventually(lambda: len(seen) == len(FOREIGN))
        took = time.monotonic() - begun
        letters = await buried(look, queue, len(FOREIGN))
        await emptied(look, queue)

    assert took < 20
    assert seen == [Order(number) for number in range(len(FOREIGN))]
    assert consumer.failed == len(letters) == len(FOREIGN)
    assert {
        letter[b"mq-id"].decode(): letter.get(b"body", b"") for letter in letters
    } == expected
    assert {letter[b"mq-reason"] for letter in letters} == {b"decode"}
    assert {letter[b"mq-attempt"] for letter in letters} == {b"1"}
    assert all(letter[b"mq-detail"] for letter in letters)
    assert await left(look, queue.name) == NOTHING
    found = {letter.message_id: letter for letter in await queue.dead_letters.list()}
    assert found.keys() == expected.keys()
    assert {letter.group for letter in found.values()} == {f"{queue.name}_group"}
    assert {letter.crashes for letter in found.values()} == {0}
    again = await queue.dead_letters.redrive(all=True)
    assert (again.count, again.missing, again.without_group) == (len(FOREIGN), (), ())


async def test_foreign_entries_reach_a_handler_of_raw_messages(
    queue: RedisMessageQueue, look: Client
) -> None:
    """They are data, not errors: bytes and headers are there."""
    messages = Messages()
    expected: dict[str, bytes] = {}
    for fields in FOREIGN.values():
        entry_id = await look.xadd(queue.name, dict(fields))
        expected[found_as(entry_id, fields)] = stored_body(fields)
    async with Consumer(queue, messages):
        await messages.until(len(FOREIGN))

    assert {message.id: message.raw for message in messages.seen} == expected
    assert {message.attempt for message in messages.seen} == {1}
    assert messages.seen[0].headers == {"temperature": "21", "place": "roof"}
    assert not any(
        header.startswith("mq-")
        for message in messages.seen
        for header in message.headers
    )
    assert not await dead_letters(look, queue.name)
    assert await left(look, queue.name) == NOTHING


async def test_foreign_entries_that_fail_come_again(
    queue: RedisMessageQueue, look: Client
) -> None:
    """Whatever is written in them: at once, and after a wait, and are handled in the end."""
    seen: Counter[str] = Counter()
    expected: set[str] = set()
    for fields in FOREIGN.values():
        entry_id = await look.xadd(queue.name, dict(fields))
        expected.add(found_as(entry_id, fields))

    async def handler(message: Message) -> None:
        seen[message.id] += 1
        if message.attempt < 3:
            raise RetryMessage("again", delay=(message.attempt - 1) / 100)

    async with Consumer(queue, handler):
        await eventually(lambda: seen.total() == 3 * len(FOREIGN))
        await emptied(look, queue)

    assert seen == dict.fromkeys(expected, 3)
    assert await left(look, queue.name) == NOTHING


# Batches.


async def test_a_batch_handler_gets_what_is_there(
    queue: RedisMessageQueue, look: Client
) -> None:
    """Up to its size, without waiting for a batch to fill."""
    sizes: list[int] = []
    bodies: list[int] = []

    async def handler(messages: list[Message]) -> None:
        sizes.append(len(messages))
        bodies.extend(message.body for message in messages)

    await queue.produce_many(range(250))
    config = ConsumerConfig(batch_size=100, concurrency=1)
    async with Consumer(queue, handler, config):
        await eventually(lambda: len(bodies) == 250)
        await queue.produce("one more")
        await eventually(lambda: len(bodies) == 251)

    assert bodies == [*range(250), "one more"]
    assert max(sizes) == 100
    assert sizes[-1] == 1
    assert await left(look, queue.name) == NOTHING


async def test_each_message_of_a_batch_can_be_settled_by_itself(
    queue: RedisMessageQueue, look: Client
) -> None:
    """Acknowledged, tried again, rejected; what is unmarked goes with the batch."""
    seen: list[tuple[str, int]] = []

    async def handler(messages: list[Message]) -> None:
        for message in messages:
            seen.append((message.body, message.attempt))
            if message.body == "ack":
                message.ack()
            elif message.body == "retry" and message.attempt == 1:
                message.retry("busy")
            elif message.body == "reject":
                message.reject("never")

    config = ConsumerConfig(concurrency=1, retry=AT_ONCE)
    async with Consumer(queue, handler, config):
        await queue.produce_many(["ack", "retry", "reject", "unmarked"])
        [letter] = await buried(look, queue)
        await eventually(lambda: ("retry", 2) in seen)
        await emptied(look, queue)

    assert sorted(seen) == [
        ("ack", 1),
        ("reject", 1),
        ("retry", 1),
        ("retry", 2),
        ("unmarked", 1),
    ]
    assert (letter[b"mq-reason"], letter[b"mq-detail"]) == (b"rejected", b"never")
    assert await left(look, queue.name) == NOTHING


async def test_half_a_batch_can_fail(queue: RedisMessageQueue, look: Client) -> None:
    """What it had acknowledged is not tried again; the rest is, with its attempt counted."""
    done: list[tuple[int, int]] = []

    async def handler(messages: list[Message]) -> None:
        for message in messages:
            if message.body == 5 and message.attempt == 1:
                raise ValueError("in the middle")
            done.append((message.body, message.attempt))
            message.ack()

    await queue.produce_many(range(10))
    config = ConsumerConfig(concurrency=1, retry=AT_ONCE)
    async with Consumer(queue, handler, config):
        await eventually(lambda: len(done) == 10)
        await emptied(look, queue)

    assert sorted(done)[:5] == [(n, 1) for n in range(5)]
    assert sorted(done)[5:] == [(n, 2) for n in range(5, 10)]


async def test_an_undecodable_message_does_not_fail_its_batch(
    queue: RedisMessageQueue, look: Client
) -> None:
    """It is put aside; the others are handled, and it cost them no attempt."""
    handled: list[tuple[int, int]] = []

    async def handler(messages: list[Message]) -> None:
        handled.extend(
            [(message.body, message.attempt) for message in messages]  # all or none
        )

    await queue.produce_many([1, 2])
    await look.xadd(queue.name, {"body": "{not json"})
    await queue.produce_many([3, 4])
    async with Consumer(queue, handler, ConsumerConfig(concurrency=1)):
        [letter] = await buried(look, queue)
        await eventually(lambda: len(handled) == 4)

    assert sorted(handled) == [(1, 1), (2, 1), (3, 1), (4, 1)]
    assert letter[b"mq-reason"] == b"decode"
    assert await left(look, queue.name) == NOTHING


# Threads and time.


async def test_sync_handlers_run_in_threads_as_many_as_may_run_at_once(
    queue: RedisMessageQueue, look: Client
) -> None:
    """Each blocks its thread, not the event loop."""
    together = threading.Barrier(6)
    threads: set[int] = set()

    def handler(body: int) -> None:
        together.wait(30)
        threads.add(threading.get_ident())

    async with Consumer(queue, handler, ConsumerConfig(concurrency=6)):
        await queue.produce_many(range(12))
        await emptied(look, queue)

    assert threading.get_ident() not in threads
    assert not await dead_letters(look, queue.name)


async def test_a_handler_that_hangs_is_cancelled_and_has_failed(
    queue: RedisMessageQueue, look: Client
) -> None:
    """It frees its slot, and counts its attempt."""
    handled = Handled(takes=60)
    config = ConsumerConfig(
        handler_timeout=0.03, max_attempts=2, concurrency=1, retry=AT_ONCE
    )
    async with Consumer(queue, handled, config):
        await queue.produce("hello")
        [letter] = await buried(look, queue)

    assert len(handled.bodies) == 2
    assert handled.running == 0
    assert b"handler_timeout" in letter[b"mq-detail"]
    assert letter[b"mq-error-type"] == b"TimeoutError"
    assert await left(look, queue.name) == NOTHING


async def test_a_thread_that_hangs_frees_its_slot(
    queue: RedisMessageQueue, look: Client
) -> None:
    """The thread itself cannot be ended, and is left behind."""
    release = threading.Event()
    seen: list[str] = []

    def handler(body: str) -> None:
        seen.append(body)
        if body == "stuck":
            release.wait(50)

    # Long enough for the other thread to begin, whenever the machine lets it.
    config = ConsumerConfig(handler_timeout=3, max_attempts=1, concurrency=1)
    async with Consumer(queue, handler, config):
        await queue.produce_many(["stuck", "next"])
        await eventually(lambda: "next" in seen)
        [letter] = await buried(look, queue)
        release.set()

    assert letter[b"body"] == b'"stuck"' or letter[b"body"] == b"stuck"
    assert await left(look, queue.name) == NOTHING


async def test_a_handler_that_cancels_itself_costs_no_worker(
    queue: RedisMessageQueue, look: Client
) -> None:
    """More of them than there are workers, and the last message is still handled."""
    handled: list[str] = []

    async def handler(body: str) -> None:
        if body == "fine":
            handled.append(body)
            return
        if body == "task":
            inner = asyncio.ensure_future(asyncio.sleep(60))
            asyncio.get_running_loop().call_soon(inner.cancel)
            await inner
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    config = ConsumerConfig(max_attempts=1, concurrency=2)
    async with Consumer(queue, handler, config) as consumer:
        await queue.produce_many(["task", "self"] * 4)
        await buried(look, queue, 8)
        await queue.produce("fine")
        await eventually(lambda: handled == ["fine"])
        assert consumer.error is None

    assert await left(look, queue.name) == NOTHING
