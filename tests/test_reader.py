from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from anyio import create_task_group, fail_after
from redis.asyncio import Redis

from aioredismq import (
    Connection,
    ConnectionLostError,
    PermissionDeniedError,
    ServerFullError,
    WrongKeyTypeError,
)
from aioredismq import _reader as room_of_reader
from aioredismq._held import Held
from aioredismq._keys import QueueKeys
from aioredismq._reader import LONGEST_BLOCK, Reader
from aioredismq._stream import Stream
from aioredismq.testing import FaultyLine
from tests.looking import SlowToHear, left
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from aioredismq._message import Entry
    from aioredismq.testing import RedisServer

GROUP = "billing"


class Reading:
    """A reader, the room there is, and what it brought."""

    def __init__(self, connection: Connection, stream: Stream) -> None:
        """There is room for a hundred."""
        self.stream = stream
        self.room = 100
        self.brought: list[Entry] = []
        self.portions: list[int] = []
        self.mended = 0
        self.refusals: list[Exception] = []
        self._more_room = asyncio.Event()
        self.held = Held()
        self.member = SlowToHear(stream, GROUP, self.held)
        self.reader = Reader(
            self.member,
            open_wire=lambda: connection.reserve(
                stream.keys.stream, longest_block=LONGEST_BLOCK
            ),
            room=lambda: self.room,
            wait_for_room=self._wait_for_room,
            deliver=self._deliver,
            held=self.held,
            mend=self._mend,
        )

    def make_room(self, room: int) -> None:
        """Let so many more in."""
        self.room = room
        self._more_room.set()

    async def _wait_for_room(self) -> None:
        while self.room < 1:
            self._more_room.clear()
            await self._more_room.wait()

    def _deliver(self, entries: Sequence[Entry]) -> None:
        self.held.add(entries)
        self.brought += entries
        self.portions.append(len(entries))
        self.room -= len(entries)

    async def _mend(self) -> None:
        self.mended += 1
        if self.refusals:
            raise self.refusals.pop(0)
        await self.stream.open_group(GROUP, rules={})

    @property
    def bodies(self) -> list[bytes]:
        """What came."""
        return [entry.fields[1] for entry in self.brought]

    async def blocked(self) -> None:
        """Wait until it waits for something new."""
        await eventually(lambda: self.reader.asked > 0)


@asynccontextmanager
async def reading(url: str, name: str, *, room: int = 100) -> AsyncIterator[Reading]:
    """Run a reader on a fresh queue, and stop it in order."""
    connection = Connection(url)
    async with connection:
        stream = Stream(await connection.link(name), QueueKeys(name))
        await stream.open_group(GROUP, rules={})
        work = Reading(connection, stream)
        work.room = room
        async with create_task_group() as tasks:
            tasks.start_soon(work.reader.run)
            yield work
            work.reader.request_stop()
            work.make_room(1)
            with fail_after(8):
                await work.reader.stop()


async def add(client: Redis, name: str, *bodies: bytes) -> None:
    """Store messages."""
    for body in bodies:
        await client.xadd(name, {b"body": body})


async def test_what_is_there_is_read_in_order(
    url: str, name: str, client: Redis
) -> None:
    """And is pending under the consumer from then on."""
    await add(client, name, b"1", b"2", b"3")

    async with reading(url, name) as work:
        await eventually(lambda: work.bodies == [b"1", b"2", b"3"])

        assert (await left(client, name, GROUP)).pending == 3


async def test_a_blocked_read_brings_what_comes_at_once(
    url: str, name: str, client: Redis
) -> None:
    """Nobody polls."""
    async with reading(url, name) as work:
        await work.blocked()

        await add(client, name, b"1")

        await eventually(lambda: work.bodies == [b"1"], limit=LONGEST_BLOCK - 1)


async def test_a_read_brings_no_more_than_there_is_room_for(
    url: str, name: str, client: Redis
) -> None:
    """The rest stays for other consumers, and comes when there is room again."""
    await add(client, name, *[b"%d" % number for number in range(10)])

    async with reading(url, name, room=4) as work:
        await eventually(lambda: len(work.brought) == 4)
        assert (await left(client, name, GROUP)).pending == 4
        work.make_room(2)
        await eventually(lambda: len(work.brought) == 6)

    assert work.portions[:2] == [4, 2]


async def test_without_room_nothing_is_asked_for(
    url: str, name: str, client: Redis
) -> None:
    """A read that is not there can bring nothing that somebody else could handle."""
    async with reading(url, name) as work:
        await work.blocked()
        work.room = 0
        await add(client, name, b"1")  # answers the read that is under way
        await eventually(lambda: len(work.brought) == 1)

        await add(client, name, b"2")

        assert work.reader.asked == 0
        assert (await left(client, name, GROUP)).pending == 1
        work.make_room(1)
        await eventually(lambda: len(work.brought) == 2)


