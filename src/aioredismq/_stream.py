"""Every operation on a queue as a whole, named by what it means; a consumer's are `_member`'s."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from . import _scripts as scripts
from ._errors import (
    QueueDeletedError,
    QueueMismatchError,
    ServerError,
    WrongKeyTypeError,
)
from ._message import Entry

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from ._keys import QueueKeys
    from ._link import Link
    from ._scripts import Script

# XRANGE's page: some 100 KB of small entries, so that a listing never holds the server for long.
_PAGE = 500

# Long enough for every live consumer to look (its slow pulse is seconds), short enough that
# nothing is left of a queue that is gone.
_TOMBSTONE_MS = 600_000


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """A consumer group as Redis sees it.

    Attributes:
        name: Its name.
        consumers: Names registered in it.
        pending: Messages delivered and not settled.
        last_delivered_id: Up to where it has read.
        lag: Messages not delivered to it yet; None when the server cannot tell.
        waiting: Messages that have come back to it: handed back, or to be tried again.
    """

    name: str
    consumers: int
    pending: int
    last_delivered_id: str
    lag: int | None
    waiting: int


@dataclass(frozen=True, slots=True)
class Generation:
    """Which life of a queue and of a group: what is deleted on purpose is named by it.

    What is lost and made again goes on with the life it had.

    Attributes:
        queue: Of the queue.
        group: Of the group; empty for none.
        made: Whether the group was made by this call.
        server_time: When it was asked for by the server's clock, in seconds since the epoch; 0 when
            the server has not told.
    """

    queue: str
    group: str
    made: bool = field(default=False, compare=False)
    server_time: float = field(default=0.0, compare=False)


class Stream:
    """One queue in Redis. Each method is one round trip unless it says pages."""

    def __init__(self, link: Link, keys: QueueKeys) -> None:
        """Talk over `link` about the queue with these keys."""
        self.link = link
        self.keys = keys

    async def failover_copies(self) -> int:
        """Count the copies of failures the JavaScript library has made: `failover_<name>`."""
        return int(await self.link.call("XLEN", f"failover_{self.keys.name}"))

    # -- queue and groups ----------------------------------------------------------------------

    async def open_group(
        self,
        group: str | None,
        *,
        latest: bool = False,
        how: Literal["new", "again", "first"] = "new",
        known: Generation | None = None,
        consumer: str = "",
        held: Sequence[bytes] = (),
        beside: Collection[str] = (),
        rules: Mapping[str, str],
    ) -> Generation:
        """Make the stream and a group of it unless they are there.

        Args:
            group: None only agrees on the rules.
            latest: A new group sees only what is produced from now on.
            how: `again`: the group was there and is gone, so begin where it was, not where new
                ones do: what it has settled does not come again, and what it had pending is
                pending. `first`: make it only where there is no group at all.
            known: The life the caller has known it in, which goes on.
            consumer: Whose is of the pending entries what it holds.
            held: Ids of entries it holds, delivered from the stream.
            beside: With `again`, other groups that are to be there: where all are gone, they are
                made in the same step, so that each gets what is produced from then on.
            rules: What all users of the queue must agree on.

        Raises:
            QueueMismatchError: The queue is in use with another value.
            QueueDeletedError: The life that was known was ended on purpose.
            ServerError: Redis refuses (the key holds something else, no permission, …).
        """
        flat = [part for pair in rules.items() for part in pair]
        others = [part for name in beside for part in (name, secrets.token_hex(8))]
        keys, name = self.keys, group or ""
        life = known or Generation(secrets.token_hex(8), secrets.token_hex(8))
        reply = await self._run_on_stream(
            scripts.OPEN_GROUP,
            [
                *(keys.stream, keys.queue, keys.gone, keys.settled(name)),
                *map(keys.settled, beside),
            ],
            [
                name,
                "$" if latest else "0",
                life.queue,
                life.group,
                how,
                keys.bell,
                consumer,
                b" ".join(held),
                *others,
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
        if reply[0] == b"deleted":
            raise self._deleted(name)
        of_queue, of_group, made, now = reply
        return Generation(of_queue.decode(), of_group.decode(), bool(made), now / 1000)

    async def generation(self, known: Generation, group: str) -> Generation:
        """Say which life the queue and a group are in now; the known one where there is none.

        Raises:
            QueueDeletedError: One that was known was ended on purpose.
        """
        ended, of_queue, of_group = await self._run(
            scripts.GENERATIONS,
            [self.keys.queue, self.keys.gone],
            [known.queue, known.group, group],
        )
        if ended:
            raise self._deleted(group)
        return Generation(
            of_queue.decode() or known.queue, of_group.decode() or known.group
        )

    def _deleted(self, group: str) -> QueueDeletedError:
        msg = (
            f"queue {self.keys.name!r} or its group {group!r} was deleted while it was "
            "consumed"
        )
        return QueueDeletedError(msg)

    async def groups(self) -> list[GroupInfo]:
        """List the groups; none when the stream does not exist. Three round trips a group."""
        return [await self._group_info(info) for info in await self._infos()]

    async def last_dead(self) -> str | None:
        """Give the id of the last letter that was put aside; None when there was none yet."""
        about = await self._info("STREAM", self.keys.dead)
        return _pairs(about)[b"last-generated-id"].decode() if about else None

    async def _infos(self) -> list[dict[bytes, Any]]:
        reply = await self._info("GROUPS", self.keys.stream)
        return [_pairs(item) for item in reply]

    async def _info(self, what: str, key: str) -> Any:
        """Ask about a stream; nothing when it does not exist."""
        try:
            return await self.link.call("XINFO", what, key)
        except ServerError as error:
            if "no such key" in str(error):
                return []
            raise

    async def _group_info(self, info: Mapping[bytes, Any]) -> GroupInfo:
        name = _text(info[b"name"])
        lane, due, _ = self.keys.of_lane(name)
        in_lane = await self.link.call("XLEN", lane)
        delayed = await self.link.call("ZCARD", due)
        return GroupInfo(
            name=name,
            consumers=info[b"consumers"],
            pending=info[b"pending"],
            last_delivered_id=info[b"last-delivered-id"].decode(),
            lag=info.get(b"lag"),
            waiting=in_lane + delayed,
        )

    async def destroy_group(self, group: str) -> bool:
        """Remove a group, its lane, its delayed retries, and what only it has held back; in pages.

        Returns:
            Whether it was there.
        """
        keys = self.keys
        reply = await self._run(
            scripts.DESTROY_GROUP,
            [
                keys.stream,
                keys.queue,
                keys.gone,
                *keys.of_lane(group),
                keys.settled(group),
            ],
            [group, keys.bell, _TOMBSTONE_MS],
        )
        await self.sweep()
        return bool(reply)

    async def sweep(self) -> int:
        """Take off what every group has settled, in pages; returns how many entries.

        Settling does that by itself; what is left is what a group that is gone has held back.
        Dead letters stay: what is settled of them and still there has failed again.
        """
        start, removed = "-", 0
        while start:
            start, count = await self.sweep_page(start)
            removed += count
        return removed

    async def sweep_page(self, start: str, *, every: float = 0.0) -> tuple[str, int]:
        """Take off what every group has settled of one page.

        Args:
            start: Where to begin; `-` for the beginning.
            every: Begin no sweep within so many seconds of another, whoever made it.

        Returns:
            Where to go on, or an empty string at the end; and how many entries went.
        """
        if self.keys.stream == self.keys.dead:
            return "", 0
        following, removed = await self._run(
            scripts.SWEEP,
            [self.keys.stream, self.keys.queue],
            [start, _PAGE, int(every * 1000)],
        )
        return following.decode(), removed

    async def delete(self) -> bool:
        """Remove the stream, its dead letters, and all that belongs to its groups.

        Returns:
            Whether anything was there.
        """
        keys, of_dead = self.keys, self.keys.for_dead_letters()
        lanes = [
            key
            for stream in (self, Stream(self.link, of_dead))
            for name in await stream.known_groups()
            for key in (*stream.keys.of_lane(name), stream.keys.settled(name))
        ]
        reply = await self._run(
            scripts.DELETE,
            [
                keys.queue,
                keys.gone,
                keys.stream,
                keys.dead,
                keys.delayed,
                keys.delayed_fields,
                of_dead.queue,
                *lanes,
            ],
            [keys.bell, _TOMBSTONE_MS],
        )
        return bool(reply)

    async def known_groups(self) -> set[str]:
        """Name the groups, those included whose stream was deleted by hand."""
        rules = _pairs(await self.link.call("HGETALL", self.keys.queue))
        prefix = b"group:"
        noted = {
            _text(name.removeprefix(prefix))
            for name in rules
            if name.startswith(prefix)
        }
        return noted | {_text(info[b"name"]) for info in await self._infos()}

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
            found += [Entry(row[0], row[1], in_lane=False) for row in reply]
            if len(reply) < page:
                break
            start = f"({reply[-1][0].decode()}"
        return found

    async def _run_on_stream(
        self,
        script: Script,
        keys: Sequence[str],
        arguments: Sequence[bytes | str | int],
    ) -> Any:
        """Run a script that finds out whether the queue's key is its own."""
        try:
            return await self._run(script, keys, arguments)
        except WrongKeyTypeError as error:
            msg = (
                f"the key {self.keys.stream!r} holds something that is no queue: choose "
                f"another name, or another database ({error})"
            )
            raise WrongKeyTypeError(msg) from error

    async def _run(
        self,
        script: Script,
        keys: Sequence[str],
        arguments: Sequence[bytes | str | int],
    ) -> Any:
        return await self.link.run(script, keys, arguments)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _pairs(reply: Any) -> dict[bytes, Any]:
    """Read a map, which RESP2 sends flat."""
    if isinstance(reply, dict):
        return reply
    return dict(zip(reply[::2], reply[1::2], strict=True))
