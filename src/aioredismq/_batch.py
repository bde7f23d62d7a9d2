"""Messages that travel together, and who waits for their ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from ._errors import PublishUncertainError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Sequence

    from ._errors import ServerError

    Retry: TypeAlias = Callable[["Batch"], Awaitable[list[str]]]

# Those that waited for room have the rest of their time. They share a batch, and so the deadline
# of the first, where they differ by less than this part of `produce_timeout`.
_AT_ONCE = 1 / 20


class Batch:
    """One numbered batch. A plain class with slots: one is made per lone send.

    Attributes:
        first_sent: When it was first written to a connection (by `elapsed`).
        under_way: Written, and its answer has not come.
        in_doubt: An answer was lost, so it may be stored whatever is said later.
        refusal: What the server said last that passes by itself.
        late: Its deadline, when its messages have waited for room; None when they came at once.
        ids: The answer.
        waiters: For each message who waits for its id.
        whole: Who waits for all of them.
    """

    __slots__ = (
        "__weakref__",
        "arguments",
        "count",
        "deadline",
        "first_sent",
        "has_times",
        "ids",
        "in_doubt",
        "is_uncertain",
        "late",
        "number",
        "refusal",
        "size",
        "under_way",
        "waiters",
        "whole",
    )

    def __init__(self, number: int, deadline: float) -> None:
        """Nothing is in it yet; it is given up at the deadline (the loop's clock)."""
        self.number = number
        self.deadline = deadline
        self.arguments: list[bytes | str | int] = []
        self.count = 0
        self.size = 0
        self.first_sent: float | None = None
        self.in_doubt = False
        self.late: float | None = None
        self.refusal: ServerError | None = None
        self.ids: list[str] | None = None
        self.is_uncertain = False
        self.has_times = False
        self.under_way = False
        self.waiters: list[asyncio.Future[str]] = []
        self.whole: asyncio.Future[list[str]] | None = None

    def add(self, fields: Sequence[bytes], size: int, times: str = "") -> None:
        """Let a message of so many bytes travel with it; `times` as `delay:at:life` in ms."""
        if times:
            self.has_times = True
            self.arguments.append(f"{len(fields)}:{times}")
        else:
            self.arguments.append(len(fields))
        self.arguments += fields
        self.count += 1
        self.size += size

    def ends_at_another_time(self, late: float | None, timeout: float) -> bool:
        """Say whether a message with this deadline (None: it came at once) must not join."""
        if self.late is None or late is None:
            return self.late is not late
        return abs(self.late - late) > _AT_ONCE * timeout

    def wait_as_one(
        self, future: asyncio.Future[list[str]]
    ) -> asyncio.Future[list[str]]:
        """Let this future bring all of its ids, or the error."""
        future.add_done_callback(_hear_of_errors)
        self.whole = future
        return future

    def fulfil(self, ids: list[str]) -> None:
        """Tell everybody the ids."""
        for future, message_id in zip(self.waiters, ids, strict=False):
            if not future.done():
                future.set_result(message_id)
        if self.whole is not None and not self.whole.done():
            self.whole.set_result(ids)

    def refuse(self, error: ServerError) -> None:
        """Tell everybody why nothing is stored."""
        self._fail(lambda _: error.again())

    def leave_in_doubt(
        self, why: str, cause: BaseException | None, retry: Retry
    ) -> None:
        """Tell everybody that it may or may not be stored, and how to find out.

        Args:
            why: In words.
            cause: What was said last, if anything was.
            retry: Sends it again, once for all who ask.
        """
        text = (
            f"{why}: the message may or may not be stored; `await error.retry()` finds out "
            "without storing it twice"
        )
        self._fail(lambda at: self._doubt(at, text, cause, retry))

    def _fail(self, error: Callable[[int], BaseException]) -> None:
        for at, future in enumerate(self.waiters):
            if not future.done():
                future.set_exception(error(at))
        if self.whole is not None and not self.whole.done():
            self.whole.set_exception(error(0))

    def _doubt(
        self, at: int, text: str, cause: BaseException | None, retry: Retry
    ) -> PublishUncertainError:
        async def again() -> list[str]:
            try:
                return await retry(self)
            except PublishUncertainError as error:
                cause = error.__cause__
                raise self._doubt(at, str(error), cause, retry) from cause

        doubt = PublishUncertainError(text, again, at)
        doubt.__cause__ = cause
        return doubt


def _hear_of_errors(done: asyncio.Future[list[str]]) -> None:
    """Look at an error nobody may wait for any more: asyncio would report it as never seen."""
    if not done.cancelled():
        done.exception()
