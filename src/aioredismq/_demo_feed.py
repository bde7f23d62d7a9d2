"""Where the demo's messages come from, and how they are shared out to the producers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._demo_worker import order_body, order_range
from ._jsonl import NotJSONError, read_lines
from ._terminal import UsageError, complain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from ._demo_crew import Worker
    from ._jsonl import Line

# Made-up messages in one order: a fraction of a second's work, so that the shares come out even.
_RANGE = 250

# Bad lines that are named; a file of another format has nothing else.
_MOST_NAMED = 20


@dataclass(frozen=True, slots=True)
class Source:
    """Input of one JSON value a line.

    Attributes:
        name: As the user knows it.
        fd: Open file descriptor.
    """

    name: str
    fd: int


class Feed:
    """Numbers the messages and orders producers to send them."""

    def __init__(self, messages: int | None, source: Source | None) -> None:
        """Prepare.

        Args:
            messages: How many at most; None for all of the source.
            source: Where they are read from; None makes them up.
        """
        self._limit = messages
        self._source = source
        self._turn = 0
        self.ordered = 0
        """Messages ordered so far: their numbers are those below."""
        self.bad_lines = 0
        """Lines that were no message; the first ones have been named on standard error."""
        self.is_done = False
        """Whether there will be no more."""

    @property
    def expected(self) -> int | None:
        """Messages there will be; None while that is not known."""
        if self.is_done:
            return self.ordered
        return self._limit if self._source is None else None

    async def run(self, producers: Sequence[Worker]) -> None:
        """Order everything; ends early when no producer is left.

        Raises:
            UsageError: The source cannot be read.
        """
        async for orders in (
            self._from_source() if self._source else self._made_up(len(producers))
        ):
            if not await self._share_out(orders, producers):
                break
        if self.bad_lines > _MOST_NAMED:
            complain(f"… and {self.bad_lines - _MOST_NAMED} bad lines more")
        self.is_done = True

    async def _made_up(self, at_once: int) -> AsyncIterator[list[bytes]]:
        assert self._limit is not None
        while self.ordered < self._limit:
            orders = []
            for _ in range(at_once):
                count = min(_RANGE, self._limit - self.ordered)
                if count:
                    orders.append(order_range(self.ordered, count))
                self.ordered += count
            yield orders

    async def _from_source(self) -> AsyncIterator[list[bytes]]:
        assert self._source is not None
        async for lines in self._lines(self._source):
            orders = []
            for line in lines:
                if self._limit is not None and self.ordered >= self._limit:
                    break
                if self._is_message(line, self._source.name):
                    orders.append(order_body(self.ordered, line.text or b""))
                    self.ordered += 1
            yield orders
            if self._limit is not None and self.ordered >= self._limit:
                return

    async def _lines(self, source: Source) -> AsyncIterator[list[Line]]:
        try:
            async for lines in read_lines(source.fd):
                yield lines
        except OSError as error:
            msg = f"cannot read {source.name}: {error.strerror}"
            raise UsageError(msg) from error

    def _is_message(self, line: Line, where: str) -> bool:
        """Check a line; a bad one is named."""
        if line.is_blank:
            return False
        try:
            line.value()
        except NotJSONError as error:
            self.bad_lines += 1
            if self.bad_lines <= _MOST_NAMED:
                complain(f"{where}:{line.number}: {error}")
            return False
        return True

    async def _share_out(
        self, orders: Sequence[bytes], producers: Sequence[Worker]
    ) -> bool:
        """Give each live producer its part; False when there is none.

        What is given to a producer that dies is not sent: the summary says so.
        """
        alive = [producer for producer in producers if producer.takes_orders]
        for at, producer in enumerate(alive):
            # Whose turn it is goes on from one block to the next: a block can be one line.
            part = orders[(at - self._turn) % len(alive) :: len(alive)]
            if part:
                await producer.tell(b"".join(part))
        self._turn += len(orders)
        return bool(alive)
