"""Renews what this consumer holds, so that a handler may take as long as it needs."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from anyio import move_on_after

from ._clock import elapsed
from ._errors import FATAL, CommandRefusedError, ServerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._held import Held
    from ._member import Member
    from ._message import Entry

logger = logging.getLogger("aioredismq")

# Ids in one call: some 150 µs of the server's time.
_CHUNK = 200
# Seconds between looks at the clock. A look that comes later than it should tells that the event
# loop was blocked: no renewals, no answers, nothing.
_TICK = 0.5
_STALLED = 1.0
# Seconds nothing is claimed after an outage, at least: others may pause for 1 s before they try
# again (see _link), then have to renew, and may be short of processor time just then.
_LEAST_GRACE = 2.5


class Lease:
    """Keep the leases of one consumer while its event loop runs.

    A message whose lease is lost is somebody else's: what its handler still does is done twice,
    and only its acknowledgement counts.
    """

    def __init__(
        self,
        member: Member,
        *,
        held: Held,
        visibility_timeout: float,
        lost: Callable[[bytes, bool], bool],
        is_settling: Callable[[bytes, bool], bool],
    ) -> None:
        """Nothing is renewed before `run()`.

        Args:
            member: This consumer in Redis.
            held: What is held.
            visibility_timeout: Seconds a lease lasts; it is renewed every third of them.
            lost: Told of the id of each lost lease, and whether it was in the lane; says whether
                its handler runs here.
            is_settling: Says of an id, and whether it was in the lane, that its outcome is known:
                it may have been settled, and only the answer was lost.
        """
        self._member = member
        self._held = held
        self._period = visibility_timeout / 3
        self._grace = max(self._period, _LEAST_GRACE)
        self._lost = lost
        self._is_settling = is_settling
        self._closed = False
        self._wanted = asyncio.Event()
        self._renewed = asyncio.Event()
        self._sound_since = elapsed()
        self._due = elapsed() + self._period
        held.sound_until = elapsed() + visibility_timeout
        member.link.on_up(self._reconnected)

    def may_claim(self) -> bool:
        """Say whether others have had the time to renew what is theirs.

        After an outage everybody's leases look abandoned, also to their owners: so one renewal
        period is left to all before anybody claims. The first connect counts as one.
        """
        now = elapsed()
        return now - self._sound_since >= self._grace and now < self._due + _TICK

    def remaining(self, entry: Entry) -> float:
        """Seconds the lease of an entry lasts if it is not renewed; 0 when it is lost."""
        renewed = self._held.renewed_at(entry.id, in_lane=entry.in_lane)
        if renewed is None:
            return 0.0
        return max(0.0, renewed + self._period * 3 - elapsed())

    async def extend(self, entry: Entry) -> bool:
        """Renew one lease now; False when it is lost.

        Raises:
            ServerError: Redis was away.
        """
        if not self._held.has(entry.id, in_lane=entry.in_lane):
            return False
        return not await self.renew([entry.id], in_lane=entry.in_lane)

    async def until_sound(self) -> None:
        """Return when everything held is known to be this consumer's, at once when it is.

        After a pause of the whole process, or of Redis, somebody else may have taken over what
        waits here: it must not be started before that is known. After `close()` nobody would find
        out any more, and nothing is left to start: it returns.
        """
        while elapsed() > self._held.sound_until and not self._closed:
            self._renewed.clear()
            self._wanted.set()
            await self._renewed.wait()

    def doubt(self) -> None:
        """Renew soon, and claim nothing for a while: leases look older than they are.

        As after an outage, or when the server's clock was set ahead.
        """
        self._sound_since = elapsed()
        self._due = min(self._due, self._sound_since)

    def close(self) -> None:
        """Listen to nobody any more, and let nobody wait."""
        self._closed = True
        self._renewed.set()
        self._member.link.forget(self._reconnected)

    async def run(self) -> None:
        """Renew until cancelled."""
        tick = min(_TICK, self._period / 2)
        while True:
            before = elapsed()
            with move_on_after(tick):
                await self._wanted.wait()
            now = elapsed()
            late = now - before - tick
            if late > _STALLED:
                logger.warning(
                    "the event loop was blocked for %.1f s, or the machine slept: leases cannot "
                    "be renewed then; handlers that compute belong in threads (plain `def`)",
                    late,
                )
                self.doubt()
            if now >= self._due or self._wanted.is_set():
                self._wanted.clear()
                await self._renew_all()

    async def _renew_all(self) -> None:
        begun, known = elapsed(), self._held.sound_until
        sound_until = begun + 3 * self._period
        try:
            renewed = await self._renew_held(set())
            while begun > self._held.sound_until:
                # What was on its way here when everything stood still comes meanwhile.
                late = await self._renew_held(renewed)
                if not late:
                    break
                renewed |= late
        except FATAL:
            raise
        except ServerError as error:
            logger.debug(
                "leases of %s could not be renewed: %s", self._member.group, error
            )
            self.doubt()
            self._due = elapsed() + min(1.0, self._period)
        else:
            now_sound = self._held.sound_until
            if begun <= now_sound < known:
                # What has come meanwhile, and was not renewed, was long on its way.
                sound_until = min(sound_until, now_sound)
            self._held.sound_until = sound_until
            self._renewed.set()
            now = elapsed()
            self._due = now + self._period
            if now - begun > _TICK:
                self._sound_since = now  # the server kept everybody waiting

    async def _renew_held(
        self, but: set[tuple[bytes, bool]]
    ) -> set[tuple[bytes, bool]]:
        done: set[tuple[bytes, bool]] = set()
        for in_lane in (False, True):
            ids = self._held.ids(in_lane=in_lane)
            ids = [one for one in ids if (one, in_lane) not in but]
            done.update((one, in_lane) for one in ids)
            for at in range(0, len(ids), _CHUNK):
                await self.renew(ids[at : at + _CHUNK], in_lane=in_lane)
        return done

    async def renew(self, ids: list[bytes], *, in_lane: bool) -> list[bytes]:
        """Renew some leases now; returns those that are lost.

        Args:
            ids: Ascending, a few hundred at most.
            in_lane: Whether they came from the group's lane.

        Raises:
            ServerError: Redis was away.
        """
        asked = elapsed()
        try:
            lost = await self._member.renew(ids, in_lane=in_lane)
        except CommandRefusedError as error:
            if error.code != "NOGROUP":
                raise
            return ids  # the group is gone, and with it every lease, until it is made again
        # What was settled while the server was asked is not lost.
        lost = [item for item in lost if self._held.has(item, in_lane=in_lane)]
        self._held.renewed(set(ids).difference(lost), asked, in_lane=in_lane)
        for entry_id in lost:
            if not self._is_settling(entry_id, in_lane):
                self._tell(entry_id, in_lane=in_lane)
        return lost

    def _tell(self, entry_id: bytes, *, in_lane: bool) -> None:
        if self._held.lose(entry_id, in_lane=in_lane) and self._lost(entry_id, in_lane):
            logger.warning(
                "the lease of entry %s of %s is lost: another consumer may run it too",
                entry_id.decode(),
                self._member.group,
            )

    def _reconnected(self) -> None:
        self.doubt()
        self._wanted.set()
