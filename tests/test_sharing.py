"""Many queues, producers and consumers on one connection, or on a client that stays its owner's."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
import textwrap
from collections import defaultdict
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import redis.asyncio as redis
from redis.asyncio.sentinel import Sentinel

from aioredismq import (
    Connection,
    Consumer,
    ConsumerConfig,
    Message,
    MessageQueueError,
    PoolTooSmallError,
    Producer,
    QueueDeletedError,
    RedisMessageQueue,
    WrongLoopError,
    consuming,
)
from aioredismq import run as run_all
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from redis.asyncio import Redis

    from aioredismq.testing import ClusterNodes, SentinelSet
    from tests.support import Client


@pytest.fixture
def label() -> str:
    """What the connections of one test call themselves."""
    return f"c{secrets.token_hex(4)}"


@pytest.fixture
def named(url: str, label: str) -> str:
    """The server's URL for connections with that name."""
    return f"{url}?client_name={label}"


@pytest.fixture
def open_ones(client: Redis, label: str) -> Callable[[], Awaitable[int]]:
    """Count the connections of this test on the server."""

    async def count() -> int:
        known = await client.client_list()
        return sum(each["name"] == label for each in known)

    return count


@pytest.fixture(autouse=True)
async def clean(client: Redis, name: str) -> AsyncIterator[None]:
    """Remove what the queues of a test have left."""
    yield
    keys = [key async for key in client.scan_iter(f"*{name}*")]
    if keys:
        await client.delete(*keys)


async def handle(body: object) -> None:
    """Have nothing to do."""


# One connection of ours.


async def test_many_queues_and_consumers_share_one_connection(
    named: str, name: str, open_ones: Callable[[], Awaitable[int]]
) -> None:
    """One wire for commands, one for the bell, and one for each blocked read."""
    handled: dict[str, list[object]] = defaultdict(list)

    async def remember(body: object, message: Message) -> None:
        handled[f"{message.queue}/{message.group}"].append(body)

    connection = Connection(named)
    queues = [RedisMessageQueue(f"{name}-{number}", connection) for number in range(4)]
    for queue in queues:
        for group in ("a", "b"):
            queue.handler(group=group)(remember)

    async with AsyncExitStack() as stack:
        for queue in queues:
            await stack.enter_async_context(queue)
        await eventually(lambda: is_so(open_ones, 1))
        async with consuming(*queues), Producer(queues[0]) as producer:
            await asyncio.gather(
                *(queue.produce(n) for queue in queues for n in range(1, 20)),
                producer.produce(0),
                queues[1].produce_many(range(20, 40)),
            )
            await eventually(
                lambda: sum(map(len, handled.values())) == 2 * (4 * 19 + 1 + 20)
            )
            await eventually(lambda: is_so(open_ones, 1 + 1 + 8))

    assert {
        each: sorted(map(int, map(str, bodies))) for each, bodies in handled.items()
    } == {
        f"{queue.name}/{group}": list(range(0 if at == 0 else 1, 40 if at == 1 else 20))
        for at, queue in enumerate(queues)
        for group in ("a", "b")
    }
    await eventually(lambda: is_so(open_ones, 0))


async def is_so(count: Callable[[], Awaitable[int]], expected: int) -> bool:
    """Say whether there are so many."""
    return await count() == expected


async def test_a_queue_that_closes_does_not_disturb_the_others(
    named: str, name: str
) -> None:
    """The connection stays for as long as anyone uses it."""
    connection = Connection(named)
    first = RedisMessageQueue(f"{name}-1", connection)
    second = RedisMessageQueue(f"{name}-2", connection)
    handled: list[object] = []
    second.handler(handled.append)

    async with second, second.consuming():
        async with first:
            await first.produce(1)
        await second.produce(2)

        await eventually(lambda: handled == [2])


