from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
import pytest
from anyio import to_thread

from aioredismq import Consumer, ConsumerConfig, Message, RedisMessageQueue
from tests.looking import AT_ONCE, NOTHING, Handled, Left, Messages, hand_back, left
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support import Client, Deployment


class Work:
    """A handler that takes a little time, and may be cut off; it notes what it has finished."""

    def __init__(self) -> None:
        """Nothing is done yet."""
        self.finished: list[int] = []
        self.attempts: set[int] = set()

    async def __call__(self, body: int, message: Message) -> None:
        """Handle one."""
        self.attempts.add(message.attempt)
        await anyio.sleep(random.choice([0.0, 0.001, 0.003]))
        self.finished.append(body)


def reached(seen: list[Any], count: int) -> bool:
    """Say whether so much was seen."""
    return len(seen) >= count


async def turns(count: int) -> None:
    """Let the event loop turn so many times."""
    for _ in range(count):
        await asyncio.sleep(0)


Moment: TypeAlias = "Callable[[], Awaitable[object]]"

# Moments of a consumer's life: connecting, looking into the lane, reading, handling, idle.
MOMENTS: list[Moment] = [
    *[lambda count=count: turns(count) for count in (0, 1, 3, 10, 40)],  # type: ignore[misc]
    *[lambda: anyio.sleep(random.uniform(0.0, 0.02)) for _ in range(9)],
]


async def consume_until(queue: RedisMessageQueue, work: Work, moment: Moment) -> None:
    """Cancel once."""
    task = asyncio.create_task(queue.consume(work, concurrency=3))
    await moment()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def consume_until_twice(
    queue: RedisMessageQueue, work: Work, moment: Moment
) -> None:
    """Cancel, and again soon after."""
    task = asyncio.create_task(queue.consume(work, concurrency=3))
    await moment()
    task.cancel()
    await turns(random.choice([0, 1, 5, 20, 100]))
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def consume_until_often(
    queue: RedisMessageQueue, work: Work, moment: Moment
) -> None:
    """Cancel again and again, as somebody does who has no patience."""
    task = asyncio.create_task(queue.consume(work, concurrency=3))
    await moment()
    while not task.done():
        task.cancel()
        await anyio.sleep(0.0005)
    with suppress(asyncio.CancelledError):
        await task


async def consume_in_scope(
    queue: RedisMessageQueue, work: Work, moment: Moment
) -> None:
    """Cancel the scope of a task group around it."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: queue.consume(work, concurrency=3))
        await moment()
        tasks.cancel_scope.cancel()


async def consume_within(queue: RedisMessageQueue, work: Work, moment: Moment) -> None:
    """Give it a time limit."""
    begun = asyncio.get_running_loop().time()
    await moment()
    passed = asyncio.get_running_loop().time() - begun
    with suppress(TimeoutError):
        async with asyncio.timeout(passed):
            await queue.consume(work, concurrency=3)


async def in_a_block(queue: RedisMessageQueue, work: Work, moment: Moment) -> None:
    """Cancel the task that has a consumer's block open."""

    async def application() -> None:
        async with Consumer(queue, work, ConsumerConfig(concurrency=3)):
            await asyncio.sleep(60)

    task = asyncio.create_task(application())
    await moment()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def in_the_background(
    queue: RedisMessageQueue, work: Work, moment: Moment
) -> None:
    """Cancel the task that has `consuming()` open, twice."""
    own = RedisMessageQueue(queue.name, queue.channel.connection)
    own.handler(concurrency=3)(work)

    async def application() -> None:
        async with own.consuming():
            await asyncio.sleep(60)

    task = asyncio.create_task(application())
    await moment()
    task.cancel()
    await turns(random.choice([0, 5, 100]))
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def pulling(queue: RedisMessageQueue, work: Work, moment: Moment) -> None:
    """Cancel the task that pulls."""

    async def application() -> None:
        async with Consumer(queue, None, ConsumerConfig(concurrency=3)) as consumer:
            async for message in consumer:
                async with message:
                    await work(message.body, message)

    task = asyncio.create_task(application())
    await moment()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


WAYS = [
    consume_until,
    consume_until_twice,
    consume_until_often,
    consume_in_scope,
    consume_within,
    in_a_block,
    in_the_background,
    pulling,
]


async def stop_at_every_moment(
    queue: RedisMessageQueue,
    look: Client,
    consume: Callable[[Work, Moment], Awaitable[None]],
) -> None:
    """Check that nothing is pending and no name is left; the next has the rest at once, untried."""
    stream = queue._require_stream()
    group = f"{queue.name}_group"
    for moment in MOMENTS:
        await queue.produce_many(range(12))
        await hand_back(stream, look, group, 6)
        work = Work()

        await consume(work, moment)

        after = await left(look, queue.name)
        assert (after.pending, after.pending_lane, after.names) == (0, 0, ())
        assert after.stream + after.undelivered_lane == 12 - len(work.finished)
        assert queue.channel.connection._readers == []
        rest = Handled()
        async with Consumer(queue, rest):
            await rest.until(12 - len(work.finished))
        assert sorted(work.finished + rest.bodies) == list(range(12))
        assert work.attempts <= {1}
        assert await left(look, queue.name) == NOTHING


@pytest.mark.parametrize("way", WAYS)
async def test_cancelling_at_any_moment_hands_everything_back(
    queue: RedisMessageQueue, look: Client, way: Callable[..., Awaitable[None]]
) -> None:
    """Whatever way it is cancelled."""
    await stop_at_every_moment(queue, look, partial(way, queue))


