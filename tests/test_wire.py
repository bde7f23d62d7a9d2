from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import anyio
import pytest

from aioredismq import (
    CommandRefusedError,
    ConnectionLostError,
    ServerError,
    UnsupportedServerError,
    WrongKeyTypeError,
)
from aioredismq._wire import Wire, exchange, pack
from aioredismq.testing import FaultyLine
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from redis.asyncio import Redis


@asynccontextmanager
async def wired(
    url: str,
    *,
    reply_timeout: float = 5.0,
    on_lost: Callable[[], None] | None = None,
    on_push: Callable[[list[Any]], None] | None = None,
) -> AsyncIterator[Wire]:
    """Open a wire on a plain TCP connection, and see that it leaves nothing behind."""
    parts = urlsplit(url)
    _, writer = await asyncio.open_connection(parts.hostname, parts.port)
    wire = Wire(writer, reply_timeout=reply_timeout, on_lost=on_lost, on_push=on_push)
    try:
        yield wire
    finally:
        wire.close()
        async with asyncio.timeout(8):
            await gone(writer)


async def gone(writer: asyncio.StreamWriter) -> None:
    """Wait until the connection is closed, whatever closed it."""
    try:
        await writer.wait_closed()
    except ConnectionError:
        return


@pytest.fixture
async def wire(url: str) -> AsyncIterator[Wire]:
    """A wire to the server most tests share."""
    async with wired(url) as opened:
        yield opened


@pytest.fixture
async def line(url: str) -> AsyncIterator[FaultyLine]:
    """A line to the server most tests share."""
    async with FaultyLine(url) as opened:
        yield opened


async def outcome(future: asyncio.Future[Any]) -> object:
    """Wait for a reply or its error."""
    try:
        async with asyncio.timeout(8):
            return await future
    except ServerError as error:
        return error


# Commands and replies.


async def test_a_command_is_answered(wire: Wire) -> None:
    """With what Redis says, as it says it."""
    assert await wire.call("ECHO", b"\x00\xff\r\n") == b"\x00\xff\r\n"
    assert await wire.call("EVAL", "return {1, 'a', false, {}}", 0) == [
        1,
        b"a",
        None,
        [],
    ]


def test_a_command_is_packed_from_words_bytes_and_numbers() -> None:
    """As Redis's protocol has it: an array of strings."""
    assert pack("SET", b"k\n", 1, 0.5) == (
        b"*4\r\n$3\r\nSET\r\n$2\r\nk\n\r\n$1\r\n1\r\n$3\r\n0.5\r\n"
    )


async def test_many_commands_are_under_way_at_once(wire: Wire) -> None:
    """Each caller gets its own reply, in whatever order they wait."""
    futures = [wire.call("ECHO", number) for number in range(500)]
    assert wire.outstanding == 500

    replies = [await future for future in reversed(futures)]

    assert replies == [b"%d" % number for number in reversed(range(500))]
    assert wire.outstanding == 0


async def test_a_large_reply_arrives_whole(wire: Wire) -> None:
    """However many pieces the network makes of it."""
    body = bytes(range(256)) * 20_000

    assert await wire.call("ECHO", body) == body


async def test_a_refused_command_does_not_harm_its_neighbours(wire: Wire) -> None:
    """It alone gets the error, of the class its first word tells."""
    before, refused, after = (
        wire.call("ECHO", 1),
        wire.call("NOSUCHCOMMAND"),
        wire.call("ECHO", 2),
    )

    assert await before == b"1"
    with pytest.raises(CommandRefusedError, match="unknown command") as caught:
        await refused
    assert caught.value.code == "ERR"
    assert await after == b"2"


async def test_the_class_of_an_error_is_told_by_its_first_word(
    wire: Wire, name: str
) -> None:
    """So that callers need not look into texts."""
    await wire.call("SET", name, "text")

    with pytest.raises(WrongKeyTypeError) as caught:
        await wire.call("XLEN", name)

    assert caught.value.code == "WRONGTYPE"
    await wire.call("DEL", name)


