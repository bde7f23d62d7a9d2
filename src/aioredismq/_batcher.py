"""Many awaits, one write: the sends of one event-loop turn become one numbered batch.

A batch is one script call that stores all of its messages or none, and can be sent again without
storing them twice: its number is remembered by the server. So whatever happens to the line, what
was not answered is simply sent again once there is a connection.
"""

from __future__ import annotations

import asyncio
import secrets
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from . import _scripts as scripts
from ._batch import Batch
from ._errors import (
    BacklogError,
    ConnectionLostError,
    MessageQueueError,
    NotInitializedError,
    PublishUncertainError,
    ServerError,
    ServerNotReadyError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._config import ProducerConfig
    from ._keys import QueueKeys
    from ._link import Link

# How long the server remembers a batch after the producer's last one: how late `retry()` may be.
_MEMORY = 600.0
_MEMORY_MS = int(_MEMORY * 1000)
# Renewed at most once in this time, which is one server call less for the others.
_RENEW = 60.0
# The server is told of progress in steps of so many batches: one call less for all but one.
_STEP = 16

# The server says it is not ready: tried again after this, until `produce_timeout`.
_PAUSE = 0.1

_ELSEWHERE = frozenset({"MOVED", "ASK", "READONLY"})


class Batcher:
    """Gather sends to one stream and see each through to its ids or its error.

    State is changed by plain calls and by replies; there is no task. What waits is bounded by
    `max_waiting` and `max_waiting_bytes`.
    """

    def __init__(self, link: Link, keys: QueueKeys, config: ProducerConfig) -> None:
        """Send over `link`; one batcher per queue, event loop and incarnation."""
        self._link = link
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._keys = [keys.stream, keys.sent(secrets.token_hex(8))]
        self._keys_with_times = [*self._keys, keys.delayed, keys.delayed_fields]
        self._bell = keys.bell
        self._next = 1
        self._open: Batch | None = None
        self._flush_due = False
        self._unresolved: dict[int, Batch] = {}
        # Given up without an answer; alive as long as somebody may still `retry()` it.
        self._uncertain: weakref.WeakValueDictionary[int, Batch] = (
            weakref.WeakValueDictionary()
        )
        self._waiting = 0
        self._waiting_bytes = 0
        self._room: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._renewed = -_RENEW
        self._closed = False
        self._resolved = asyncio.Event()
        link.on_up(self._send_again)

    # -- sending -------------------------------------------------------------------------------

    async def append(self, fields: Sequence[bytes], size: int, times: str = "") -> str:
        """Store one message; returns its id.

        Args:
            fields: Its fields, flat.
            size: Their bytes, about.
            times: `delay:at:life` in ms, each may be empty; empty for a plain message.

        Raises:
            BacklogError: No room among the waiting for `produce_timeout`; nothing was sent.
            PublishUncertainError: No answer in time; it may or may not be stored.
            ServerError: Redis refuses it, or was away all the time; it is not stored.

        Cancellation: the message may be stored; the rest of its batch is unharmed.
        """
        if self._closed or self._is_full(size):
            await self._wait_for_room(size)
        batch = self._open
        if batch is None:
            batch = self._open_batch()
        batch.add(fields, size, times)
        self._waiting += 1
        self._waiting_bytes += size
        future: asyncio.Future[str] = self._loop.create_future()
        batch.waiters.append(future)
        config = self._config
        if batch.count >= config.max_batch or batch.size >= config.max_batch_bytes:
            self._flush()
        elif not self._unresolved:
            # Nothing is under way: a lone send waits for nobody. Those of the same turn gather
            # behind it.
            self._flush()
        elif not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._end_of_turn)
        return await future

    async def submit_all(
        self, messages: Sequence[Sequence[bytes]], times: str = ""
    ) -> asyncio.Future[list[str]]:
        """Send several messages as one batch once there is room, all or nothing.

        Args:
            messages: At most `max_batch`, each as its flat fields.
            times: For each, as `append`.

        Returns:
            A future with their ids in order, or with what `append` would raise.

        Raises:
            BacklogError: As `append`.
        """
        size = sum(len(part) for fields in messages for part in fields)
        if self._closed or self._is_full(size):
            await self._wait_for_room(size)
        if self._open is not None:
            self._flush()
        batch = self._open_batch()
        self._open = None  # nobody else's sends join it
        for fields in messages:
            batch.add(fields, 0, times)
        batch.size = size
        self._waiting += batch.count
        self._waiting_bytes += size
        batch.whole = self._loop.create_future()
        self._unresolved[batch.number] = batch
        self._send(batch)
        return batch.whole

    async def close(self) -> None:
        """Wait until everything waiting is answered or given up; then refuse more."""
        self._closed = True
        if self._open is not None:
            self._flush()
        while self._unresolved or self._open is not None:
            self._resolved.clear()
            await self._resolved.wait()
        self._link.forget(self._send_again)
        if self._timer is not None:
            self._timer.cancel()

    # -- room ----------------------------------------------------------------------------------

    def _is_full(self, size: int) -> bool:
        # An oversized message may pass when nothing else waits, or it never could.
        return self._waiting >= self._config.max_waiting or (
            self._waiting > 0
            and self._waiting_bytes + size > self._config.max_waiting_bytes
        )

    async def _wait_for_room(self, size: int) -> None:
        if self._closed:
            msg = "the producer is closed: initialize the queue again"
            raise NotInitializedError(msg)
        try:
            async with asyncio.timeout(self._config.produce_timeout):
                while self._is_full(size):
                    future: asyncio.Future[None] = self._loop.create_future()
                    self._room.append(future)
                    try:
                        await future
                    finally:
                        if future in self._room:
                            self._room.remove(future)
        except TimeoutError:
            self._make_room()
            msg = (
                f"{self._waiting} sends ({self._waiting_bytes} bytes) have waited for an "
                f"answer for {self._config.produce_timeout:g} s: Redis is away or slow"
            )
            raise BacklogError(msg) from None

    def _make_room(self) -> None:
        """Let as many go on as there is room for."""
        room = self._config.max_waiting - self._waiting
        while self._room and room > 0:
            future = self._room.popleft()
            if not future.done():
                future.set_result(None)
                room -= 1

    # -- batches -------------------------------------------------------------------------------

    def _open_batch(self) -> Batch:
        deadline = self._loop.time() + self._config.produce_timeout
        batch = self._open = Batch(self._next, deadline)
        self._next += 1
        return batch

    def _end_of_turn(self) -> None:
        self._flush_due = False
        if self._open is not None:
            self._flush()

    def _flush(self) -> None:
        batch, self._open = self._open, None
        if batch is not None:
            self._unresolved[batch.number] = batch
            self._send(batch)

    def _send(self, batch: Batch, *, whole: bool = False) -> None:
        if self._timer is None:
            self._watch()
        if not self._link.is_up:
            return  # sent when the link is up again
        make = scripts.APPEND.whole if whole else scripts.APPEND.by_digest
        command = make(
            self._keys_with_times if batch.has_times else self._keys,
            [
                batch.number,
                self._low(),
                _MEMORY_MS,
                self._renews(),
                self._bell,
                *batch.arguments,
            ],
        )
        batch.under_way = True
        if batch.first_sent is None:
            batch.first_sent = self._loop.time()
        self._link.submit(command, lambda reply: self._answered(batch, reply))

    def _low(self) -> int:
        """Say below which number nothing is sent again: only those may the server forget."""
        low = next(iter(self._unresolved), self._next)
        if self._uncertain:
            low = min(low, *self._uncertain.keys())
        return low - low % _STEP

    def _renews(self) -> int:
        now = self._loop.time()
        if now - self._renewed < _RENEW:
            return 0
        self._renewed = now
        return 1

    def _send_again(self) -> None:
        for batch in sorted(self._unresolved.values(), key=lambda item: item.number):
            if not batch.under_way:
                self._send(batch)

    def _answered(self, batch: Batch, reply: Any) -> None:
        batch.under_way = False
        if isinstance(reply, bytes):
            self._resolve(batch, reply.decode().split(" "))
        elif isinstance(reply, ConnectionLostError):
            pass  # sent again when the link is up
        elif isinstance(reply, ServerNotReadyError):
            if reply.code in _ELSEWHERE:
                self._link.renew()
            else:
                self._loop.call_later(_PAUSE, self._send_again)
        elif isinstance(reply, ServerError) and reply.code == "NOSCRIPT":
            if batch.number in self._unresolved:
                self._send(batch, whole=True)
        else:
            self._reject(batch, reply)

    def _resolve(self, batch: Batch, ids: list[str]) -> None:
        batch.ids = ids
        self._uncertain.pop(batch.number, None)
        if not self._settle(batch):
            return
        for future, message_id in zip(batch.waiters, ids, strict=False):
            if not future.done():
                future.set_result(message_id)
        if batch.whole is not None and not batch.whole.done():
            batch.whole.set_result(ids)

    def _reject(self, batch: Batch, error: ServerError) -> None:
        if not self._settle(batch):
            return
        for future in batch.waiters:
            if not future.done():
                future.set_exception(error.again())
        if batch.whole is not None and not batch.whole.done():
            batch.whole.set_exception(error.again())

    def _settle(self, batch: Batch) -> bool:
        """Take a batch off the unresolved; False when it was given up before."""
        if self._unresolved.pop(batch.number, None) is None:
            return False
        self._resolved.set()
        self._waiting -= batch.count
        self._waiting_bytes -= batch.size
        if self._room:
            self._make_room()
        return True

    # -- giving up -----------------------------------------------------------------------------

    def _watch(self) -> None:
        """Look at the deadlines once a while: one timer for all, armed while anything waits."""
        self._timer = None
        now = self._loop.time()
        for batch in list(self._unresolved.values()):
            if batch.deadline <= now:
                self._give_up(batch)
        if self._unresolved:
            first = min(batch.deadline for batch in self._unresolved.values())
            # Batches come in the order of their deadlines, so this fires seldom.
            self._timer = self._loop.call_at(max(first, now + 0.01), self._watch)

    def _give_up(self, batch: Batch) -> None:
        if batch.first_sent is None:
            reason = self._link.failure or ConnectionLostError(
                "there is no connection to Redis"
            )
            self._reject(batch, reason)
            return
        self._settle(batch)
        self._uncertain[batch.number] = batch
        for at, future in enumerate(batch.waiters):
            if not future.done():
                future.set_exception(self._doubt(batch, at))
        if batch.whole is not None and not batch.whole.done():
            batch.whole.set_exception(self._doubt(batch, 0))

    def _doubt(self, batch: Batch, at: int) -> PublishUncertainError:
        async def again() -> str:
            try:
                return (await self._retry(batch))[at]
            except PublishUncertainError:
                raise self._doubt(batch, at) from None

        return PublishUncertainError(
            f"no answer within {self._config.produce_timeout:g} s: the message may or may "
            "not be stored; `await error.retry()` finds out without storing it twice",
            again,
        )

    async def _retry(self, batch: Batch) -> list[str]:
        """Send a batch that was given up again, once for all who ask."""
        if batch.ids is not None:
            return batch.ids  # the answer came late
        if batch.number not in self._unresolved:
            now = self._loop.time()
            if batch.first_sent is not None and now - batch.first_sent > _MEMORY / 2:
                msg = "too late to retry: the server may have forgotten this message"
                raise MessageQueueError(msg)
            batch.waiters = []
            batch.whole = self._loop.create_future()
            # Every caller may have been cancelled by the time it is known.
            batch.whole.add_done_callback(
                lambda done: done.cancelled() or done.exception()
            )
            batch.deadline = now + self._config.produce_timeout
            self._unresolved[batch.number] = batch
            self._waiting += batch.count
            self._waiting_bytes += batch.size
            self._send(batch)
        if batch.whole is None:  # pragma: no cover -- set whenever a batch is retried
            msg = "this batch is not being retried"
            raise MessageQueueError(msg)
        return await asyncio.shield(batch.whole)