async def test_stopping_wakes_the_blocked_read(url: str, name: str) -> None:
    """By CLIENT UNBLOCK, in a round trip: a cancelled read would strand what it brings."""
    async with reading(url, name) as work:
        await work.blocked()

        with fail_after(LONGEST_BLOCK - 1):
            await work.reader.stop()


async def test_what_comes_at_the_moment_of_stopping_is_delivered(
    url: str, name: str, client: Redis
) -> None:
    """Whatever Redis hands out is seen: nothing is pending and unknown."""
    for _ in range(20):
        async with reading(url, name) as work:
            await work.blocked()
            async with create_task_group() as tasks:
                tasks.start_soon(add, client, name, b"1")
                tasks.start_soon(work.reader.stop)

        here = await client.xpending_range(name, GROUP, "-", "+", 100, "one")
        known = {entry.id for entry in work.brought}
        assert {item["message_id"] for item in here} == known
        await client.xack(name, GROUP, *known or [b"0-1"])


async def test_stopping_before_it_has_begun_is_nothing_to_wait_for(
    url: str, name: str
) -> None:
    """A consumer may be stopped while it starts."""
    connection = Connection(url)
    async with connection:
        stream = Stream(await connection.link(name), QueueKeys(name))
        work = Reading(connection, stream)

        with fail_after(8):
            await work.reader.stop()
            await work.reader.run()

    assert not work.brought


async def test_it_asks_again_when_its_room_was_taken_otherwise(
    url: str, name: str, client: Redis
) -> None:
    """Room a blocked read has asked for may meanwhile be filled from the lane."""
    async with reading(url, name) as work:
        await work.blocked()
        assert work.reader.asked == 100
        work.room = 2

        await work.reader.reconsider()
        await eventually(lambda: work.reader.asked == 2)
        await add(client, name, b"1", b"2", b"3")
        await eventually(lambda: len(work.brought) == 2)

        assert (await left(client, name, GROUP)).pending == 2


async def test_it_does_not_ask_again_for_nothing(url: str, name: str) -> None:
    """While there is room for what it asked, it goes on waiting."""
    async with reading(url, name) as work:
        await work.blocked()
        wire = work.reader._wire

        await work.reader.reconsider()

        assert work.reader.asked == 100
        assert work.reader._wire is wire


# When something breaks.


async def test_a_cut_line_is_made_again(url: str, name: str, client: Redis) -> None:
    """And what comes meanwhile is read afterwards."""
    async with FaultyLine(url) as line, reading(line.url, name) as work:
        await work.blocked()

        line.cut()
        await add(client, name, b"1")
        await eventually(lambda: work.reader.asked == 0)
        line.heal()

        await eventually(lambda: work.bodies == [b"1"])


async def test_entries_of_a_read_whose_reply_was_lost_are_found(
    url: str, name: str, client: Redis
) -> None:
    """They are pending under this name, and new reads would never bring them."""
    async with FaultyLine(url) as line, reading(line.url, name) as work:
        await work.blocked()
        line.reset_after_request(b"XREADGROUP")
        work.room = 1
        await add(client, name, b"1")  # the next read asks for room that is there again
        await eventually(lambda: work.bodies == [b"1"])
        await add(client, name, b"2")

        work.make_room(100)

        await eventually(lambda: work.bodies == [b"1", b"2"])
        assert not line.is_armed
        assert (await left(client, name, GROUP)).pending == 2


async def test_what_is_settled_while_it_looks_at_its_own_is_not_brought_again(
    url: str, name: str, client: Redis
) -> None:
    """The server had looked before; the answer is read when the message is handled already."""
    async with FaultyLine(url) as line, reading(line.url, name) as work:
        await add(client, name, b"1", b"2")
        await eventually(lambda: len(work.brought) == 2)
        work.member.settles = True

        line.drop()
        await eventually(lambda: work.member.settled == 2)
        await add(client, name, b"3")

        await eventually(lambda: b"3" in work.bodies)
        assert work.bodies == [b"1", b"2", b"3"]


async def test_what_is_held_is_not_read_again_after_a_cut(
    url: str, name: str, client: Redis
) -> None:
    """Running handlers run on; their messages come only once."""
    async with FaultyLine(url) as line, reading(line.url, name) as work:
        await add(client, name, b"1", b"2")
        await eventually(lambda: len(work.brought) == 2)

        line.drop()
        await add(client, name, b"3")

        await eventually(lambda: len(work.brought) == 3)
        assert work.bodies == [b"1", b"2", b"3"]


@pytest.mark.parametrize("how", ["group", "stream", "flush"])
async def test_a_group_that_is_gone_is_mended(
    url: str, name: str, client: Redis, how: str
) -> None:
    """And then read from again."""
    async with reading(url, name) as work:
        await add(client, name, b"1")
        await eventually(lambda: work.bodies == [b"1"])

        if how == "group":
            await client.xgroup_destroy(name, GROUP)
        elif how == "stream":
            await client.delete(name)
        else:
            await client.flushall()
        await eventually(lambda: work.mended > 0, limit=LONGEST_BLOCK + 10)
        await add(client, name, b"2")

        await eventually(lambda: b"2" in work.bodies)


