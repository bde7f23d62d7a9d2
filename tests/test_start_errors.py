"""What prevents a start ends in one clear line within a bounded time, wherever it shows."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import redis.asyncio as redis

from aioredismq import (
    AuthenticationError,
    CommandRefusedError,
    Connection,
    ConnectionLostError,
    Consumer,
    ConsumerConfig,
    Message,
    MessageQueueError,
    PermissionDeniedError,
    Producer,
    RedisMessageQueue,
    RejectMessage,
    RetryMessage,
    ServerError,
    ServerNotReadyError,
    UnsupportedServerError,
    WrongKeyTypeError,
    _promoter,
)
from aioredismq._reader import LONGEST_BLOCK
from aioredismq.testing import FaultyLine, RedisServer
from tests.support import eventually, watched

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from redis.asyncio import Redis

# The ways in. Each is given a queue with a handler.


async def initialize(queue: RedisMessageQueue) -> None:
    """Open the queue."""
    await queue.initialize()


async def consuming(queue: RedisMessageQueue) -> None:
    """Handle in the background, as an application does."""
    async with queue.consuming():
        await anyio.sleep_forever()


async def run(queue: RedisMessageQueue) -> None:
    """Handle as a process of its own does."""
    await queue.run()


async def produce(queue: RedisMessageQueue) -> None:
    """Wire a producer by hand."""
    async with Producer(queue) as producer:
        await producer.produce(1)


async def consume(queue: RedisMessageQueue) -> None:
    """Wire a consumer by hand."""
    async with Consumer(queue, handle, ConsumerConfig()) as consumer:
        await consumer.wait()


WAYS = [initialize, consuming, run, produce, consume]
every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)


async def handle(body: object) -> None:
    """Have nothing to do."""


def queue_at(url: str, name: str, patience: float = 8.0) -> RedisMessageQueue:
    """Make a queue with a handler, on a connection of so much patience."""
    connection = Connection(url, connect_timeout=patience, reply_timeout=patience)
    queue = RedisMessageQueue(name, connection)
    queue.handler(handle)
    return queue


async def refusal(
    way: Callable[[RedisMessageQueue], Awaitable[None]],
    queue: RedisMessageQueue,
    within: float = 1.5,
) -> MessageQueueError:
    """Try a way in; returns what it ends with, once it is seen to be one clear line, and soon."""
    async with watched() as standstills:
        began = time.monotonic()
        with pytest.raises(MessageQueueError) as caught, anyio.fail_after(20):
            await way(queue)
        ended = time.monotonic()

    assert standstills.passed(began, ended) < within
    text = str(caught.value)
    assert text
    assert "\n" not in text
    assert len(text) < 300
    assert not queue.is_initialized
    # Nothing of it runs on.
    await eventually(lambda: asyncio.all_tasks() <= {asyncio.current_task()} | before())
    return caught.value


def before() -> set[asyncio.Task[Any]]:
    """List the tasks that are none of the package's."""
    return {
        task
        for task in asyncio.all_tasks()
        if not task.get_name().startswith("aioredismq")
    }


# A server that is not there.


@every_way
async def test_a_server_that_is_not_there(
    way: Callable[[RedisMessageQueue], Awaitable[None]], name: str
) -> None:
    """Where it was looked for, and what the system said."""
    error = await refusal(way, queue_at("redis://127.0.0.1:1", name))

    assert type(error) is ConnectionLostError
    assert "cannot reach Redis at 127.0.0.1:1" in str(error)
    assert "refused" in str(error) or "Connect call failed" in str(error)


@every_way
async def test_a_host_that_accepts_and_never_answers(
    way: Callable[[RedisMessageQueue], Awaitable[None]], url: str, name: str
) -> None:
    """It is asked once, and for as long as a connect may take."""
    async with FaultyLine(url) as line:
        line.black_hole()

        error = await refusal(way, queue_at(line.url, name, patience=0.1))

        assert type(error) is ConnectionLostError
        assert f"127.0.0.1:{line.port}: it did not answer in time" in str(error)
        assert line.attempts == 1


@every_way
async def test_a_host_that_accepts_and_hangs_up(
    way: Callable[[RedisMessageQueue], Awaitable[None]], url: str, name: str
) -> None:
    """A proxy with nothing behind it."""
    async with FaultyLine(url) as line:
        line.cut()

        error = await refusal(way, queue_at(line.url, name))

        assert type(error) is ConnectionLostError
        assert f"cannot reach Redis at 127.0.0.1:{line.port}" in str(error)
        assert line.attempts == 1


