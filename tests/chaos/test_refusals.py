"""Servers that refuse: full, read-only, without replicas, loading, or for good."""

from __future__ import annotations

import asyncio
import random
import re
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from anyio.to_thread import run_sync
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from aioredismq import (
    AuthenticationError,
    Connection,
    Consumer,
    ConsumerConfig,
    ExponentialBackoff,
    MessageQueueError,
    PermissionDeniedError,
    RedisMessageQueue,
    RejectMessage,
    RetryMessage,
    ServerFullError,
    WrongKeyTypeError,
)
from aioredismq._keys import QueueKeys
from aioredismq.testing import FaultyLine, RedisServer
from tests.chaos.ledger import judge
from tests.chaos.load import CONFIG, VISIBILITY, under_load
from tests.looking import NOTHING, Handled, left
from tests.sending import stored
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from typing import TypeAlias

    Refusal: TypeAlias = Callable[
        [RedisServer, Redis], AbstractAsyncContextManager[None]
    ]

pytestmark = [pytest.mark.one_loop, pytest.mark.timeout(120)]


@pytest.fixture
def saving_server(server_path: Path | None) -> Iterator[RedisServer]:
    """A server for one test, which takes no writes once it could not save."""
    with RedisServer(server_path, args=("--save", "3600 1000000")) as server:
        yield server


@asynccontextmanager
async def full_memory(server: RedisServer, client: Redis) -> AsyncIterator[None]:
    """OOM."""
    await client.config_set("maxmemory", 1)
    yield
    await client.config_set("maxmemory", 0)


@asynccontextmanager
async def too_few_replicas(server: RedisServer, client: Redis) -> AsyncIterator[None]:
    """NOREPLICAS: reads of a group are writes, too."""
    await client.config_set("min-replicas-to-write", 1)
    yield
    await client.config_set("min-replicas-to-write", 0)


@asynccontextmanager
async def read_only(server: RedisServer, client: Redis) -> AsyncIterator[None]:
    """READONLY: the server follows another, as after a failover."""
    await client.replicaof("127.0.0.1", 1)
    yield
    await client.replicaof("NO", "ONE")


@asynccontextmanager
async def failing_disk(server: RedisServer, client: Redis) -> AsyncIterator[None]:
    """MISCONF: the last save has failed."""
    in_its_place = server.directory / "dump.rdb"
    in_its_place.unlink(missing_ok=True)
    in_its_place.mkdir()
    await _save(client, "err")
    yield
    in_its_place.rmdir()
    await _save(client, "ok")


async def _save(client: Redis, expected: str) -> None:
    await client.bgsave()

    async def is_so() -> bool:
        about = await client.info("persistence")
        return bool(about["rdb_last_bgsave_status"] == expected)

    await eventually(is_so)


REFUSALS = {
    "OOM": full_memory,
    "NOREPLICAS": too_few_replicas,
    "READONLY": read_only,
    "MISCONF": failing_disk,
}


def each(*briefly: str) -> list[Any]:
    """Give every refusal to a test, always those named, and the others when there is time."""
    return [
        pytest.param(
            refusal, id=code, marks=[] if code in briefly else pytest.mark.long
        )
        for code, refusal in REFUSALS.items()
    ]


# In microseconds for each thing loaded; every 1024 of them the server looks for clients.
SLOW_TO_LOAD = ("--appendfsync", "always", "--key-load-delay", "100")


async def _give_ballast(client: Redis, count: int) -> None:
    """Let the server have so many things to load when it starts again."""
    async with client.pipeline(transaction=False) as pipe:
        for _ in range(count):
            pipe.incr("ballast")
        await pipe.execute()


# Work goes on.


@pytest.mark.parametrize("refusal", each("OOM"))
async def test_what_is_refused_is_neither_lost_nor_done_twice(
    saving_server: RedisServer, name: str, refusal: Refusal, seed: int
) -> None:
    """For longer than a lease lasts: sends wait or raise, acknowledgements are kept."""
    async with (
        Redis.from_url(saving_server.url) as client,
        under_load(saving_server.url, name, seed=seed) as load,
    ):
        for length in (0.1, 1.5 * VISIBILITY):
            async with refusal(saving_server, client):
                await asyncio.sleep(length)
            await load.flows()

    async with Redis.from_url(saving_server.url) as client:
        verdict = await judge(load.ledger, client, name)
    assert verdict.holds(duplicates=0), verdict


