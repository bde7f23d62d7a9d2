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

    from ._failover import Failover, Place

logger = logging.getLogger("aioredismq")

# Seconds for which the last one that was up to date outweighs all that are not: thrice the
# lookout's pulse. Without an end, a service that was given to the sentinels anew, with its count
# of failovers at 0, would never be found again.
_HOLDS = 30.0
# Seconds for which the replica that was selected is waited for. It is promoted within 0.1 s, which
# its sentinel sees within one more. Below `produce_timeout`, so that sends outlast a failover that
# does not come.
_PATIENCE = 5.0


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
    def place(self) -> Place:
        """Host and port."""
        return self.host, self.port

    def __str__(self) -> str:
        return _shown(self.place)


def _shown(place: Place) -> str:
    return f"{place[0]}:{place[1]}"


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
    """Ask those who watch a service, one at a time, and remember the last failover.

    All of a connection's wires share what one of them was told, or a sentinel that hears of a
    failover late would lead some of them back to the former master.

    A failover that has begun counts before it is over: its master is left for the replica that
    was selected, until somebody says who the master is, or for five seconds.
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
        self._said: dict[str, Place] = {}
        self._former: set[Place] = set()
        self._failover: Failover | None = None
        self._leader: dict[str, Any] | None = None
        self._waits_until = 0.0
        self._on_move: list[Callable[[Place, str], None]] = []

    def on_move(self, callback: Callable[[Place, str], None]) -> None:
        """Call back with where to be, and why, whenever that is elsewhere than before."""
        self._on_move.append(callback)

    def has_handed_over(self, place: Place) -> bool:
        """Say whether a server was the master, or selected, and is not now.

        Whatever it says itself. A master whose failover has begun has handed over.
        """
        begun = self._failover if self.selected else None
        if begun is not None and place in (begun.master, begun.replica):
            return place == begun.master
        return place in self._former

    @property
    def selected(self) -> Place | None:
        """The replica that is about to be the master; None while no failover has begun."""
        if self._failover is None or self._clock() >= self._waits_until:
            return None
        return self._failover.replica

    def longest_wait(self, pulse: float) -> float:
        """Say for how long nobody need be asked: not beyond the end of a failover's time.

        Args:
            pulse: Seconds when no failover has begun.
        """
        if self._failover is None:
            return pulse
        return min(pulse, max(self._waits_until - self._clock(), 0.0))

    def begin(self, failover: Failover, leader: dict[str, Any]) -> None:
        """Leave the master now: its replica is promoted within a tenth of a second.

        What another one than the known master is to hand over is no business of ours: a sentinel
        that has missed a failover may lead one of its own.

        Args:
            failover: As the sentinel that leads it has announced it.
            leader: The address of that sentinel.
        """
        if self._known is None or failover.master != self._known.place:
            return
        is_known = self.selected == failover.replica
        self._failover, self._leader = failover, leader
        self._waits_until = self._clock() + _PATIENCE
        if not is_known:
            why = f"{_shown(failover.replica)} is to be the master"
            logger.info("a failover of %r has begun: %s", self.service, why)
            self._move(failover.replica, why)

    def abort(self, leader: dict[str, Any]) -> None:
        """Go back to the known master, if it was this sentinel that led away from it."""
        if self._leader is leader:
            self._give_up()

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
        counts = True
        if master is None or place != master.place:
            # Before the place, which may so be newer than the epoch and never older.
            epoch = await self._epoch(line)
            master = Master(*await self._place(line, address), epoch)
            counts = not self._says_it_still(master, address)
            if counts:
                self._weigh(master, address)
        if self._clock() >= self._waits_until:
            self._give_up()
        if counts:
            self._said[shown(address)] = master.place
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

    def _says_it_still(self, told: Master, address: dict[str, Any]) -> bool:
        """Say whether a sentinel has no news, where the failovers are not numbered.

        It has said so all along, and the others have heard more since.
        """
        said = self._said.get(shown(address))
        return (
            told.epoch is None
            and said == told.place
            and self._clock() < self._holds_until
        )

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
        self._failover = self._leader = None
        self._move(told.place, f"the master is {told} now")

    def _give_up(self) -> None:
        begun, self._failover, self._leader = self._failover, None, None
        if begun is None or self._known is None:
            return
        self._former.add(begun.replica)
        why = f"the master is {self._known} still, not {_shown(begun.replica)}"
        logger.info("a failover of %r did not come: %s", self.service, why)
        self._move(self._known.place, why)

    def _move(self, place: Place, why: str) -> None:
        for callback in list(self._on_move):
            callback(place, why)
