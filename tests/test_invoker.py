from __future__ import annotations

import asyncio
import logging
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from anyio import create_task_group, fail_after

from aioredismq import (
    ConsumerConfig,
    ExponentialBackoff,
    Message,
    MessageQueueError,
    NoRetry,
    RejectMessage,
    RetryMessage,
)
from aioredismq._handler import bind
from aioredismq._invoker import Invoker
from aioredismq._message import Entry
from aioredismq._outcome import Ack, DeadLetter, Outcome, Release, Retry
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Callable


class Settled:
    """What the invoker said became of each entry, and how long it is still ours."""

    def __init__(self) -> None:
        """Nothing is settled yet."""
        self.outcomes: dict[bytes, list[Outcome]] = {}

    def ack(self, entry: Entry) -> None:
        """Note an acknowledgement."""
        self.settle(entry, Ack())

    def settle(self, entry: Entry, outcome: Outcome) -> None:
        """Note an outcome."""
        self.outcomes.setdefault(entry.id, []).append(outcome)

    def remaining(self, entry: Entry) -> float:
        """Say how long the lease lasts."""
        return 30.0

    async def extend(self, entry: Entry) -> bool:
        """Renew the lease."""
        return True

    def of(self, entry: Entry) -> Outcome:
        """Give the one outcome of an entry."""
        [outcome] = self.outcomes[entry.id]
        return outcome


AT_ONCE = ExponentialBackoff(initial=0)