async def test_a_cancelled_call_crosses_no_reply(wire: Wire) -> None:
    """Its reply is read and dropped; the next call gets its own."""
    cancelled = wire.call("ECHO", "cancelled")
    refused = wire.call("NOSUCHCOMMAND")
    cancelled.cancel()
    refused.cancel()

    assert await wire.call("ECHO", "next") == b"next"


async def test_a_false_of_the_third_protocol_is_a_reply(wire: Wire) -> None:
    """And not mistaken for a reply that has not arrived."""
    await wire.call("HELLO", 3)

    no, yes = (
        wire.call("EVAL", f"redis.setresp(3); return {word}", 0)
        for word in ("false", "true")
    )

    assert await outcome(no) is False
    assert await outcome(yes) is True


# What is published.


@pytest.mark.parametrize("protocol", [2, 3])
async def test_what_is_published_is_told_apart_from_replies(
    url: str, client: Redis, name: str, protocol: int
) -> None:
    """On one connection: a subscription is confirmed as a command is answered."""
    heard: list[list[Any]] = []
    async with wired(url, on_push=heard.append) as wire:
        await wire.call("HELLO", protocol)

        confirmed = await outcome(wire.call("SUBSCRIBE", name))
        await client.publish(name, "one")
        await client.publish(name, "two")

        assert confirmed == [b"subscribe", name.encode(), 1]
        await eventually(lambda: len(heard) == 2)
        assert heard == [
            [b"message", name.encode(), b"one"],
            [b"message", name.encode(), b"two"],
        ]
        left = await outcome(wire.call("UNSUBSCRIBE", name))
        assert left == [b"unsubscribe", name.encode(), 0]


async def test_what_the_server_pushes_unasked_is_no_reply(
    url: str, client: Redis, name: str
) -> None:
    """A wire that listens to nothing overlooks it: such as a lent connection's notices."""
    async with wired(url) as wire:
        await wire.call("HELLO", 3)
        await wire.call("CLIENT", "TRACKING", "ON", "BCAST")
        waiting = wire.call("BLPOP", f"{name}:list", 0)
        await client.set(name, 1)
        await client.delete(name)
        await client.rpush(f"{name}:list", 1)

        assert await outcome(waiting) == [f"{name}:list".encode(), b"1"]


# The end.


async def test_a_lost_connection_fails_what_is_outstanding(
    wire: Wire, client: Redis
) -> None:
    """Each with an error of its own, so that tracebacks do not gather on one."""
    number = await wire.call("CLIENT", "ID")
    blocked = [wire.call("BLPOP", "nothing", 0), wire.call("PING")]

    await client.client_kill_filter(_id=number)

    first, second = [await outcome(future) for future in blocked]
    assert isinstance(first, ConnectionLostError)
    assert isinstance(second, ConnectionLostError)
    assert first is not second
    assert str(first) == "the connection to Redis was lost"
    assert wire.is_lost
    assert wire.outstanding == 0


async def test_a_lost_wire_takes_no_command(wire: Wire) -> None:
    """It says so at once, and nothing is written."""
    wire.close()

    with pytest.raises(ConnectionLostError, match="was closed"):
        wire.call("PING")


@pytest.mark.parametrize("ending", ["closed here", "closed there"])
async def test_the_end_is_told_once(url: str, client: Redis, ending: str) -> None:
    """Whoever ended it, and however often."""
    ends: list[str] = []
    async with wired(url, on_lost=lambda: ends.append("lost")) as wire:
        if ending == "closed here":
            wire.close()
        else:
            await client.client_kill_filter(_id=await wire.call("CLIENT", "ID"))
            await eventually(lambda: wire.is_lost)
        assert ends == ["lost"]
        wire.close()

    assert ends == ["lost"]


async def test_the_reason_it_was_closed_for_is_told_to_all(wire: Wire) -> None:
    """To who waits, and to who comes later."""
    waiting = wire.call("BLPOP", "nothing", 0)

    wire.close(ConnectionLostError("moved house"))

    assert str(await outcome(waiting)) == "moved house"
    with pytest.raises(ConnectionLostError, match="moved house"):
        wire.call("PING")


