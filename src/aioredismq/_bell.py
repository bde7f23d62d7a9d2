"""One subscription per process: something is there earlier than anyone expected it."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from ._errors import PermissionDeniedError, ServerError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ._wire import Wire

logger = logging.getLogger("aioredismq")

# A bell may be lost (Pub/Sub promises nothing); each listener has a slow pulse of its own as the
# net. So a user without channel rights is asked for them again rarely.
_FORBIDDEN_PAUSE = 60.0
_PAUSE = 1.0


class Bell:
    """Listen on the channels of this process's queues and call who waits.

    Ringing says nothing about what is there: whoever is called looks. After each connect all are
    called, as a bell may have rung meanwhile.
    """

    def __init__(
        self,
        open_wire: Callable[
            [Callable[[], None], Callable[[list[Any]], None]], Awaitable[Wire]
        ],
    ) -> None:
        """Nothing is opened before the first listener and `listen()`.

        Args:
            open_wire: Opens a wire, given what to call when it ends and with what is published.
        """
        self._open_wire = open_wire
        self._listeners: dict[str, list[Callable[[], None]]] = defaultdict(list)
        self._changed = asyncio.Event()
        self._wire: Wire | None = None
        self._subscribed: set[str] = set()

    def add(self, channel: str, ring: Callable[[], None]) -> None:
        """Call `ring` whenever something is published on the channel."""
        self._listeners[channel].append(ring)
        self._changed.set()

    def remove(self, channel: str, ring: Callable[[], None]) -> None:
        """Undo `add`."""
        rings = self._listeners[channel]
        rings.remove(ring)
        if not rings:
            del self._listeners[channel]
            self._changed.set()

    async def listen(self) -> None:
        """Keep the subscription for as long as anyone listens, until cancelled."""
        while True:
            await self._changed.wait()
            if not self._listeners and self._wire is None:
                self._changed.clear()
                continue
            try:
                await self._serve()
            except PermissionDeniedError as error:
                logger.warning("no bell, falling back on the slow pulse: %s", error)
                await asyncio.sleep(_FORBIDDEN_PAUSE)
            except ServerError as error:
                logger.debug("the bell is silent: %s", error)
                await asyncio.sleep(_PAUSE)
            finally:
                if self._wire is not None:
                    self._wire.close()
                    self._wire = None
                self._changed.set()

    async def _serve(self) -> None:
        self._subscribed = set()
        self._wire = await self._open_wire(self._changed.set, self._hear)
        while self._listeners and not self._wire.is_lost:
            self._changed.clear()
            for channel in self._subscribed - self._listeners.keys():
                await self._wire.call("UNSUBSCRIBE", channel)
                self._subscribed.discard(channel)
            for channel in self._listeners.keys() - self._subscribed:
                await self._wire.call("SUBSCRIBE", channel)
                self._subscribed.add(channel)
                self._ring(channel)
            await self._changed.wait()

    def _hear(self, message: list[Any]) -> None:
        self._ring(message[1].decode())

    def _ring(self, channel: str) -> None:
        for ring in list(self._listeners.get(channel, ())):
            ring()
