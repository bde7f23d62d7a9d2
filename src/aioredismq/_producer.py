"""`Producer`: bodies in, ids out."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from anyio import CancelScope

from ._batcher import Batcher
from ._codec import encode, encode_original
from ._config import ProducerConfig
from ._errors import (
    ConfigurationError,
    EncodeError,
    MessageQueueError,
    NotInitializedError,
    PublishManyError,
    PublishUncertainError,
)
from ._times import written

if TYPE_CHECKING:
    from datetime import datetime
    from types import TracebackType
    from typing import Self

    from ._channel import OnChannel

# Redis takes no longer value (`proto-max-bulk-len`): it would cut the connection all share.
_LARGEST = 512 * 1024 * 1024

# Batches of `produce_many` on their way at once: enough that the next one is encoded while the
# answer of the last one comes back.
_UNDER_WAY = 4

# An asynchronous source that gives nothing for so long is waiting for something itself; what it
# has given is not kept for a chunk to fill. Longer than a turn of a busy event loop.
_PAUSE = 0.005
# Without room it is looked at again after this.
_NO_ROOM = 0.05


class Producer:
    """Send messages to one queue.

    Sends of concurrent tasks share round trips. Made by `RedisMessageQueue`, or by hand.

    Args:
        queue: The queue to send to.
        config: How to gather and send.
    """

    def __init__(self, queue: OnChannel, config: ProducerConfig | None = None) -> None:
        """Nothing is opened."""
        channel = self._channel = queue.channel
        self._config = config or ProducerConfig()
        self._batcher: Batcher | None = None
        self._encode = encode_original if channel.config.wire == "original" else encode

    async def __aenter__(self) -> Self:
        """Open it: connect and make the stream unless it is there."""
        await self.open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it once everything sent is answered."""
        await self.close()

    async def open(self) -> None:
        """Connect. Doing it again changes nothing.

        Raises:
            ServerError: Redis cannot be reached or refuses.
        """
        if self._batcher is not None:
            self._channel.connection.check()
            return
        stream = await self._channel.open()
        self._batcher = Batcher(stream.link, stream.keys, self._config)

    async def close(self) -> None:
        """Wait for what was sent to be answered, and disconnect.

        It takes `produce_timeout` at most.

        Raises:
            WrongLoopError: It is open on another event loop, or in the parent process.

        Cancellation: it still disconnects; what was not answered may or may not be stored.
        """
        batcher = self._batcher
        if batcher is None:
            return
        self._channel.connection.check()
        self._batcher = None
        try:
            await batcher.close()
        finally:
            with CancelScope(shield=True):
                await self._channel.close()

    async def produce(
        self,
        body: object,
        *,
        headers: Mapping[str, str] | None = None,
        delay: float | None = None,
        at: datetime | float | None = None,
        expires: float | None = None,
    ) -> str:
        """Send one message.

        Args:
            body: Any JSON value, a dataclass, a pydantic or msgspec model; `bytes` and `str`
                travel as they are.
            headers: Text beside the body; names beginning with `mq-` are reserved.
            delay: Seconds until it may be handled, by the server's clock.
            at: When it may be handled: seconds since the epoch, or a `datetime` with a zone.
            expires: Seconds after which it is not handled any more; see `expired` of
                `ConsumerConfig`.

        Returns:
            The message's id, once Redis has stored it.

        Raises:
            EncodeError: The body or a header cannot be sent; nothing was.
            BacklogError: Redis is away and too many sends are waiting; nothing was sent.
            PublishUncertainError: In doubt (no answer in time, a lost line); `retry()` is safe.
            ServerError: Redis refuses it, or was away all the time; it is not stored.

        Cancellation: the message may or may not be stored; nothing else is affected.
        """
        batcher = self._batcher
        if batcher is None:
            raise _closed(self._channel.keys.name)
        self._channel.connection.check()
        fields = self._encode(body, headers, self._config.dumps)
        if delay is None and at is None and expires is None:
            return await batcher.append(fields, _size(fields))
        return await batcher.append(fields, _size(fields), written(delay, at, expires))

    async def produce_many(
        self,
        bodies: Iterable[object] | AsyncIterable[object],
        *,
        headers: Mapping[str, str] | None = None,
        delay: float | None = None,
        at: datetime | float | None = None,
        expires: float | None = None,
    ) -> list[str]:
        """Send many messages in chunks, several on their way at once.

        Args:
            bodies: Any iterable or asynchronous iterable; it is not held in memory as a whole.
                When an asynchronous one pauses, what it has given is sent.
            headers: For each of them.
            delay: For each of them, as `produce`.
            at: For each of them, as `produce`.
            expires: For each of them, as `produce`.

        Returns:
            Their ids, in order.

        Raises:
            PublishManyError: It stopped in the middle: the error says which are stored. Its
                cause is what `produce` would have raised, or what the iterable raised.

        Cancellation: what is under way may or may not be stored.
        """
        batcher = self._batcher
        if batcher is None:
            raise _closed(self._channel.keys.name)
        self._channel.connection.check()
        source = _each(bodies)
        limit = min(self._config.max_batch, self._config.max_waiting)
        run = _Run(batcher, written(delay, at, expires), may_pause=source is bodies)
        chunk = run.chunk
        size = taken = 0
        try:
            async for body in source:
                taken += 1
                fields = self._encode(body, headers, self._config.dumps)
                mine = _size(fields)
                if chunk and (
                    len(chunk) >= limit or size + mine > self._config.max_batch_bytes
                ):
                    await run.send()
                if not chunk:
                    await run.begin()
                    size = 0
                chunk.append(fields)
                size += mine
            if chunk:
                await run.send()
            await run.finish()
        except Exception as error:
            raise await run.failed(error, taken) from error
        finally:
            run.watch_no_more()
        return run.stored


