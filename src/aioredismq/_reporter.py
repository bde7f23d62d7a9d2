"""Tells the application's failover callback of each message that has failed for good."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from collections import deque
from typing import TYPE_CHECKING

from anyio import current_effective_deadline
from anyio.to_thread import run_sync

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._message import Message
    from ._outcome import Failure

logger = logging.getLogger("aioredismq")

# Reports waiting for a slow callback, before the consumer reads no more until they are made.
_MOST = 1000


class Reporter:
    """Call one callback, one report after the other, beside the handlers."""

    def __init__(self, callback: Callable[[Message, Failure], object] | None) -> None:
        """Nothing is called before `run()`."""
        self._callback = callback
        self._reports: deque[tuple[Message, Failure]] = deque()
        self._something = asyncio.Event()
        self._nothing = asyncio.Event()
        self._nothing.set()
        self._keeps_up = asyncio.Event()
        self._keeps_up.set()
        self._holds_up_nobody = False
        self._task: asyncio.Task[None] | None = None

    @property
    def is_here(self) -> bool:
        """Whether it is asked by the callback."""
        return asyncio.current_task() is self._task

    def report(self, message: Message, failure: Failure) -> None:
        """Tell of a message, soon."""
        if self._callback is None:
            return
        self._reports.append((message, failure))
        if len(self._reports) >= _MOST and not self._holds_up_nobody:
            self._keeps_up.clear()
        self._nothing.clear()
        self._something.set()

    async def keeps_up(self) -> None:
        """Return when few enough reports wait for more messages to be read."""
        await self._keeps_up.wait()

    def hold_up_nobody(self) -> None:
        """Hold up reading no more, however many reports wait: the consumer stops."""
        self._holds_up_nobody = True
        self._keeps_up.set()

    async def told(self) -> None:
        """Return when every report was made."""
        await self._nothing.wait()

    async def run(self) -> None:
        """Report until cancelled."""
        self._task = asyncio.current_task()
        while True:
            await self._something.wait()
            self._something.clear()
            while self._reports:
                message, failure = self._reports.popleft()
                if len(self._reports) < _MOST:
                    self._keeps_up.set()
                try:
                    await self._tell(message, failure)
                except (Exception, asyncio.CancelledError):
                    if current_effective_deadline() == -math.inf:
                        raise  # cancelled from outside, not by what the callback awaited
                    logger.exception(
                        "the failover callback failed on message %s", message.id
                    )
            self._nothing.set()

    async def _tell(self, message: Message, failure: Failure) -> None:
        callback = self._callback
        if callback is None:
            return
        if inspect.iscoroutinefunction(callback):
            await callback(message, failure)
            return
        result = await run_sync(callback, message, failure)
        if inspect.isawaitable(result):
            await result