@every_way
@pytest.mark.parametrize("word", ["INFO", "EVALSHA"])
async def test_a_server_that_falls_silent(
    way: Callable[[RedisMessageQueue], Awaitable[None]], url: str, name: str, word: str
) -> None:
    """In the middle of the start: it is waited for as long as an answer may take."""
    async with silent_from(url, word) as place:
        error = await refusal(way, queue_at(place, name, patience=0.1), within=3.0)

        assert isinstance(error, ServerError)
        assert "did not answer" in str(error)


@asynccontextmanager
async def silent_from(url: str, word: str) -> AsyncIterator[str]:
    """Stand before a server and pass on everything until a word falls."""
    host, port = url.removeprefix("redis://").split("/")[0].split(":")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, int(port))
        while data := await reader.read(65536):
            if word.encode() in data:
                await reader.read()
                break
            back.write(data)
            writer.write(await there.read(65536))
        writer.close()
        back.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        yield f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


@every_way
async def test_a_peer_that_speaks_http(
    way: Callable[[RedisMessageQueue], Awaitable[None]], name: str
) -> None:
    """It is no Redis, and never will be."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as web:
        port = web.sockets[0].getsockname()[1]

        error = await refusal(way, queue_at(f"redis://127.0.0.1:{port}", name))

        assert type(error) is UnsupportedServerError
        assert f"the peer at 127.0.0.1:{port} does not speak the Redis protocol" in str(
            error
        )


@every_way
async def test_a_tls_url_of_a_plain_port(
    way: Callable[[RedisMessageQueue], Awaitable[None]], url: str, name: str
) -> None:
    """The server cannot make sense of it, and says nothing or hangs up."""
    queue = queue_at(url.replace("redis://", "rediss://"), name, patience=0.2)

    error = await refusal(way, queue)

    assert isinstance(error, ServerError)
    assert "cannot reach Redis at 127.0.0.1" in str(error)


async def test_a_server_that_takes_nobody_more(
    own_server: RedisServer, name: str
) -> None:
    """It hangs up; why, is in its words if they arrive before that."""
    async with redis.Redis.from_url(own_server.url, protocol=2) as client:
        await client.config_set("maxclients", 1)

        error = await refusal(initialize, queue_at(own_server.url, name))

    assert type(error) is ConnectionLostError
    assert f"cannot reach Redis at 127.0.0.1:{own_server.port}" in str(error)


async def test_a_replica_that_takes_no_writes(
    own_server: RedisServer, name: str
) -> None:
    """It may become the master any moment, so it is waited for as long as for an answer."""
    await anyio.to_thread.run_sync(own_server.command, "REPLICAOF", "127.0.0.1", 1)

    queue = queue_at(own_server.url, name, patience=0.2)

    error = await refusal(initialize, queue, within=3.0)

    assert isinstance(error, ServerNotReadyError | ConnectionLostError)
    assert "read only replica" in str(error)


async def test_a_database_the_server_does_not_have(url: str, name: str) -> None:
    """It is refused by the server; the mistake is in the URL."""
    error = await refusal(initialize, queue_at(url.removesuffix("0") + "99", name))

    assert type(error) is CommandRefusedError
    assert "DB index is out of range" in str(error)


# A user who is not let in.


@pytest.fixture(scope="module")
def locked(server_path: Any) -> Iterator[RedisServer]:
    """A server with a password, and a user besides."""
    with RedisServer(server_path, password=secrets.token_hex(4)) as server:
        server.command("ACL", "SETUSER", "me", "on", ">mine", "~*", "&*", "+@all")
        server.command("ACL", "SETUSER", "ex", "off", ">mine", "~*", "&*", "+@all")
        yield server


@every_way
@pytest.mark.parametrize(
    "credentials",
    ["", ":wrong@", "me:wrong@", "nobody:mine@", "ex:mine@"],
    ids=[
        "none",
        "wrong password",
        "wrong password of a user",
        "unknown user",
        "user off",
    ],
)
async def test_a_user_who_is_not_let_in(
    way: Callable[[RedisMessageQueue], Awaitable[None]],
    locked: RedisServer,
    name: str,
    credentials: str,
) -> None:
    """He is told so at once, and it is not tried again: servers lock out who tries often."""
    url = f"redis://{credentials}127.0.0.1:{locked.port}/0"
    came = connections_taken(locked)

    error = await refusal(way, queue_at(url, name))

    assert type(error) is AuthenticationError
    assert "mine" not in str(error)
    assert connections_taken(locked) - came == 2  # and the one that asks


def connections_taken(server: RedisServer) -> int:
    """Count the connections a server has taken so far."""
    stats = str(server.command("INFO", "stats"))
    return int(stats.split("total_connections_received:")[1].split()[0])


async def test_a_client_with_a_wrong_password(locked: RedisServer, name: str) -> None:
    """A lent client's credentials are its own; the error is the same."""
    url = f"redis://:wrong@127.0.0.1:{locked.port}/0"
    async with redis.Redis.from_url(url) as client:
        queue = RedisMessageQueue(name, client)

        error = await refusal(initialize, queue)

        assert type(error) is AuthenticationError