@pytest.mark.long
async def test_a_loading_server_is_waited_for(
    server_path: Path | None, name: str, seed: int
) -> None:
    """Killed, and slow to read what it had written: it answers, but only that it loads."""
    with RedisServer(server_path, persistence=True, args=SLOW_TO_LOAD) as server:
        async with Redis.from_url(server.url) as client:
            await _give_ballast(client, 12_000)
            async with under_load(server.url, name, seed=seed) as load:
                await run_sync(server.kill)
                await run_sync(server.start)
                await load.flows()
        log = (server.directory / "server.log").read_text()
        took = re.findall(r"DB loaded from .*: ([\d.]+) seconds", log)
        assert max(map(float, took)) > 1
        async with Redis.from_url(server.url) as client:
            verdict = await judge(load.ledger, client, name)
    assert verdict.holds(duplicates=0), verdict


@pytest.mark.parametrize("refusal", each(*REFUSALS))
async def test_what_was_handled_meanwhile_is_acknowledged_later(
    saving_server: RedisServer, name: str, refusal: Refusal
) -> None:
    """Also what failed: its retry comes then. Nothing that runs is cancelled."""
    failures = 0

    async def handle(body: int) -> None:
        nonlocal failures
        if body == 0 and failures == 0:
            failures += 1
            await handled(body)
            raise LookupError
        await handled(body)

    handled = Handled()
    handled.gate = asyncio.Event()
    connection = Connection(saving_server.url, reply_timeout=1)
    async with (
        Redis.from_url(saving_server.url) as client,
        RedisMessageQueue(name, connection) as queue,
        Consumer(queue, handle, CONFIG) as consumer,
    ):
        await queue.produce_many(range(4))
        await handled.until(4)

        async with refusal(saving_server, client):
            handled.gate.set()
            await eventually(lambda: handled.running == 0)
            await asyncio.sleep(0.5)
        await handled.until(5)
        await eventually(lambda: consumer.held == 0)

        assert sorted(handled.bodies) == [0, 0, 1, 2, 3]
    async with Redis.from_url(saving_server.url) as client:
        assert await left(client, name) == NOTHING


# Batches.


@pytest.mark.parametrize("position", range(6))
async def test_a_refusal_at_any_position_of_a_run_of_batches(
    own_server: RedisServer, name: str, position: int
) -> None:
    """Its messages are not stored, the others are; sent anew, each is stored once."""
    async with (
        Redis.from_url(own_server.url) as client,
        RedisMessageQueue(name, own_server.url, max_batch=3) as queue,
    ):
        refused: list[int] = []
        for number in range(6):
            if number == position:
                await client.config_set("maxmemory", 1)
            sends = [queue.produce(3 * number + at) for at in range(3)]
            for at, answer in enumerate(
                await asyncio.gather(*sends, return_exceptions=True)
            ):
                if isinstance(answer, Exception):
                    assert isinstance(answer, ServerFullError)
                    refused.append(3 * number + at)
            await client.config_set("maxmemory", 0)

        assert refused == [3 * position, 3 * position + 1, 3 * position + 2]
        await queue.produce_many(refused)
        bodies = (await stored(client, name)).values()
        assert sorted(map(int, bodies)) == list(range(18))


async def _fill_and_free(
    client: Redis, chance: random.Random, over: asyncio.Event
) -> None:
    while not over.is_set():
        for maxmemory in (1, 0):
            await client.config_set("maxmemory", maxmemory)
            await asyncio.sleep(chance.random() * 0.004)
    await client.config_set("maxmemory", 0)


async def test_refusals_in_the_midst_of_many_sends(
    own_server: RedisServer, name: str, seed: int
) -> None:
    """Memory is full and free again, over and over, while hundreds of sends are under way."""
    chance = random.Random(seed)
    async with (
        Redis.from_url(own_server.url) as client,
        RedisMessageQueue(name, own_server.url, max_batch=4) as queue,
    ):
        refusals = 0

        async def send(body: int) -> None:
            nonlocal refusals
            await asyncio.sleep(chance.random() * 0.3)
            while True:
                try:
                    await queue.produce(body)
                except ServerFullError:
                    refusals += 1
                    await asyncio.sleep(chance.random() * 0.01)
                else:
                    return

        over = asyncio.Event()
        filling = asyncio.ensure_future(_fill_and_free(client, chance, over))
        sent = 0
        while refusals <= 20:  # how many meet a full memory is a matter of chance
            await asyncio.gather(*[send(body) for body in range(sent, sent + 600)])
            sent += 600
        over.set()
        await filling

        bodies = (await stored(client, name)).values()
        assert sorted(map(int, bodies)) == list(range(sent))


# Without haste.


