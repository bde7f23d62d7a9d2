"""Sends without an answer: how many there may be, and who waits in line until there is room."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING

from ._errors import BacklogError

if TYPE_CHECKING:
    from ._config import ProducerConfig


class Backlog:
    """Count what is under way, bounded by `max_waiting` and `max_waiting_bytes`.

    Whoever finds it full waits in line, and whoever comes later behind him: a large message is
    not overtaken for ever by small ones.
    """

    def __init__(self, config: ProducerConfig) -> None:
        """Nothing is under way."""
        self._config = config
        self._count = 0
        self._size = 0
        self._line: OrderedDict[asyncio.Future[None], tuple[int, int]] = OrderedDict()

    def is_full(self, size: int) -> bool:
        """Say whether a message of so many bytes has to wait in line."""
        return bool(self._line) or not self._has_room(size)

    def add(self, count: int, size: int) -> None:
        """Count messages that are on their way now, with their bytes."""
        self._count += count
        self._size += size

    def remove(self, count: int, size: int) -> None:
        """Count off what is answered, and let in who has waited longest."""
        self._count -= count
        self._size -= size
        if self._line:
            self._let_in()

    async def enter(self, count: int, size: int) -> float:
        """Wait in line until these messages are counted.

        Returns:
            When `produce_timeout` is over, by the loop's clock: what is left is for the answer.

        Raises:
            BacklogError: There was no room for `produce_timeout`.
        """
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._line[turn] = count, size
        deadline = loop.time() + self._config.produce_timeout
        timer = loop.call_at(deadline, self._refuse, turn)
        is_leaving = True
        try:
            await turn
            if loop.time() >= deadline:
                raise self._error()  # let in at the last moment: nothing was sent, so say that
            is_leaving = False
            return deadline
        finally:
            timer.cancel()
            if is_leaving:
                self._leave(turn, count, size)

    def _refuse(self, turn: asyncio.Future[None]) -> None:
        if not turn.done():
            turn.set_exception(self._error())

    def _error(self) -> BacklogError:
        return BacklogError(
            f"{self._count} sends ({self._size} bytes) have waited for an answer for "
            f"{self._config.produce_timeout:g} s: Redis is away or slow"
        )

    def _leave(self, turn: asyncio.Future[None], count: int, size: int) -> None:
        self._line.pop(turn, None)
        if not turn.cancelled() and turn.exception() is None:
            self._count -= count  # let in and cancelled in the same moment
            self._size -= size
        self._let_in()

    def _has_room(self, size: int) -> bool:
        # A message beyond all bounds may go when nothing else is under way, or it never could.
        config = self._config
        return self._count < config.max_waiting and (
            self._count == 0 or self._size + size <= config.max_waiting_bytes
        )

    def _let_in(self) -> None:
        while self._line:
            turn, (count, size) = next(iter(self._line.items()))
            if not self._has_room(size):
                break
            del self._line[turn]
            if not turn.done():
                self.add(count, size)
                turn.set_result(None)
