"""The bare floors: as fast as Python can speak to Redis over an asyncio transport.

Everything a library must add is missing on purpose: no JSON (payloads are packed once,
beforehand), no identity of a message, no time limit, no reconnecting, no error per reply (what
arrived is counted on the server afterwards). What a floor does include is said in its
docstring. Commands are packed and replies parsed by hiredis; replies resolve futures in order,
as often as a wake-up of the socket brings them.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import TYPE_CHECKING, Any

import hiredis
from redis.asyncio.connection import parse_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Self

# Entries a read brings and one XACK takes, in every drain that is compared.
READ_COUNT = 64

# Commands on their way at once while a stream is being filled, which is not measured.
_FILL_WINDOW = 1000

_INCOMPLETE = object()

# hiredis's stubs allow one word only.
pack: Callable[[tuple[str | bytes | float, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]


class BareConnection(asyncio.Protocol):
    """One connection; what is sent in one turn of the event loop is one write."""

    def __init__(self) -> None:
        """Make it; `open()` connects."""
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._unsent: list[bytes] = []
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, url: str) -> Self:
        """Connect, log in and choose the database.

        Raises:
            OSError: Nobody listens there.
            hiredis.ReplyError: The server refused the login or the database.
        """
        address = parse_url(url)
        _, connection = await asyncio.get_running_loop().create_connection(
            cls, address.get("host", "localhost"), address.get("port", 6379)
        )
        if "password" in address:
            user = address.get("username", "default")
            await connection.call("AUTH", user, address["password"])
        await connection.call("SELECT", address.get("db", 0))
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Resolve a future per reply."""
        self._reader.feed(data)
        gets, popleft = self._reader.gets, self._waiting.popleft
        while (reply := gets()) is not _INCOMPLETE:
            popleft().set_result(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what still waits."""
        for future in self._waiting:
            if not future.done():
                future.set_exception(exc or ConnectionError("closed"))
        self._waiting.clear()

    def send(self, command: bytes) -> asyncio.Future[Any]:
        """Send a packed command with whatever else is sent in this turn."""
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(command)
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.append(future)
        return future

    def send_now(self, command: bytes) -> asyncio.Future[Any]:
        """Send a packed command at once: the shortest way for one that is alone."""
        assert self._transport is not None
        self._transport.write(command)
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.append(future)
        return future

    async def call(self, *words: str | bytes | float) -> Any:
        """Pack and send one command, and wait for its reply: for what is not measured.

        Raises:
            hiredis.ReplyError: The server refused it.
        """
        reply = await self.send(pack(words))
        if isinstance(reply, Exception):
            raise reply
        return reply

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        """Write what this turn has sent."""
        unsent, self._unsent = self._unsent, []
        assert self._transport is not None
        self._transport.write(b"".join(unsent))


def pack_xadd(stream: str, body: bytes) -> bytes:
    """Pack the command that stores one message."""
    return pack(("XADD", stream, "*", "body", body))


async def produce_coalesced(
    connection: BareConnection, command: bytes, *, messages: int, tasks: int
) -> None:
    """Send a packed XADD from many tasks, each awaiting its reply before it sends the next.

    Included: a future and a task's wake-up per message, one write per turn, the parsing of the
    replies. Not included: packing, JSON.
    """

    async def produce() -> None:
        for _ in range(messages // tasks):
            await connection.send(command)

    await asyncio.gather(*(produce() for _ in range(tasks)))


async def produce_coalesced_json(
    connection: BareConnection,
    stream: str,
    body: object,
    *,
    messages: int,
    tasks: int,
) -> None:
    """Do the same, with the standard library's JSON and packing for each message."""
    encode = json.JSONEncoder(separators=(",", ":")).encode

    async def produce() -> None:
        for _ in range(messages // tasks):
            await connection.send(pack_xadd(stream, encode(body).encode()))

    await asyncio.gather(*(produce() for _ in range(tasks)))


async def produce_one_at_a_time(
    connection: BareConnection, command: bytes, *, messages: int
) -> None:
    """Send a packed XADD, await its reply, send the next: a round trip each, nothing else."""
    for _ in range(messages):
        await connection.send_now(command)


async def produce_one_at_a_time_json(
    connection: BareConnection, stream: str, body: object, *, messages: int
) -> None:
    """Do the same, with the standard library's JSON and packing for each message."""
    encode = json.JSONEncoder(separators=(",", ":")).encode
    for _ in range(messages):
        await connection.send_now(pack_xadd(stream, encode(body).encode()))


async def drain_overlapped(
    connection: BareConnection, stream: str, group: str, *, delete: bool
) -> int:
    """Read 64 entries and acknowledge them with one XACK, two reads being under way.

    Included: reading (without BLOCK), parsing, the ids' packing into one XACK per 64 and, with
    `delete`, into one XDEL. Not included: decoding the bodies, a handler, objects of any kind.

    Returns:
        How many entries there were.
    """
    read = pack(
        (
            "XREADGROUP",
            "GROUP",
            group,
            "bare",
            "COUNT",
            READ_COUNT,
            "STREAMS",
            stream,
            ">",
        )
    )
    reads = deque((connection.send(read), connection.send(read)))
    settled: list[asyncio.Future[Any]] = []
    drained = 0
    while reply := await reads.popleft():
        ids = [entry[0] for entry in reply[0][1]]
        drained += len(ids)
        settled = [connection.send(pack(("XACK", stream, group, *ids)))]
        if delete:
            settled.append(connection.send(pack(("XDEL", stream, *ids))))
        reads.append(connection.send(read))
    await asyncio.gather(*reads, *settled)
    return drained


async def fill(
    connection: BareConnection, stream: str, bodies: Iterable[bytes]
) -> None:
    """Store messages, one XADD each, many at once; this is not measured."""
    window: deque[asyncio.Future[Any]] = deque()
    for body in bodies:
        window.append(connection.send(pack_xadd(stream, body)))
        if len(window) >= _FILL_WINDOW:
            await window.popleft()
    await asyncio.gather(*window)