async def test_a_password_that_is_changed_meanwhile(
    locked: RedisServer, name: str
) -> None:
    """What ran with the old one ends with the reason, as soon as it has to log in again."""
    queue = queue_at(f"redis://me:mine@127.0.0.1:{locked.port}/0", name)
    running = asyncio.ensure_future(queue.run())
    await eventually(lambda: any(consumer.is_running for consumer in queue.consumers))
    locked.command("ACL", "SETUSER", "me", "resetpass", ">other")
    locked.command("CLIENT", "KILL", "USER", "me")

    with pytest.raises(AuthenticationError, match="refuses this user"):
        await asyncio.wait_for(running, 8)

    locked.command("ACL", "SETUSER", "me", "resetpass", ">mine")


# A key that is something else.


@pytest.mark.parametrize("way", [initialize, consuming, run, consume])
async def test_a_key_that_is_something_else(
    way: Callable[[RedisMessageQueue], Awaitable[None]],
    url: str,
    client: Redis,
    name: str,
) -> None:
    """It is named, and left as it was."""
    await client.set(name, "mine")

    error = await refusal(way, queue_at(url, name))

    assert type(error) is WrongKeyTypeError
    assert name in str(error)
    assert await client.getdel(name) == b"mine"
    await client.delete(f"{{{name}}}:queue")


async def test_a_producer_on_a_key_that_is_something_else(
    url: str, client: Redis, name: str
) -> None:
    """It finds out when it sends."""
    await client.set(name, "mine")

    error = await refusal(produce, queue_at(url, name))

    assert type(error) is WrongKeyTypeError
    assert await client.getdel(name) == b"mine"
    await client.delete(f"{{{name}}}:queue")


