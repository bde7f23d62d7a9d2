from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import anyio
import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from aioredismq.testing import FaultyLine, RedisServer
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ONCE = Retry(NoBackoff(), 0)
PING = b"*1\r\n$4\r\nPING\r\n"


@pytest.fixture
async def line(url: str) -> AsyncIterator[FaultyLine]:
    """A line to the server most tests share."""
    async with FaultyLine(url) as opened:
        yield opened


@pytest.fixture
async def through(line: FaultyLine) -> AsyncIterator[Redis]:
    """A client on the line that sends nothing twice."""
    async with Redis.from_url(line.url, protocol=2, retry=ONCE) as opened:
        yield opened


async def answer(reader: asyncio.StreamReader, limit: float = 30.0) -> bytes:
    """Read one line of a reply."""
    async with asyncio.timeout(limit):
        return await reader.readline()


async def test_a_line_without_faults_is_not_noticed(
    through: Redis, client: Redis, name: str
) -> None:
    """What is sent arrives as it was, however large, in both directions."""
    body = bytes(range(256)) * 20_000

    await through.set(name, body)

    assert await client.get(name) == body
    assert await through.get(name) == body
    await client.delete(name)


def test_before_it_is_started_it_has_no_port() -> None:
    """The port is found at the start; asking earlier says so."""
    line = FaultyLine("redis://localhost:6379/0")

    assert repr(line) == "<FaultyLine without a port to localhost:6379>"
    with pytest.raises(RuntimeError, match="no port yet"):
        _ = line.url


async def test_its_url_is_the_servers_with_another_address() -> None:
    """User, password and database stay, so that a client needs nothing else."""
    async with FaultyLine("redis://me:p%40ss@example.org:7000/3?client_name=x") as line:
        assert line.url == f"redis://me:p%40ss@127.0.0.1:{line.port}/3?client_name=x"
        assert repr(line) == f"<FaultyLine {line.port} to example.org:7000>"


async def test_a_cut_line_breaks_what_is_open_and_what_is_opened(
    line: FaultyLine, through: Redis
) -> None:
    """Until it is healed; then the same port works again."""
    await through.ping()

    line.cut()

    with pytest.raises(RedisConnectionError):
        await through.ping()
    before = line.attempts
    for _ in range(3):
        reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
        with pytest.raises(ConnectionResetError):
            await answer(reader)
        writer.close()
    assert line.attempts == before + 3  # those that were broken off are counted
    line.heal()
    assert await through.ping()


async def test_a_dropped_connection_can_be_opened_again(
    line: FaultyLine, through: Redis
) -> None:
    """A line that breaks for a moment."""
    reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
    writer.write(PING)
    assert await answer(reader) == b"+PONG\r\n"

    line.drop()

    with pytest.raises(ConnectionResetError):
        await answer(reader)
    assert await through.ping()
    writer.close()


async def test_a_delayed_line_is_late_in_both_directions(
    line: FaultyLine, through: Redis
) -> None:
    """A round trip takes the delay twice, and everything that is under way takes it together."""
    await through.ping()
    line.delay(0.25)

    began = time.monotonic()
    async with through.pipeline(transaction=False) as pipe:
        for number in range(40):
            pipe.echo(str(number))
        replies = await pipe.execute()

    assert replies == [b"%d" % number for number in range(40)]
    # One by one they would take 20 s.
    assert 0.5 <= time.monotonic() - began < 10


async def test_one_direction_may_be_delayed_alone(
    line: FaultyLine, through: Redis, client: Redis, name: str
) -> None:
    """The server does at once what its client hears of late."""
    await through.ping()
    line.delay(600, only="replies")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(through.set, name, "done")
        await eventually(lambda: client.exists(name))
        line.heal()  # and what was late comes at once

    await client.delete(name)


async def test_behind_a_black_hole_a_request_arrives_after_its_sender_has_gone(
    line: FaultyLine, client: Redis, name: str
) -> None:
    """The half-open line: neither the request nor the farewell passes before it is healed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
    writer.write(PING)
    await answer(reader)
    line.black_hole()

    writer.write(f"SET {name} late\r\n".encode())
    with pytest.raises(TimeoutError):
        await answer(reader, limit=0.05)
    writer.close()
    await writer.wait_closed()

    assert not await client.exists(name)
    line.heal()
    await eventually(lambda: client.exists(name))
    await eventually(lambda: not line.open_connections)
    await client.delete(name)


async def test_a_black_hole_takes_connections_and_says_nothing(
    line: FaultyLine,
) -> None:
    """A host that accepts and never answers."""
    line.black_hole()

    reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
    writer.write(PING)

    with pytest.raises(TimeoutError):
        await answer(reader, limit=0.05)
    line.heal()
    assert await answer(reader) == b"+PONG\r\n"
    writer.close()


async def test_replies_alone_may_be_silenced(
    line: FaultyLine, client: Redis, name: str
) -> None:
    """The server does everything, and nobody hears of it."""
    line.black_hole(only="replies")

    reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
    writer.write(f"SET {name} done\r\n".encode())

    await eventually(lambda: client.exists(name))
    with pytest.raises(TimeoutError):
        await answer(reader, limit=0.05)
    writer.close()
    await client.delete(name)


async def test_what_a_silent_line_holds_is_bounded(line: FaultyLine) -> None:
    """The sender's buffers fill, as before a network that is gone."""
    line.black_hole()
    _, writer = await asyncio.open_connection("127.0.0.1", line.port)
    writer.write(bytes(100_000_000))

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await writer.drain()

    writer.transport.abort()