@asynccontextmanager
async def held_up(url: str, name: str) -> AsyncIterator[asyncio.Event]:
    """Consume with everything to say: successes, retries and dead letters wait for a gate."""
    handled = Handled()
    handled.gate = asyncio.Event()

    async def handle(body: int) -> None:
        await handled(body)
        if body % 3:
            raise LookupError

    config = ConsumerConfig(
        concurrency=30,
        visibility_timeout=VISIBILITY,
        retry=ExponentialBackoff(initial=0),
        max_attempts=1,
    )
    queue = RedisMessageQueue(name, Connection(url, reply_timeout=1), produce_timeout=3)
    async with queue, Consumer(queue, handle, config) as consumer:
        await queue.produce_many(range(30))
        await handled.until(30)
        yield handled.gate
        await eventually(lambda: consumer.held == 0)


@pytest.mark.parametrize("refusal", each("READONLY"))
async def test_a_refusing_server_is_not_pestered(
    saving_server: RedisServer, name: str, refusal: Refusal, logged: list[str]
) -> None:
    """Commands and lines of log a second are bounded, however much is waiting to be said."""
    async with (
        Redis.from_url(saving_server.url) as client,
        held_up(saving_server.url, name) as gate,
    ):
        async with refusal(saving_server, client):
            gate.set()
            await asyncio.sleep(0.3)
            del logged[:]  # each failed message has said so
            before = await _commands(client)
            await asyncio.sleep(1.5)
            commands = await _commands(client) - before
            lines = len(logged)

        assert commands / 1.5 < 40
        assert lines / 1.5 < 4


class Sends:
    """Sends that wait, and others that come meanwhile: each is a batch of its own."""

    def __init__(self, queue: RedisMessageQueue) -> None:
        """Nothing is sent."""
        self._queue = queue
        self.all: list[asyncio.Future[str]] = []

    def add(self, count: int) -> None:
        """Send so many more."""
        following = range(len(self.all), len(self.all) + count)
        self.all += [asyncio.ensure_future(self._queue.produce(n)) for n in following]

    async def go_on(self, seconds: float) -> None:
        """Send more and more for so long."""
        for _ in range(round(seconds / 0.05)):
            self.add(5)
            await asyncio.sleep(0.05)

    async def assert_stored_once_in_order(self, client: Redis, name: str) -> None:
        """Find all of them as they were sent."""
        ids = await asyncio.gather(*self.all)
        assert await stored(client, name) == {
            message_id: str(body) for body, message_id in enumerate(ids)
        }
        assert ids == list(await stored(client, name))


async def test_a_loading_server_is_not_pestered_by_sends(
    server_path: Path | None, name: str
) -> None:
    """One of them asks, seldom, however many wait; once it passes they go, in order."""
    with RedisServer(server_path, persistence=True, args=SLOW_TO_LOAD) as server:
        async with Redis.from_url(server.url, single_connection_client=True) as client:
            await _give_ballast(client, 100_000)
        # No send gives up, however slowly the machine loads.
        async with RedisMessageQueue(
            name, server.url, max_batch=1, produce_timeout=60
        ) as queue:
            sends = Sends(queue)
            await run_sync(server.kill)
            sends.add(500)
            await run_sync(server.start)
            async with Redis.from_url(server.url) as client:
                await eventually(lambda: _has_been_asked(client))
                before = await _commands(client)
                await sends.go_on(1)
                commands = await _commands(client) - before
                about = await client.info("persistence")

                assert about["loading"] == 1
                assert commands < 15
                with suppress(ResponseError):  # of 6.2, which loads on as slowly
                    await client.config_set("key-load-delay", 0)
                await sends.assert_stored_once_in_order(client, name)


async def _has_been_asked(client: Redis) -> bool:
    """Say whether the server has been sent a batch since it was started."""
    return "cmdstat_evalsha" in await client.info("commandstats")


async def test_a_busy_server_is_not_pestered_by_sends(
    own_server: RedisServer, name: str
) -> None:
    """Somebody's endless script refuses them; when it is killed they go at once, in order."""
    async with (
        Redis.from_url(own_server.url) as client,
        Redis.from_url(own_server.url) as somebody,
        RedisMessageQueue(name, own_server.url, max_batch=1) as queue,
    ):
        await client.config_set("lua-time-limit", 1)
        before = await _commands(client)
        endless = asyncio.ensure_future(somebody.eval("while true do end", 0))
        await eventually(lambda: _is_busy(client))
        sends = Sends(queue)
        await sends.go_on(0.1)
        sends.add(500)
        await sends.go_on(1.5)
        await client.script_kill()
        killed = time.monotonic()

        await asyncio.wait(sends.all)

        # Half a second, on a quiet machine; minutes, if each asked by itself.
        assert time.monotonic() - killed < 15
        with pytest.raises(ResponseError):
            await endless
        refused = await _commands(client) - before - len(sends.all)
        assert refused < 25
        await sends.assert_stored_once_in_order(client, name)