async def test_a_key_that_becomes_something_else(
    url: str, client: Redis, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A consumer ends with it, whoever overwrote its queue."""
    queue = queue_at(url, name)
    running = asyncio.ensure_future(queue.run())
    await eventually(lambda: queue.is_initialized)
    await queue.produce(1)
    await eventually(lambda: is_settled(client, name))
    await client.set(name, "mine")

    with pytest.raises(WrongKeyTypeError):
        await asyncio.wait_for(running, 20)

    assert f"{name}_group ends: " in caplog.text
    assert await client.getdel(name) == b"mine"
    await client.delete(f"{{{name}}}:queue")


async def is_settled(client: Redis, name: str) -> bool:
    """Say whether what was produced has been handled and taken off."""
    return bool(await client.xlen(name) == 0)


# Permissions.


@pytest.fixture
def user(server: RedisServer) -> Iterator[Callable[..., str]]:
    """Make a user who may do everything but something; gives the URL of that user."""
    made: list[str] = []

    def make(*rules: str) -> str:
        made.append(f"u{secrets.token_hex(4)}")
        server.command("ACL", "SETUSER", made[-1], "on", "nopass", "~*", "&*", "+@all")
        try:
            server.command("ACL", "SETUSER", made[-1], *rules)
        except redis.ResponseError as error:
            pytest.skip(f"this server cannot deny a subcommand: {error}")
        return server.url.replace("redis://", f"redis://{made[-1]}:any@")

    yield make
    for each in made:
        server.command("ACL", "DELUSER", each)


async def clean(client: Redis, name: str) -> None:
    """Remove what a queue has left."""
    keys = [key async for key in client.scan_iter(f"*{name}*")]
    if keys:
        await client.delete(*keys)


@every_way
@pytest.mark.parametrize("command", ["evalsha", "hget"])
async def test_a_command_that_is_needed_to_start(
    way: Callable[[RedisMessageQueue], Awaitable[None]],
    user: Callable[..., str],
    client: Redis,
    name: str,
    command: str,
) -> None:
    """Its name is in the error, whether it is sent or called by a script."""
    error = await refusal(way, queue_at(user(f"-{command}"), name))

    assert type(error) is PermissionDeniedError
    assert f"'{command}'" in str(error)
    await clean(client, name)


async def consuming_until_it_ends(queue: RedisMessageQueue) -> None:
    """Handle in the background, and leave when a probe says that it does not work."""
    async with queue.consuming():
        await eventually(lambda: not queue.health().healthy)
        assert "has ended: NOPERM" in queue.health().problems[0]


@pytest.mark.parametrize("way", [consuming_until_it_ends, run, consume])
@pytest.mark.parametrize("command", ["xreadgroup", "xpending", "time"])
async def test_a_command_that_is_needed_to_consume(
    way: Callable[[RedisMessageQueue], Awaitable[None]],
    user: Callable[..., str],
    client: Redis,
    name: str,
    command: str,
) -> None:
    """The consumer ends with the name of it: raised by `run`, and on leaving `consuming`."""
    queue = queue_at(user(f"-{command}"), name)

    with (
        anyio.fail_after(8),
        pytest.raises(PermissionDeniedError, match=f"'{command}'"),
    ):
        await way(queue)

    await clean(client, name)


async def test_a_command_that_is_needed_to_consume_by_a_call(
    user: Callable[..., str], client: Redis, name: str
) -> None:
    """`consume()` on an open queue."""
    async with queue_at(user("-xreadgroup"), name) as queue:
        with pytest.raises(PermissionDeniedError, match="'xreadgroup'"):
            await asyncio.wait_for(queue.consume(handle), 8)

    await clean(client, name)


async def test_a_command_that_is_needed_to_send(
    user: Callable[..., str], client: Redis, name: str
) -> None:
    """Each send is told; consumers of the queue are not."""
    async with queue_at(user("-xadd"), name) as queue:
        for _ in range(2):
            with pytest.raises(PermissionDeniedError, match="'xadd'"):
                await queue.produce(1)

    await clean(client, name)


async def test_keys_that_are_somebody_elses(
    user: Callable[..., str], client: Redis, name: str
) -> None:
    """The user's patterns do not fit the queue's keys."""
    error = await refusal(initialize, queue_at(user("resetkeys", "~other*"), name))

    assert type(error) is PermissionDeniedError
    assert "key" in str(error)


async def test_an_end_by_permission_is_said_once(
    user: Callable[..., str], client: Redis, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One line of ERROR, with the reason; nothing is tried again."""
    caplog.set_level(logging.INFO, "aioredismq")

    with pytest.raises(PermissionDeniedError):
        await asyncio.wait_for(queue_at(user("-xreadgroup"), name).run(), 8)

    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 1
    assert said[0].levelname == "ERROR"
    assert "'xreadgroup'" in said[0].message
    await clean(client, name)


@pytest.mark.parametrize(
    "rules",
    [
        ["-info"],
        ["-client"],
        ["-client|id"],
        ["-client|unblock"],
        ["-client|setinfo"],
        ["-publish"],
        ["resetchannels"],
        ["-subscribe", "-unsubscribe"],
        ["-ping", "-select", "-hello", "-command", "-config"],
    ],
    ids=" ".join,
)
async def test_what_is_not_needed_may_be_denied(
    user: Callable[..., str],
    client: Redis,
    name: str,
    rules: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Everything is handled, retried and put aside; at worst it takes until the slow pulse."""
    monkeypatch.setattr(_promoter, "_PULSE", (0.2, 0.3))
    handled: list[object] = []
    queue = RedisMessageQueue(name, user(*rules))

    @queue.handler
    async def settle(body: str, message: Message) -> None:
        if body == "again" and message.attempt == 1:
            raise RetryMessage(delay=0)
        if body == "never":
            raise RejectMessage("no use")
        handled.append(body)

    async with queue:
        for body in ("once", "again", "never"):
            await queue.produce(body)
        async with queue.consuming():
            await eventually(lambda: sorted(map(str, handled)) == ["again", "once"])
            await eventually(lambda: client.xlen(f"{{{name}}}:dead"))
            began = time.monotonic()

        assert time.monotonic() - began < LONGEST_BLOCK
        assert [(info.pending, info.consumers) for info in await queue.groups()] == [
            (0, 0)
        ]

    await clean(client, name)