async def test_a_request_is_done_and_its_reply_lost(
    line: FaultyLine, through: Redis, client: Redis, name: str
) -> None:
    """The trap of every resend; it happens once."""
    await through.ping()
    line.reset_after_request()
    assert line.is_armed

    with pytest.raises(RedisConnectionError):
        await through.incr(name)

    assert not line.is_armed
    assert await client.get(name) == b"1"
    assert await through.incr(name) == 2
    await client.delete(name)


async def test_the_request_that_is_meant_can_be_named(
    line: FaultyLine, through: Redis, client: Redis, name: str
) -> None:
    """Others pass, on any connection."""
    line.reset_after_request(containing=b"INCR")

    assert await through.ping()
    assert line.is_armed
    with pytest.raises(RedisConnectionError):
        await through.incr(name)

    assert await client.get(name) == b"1"
    await client.delete(name)


async def test_replies_before_the_lost_one_arrive(line: FaultyLine) -> None:
    """Of many requests under way, one is meant; those behind it lose theirs too."""
    reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
    line.reset_after_request(containing=b"ECHO")

    writer.write(PING * 3 + b"ECHO me\r\n" + PING)

    for _ in range(3):
        assert await answer(reader) == b"+PONG\r\n"
    with pytest.raises(ConnectionResetError):
        await answer(reader)
    writer.close()


async def test_a_truncated_reply_ends_in_the_middle(line: FaultyLine) -> None:
    """So many bytes, then the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
    line.truncate_reply(7, containing=b"ECHO")

    writer.write(PING + b"ECHO hello\r\n" + PING)

    async with asyncio.timeout(30):
        assert await reader.read() == b"+PONG\r\n" + b"$5\r\nhel"
    writer.close()


async def test_what_is_armed_can_be_called_off(
    line: FaultyLine, through: Redis
) -> None:
    """Healing takes back what has not happened."""
    line.reset_after_request()

    line.heal()

    assert not line.is_armed
    assert await through.ping()


async def test_a_client_that_sends_no_more_is_answered(line: FaultyLine) -> None:
    """Each direction ends by itself."""
    reader, writer = await asyncio.open_connection("127.0.0.1", line.port)

    writer.write(PING)
    writer.write_eof()

    async with asyncio.timeout(30):
        assert await reader.read() == b"+PONG\r\n"
    writer.close()
    await eventually(lambda: not line.open_connections)


async def test_a_server_that_closes_is_heard(
    line: FaultyLine, through: Redis, client: Redis
) -> None:
    """What is behind the line looks the same as without it."""
    number = await through.client_id()

    await client.client_kill_filter(_id=str(number))

    await eventually(lambda: not line.open_connections)
    assert await through.client_id() != number


async def test_a_server_that_is_away_looks_like_a_cut(own_server: RedisServer) -> None:
    """And works again when it is back."""
    async with FaultyLine(own_server.url) as line:
        await anyio.to_thread.run_sync(own_server.kill)
        reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
        with pytest.raises(ConnectionResetError):
            await answer(reader)
        writer.close()

        await anyio.to_thread.run_sync(own_server.start)

        async with Redis.from_url(line.url, retry=ONCE, protocol=2) as through:
            assert await through.ping()


async def test_a_closed_line_leaves_nothing(url: str, client: Redis) -> None:
    """Connections end on both sides, whatever they hold, and the port is free."""
    before = len(await client.client_list())
    async with FaultyLine(url) as line:
        await line.start()  # again changes nothing
        reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
        writer.write(PING)
        await answer(reader)
        line.black_hole()
        writer.write(PING)

    await line.stop()
    assert not line.open_connections
    with pytest.raises(ConnectionResetError):
        await answer(reader)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", line.port)
    await eventually(lambda: is_as_before(client, before))
    writer.close()


async def is_as_before(client: Redis, before: int) -> bool:
    """Say whether the server has as many connections as it had."""
    return len(await client.client_list()) <= before


async def test_a_line_can_be_opened_again(url: str) -> None:
    """On the same port, which clients know."""
    line = FaultyLine(url)
    async with line:
        port = line.port

    async with line, Redis.from_url(line.url, protocol=2) as through:
        assert await through.ping()
        assert line.port == port
