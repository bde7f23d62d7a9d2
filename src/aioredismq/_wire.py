"""One connection to Redis, pipelined: many commands under way, their replies in order.

redis-py opens the connection (address, TLS, user, database); from then on the bytes are ours: a
command is packed by hiredis and written at once, and each wake-up of the socket drains every
reply it brought. An awaited redis-py command costs some 70-100 µs of client time, a reply here
about one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

import hiredis

from ._errors import (
    ConnectionLostError,
    ServerError,
    UnsupportedServerError,
    server_error,
)

if TYPE_CHECKING:
    from collections.abc import Callable

# What hiredis's reader answers when a reply has not arrived whole. Its default, False, is also
# what RESP3's boolean becomes.
_INCOMPLETE = object()


class Stream(Protocol):
    """What is known of an `asyncio.StreamWriter`: where its bytes go."""

    @property
    def transport(self) -> asyncio.WriteTransport:
        """The transport."""
        ...


def pack(*parts: bytes | str | float) -> bytes:
    """Pack one command for the wire."""
    packed: bytes = hiredis.pack_command(parts)  # type: ignore[arg-type]  # its stub has memoryview[int] alone
    return packed


class Wire(asyncio.Protocol):
    """A connection that many callers share, each by submitting commands.

    Not a queue: what is submitted is written at once; what bounds it is the callers' business.
    Blocking commands belong on a wire of their own.
    """

    def __init__(
        self,
        writer: Stream,
        *,
        reply_timeout: float,
        on_lost: Callable[[], None] | None = None,
        on_push: Callable[[list[Any]], None] | None = None,
        reply_error: Callable[[str], ServerError] = server_error,
    ) -> None:
        """Take over a connection on which no reply is outstanding.

        Args:
            writer: The connection's stream writer, just connected and idle. It is kept, as it
                closes its transport when it is collected.
            reply_timeout: Seconds without any progress, while replies are outstanding, after
                which the line counts as dead.
            on_lost: Called once when the connection ends, whoever ended it.
            on_push: Called with each published message (`[b"message", channel, data]`).
            reply_error: Makes the error for an error reply.
        """
        self._loop = asyncio.get_running_loop()
        self._writer = writer
        self._reply_timeout = reply_timeout
        self._on_lost = on_lost
        self._on_push = on_push
        self._waiting: deque[Callable[[Any], None]] = deque()
        self._reader = hiredis.Reader(replyError=reply_error, notEnoughData=_INCOMPLETE)
        self._error: ConnectionLostError | None = None
        self._progress = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._transport = writer.transport
        # The former protocol is told of the end, so that waiting for the writer's end ends too.
        self._former = self._transport.get_protocol()
        self._transport.set_protocol(self)

    @property
    def is_lost(self) -> bool:
        """Whether the connection has ended."""
        return self._error is not None

    @property
    def error(self) -> ConnectionLostError | None:
        """Why the connection has ended; None while it has not."""
        return self._error

    @property
    def outstanding(self) -> int:
        """Replies that have not arrived."""
        return len(self._waiting)

    def submit(self, command: bytes, on_reply: Callable[[Any], None]) -> None:
        """Write a packed command; `on_reply` is called with its reply or a `ServerError`.

        Raises:
            ConnectionLostError: The connection has ended; nothing was written.
        """
        if self._error is not None:
            raise self._error.again()
        if not self._waiting:
            self._progress = self._loop.time()
            if self._watch is None:
                self._watch = self._loop.call_later(self._reply_timeout, self._look)
        self._waiting.append(on_reply)
        self._transport.write(command)

    def call(self, *parts: bytes | str | float) -> asyncio.Future[Any]:
        """Submit a command; the future brings its reply, or raises the `ServerError`.

        Cancellation: the command was sent; its reply is read and dropped.

        Raises:
            ConnectionLostError: The connection has ended; nothing was written.
        """
        future: asyncio.Future[Any] = self._loop.create_future()

        def on_reply(reply: Any) -> None:
            if future.done():
                return
            if isinstance(reply, Exception):
                future.set_exception(reply)
            else:
                future.set_result(reply)

        self.submit(pack(*parts), on_reply)
        return future

    def close(self, error: ConnectionLostError | None = None) -> None:
        """End the connection now; outstanding replies become `ConnectionLostError`."""
        self._end(error or ConnectionLostError("the connection was closed"))
        self._transport.abort()

    # -- called by the event loop ------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Hand out every reply that has arrived whole."""
        reader, waiting = self._reader, self._waiting
        self._progress = self._loop.time()
        try:
            reader.feed(data)
            reply = reader.gets()
            while reply is not _INCOMPLETE:
                if self._on_push is not None and _is_message(reply):
                    self._on_push(reply)
                elif waiting and not isinstance(reply, hiredis.PushNotification):
                    waiting.popleft()(reply)
                elif waiting and self._on_push is not None:
                    waiting.popleft()(reply)  # RESP3 confirms a subscription by a push
                reply = reader.gets()
        except hiredis.ProtocolError as error:
            refusal = UnsupportedServerError(
                f"the peer does not speak the Redis protocol: {error}"
            )
            while waiting:
                waiting.popleft()(refusal)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everyone who waits, and the former protocol."""
        text = "the connection to Redis was lost"
        self._end(ConnectionLostError(f"{text}: {exc}" if exc else text))
        self._former.connection_lost(exc)

    def eof_received(self) -> bool:
        """Close when the server does."""
        return False

    def pause_writing(self) -> None:
        """Pass on nothing: callers bound what they have outstanding."""

    def resume_writing(self) -> None:
        """See `pause_writing`."""

    # ----------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Find out whether the line is dead: replies outstanding, and nothing for too long."""
        self._watch = None
        if not self._waiting or self._error is not None:
            return
        silent = self._loop.time() - self._progress
        if silent >= self._reply_timeout:
            self.close(
                ConnectionLostError(
                    f"Redis did not answer for {self._reply_timeout:g} s"
                )
            )
            return
        self._watch = self._loop.call_later(self._reply_timeout - silent, self._look)

    def _end(self, error: ConnectionLostError) -> None:
        if self._error is not None:
            return
        self._error = error
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        waiting, self._waiting = self._waiting, deque()
        for on_reply in waiting:
            on_reply(error.again())
        if self._on_lost is not None:
            self._on_lost()


def _is_message(reply: object) -> bool:
    return isinstance(reply, list) and bool(reply) and reply[0] == b"message"


async def exchange(wire: Wire, *parts: bytes | str | float, within: float) -> Any:
    """Send one command on a wire and wait for its reply, `within` seconds at most.

    Raises:
        ConnectionLostError: The connection has ended, or no reply came in time (the wire is then
            closed, as its next reply would be this one's).
        ServerError: Redis answered with an error.
    """
    try:
        async with asyncio.timeout(within):
            return await wire.call(*parts)
    except TimeoutError:
        wire.close()
        msg = f"Redis did not answer within {within:g} s"
        raise ConnectionLostError(msg) from None
