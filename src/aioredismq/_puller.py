"""Pull style: messages are handed out one by one instead of to a handler."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from ._outcome import Ack, Outcome, Release, is_failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ._message import Entry, Message


_Settle: TypeAlias = "Callable[[BaseException | None], None]"


@dataclass(frozen=True, slots=True)
class _Offer:
    entry: Entry
    message: Message
    settle: Callable[[BaseException | Outcome | None], None]

    def withdraw(self, how: Outcome) -> None:
        """Settle what nobody has taken."""
        self.message.close()
        self.settle(how)


class Puller:
    """Offer messages to whoever iterates, and wait until each is settled.

    Stands where the handler stands: as many messages are out at once as there are workers.
    """

    def __init__(
        self,
        *,
        unhandled: Callable[[Entry], Outcome | None],
        make: Callable[[Entry, _Settle], Message],
        decide: Callable[[BaseException, Entry], Outcome],
        settle: Callable[[Entry, Outcome], None],
        until_sound: Callable[[], Awaitable[None]],
    ) -> None:
        """Nothing is offered before `run()`.

        Args:
            unhandled: Says what becomes of an entry nobody is to see; None for all others.
            make: Makes a message that tells how it was settled.
            decide: Says what becomes of a message that failed.
            settle: Does what an outcome says with an entry.
            until_sound: Returns when nothing offered can be somebody else's unseen.
        """
        self._unhandled = unhandled
        self._make = make
        self._decide = decide
        self._settle = settle
        self._until_sound = until_sound
        self._offers: deque[_Offer] = deque()
        self._something = asyncio.Event()
        self._ended = False

    async def run(self, portion: list[Entry]) -> None:
        """Offer one entry and return when it is settled."""
        entry = portion[0]
        unhandled = self._unhandled(entry)
        if unhandled is not None:
            self._settle(entry, unhandled)
            return
        settled: asyncio.Future[BaseException | Outcome | None] = (
            asyncio.get_running_loop().create_future()
        )

        def settle(how: BaseException | Outcome | None) -> None:
            if not settled.done():
                settled.set_result(how)

        message = self._make(entry, settle)
        self._offers.append(_Offer(entry, message, settle))
        self._something.set()
        outcome: Outcome = Release()
        try:
            outcome = self._outcome(await settled, entry)
        finally:
            message.close()
            self._settle(entry, outcome)

    def _outcome(self, how: BaseException | Outcome | None, entry: Entry) -> Outcome:
        match how:
            case None:
                return Ack()
            case BaseException() if is_failure(how):
                return self._decide(how, entry)
            case BaseException():
                return Release()
            case _:
                return how

    def withdraw(self, entry_id: bytes, *, in_lane: bool) -> None:
        """Offer an entry no more: it is somebody else's now."""
        for offer in list(self._offers):
            if offer.entry.id == entry_id and offer.entry.in_lane is in_lane:
                self._offers.remove(offer)
                offer.withdraw(Release())

    def end(self) -> None:
        """Offer nothing more: iterations end, and what nobody has taken is handed back."""
        self._ended = True
        while self._offers:
            self._offers.popleft().withdraw(Release())
        self._something.set()

    async def following(self) -> Message | None:
        """Wait for the next message; None when there will be none.

        Cancellation: takes no message.
        """
        while not self._ended:
            if not self._offers:
                self._something.clear()
                await self._something.wait()
                continue
            await self._until_sound()
            if not self._offers:
                continue  # withdrawn meanwhile
            offer = self._offers.popleft()
            # It may have waited for long: its time may have come meanwhile.
            unhandled = self._unhandled(offer.entry)
            if unhandled is None:
                return offer.message
            offer.withdraw(unhandled)
        return None
