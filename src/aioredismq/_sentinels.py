"""The Sentinels of a service: how they are asked who its master is, and whom to believe."""

from __future__ import annotations

import logging
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._address import shown
from ._errors import ConnectionLostError, PermissionDeniedError
from ._opening import connected, disconnect, writer_of
from ._wire import Wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

logger = logging.getLogger("aioredismq")

# Seconds for which the last one that was up to date outweighs all that are not: thrice the
# lookout's pulse. Without an end, a service that was given to the sentinels anew, with its count
# of failovers at 0, would never be found again.
_HOLDS = 30.0


@dataclass(frozen=True, slots=True)
class Master:
    """Which server is the master, and since which failover.

    Attributes:
        host: As the sentinel names it.
        port: Its port.
        epoch: Rises with every failover of the service; None where it may not be asked.
    """

    host: str
    port: int
    epoch: int | None

    @property
    def place(self) -> tuple[str, int]:
        """Host and port."""
        return self.host, self.port

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def is_outdated(told: Master, known: Master) -> bool:
    """Say whether a sentinel has not heard of a failover that another one told of.

    The same rule as among the sentinels: the higher epoch is right. What a former master says of
    itself is no help, as nobody tells it for some ten seconds.
    """
    if told.epoch is None or known.epoch is None:
        return False
    return told.epoch < known.epoch


def is_successor(told: Master, known: Master) -> bool:
    """Say whether one master has taken over from the other.

    Within one epoch there is one master, and another place is another name for it.
    """
    if told.place == known.place or is_outdated(told, known):
        return False
    return told.epoch is None or told.epoch != known.epoch


class Sentinels:
    """Ask those who watch a service, one at a time, and remember the last handover.

    All of a process's connections share what one of them was told, or a sentinel that hears of a
    handover late would lead some of them back to the former master.
    """

    def __init__(
        self,
        service: str,
        addresses: Iterable[dict[str, Any]],
        timeout: float,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nobody is asked yet.

        Args:
            service: The name under which they know the master.
            addresses: Each as the arguments of redis-py's connection.
            timeout: Seconds one of them may take to answer.
            clock: Seconds that pass.
        """
        self.service = service
        self.addresses = list(addresses)
        self._timeout = timeout
        self._clock = clock
        self._known: Master | None = None
        self._holds_until = 0.0
        self._former: set[tuple[str, int]] = set()
        self._on_master: list[Callable[[Master], None]] = []

    def on_master(self, callback: Callable[[Master], None]) -> None:
        """Call back whenever another server is the master than was known."""
        self._on_master.append(callback)

    def has_handed_over(self, place: tuple[str, int]) -> bool:
        """Say whether a server was the master once and is not now, whatever it says itself."""
        return place in self._former

    def prefer(self, address: dict[str, Any]) -> None:
        """Ask this one first from now on: it knew."""
        self.addresses.sort(key=lambda each: each is not address)

    def put_last(self, address: dict[str, Any]) -> None:
        """Ask this one when no other knows: it did not."""
        self.addresses.sort(key=lambda each: each is address)

    @asynccontextmanager
    async def line(
        self,
        address: dict[str, Any],
        *,
        on_lost: Callable[[], None] | None = None,
        on_push: Callable[[list[Any]], None] | None = None,
    ) -> AsyncIterator[Wire]:
        """Open a wire to one of them for the length of the block.

        Raises:
            ServerError: It cannot be reached, or does not let this user in.
        """
        connection = await connected(address, f"sentinel {shown(address)}")
        try:
            wire = Wire(
                writer_of(connection),
                reply_timeout=self._timeout,
                on_lost=on_lost,
                on_push=on_push,
            )
            try:
                yield wire
            finally:
                wire.close()
        finally:
            await disconnect(connection)

    async def ask(self, line: Wire, address: dict[str, Any]) -> Master:
        """Ask one of them who is the master.

        Args:
            line: A wire to it.
            address: Its address, for an error message.

        Raises:
            ConnectionLostError: It knows no such service, or has not heard of the last failover.
            ServerError: It does not answer, or may not be asked.
        """
        place = await self._place(line, address)
        master = self._known
        if master is None or place != master.place:
            # Before the place, which may so be newer than the epoch and never older.
            epoch = await self._epoch(line)
            master = Master(*await self._place(line, address), epoch)
            self._weigh(master, address)
        self._holds_until = self._clock() + _HOLDS
        return master

    async def _place(self, line: Wire, address: dict[str, Any]) -> tuple[str, int]:
        place = await line.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
        if place is None:
            msg = f"sentinel {shown(address)} knows no service {self.service!r}"
            raise ConnectionLostError(msg)
        return place[0].decode(), int(place[1])

    async def _epoch(self, line: Wire) -> int | None:
        try:
            told = await line.call("SENTINEL", "MASTER", self.service)
        except PermissionDeniedError:
            return None
        # Pairs on RESP3; names and values by turns on RESP2.
        about = (
            told
            if isinstance(told, dict)
            else dict(zip(told[::2], told[1::2], strict=True))
        )
        return int(about[b"config-epoch"])

    def _weigh(self, told: Master, address: dict[str, Any]) -> None:
        known = self._known
        if known is not None:
            if is_outdated(told, known):
                if self._clock() < self._holds_until:
                    msg = f"sentinel {shown(address)} has not heard that {known} is the master"
                    raise ConnectionLostError(msg)
            elif not is_successor(told, known):
                return
            self._former.add(known.place)
            logger.info("the master of %r is %s now", self.service, told)
        self._former.discard(told.place)
        self._known = told
        for callback in list(self._on_master):
            callback(told)