async def test_a_transport_that_ended_this_instant_is_no_surprise(wire: Wire) -> None:
    """Between its end and the word of it, uvloop refuses writes with an error of its own."""
    wire._transport.abort()

    error = await outcome(wire.call("PING"))

    assert isinstance(error, ConnectionLostError)
    assert wire.is_lost


async def test_a_truncated_reply_is_none(line: FaultyLine) -> None:
    """What came before it counts; half a reply does not."""
    async with wired(line.url) as wire:
        line.truncate_reply(5, containing=b"half")

        whole, half = wire.call("ECHO", "whole"), wire.call("ECHO", "half")

        assert await outcome(whole) == b"whole"
        assert isinstance(await outcome(half), ConnectionLostError)


async def test_a_reset_says_why(line: FaultyLine) -> None:
    """The words of the system are in the error."""
    async with wired(line.url) as wire:
        waiting = wire.call("BLPOP", "nothing", 0)

        line.drop()

        assert "reset" in str(await outcome(waiting)).lower()


# Silence.


async def test_a_line_that_is_silent_while_a_reply_is_due_counts_as_dead(
    line: FaultyLine,
) -> None:
    """A half-open connection would otherwise keep its callers waiting for ever."""
    async with wired(line.url, reply_timeout=0.5) as wire:
        await wire.call("PING")
        line.black_hole()

        error = await outcome(wire.call("PING"))

        assert isinstance(error, ConnectionLostError)
        assert str(error) == "Redis did not answer for 0.5 s"
        assert wire.is_lost


async def test_silence_is_no_matter_while_nothing_is_due(
    url: str, client: Redis, name: str
) -> None:
    """A wire may idle for as long as it likes, and is measured anew when it is used again."""
    async with wired(url, reply_timeout=3.0) as wire:
        await wire.call("PING")
        await anyio.sleep(2.5)
        waiting = wire.call("BLPOP", name, 0)
        await anyio.sleep(0.8)
        await client.rpush(name, 1)

        assert await outcome(waiting) == [name.encode(), b"1"]


async def test_a_slow_server_that_makes_progress_is_not_dead(
    url: str, client: Redis, name: str
) -> None:
    """Each reply begins the time anew: what counts is silence, not work."""
    async with wired(url, reply_timeout=3.0) as wire:
        replies = [wire.call("BLPOP", name, 0) for _ in range(4)]
        for _ in replies:
            await anyio.sleep(0.8)
            await client.rpush(name, 1)

        assert [await outcome(reply) for reply in replies] == [
            [name.encode(), b"1"]
        ] * 4


async def speak_http(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Answer as a web server does, and close when the client has."""
    await reader.read(1)
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await reader.read()
    writer.close()


async def test_a_peer_that_speaks_something_else_is_named_so() -> None:
    """A web server on the port: nothing it says is taken for a reply."""
    async with await asyncio.start_server(speak_http, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with wired(f"redis://127.0.0.1:{port}") as wire:
            calls = [wire.call("PING"), wire.call("PING")]

            for call in calls:
                error = await outcome(call)
                assert isinstance(error, UnsupportedServerError)
                assert "does not speak the Redis protocol" in str(error)
            assert wire.is_lost


# One command within a time.


async def test_an_exchange_brings_the_reply(wire: Wire) -> None:
    """Or what Redis refused it with."""
    assert await exchange(wire, "ECHO", 1, within=8.0) == b"1"
    with pytest.raises(CommandRefusedError):
        await exchange(wire, "NOSUCHCOMMAND", within=8.0)
    assert not wire.is_lost


async def test_an_exchange_that_takes_too_long_ends_the_wire(wire: Wire) -> None:
    """The late reply would be taken for the next one's."""
    with pytest.raises(ConnectionLostError, match=r"did not answer within 0\.05 s"):
        await exchange(wire, "BLPOP", "nothing", 1, within=0.05)

    assert wire.is_lost


async def test_an_exchange_on_a_lost_wire_says_so(wire: Wire) -> None:
    """At once."""
    wire.close()

    with pytest.raises(ConnectionLostError):
        await exchange(wire, "PING", within=8.0)
