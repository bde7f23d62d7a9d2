"""One consumer of one group, in Redis: what it reads, holds, settles, and takes over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from . import _scripts as scripts
from ._errors import ServerError
from ._message import Entry
from ._wire import pack

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._stream import Stream

Where: TypeAlias = Literal["lane", "later", "dead", "keep"]

# Pending entries looked at in one call: some 100 µs of the server's time for the ids alone.
_PAGE = 500

# Entries in one move: each is about 30 µs of the server's time.
_MOST_MOVED = 64
_MOST_MOVED_BYTES = 1024 * 1024

# Seconds between two looks of a group that find nothing abandoned and have more to look at, however
# many its consumers are: a million pending entries are looked through in under two minutes, at some
# 2 % of the server's time.
_PACE = 0.04


@dataclass(frozen=True, slots=True)
class Move:
    """One entry on its way off this consumer.

    Attributes:
        entry: What is held.
        where: `lane` (again at once), `later` (again in `delay` seconds), `dead`, or `keep`
            (acknowledged, and left where it is).
        fields: What is stored there, flat.
        delay: Seconds, for `later`.
    """

    entry: Entry
    where: Where
    fields: Sequence[bytes]
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Taken:
    """What came back to a group.

    Attributes:
        entries: Now pending under the taker.
        next_due: Seconds until the next delayed one is due; None when none waits.
        more: Whether the lane holds more than there was room for.
        server_time: Seconds since the epoch, by the server's clock.
    """

    entries: list[Entry]
    next_due: float | None
    more: bool
    server_time: float


@dataclass(frozen=True, slots=True)
class Recovered:
    """What one look at the pending entries has brought.

    Attributes:
        entry: Taken over, with its crashes; None when nothing abandoned was found.
        more: Whether there is more to look at, and nobody else of the group is at it.
        for_alone: Whether it was a suspect when its process ended, and has to run alone now.
        lease_ends: Seconds until the first lease of others ends that was seen, unless it is
            renewed; None when none was.
    """

    entry: Entry | None
    more: bool
    for_alone: bool = False
    lease_ends: float | None = None


class Member:
    """A consumer's name in a group and in the group's lane, and all it may ask of Redis.

    Each method is one round trip unless it says pages, and is sent again over a lost line; where
    that matters, the method says how.
    """

    def __init__(self, stream: Stream, group: str, consumer: str) -> None:
        """Speak as `consumer` of `group`."""
        self.stream = stream
        self.link = stream.link
        self.group = group
        self.consumer = consumer
        self._key = stream.keys.stream
        self._lane = stream.keys.lane(group)

    # -- reading -------------------------------------------------------------------------------

    def read_command(self, count: int, block_ms: int) -> bytes:
        """Pack a blocking read of new entries, for a connection of its own."""
        return pack(
            b"XREADGROUP", b"GROUP", self.group, self.consumer, b"COUNT", count,
            b"BLOCK", block_ms, b"STREAMS", self._key, b">",
        )  # fmt: skip

    @staticmethod
    def read_entries(reply: Any) -> list[Entry]:
        """Take the entries out of a read's reply, RESP2 or RESP3; nothing came: none."""
        if not reply:
            return []
        rows = next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1]
        return [Entry(row[0], row[1], in_lane=False) for row in rows]

    async def take(self, room: int) -> Taken:
        """Take what has come back to the group and is due, as far as there is room.

        What is due for the stream itself moves to the stream. A lost reply leaves entries pending
        under this consumer: look at `own_pending` after an error.

        Args:
            room: Entries at most; at least 1.
        """
        keys = self.stream.keys
        entries, wait_ms, more, now_ms = await self.link.run(
            scripts.TAKE,
            [
                *keys.of_lane(self.group),
                keys.stream,
                keys.delayed,
                keys.delayed_fields,
            ],
            [self.group, self.consumer, room],
        )
        return Taken(
            _entries(entries, in_lane=True),
            None if wait_ms < 0 else wait_ms / 1000,
            bool(more),
            int(now_ms) / 1000,
        )

    async def own_pending(
        self, *, in_lane: bool, held: Callable[[bytes], bool]
    ) -> list[Entry]:
        """Find what is pending under this name and not held: lost replies, in pages.

        Delivery counts stay as they are.

        Args:
            in_lane: Whether to look at the group's lane or at the stream.
            held: Says whether an id is known here already.
        """
        found: list[Entry] = []
        start = "-"
        while True:
            try:
                rows, gone, last = await self.link.run(
                    scripts.OWN_PENDING,
                    [self._source(in_lane=in_lane)],
                    [self.group, self.consumer, start, _PAGE],
                )
            except ServerError as error:
                if error.code == "NOGROUP":
                    return found
                raise
            found += [
                item for item in _entries(rows, in_lane=in_lane) if not held(item.id)
            ]
            if len(rows) + len(gone) < _PAGE:
                return found
            start = f"({last.decode()}"

    # -- settling ------------------------------------------------------------------------------

    def settle_command(
        self, ids: Sequence[bytes], *, in_lane: bool, whole: bool = False
    ) -> bytes:
        """Pack the acknowledgement of handled entries; what the last group settles goes.

        Args:
            ids: Entry ids.
            in_lane: Whether they were read from the group's lane.
            whole: Send the script itself: the server did not know it.
        """
        make = scripts.SETTLE.whole if whole else scripts.SETTLE.by_digest
        keys = [self._source(in_lane=in_lane), *self._place(in_lane=in_lane)]
        return make(keys, [self.group, *ids])

    async def move(self, moves: Sequence[Move]) -> list[bool]:
        """Take entries off this consumer and store them elsewhere, each atomically.

        Returns:
            For each whether it was still held; what was not is left alone. After an error this
            may be sent again: what had moved is then not held any more.
        """
        keys = self.stream.keys
        answers: dict[int, bool] = {}
        for part in _parts(moves):
            in_lane = moves[part[0]].entry.in_lane
            source = self._source(in_lane=in_lane)
            arguments: list[bytes | str | int] = [self.group, self.consumer, keys.bell]
            for at in part:
                item = moves[at]
                arguments += (item.entry.id, item.where, int(item.delay * 1000))
                arguments += (len(item.fields), *item.fields)
            reply = await self.link.run(
                scripts.MOVE,
                [
                    source,
                    *keys.of_lane(self.group),
                    keys.dead,
                    *self._place(in_lane=in_lane),
                ],
                arguments,
            )
            answers.update(
                (at, bool(answer)) for at, answer in zip(part, reply, strict=True)
            )
        return [answers[at] for at in range(len(moves))]

    # -- leases and recovery -------------------------------------------------------------------

    async def renew(self, ids: Sequence[bytes], *, in_lane: bool) -> list[bytes]:
        """Renew the leases of held entries, as if they had just been delivered.

        Args:
            ids: Their ids, ascending; a few hundred at most.
            in_lane: Whether they came from the group's lane.

        Returns:
            Those that somebody else holds now, or nobody.
        """
        lost: list[bytes] = await self.link.run(
            scripts.RENEW,
            [self._source(in_lane=in_lane)],
            [self.group, self.consumer, *ids],
        )
        return lost

    async def recover(
        self,
        *,
        visibility_timeout: float,
        take_until: float | None,
        running: Entry | None = None,
        takes_any: bool = False,
    ) -> Recovered:
        """Look at a bounded part of what is pending, and take one abandoned entry over.

        Entries that were deleted are cleaned out on the way. It is not sent again by itself: a lost
        reply leaves the entry under this consumer, where it ages and is found by a later look.

        Args:
            visibility_timeout: Seconds without renewal after which an entry is abandoned; the
                longest that a live consumer of the group works with counts.
            take_until: Server time in seconds until which the request may claim; with None it only
                writes down where the group stands.
            running: A suspect that still runs: nobody could tell which of the two a process has
                died of, so neither it nor what is taken over beside it is marked.
            takes_any: Beside a suspect that runs, take over what has to run alone, too.
        """
        entry, crashes, from_lane, for_alone, more, ends = await self.link.run(
            scripts.RECOVER,
            [self._key, self._lane, *self._place(in_lane=False)],
            [
                self.group,
                self.consumer,
                int(visibility_timeout * 1000),
                _PAGE,
                0 if take_until is None else int(take_until * 1000),
                b"" if running is None else running.id,
                0 if running is None else int(running.in_lane),
                int(takes_any),
                int(_PACE * 1000),
            ],
            patience=0.0,
        )
        found = (
            Entry(entry[0], entry[1], in_lane=bool(from_lane), crashes=crashes)
            if entry
            else None
        )
        return Recovered(
            found,
            more=bool(more),
            for_alone=bool(for_alone),
            lease_ends=None if ends < 0 else ends / 1000,
        )

    # -- names ---------------------------------------------------------------------------------

    async def retire_others(
        self, *, inactive: float, retention: float | None = None
    ) -> int:
        """Remove the names of consumers that hold nothing and did nothing for long.

        Args:
            inactive: For so many seconds.
            retention: Remove dead letters older than so many seconds, too.

        Returns:
            How many names were removed.
        """
        return int(
            await self.link.run(
                scripts.RETIRE,
                [self._key, self._lane, self.stream.keys.dead],
                [
                    self.group,
                    self.consumer,
                    int(inactive * 1000),
                    "" if retention is None else int(retention * 1000),
                ],
            )
        )

    async def forget(self) -> bool:
        """Remove this consumer's name if it holds nothing.

        Returns:
            Whether it is gone.
        """
        return bool(
            await self.link.run(
                scripts.FORGET_CONSUMER,
                [self._key, self._lane],
                [self.group, self.consumer],
            )
        )

    def _source(self, *, in_lane: bool) -> str:
        return self._lane if in_lane else self._key

    def _place(self, *, in_lane: bool) -> list[str]:
        """Where is written down how far the group has come; a lane is read by one group only."""
        keys = self.stream.keys
        return [] if in_lane else [keys.queue, keys.settled(self.group)]


def _parts(moves: Sequence[Move]) -> list[list[int]]:
    """Share moves out to calls: one source each, bounded by entries and bytes."""
    parts: list[list[int]] = []
    for in_lane in (False, True):
        size = _MOST_MOVED_BYTES + 1
        for at, item in enumerate(moves):
            if item.entry.in_lane is not in_lane:
                continue
            mine = sum(map(len, item.fields))
            if size + mine > _MOST_MOVED_BYTES or len(parts[-1]) >= _MOST_MOVED:
                parts.append([])
                size = 0
            parts[-1].append(at)
            size += mine
    return parts


def _entries(rows: Sequence[Any], *, in_lane: bool) -> list[Entry]:
    return [Entry(row[0], row[1], in_lane=in_lane) for row in rows]
