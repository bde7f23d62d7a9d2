from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from aioredismq import WrongLoopError
from aioredismq._host import Host, insist, outlast
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Callable


class Body:
    """What a host runs, step by step, and what it was seen doing."""

    def __init__(self) -> None:
        """Wait at each step for the test."""
        self.entered = asyncio.Event()
        self.may_be_ready = asyncio.Event()
        self.may_end = asyncio.Event()
        self.has_left = False
        self.before_ready: Exception | None = None
        self.after_ready: Exception | None = None
        self.farewell = 0.0
        self.fails_at_farewell = False

    async def __call__(self, ready: Callable[[], None]) -> None:
        """Wait for the test at each step."""
        self.entered.set()
        try:
            await self.may_be_ready.wait()
            if self.before_ready:
                raise self.before_ready
            ready()
            await self.may_end.wait()
            if self.after_ready:
                raise self.after_ready
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(self.farewell)
            self.has_left = True
            if self.fails_at_farewell:
                raise ValueError("at the end")


@pytest.fixture
async def body() -> Body:
    """A body that is ready at once and ends when told."""
    made = Body()
    made.may_be_ready.set()
    return made


async def test_a_started_body_runs_until_its_end_is_joined(body: Body) -> None:
    """Start returns once it is ready, join once it has ended."""
    host = Host("host", body)
    assert not host.is_running

    await host.start()

    assert host.is_running
    assert host.was_ready
    body.may_end.set()
    await host.join()
    assert not host.is_running
    assert host.error is None


async def test_start_waits_for_the_body_to_be_ready(body: Body) -> None:
    """What it owns is there when start returns."""
    body.may_be_ready.clear()
    host = Host("host", body)

    with anyio.move_on_after(0.02) as waited:
        await host.start()

    assert waited.cancelled_caught
    assert not host.was_ready


async def test_a_body_that_fails_before_it_is_ready_fails_the_start(body: Body) -> None:
    """Nothing is left running then."""
    body.before_ready = ValueError("no")
    host = Host("host", body)

    with pytest.raises(ValueError, match="no"):
        await host.start()

    assert not host.is_running
    assert not host.was_ready
    assert host.error is body.before_ready


async def test_a_body_that_ends_before_it_is_ready_ends_the_start() -> None:
    """Start does not wait for what will never be."""

    async def body(ready: Callable[[], None]) -> None:
        """Have nothing to do."""

    host = Host("host", body)

    await host.start()

    assert not host.was_ready
    await host.join()


async def test_a_later_error_is_raised_by_join(body: Body) -> None:
    """To each that asks, while waiting for the end alone raises nothing."""
    body.after_ready = ValueError("later")
    host = Host("host", body)
    await host.start()
    body.may_end.set()

    await host.ended()

    assert host.error is body.after_ready
    for _ in range(2):
        with pytest.raises(ValueError, match="later"):
            await host.join()


async def test_a_cancelled_body_is_no_error(body: Body) -> None:
    """Whoever asked it to end now is told that it has."""
    host = Host("host", body)
    await host.start()

    host.cancel()

    await host.join()
    assert body.has_left
    assert host.error is None


async def cancel_start(host: Host, body: Body, times: int = 1) -> None:
    """Start a host and cancel that as soon as its body runs."""
    starting = asyncio.ensure_future(host.start())
    await body.entered.wait()
    for _ in range(times):
        starting.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await starting


async def test_a_cancelled_start_leaves_nothing_running(body: Body) -> None:
    """It cancels the body and waits for its clean-up."""
    body.may_be_ready.clear()
    body.farewell = 0.03
    host = Host("host", body)

    await cancel_start(host, body)

    assert body.has_left
    assert not host.is_running


async def test_a_start_that_is_cancelled_twice_does_not_wait(body: Body) -> None:
    """Whoever is in such a hurry leaves the body to its own clean-up."""
    body.may_be_ready.clear()
    body.farewell = 0.3
    host = Host("host", body)

    await cancel_start(host, body, times=2)

    assert not body.has_left
    await host.ended()
    assert body.has_left


async def test_a_clean_up_that_fails_under_a_cancelled_start_is_no_noise(
    body: Body,
) -> None:
    """Its error is seen with the host; asyncio has nothing to complain about at the exit."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: complaints.append(context)
    )
    body.may_be_ready.clear()
    body.fails_at_farewell = True

    await cancel_start(Host("host", body), body)

    for _ in range(3):
        await asyncio.sleep(0)
        gc.collect()
    assert not complaints


async def test_an_error_that_was_waited_for_is_no_noise_either(body: Body) -> None:
    """Whoever waited knows where to look for it."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: complaints.append(context)
    )
    body.fails_at_farewell = True
    body.may_end.set()

    async def run() -> None:
        host = Host("host", body)
        await host.start()
        await host.ended()
        assert host.error is not None

    await run()

    for _ in range(3):
        await asyncio.sleep(0)
        gc.collect()
    assert not complaints