async def forgets(consuming: asyncio.Task[None]) -> None:
    """Leave the task to the end of the program."""


async def cancels(consuming: asyncio.Task[None]) -> None:
    """Cancel the task and do not wait for it."""
    consuming.cancel()


async def cancels_a_little_before(consuming: asyncio.Task[None]) -> None:
    """Cancel the task, and let the program end while it hands back."""
    consuming.cancel()
    await turns(random.choice([1, 2, 3, 5, 8]))


# What anyio was given and has not begun when it is cancelled.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("leave", [forgets, cancels, cancels_a_little_before])
async def test_the_end_of_the_program_at_any_moment_hands_everything_back(
    queue: RedisMessageQueue,
    look: Client,
    deployment: Deployment,
    leave: Callable[[asyncio.Task[None]], Awaitable[None]],
) -> None:
    """`asyncio.run` cancels every task that its program has left, those inside of ours as well."""
    loop = type(asyncio.get_running_loop())

    async def program(work: Work, moment: Moment) -> None:
        own = RedisMessageQueue(queue.name, deployment.url)
        await own.initialize()
        consuming = asyncio.create_task(own.consume(work, concurrency=3))
        await moment()
        await leave(consuming)

    def run(work: Work, moment: Moment) -> None:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(program(work, moment))

    async def consume(work: Work, moment: Moment) -> None:
        await to_thread.run_sync(run, work, moment)

    await stop_at_every_moment(queue, look, consume)


async def test_a_stopped_consumer_hands_back_at_once(
    queue: RedisMessageQueue, look: Client
) -> None:
    """What it had not started is handled by another while it still finishes its own."""
    slow = Handled()
    slow.gate = asyncio.Event()
    quick = Messages()
    async with Consumer(queue, slow, ConsumerConfig(concurrency=2)) as first:
        await queue.produce_many(range(2))
        await slow.until(2)
        assert first._assembly is not None
        first._assembly._deliver(
            []
        )  # nothing read ahead yet: the handlers are too slow
        await queue.produce_many(range(2, 10))
        async with Consumer(queue, quick), anyio.create_task_group() as tasks:
            tasks.start_soon(first.stop)
            await quick.until(8)
            assert first.is_running
            slow.gate.set()

    assert sorted(message.body for message in quick.seen) == list(range(2, 10))
    assert {message.attempt for message in quick.seen} == {1}
    assert await left(look, queue.name) == NOTHING


async def test_an_attempt_that_was_cut_off_does_not_count(
    queue: RedisMessageQueue, look: Client
) -> None:
    """However often deployments cut it off: it was not the message's fault."""
    seen: list[int] = []

    async def handler(message: Message) -> None:
        seen.append(message.attempt)
        await anyio.sleep(60)

    await queue.produce("long")
    config = ConsumerConfig(shutdown_timeout=0, max_attempts=2)
    for times in range(1, 5):
        async with Consumer(queue, handler, config):
            await eventually(partial(reached, seen, times))

    assert seen == [1, 1, 1, 1]
    assert await left(look, queue.name) == Left(undelivered_lane=1)


async def test_an_attempt_that_failed_before_still_counts_after_a_hand_back(
    queue: RedisMessageQueue,
) -> None:
    """Handing back changes nothing of a message's history."""
    seen: list[tuple[str, int]] = []

    async def handler(message: Message) -> None:
        seen.append((message.id, message.attempt))
        if message.attempt == 1:
            raise ValueError("first")
        await anyio.sleep(60)

    message_id = await queue.produce("hello")
    config = ConsumerConfig(shutdown_timeout=0, retry=AT_ONCE)
    for times in (2, 3):
        async with Consumer(queue, handler, config):
            await eventually(partial(reached, seen, times))

    assert seen == [(message_id, 1), (message_id, 2), (message_id, 2)]


async def test_many_unstarted_messages_go_back_and_come_again(
    queue: RedisMessageQueue, look: Client
) -> None:
    """Hundreds that were read ahead for handlers that were fast, until one was not."""
    gate = asyncio.Event()
    work: list[int] = []

    async def handler(body: int) -> None:
        if body == 3000:
            gate.set()
            await anyio.sleep(60)
        work.append(body)

    await queue.produce_many(range(3500))
    config = ConsumerConfig(concurrency=1, shutdown_timeout=0)
    async with Consumer(queue, handler, config):
        with anyio.fail_after(50):
            await gate.wait()
    after = await left(look, queue.name)
    assert (after.pending, after.pending_lane, after.names) == (0, 0, ())

    rest = Handled()
    async with Consumer(queue, rest):
        await rest.until(500)

    assert sorted(work + rest.bodies) == list(range(3500))
    assert await left(look, queue.name) == NOTHING


async def test_consumers_that_come_and_go_lose_nothing(
    queue: RedisMessageQueue, look: Client
) -> None:
    """As in a rolling deployment, under load."""
    done: dict[int, int] = {}

    async def handler(body: int) -> None:
        await anyio.sleep(0.001)
        done[body] = done.get(body, 0) + 1

    async def come_and_go() -> None:
        for _ in range(10):
            async with Consumer(queue, handler, ConsumerConfig(concurrency=4)):
                await anyio.sleep(random.uniform(0.01, 0.05))

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(come_and_go)
        for start in range(0, 600, 50):
            await queue.produce_many(range(start, start + 50))
            await anyio.sleep(0.005)
    # On a busy machine none of them may have lived long enough to do much.
    async with Consumer(queue, handler, ConsumerConfig(concurrency=4)):
        await eventually(lambda: len(done) == 600)

    assert set(done.values()) == {1}
    assert await left(look, queue.name) == NOTHING
