"""What became of a message → what Redis is told.

Success is a plain acknowledgement, gathered with those of the same moment. Everything else moves
the entry elsewhere by an owner-checked script. What could not be sent is kept and sent later.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, assert_never

from . import _history as history
from ._errors import (
    ConnectionLostError,
    ServerError,
    ServerFullError,
    ServerNotReadyError,
)
from ._member import Move
from ._outcome import Ack, DeadLetter, Failure, Outcome, Release, Retry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._held import Held
    from ._member import Member, Where
    from ._message import Entry

logger = logging.getLogger("aioredismq")

# Acknowledgements in one call: some 0.3 ms of the server's time with one group.
_MOST = 256
# While the server refuses or is away: often enough to be done soon after, seldom enough not to
# add to its trouble.
_PAUSE = 0.2


@dataclass(frozen=True, slots=True)
class _Moving:
    move: Move
    failure: Failure | None


class Settler:
    """Settle the entries of one consumer.

    Acknowledgements go out at the end of the turn when none is under way, and otherwise when the
    last one's answer has come: they gather by themselves, without a timer.
    """

    def __init__(
        self,
        member: Member,
        *,
        held: Held,
        failover: bool,
        keeps_failures: bool,
        failed: Callable[[Entry, Failure], None],
        fatal: Callable[[ServerError], None],
        came_back: Callable[[], None] = lambda: None,
    ) -> None:
        """Nothing is sent before something is settled.

        Args:
            member: This consumer in Redis.
            held: What is held; settled entries are dropped from it.
            failover: Whether what failed for good becomes a dead letter.
            keeps_failures: Whether it is one already, and stays in its stream.
            failed: Told of each message that has failed for good, after it was put aside.
            fatal: Told of an error that does not pass by itself.
            came_back: Told when messages have been put where what comes back is taken from. The
                bell says so, too, but a bell may be lost.
        """
        self._member = member
        self._held = held
        self._failover = failover
        self._keeps_failures = keeps_failures
        self._failed = failed
        self._fatal = fatal
        self._came_back = came_back
        self._loop = asyncio.get_running_loop()
        self._acks: list[bytes] = []
        self._lane_acks: list[bytes] = []
        self._lane_next = False
        self._acking: Sequence[bytes] = ()  # what was sent and is not answered
        self._acking_lane = False
        self._ack_due = False
        self._again: asyncio.TimerHandle | None = (
            None  # while acknowledgements are refused
        )
        self._moves: deque[_Moving] = deque()
        self._moving: Sequence[_Moving] = ()
        self._work = asyncio.Event()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self.lost = 0
        """Entries that somebody else held by the time they were settled."""
        member.link.on_up(self._go_on)

    # -- what became of it ---------------------------------------------------------------------

    def ack(self, entry: Entry) -> None:
        """Acknowledge, with the next call."""
        (self._lane_acks if entry.in_lane else self._acks).append(entry.id)
        if not (self._ack_due or self._acking or self._again):
            self._ack_due = True
            self._quiet.clear()
            self._loop.call_soon(self._send_acks)

    def settle(self, entry: Entry, outcome: Outcome) -> None:
        """Do what an outcome says, with the next call."""
        attempt = history.attempts_made(entry)
        where: Where
        match outcome:
            case Ack():
                self.ack(entry)
            case Release() if self._keeps_failures:
                self._move(Move(entry, "dead", history.still_dead(entry)))
            case Release():
                self._move(Move(entry, "lane", history.handed_back(entry)))
            case Retry(after, detail):
                fields = history.tried_again(entry, attempt + 1, detail)
                where = "later" if after > 0 else "lane"
                self._move(Move(entry, where, fields, after))
            case DeadLetter(failure) if self._keeps_failures:
                self._move(Move(entry, "keep", ()), failure)
            case DeadLetter(failure) if self._failover:
                tried = failure.reason not in {"crashed", "expired"}
                fields = history.put_aside(
                    entry, attempt + tried, self._member.group, failure
                )
                self._move(Move(entry, "dead", fields), failure)
            case DeadLetter(failure):
                self.ack(entry)
                self._failed(entry, failure)
            case _:
                assert_never(outcome)

    def is_settling(self, entry_id: bytes, in_lane: bool) -> bool:
        """Say whether an outcome of this entry is on its way, or waits to be."""
        if entry_id in (self._lane_acks if in_lane else self._acks):
            return True
        if entry_id in self._acking and in_lane is self._acking_lane:
            return True
        moving = (item.move.entry for item in (*self._moving, *self._moves))
        return any(one.id == entry_id and one.in_lane is in_lane for one in moving)

    async def flushed(self) -> None:
        """Return when everything settled so far was answered.

        What was refused for good is not sent again: it stays pending, and others take it over.
        """
        while not self._quiet.is_set():
            await self._quiet.wait()

    def close(self) -> None:
        """Send nothing more."""
        self._member.link.forget(self._go_on)

    # -- acknowledgements ----------------------------------------------------------------------

    def _send_acks(self, *, whole: bool = False) -> None:
        self._ack_due = False
        if self._acking:
            return
        # By turns: a busy stream must not keep those of the lane waiting.
        in_lane = bool(self._lane_acks) and (self._lane_next or not self._acks)
        self._lane_next = not in_lane
        ids = self._lane_acks if in_lane else self._acks
        if not ids:
            self._look_for_quiet()
            return
        batch = ids[:_MOST]
        if not self._member.link.is_up:
            return  # sent when it is up again
        command = self._member.settle_command(batch, in_lane=in_lane, whole=whole)
        del ids[: len(batch)]
        self._acking, self._acking_lane = batch, in_lane
        self._member.link.submit(
            command, lambda reply: self._acked(batch, reply, in_lane=in_lane)
        )

    def _acked(self, batch: list[bytes], reply: Any, *, in_lane: bool) -> None:
        self._acking = ()
        if not isinstance(reply, Exception):
            self._held.drop(batch, in_lane=in_lane)
            self._send_acks()
            return
        match reply:
            case ServerError(code="NOSCRIPT"):
                self._keep(batch, in_lane=in_lane)
                self._send_acks(whole=True)
            case ConnectionLostError():
                self._keep(batch, in_lane=in_lane)  # sent when it is up again
            case ServerNotReadyError() | ServerFullError():
                self._keep(batch, in_lane=in_lane)
                self._member.link.follow(reply)
                self._again = self._loop.call_later(_PAUSE, self._go_on)
            case ServerError():
                self._fatal(reply)
                self._send_acks()
            case _:
                raise reply

    def _keep(self, batch: list[bytes], *, in_lane: bool) -> None:
        ids = self._lane_acks if in_lane else self._acks
        ids[:0] = batch

    def _go_on(self) -> None:
        """Send what has waited, for the connection or for a server that refuses."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if not self._acking and not self._ack_due and (self._acks or self._lane_acks):
            self._send_acks()

    # -- moves ---------------------------------------------------------------------------------

    def _move(self, move: Move, failure: Failure | None = None) -> None:
        self._moves.append(_Moving(move, failure))
        self._quiet.clear()
        self._work.set()

    async def run(self) -> None:
        """Send moves as they come, until cancelled; it may be run again afterwards."""
        while True:
            await self._work.wait()
            self._work.clear()
            while self._moves:
                batch = self._moving = [
                    self._moves.popleft() for _ in range(min(len(self._moves), _MOST))
                ]
                try:
                    await self._send_moves(batch)
                except asyncio.CancelledError:
                    # What has been moved meanwhile is found to be so.
                    self._moves.extendleft(reversed(batch))
                    self._work.set()
                    raise
                finally:
                    self._moving = ()
            self._look_for_quiet()

    async def _send_moves(self, batch: Sequence[_Moving]) -> None:
        while True:
            try:
                held = await self._member.move([item.move for item in batch])
            except (ConnectionLostError, ServerNotReadyError, ServerFullError) as error:
                logger.debug("settling waits: %s", error)
                await asyncio.sleep(_PAUSE)
            except ServerError as error:
                self._fatal(error)
                return
            else:
                self._moved(batch, held)
                return

    def _moved(self, batch: Sequence[_Moving], held: Sequence[bool]) -> None:
        for item, was_held in zip(batch, held, strict=True):
            entry = item.move.entry
            self._held.drop((entry.id,), in_lane=entry.in_lane)
            if not was_held:
                self.lost += 1
            elif item.failure is not None:
                self._failed(entry, item.failure)
        if any(item.move.where in {"lane", "later"} for item in batch):
            self._came_back()

    def _look_for_quiet(self) -> None:
        busy = (
            self._acking or self._acks or self._lane_acks or self._moves or self._moving
        )
        if not busy:
            self._quiet.set()
