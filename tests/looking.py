"""How tests of consumers look at what was handled, and at what is left in Redis."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
from redis.exceptions import ResponseError

from aioredismq import Connection, ExponentialBackoff, Message
from aioredismq._history import handed_back
from aioredismq._keys import QueueKeys
from aioredismq._member import Member, Move
from aioredismq._message import Entry
from aioredismq._stream import Stream
from tests.support import eventually

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable, Sequence

    from aioredismq._held import Held
    from aioredismq._member import Where
    from tests.support import Client


AT_ONCE = ExponentialBackoff(initial=0)
"""Tries again without waiting, so that a test does not wait either."""


class Handled:
    """A handler that remembers: what it was given, how many ran at once, and for how long to wait.

    It is registered as it is; its parameter has no annotation, so it gets decoded bodies.
    """

    def __init__(self, takes: float = 0.0, error: Exception | None = None) -> None:
        """Each call takes so many seconds, and then raises the error, if one is given."""
        self.bodies: list[Any] = []
        self.running = 0
        self.most_at_once = 0
        self.gate: asyncio.Event | None = None
        """When set, each call waits for it."""
        self._takes = takes
        self._error = error

    async def __call__(self, body: Any) -> None:
        """Handle one message."""
        self.bodies.append(body)
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        try:
            if self._takes:
                await anyio.sleep(self._takes)
            if self.gate is not None:
                await self.gate.wait()
            if self._error is not None:
                raise copy(
                    self._error
                )  # one raised again would keep all its tracebacks
        finally:
            self.running -= 1

    async def until(self, count: int, limit: float = 30.0) -> None:
        """Wait until it was called so many times."""
        await eventually(lambda: len(self.bodies) >= count, limit)


class Messages:
    """A handler that gets the whole message, and remembers it."""

    def __init__(self, error: Exception | None = None) -> None:
        """Each call raises the error, if one is given."""
        self.seen: list[Message] = []
        self._error = error

    async def __call__(self, message: Message) -> None:
        """Handle one message."""
        self.seen.append(message)
        if self._error is not None:
            raise copy(self._error)

    async def until(self, count: int, limit: float = 30.0) -> None:
        """Wait until it was called so many times."""
        await eventually(lambda: len(self.seen) >= count, limit)


@dataclass(frozen=True, slots=True)
class Left:
    """What of one group of a queue is left in Redis; equal to `NOTHING` when all is settled."""

    stream: int = 0
    pending: int = 0
    names: Sequence[bytes] = field(default=())
    """Consumers, of the stream and of the group's lane."""
    undelivered_lane: int = 0
    pending_lane: int = 0
    delayed: int = 0


NOTHING = Left()


async def left(client: Client, queue: str, group: str | None = None) -> Left:
    """Look at what is left of a group; None is the default group."""
    keys = QueueKeys(queue)
    group = group or f"{queue}_group"
    lane = keys.lane(group)
    pending_lane = await _pending(client, lane, group)
    return Left(
        stream=await client.xlen(keys.stream),
        pending=await _pending(client, keys.stream, group),
        names=(
            *await _names(client, keys.stream, group),
            *await _names(client, lane, group),
        ),
        undelivered_lane=await client.xlen(lane) - pending_lane,
        pending_lane=pending_lane,
        delayed=await client.zcard(keys.due(group)),
    )


async def _pending(client: Client, key: str, group: str) -> int:
    with suppress(ResponseError):
        about = await client.xpending(key, group)
        return int(about["pending"])
    return 0


async def _names(client: Client, key: str, group: str) -> list[bytes]:
    with suppress(ResponseError):
        return [item["name"] for item in await client.xinfo_consumers(key, group)]
    return []


async def dead_letters(client: Client, queue: str) -> list[dict[bytes, bytes]]:
    """List the fields of the dead letters, oldest first."""
    return [fields for _, fields in await client.xrange(QueueKeys(queue).dead)]


class SlowToHear(Member):
    """A member that hears what is pending only after its consumer has settled all of that."""

    def __init__(self, stream: Stream, group: str, held: Held) -> None:
        """As any member, until `settles` is set."""
        super().__init__(stream, group, "one")
        self._held = held
        self.settles = False
        self.settled = 0

    async def own_pending(
        self, *, in_lane: bool, held: Callable[[bytes], bool]
    ) -> list[Entry]:
        """Look, and read the answer later."""
        found = await super().own_pending(in_lane=in_lane, held=lambda _: False)
        if self.settles:
            ids = [entry.id for entry in found]
            self.settled += sum(self._held.has(one, in_lane=in_lane) for one in ids)
            self._held.drop(ids, in_lane=in_lane)
        return [entry for entry in found if not held(entry.id)]


@asynccontextmanager
async def opened_stream(url: str, name: str, group: str) -> AsyncIterator[Stream]:
    """Open a queue as its consumers see it, with one group; remove it afterwards."""
    connection = Connection(url)
    async with connection:
        stream = Stream(await connection.link(name), QueueKeys(name))
        await stream.open_group(group, rules={})
        yield stream
        await stream.delete()


async def deliver(
    stream: Stream, client: Client, group: str, consumer: str, *bodies: bytes
) -> list[Entry]:
    """Store messages, and read them as this consumer."""
    for body in bodies:
        await client.xadd(stream.keys.stream, {b"body": body})
    [[_, rows]] = await client.xreadgroup(
        group, consumer, {stream.keys.stream: ">"}, count=len(bodies)
    )
    return _entries(rows)


async def hand_back(
    stream: Stream,
    client: Client,
    group: str,
    count: int,
    *,
    delay: float | None = None,
) -> None:
    """Put messages where what comes back to the group is, untried, by another consumer.

    Their bodies are what the stream holds undelivered; there must be so many.
    """
    [[_, rows]] = await client.xreadgroup(
        group, "another", {stream.keys.stream: ">"}, count=count
    )
    where: Where = "lane" if delay is None else "later"
    another = Member(stream, group, "another")
    moves = [
        Move(entry, where, handed_back(entry), delay or 0.0) for entry in _entries(rows)
    ]
    assert await another.move(moves) == [True] * count
    assert await another.forget()


def _entries(rows: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> list[Entry]:
    return [
        Entry(
            entry_id, [part for pair in fields.items() for part in pair], in_lane=False
        )
        for entry_id, fields in rows
    ]
