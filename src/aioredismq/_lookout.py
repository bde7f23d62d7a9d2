"""Listens to one Sentinel, so that a handover is followed when it is announced.

A master that hands over and lives is told so by Sentinel only after eight to ten seconds. Until
then it takes writes, which go with its demotion.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from anyio import move_on_after

from ._errors import CommandRefusedError, PermissionDeniedError, ServerError
from ._pauses import pauses

if TYPE_CHECKING:
    from ._sentinels import Sentinels
    from ._wire import Wire

logger = logging.getLogger("aioredismq")

# All sentinels tell of the switch; but the one that leads it only once every replica has followed,
# which may take long. It names the new master as soon as that is promoted.
_CHANNELS = ("+switch-master", "+promoted-slave")
# Seconds between questions: the net under an announcement that was lost, and how a line that died
# silently is noticed. Where listening is denied there is nothing else.
_PULSE = 10.0
_DEAF_PULSE = 5.0


class Lookout:
    """Ask one sentinel who is the master whenever it tells of a change, and at a slow pulse.

    Whoever must know is called by `Sentinels`, which remembers what was answered.
    """

    def __init__(self, sentinels: Sentinels) -> None:
        """Nothing is opened before `keep()`."""
        self._sentinels = sentinels
        self._stirred = asyncio.Event()
        self._said_deaf = False

    async def keep(self) -> None:
        """Look out until cancelled, from another sentinel when one fails."""
        following = pauses()
        while True:
            address = self._sentinels.addresses[0]
            try:
                async with self._sentinels.line(
                    address, on_lost=self._stirred.set, on_push=self._hear
                ) as line:
                    pulse = await self._listen(line)
                    while True:
                        self._stirred.clear()
                        await self._sentinels.ask(line, address)
                        with move_on_after(pulse):
                            await self._stirred.wait()
            except ServerError as error:
                logger.debug("the lookout moves on: %s", error)
                self._sentinels.put_last(address)
                await asyncio.sleep(following())

    async def _listen(self, line: Wire) -> float:
        """Subscribe, and return how long to wait between questions."""
        try:
            # On RESP2 a line that listens cannot ask.
            await line.call("HELLO", 3)
            for channel in _CHANNELS:
                await line.call("SUBSCRIBE", channel)
        except (PermissionDeniedError, CommandRefusedError) as error:
            if not self._said_deaf:
                self._said_deaf = True
                logger.warning(
                    "a sentinel does not tell of failovers and is asked every %g s: %s",
                    _DEAF_PULSE,
                    error,
                )
            return _DEAF_PULSE
        return _PULSE

    def _hear(self, message: list[Any]) -> None:
        """Look when it is about our service, which is a word of each announcement."""
        if self._sentinels.service.encode() in message[2].split():
            self._stirred.set()