async def test_an_error_that_nobody_waited_for_is_reported(body: Body) -> None:
    """By asyncio, as that of any other task: it must not get lost."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: complaints.append(context)
    )
    body.fails_at_farewell = True

    async def run() -> None:
        await Host("host", body).start()
        body.may_end.set()
        await asyncio.sleep(0.01)

    await run()

    for _ in range(3):
        await asyncio.sleep(0)
        gc.collect()
    assert len(complaints) == 1


async def test_another_loop_cannot_wait_for_the_end(body: Body) -> None:
    """It would wait for ever: there the end is never seen."""
    host = Host("host", body)
    await host.start()

    for call in (host.ended, host.join):
        with pytest.raises(WrongLoopError, match="only there"):
            await anyio.to_thread.run_sync(lambda call=call: asyncio.run(call()))

    body.may_end.set()
    await host.join()


async def test_who_waits_for_the_end_may_be_cancelled(body: Body) -> None:
    """The body goes on: it belongs to its host, not to who waits."""
    host = Host("host", body)
    await host.start()

    with anyio.move_on_after(0.01):
        await host.join()

    assert host.is_running
    body.may_end.set()
    await host.join()


async def test_it_may_be_entered_in_one_task_and_left_in_another() -> None:
    """What a task group forbids: the reason for having hosts."""
    end = asyncio.Event()

    async def body(ready: Callable[[], None]) -> None:
        """Own a task group in between."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            ready()
            await end.wait()
            tasks.cancel_scope.cancel()

    host = Host("host", body)
    await asyncio.ensure_future(host.start())
    end.set()

    await asyncio.ensure_future(host.join())

    assert not host.is_running


async def test_a_host_that_was_never_started_has_ended(body: Body) -> None:
    """Joining or cancelling it is no mistake."""
    host = Host("host", body)

    host.cancel()
    await host.ended()
    await host.join()

    assert not host.is_running
    assert host.error is None


async def test_its_task_is_named_for_who_looks_at_tasks(body: Body) -> None:
    """So that a dump of all tasks can be read."""
    host = Host("aioredismq something", body)

    await host.start()

    assert "aioredismq something" in {task.get_name() for task in asyncio.all_tasks()}
    body.may_end.set()
    await host.join()


async def test_it_knows_that_it_was_cancelled(body: Body) -> None:
    """At once, before its body hears of it."""
    host = Host("host", body)
    assert not host.is_cancelled
    await host.start()
    assert not host.is_cancelled

    host.cancel()

    assert host.is_cancelled
    await host.ended()


async def test_what_outlasts_others_is_ended_by_its_owner() -> None:
    """A cancellation by anybody else begins it anew; its errors are its owner's."""
    begun: list[asyncio.Task[None] | None] = []

    async def work() -> None:
        begun.append(asyncio.current_task())
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(outlast, work, tasks.cancel_scope)
        for times in (1, 2, 3):
            await eventually(lambda times=times: len(begun) == times)
            assert begun[-1] is not None
            begun[-1].cancel()
        await eventually(lambda: len(begun) == 4)
        tasks.cancel_scope.cancel()

    assert len(begun) == 4

    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await outlast(fail, anyio.CancelScope())


async def test_who_cancels_what_outlasts_him_is_heard() -> None:
    """So that its owner can end it: whoever has cancelled it may wait for that."""
    async with anyio.create_task_group() as tasks:
        before = asyncio.all_tasks()
        scope = tasks.cancel_scope
        tasks.start_soon(outlast, anyio.sleep_forever, scope, scope.cancel)
        [task] = asyncio.all_tasks() - before
        await asyncio.sleep(0)

        task.cancel()

        with anyio.fail_after(8):
            await asyncio.wait({task})


async def test_what_is_insisted_on_is_done_before_the_cancellation_is_passed_on() -> (
    None
):
    """However often it is cancelled, and however."""
    begun = 0
    may_end = asyncio.Event()
    done = False

    async def clean_up() -> None:
        nonlocal begun, done
        begun += 1
        await may_end.wait()
        done = True

    async def work() -> None:
        await insist(clean_up)
        await asyncio.sleep(0)
        raise AssertionError("not reached")

    task = asyncio.ensure_future(work())
    for times in (1, 2, 3):
        await eventually(lambda times=times: begun == times)
        task.cancel()
    await eventually(lambda: begun == 4)
    may_end.set()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert done

    done = False
    may_end.clear()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        await eventually(lambda: begun == 5)
        tasks.cancel_scope.cancel()
        asyncio.get_running_loop().call_later(0.01, may_end.set)
    assert done
    assert begun == 5