class _Run:
    """One `produce_many`: what gathers, chunks under way, in order, and what became of them.

    Attributes:
        chunk: Bodies that are not sent yet; always the same list, empty when they are.
    """

    def __init__(self, batcher: Batcher, times: str, *, may_pause: bool) -> None:
        self.chunk: list[tuple[bytes, ...]] = []
        self._batcher = batcher
        self._times = times
        self._under_way: deque[tuple[int, asyncio.Future[list[str]]]] = deque()
        self._ids: list[str | None] = []
        self._doubts: dict[range, PublishUncertainError] = {}
        self._may_pause = may_pause
        self._begun = 0
        self._seen = (0, 0)
        self._has_failed = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def stored(self) -> list[str]:
        return [message_id for message_id in self._ids if message_id is not None]

    async def begin(self) -> None:
        """Begin a chunk: find out what has failed meanwhile, and watch for a pause."""
        if self._has_failed:
            await self.finish()  # which raises it
        await self._await_done()
        self._begun += 1
        if self._may_pause and self._timer is None:
            self._seen = self._begun, 1
            self._look_after(_PAUSE)

    async def send(self) -> None:
        """Send the chunk once there is room."""
        chunk = self.chunk.copy()
        self.chunk.clear()
        await self._await_done()
        while len(self._under_way) >= _UNDER_WAY:
            await self._await_first()
        future = await self._batcher.submit_all(chunk, self._times)
        self._under_way.append((len(chunk), future))

    def watch_no_more(self) -> None:
        """Send nothing by itself any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_after(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        """Send what there is if the source pauses; it is not touched by that."""
        self._timer = None
        if not self.chunk:
            return  # the next one is watched again
        seen, self._seen = self._seen, (self._begun, len(self.chunk))
        if seen != self._seen:
            self._look_after(_PAUSE)
            return
        waiting = [future for _, future in self._under_way if not future.done()]
        if any(map(_is_failed, self._under_way)):
            self._has_failed = True
            self.chunk.clear()  # nothing more is sent; the next body finds out
        elif len(waiting) >= _UNDER_WAY or not self._send_now():
            self._look_after(_NO_ROOM)

    def _send_now(self) -> bool:
        future = self._batcher.submit_now(self.chunk, self._times)
        if future is None:
            return False
        self._under_way.append((len(self.chunk), future))
        self.chunk.clear()
        return True

    async def finish(self) -> None:
        while self._under_way:
            await self._await_first()

    async def _await_done(self) -> None:
        while self._under_way and self._under_way[0][1].done():
            await self._await_first()

    async def _await_first(self) -> None:
        count, future = self._under_way[0]
        try:
            ids = await future
        except MessageQueueError as error:
            self._under_way.popleft()
            if isinstance(error, PublishUncertainError):
                positions = range(len(self._ids), len(self._ids) + count)
                self._doubts[positions] = error
            self._ids += [None] * count
            raise
        self._under_way.popleft()
        self._ids += ids

    async def failed(self, cause: Exception, taken: int) -> PublishManyError:
        """Wait for what else is under way, then say what became of each."""
        self.watch_no_more()
        while self._under_way:
            try:
                await self._await_first()
            except MessageQueueError:
                continue  # counted; the first cause is the one that is told
        self._ids += [None] * (taken - len(self._ids))
        stored = len(self.stored)
        text = f"{stored} of {len(self._ids)} messages are stored: {cause}"
        if self._doubts:
            text += (
                f" ({sum(map(len, self._doubts))} more may be; `await error.retry()` finds out "
                "without storing any twice)"
            )
        return PublishManyError(text, self._ids, self._doubts)


def _is_failed(one: tuple[int, asyncio.Future[list[str]]]) -> bool:
    _, future = one
    return future.done() and (future.cancelled() or future.exception() is not None)


def _each(bodies: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterable[Any]:
    match bodies:
        case str() | bytes() | bytearray() | memoryview() | Mapping():
            msg = (
                f"produce_many takes an iterable of bodies, got one {type(bodies).__name__}: "
                "use produce"
            )
            raise ConfigurationError(msg)
        case AsyncIterable():
            return bodies
        case Iterable():
            return _stepwise(bodies)
        case _:
            msg = (
                "produce_many takes an iterable or asynchronous iterable of bodies, got "
                f"{type(bodies).__name__}"
            )
            raise ConfigurationError(msg)


async def _stepwise(bodies: Iterable[Any]) -> AsyncIterator[Any]:
    for body in bodies:
        yield body


def _size(fields: tuple[bytes, ...]) -> int:
    # Which of the two holds the body depends on the wire.
    two = len(fields) == 2
    size = len(fields[0]) + len(fields[1]) if two else sum(map(len, fields))
    if size > _LARGEST:
        msg = f"a message must be at most {_LARGEST} bytes, got {size}"
        raise EncodeError(msg)
    return size


def _closed(name: str) -> NotInitializedError:
    return NotInitializedError(
        f"queue {name!r} is not initialized: `await queue.initialize()`, or use "
        "`async with queue:`"
    )
