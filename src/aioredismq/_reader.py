"""The blocking read: asks only for what there is room for, on a connection of its own.

A blocked read is never cancelled: what Redis hands out at that moment would be pending and unseen.
It is woken by CLIENT UNBLOCK, or, where that is denied, blocks shortly.
"""

from __future__ import annotations

import asyncio
import logging
import math
from functools import partial
from typing import TYPE_CHECKING

from anyio import current_effective_deadline, move_on_after

from ._clock import elapsed
from ._errors import (
    FATAL,
    CommandRefusedError,
    ConnectionLostError,
    PermissionDeniedError,
    ServerError,
    ServerFullError,
    ServerNotReadyError,
)
from ._pauses import pauses
from ._wire import exchange

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ._held import Held
    from ._member import Member
    from ._message import Entry
    from ._wire import Wire

logger = logging.getLogger("aioredismq")

# Seconds one read blocks. Bounded, so that a half-open line and a stream that vanished on 6.2
# (which wakes nobody) are noticed; 12 commands a minute when idle.
LONGEST_BLOCK = 5.0
# Where CLIENT UNBLOCK is denied, stopping waits for the end of the current block.
_SHORT_BLOCK = 1.0
_WAKE_AGAIN = 0.05


class Reader:
    """Bring new entries of one stream to one consumer, as far as it has room."""

    def __init__(
        self,
        member: Member,
        *,
        open_wire: Callable[[], Awaitable[Wire]],
        room: Callable[[], int],
        wait_for_room: Callable[[], Awaitable[None]],
        deliver: Callable[[Sequence[Entry]], None],
        held: Held,
        mend: Callable[[], Awaitable[None]],
    ) -> None:
        """Nothing is opened before `run()`.

        Args:
            member: This consumer in Redis.
            open_wire: Opens the connection that blocks.
            room: Says how many entries there is room for now.
            wait_for_room: Returns when there is room again.
            deliver: Takes what was read.
            held: What this consumer holds.
            mend: Makes the group again when it is gone; raises when it was deleted on purpose.
        """
        self._member = member
        self._open_wire = open_wire
        self._room = room
        self._wait_for_room = wait_for_room
        self._deliver = deliver
        self._held = held
        self._mend = mend
        self._wire: Wire | None = None
        self._wire_id: int | None = None
        self._stopping = False
        self._blocked = False
        self._stop_asked = asyncio.Event()
        self._stopped = asyncio.Event()
        self._started = False
        self._asked = 0
        self._reply: asyncio.Future[object]
        self._cancelled: asyncio.CancelledError | None = None

    async def run(self) -> None:
        """Read until `stop()`.

        Raises:
            ServerError: One that does not pass by itself.
            QueueDeletedError: The queue or group was deleted on purpose.
        """
        self._started = True
        try:
            await self._read_until_stopped()
        finally:
            self._close()
            self._stopped.set()
        if self._cancelled is not None:
            raise self._cancelled

    async def _read_until_stopped(self) -> None:
        following = pauses()
        is_gone = False
        while not self._stopping:
            try:
                if is_gone:
                    await self._mend()
                    is_gone = False
                await self._open()
                while not self._stopping:
                    await self._read()
            except FATAL:
                raise
            except (
                ConnectionLostError,
                ServerNotReadyError,
                ServerFullError,  # NOREPLICAS: a read is a write
            ) as error:
                logger.debug(
                    "the reader of %s lost its line: %s", self._member.group, error
                )
                self._close()
                await self._pause(following())
            except CommandRefusedError as error:
                if error.code != "NOGROUP":
                    raise
                is_gone = True

    @property
    def asked(self) -> int:
        """Entries the blocked read has asked for; 0 when none is under way."""
        return self._asked

    def request_stop(self) -> None:
        """Ask for no more; `stop()` waits for the end."""
        self._stopping = True
        self._stop_asked.set()

    async def stop(self) -> None:
        """Ask for no more and wake the blocked read; returns when it has ended.

        What the last read brought is delivered before.
        """
        self._stopping = True
        self._stop_asked.set()
        while self._started and not self._stopped.is_set():
            if self._blocked and self._wire_id is not None:
                await self._wake(self._wire_id)
            # Again after a while: the wake-up may overtake the read it is for.
            with move_on_after(_WAKE_AGAIN):
                await self._stopped.wait()

    async def reconsider(self) -> None:
        """Ask again for less, when the room a blocked read asked for was taken otherwise."""
        if self._blocked and self._wire_id is not None and self._asked > self._room():
            await self._wake(self._wire_id)

    async def _wake(self, wire_id: int) -> None:
        try:
            await self._member.link.call("CLIENT", "UNBLOCK", wire_id, patience=1.0)
        except PermissionDeniedError:
            self._wire_id = None  # the read ends by itself
        except ServerError as error:
            logger.debug("could not wake the blocked read: %s", error)
            self._close()  # the server is away, and what it would hand out with it

    async def _pause(self, seconds: float) -> None:
        """Wait, but not beyond `request_stop()`."""
        with move_on_after(seconds):
            await self._stop_asked.wait()

    async def _open(self) -> None:
        if self._wire is not None and not self._wire.is_lost:
            return
        self._wire = await self._open_wire()
        ask = partial(exchange, self._wire, "CLIENT", within=LONGEST_BLOCK)
        try:
            self._wire_id = await ask("ID")
            # Found out now, as a read that cannot be woken must be a short one.
            await ask("UNBLOCK", self._wire_id)
        except (PermissionDeniedError, CommandRefusedError):
            self._wire_id = None
        # A read whose reply was lost has left entries pending under this name, unseen.
        with self._held.looking(in_lane=False) as held:
            lost = await self._member.own_pending(in_lane=False, held=held)
        if lost:
            logger.info("found %d entries of a lost read", len(lost))
            self._deliver(lost)

    async def _read(self) -> None:
        await self._wait_for_room()
        count = self._room()
        if self._stopping or count < 1 or self._wire is None:
            return
        block = LONGEST_BLOCK if self._wire_id is not None else _SHORT_BLOCK
        command = self._member.read_command(count, int(block * 1000))
        loop = asyncio.get_running_loop()
        self._reply = loop.create_future()
        self._wire.submit(command, lambda answer: _resolve(self._reply, answer))
        self._blocked, self._asked = True, count
        asked = elapsed()
        try:
            answer = await self._answered(loop)
        finally:
            self._blocked, self._asked = False, 0
        entries = self._member.read_entries(answer)
        if entries:
            self._held.note_asked(asked)
            self._deliver(entries)

    async def _answered(self, loop: asyncio.AbstractEventLoop) -> object:
        """Wait for the reply; a cancellation by others ends the reader, and not before that."""
        while True:
            try:
                return await self._reply
            except asyncio.CancelledError as error:
                if current_effective_deadline() == -math.inf:
                    raise  # by its owner, who has waited for it in vain
                self._cancelled = error
                self.request_stop()
                if self._reply.cancelled():
                    self._reply = loop.create_future()

    def _close(self) -> None:
        wire, self._wire = self._wire, None
        self._wire_id = None
        if wire is not None and not wire.is_lost:
            wire.close()


def _resolve(future: asyncio.Future[object], answer: object) -> None:
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
