"""Pull style: messages are handed out one by one instead of to a handler."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from ._outcome import Ack, Outcome, Release

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._message import Entry, Message


class Puller:
    """Offer messages to whoever iterates, and wait until each is settled.

    Stands where the handler stands: as many messages are out at once as there are workers.
    """

    def __init__(
        self,
        *,
        make: Callable[[Entry, Callable[[BaseException | None], None]], Message],
        decide: Callable[[BaseException, Entry], Outcome],
        settle: Callable[[Entry, Outcome], None],
    ) -> None:
        """Nothing is offered before `run()`.

        Args:
            make: Makes a message that tells how it was settled.
            decide: Says what becomes of a message that failed.
            settle: Does what an outcome says with an entry.
        """
        self._make = make
        self._decide = decide
        self._settle = settle
        self._offers: deque[Message] = deque()
        self._something = asyncio.Event()
        self._ended = False

    async def run(self, portion: list[Entry]) -> None:
        """Offer one entry and return when it is settled."""
        entry = portion[0]
        settled: asyncio.Future[BaseException | None] = (
            asyncio.get_running_loop().create_future()
        )
        message = self._make(entry, settled.set_result)
        self._offers.append(message)
        self._something.set()
        outcome: Outcome = Release()
        try:
            error = await settled
            outcome = Ack() if error is None else self._decide(error, entry)
        finally:
            message.close()
            if message in self._offers:
                self._offers.remove(message)
            self._settle(entry, outcome)

    def end(self) -> None:
        """Offer nothing more: iterations end."""
        self._ended = True
        self._something.set()

    async def following(self) -> Message | None:
        """Wait for the next message; None when there will be none."""
        while True:
            if self._ended:
                return None
            if self._offers:
                return self._offers.popleft()
            self._something.clear()
            await self._something.wait()