async def test_a_group_that_cannot_be_mended_yet_is_mended_later(
    url: str, name: str, client: Redis
) -> None:
    """The server may be full, or away, at that very moment: both pass by themselves."""
    async with reading(url, name) as work:
        await work.blocked()
        work.refusals = [ServerFullError("OOM"), ConnectionLostError("away")]

        await client.xgroup_destroy(name, GROUP)
        await eventually(lambda: work.mended == 3, limit=LONGEST_BLOCK + 10)
        await add(client, name, b"1")

        await eventually(lambda: work.bodies == [b"1"])


async def test_a_server_short_of_replicas_is_waited_for(
    own_server: RedisServer, name: str
) -> None:
    """It refuses even reads, as they are writes; that passes by itself."""
    async with (
        Redis.from_url(own_server.url, protocol=2) as client,
        reading(own_server.url, name) as work,
    ):
        await work.blocked()
        await client.config_set("min-replicas-to-write", 1)
        await client.client_unblock(work.reader._wire_id)
        await eventually(lambda: work.reader.asked == 0)
        await client.config_set("min-replicas-to-write", 0)

        await add(client, name, b"1")

        await eventually(lambda: work.bodies == [b"1"])


async def test_a_full_server_still_hands_out_what_it_has(
    own_server: RedisServer, name: str
) -> None:
    """Reading frees memory in the end."""
    async with Redis.from_url(own_server.url, protocol=2) as client:
        await add(client, name, b"1")
        async with reading(own_server.url, name) as work:
            await eventually(lambda: work.bodies == [b"1"])
            await add(client, name, b"2")
            await client.config_set("maxmemory", 1)
            await eventually(lambda: work.bodies == [b"1", b"2"])
            await client.config_set("maxmemory", 0)


async def test_what_does_not_pass_by_itself_is_raised(
    url: str, name: str, client: Redis
) -> None:
    """Somebody put something else in the stream's place."""
    connection = Connection(url)
    async with connection:
        stream = Stream(await connection.link(name), QueueKeys(name))
        work = Reading(connection, stream)
        await client.set(name, "something else")

        with fail_after(8), pytest.raises(WrongKeyTypeError):
            await work.reader.run()


@pytest.fixture
async def restricted(own_server: RedisServer) -> AsyncIterator[tuple[Redis, str]]:
    """A server, looked at from outside, and the URL of a user without CLIENT commands."""
    async with Redis.from_url(own_server.url, protocol=2) as client:
        await client.execute_command(
            "ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all", "-client"
        )
        yield client, own_server.url.replace("redis://", "redis://app:secret@")


async def test_where_client_commands_are_denied_it_blocks_shortly(
    restricted: tuple[Redis, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopping then waits for the end of the block, and loses nothing."""
    monkeypatch.setattr(room_of_reader, "_SHORT_BLOCK", 0.2)
    client, url = restricted
    async with reading(url, name) as work:
        await work.blocked()
        await add(client, name, b"1")
        await eventually(lambda: work.bodies == [b"1"])
        await work.blocked()

        with fail_after(LONGEST_BLOCK - 1):
            await work.reader.stop()


async def test_a_permission_taken_away_ends_it(
    restricted: tuple[Redis, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trying again would not help."""
    monkeypatch.setattr(room_of_reader, "_SHORT_BLOCK", 0.2)
    client, url = restricted
    connection = Connection(url)
    async with connection:
        stream = Stream(await connection.link(name), QueueKeys(name))
        await stream.open_group(GROUP, rules={})
        work = Reading(connection, stream)
        await client.execute_command("ACL", "SETUSER", "app", "-xreadgroup")

        with fail_after(8), pytest.raises(PermissionDeniedError):
            await work.reader.run()


@pytest.mark.parametrize("arrives", [False, True])
async def test_a_read_is_not_cut_off_by_others(
    url: str, name: str, client: Redis, arrives: bool
) -> None:
    """What it brings would be pending and unseen; the cancellation ends the reader after it."""
    connection = Connection(url)
    async with connection:
        stream = Stream(await connection.link(name), QueueKeys(name))
        await stream.open_group(GROUP, rules={})
        work = Reading(connection, stream)
        running = asyncio.ensure_future(work.reader.run())
        await work.blocked()

        running.cancel()
        await asyncio.sleep(0)
        running.cancel()
        await asyncio.sleep(0)
        assert not running.done()
        if arrives:
            await add(client, name, b"1")
            await eventually(running.done)
        with fail_after(3):
            await work.reader.stop()

        with pytest.raises(asyncio.CancelledError):
            await running
        assert work.bodies == ([b"1"] if arrives else [])