async def _is_busy(client: Redis) -> bool:
    """Say whether the server refuses everything because of a script."""
    try:
        await client.ping()
    except ResponseError as error:
        return "BUSY" in str(error)
    return False


async def test_acknowledgements_that_are_refused_are_gathered(
    saving_server: RedisServer, name: str
) -> None:
    """Handlers end one after the other: there is one question now and then for all of them."""
    ended = 0

    async def handle(body: int) -> None:
        nonlocal ended
        await may_end.wait()
        await asyncio.sleep(body * 0.015)
        ended += 1

    may_end = asyncio.Event()
    config = ConsumerConfig(concurrency=100, visibility_timeout=30)
    async with (
        Redis.from_url(saving_server.url) as client,
        RedisMessageQueue(name, saving_server.url) as queue,
        Consumer(queue, handle, config) as consumer,
    ):
        await queue.produce_many(range(100))
        await eventually(lambda: consumer.held == 100)
        async with too_few_replicas(saving_server, client):
            may_end.set()
            before = await _commands(client)
            await eventually(lambda: ended == 100)
            commands = await _commands(client) - before
        await eventually(lambda: consumer.held == 0)

    assert commands < 1.5 * 40


async def _commands(client: Redis) -> int:
    """Count what clients have sent; what scripts call in turn is not counted."""
    stats = await client.info("commandstats")
    return sum(
        about["calls"] + about.get("rejected_calls", 0)
        for name, about in stats.items()
        if re.match(r"cmdstat_(eval|client|hello|xreadgroup|auth|select)", name)
    )


@pytest.mark.parametrize(
    "fault", ["cut", pytest.param("black_hole", marks=pytest.mark.long)]
)
async def test_an_unreachable_server_is_not_pestered(
    url: str, name: str, fault: str, logged: list[str]
) -> None:
    """Neither by connections nor in the log, and with a producer that goes on sending."""
    async with FaultyLine(url) as line, held_up(line.url, name) as gate:
        getattr(line, fault)()
        gate.set()
        await asyncio.sleep(0.3)
        del logged[:]
        before = line.attempts
        await asyncio.sleep(2)
        attempts, lines = line.attempts - before, len(logged)
        line.heal()

    assert attempts / 2 < 15
    assert lines / 2 < 4


# For good.


async def _change_password(client: Redis, name: str) -> None:
    await client.config_set("requirepass", "another")
    await client.execute_command("AUTH", "another")
    await client.client_kill_filter(_type="normal", skipme=True)


async def _revoke_reading(client: Redis, name: str) -> None:
    await client.execute_command("ACL", "SETUSER", "worker", "-xreadgroup")


async def _revoke_scripts(client: Redis, name: str) -> None:
    await client.execute_command("ACL", "SETUSER", "worker", "-evalsha")


async def _revoke_acknowledging(client: Redis, name: str) -> None:
    await client.execute_command("ACL", "SETUSER", "worker", "-xack")


async def _put_something_else_there(client: Redis, name: str) -> None:
    await client.delete(name)
    await client.set(name, "something else")


# Seconds. It takes less than one; who takes leave of a server that does not answer waits for 5.
FATAL_WITHIN = 5.0
FATAL: list[Any] = [
    pytest.param(_change_password, AuthenticationError, id="password"),
    pytest.param(_revoke_reading, PermissionDeniedError, id="reading"),
    pytest.param(_revoke_scripts, PermissionDeniedError, id="scripts"),
    pytest.param(_revoke_acknowledging, PermissionDeniedError, id="acknowledging"),
    pytest.param(_put_something_else_there, WrongKeyTypeError, id="type"),
]


@asynccontextmanager
async def as_a_worker(
    server_path: Path | None, name: str
) -> AsyncIterator[tuple[Redis, str]]:
    """A server with a password, a client that may do everything, and a worker's own URL."""
    with RedisServer(server_path, password="first") as server:  # noqa: S106 -- a test's
        async with Redis.from_url(server.url, single_connection_client=True) as client:
            await client.execute_command(
                "ACL", "SETUSER", "worker", "on", ">secret", "~*", "&*", "+@all"
            )
            yield client, server.url


