from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import anyio
import pytest
import redis.asyncio as redis
from redis.exceptions import (
    AuthenticationError as RedisAuthenticationError,
)
from redis.exceptions import (
    BusyLoadingError,
    InvalidResponse,
    NoPermissionError,
    RedisClusterException,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from aioredismq import (
    AuthenticationError,
    CommandRefusedError,
    ConfigurationError,
    ConnectionLostError,
    MessageQueueError,
    PermissionDeniedError,
    PoolTooSmallError,
    UnsupportedServerError,
)
from aioredismq._address import arguments
from aioredismq._opening import (
    connected,
    disconnect,
    new_connection,
    place_of,
    refresh,
    translated,
    writer_of,
)
from aioredismq.testing import FaultyLine
from tests.support import eventually

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.connection import AbstractConnection


def caused(error: Exception, cause: Exception) -> Exception:
    """Put one error behind another."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        (RedisConnectionError("Error 111"), ConnectionLostError, "cannot reach .* Error 111"),
        (RedisTimeoutError("Timeout connecting"), ConnectionLostError, "Timeout connecting"),
        (TimeoutError(), ConnectionLostError, "did not answer in time"),
        (OSError(113, "No route to host"), ConnectionLostError, "No route to host"),
        (BusyLoadingError("Redis is loading"), ConnectionLostError, "loading"),
        (RedisAuthenticationError("WRONGPASS"), AuthenticationError, "refuses this user"),
        (RedisConnectionError("NOAUTH Authentication required"), AuthenticationError, "NOAUTH"),
        (NoPermissionError("no permissions to SELECT"), PermissionDeniedError, "SELECT"),
        (InvalidResponse('got "H"'), UnsupportedServerError, "not speak the Redis"),
        (ResponseError("DB index is out of range"), CommandRefusedError, "DB index"),
        (RuntimeError("the handler is closed"), ConnectionLostError, "handler is closed"),
        (AttributeError("'NoneType' …"), ConnectionLostError, "NoneType"),
        (RedisClusterException("cannot be connected"), ConnectionLostError, "connected"),
        (
            caused(RedisClusterException("no node"), RedisAuthenticationError("WRONGPASS")),
            AuthenticationError,
            "WRONGPASS",
        ),
    ],
)  # fmt: skip
def test_whatever_connecting_raises_becomes_ours(
    error: Exception, expected: type[MessageQueueError], words: str
) -> None:
    """With the address, and a class that says whether trying again helps."""
    ours = translated(error, "example.org:7000")

    assert type(ours) is expected
    assert "example.org:7000" in str(ours)
    with pytest.raises(expected, match=words):
        raise ours


def test_an_error_of_ours_stays_as_it_is() -> None:
    """It was translated, or says something else than that a connection failed."""
    error = PoolTooSmallError(1, 2)

    assert translated(error, "example.org") is error


def test_an_option_that_redis_py_does_not_know_is_refused() -> None:
    """A misspelt one would otherwise be found at the first connect, or never."""
    with pytest.raises(ConfigurationError, match="clientname"):
        new_connection(arguments("redis://h?clientname=x", 1.0))


async def test_an_opened_connection_is_ready(url: str) -> None:
    """Logged in, in its database."""
    connection = await connected(arguments(url, 8.0), "there")

    await connection.send_command("PING")
    assert await connection.read_response() == b"PONG"
    await disconnect(connection)


@pytest.mark.parametrize("options", ["", "?client_name=me", "?db=1", "?password=x"])
async def test_a_host_that_accepts_and_never_answers_is_given_up(
    url: str, options: str
) -> None:
    """Whatever is said first, the connect timeout counts for its answer too."""
    async with FaultyLine(url) as line:
        line.black_hole()
        began = time.monotonic()

        with pytest.raises(ConnectionLostError, match="did not answer in time"):
            await connected(arguments(line.url + options, 0.1), "there")

        assert time.monotonic() - began < 5.0


async def test_a_host_that_accepts_and_hangs_up_is_an_ordinary_failure(
    url: str,
) -> None:
    """A proxy with nothing behind it; uvloop raises an error of its own then."""
    async with FaultyLine(url) as line:
        line.cut()

        for _ in range(5):
            with pytest.raises(
                ConnectionLostError, match="cannot reach Redis at there"
            ):
                await connected(arguments(line.url, 8.0), "there")


class BreaksThisMoment(redis.Connection):
    """uvloop's error for a write on a connection that was reset a moment ago."""

    async def connect(self) -> None:
        """Fail as redis-py does then."""
        msg = "unable to perform operation on <TCPTransport closed=True>"
        raise RuntimeError(msg)


async def test_no_error_of_a_breaking_connection_gets_through(url: str) -> None:
    """It would end whoever keeps the connection, as nobody expects it."""
    address = {**arguments(url, 8.0), "connection_class": BreaksThisMoment}

    with pytest.raises(ConnectionLostError, match="closed=True"):
        await connected(address, "there")


async def test_who_gives_up_connecting_leaves_no_connection(url: str) -> None:
    """Cancelled in the middle of the greeting, it closes what was open."""
    async with FaultyLine(url) as line:
        line.black_hole(only="replies")

        with anyio.move_on_after(0.05):
            await connected(arguments(line.url, 5.0), "there")

        line.heal()
        await eventually(lambda: not line.open_connections)
        assert line.attempts == 1


async def idle(url: str, protocol: int) -> AbstractConnection:
    """Open a connection as it lies in a pool of the caller's."""
    connection = redis.Connection(**{**arguments(url, 8.0), "protocol": protocol})
    await connection.connect()
    return connection


async def number_of(connection: AbstractConnection) -> int:
    """Ask under which number the server knows it."""
    await connection.send_command("CLIENT", "ID")
    return int(await connection.read_response())


@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_connection_that_ended_in_its_pool_is_made_anew(
    url: str, client: Redis, protocol: int
) -> None:
    """Or the first command on it would wait for an answer in vain."""
    connection = await idle(url, protocol)
    number = await number_of(connection)
    await client.client_kill_filter(_id=str(number))
    await eventually(lambda: connection._reader.at_eof())  # type: ignore[attr-defined]

    await refresh(connection)

    assert await number_of(connection) != number
    await disconnect(connection)


async def test_a_connection_that_was_closed_in_its_pool_is_made_anew(url: str) -> None:
    """Whoever closed it."""
    connection = await idle(url, 2)
    await disconnect(connection)

    await refresh(connection)

    assert await number_of(connection)
    await disconnect(connection)


async def test_a_connection_that_works_is_left_alone(url: str) -> None:
    """It costs nothing to look."""
    connection = await idle(url, 3)
    number = await number_of(connection)

    await refresh(connection)

    assert await number_of(connection) == number
    await disconnect(connection)


async def test_a_connection_may_be_closed_in_any_state(url: str) -> None:
    """Open, closed, ended by the other side, or broken this moment."""
    async with FaultyLine(url) as line:
        connection = await idle(line.url, 2)
        writer = writer_of(connection)
        line.drop()
        await disconnect(connection)
        await disconnect(connection)

        await asyncio.sleep(0)
        writer.transport.abort()
        await disconnect(connection)


async def test_a_connection_that_is_not_open_has_no_stream(url: str) -> None:
    """It was lost between being opened and being used."""
    connection = await idle(url, 2)
    await disconnect(connection)

    with pytest.raises(ConnectionLostError, match="before it could be used"):
        writer_of(connection)


@pytest.mark.parametrize(
    ("url", "expected"),
    [("redis://h:7000", ("h", 7000)), ("unix:///run/redis.sock", ("", 0))],
)
def test_a_connection_knows_where_it_leads(url: str, expected: tuple[str, int]) -> None:
    """By a socket file, to no host."""
    assert place_of(new_connection(arguments(url, 8.0))) == expected