def make(
    handler: Callable[..., Any],
    config: ConsumerConfig | None = None,
    *,
    original: bool = False,
    now: float | None = None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> tuple[Invoker, Settled]:
    """Make an invoker, and what it settles with; `now` is the server's time."""
    settled = Settled()
    config = config or ConsumerConfig(retry=AT_ONCE)
    invoker = Invoker(
        bind(handler, loads=config.loads),
        config,
        queue="orders",
        group="billing",
        original=original,
        ack=settled.ack,
        settle=settled.settle,
        leases=settled,
        now=lambda: now,
        is_cancelled=is_cancelled,
    )
    return invoker, settled


def entry(
    body: bytes = b'{"n": 1}', *more: bytes, number: int = 1, in_lane: bool = False
) -> Entry:
    """Make an entry with a body and more fields."""
    return Entry(b"%d-0" % number, [b"body", body, *more], in_lane=in_lane)


async def outcome_of(
    handler: Callable[..., Any],
    given: Entry | None = None,
    config: ConsumerConfig | None = None,
) -> Outcome:
    """Run a handler on one entry and give what became of it."""
    invoker, settled = make(handler, config)
    given = given or entry()
    await invoker.run([given])
    return settled.of(given)


def failed(outcome: Outcome) -> tuple[str, str]:
    """Give reason and detail of a dead letter."""
    assert isinstance(outcome, DeadLetter)
    return outcome.failure.reason, outcome.failure.detail


# What a handler gets.


async def test_returning_acknowledges() -> None:
    """The handler gets the decoded body."""
    seen: list[object] = []

    async def handler(body: dict[str, int]) -> None:
        seen.append(body)

    assert await outcome_of(handler) == Ack()
    assert seen == [{"n": 1}]


async def test_a_message_says_where_it_comes_from() -> None:
    """Id, headers, attempt, queue, group, content type and bytes are there beside the body."""
    seen: list[Message] = []

    async def handler(message: Message) -> None:
        seen.append(message)

    await outcome_of(handler, entry(b'{"n": 1}', b"trace", b"abc"))

    [message] = seen
    assert message.id == "1-0"
    assert message.headers == {"trace": "abc"}
    assert message.attempt == 1
    assert (message.queue, message.group) == ("orders", "billing")
    assert message.content_type == "application/json"
    assert message.raw == b'{"n": 1}'
    assert message.body == {"n": 1}


async def test_a_retried_message_keeps_its_id_and_counts_its_attempts() -> None:
    """Both travel with it through the lane."""
    seen: list[Message] = []

    async def handler(message: Message) -> None:
        seen.append(message)

    given = entry(b"1", b"mq-id", b"77-1", b"mq-attempt", b"2", in_lane=True)
    await outcome_of(handler, given)

    assert (seen[0].id, seen[0].attempt) == ("77-1", 3)


@pytest.mark.parametrize(
    "nonsense",
    [
        (b"mq-attempt", b"1000"),
        (b"mq-attempt", b"\xff\xfe"),
        (b"mq-attempt", b"-5", b"mq-id", b""),
        (b"mq-reason", b"none", b"mq-expires", b"soon"),
        (b"mq-expires", b"9" * 400),
    ],
)
async def test_reserved_headers_somebody_else_wrote_mean_nothing(
    nonsense: tuple[bytes, ...],
) -> None:
    """In the stream itself a message was never tried, and nonsense counts as missing."""
    seen: list[Message] = []

    async def handler(message: Message) -> None:
        seen.append(message)

    invoker, settled = make(handler, now=1e9)
    given = entry(b"1", *nonsense)
    await invoker.run([given])

    assert settled.of(given) == Ack()
    assert (seen[0].id, seen[0].attempt, seen[0].headers) == ("1-0", 1, {})


@pytest.mark.parametrize(
    "nonsense",
    [
        (b"mq-attempt", b"\xff\xfe"),
        (b"mq-attempt", b"-5"),
        (b"mq-attempt", b"9" * 400),
        (b"mq-id", b"\xff"),
    ],
)
async def test_nonsense_in_the_lane_is_handled_all_the_same(
    nonsense: tuple[bytes, ...],
) -> None:
    """A field that cannot be read counts as missing, or is shown with backslashes."""
    seen: list[Message] = []

    async def handler(message: Message) -> None:
        seen.append(message)

    assert await outcome_of(handler, entry(b"1", *nonsense, in_lane=True)) == Ack()
    assert seen[0].attempt == 1
    assert seen[0].id in {"1-0", "\\xff"}


# What becomes of a failure.


async def test_an_error_is_tried_again() -> None:
    """Whatever a handler raises is its failure, not the consumer's."""

    async def handler(body: object) -> None:
        raise KeyError("missing")

    outcome = await outcome_of(handler)

    assert outcome == Retry(0.0, "'missing'")


class PanicError(BaseException):
    """As extensions written in Rust raise: none of `Exception`."""


async def test_a_failure_need_not_be_an_exception() -> None:
    """Ending the consumer with it would hand the message to the next, to end that too."""

    async def single(message: Message) -> None:
        async with message:
            raise PanicError("index out of bounds")

    async def batch(messages: list[Message]) -> None:
        raise PanicError("index out of bounds")

    def thread(body: object) -> None:
        raise PanicError("index out of bounds")

    for handler in (single, batch, thread):
        assert await outcome_of(handler) == Retry(0.0, "index out of bounds")


async def test_the_end_of_the_process_is_no_failure() -> None:
    """It goes on its way; the message was cut off."""

    async def handler(body: object) -> None:
        raise GeneratorExit

    invoker, settled = make(handler)
    given = entry()

    with pytest.raises(GeneratorExit):
        await invoker.run([given])

    assert settled.of(given) == Release()


async def test_the_last_attempt_makes_a_dead_letter() -> None:
    """With its reason and its words."""

    async def handler(body: object) -> None:
        raise ValueError("no")

    given = entry(b"1", b"mq-attempt", b"2", in_lane=True)
    outcome = await outcome_of(
        handler, given, ConsumerConfig(max_attempts=3, retry=AT_ONCE)
    )

    assert failed(outcome) == ("attempts", "no")


async def test_the_policy_may_give_up_earlier() -> None:
    """`NoRetry` allows one attempt."""

    async def handler(body: object) -> None:
        raise ValueError("no")

    outcome = await outcome_of(handler, config=ConsumerConfig(retry=NoRetry()))

    assert failed(outcome) == ("attempts", "no")


async def test_the_policy_says_how_long_to_wait() -> None:
    """Each attempt waits longer than the last one."""

    async def handler(body: object) -> None:
        raise ValueError("no")

    policy = ExponentialBackoff(initial=2.0, jitter=False)
    given = entry(b"1", b"mq-attempt", b"2", in_lane=True)
    outcome = await outcome_of(handler, given, ConsumerConfig(retry=policy))

    assert outcome == Retry(8.0, "no")


async def test_rejecting_ends_it_at_once() -> None:
    """`RejectMessage` allows no second attempt."""

    async def handler(body: object) -> None:
        raise RejectMessage("negative total")

    assert failed(await outcome_of(handler)) == ("rejected", "negative total")


async def test_asking_for_a_retry_chooses_the_delay() -> None:
    """`RetryMessage` wins over the policy."""

    async def handler(body: object) -> None:
        raise RetryMessage("busy", delay=10)

    assert await outcome_of(handler) == Retry(10, "busy")


async def test_asking_for_a_retry_for_ever_ends_with_the_attempts() -> None:
    """It counts an attempt like any other failure."""

    async def handler(body: object) -> None:
        raise RetryMessage("busy", delay=10)

    outcome = await outcome_of(handler, config=ConsumerConfig(max_attempts=1))

    assert failed(outcome) == ("attempts", "busy")


async def test_a_policy_that_fails_does_not_lose_the_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is logged, and the message is tried again at once, `max_attempts` times as ever."""

    class Broken:
        def delay(self, attempt: int, error: BaseException) -> float:
            raise ZeroDivisionError

    async def handler(body: object) -> None:
        raise ValueError("no")

    config = ConsumerConfig(retry=Broken(), max_attempts=3)
    last = entry(b"1", b"mq-attempt", b"2", in_lane=True)

    assert await outcome_of(handler, config=config) == Retry(0.0, "no")
    assert failed(await outcome_of(handler, last, config)) == ("attempts", "no")
    assert any("tried again at once" in text for text in caplog.messages)


@pytest.mark.parametrize(
    "body", [b"{", b"\xff\xfe", b"", b"[1]", b'"text"', b'{"m": 1}', b'{"n": "x"}']
)
async def test_what_cannot_be_read_never_reaches_the_handler(body: bytes) -> None:
    """It is put aside as such, without an attempt more."""

    @dataclass
    class Order:
        n: int

    async def handler(body: Order) -> None:
        raise AssertionError

    handler.__annotations__["body"] = Order  # a local class cannot be named in a string
    reason, detail = failed(await outcome_of(handler, entry(body)))

    assert reason == "decode"
    assert detail


async def test_an_entry_without_a_body_never_reaches_the_handler() -> None:
    """The detail names what is there instead."""

    async def handler(body: dict[str, Any]) -> None:
        raise AssertionError

    foreign = Entry(b"1-0", [b"temperature", b"21"], in_lane=False)
    reason, detail = failed(await outcome_of(handler, foreign))

    assert reason == "decode"
    assert "temperature" in detail


@pytest.mark.parametrize(
    "fields", [[], [b"temperature", b"21"], [b"body", b"\xff"], [b"body", b"{"]]
)
async def test_a_handler_of_raw_messages_gets_whatever_there_is(
    fields: list[bytes],
) -> None:
    """What somebody else wrote is data, not an error."""
    seen: list[Message] = []

    async def handler(message: Message) -> None:
        seen.append(message)

    assert await outcome_of(handler, Entry(b"1-0", fields, in_lane=False)) == Ack()
    assert seen[0].raw == (fields[1] if fields[:1] == [b"body"] else b"")


async def test_reading_a_broken_body_late_is_a_failure_to_decode() -> None:
    """A raw handler that asks for the body all the same fails like one that named it."""

    async def handler(message: Message) -> None:
        _ = message.body

    assert failed(await outcome_of(handler, entry(b"{")))[0] == "decode"


@pytest.mark.parametrize(
    ("error", "attempts", "told", "with_traceback"),
    [
        (ValueError("no"), 2, "will be tried again: no", False),
        (ValueError("no"), 1, "for good: no", True),
        (RejectMessage("no"), 1, "for good: no", False),
    ],
    ids=["first", "last", "rejected"],
)
async def test_a_failure_is_logged_with_what_becomes_of_it(
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    attempts: int,
    told: str,
    with_traceback: bool,
) -> None:
    """Message, queue, attempt, handler and words in one line; a traceback when it was the last."""

    async def handler(body: object) -> None:
        raise error

    await outcome_of(handler, config=ConsumerConfig(max_attempts=attempts))

    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert (record.exc_info is not None) is with_traceback
    text = record.getMessage()
    assert "message 1-0 of orders failed in attempt 1" in text
    assert "handler" in text
    assert told in text


# What comes too late.


async def test_an_expired_message_never_reaches_the_handler() -> None:
    """It is put aside, by the server's clock; one that is in time is handled."""
    seen: list[object] = []

    async def handler(body: object) -> None:
        seen.append(body)

    invoker, settled = make(handler, now=1000.5)
    late = entry(b"1", b"mq-expires", b"1000000", number=1)
    early = entry(b"2", b"mq-expires", b"2000000", number=2)
    await invoker.run([late])
    await invoker.run([early])

    assert failed(settled.of(late))[0] == "expired"
    assert "0.500 s" in failed(settled.of(late))[1]
    assert settled.of(early) == Ack()
    assert seen == [2]


async def test_an_expired_message_may_be_dropped() -> None:
    """Where nobody wants to hear of it."""

    async def handler(body: object) -> None:
        raise AssertionError

    invoker, settled = make(handler, ConsumerConfig(expired="drop"), now=1000.5)
    late = entry(b"1", b"mq-expires", b"1000000")
    await invoker.run([late])

    assert settled.of(late) == Ack()


async def test_an_expired_message_is_left_out_of_its_batch() -> None:
    """The rest is handled."""
    seen: list[list[Any]] = []

    async def handler(messages: list[Message]) -> None:
        seen.append([message.body for message in messages])

    invoker, settled = make(handler, now=1000.5)
    late = entry(b"1", b"mq-expires", b"1000000", number=1)
    early = entry(b"2", number=2)
    await invoker.run([late, early])

    assert failed(settled.of(late))[0] == "expired"
    assert settled.of(early) == Ack()
    assert seen == [[2]]


async def test_nothing_expires_while_the_servers_time_is_not_known() -> None:
    """Ours may be wrong, and what was dropped by it would be lost."""

    async def handler(body: object) -> None:
        pass

    assert await outcome_of(handler, entry(b"1", b"mq-expires", b"1")) == Ack()


# A lost lease.


async def test_a_lost_lease_cancels_the_handler_where_that_is_wanted() -> None:
    """Its message is somebody else's: handing it back is refused there, and harmless."""
    started = asyncio.Event()

    async def handler(body: object) -> None:
        started.set()
        await asyncio.sleep(60)

    invoker, settled = make(handler, ConsumerConfig(on_lost_lease="cancel"))
    lost, given = entry(number=1), entry(number=2)
    async with create_task_group() as tasks:
        tasks.start_soon(invoker.run, [given])
        await eventually(started.is_set)
        invoker.lease_lost(lost.id, False)
        await asyncio.sleep(0)
        assert not settled.outcomes
        invoker.lease_lost(given.id, False)

    assert settled.of(given) == Release()


async def test_a_lost_lease_cancels_a_batch_as_a_whole() -> None:
    """The others are handed back untried; what was settled by itself stays settled."""
    started = asyncio.Event()

    async def handler(messages: list[Message]) -> None:
        messages[0].ack()
        started.set()
        await asyncio.sleep(60)

    invoker, settled = make(handler, ConsumerConfig(on_lost_lease="cancel"))
    done, lost, other = (entry(number=number) for number in (1, 2, 3))
    async with create_task_group() as tasks:
        tasks.start_soon(invoker.run, [done, lost, other])
        await eventually(started.is_set)
        invoker.lease_lost(lost.id, False)

    assert settled.of(done) == Ack()
    assert settled.of(lost) == settled.of(other) == Release()


async def test_a_lost_lease_leaves_the_handler_alone_by_default() -> None:
    """What it does may still be acknowledged."""
    gate = asyncio.Event()

    async def handler(body: object) -> None:
        await gate.wait()

    invoker, settled = make(handler)
    given = entry()
    async with create_task_group() as tasks:
        tasks.start_soon(invoker.run, [given])
        invoker.lease_lost(given.id, False)
        gate.set()

    assert settled.of(given) == Ack()


# Settling by hand.


@pytest.mark.parametrize(
    ("by_hand", "expected"),
    [
        (lambda message: message.ack(), Ack()),
        (lambda message: message.retry("later", delay=3), Retry(3, "later")),
    ],
)
async def test_what_was_settled_by_hand_counts(
    by_hand: Callable[[Message], None], expected: Outcome
) -> None:
    """Whatever the handler raises afterwards."""

    async def handler(message: Message) -> None:
        by_hand(message)
        raise ValueError("afterwards")

    assert await outcome_of(handler) == expected


async def test_rejecting_by_hand_makes_a_dead_letter() -> None:
    """Without raising."""

    async def handler(message: Message) -> None:
        message.reject("no such customer")

    assert failed(await outcome_of(handler)) == ("rejected", "no such customer")


# Cancellation and time.


async def test_a_handler_cut_off_from_outside_is_handed_back() -> None:
    """It is not an attempt: nobody knows whether it would have failed."""
    started = asyncio.Event()

    async def handler(body: object) -> None:
        started.set()
        await asyncio.sleep(60)

    invoker, settled = make(handler)
    given = entry()
    async with create_task_group() as tasks:
        tasks.start_soon(invoker.run, [given])
        await eventually(started.is_set)
        tasks.cancel_scope.cancel()

    assert settled.of(given) == Release()


@pytest.mark.parametrize("ends", [False, True])
async def test_a_handler_cancelled_with_its_whole_consumer_is_handed_back(
    ends: bool,
) -> None:
    """As `asyncio.run` does; by itself its task is cancelled by the handler only."""
    started = asyncio.Event()

    async def handler(body: object) -> None:
        started.set()
        await asyncio.sleep(60)

    invoker, settled = make(handler, is_cancelled=lambda: ends)
    given = entry()
    working = asyncio.ensure_future(invoker.run([given]))
    await started.wait()
    working.cancel()

    await asyncio.wait([working])

    assert settled.of(given) == (Release() if ends else Retry(0.0, "CancelledError"))
    assert working.cancelled() is ends


async def test_a_handler_that_ends_in_a_cancellation_of_its_own_has_failed() -> None:
    """A task it awaited was cancelled: that is its failure, and the worker goes on."""

    async def handler(body: object) -> None:
        inner = asyncio.ensure_future(asyncio.sleep(60))
        asyncio.get_running_loop().call_soon(inner.cancel)
        await inner

    assert await outcome_of(handler) == Retry(0.0, "CancelledError")


async def test_a_handler_that_raises_a_cancellation_has_failed() -> None:
    """However it comes to it."""

    async def handler(body: object) -> None:
        raise asyncio.CancelledError

    assert await outcome_of(handler) == Retry(0.0, "CancelledError")


async def test_a_handler_that_cancels_its_own_task_has_failed() -> None:
    """Old time-limit libraries do so; it must not end the worker, nor hide what follows."""
    outcomes: list[Outcome] = []

    async def cancels(body: object) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    async def raises(body: object) -> None:
        raise asyncio.CancelledError

    async def worker() -> None:
        outcomes.append(await outcome_of(cancels))
        outcomes.append(await outcome_of(raises))

    async with create_task_group() as tasks:
        tasks.start_soon(worker)

    assert outcomes == [Retry(0.0, "CancelledError")] * 2


async def test_a_handler_that_swallows_a_cancellation_of_its_own_leaves_no_trace() -> (
    None
):
    """The next message's failure is still told from a shutdown."""
    outcomes: list[Outcome] = []

    async def swallows(body: object) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            return
        raise AssertionError

    async def raises(body: object) -> None:
        raise asyncio.CancelledError

    async def worker() -> None:
        outcomes.append(await outcome_of(swallows))
        outcomes.append(await outcome_of(raises))

    async with create_task_group() as tasks:
        tasks.start_soon(worker)

    assert outcomes == [Ack(), Retry(0.0, "CancelledError")]


async def test_a_handler_that_finishes_although_it_is_cancelled_has_succeeded() -> None:
    """Who swallows the cancellation and returns has done the work."""
    started = asyncio.Event()

    async def handler(body: object) -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return

    invoker, settled = make(handler)
    given = entry()
    async with create_task_group() as tasks:
        tasks.start_soon(invoker.run, [given])
        await eventually(started.is_set)
        tasks.cancel_scope.cancel()

    assert settled.of(given) == Ack()


async def test_a_handler_that_runs_too_long_has_failed() -> None:
    """It is cancelled, and the words name the setting."""
    ended = asyncio.Event()

    async def handler(body: object) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    outcome = await outcome_of(
        handler, config=ConsumerConfig(handler_timeout=0.02, retry=AT_ONCE)
    )

    assert isinstance(outcome, Retry)
    assert "handler_timeout (0.02 s)" in outcome.detail
    assert ended.is_set()


async def test_a_handlers_own_timeout_keeps_its_words() -> None:
    """It is not taken for ours."""

    async def handler(body: object) -> None:
        raise TimeoutError("the gateway did not answer")

    outcome = await outcome_of(
        handler, config=ConsumerConfig(handler_timeout=5.0, retry=AT_ONCE)
    )

    assert outcome == Retry(0.0, "the gateway did not answer")


async def test_a_thread_that_runs_too_long_is_left_behind() -> None:
    """Python cannot end a thread: its message has failed, and the slot is free."""
    go_on = threading.Event()

    def handler(body: object) -> None:
        go_on.wait(30)

    begun = time.monotonic()
    outcome = await outcome_of(
        handler, config=ConsumerConfig(handler_timeout=0.02, retry=AT_ONCE)
    )
    took = time.monotonic() - begun
    go_on.set()

    assert isinstance(outcome, Retry)
    assert "handler_timeout" in outcome.detail
    assert took < 15


# Threads.


async def test_a_handler_that_is_not_async_runs_in_a_thread() -> None:
    """The event loop goes on meanwhile."""
    threads: list[int] = []

    def handler(body: object) -> None:
        threads.append(threading.get_ident())

    assert await outcome_of(handler) == Ack()
    assert threads != [threading.get_ident()]


async def test_as_many_threads_run_at_once_as_the_consumer_is_wide() -> None:
    """Its limiter is its own: more than the 40 threads the application shares."""
    width = 50
    together = threading.Barrier(width)

    def handler(body: object) -> None:
        together.wait(30)

    invoker, settled = make(handler, ConsumerConfig(concurrency=width, retry=AT_ONCE))
    async with create_task_group() as tasks:
        for number in range(width):
            tasks.start_soon(invoker.run, [entry(number=number)])

    assert all(outcomes == [Ack()] for outcomes in settled.outcomes.values())
    assert len(settled.outcomes) == width


async def test_what_a_thread_raises_is_a_failure() -> None:
    """As in an async handler."""

    def handler(body: object) -> None:
        raise RejectMessage("no")

    assert failed(await outcome_of(handler)) == ("rejected", "no")


async def test_a_message_can_be_settled_from_a_thread() -> None:
    """By hand, as in an async handler."""

    def handler(message: Message) -> None:
        message.reject("from a thread")

    assert failed(await outcome_of(handler)) == ("rejected", "from a thread")


async def test_a_callable_that_turns_out_to_be_async_is_awaited() -> None:
    """A partial of a lambda does not say so before it is called."""
    seen: list[object] = []

    async def inner(extra: int, body: object) -> None:
        seen.append((extra, body))

    hidden = partial(lambda extra, body: inner(extra, body), 7)
    assert await outcome_of(hidden, entry(b"1")) == Ack()
    assert seen == [(7, 1)]


async def test_a_batch_handler_may_be_a_thread_too() -> None:
    """It settles each message by hand, or all by returning; in the event loop, and at once."""
    settling: list[int] = []
    gate = threading.Event()

    def handler(messages: list[Message]) -> None:
        messages[0].reject("first")
        gate.wait(30)
        messages[1].ack()

    invoker, settled = make(handler)
    settle = invoker._settle

    def note(entry: Entry, outcome: Outcome) -> None:
        settling.append(threading.get_ident())
        settle(entry, outcome)

    invoker._settle = note
    given = [entry(number=number) for number in range(3)]
    async with create_task_group() as tasks:
        tasks.start_soon(invoker.run, given)
        await eventually(lambda: given[0].id in settled.outcomes)
        gate.set()

    assert failed(settled.of(given[0])) == ("rejected", "first")
    assert settled.of(given[1]) == settled.of(given[2]) == Ack()
    assert set(settling) == {threading.get_ident()}


async def test_a_thread_left_behind_settles_nothing_more() -> None:
    """Its batch has failed by the time limit; what it says afterwards is refused."""
    gate = threading.Event()
    said: list[object] = []

    def handler(messages: list[Message]) -> None:
        gate.wait(30)
        for message in messages:
            try:
                message.ack()
            except MessageQueueError as error:
                said.append(error)

    invoker, settled = make(handler, ConsumerConfig(handler_timeout=0.5, retry=AT_ONCE))
    given = [entry(number=number) for number in range(2)]
    await invoker.run(given)
    gate.set()
    await eventually(lambda: len(said) == 2)

    assert all(isinstance(settled.of(one), Retry) for one in given)


# Batches.


async def test_a_batch_is_acknowledged_when_its_handler_returns() -> None:
    """Each message of it."""
    seen: list[list[Any]] = []

    async def handler(messages: list[Message]) -> None:
        seen.append([message.body for message in messages])

    invoker, settled = make(handler)
    given = [entry(b"%d" % number, number=number) for number in range(3)]
    await invoker.run(given)

    assert seen == [[0, 1, 2]]
    assert [settled.of(one) for one in given] == [Ack()] * 3


async def test_half_a_batch_can_fail() -> None:
    """What was settled by hand counts; what raised fails the rest."""

    async def handler(messages: list[Message]) -> None:
        messages[0].ack()
        messages[1].retry("busy", delay=4)
        messages[2].reject("never")
        raise ValueError("the rest")

    invoker, settled = make(handler)
    given = [entry(number=number) for number in range(5)]
    await invoker.run(given)

    assert settled.of(given[0]) == Ack()
    assert settled.of(given[1]) == Retry(4, "busy")
    assert failed(settled.of(given[2])) == ("rejected", "never")
    assert settled.of(given[3]) == settled.of(given[4]) == Retry(0.0, "the rest")


async def test_a_settled_message_of_a_batch_is_acknowledged_while_the_rest_runs() -> (
    None
):
    """By hand means now, not at the end."""
    gate = asyncio.Event()

    async def handler(messages: list[Message]) -> None:
        messages[0].ack()
        await gate.wait()

    invoker, settled = make(handler)
    first, second = entry(number=1), entry(number=2)
    async with create_task_group() as tasks:
        tasks.start_soon(invoker.run, [first, second])
        await eventually(lambda: first.id in settled.outcomes)
        assert second.id not in settled.outcomes
        gate.set()

    assert settled.of(second) == Ack()


async def test_one_undecodable_message_does_not_fail_its_batch() -> None:
    """It alone is put aside; the others are handed back untried, and then go through."""

    async def handler(messages: list[Message]) -> None:
        for message in messages:
            _ = message.body

    invoker, settled = make(handler)
    good, bad, unread = entry(b"1", number=1), entry(b"{", number=2), entry(number=3)
    await invoker.run([good, bad, unread])

    assert failed(settled.of(bad))[0] == "decode"
    assert settled.of(good) == Release()
    assert settled.of(unread) == Release()


async def test_a_batch_cut_off_from_outside_is_handed_back() -> None:
    """What was settled by hand before stays settled."""
    started = asyncio.Event()

    async def handler(messages: list[Message]) -> None:
        messages[0].ack()
        started.set()
        await asyncio.sleep(60)

    invoker, settled = make(handler)
    first, second = entry(number=1), entry(number=2)
    async with create_task_group() as tasks:
        tasks.start_soon(invoker.run, [first, second])
        await eventually(started.is_set)
        tasks.cancel_scope.cancel()

    assert settled.of(first) == Ack()
    assert settled.of(second) == Release()


async def test_a_block_of_a_message_that_is_cut_off_is_handed_back() -> None:
    """`async with message:` in a handler fails it by errors, not by a shutdown."""
    started = asyncio.Event()

    async def single(message: Message) -> None:
        async with message:
            started.set()
            await asyncio.sleep(60)

    async def batch(messages: list[Message]) -> None:
        for message in messages:
            async with message:
                if message is messages[-1]:
                    started.set()
                    await asyncio.sleep(60)

    for handler, given in ((single, 1), (batch, 3)):
        started.clear()
        invoker, settled = make(handler)
        entries = [entry(number=number) for number in range(given)]
        async with create_task_group() as tasks:
            tasks.start_soon(invoker.run, entries)
            await eventually(started.is_set)
            tasks.cancel_scope.cancel()

        assert settled.of(entries[-1]) == Release()
        assert all(settled.of(one) == Ack() for one in entries[:-1])


async def test_a_batch_handler_that_ends_in_a_cancellation_of_its_own_has_failed() -> (
    None
):
    """As with single messages."""

    async def handler(messages: list[Message]) -> None:
        raise asyncio.CancelledError

    assert await outcome_of(handler) == Retry(0.0, "CancelledError")


async def test_a_batch_handler_that_runs_too_long_has_failed() -> None:
    """Every unsettled message of it counts an attempt."""

    async def handler(messages: list[Message]) -> None:
        messages[0].ack()
        await asyncio.sleep(60)

    invoker, settled = make(
        handler, ConsumerConfig(handler_timeout=0.02, retry=AT_ONCE)
    )
    first, second = entry(number=1), entry(number=2)
    with fail_after(8):
        await invoker.run([first, second])

    assert settled.of(first) == Ack()
    assert isinstance(settled.of(second), Retry)


async def test_a_message_of_a_batch_is_settled_by_hand_no_more_once_it_has_ended() -> (
    None
):
    """A message kept beyond its handler cannot be acknowledged a second time."""
    kept: list[Message] = []

    async def handler(messages: list[Message]) -> None:
        kept.extend(messages)

    await outcome_of(handler)

    assert kept[0].is_settled
    with pytest.raises(MessageQueueError, match="settled already"):
        kept[0].ack()


async def test_a_message_kept_beyond_its_handler_is_settled_no_more() -> None:
    """As with batches: the second settlement would be lost without a word."""
    kept: list[Message] = []

    async def handler(message: Message) -> None:
        kept.append(message)

    await outcome_of(handler)

    assert kept[0].is_settled
    with pytest.raises(MessageQueueError, match="settled already"):
        kept[0].ack()


# The original's entries.


async def test_the_originals_marker_is_skipped() -> None:
    """The first entry of its streams is no message: settled without a call."""
    seen: list[object] = []

    async def handler(body: object) -> None:
        seen.append(body)

    invoker, settled = make(handler, original=True)
    fields = [b'{"queueInitialized":true,"queueName":"orders"}', b"1"]
    marker = Entry(b"1-0", fields, in_lane=False)
    real = Entry(b"2-0", [b'{"n": 2}', b"0.5"], in_lane=False)
    await invoker.run([marker])
    await invoker.run([real])

    assert settled.of(marker) == settled.of(real) == Ack()
    assert seen == [{"n": 2}]


async def test_the_originals_marker_is_left_out_of_a_batch() -> None:
    """The rest of the batch is handled; a batch of it alone calls nobody."""
    seen: list[list[Any]] = []

    async def handler(messages: list[Message]) -> None:
        seen.append([message.body for message in messages])

    invoker, settled = make(handler, original=True)
    fields = [b'{"queueInitialized":true,"queueName":"orders"}', b"1"]
    marker = Entry(b"1-0", fields, in_lane=False)
    real = Entry(b"2-0", [b"[1]", b"0.5"], in_lane=False)
    await invoker.run([marker, real])
    await invoker.run([Entry(b"3-0", fields, in_lane=False)])

    assert settled.of(marker) == settled.of(real) == Ack()
    assert seen == [[[1]]]
