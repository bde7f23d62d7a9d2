"""Takes over what others have abandoned, one suspect at a time."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING, Literal, TypeAlias

from anyio import move_on_after

from ._clock import elapsed
from ._errors import (
    CommandRefusedError,
    ConnectionLostError,
    ServerFullError,
    ServerNotReadyError,
)
from ._member import Recovered
from ._outcome import DeadLetter, Failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractContextManager

    from ._held import Held
    from ._member import Member
    from ._message import Entry
    from ._outcome import Outcome

logger = logging.getLogger("aioredismq")

# Seconds between looks while nothing is found: a crash is noticed within the visibility timeout
# and this; some 16 commands a minute. What is delivered to others after a look is not abandoned
# sooner than a visibility timeout later, so there is no hurry; a short one does not mean that an
# idle consumer may ask all the time.
_PAUSE = 5.0
_LEAST_PAUSE = 3.0
# Seconds behind the end of a lease it is looked again: several wait for the same end.
_BEHIND_ITS_END = (0.005, 0.2)
# Seconds between looks for names of consumers that are gone, and how long those did nothing: a
# name costs some 100 bytes, so there is no hurry. As often one of a queue's consumers sweeps.
_RETIRE_EVERY = 300.0
_RETIRE_AFTER = 3600.0
# Seconds without a take-over after which the next one is news.
_TELL_EVERY = 60.0
# Seconds a request to take over may be on its way; see lua/recover.lua.
_FRESH = 0.5
# Seconds after which another suspect may start beside one that has not ended. One that was a
# suspect before, when a process ended, runs alone for a visibility timeout: it may be what kills.
_FOLLOWED_AFTER = 4.0
# Between the pages of a sweep, each some 2.5 ms of the server's time.
_NEXT_SWEPT = 0.1

_Following: TypeAlias = Literal["later", "page", "suspect", "mend"]

# Seconds between looks while there is more to do. Between pages a little more than the pace of the
# group (see _member): so one consumer goes on, and the others look again when it is their turn
# anyway. Between suspects next to nothing: a process may have held hundreds, and they wait already.
_SOON: dict[_Following, float] = {"page": 0.05, "suspect": 0.002, "mend": 0.05}


class Recoverer:
    """Look for abandoned messages of one group and bring them to its consumer.

    What a vanished process held are suspects: one of them may be what it died of. So they come
    one at a time, each marked before it starts; a mark that is found abandoned again is a crash,
    charged to that message alone.
    """

    def __init__(
        self,
        member: Member,
        *,
        visibility_timeout: float,
        max_crashes: int,
        retention: float | None,
        held: Held,
        may_claim: Callable[[], bool],
        server_time: Callable[[], float | None],
        one_kept_free: Callable[[], AbstractContextManager[None]],
        free_worker: Callable[[float], Awaitable[bool]],
        run_suspect: Callable[[Entry, float], Awaitable[bool]],
        settle: Callable[[Entry, Outcome], None],
        mend: Callable[[], Awaitable[None]],
    ) -> None:
        """Nothing is looked for before `run()`.

        Args:
            member: This consumer in Redis.
            visibility_timeout: Seconds without renewal after which an entry is abandoned.
            max_crashes: Crashes that make a dead letter.
            retention: Seconds dead letters are kept; None for ever.
            held: What this consumer holds.
            may_claim: Says whether others have had the time to renew.
            server_time: Tells the server's time; None when it is not known yet.
            one_kept_free: A block in which a worker that becomes free stays so.
            free_worker: Waits so many seconds for a free worker, and says whether there is one.
            run_suspect: Runs an entry before and apart from others; returns when it has ended, or
                after so many seconds, and says whether it has.
            settle: Does what an outcome says with an entry.
            mend: Makes the group again when it is gone; raises when it was deleted on purpose.
        """
        self._member = member
        self._visibility_timeout = visibility_timeout
        self._max_crashes = max_crashes
        self._retention = retention
        self._held = held
        self._may_claim = may_claim
        self._server_time = server_time
        self._one_kept_free = one_kept_free
        self._free_worker = free_worker
        self._run_suspect = run_suspect
        self._settle = settle
        self._mend = mend
        self._quiet = min(_PAUSE, max(_LEAST_PAUSE, visibility_timeout))
        self._brief = min(_PAUSE, visibility_timeout / 4)
        self._pause = _jittered(self._brief)
        self._stopped = asyncio.Event()
        self._running: list[tuple[Entry, float]] = []
        self._tell_at = 0.0
        self._retire_at = time.monotonic() + random.uniform(0, _RETIRE_EVERY)
        self._sweep_from = ""

    def stop(self) -> None:
        """Take over nothing more; `run()` ends."""
        self._stopped.set()

    async def run(self) -> None:
        """Look until `stop()`.

        Raises:
            ServerError: One that does not pass by itself.
            QueueDeletedError: The queue or group was deleted on purpose.
        """
        following: _Following = "later"
        is_gone = False
        while not self._stopped.is_set():
            try:
                await self._wait(following)
                if self._stopped.is_set():
                    return
                if is_gone:
                    await self._mend()
                    is_gone = False
                following = await self._look()
                await self._retire()
            except (ConnectionLostError, ServerNotReadyError, ServerFullError) as error:
                logger.debug("could not look for abandoned messages: %s", error)
                following = "later"
            except CommandRefusedError as error:
                if error.code != "NOGROUP":
                    raise
                is_gone, following = True, "mend"

    async def _wait(self, following: _Following) -> None:
        """Wait for the next look, and sweep meanwhile if it is time for that.

        A page or another suspect is worth a look only when something may be taken over.
        """
        due = time.monotonic() + self._pause
        while not self._stopped.is_set() and (left := due - time.monotonic()) > 0:
            pause = _NEXT_SWEPT if self._sweep_from else left
            with move_on_after(min(left, _SOON.get(following, pause))):
                await self._stopped.wait()
                return
            if following == "mend":
                return
            if following == "later":
                if self._sweep_from:
                    await self._sweep()
            elif self._take_until() is not None:
                return
            else:
                following = "page"

    async def _sweep(self) -> None:
        """Take off a page of what every group has settled."""
        start, self._sweep_from = self._sweep_from, ""
        self._sweep_from, _ = await self._member.stream.sweep_page(
            start, every=_RETIRE_EVERY
        )

    async def _retire(self) -> None:
        """Remove names nobody uses any more, now and then."""
        if time.monotonic() < self._retire_at:
            return
        self._retire_at = time.monotonic() + _RETIRE_EVERY
        retired = await self._member.retire_others(
            inactive=max(_RETIRE_AFTER, 4 * self._visibility_timeout),
            retention=self._retention,
        )
        self._sweep_from = "-"
        if retired:
            logger.info(
                "removed %d unused consumer names of %s", retired, self._member.group
            )

    def _tell(self, entry: Entry) -> None:
        """Say so: once a minute, and for each message that was a suspect when its process ended."""
        now = time.monotonic()
        level = (
            logging.WARNING if entry.crashes or now >= self._tell_at else logging.INFO
        )
        self._tell_at = now + _TELL_EVERY
        logger.log(
            level,
            "took over entry %s of %s: its consumer is gone%s",
            entry.id.decode(),
            self._member.group,
            f" (crash {entry.crashes})" if entry.crashes else "",
        )

    def _take_until(self) -> float | None:
        """Say until when a request may claim; None when it may not at all."""
        now = self._server_time()
        return now + _FRESH if now is not None and self._may_claim() else None

    async def _look(self) -> _Following:
        """Take one over if there is any; says what is to follow.

        Only for a worker that is free, as it is marked from now on. Behind a backlog none ever is
        by chance: the first that has ended its handler waits for the answer.
        """
        self._pause = _jittered(self._brief)
        with self._one_kept_free():
            while self._take_until() and not await self._free_worker(self._brief):
                await self._ask(None)
                await self._retire()
                if self._stopped.is_set():
                    return "later"
            until = self._take_until()
            found = await self._ask(until)
        if found.entry is not None:
            await self._run(found.entry, for_alone=found.for_alone)
            return "suspect"
        if until is not None:
            self._pause = self._until_worth_it(found)
        return "page" if found.more else "later"

    async def _run(self, entry: Entry, *, for_alone: bool) -> None:
        """Run a suspect until the next may start, unless it has killed too often."""
        self._tell(entry)
        if entry.crashes >= self._max_crashes:
            detail = f"{entry.crashes} processes ended while they ran this message"
            self._settle(entry, DeadLetter(Failure("crashed", detail)))
            return
        begun, longest = elapsed(), self._visibility_timeout
        if not for_alone:
            longest = min(longest, _FOLLOWED_AFTER)
        if not await self._run_suspect(entry, longest):
            self._running.append((entry, begun))

    def _still_running(self) -> tuple[Entry | None, bool]:
        """Give the suspect that has run longest, and say whether what has to be alone may join."""
        self._running = [
            (entry, begun)
            for entry, begun in self._running
            if self._held.has(entry.id, in_lane=entry.in_lane)
        ]
        if not self._running:
            return None, False
        first, begun = self._running[0]
        return first, elapsed() - begun >= self._visibility_timeout

    def _until_worth_it(self, found: Recovered) -> float:
        """Seconds until there may be something to take over: when a lease ends, if one was seen."""
        quiet = _jittered(self._quiet)
        if found.lease_ends is None:
            return quiet
        return min(quiet, found.lease_ends + random.uniform(*_BEHIND_ITS_END))

    async def _ask(self, take_until: float | None) -> Recovered:
        """Ask for one that is abandoned; what is held here, or has just been settled, is not."""
        running, takes_any = self._still_running()
        with (
            self._held.looking(in_lane=False) as in_stream,
            self._held.looking(in_lane=True) as in_lane,
        ):
            asked = elapsed()
            found = await self._member.recover(
                visibility_timeout=self._visibility_timeout,
                take_until=take_until,
                running=running,
                takes_any=takes_any,
            )
            entry = found.entry
            if entry is None:
                return found
            if not (in_lane if entry.in_lane else in_stream)(entry.id):
                self._held.note_asked(asked)
                self._held.add([entry])
                return found
        if self._held.has(entry.id, in_lane=entry.in_lane):
            if self._held.renewed_at(entry.id, in_lane=entry.in_lane) is None:
                self._tell(entry)  # it was lost, is ours again, and runs still
            self._held.add([entry])
        return Recovered(None, more=True)


def _jittered(seconds: float) -> float:
    return random.uniform(seconds / 2, seconds)
