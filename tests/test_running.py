from __future__ import annotations

import asyncio
import signal
import threading
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

import pytest
from anyio import create_task_group, fail_after
from redis.asyncio import Redis

from aioredismq import (
    ConfigurationError,
    Connection,
    ConnectionLostError,
    PermissionDeniedError,
    PoolTooSmallError,
    RedisMessageQueue,
    consuming,
    run,
)
from tests.looking import NOTHING, Handled, Left, left
from tests.programs import Program
from tests.support import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from aioredismq.testing import RedisServer


# In the background of an application.


async def test_the_handlers_run_in_the_background_of_the_block(
    url: str, name: str, client: Redis
) -> None:
    """Entering opens the queue and starts them; leaving drains, and closes what it opened."""
    handled = Handled()
    queue = RedisMessageQueue(name, url)
    queue.handler(handled)

    async with queue.consuming():
        assert queue.is_initialized
        assert queue.health().healthy
        await queue.produce_many(range(20))
        await handled.until(20)

    assert not queue.is_initialized
    assert await left(client, name) == NOTHING


async def test_a_queue_that_was_open_stays_open(url: str, name: str) -> None:
    """Whoever opened it closes it."""
    queue = RedisMessageQueue(name, url)
    queue.handler(Handled())
    async with queue:
        async with queue.consuming():
            pass

        assert queue.is_initialized
        await queue.produce("hello")
        await queue.delete()


async def test_several_queues_and_groups_run_together(
    url: str, name: str, client: Redis
) -> None:
    """Each handler with its own consumer, on one connection."""
    connection = Connection(url)
    orders = RedisMessageQueue(f"{name}-orders", connection)
    mails = RedisMessageQueue(f"{name}-mails", connection)
    billing, shipping, sending = Handled(), Handled(), Handled()
    orders.handler(group="billing")(billing)
    orders.handler(group="shipping")(shipping)
    mails.handler(sending)

    async with consuming(orders, mails):
        await orders.produce_many(range(10))
        await mails.produce_many(range(5))
        await billing.until(10)
        await shipping.until(10)
        await sending.until(5)

    for queue, group in ((orders, "billing"), (orders, "shipping"), (mails, None)):
        assert await left(client, queue.name, group) == NOTHING


async def test_it_may_be_entered_in_one_task_and_left_in_another(
    url: str, name: str, client: Redis
) -> None:
    """As servers run lifespans, and pytest its fixtures."""
    handled = Handled()
    queue = RedisMessageQueue(name, url)
    queue.handler(handled)
    stack = AsyncExitStack()

    await asyncio.create_task(stack.enter_async_context(queue.consuming()))
    await queue.produce("hello")
    await handled.until(1)
    await asyncio.create_task(stack.aclose())

    assert not queue.is_initialized
    assert await left(client, name) == NOTHING


async def test_without_a_handler_there_is_nothing_to_run(url: str, name: str) -> None:
    """It says so, with the queues it looked at."""
    queue = RedisMessageQueue(name, url)

    for start in (consuming(queue), consuming()):
        with pytest.raises(ConfigurationError, match="no handler is registered"):
            await start.__aenter__()
    with pytest.raises(ConfigurationError, match=name):
        await queue.run()
    assert not queue.is_initialized


async def test_a_pool_too_small_for_all_starts_none(
    own_server: RedisServer, name: str
) -> None:
    """With the number that all of them need, not one more than there is."""
    queue = RedisMessageQueue(name, Connection(own_server.url, max_connections=4))
    for group in ("a", "b", "c"):
        queue.handler(group=group)(Handled())

    with pytest.raises(PoolTooSmallError, match="at least 5: pass max_connections=5"):
        await queue.consuming().__aenter__()

    assert not queue.is_initialized
    assert not any(consumer.is_running for consumer in queue.consumers)


async def test_a_server_that_is_away_is_one_clear_error(name: str) -> None:
    """At the start; nothing is left running."""
    queue = RedisMessageQueue(name, "redis://127.0.0.1:1/0")
    queue.handler(Handled())

    with fail_after(8), pytest.raises(ConnectionLostError):
        await queue.consuming().__aenter__()

    assert not queue.is_initialized