async def test_a_connection_that_is_kept_open_outlives_its_queues(
    named: str, name: str, open_ones: Callable[[], Awaitable[int]]
) -> None:
    """So that queues may come and go, as one for each request."""
    async with Connection(named) as connection:
        for number in range(3):
            async with RedisMessageQueue(f"{name}-{number}", connection) as queue:
                await queue.produce(1)
            assert await open_ones() == 1

    await eventually(lambda: is_so(open_ones, 0))


async def test_handlers_may_produce_to_the_queue_they_consume(
    named: str, name: str
) -> None:
    """And to others, on the same wire."""
    connection = Connection(named)
    first = RedisMessageQueue(f"{name}-1", connection)
    second = RedisMessageQueue(f"{name}-2", connection)
    handled: list[int] = []

    @first.handler
    async def pass_on(body: int) -> None:
        await second.produce(body)
        if body < 30:
            await first.produce(body + 1)

    second.handler(handled.append)

    async with first, second, consuming(first, second):
        await first.produce(0)
        await eventually(lambda: sorted(handled) == list(range(31)))


# A client of the caller's.


CLIENTS: dict[str, Callable[[str], redis.Redis]] = {
    "Redis()": lambda url: redis.Redis(port=int(url.rsplit(":", 1)[1].split("/")[0])),
    "from_url": redis.Redis.from_url,
    "RESP2": lambda url: redis.Redis.from_url(url, protocol=2),
    "RESP3": lambda url: redis.Redis.from_url(url, protocol=3),
    "decoding": lambda url: redis.Redis.from_url(
        url, decode_responses=True, protocol=2
    ),
    "decoding RESP3": lambda url: redis.Redis.from_url(
        url, decode_responses=True, protocol=3
    ),
    "blocking pool": lambda url: redis.Redis.from_pool(
        redis.BlockingConnectionPool.from_url(url, max_connections=4, timeout=2)
    ),
}


@pytest.fixture(params=[*CLIENTS, "sentinel", "cluster"])
async def lent(
    request: pytest.FixtureRequest,
    url: str,
    sentinel: SentinelSet,
    cluster: ClusterNodes,
) -> AsyncIterator[Client]:
    """A client as an application has one: as redis-py makes it, or with settings of its own."""
    watching: list[redis.Redis] = []
    made: Client
    if request.param == "sentinel":
        asked = Sentinel(sentinel.addresses)
        watching = asked.sentinels
        made = asked.master_for(sentinel.service)
    elif request.param == "cluster":
        made = redis.RedisCluster.from_url(cluster.url)
    else:
        made = CLIENTS[request.param](url)
    yield made
    for each in (made, *watching):
        await each.aclose()


def is_decoding(client: Client) -> bool:
    """Say whether its replies are text."""
    return bool(client.get_connection_kwargs().get("decode_responses"))


async def test_a_lent_client_does_everything(lent: Client, name: str) -> None:
    """Whatever protocol it speaks, and whether it decodes; bytes that are no text come whole."""
    handled: list[tuple[object, object]] = []
    queue = RedisMessageQueue(name, lent)

    @queue.handler
    async def remember(body: bytes, message: Message) -> None:
        if body == b"again" and message.attempt == 1:
            raise ValueError("once more")
        handled.append((body, message.headers.get("who")))

    async with queue:
        await queue.produce(b"\xff\x00", headers={"who": "é"})
        await queue.produce(b"again")
        assert [record.body for record in await queue.records()] == [
            b"\xff\x00",
            b"again",
        ]
        async with queue.consuming():
            await eventually(lambda: len(handled) == 2)
        [group] = await queue.groups()
        assert (group.name, group.pending, group.consumers) == (f"{name}_group", 0, 0)
        assert await queue.delete()

    assert handled == [(b"\xff\x00", "é"), (b"again", None)]


async def test_a_lent_client_stays_its_owners(lent: Client, name: str) -> None:
    """It is never closed, answers as it always did, and has all of its connections back."""
    for _ in range(3):
        queue = RedisMessageQueue(name, lent)
        queue.handler(handle)
        async with queue:
            await queue.produce(1)
            async with queue.consuming():
                assert await lent.set(name + "-own", "mine")

    expected = "mine" if is_decoding(lent) else b"mine"
    answers = await asyncio.gather(*(lent.get(name + "-own") for _ in range(4)))
    assert answers == [expected] * 4
    await lent.delete(name + "-own")
    async with RedisMessageQueue(name, lent) as queue:
        await queue.delete()


