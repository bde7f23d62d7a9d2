"""Every operation on a queue in Redis, named by what it means."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from . import _scripts as scripts
from ._errors import QueueMismatchError, ServerError
from ._message import Entry
from ._wire import pack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ._keys import QueueKeys
    from ._link import Link
    from ._scripts import Script

Where: TypeAlias = Literal["lane", "later", "dead"]

# XRANGE's page: some 100 KB of small entries, so that a listing never holds the server for long.
_PAGE = 500

# Entries in one move: each is about 30 µs of the server's time.
_MOST_MOVED = 64
_MOST_MOVED_BYTES = 1024 * 1024

# Pending entries looked at in one call: about a third of a millisecond of the server's time.
_RECOVER_PAGE = 500

# Long enough for every live consumer to look (its slow pulse is seconds), short enough that
# nothing is left of a queue that is gone.
_TOMBSTONE_MS = 600_000


@dataclass(frozen=True, slots=True)
class Move:
    """One entry on its way off this consumer.

    Attributes:
        entry: What is held.
        where: `lane` (again at once), `later` (again in `delay` seconds), `dead`.
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
        more: Whether there is more to look at.
    """

    entry: Entry | None
    more: bool


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """A consumer group as Redis sees it.

    Attributes:
        name: Its name.
        consumers: Names registered in it.
        pending: Messages delivered and not settled.
        last_delivered_id: Up to where it has read.
        lag: Messages not delivered to it yet; None when the server cannot tell.
    """

    name: str
    consumers: int
    pending: int
    last_delivered_id: str
    lag: int | None


@dataclass(frozen=True, slots=True)
class Generation:
    """Which life of a queue and of a group: what is deleted on purpose is named by it."""

    queue: str
    group: str


class Stream:
    """One queue in Redis. Each method is one round trip unless it says pages."""

    def __init__(self, link: Link, keys: QueueKeys) -> None:
        """Talk over `link` about the queue with these keys."""
        self.link = link
        self.keys = keys

    # -- queue and groups ----------------------------------------------------------------------

    async def open_group(
        self,
        group: str | None,
        *,
        latest: bool = False,
        again: bool = False,
        rules: Mapping[str, str],
    ) -> Generation:
        """Make the stream and a group of it unless they are there.

        Args:
            group: None only agrees on the rules.
            latest: A new group sees only what is produced from now on.
            again: The group was there and is gone: begin where it was, not where new ones do.
            rules: What all users of the queue must agree on.

        Raises:
            QueueMismatchError: The queue is in use with another value.
            ServerError: Redis refuses (the key holds something else, no permission, …).
        """
        flat = [part for pair in rules.items() for part in pair]
        reply = await self._run(
            scripts.OPEN_GROUP,
            [self.keys.stream, self.keys.queue],
            [
                group or "",
                "$" if latest else "0",
                secrets.token_hex(8),
                int(again),
                *flat,
            ],
        )
        if reply[0] == b"mismatch":
            name, value = reply[1].decode(), reply[2].decode()
            msg = (
                f"queue {self.keys.name!r} is in use with {name}={value!r}, this process "
                f"asks for {rules[name]!r}: all its users must agree"
            )
            raise QueueMismatchError(msg)
        return Generation(reply[0].decode(), reply[1].decode())

    async def was_deleted(self, generation: Generation) -> bool:
        """Say whether the queue or the group was deleted on purpose."""
        marks = await self.link.call(
            "HMGET", self.keys.gone, generation.queue, generation.group
        )
        return any(mark is not None for mark in marks)

    async def groups(self) -> list[GroupInfo]:
        """List the groups; none when the stream does not exist."""
        try:
            reply = await self.link.call("XINFO", "GROUPS", self.keys.stream)
        except ServerError as error:
            if "no such key" in str(error):
                return []
            raise
        return [_group_info(_pairs(item)) for item in reply]

    async def destroy_group(self, group: str) -> bool:
        """Remove a group, its lane and its delayed retries.

        Returns:
            Whether it was there.
        """
        keys = self.keys
        reply = await self._run(
            scripts.DESTROY_GROUP,
            [keys.stream, keys.queue, keys.gone, *self._lane_keys(group)],
            [group, keys.bell, _TOMBSTONE_MS],
        )
        return bool(reply)

    async def delete(self) -> bool:
        """Remove the stream, its dead letters, and all that belongs to its groups.

        Returns:
            Whether anything was there.
        """
        lanes = [
            key for info in await self.groups() for key in self._lane_keys(info.name)
        ]
        keys = self.keys
        reply = await self._run(
            scripts.DELETE,
            [
                keys.queue,
                keys.gone,
                keys.stream,
                keys.dead,
                keys.delayed,
                keys.delayed_fields,
                *lanes,
            ],
            [keys.bell, _TOMBSTONE_MS],
        )
        return bool(reply)

    async def records(self, after: str | None, limit: int | None) -> list[Entry]:
        """List what is stored, oldest first, in pages.

        Args:
            after: Id to begin behind; None for the beginning.
            limit: Entries at most; None for all.
        """
        found: list[Entry] = []
        start = "-" if after is None else f"({after}"
        while limit is None or len(found) < limit:
            page = _PAGE if limit is None else min(_PAGE, limit - len(found))
            reply = await self.link.call(
                "XRANGE", self.keys.stream, start, "+", "COUNT", page
            )
            found += _entries(reply, in_lane=False)
            if len(reply) < page:
                break
            start = f"({reply[-1][0].decode()}"
        return found

    # -- reading -------------------------------------------------------------------------------

    def read_command(
        self, group: str, consumer: str, count: int, block_ms: int
    ) -> bytes:
        """Pack a blocking read of new entries, for a connection of its own."""
        return pack(
            b"XREADGROUP", b"GROUP", group, consumer, b"COUNT", count, b"BLOCK", block_ms,
            b"STREAMS", self.keys.stream, b">",
        )  # fmt: skip

    @staticmethod
    def read_entries(reply: Any) -> list[Entry]:
        """Take the entries out of a read's reply, RESP2 or RESP3; nothing came: none."""
        if not reply:
            return []
        rows = next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1]
        return [Entry(row[0], row[1], in_lane=False) for row in rows]

    async def take(self, group: str, consumer: str, room: int) -> Taken:
        """Take what has come back to the group and is due, as far as there is room.

        A lost reply leaves entries pending under this consumer: look at `own_pending` after an
        error.

        Args:
            group: The group.
            consumer: Name under which they become pending.
            room: Entries at most; at least 1.
        """
        keys = self.keys
        entries, wait_ms, more, now_ms = await self._run(
            scripts.TAKE,
            [
                *self._lane_keys(group),
                keys.stream,
                keys.delayed,
                keys.delayed_fields,
            ],
            [group, consumer, room],
        )
        return Taken(
            _entries(entries, in_lane=True),
            None if wait_ms < 0 else wait_ms / 1000,
            bool(more),
            int(now_ms) / 1000,
        )

    async def own_pending(
        self, group: str, consumer: str, *, in_lane: bool, held: Callable[[bytes], bool]
    ) -> list[Entry]:
        """Find what is pending under this consumer and not held by it: lost replies, in pages.

        Delivery counts stay as they are.

        Args:
            group: The group.
            consumer: The consumer.
            in_lane: Whether to look at the group's lane or at the stream.
            held: Says whether an id is known here already.
        """
        key = self.keys.lane(group) if in_lane else self.keys.stream
        found: list[Entry] = []
        start = "-"
        while True:
            try:
                rows, gone, last = await self._run(
                    scripts.OWN_PENDING, [key], [group, consumer, start, _PAGE]
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
        self, group: str, ids: Sequence[bytes], *, in_lane: bool, whole: bool = False
    ) -> bytes:
        """Pack the acknowledgement of handled entries; what the last group settles goes.

        Args:
            group: The group.
            ids: Entry ids.
            in_lane: Whether they were read from the group's lane.
            whole: Send the script itself: the server did not know it.
        """
        key = self.keys.lane(group) if in_lane else self.keys.stream
        make = scripts.SETTLE.whole if whole else scripts.SETTLE.by_digest
        return make([key], [group, *ids])

    async def move(
        self, group: str, consumer: str, moves: Sequence[Move]
    ) -> list[bool]:
        """Take entries off this consumer and store them elsewhere, each atomically.

        Returns:
            For each whether it was still held; what was not is left alone. After an error this
            may be sent again: what had moved is then not held any more.
        """
        answers: dict[int, bool] = {}
        for part in _parts(moves):
            in_lane = moves[part[0]].entry.in_lane
            lane, due, later = self._lane_keys(group)
            source = lane if in_lane else self.keys.stream
            arguments: list[bytes | str | int] = [group, consumer, self.keys.bell]
            for at in part:
                item = moves[at]
                arguments += (item.entry.id, item.where, int(item.delay * 1000))
                arguments += (len(item.fields), *item.fields)
            reply = await self._run(
                scripts.MOVE, [source, lane, due, later, self.keys.dead], arguments
            )
            answers.update(
                (at, bool(answer)) for at, answer in zip(part, reply, strict=True)
            )
        return [answers[at] for at in range(len(moves))]

    # -- leases and recovery -------------------------------------------------------------------

    async def renew(
        self, group: str, consumer: str, ids: Sequence[bytes], *, in_lane: bool
    ) -> list[bytes]:
        """Renew the leases of held entries, as if they had just been delivered.

        Args:
            group: The group.
            consumer: Who holds them.
            ids: Their ids, ascending; a few hundred at most.
            in_lane: Whether they came from the group's lane.

        Returns:
            Those that somebody else holds now, or nobody.
        """
        key = self.keys.lane(group) if in_lane else self.keys.stream
        lost: list[bytes] = await self._run(
            scripts.RENEW, [key], [group, consumer, *ids]
        )
        return lost

    async def recover(
        self,
        group: str,
        consumer: str,
        *,
        visibility_timeout: float,
        take: bool,
        running: Entry | None = None,
    ) -> Recovered:
        """Look at a bounded part of what is pending, and take one abandoned entry over.

        Entries that were deleted are cleaned out on the way. A lost reply leaves the entry under
        this consumer: it ages again and is found by the next.

        Args:
            group: The group.
            consumer: Name under which the entry becomes pending.
            visibility_timeout: Seconds without renewal after which an entry is abandoned; the
                longest that a live consumer of the group works with counts.
            take: False only looks, which also records where the group stands.
            running: A suspect that still runs: its mark is taken back when another is taken over,
                as nobody could tell which of the two a process has died of.
        """
        entry, crashes, from_lane, more = await self._run(
            scripts.RECOVER,
            [self.keys.stream, self.keys.lane(group), self.keys.queue],
            [
                group,
                consumer,
                int(visibility_timeout * 1000),
                _RECOVER_PAGE,
                int(take),
                b"" if running is None else running.id,
                0 if running is None else int(running.in_lane),
            ],
        )
        found = (
            Entry(entry[0], entry[1], in_lane=bool(from_lane), crashes=crashes)
            if entry
            else None
        )
        return Recovered(found, more=bool(more))

    async def retire_consumers(
        self, group: str, consumer: str, *, inactive: float
    ) -> int:
        """Remove the names of consumers that hold nothing and did nothing for long.

        Args:
            group: The group.
            consumer: Who asks; its own name stays.
            inactive: Seconds.

        Returns:
            How many names were removed.
        """
        keys = [self.keys.stream, self.keys.lane(group)]
        return int(
            await self._run(
                scripts.RETIRE, keys, [group, consumer, int(inactive * 1000)]
            )
        )

    async def forget_consumer(self, group: str, consumer: str) -> bool:
        """Remove a consumer's name if it holds nothing.

        Returns:
            Whether it is gone.
        """
        keys = [self.keys.stream, self.keys.lane(group)]
        return bool(await self._run(scripts.FORGET_CONSUMER, keys, [group, consumer]))

    # ------------------------------------------------------------------------------------------

    def _lane_keys(self, group: str) -> list[str]:
        return [self.keys.lane(group), self.keys.due(group), self.keys.later(group)]

    async def _run(
        self,
        script: Script,
        keys: Sequence[str],
        arguments: Sequence[bytes | str | int],
    ) -> Any:
        return await self.link.run(script, keys, arguments)


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


def _pairs(reply: Any) -> dict[bytes, Any]:
    """Read a map, which RESP2 sends flat."""
    if isinstance(reply, dict):
        return reply
    return dict(zip(reply[::2], reply[1::2], strict=True))


def _group_info(info: Mapping[bytes, Any]) -> GroupInfo:
    return GroupInfo(
        name=info[b"name"].decode("utf-8", "backslashreplace"),
        consumers=info[b"consumers"],
        pending=info[b"pending"],
        last_delivered_id=info[b"last-delivered-id"].decode(),
        lag=info.get(b"lag"),
    )
