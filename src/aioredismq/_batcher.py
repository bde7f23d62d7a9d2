"""Many awaits, one write: the sends of one event-loop turn become one numbered batch.

A batch is one script call that stores all of its messages or none, and can be sent again without
storing them twice: its number is remembered by the server. So whatever happens to the line, what
was not answered is simply sent again once there is a connection.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any

from . import _scripts as scripts
from ._backlog import Backlog
from ._batch import Batch
from ._clock import elapsed
from ._errors import (
    ConnectionLostError,
    MessageQueueError,
    NotInitializedError,
    ServerError,
    ServerNotReadyError,
    UnsupportedServerError,
)
from ._memory import Memory
from ._pauses import pauses
from ._wire import pack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._config import ProducerConfig
    from ._keys import QueueKeys
    from ._link import Link

# A server that is not ready is asked again after so long at most: a few commands a second from each
# producer, whatever waits, and what waits is on its way well within a second of its return.
_LONGEST_PAUSE = 0.4


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
        self._memory = Memory(self._keys[1], config.produce_timeout)
        self._backlog = Backlog(config)
        self._entering = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._resolved = asyncio.Event()
        # While held, only the probe is sent, now or by the timer: what becomes of it decides.
        self._is_held = False
        self._probe: Batch | None = None
        self._asking: asyncio.TimerHandle | None = None
        self._following = pauses(_LONGEST_PAUSE)
        self._refusal: ServerError | None = None
        link.on_up(self._ask)

    # -- sending -------------------------------------------------------------------------------

    async def append(self, fields: Sequence[bytes], size: int, times: str = "") -> str:
        """Store one message; returns its id.

        Args:
            fields: Its fields, flat.
            size: Their bytes, about.
            times: `delay:at:life` in ms, each may be empty; empty for a plain message.

        Raises:
            BacklogError: No room among the waiting for `produce_timeout`; nothing was sent.
            PublishUncertainError: No answer in time, or refused after its line was lost.
            ServerError: Redis refuses it, or was away all the time; it is not stored.

        Cancellation: the message may be stored; the rest of its batch is unharmed.
        """
        late: float | None = None
        if self._closed or self._backlog.is_full(size):
            late = await self._wait_for_room(1, size)
        else:
            self._backlog.add(1, size)
        config = self._config
        batch = self._open
        if batch is not None and (
            batch.size + size > config.max_batch_bytes
            or batch.ends_at_another_time(late, config.produce_timeout)
        ):
            self._flush()
            batch = None
        if batch is None:
            batch = self._open_batch(late)
        batch.add(fields, size, times)
        future: asyncio.Future[str] = self._loop.create_future()
        batch.waiters.append(future)
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
        future = self.submit_now(messages, times)
        if future is None:
            size = _size(messages)
            late = await self._wait_for_room(len(messages), size)
            future = self._submit(messages, size, times, late)
        return future

    def submit_now(
        self, messages: Sequence[Sequence[bytes]], times: str = ""
    ) -> asyncio.Future[list[str]] | None:
        """Do as `submit_all` when there is room at once.

        Returns:
            None when there is no room, or the batcher is closed.
        """
        size = _size(messages)
        if self._closed or self._backlog.is_full(size):
            return None
        self._backlog.add(len(messages), size)
        return self._submit(messages, size, times, None)

    def _submit(
        self,
        messages: Sequence[Sequence[bytes]],
        size: int,
        times: str,
        late: float | None,
    ) -> asyncio.Future[list[str]]:
        self._flush()
        batch = self._open_batch(late)
        self._open = None  # nobody else's sends join it
        for fields in messages:
            batch.add(fields, 0, times)
        batch.size = size
        future = batch.wait_as_one(self._loop.create_future())
        self._unresolved[batch.number] = batch
        self._send(batch)
        return future

    async def close(self) -> None:
        """Wait until everything waiting is answered or given up; then refuse more."""
        self._closed = True
        self._flush()
        while self._unresolved or self._open is not None or self._entering:
            self._resolved.clear()
            await self._resolved.wait()
        if self._link.is_up:  # else what is remembered ends by itself
            self._link.submit(pack(*self._memory.last_command()), lambda _: None)
        self._link.forget(self._ask)
        for timer in (self._timer, self._asking):
            if timer is not None:
                timer.cancel()

    async def _wait_for_room(self, count: int, size: int) -> float:
        """Give the deadline for the whole: waiting for room takes from the time for the answer."""
        self._refuse_if_closed()
        self._entering += 1
        try:
            return await self._backlog.enter(count, size)
        finally:
            self._entering -= 1
            self._resolved.set()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            msg = "the producer is closed: initialize the queue again"
            raise NotInitializedError(msg)

    # -- batches -------------------------------------------------------------------------------

    def _open_batch(self, late: float | None) -> Batch:
        in_time = self._loop.time() + self._config.produce_timeout
        batch = self._open = Batch(self._next, in_time if late is None else late)
        batch.late = late
        self._next += 1
        return batch

    def _end_of_turn(self) -> None:
        self._flush_due = False
        self._flush()

    def _flush(self) -> None:
        batch, self._open = self._open, None
        if batch is not None:
            self._unresolved[batch.number] = batch
            self._send(batch)

    def _send(self, batch: Batch, *, whole: bool = False, asks: bool = False) -> None:
        self._keep_deadline(batch)
        if self._is_held and not asks:
            return  # sent when the server takes the probe
        if not self._link.is_up or batch.number not in self._unresolved:
            return  # sent when the link is up again; or over before it began
        now = elapsed()
        make = scripts.APPEND.whole if whole else scripts.APPEND.by_digest
        command = make(
            self._keys_with_times if batch.has_times else self._keys,
            [
                batch.number,
                self._memory.low(self._unresolved, self._next, now),
                self._memory.life_ms,
                self._memory.renews(now),
                self._bell,
                *batch.arguments,
            ],
        )
        batch.under_way = True
        if batch.first_sent is None:
            batch.first_sent = now
        self._link.submit(command, lambda reply: self._answered(batch, reply))

    def _ask(self) -> None:
        """Send the oldest batch alone, on a new connection too; the others wait for its answer."""
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None
        if not self._link.is_up:
            return  # asked when it is
        self._give_up_forgotten()
        waiting = [at for at, each in self._unresolved.items() if not each.under_way]
        if not waiting:
            self._go_on()  # whatever is sent next will ask
            return
        self._is_held = True
        self._probe = self._unresolved[min(waiting)]
        self._send(self._probe, asks=True)

    def _hold(self, batch: Batch, refusal: ServerNotReadyError) -> None:
        """Ask again a little later."""
        batch.refusal = self._refusal = refusal
        if self._link.follow(refusal):
            return  # asked when the link is up again
        if self._asking is None and (batch is self._probe or not self._is_held):
            self._is_held = True
            self._asking = self._loop.call_later(self._following(), self._ask)

    def _go_on(self) -> None:
        """Send everything that has waited for the probe, in order."""
        self._probe = self._refusal = None
        self._is_held = False
        self._give_up_forgotten()
        for _, batch in sorted(self._unresolved.items()):
            if not batch.under_way:
                self._send(batch)

    def _answered(self, batch: Batch, reply: Any) -> None:
        batch.under_way = False
        if isinstance(reply, bytes):
            self._resolve(batch, reply.decode().split(" "))
        elif not self._is_refused(batch, reply):
            return
        if batch is self._probe:
            self._go_on()

    def _is_refused(self, batch: Batch, reply: ServerError) -> bool:
        """Say whether an error is the last word on a batch, or it is sent once more."""
        self._memory.renew_again()
        match reply:
            case ConnectionLostError() | UnsupportedServerError():
                self._memory.lose(batch)  # sent again when the link is up
            case ServerNotReadyError():
                self._hold(batch, reply)
            case ServerError(code="NOSCRIPT") if batch.number in self._unresolved:
                self._send(batch, whole=True, asks=True)
            case _:
                self._reject(batch, reply)
                return True
        return False

    def _resolve(self, batch: Batch, ids: list[str]) -> None:
        batch.ids = ids
        if batch.is_uncertain:
            self._memory.drop(batch)
        if self._settle(batch):
            batch.fulfil(ids)

    def _reject(self, batch: Batch, error: ServerError) -> None:
        if batch.in_doubt:
            # Refused this time; but what was sent on a lost line may still arrive and be stored.
            why = f"the line was lost, then it was refused ({error})"
            self._leave_in_doubt(batch, why, error)
            return
        if self._settle(batch):
            batch.refuse(error)

    def _settle(self, batch: Batch) -> bool:
        """Take a batch off the unresolved; False when it was given up before."""
        if self._unresolved.pop(batch.number, None) is None:
            return False
        if self._closed:
            self._resolved.set()
        self._backlog.remove(batch.count, batch.size)
        return True

    # -- giving up -----------------------------------------------------------------------------

    def _keep_deadline(self, batch: Batch) -> None:
        """One timer for all, armed while anything waits."""
        if self._timer is None:
            self._watch()
        elif batch.late is not None and batch.deadline < self._timer.when():
            self._timer.cancel()
            self._timer = self._loop.call_at(batch.deadline, self._watch)

    def _watch(self) -> None:
        self._timer = None
        now = self._loop.time()
        for batch in list(self._unresolved.values()):
            if batch.deadline <= now:
                self._give_up(batch)
        if self._unresolved:
            first = min(batch.deadline for batch in self._unresolved.values())
            # Most batches come in the order of their deadlines, so this fires seldom.
            self._timer = self._loop.call_at(max(first, now + 0.01), self._watch)

    def _give_up(self, batch: Batch) -> None:
        if not batch.in_doubt and not batch.under_way:
            reason = batch.refusal or self._link.failure or self._refusal
            self._reject(batch, reason or ConnectionLostError("Redis did not answer"))
            return
        self._leave_in_doubt(
            batch, f"no answer within {self._config.produce_timeout:g} s"
        )

    def _give_up_forgotten(self) -> None:
        """Send nothing again that the server may have forgotten, as after a long sleep."""
        now = elapsed()
        for batch in list(self._unresolved.values()):
            if not batch.under_way and not self._memory.may_be_sent_again(batch, now):
                self._give_up(batch)

    def _leave_in_doubt(
        self, batch: Batch, why: str, cause: ServerError | None = None
    ) -> None:
        if self._settle(batch):
            self._memory.keep(batch)
            batch.leave_in_doubt(why, cause, self._retry)

    async def _retry(self, batch: Batch) -> list[str]:
        """Send a batch that was given up again, once for all who ask."""
        if batch.ids is not None:
            return batch.ids  # the answer came late
        if batch.number not in self._unresolved:
            self._refuse_if_closed()
            if not self._memory.may_be_retried(batch, elapsed()):
                msg = "too late to retry: the server may have forgotten this message"
                raise MessageQueueError(msg)
            batch.waiters = []
            batch.wait_as_one(self._loop.create_future())
            batch.deadline = self._loop.time() + self._config.produce_timeout
            self._unresolved[batch.number] = batch
            self._backlog.add(batch.count, batch.size)
            if batch.under_way:
                # Its answer, or the end of its line, is still to come.
                self._keep_deadline(batch)
            else:
                self._send(batch)
        assert batch.whole is not None  # set whenever a batch is retried
        return await asyncio.shield(batch.whole)


def _size(messages: Sequence[Sequence[bytes]]) -> int:
    return sum(len(part) for fields in messages for part in fields)
