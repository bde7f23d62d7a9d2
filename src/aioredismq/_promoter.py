"""What is due or was handed back → this consumer, as far as it has room."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

from anyio import move_on_after

from ._clock import elapsed
from ._errors import ConnectionLostError, ServerFullError, ServerNotReadyError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ._held import Held
    from ._member import Member
    from ._message import Entry

logger = logging.getLogger("aioredismq")

# Seconds between looks when nobody rings: the net under a bell that was lost. Spread, so that the
# consumers of a group do not all look at once.
_PULSE = (5.0, 10.0)
_PAUSE = 0.5
# Seconds a bell is left ringing, at most: many rings become one look, and the consumers of a group
# do not all look in the same moment for what only one of them can have.
_SPREAD = 0.01


class Promoter:
    """Take what has come back to a group.

    It looks when the bell rings, when the next delayed message is due, and at a slow pulse.
    """

    def __init__(
        self,
        member: Member,
        *,
        room: Callable[[], int],
        wait_for_room: Callable[[], Awaitable[None]],
        deliver: Callable[[Sequence[Entry]], None],
        held: Held,
        set_clock: Callable[[float], None],
    ) -> None:
        """Nothing is asked before `run()`.

        Args:
            member: This consumer in Redis.
            room: Says how many entries there is room for now.
            wait_for_room: Returns when there is room again.
            deliver: Takes what was read.
            held: What this consumer holds.
            set_clock: Told of the server's time whenever it is seen.
        """
        self._member = member
        self._room = room
        self._wait_for_room = wait_for_room
        self._deliver = deliver
        self._held = held
        self._set_clock = set_clock
        self._rung = asyncio.Event()
        self._served = asyncio.Event()
        self._look_back = False
        self._stopping = False
        self._next_due: float | None = None

    def ring(self) -> None:
        """Look soon: something may be there."""
        if self._stopping:
            return
        self._served.clear()
        self._rung.set()

    def stop(self) -> None:
        """Take no more; `run()` ends."""
        self._stopping = True
        self._rung.set()
        self._served.set()

    async def served(self) -> None:
        """Return when it wants no room for itself: it goes before the main stream."""
        await self._served.wait()

    async def run(self) -> None:
        """Take until `stop()`.

        Raises:
            ServerError: One that does not pass by itself.
        """
        self._member.link.on_up(self._reconnected)
        self.ring()
        try:
            while not self._stopping:
                try:
                    await self._take_all()
                except (
                    ConnectionLostError,
                    ServerNotReadyError,
                    ServerFullError,
                ) as error:
                    logger.debug(
                        "could not look into the lane of %s: %s",
                        self._member.group,
                        error,
                    )
                    self._look_back = True
                    self._served.set()  # the stream may be readable all the same
                    await asyncio.sleep(_PAUSE)
                    continue
                # Also when it has rung again: under constant ringing the stream has its turn too.
                self._served.set()
                with move_on_after(self._until_next()):
                    await self._rung.wait()
                    await asyncio.sleep(random.uniform(0, _SPREAD))
        finally:
            self._served.set()
            self._member.link.forget(self._reconnected)

    def _until_next(self) -> float:
        pulse = random.uniform(*_PULSE)
        return pulse if self._next_due is None else min(pulse, self._next_due)

    async def _take_all(self) -> None:
        more = True
        while more and not self._stopping:
            self._rung.clear()
            if self._look_back:
                self._look_back = False  # set again by whatever goes wrong meanwhile
                await self._look_at_own()
            await self._wait_for_room()
            room = self._room()
            if room < 1:
                continue
            asked = elapsed()
            taken = await self._member.take(room)
            if taken.entries:
                self._held.note_asked(asked)
                self._deliver(taken.entries)
            self._next_due = taken.next_due
            self._set_clock(taken.server_time)
            more = taken.more

    async def _look_at_own(self) -> None:
        """Find what a lost reply has left pending under this consumer."""
        with self._held.looking(in_lane=True) as held:
            lost = await self._member.own_pending(in_lane=True, held=held)
        if lost:
            self._deliver(lost)

    def _reconnected(self) -> None:
        self._look_back = True
        self.ring()
