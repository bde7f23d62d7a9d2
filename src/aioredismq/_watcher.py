"""Notices that a queue or a group was deleted on purpose, where no read says so."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

from anyio import move_on_after

from ._errors import ConnectionLostError, ServerFullError, ServerNotReadyError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

logger = logging.getLogger("aioredismq")

# Seconds between looks when nobody rings: the net under a bell that was lost.
_PULSE = (5.0, 10.0)
# The bell rings for retries, too, of which there may be thousands in a second.
_PAUSE = 1.0


class Watcher:
    """Look for the tombstone of what a consumer consumes, when the bell rings and at a slow pulse.

    A read that finds its group gone is told at once. But before Redis 7.2 a read that was blocked
    goes on in the next life of a queue that is made again at once, and would never be told.
    """

    def __init__(self, follow: Callable[[], Awaitable[None]]) -> None:
        """Nothing is asked before `run()`.

        Args:
            follow: Finds out which life the queue and the group are in; raises when the one
                known was ended.
        """
        self._follow = follow
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Look soon: it may have been deleted."""
        self._rung.set()

    async def run(self) -> None:
        """Look until cancelled.

        Raises:
            QueueDeletedError: The queue or the group was deleted on purpose.
            ServerError: One that does not pass by itself.
        """
        while True:
            with move_on_after(random.uniform(*_PULSE)):
                await self._rung.wait()
            self._rung.clear()
            try:
                await self._follow()
            except (ConnectionLostError, ServerNotReadyError, ServerFullError) as error:
                logger.debug("could not look for a tombstone: %s", error)
            await asyncio.sleep(_PAUSE)