async def test_queues_on_one_client_share_its_pool(url: str, name: str) -> None:
    """What they need together is counted together."""
    async with redis.Redis.from_url(url, max_connections=5) as client:
        queues = [RedisMessageQueue(f"{name}-{number}", client) for number in range(3)]
        for queue in queues:
            queue.handler(handle)
            await queue.initialize()

        async with consuming(*queues[:2]):
            with pytest.raises(PoolTooSmallError, match="at least 6"):
                await queues[2].consume(handle)

        async with consuming(*queues[1:]):
            assert await client.ping()
        for queue in queues:
            await queue.close()


# Pools that are too small.


@pytest.mark.parametrize(("connections", "consumers"), [(2, 1), (3, 2), (2, 4)])
async def test_a_pool_too_small_is_refused_at_the_start(
    named: str,
    name: str,
    open_ones: Callable[[], Awaitable[int]],
    connections: int,
    consumers: int,
) -> None:
    """With the number that is needed; nothing was started."""
    connection = Connection(named, max_connections=connections)
    queues = [RedisMessageQueue(f"{name}-{n}", connection) for n in range(consumers)]
    for queue in queues:
        queue.handler(handle)
    needed = consumers + 2

    for start in (consuming_them, run_all):
        with pytest.raises(PoolTooSmallError) as caught:
            await start(*queues)
        assert str(caught.value) == (
            f"pool has {connections} connections, this application needs at least {needed}: "
            f"pass max_connections={needed}"
        )

    await eventually(lambda: is_so(open_ones, 0))
    assert not any(queue.is_initialized for queue in queues)


async def consuming_them(*queues: RedisMessageQueue) -> None:
    """Handle in the background of nothing."""
    async with consuming(*queues):
        pass


async def test_one_consumer_too_many_is_refused_alone(named: str, name: str) -> None:
    """Those that run go on; when one has ended, another may start."""
    connection = Connection(named, max_connections=4)
    handled: list[object] = []
    queue = RedisMessageQueue(name, connection)
    queue.handler(handled.append)
    async with (
        queue,
        queue.consuming(),
        Consumer(queue, handle, ConsumerConfig(group="b")),
    ):
        for _ in range(2):
            with pytest.raises(PoolTooSmallError, match="at least 5"):
                await Consumer(queue, handle, ConsumerConfig(group="c")).start()

        await queue.produce(1)
        await eventually(lambda: handled == [1])

    async with (
        queue,
        queue.consuming(),
        Consumer(queue, handle, ConsumerConfig(group="b")),
    ):
        pass


async def test_a_pool_that_is_just_large_enough_works(named: str, name: str) -> None:
    """Also while connections break and are made again."""
    connection = Connection(named, max_connections=3)
    queue = RedisMessageQueue(name, connection)
    handled: list[object] = []
    queue.handler(handled.append)
    async with queue, queue.consuming():
        for number in range(20):
            await queue.produce(number)
        await eventually(lambda: len(handled) == 20)


# Nothing is left open.


@pytest.mark.parametrize("ending", ["leaving", "cancelling", "failing", "not starting"])
async def test_no_connection_is_left_open(
    named: str,
    name: str,
    client: Redis,
    open_ones: Callable[[], Awaitable[int]],
    ending: str,
) -> None:
    """However it ends."""
    queue = RedisMessageQueue(name, named)
    queue.handler(handle)
    match ending:
        case "leaving":
            async with queue, queue.consuming():
                await queue.produce(1)
        case "cancelling":
            with anyio.move_on_after(0.1):
                await queue.run()
        case "failing":
            running = asyncio.ensure_future(queue.run())
            await eventually(lambda: queue.is_initialized)
            await queue.delete()
            with pytest.raises(QueueDeletedError):
                await asyncio.wait_for(running, 8)
        case _:
            await client.set(name, "no queue")
            with pytest.raises(MessageQueueError):
                await queue.run()

    assert not queue.is_initialized
    await eventually(lambda: is_so(open_ones, 0))


