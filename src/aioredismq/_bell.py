"""One subscription per process: something is there earlier than anyone expected it."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from anyio import move_on_after

from ._errors import PermissionDeniedError, ServerError
from ._pauses import pauses

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ._wire import Wire

logger = logging.getLogger("aioredismq")

# A bell may be lost (Pub/Sub promises nothing); each listener has a slow pulse of its own as the
# net. So it is enough to see rarely whether the line, which nothing else travels on, is alive,
# and whether a channel that was denied is allowed by now.
_CHECK = 60.0


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
        self._denied: set[str] = set()

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
        following = pauses()
        while True:
            await self._changed.wait()
            if not self._listeners:
                self._changed.clear()
                continue
            try:
                await self._serve()
            except PermissionDeniedError as error:
                logger.warning("no bell, falling back on the slow pulse: %s", error)
                await asyncio.sleep(_CHECK)
            except ServerError as error:
                logger.debug("the bell is silent: %s", error)
                await asyncio.sleep(following())
            finally:
                if self._wire is not None:
                    self._wire.close()
                    self._wire = None
                self._changed.set()

    async def _serve(self) -> None:
        """Listen on one connection, until nobody does or it ends."""
        self._subscribed = set()
        wire = self._wire = await self._open_wire(self._changed.set, self._hear)
        while self._listeners:
            self._changed.clear()
            for channel in self._subscribed - self._listeners.keys():
                await wire.call("UNSUBSCRIBE", channel)
                self._subscribed.discard(channel)
            for channel in self._listeners.keys() - self._subscribed:
                await self._subscribe(wire, channel)
            with move_on_after(_CHECK) as check:
                await self._changed.wait()
            if check.cancelled_caught:
                with suppress(PermissionDeniedError):
                    await wire.call("PING")
                self._subscribed -= self._denied
            if wire.error is not None:
                raise wire.error.again()

    async def _subscribe(self, wire: Wire, channel: str) -> None:
        self._subscribed.add(channel)
        try:
            await wire.call("SUBSCRIBE", channel)
        except PermissionDeniedError as error:
            if channel not in self._denied:
                self._denied.add(channel)
                logger.warning(
                    "no bell on %s, falling back on the slow pulse: %s", channel, error
                )
        else:
            self._denied.discard(channel)
            self._ring(channel)

    def _hear(self, message: list[Any]) -> None:
        self._ring(message[1].decode())

    def _ring(self, channel: str) -> None:
        for ring in list(self._listeners.get(channel, ())):
            ring()
