"""Pull style: messages are handed out one by one instead of to a handler."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, TypeAlias

from ._outcome import Ack, Outcome, Release

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._message import Entry, Message


_Settle: TypeAlias = "Callable[[BaseException | None], None]"

# Settles what was cut off: no failure, so it is handed back untried.
_CUT_OFF = asyncio.CancelledError()


class Puller:
    """Offer messages to whoever iterates, and wait until each is settled.

    Stands where the handler stands: as many messages are out at once as there are workers.
    """

    def __init__(
        self,
        *,
        make: Callable[[Entry, _Settle], Message],
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
        self._offers: deque[tuple[Message, _Settle]] = deque()
        self._something = asyncio.Event()
        self._ended = False

    async def run(self, portion: list[Entry]) -> None:
        """Offer one entry and return when it is settled."""
        entry = portion[0]
        settled: asyncio.Future[BaseException | None] = (
            asyncio.get_running_loop().create_future()
        )

        def settle(error: BaseException | None) -> None:
            if not settled.done():
                settled.set_result(error)

        message = self._make(entry, settle)
        self._offers.append((message, settle))
        self._something.set()
        outcome: Outcome = Release()
        try:
            error = await settled
            if error is None:
                outcome = Ack()
            elif isinstance(error, Exception):
                outcome = self._decide(error, entry)
        finally:
            message.close()
            self._settle(entry, outcome)

    def end(self) -> None:
        """Offer nothing more: iterations end, and what nobody has taken is handed back."""
        self._ended = True
        while self._offers:
            message, settle = self._offers.popleft()
            message.close()
            settle(_CUT_OFF)
        self._something.set()

    async def following(self) -> Message | None:
        """Wait for the next message; None when there will be none."""
        while True:
            if self._ended:
                return None
            if self._offers:
                return self._offers.popleft()[0]
            self._something.clear()
            await self._something.wait()