async def test_a_start_that_is_given_up_leaves_nothing_open(
    named: str, name: str, open_ones: Callable[[], Awaitable[int]]
) -> None:
    """At whichever moment it is cancelled."""
    for step in range(12):
        queue = RedisMessageQueue(name, named)
        queue.handler(handle)
        with anyio.move_on_after(step * 0.001):
            async with queue.consuming():
                await anyio.sleep(0.003)

        await eventually(lambda: is_so(open_ones, 0))


# Loops and forks.


async def elsewhere(call: Callable[[], Awaitable[Any]]) -> Any:
    """Run on another loop, in another thread."""

    async def main() -> Any:
        async with asyncio.timeout(8):
            return await call()

    return await anyio.to_thread.run_sync(lambda: asyncio.run(main()))


CALLS: dict[str, Callable[[RedisMessageQueue], Awaitable[Any]]] = {
    "initialize": lambda queue: queue.initialize(),
    "produce": lambda queue: queue.produce(1),
    "produce_many": lambda queue: queue.produce_many([1]),
    "consume": lambda queue: queue.consume(handle),
    "run": lambda queue: queue.run(),
    "records": lambda queue: queue.records(),
    "groups": lambda queue: queue.groups(),
    "delete": lambda queue: queue.delete(),
    "close": lambda queue: queue.close(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_second_loop_is_told_what_is_wrong(
    named: str, name: str, call: Callable[[RedisMessageQueue], Awaitable[Any]]
) -> None:
    """Whatever is called on it, while it consumes on the first; that goes on."""
    queue = RedisMessageQueue(name, named)
    handled: list[object] = []
    queue.handler(handled.append)
    async with queue, queue.consuming():
        with pytest.raises(WrongLoopError, match="another event loop"):
            await elsewhere(lambda: call(queue))

        await queue.produce("still here")
        await eventually(lambda: handled == ["still here"])


async def test_one_loop_after_the_other_is_no_mistake(named: str, name: str) -> None:
    """A queue that was closed may be opened anywhere."""
    queue = RedisMessageQueue(name, named)

    async def use() -> int:
        async with queue:
            await queue.produce(1)
            return len(await queue.records())

    assert await use() == 1
    assert await elsewhere(use) == 2
    assert await use() == 3


FORK = """
import asyncio, os, sys
from aioredismq import RedisMessageQueue

queue = RedisMessageQueue(sys.argv[2], sys.argv[1])

handled = asyncio.Event()

async def handle(body):
    print("handled", body, flush=True)
    handled.set()

queue.handler(handle)

CALLS = {
    "initialize": lambda: queue.initialize(),
    "produce": lambda: queue.produce(1),
    "consume": lambda: queue.consume(handle),
    "run": lambda: queue.run(),
    "close": lambda: queue.close(),
}

async def main():
    async with queue, queue.consuming():
        child = os.fork()
        if child == 0:
            for name, call in CALLS.items():
                try:
                    asyncio.run(asyncio.wait_for(call(), 2))
                except Exception as error:
                    print(name, type(error).__name__, error, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        await queue.produce("still here")
        await handled.wait()

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
async def test_a_fork_is_told_what_is_wrong(url: str, name: str) -> None:
    """Whatever the child calls, while the parent consumes; that goes on."""
    ran = await anyio.to_thread.run_sync(
        lambda: subprocess.run(
            [sys.executable, "-c", textwrap.dedent(FORK), url, name],
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )
    )

    *child, parent = ran.stdout.splitlines()
    assert len(child) == 5, ran.stderr
    for line in child:
        assert " WrongLoopError " in line
        assert "fork" in line
    assert parent == "handled still here"
