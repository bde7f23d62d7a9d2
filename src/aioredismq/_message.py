"""What is stored (`Entry`), what a handler gets (`Message`), what a listing shows (`Record`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ._errors import DecodeError, MessageQueueError, RejectMessage, RetryMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType


class Entry:
    """An entry as Redis delivered it to this consumer, from the stream or the group's lane.

    A plain class, not a frozen dataclass: one is made per message on the fastest path, where a
    frozen one costs three times as much.
    """

    __slots__ = ("crashes", "fields", "id", "in_lane")

    def __init__(
        self, entry_id: bytes, fields: list[bytes], *, in_lane: bool, crashes: int = 0
    ) -> None:
        """Take over the raw reply: `fields` is flat (name, value, name, value, …).

        `crashes` counts the processes that ended while this was their marked suspect.
        """
        self.id: bytes = entry_id
        self.fields: list[bytes] = fields
        self.in_lane: bool = in_lane
        self.crashes: int = crashes

    def __repr__(self) -> str:
        return f"Entry({self.id!r}, {self.fields!r}, in_lane={self.in_lane})"


@dataclass(frozen=True, slots=True)
class Record:
    """An entry as `records()` lists it: stored, whoever has or has not handled it.

    Attributes:
        id: The id `produce` returned.
        body: Decoded by content type; the raw bytes when it cannot be decoded.
        headers: The application's headers.
        fields: Everything stored, as it is.
    """

    id: str
    body: object
    headers: Mapping[str, str]
    fields: Mapping[bytes, bytes] = field(repr=False)


class Leases(Protocol):
    """What a message asks about its lease: of its consumer, or of a test's own."""

    def remaining(self, entry: Entry) -> float:
        """Seconds the lease of an entry lasts; 0 when it is lost."""
        ...

    async def extend(self, entry: Entry) -> bool:
        """Renew the lease of an entry now; False when it is lost."""
        ...


class Message:
    """A message as a handler gets it.

    Returning from the handler acknowledges it, an exception fails it. In batch handlers and when
    pulling, each message can be settled by itself: `ack()`, `retry()`, `reject()`. The first
    settlement counts; a second one raises.

    Attributes:
        id: The id `produce` returned; it does not change over retries.
        raw: The body's bytes as stored (empty for an entry without one).
        headers: The application's headers.
        content_type: `application/json` unless the body was bytes or str.
        attempt: Which attempt this is, from 1. A delivery that never reached a handler is none.
        queue: Name of the queue.
        group: Name of the consumer group.
        reserved: What this package has written beside the body (`mq-…`), as it is: of a dead
            letter, why it died.
        broken: Why `body` could not be decoded, once that was tried and failed.
    """

    __slots__ = (
        "_body",
        "_decode",
        "_entry",
        "_leases",
        "_settle",
        "attempt",
        "broken",
        "content_type",
        "group",
        "headers",
        "id",
        "queue",
        "raw",
        "reserved",
    )

    def __init__(
        self,
        *,
        id: str,  # noqa: A002 -- the field's word
        raw: bytes,
        headers: Mapping[str, str],
        content_type: str,
        attempt: int,
        queue: str,
        group: str,
        decode: Callable[[], object],
        settle: Callable[[BaseException | None], None] | None = None,
        entry: Entry | None = None,
        leases: Leases | None = None,
        reserved: Mapping[str, bytes] | None = None,
    ) -> None:
        """Made by the consumer."""
        self.id: str = id
        self.raw: bytes = raw
        self.headers: Mapping[str, str] = headers
        self.content_type: str = content_type
        self.attempt: int = attempt
        self.queue: str = queue
        self.group: str = group
        self.broken: DecodeError | None = None
        self._body: Any = _UNREAD
        self._decode = decode
        self._settle = settle
        self._entry = entry
        self._leases = leases
        self.reserved: Mapping[str, bytes] = {} if reserved is None else reserved

    @property
    def lease_remaining(self) -> float:
        """Seconds this consumer's lease lasts if it is not renewed again; 0 when it is lost.

        It is renewed by itself every third of `visibility_timeout`, while the event loop runs.
        """
        if self._leases is None or self._entry is None:
            return 0.0
        return self._leases.remaining(self._entry)

    async def extend(self) -> bool:
        """Renew the lease now, for a full `visibility_timeout`, before work that blocks the loop.

        Returns:
            Whether the message is still this consumer's. If not, somebody else may be handling
            it, and only its acknowledgement still counts.

        Raises:
            ServerError: Redis is away; the lease lasts as long as it did.
        """
        if self._leases is None or self._entry is None:
            return False
        return await self._leases.extend(self._entry)

    @property
    def body(self) -> Any:
        """The body, decoded by its content type, or by the handler's annotation.

        Raises:
            DecodeError: It is not what its content type or the annotation says. Left to
                propagate, the message becomes a dead letter with reason `decode`.
        """
        if self._body is _UNREAD:
            try:
                self._body = self._decode()
            except DecodeError as error:
                self.broken = error
                raise
        return self._body

    @property
    def is_settled(self) -> bool:
        """Whether it was acknowledged, retried or rejected by hand, or its handler has ended."""
        return self._settle is None

    def ack(self) -> None:
        """Acknowledge now: it is handled. Sent with the next round trip, without waiting.

        Raises:
            MessageQueueError: It is settled already.
        """
        self._end(None)

    def retry(self, detail: str = "", *, delay: float | None = None) -> None:
        """Fail this attempt: try again after `delay` seconds (None: by the retry policy).

        Raises:
            MessageQueueError: It is settled already.
        """
        self._end(RetryMessage(detail, delay=delay))

    def reject(self, detail: str = "") -> None:
        """Fail for good: it becomes a dead letter with this detail.

        Raises:
            MessageQueueError: It is settled already.
        """
        self._end(RejectMessage(detail))

    def close(self) -> None:
        """Settle it no more: its handler has ended. Called by the consumer."""
        self._settle = None

    def _end(self, error: BaseException | None) -> None:
        settle, self._settle = self._settle, None
        if settle is None:
            msg = f"message {self.id} is settled already"
            raise MessageQueueError(msg)
        settle(error)

    async def __aenter__(self) -> Message:  # noqa: PYI034 -- final in practice, not subclassed
        """Handle a pulled message: leaving settles it, unless it was settled by hand."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        """Acknowledge, or fail with what was raised; an `Exception` goes no further.

        Cancelled in the block, it is handed back. What is raised after it was settled by hand is
        not its failure, and goes on.
        """
        if self._settle is None:
            return False
        self._end(exc)
        return isinstance(exc, Exception)

    def __repr__(self) -> str:
        return (
            f"Message(id={self.id!r}, queue={self.queue!r}, group={self.group!r}, "
            f"attempt={self.attempt}, {len(self.raw)} bytes)"
        )


class _Unread:
    """Marks a body that was not decoded yet; None is a body."""


_UNREAD = _Unread()
