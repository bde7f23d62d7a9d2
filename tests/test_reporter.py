from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from anyio import create_task_group, fail_after, move_on_after

from aioredismq import Failure, Message
from aioredismq import _reporter as room
from aioredismq._reporter import Reporter
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import pytest

FAILURE = Failure("rejected", "no such customer")


def message(number: int = 1) -> Message:
    """Make a message."""
    return Message(
        id=f"{number}-0",
        raw=b"",
        headers={},
        content_type="application/json",
        attempt=1,
        queue="orders",
        group="billing",
        decode=lambda: None,
    )


@asynccontextmanager
async def reporting(
    callback: Callable[[Message, Failure], object] | None,
) -> AsyncIterator[Reporter]:
    """Run a reporter in the block; whatever was reported in it is told before it ends."""
    reporter = Reporter(callback)
    async with create_task_group() as tasks:
        tasks.start_soon(reporter.run)
        yield reporter
        with fail_after(8):
            await reporter.told()
        tasks.cancel_scope.cancel()


async def test_an_async_callback_hears_of_each_failure_in_order() -> None:
    """It gets the message and why it failed."""
    heard: list[tuple[str, Failure]] = []

    async def callback(message: Message, failure: Failure) -> None:
        await asyncio.sleep(0)
        heard.append((message.id, failure))

    async with reporting(callback) as reporter:
        for number in range(10):
            reporter.report(message(number), FAILURE)

    assert heard == [(f"{number}-0", FAILURE) for number in range(10)]


async def test_a_sync_callback_runs_in_a_thread() -> None:
    """It may block without holding up the event loop."""
    heard: list[tuple[str, int]] = []

    def callback(message: Message, failure: Failure) -> None:
        heard.append((message.id, threading.get_ident()))

    async with reporting(callback) as reporter:
        reporter.report(message(), FAILURE)

    [(message_id, thread)] = heard
    assert message_id == "1-0"
    assert thread != threading.get_ident()


async def test_a_callback_that_turns_out_to_be_async_is_awaited() -> None:
    """A lambda or an object does not say so before it is called."""
    heard: list[str] = []

    async def inner(message: Message) -> None:
        heard.append(message.id)

    async with reporting(lambda message, _: inner(message)) as reporter:
        reporter.report(message(), FAILURE)

    assert heard == ["1-0"]


async def test_a_callback_that_raises_is_logged_and_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The next failure is told all the same."""
    heard: list[str] = []

    async def callback(message: Message, failure: Failure) -> None:
        heard.append(message.id)
        raise ZeroDivisionError

    async with reporting(callback) as reporter:
        reporter.report(message(1), FAILURE)
        reporter.report(message(2), FAILURE)

    assert heard == ["1-0", "2-0"]
    assert [record.getMessage() for record in caplog.records] == [
        f"the failover callback failed on message {number}-0" for number in (1, 2)
    ]
    assert all(record.exc_info is not None for record in caplog.records)


async def test_a_callback_that_ends_in_a_cancellation_of_its_own_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A task it awaited was cancelled: that must not end the reports, nor the consumer."""
    heard: list[str] = []

    async def callback(message: Message, failure: Failure) -> None:
        heard.append(message.id)
        raise asyncio.CancelledError

    async with reporting(callback) as reporter:
        reporter.report(message(1), FAILURE)
        reporter.report(message(2), FAILURE)

    assert heard == ["1-0", "2-0"]
    assert len(caplog.records) == 2


async def test_without_a_callback_there_is_nothing_to_tell() -> None:
    """And nothing to wait for."""
    async with reporting(None) as reporter:
        reporter.report(message(), FAILURE)
        with fail_after(8):
            await reporter.told()


async def test_a_callback_that_is_too_slow_holds_up_reading_and_misses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Memory is bounded because nothing more is read, not because a report is dropped."""
    monkeypatch.setattr(room, "_MOST", 3)
    reporter = Reporter(lambda message, failure: heard.append(message.id))
    heard: list[str] = []
    for number in range(5):
        reporter.report(message(number), FAILURE)

    with move_on_after(0.05) as waiting:
        await reporter.keeps_up()
    async with create_task_group() as tasks:
        tasks.start_soon(reporter.run)
        with fail_after(8):
            await reporter.keeps_up()
            await reporter.told()
        tasks.cancel_scope.cancel()

    assert waiting.cancelled_caught
    assert heard == ["0-0", "1-0", "2-0", "3-0", "4-0"]


async def test_it_holds_up_nobody_once_the_consumer_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reading ends whatever the callback does."""
    monkeypatch.setattr(room, "_MOST", 2)

    async def callback(message: Message, failure: Failure) -> None:
        await asyncio.sleep(60)

    reporter = Reporter(callback)
    for number in range(3):
        reporter.report(message(number), FAILURE)
    with move_on_after(0.01) as held_up:
        await reporter.keeps_up()
    assert held_up.cancelled_caught

    reporter.hold_up_nobody()
    reporter.report(message(4), FAILURE)

    with fail_after(8):
        await reporter.keeps_up()


async def test_a_reporter_that_is_cancelled_ends() -> None:
    """Also in the middle of a callback."""
    started = asyncio.Event()

    async def callback(message: Message, failure: Failure) -> None:
        started.set()
        await asyncio.sleep(60)

    reporter = Reporter(callback)
    reporter.report(message(), FAILURE)
    with fail_after(8):
        async with create_task_group() as tasks:
            tasks.start_soon(reporter.run)
            await eventually(started.is_set)
            tasks.cancel_scope.cancel()
