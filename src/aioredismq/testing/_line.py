"""A TCP line to a server that fails on demand."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, Literal, TypeAlias
from urllib.parse import urlsplit

from anyio import CancelScope, create_task_group, move_on_after

from ._doom import Doom, End, Fault
from ._server import HOST

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

Direction: TypeAlias = Literal["requests", "replies"]
_BOTH: tuple[Direction, ...] = ("requests", "replies")

# Bytes taken in at once, and how many such pieces a connection holds while nothing may pass: then
# the sender's own buffers fill, as they do before a network that is gone.
_PIECE = 64 * 1024
_HELD = 16

# On closing: forget what was not sent, and tell the peer by a reset instead of a farewell.
_ABRUPTLY = struct.pack("ii", 1, 0)


class FaultyLine:
    """A TCP line in front of a server, to be cut, delayed, silenced, or made to lose a reply.

        async with FaultyLine(server.url) as line:
            queue = RedisMessageQueue("orders", line.url)
            line.cut()
            ...
            line.heal()

    It lives in the running event loop. Its methods are synchronous and take effect at once, for
    all connections and those to come, until `heal()`. The port stays the same all the while.

    Of a Cluster or behind Sentinel, it stands before one node: clients learn the addresses of the
    others, and of this one, from the servers.
    """

    def __init__(self, url: str) -> None:
        """Describe the line; nothing is opened.

        Args:
            url: The server behind it: `redis://user:password@host:port/db`.
        """
        self._parts = urlsplit(url)
        self._target = (self._parts.hostname or HOST, self._parts.port or 6379)
        self._server: asyncio.Server | None = None
        self._port: int | None = None
        self._connections: dict[_Connection, asyncio.Task[None] | None] = {}
        self._changed = asyncio.Event()
        self._is_cut = False
        self._delays: dict[Direction, float] = {}
        self._silent: set[Direction] = set()
        self._armed: Fault | None = None
        self.attempts: int = 0
        """Connections that clients have opened so far, those that were broken off included."""

    async def __aenter__(self) -> Self:
        """Open it."""
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        await self.stop()

    def __repr__(self) -> str:
        host, port = self._target
        return f"<FaultyLine {self._port or 'without a port'} to {host}:{port}>"

    async def start(self) -> None:
        """Listen on a free port; does nothing when it does already."""
        if self._server is None:
            self._server = await asyncio.start_server(
                self._serve, HOST, self._port or 0, limit=_PIECE
            )
            self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Break every connection off and listen no more; may be repeated."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        self.drop()
        tasks = [task for task in self._connections.values() if task is not None]
        if tasks:
            await asyncio.wait(tasks)

    @property
    def port(self) -> int:
        """Where it listens; known once it has been started."""
        if self._port is None:
            msg = "the line has no port yet: use `async with`, or await start()"
            raise RuntimeError(msg)
        return self._port

    @property
    def url(self) -> str:
        """The server's URL with this line's address in place of its own."""
        credentials, at, _ = self._parts.netloc.rpartition("@")
        netloc = f"{credentials}{at}{HOST}:{self.port}"
        return self._parts._replace(netloc=netloc).geturl()

    @property
    def open_connections(self) -> int:
        """Connections of clients that are open now."""
        return len(self._connections)

    @property
    def is_armed(self) -> bool:
        """Whether `reset_after_request` or `truncate_reply` still waits for its request."""
        return self._armed is not None

    # -- faults --------------------------------------------------------------------------------

    def cut(self) -> None:
        """Reset every connection, and each new one as soon as it is made."""
        self._is_cut = True
        self.drop()

    def drop(self) -> None:
        """Reset the connections that are open now; new ones work."""
        for connection in list(self._connections):
            connection.reset()

    def delay(self, seconds: float, only: Direction | None = None) -> None:
        """Let everything take so much longer, each way; order is kept.

        What is on its way already is delayed too.

        Args:
            seconds: From coming in to going out.
            only: One direction; None for both.
        """
        self._delays.update(dict.fromkeys(_chosen(only), seconds))
        self._change()

    def black_hole(self, only: Direction | None = None) -> None:
        """Let nothing pass, not even the end of a connection: a half-open line.

        New connections are taken, and nothing answers. `heal()` lets what was sent meanwhile pass
        after all, as TCP does: a request may arrive long after its sender has given up.

        Args:
            only: One direction; None for both.
        """
        self._silent.update(_chosen(only))
        self._change()

    def reset_after_request(self, containing: bytes = b"") -> None:
        """Lose one reply: the next request is delivered and done, then its connection is reset.

        Replies due before it still arrive. Happens once; arming again replaces what is armed.

        Args:
            containing: Bytes the request must contain, such as a command's name.
        """
        self._armed = Fault(containing, passing=0, end=End.RESET)

    def truncate_reply(self, size: int, containing: bytes = b"") -> None:
        """Close the connection of the next request in the middle of its reply.

        Replies due before it still arrive. Happens once; arming again replaces what is armed.

        Args:
            size: Bytes of the reply that arrive; never the whole of it.
            containing: Bytes the request must contain, such as a command's name.
        """
        self._armed = Fault(containing, passing=size, end=End.CLOSE)

    def heal(self) -> None:
        """Let everything pass again, at once; what is armed and has not happened never will."""
        self._is_cut = False
        self._delays.clear()
        self._silent.clear()
        self._armed = None
        self._change()

    # -- called by connections -----------------------------------------------------------------

    async def passage(self, direction: Direction, since: float) -> None:
        """Return when what came in at `since` may go out."""
        now = asyncio.get_running_loop().time
        while True:
            changed = self._changed
            wait = None
            if direction not in self._silent:
                wait = since + self._delays.get(direction, 0.0) - now()
                if wait <= 0:
                    return
            with move_on_after(wait):
                await changed.wait()

    def fault_of(self, request: bytes) -> Fault | None:
        """Hand out what is armed if it is meant for this request."""
        fault = self._armed
        if fault is None or fault.containing not in request:
            return None
        self._armed = None
        return fault

    def _change(self) -> None:
        """Let everyone who waits look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Carry one connection, from its acceptance to its end."""
        self.attempts += 1
        connection = _Connection(self, reader, writer)
        if self._is_cut or self._server is None:
            connection.reset()
            return
        self._connections[connection] = asyncio.current_task()
        try:
            await connection.run(*self._target)
        finally:
            del self._connections[connection]


class _Connection:
    """One connection of a client, and the one to the server that carries it on."""

    def __init__(
        self,
        line: FaultyLine,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._line = line
        self._reader = reader
        self._client = writer
        self._server: asyncio.StreamWriter | None = None
        self._scope = CancelScope()
        self._doom = Doom(line.fault_of)

    async def run(self, host: str, port: int) -> None:
        """Carry bytes until both sides have said their last."""
        try:
            with self._scope:
                # A server beyond a silent line does not even see the connection.
                await self._line.passage("requests", 0.0)
                reader, self._server = await asyncio.open_connection(
                    host, port, limit=_PIECE
                )
                there = _Flow("requests", self._line, self._reader, self._server)
                back = _Flow("replies", self._line, reader, self._client)
                async with create_task_group() as tasks:
                    tasks.start_soon(there.take, self._doom.requests)
                    tasks.start_soon(back.take, self._doom.replies)
                    tasks.start_soon(there.give)
                    tasks.start_soon(back.give)
        except* OSError:
            self.reset()  # one side is gone, or was never there
        finally:
            for writer in (self._client, self._server):
                if writer is not None:
                    writer.transport.abort()

    def reset(self) -> None:
        """End it at once, on both sides."""
        self._scope.cancel()
        for writer in (self._client, self._server):
            if writer is not None:
                _reset(writer)


class _Flow:
    """One direction of a connection: what comes in goes out in order, when the line lets it."""

    def __init__(
        self,
        direction: Direction,
        line: FaultyLine,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
    ) -> None:
        target.transport.set_write_buffer_limits(0)  # `drain` waits for the last byte
        self._direction = direction
        self._line = line
        self._source = source
        self._target = target
        self._held: asyncio.Queue[tuple[float, bytes | End]] = asyncio.Queue(_HELD)

    async def take(self, look: Callable[[bytes], list[bytes | End]]) -> None:
        """Take in what comes, until its end; `look` says what of it goes on."""
        now = asyncio.get_running_loop().time
        while data := await self._source.read(_PIECE):
            for item in look(data):
                await self._held.put((now(), item))
        await self._held.put((now(), End.CLOSE))

    async def give(self) -> None:
        """Send on what was taken in, until its end."""
        item: bytes | End = b""
        while not isinstance(item, End):
            since, item = await self._held.get()
            await self._line.passage(self._direction, since)
            if isinstance(item, bytes):
                self._target.write(item)
                await self._target.drain()
        if item is End.RESET:
            _reset(self._target)
        elif self._direction == "requests" and not self._target.is_closing():
            self._target.write_eof()  # its replies may still be under way
        else:
            self._target.close()


def _chosen(only: Direction | None) -> tuple[Direction, ...]:
    return _BOTH if only is None else (only,)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection the rude way, so that its peer is told of an error."""
    peer: socket.socket | None = writer.get_extra_info("socket")
    if peer is not None and not writer.transport.is_closing():
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABRUPTLY)
    writer.transport.abort()
