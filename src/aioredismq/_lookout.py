"""Listens to the Sentinels, so that a failover is followed when it begins, and when it is over.

A master that hands over and lives is told so by Sentinel only after eight to ten seconds. Until
then it takes writes, which go with its demotion.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from anyio import create_task_group, move_on_after

from ._address import shown
from ._errors import CommandRefusedError, PermissionDeniedError, ServerError
from ._failover import failover_in
from ._pauses import pauses

if TYPE_CHECKING:
    from ._sentinels import Sentinels
    from ._wire import Wire

logger = logging.getLogger("aioredismq")

# All sentinels tell of the switch; but the one that leads it only once every replica has followed,
# which may take long. It names the new master as soon as it has seen that it is promoted.
_OVER = ("+switch-master", "+promoted-slave")
# Told by the leading sentinel alone: a moment before the promotion, and when it is asked for.
_BEGUN = ("+selected-slave", "+failover-state-wait-promotion")
# The only way to fail from there.
_ABORTED = "-failover-abort-slave-timeout"
# Seconds between questions: the net under an announcement that was lost, and how a line that died
# silently is noticed. Where listening is denied there is nothing else.
_PULSE = 10.0
_DEAF_PULSE = 5.0


class Lookout:
    """Ask each sentinel who is the master whenever it tells of a change, and at a slow pulse.

    Each, as any of them may lead the next failover, and tells alone of its beginning. Whoever
    must know is called by `Sentinels`, which remembers what was answered and announced.
    """

    def __init__(self, sentinels: Sentinels) -> None:
        """Nothing is opened before `keep()`."""
        self._sentinels = sentinels
        self._stirred: list[asyncio.Event] = []
        self._said: set[tuple[str, str]] = set()

    async def keep(self) -> None:
        """Look out until cancelled."""
        async with create_task_group() as lines:
            for address in list(self._sentinels.addresses):
                lines.start_soon(self._keep_one, address)

    async def _keep_one(self, address: dict[str, Any]) -> None:
        """Listen to one sentinel, again whenever its line is lost."""
        stirred = asyncio.Event()
        self._stirred.append(stirred)
        following = pauses()
        while True:
            try:
                async with self._sentinels.line(
                    address,
                    on_lost=stirred.set,
                    on_push=partial(self._hear, address, stirred),
                ) as line:
                    pulse = await self._listen(line, address)
                    while True:
                        stirred.clear()
                        knows = await self._ask(line, address)
                        wait = self._sentinels.longest_wait(pulse)
                        with move_on_after(wait if knows else following()):
                            await stirred.wait()
            except ServerError as error:
                logger.debug("the lookout has lost a sentinel: %s", error)
                self._sentinels.put_last(address)
                await asyncio.sleep(following())

    async def _ask(self, line: Wire, address: dict[str, Any]) -> bool:
        """Say whether it knows who is the master; if not, it is listened to all the same."""
        try:
            await self._sentinels.ask(line, address)
        except ServerError as error:
            if line.is_lost:
                raise
            logger.debug("the lookout asks again: %s", error)
            self._sentinels.put_last(address)
            return False
        return True

    async def _listen(self, line: Wire, address: dict[str, Any]) -> float:
        """Subscribe, and return how long to wait between questions."""
        try:
            # On RESP2 a line that listens cannot ask.
            await line.call("HELLO", 3)
            for channel in _OVER:
                await line.call("SUBSCRIBE", channel)
        except (PermissionDeniedError, CommandRefusedError) as error:
            text = f"does not tell of failovers and is asked every {_DEAF_PULSE:g} s"
            self._say(address, text, error)
            return _DEAF_PULSE
        try:
            for channel in (*_BEGUN, _ABORTED):
                await line.call("SUBSCRIBE", channel)
        except PermissionDeniedError as error:
            text = "tells of failovers only when they are over, and a planned one may lose messages"
            self._say(address, text, error)
        return _PULSE

    def _say(self, address: dict[str, Any], text: str, error: ServerError) -> None:
        """Warn, once for each sentinel."""
        if (shown(address), text) not in self._said:
            self._said.add((shown(address), text))
            logger.warning("sentinel %s %s: %s", shown(address), text, error)

    def _hear(
        self, address: dict[str, Any], stirred: asyncio.Event, message: list[Any]
    ) -> None:
        """Act, and look, when it is about our service, which is a word of each announcement."""
        channel, announcement = (part.decode(errors="replace") for part in message[1:3])
        service = self._sentinels.service
        if service not in announcement.split():
            return
        if channel in _BEGUN:
            failover = failover_in(announcement, service)
            if failover is not None:
                self._sentinels.begin(failover, address)
                # Whoever leads it may die: all are asked when its time is over.
                for each in self._stirred:
                    each.set()
        elif channel == _ABORTED:
            self._sentinels.abort(address)
        stirred.set()