@pytest.mark.parametrize(
    "way",
    [
        "run",
        pytest.param("consuming", marks=pytest.mark.long),
        pytest.param("consume", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize(("deed", "error"), FATAL)
async def test_what_does_not_pass_by_itself_ends_consumers_with_the_reason(
    server_path: Path | None,
    name: str,
    way: str,
    deed: Callable[[Redis, str], Any],
    error: type[MessageQueueError],
) -> None:
    """A supervisor sees it, and a probe: nobody is deaf in silence."""
    handled = Handled()
    async with as_a_worker(server_path, name) as (client, url):
        if error is PermissionDeniedError:
            url = url.replace(":first@", "worker:secret@")
        queue = RedisMessageQueue(name, Connection(url, reply_timeout=1))
        queue.handler(visibility_timeout=VISIBILITY, shutdown_timeout=1)(handled)

        async def be_consuming() -> None:
            async with queue.consuming():
                await eventually(lambda: "has ended" in str(queue.health()))

        async def consume() -> None:
            async with queue:
                await queue.consume(handled, visibility_timeout=VISIBILITY)

        work = {"run": queue.run, "consuming": be_consuming, "consume": consume}[way]
        working = asyncio.ensure_future(work())
        async with RedisMessageQueue(name, url) as producing:
            await producing.produce(1)
        async with RedisMessageQueue(name, url, produce_timeout=0.5) as producing:
            await handled.until(1)
            await deed(client, name)
            with suppress(MessageQueueError):
                await producing.produce(2)

            asked = time.monotonic()
            with pytest.raises(error):
                await asyncio.wait_for(working, 60)
            # Nothing is waited for that will never be answered.
            assert time.monotonic() - asked < FATAL_WITHIN
        with suppress(RedisError):
            await client.acl_setuser("worker", enabled=True, commands=["+@all"])


# How each obstacle is put in the way of what a handler asks for, or of what is due.
OBSTACLES: list[Any] = [
    pytest.param(what, obstacle, id=f"{what}-{obstacle}")
    for what, obstacles in {
        "reject": ("-xadd", "-exists", "-time", "-xpending", "dead"),
        "retry": ("-xadd", "-exists", "-time", "lane"),
        "later": ("-zadd", "-hset", "-zrange", "-time", "due", "later"),
        "delayed": ("-xadd", "-zrem", "-hget", "-exists", "-time"),
    }.items()
    for obstacle in obstacles
]


async def put_in_the_way(obstacle: str, client: Redis, name: str) -> None:
    """Forbid a command, or put something else where a key should be."""
    if obstacle.startswith("-"):
        await client.execute_command("ACL", "SETUSER", "worker", obstacle)
        return
    for key in _keys_of(obstacle, name):
        await client.delete(key)
        await client.set(key, "something else")


async def put_right(obstacle: str, client: Redis, name: str) -> None:
    """Take it out of the way again."""
    await client.execute_command("ACL", "SETUSER", "worker", "+@all")
    for key in _keys_of(obstacle, name):
        await client.delete(key)


def _keys_of(obstacle: str, name: str) -> list[str]:
    keys, group = QueueKeys(name), f"{name}_group"
    known = {"dead": keys.dead, "lane": keys.lane(group)}
    known |= {"due": keys.due(group), "later": keys.later(group)}
    return [known[obstacle]] if obstacle in known else []


@pytest.mark.parametrize(("what", "obstacle"), OBSTACLES)
async def test_what_cannot_be_put_elsewhere_stays_where_it_is(
    server_path: Path | None, name: str, what: str, obstacle: str
) -> None:
    """A script has acknowledged it, and the next write is refused: Redis takes nothing back itself.

    The consumer ends with the reason. When the obstacle is gone, the message is handled.
    """

    async def handle(body: int) -> None:
        await put_in_the_way(obstacle, client, name)
        if what == "reject":
            raise RejectMessage("no")
        raise RetryMessage(delay=0.1 if what == "later" else 0)

    handled = Handled()
    async with as_a_worker(server_path, name) as (client, url):
        url = url.replace(":first@", "worker:secret@")
        async with RedisMessageQueue(name, Connection(url, reply_timeout=1)) as queue:
            await queue.produce(1, delay=0.5 if what == "delayed" else None)
            if what == "delayed":
                await put_in_the_way(obstacle, client, name)
            with pytest.raises((PermissionDeniedError, WrongKeyTypeError)):
                async with asyncio.timeout(60):
                    await queue.consume(handle, visibility_timeout=0.5)

            await put_right(obstacle, client, name)
            async with Consumer(queue, handled, CONFIG):
                await handled.until(1)
        assert handled.bodies == [1]
        assert await client.xlen(QueueKeys(name).dead) == 0
        assert replace(await left(client, name), names=()) == NOTHING