async def test_an_error_in_the_block_is_passed_on_after_the_drain(
    url: str, name: str, client: Redis
) -> None:
    """As it is."""
    handled = Handled()
    queue = RedisMessageQueue(name, url)
    queue.handler(handled)

    async def application() -> None:
        async with queue.consuming():
            await queue.produce("hello")
            await handled.until(1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await application()

    assert await left(client, name) == NOTHING


async def test_what_cannot_be_mended_is_raised_on_leaving(
    own_server: RedisServer, name: str
) -> None:
    """The application goes on meanwhile; `health()` shows it, and others are drained in order."""
    async with Redis.from_url(own_server.url, protocol=2) as admin:
        rights = ["on", ">secret", "~*", "&*", "+@all"]
        await admin.execute_command("ACL", "SETUSER", "app", *rights)
        url = own_server.url.replace("redis://", "redis://app:secret@")
        queue = RedisMessageQueue(name, url)
        queue.handler(Handled())

        async def application() -> None:
            async with queue.consuming():
                await admin.execute_command("ACL", "SETUSER", "app", "-xreadgroup")
                await admin.execute_command("CLIENT", "KILL", "USER", "app")
                await eventually(lambda: not queue.health().healthy)
                await eventually(lambda: any("has ended" in p for p in problems()))
                await queue.produce("still sending")

        def problems() -> tuple[str, ...]:
            return queue.health().problems

        with fail_after(20), pytest.raises(PermissionDeniedError, match="xreadgroup"):
            await application()

        assert not queue.is_initialized
        assert await admin.xlen(name) == 1


async def test_cancelling_the_block_twice_hands_everything_back(
    url: str, name: str, client: Redis
) -> None:
    """The first drains, the second does not wait for running handlers any more."""
    slow, other = Handled(takes=60), Handled(takes=60)
    queue = RedisMessageQueue(name, url)
    queue.handler(group="slow", concurrency=2)(slow)
    queue.handler(group="other", concurrency=2)(other)

    async def application() -> None:
        async with queue.consuming():
            await queue.produce_many(range(5))
            await asyncio.sleep(60)

    task = asyncio.create_task(application())
    await slow.until(2)
    await other.until(2)

    task.cancel()
    await asyncio.sleep(0.02)
    assert not task.done()
    assert slow.running == 2
    task.cancel()

    with fail_after(8), pytest.raises(asyncio.CancelledError):
        await task
    for group in ("slow", "other"):
        after = await left(client, name, group)
        assert (after.pending, after.pending_lane, after.names) == (0, 0, ())
    assert not queue.is_initialized


# As a process of its own, from within.


async def test_running_ends_with_what_cannot_be_mended(url: str, name: str) -> None:
    """A supervisor starts the process again, or says why not."""
    handled, other = Handled(), Handled()
    queue = RedisMessageQueue(name, url)
    queue.handler(group="billing")(handled)
    queue.handler(group="shipping")(other)
    errors: list[BaseException] = []

    async def running() -> None:
        try:
            await run(queue)
        except Exception as error:  # noqa: BLE001 -- looked at below
            errors.append(error)

    async with create_task_group() as tasks:
        tasks.start_soon(running)
        await eventually(lambda: queue.is_initialized)
        await queue.produce("hello")
        await handled.until(1)
        await other.until(1)
        await queue.destroy_group("billing")
        await eventually(lambda: bool(errors), limit=15)

    assert "billing" in str(errors[0])
    assert "deleted" in str(errors[0])
    assert not queue.is_initialized


async def test_cancelling_a_run_drains(url: str, name: str, client: Redis) -> None:
    """As the first signal does."""
    handled = Handled(takes=0.05)
    queue = RedisMessageQueue(name, url)
    queue.handler(handled)
    task = asyncio.create_task(queue.run())
    await eventually(lambda: queue.is_initialized)
    await queue.produce("hello")
    await handled.until(1)

    task.cancel()

    with fail_after(8), pytest.raises(asyncio.CancelledError):
        await task
    assert await left(client, name) == NOTHING


def test_running_outside_the_main_thread_does_without_signals(
    url: str, name: str
) -> None:
    """Whoever runs it there stops it by cancelling."""
    handled = Handled()
    ended: list[str] = []

    async def main() -> None:
        queue = RedisMessageQueue(name, url)
        queue.handler(handled)
        task = asyncio.create_task(queue.run())
        await eventually(lambda: queue.is_initialized)
        await queue.produce("hello")
        await handled.until(1)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        ended.append("in order")

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    thread.join(30)

    assert ended == ["in order"]


# As a process of its own, from outside.

PROGRAM = """
import asyncio, logging, sys
from aioredismq import RedisMessageQueue

logging.basicConfig(level="INFO", stream=sys.stdout, format="%(message)s")
name, url, takes, groups = sys.argv[1:]
queue = RedisMessageQueue(name, url)

def register(group, takes):
    @queue.handler(group=group, concurrency=2, shutdown_timeout=50)
    async def handler(body):
        print("started", group, body)
        await asyncio.sleep(takes)
        print("finished", group, body)

for at, group in enumerate(groups.split(",")):
    register(group, float(takes.split(",")[at]))

async def main():
    async with queue:
        print("ready")
        await queue.run()
    print("closed")

asyncio.run(main())
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A service, as a user would write it: it says what it starts and finishes."""
    path = tmp_path / "service.py"
    path.write_text(PROGRAM)
    return path


async def fill(url: str, name: str, groups: tuple[str, ...], count: int) -> None:
    """Store messages for these groups."""
    async with RedisMessageQueue(name, url, groups=groups) as queue:
        await queue.produce_many(range(count))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_drains(
    url: str, name: str, client: Redis, program: Path, number: signal.Signals
) -> None:
    """What runs may finish, the rest is handed back, and the exit code is 0."""
    await fill(url, name, ("billing",), 6)

    with Program(program, name, url, "2", "billing", env={}) as service:
        service.wait_until(lambda: started(service.lines) == 2)
        service.send(number)
        code = service.end(20)

    assert code == 0
    assert not service.errors
    assert "closed" in service.lines
    assert finished(service.lines) == started(service.lines) == 2
    after = await left(client, name, "billing")
    assert (after.pending, after.pending_lane, after.names) == (0, 0, ())
    assert after.stream + after.undelivered_lane == 4


@pytest.mark.parametrize(
    ("first", "second"),
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM)],
)
async def test_a_second_signal_cancels(
    url: str,
    name: str,
    client: Redis,
    program: Path,
    first: signal.Signals,
    second: signal.Signals,
) -> None:
    """What still runs is cut off and handed back, too."""
    await fill(url, name, ("billing",), 3)

    with Program(program, name, url, "60", "billing", env={}) as service:
        service.wait_until(lambda: started(service.lines) == 2)
        service.send(first)
        service.wait_until(lambda: any("draining" in line for line in service.lines))
        assert service.process.poll() is None
        service.send(second)
        code = service.end(20)

    assert code == 0
    assert finished(service.lines) == 0
    after = await left(client, name, "billing")
    assert (after.pending, after.pending_lane, after.names) == (0, 0, ())
    assert after.stream + after.undelivered_lane == 3


async def test_a_second_signal_cancels_also_when_one_consumer_has_ended(
    url: str, name: str, client: Redis, program: Path
) -> None:
    """Of two, one drains at once, and the other has something long to do."""
    await fill(url, name, ("quick", "slow"), 1)

    with Program(program, name, url, "0,60", "quick,slow", env={}) as service:
        service.wait_until(lambda: started(service.lines) == 2)
        service.send(signal.SIGTERM)

        async def one_is_left() -> bool:
            quick, slow = [await left(client, name, one) for one in ("quick", "slow")]
            return not quick.names and bool(slow.names)

        await eventually(one_is_left)
        service.send(signal.SIGTERM)
        code = service.end(20)

    assert code == 0
    assert "closed" in service.lines
    assert await left(client, name, "slow") == Left(undelivered_lane=1)


def started(lines: list[str]) -> int:
    """Count the handlers that began."""
    return sum(line.startswith("started") for line in lines)


def finished(lines: list[str]) -> int:
    """Count the handlers that ended by themselves."""
    return sum(line.startswith("finished") for line in lines)
