from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from anyio import create_task_group, fail_after
from redis.asyncio import Redis

from aioredismq import WrongKeyTypeError
from aioredismq import _promoter as room_of_promoter
from aioredismq import _scripts as scripts
from aioredismq._held import Held
from aioredismq._promoter import Promoter
from aioredismq.testing import FaultyLine
from tests.looking import SlowToHear, hand_back, left, opened_stream
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from aioredismq._message import Entry
    from aioredismq._stream import Stream
    from aioredismq.testing import RedisServer

GROUP = "billing"


class Promoting:
    """A promoter, the room there is, and what it brought."""

    def __init__(self, stream: Stream, client: Redis) -> None:
        """There is room for a hundred."""
        self.stream = stream
        self.client = client
        self.room = 100
        self.brought: list[Entry] = []
        self.times: list[float] = []
        self._more_room = asyncio.Event()
        self.held = Held()
        self.member = SlowToHear(stream, GROUP, self.held)
        self.promoter = Promoter(
            self.member,
            room=lambda: self.room,
            wait_for_room=self._wait_for_room,
            deliver=self._deliver,
            held=self.held,
            set_clock=self.times.append,
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
        self.room -= len(entries)

    async def hand_back(self, count: int, *, delay: float | None = None) -> None:
        """Put messages where what comes back to the group is, by way of another consumer."""
        for _ in range(count):
            await self.client.xadd(self.stream.keys.stream, {"body": b"x"})
        await hand_back(self.stream, self.client, GROUP, count, delay=delay)


@asynccontextmanager
async def promoting(url: str, name: str, client: Redis) -> AsyncIterator[Promoting]:
    """Set up a promoter on a fresh queue; it does not run yet."""
    async with opened_stream(url, name, GROUP) as stream:
        yield Promoting(stream, client)


@asynccontextmanager
async def running(work: Promoting) -> AsyncIterator[None]:
    """Run it in the block, and stop it in order."""
    async with create_task_group() as tasks:
        tasks.start_soon(work.promoter.run)
        yield
        work.promoter.stop()
        with fail_after(8):
            await work.promoter.served()


@pytest.fixture
def without_pulse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be found by the slow pulse."""
    monkeypatch.setattr(room_of_promoter, "_PULSE", (60.0, 60.0))


async def test_it_looks_at_once_when_it_starts(
    url: str, name: str, client: Redis
) -> None:
    """What came back while nobody consumed is waiting already."""
    async with promoting(url, name, client) as work:
        await work.hand_back(3)

        async with running(work):
            await eventually(lambda: len(work.brought) == 3)

        assert all(entry.in_lane for entry in work.brought)
        assert (await left(client, name, GROUP)).pending_lane == 3


@pytest.mark.usefixtures("without_pulse")
async def test_it_looks_when_the_bell_rings(url: str, name: str, client: Redis) -> None:
    """And not before."""
    async with promoting(url, name, client) as work, running(work):
        with fail_after(8):
            await work.promoter.served()
        await work.hand_back(1)
        assert not work.brought

        work.promoter.ring()

        await eventually(lambda: len(work.brought) == 1)


@pytest.mark.usefixtures("without_pulse")
async def test_it_looks_when_the_next_one_is_due(
    url: str, name: str, client: Redis
) -> None:
    """A timer, not a poll; the due time is the server's."""
    async with promoting(url, name, client) as work:
        begun = asyncio.get_running_loop().time()
        await work.hand_back(1, delay=0.15)

        async with running(work):
            await eventually(lambda: len(work.brought) == 1)

        assert asyncio.get_running_loop().time() - begun >= 0.14
        assert (await left(client, name, GROUP)).delayed == 0


async def test_it_looks_from_time_to_time_anyway(
    url: str, name: str, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bell may be lost: the slow pulse is the net."""
    monkeypatch.setattr(room_of_promoter, "_PULSE", (0.05, 0.1))
    async with promoting(url, name, client) as work, running(work):
        with fail_after(8):
            await work.promoter.served()

        await work.hand_back(1)

        await eventually(lambda: len(work.brought) == 1)


async def test_it_takes_no_more_than_there_is_room_for(
    url: str, name: str, client: Redis
) -> None:
    """The rest stays for other consumers, and comes when there is room again."""
    async with promoting(url, name, client) as work:
        await work.hand_back(10)
        work.room = 4

        async with running(work):
            await eventually(lambda: len(work.brought) == 4)
            assert (await left(client, name, GROUP)).undelivered_lane == 6
            work.make_room(3)
            await eventually(lambda: len(work.brought) == 7)
            work.make_room(100)
            await eventually(lambda: len(work.brought) == 10)


async def test_the_lane_goes_before_the_stream(
    url: str, name: str, client: Redis
) -> None:
    """Who wants to read the stream waits until the lane has had its room."""
    async with promoting(url, name, client) as work:
        await work.hand_back(10)
        work.room = 4

        async with running(work):
            await eventually(lambda: len(work.brought) == 4)
            waiting = asyncio.ensure_future(work.promoter.served())
            await asyncio.sleep(0)
            assert not waiting.done()
            work.make_room(100)
            with fail_after(8):
                await waiting

        assert len(work.brought) == 10


async def test_what_a_lost_reply_left_pending_is_found(
    url: str, name: str, client: Redis
) -> None:
    """After the line was cut it looks at its own; what it holds already comes only once."""
    async with promoting(url, name, client) as work:
        await work.hand_back(2)
        async with running(work):
            await eventually(lambda: len(work.brought) == 2)
            with fail_after(8):
                await work.promoter.served()
            await work.hand_back(3)
            taken = await work.member.take(10)  # a reply nobody heard
            assert len(taken.entries) == 3

            await client.client_kill_filter(_type="normal", skipme=True)

            await eventually(lambda: len(work.brought) == 5)

        assert len({entry.id for entry in work.brought}) == 5


async def test_what_is_settled_while_it_looks_at_its_own_is_not_brought_again(
    url: str, name: str, client: Redis
) -> None:
    """The server had looked before; the answer is read when the message is handled already."""
    async with promoting(url, name, client) as work:
        await work.hand_back(3)
        async with running(work):
            await eventually(lambda: len(work.brought) == 3)
            work.member.settles = True

            await client.client_kill_filter(_type="normal", skipme=True)
            await eventually(lambda: work.member.settled == 3)
            await work.hand_back(1)
            await eventually(lambda: len(work.brought) >= 4)

        assert len({entry.id for entry in work.brought}) == len(work.brought) == 4


@pytest.mark.usefixtures("without_pulse")
async def test_entries_of_a_look_whose_reply_was_lost_are_found_at_once(
    url: str, name: str, client: Redis
) -> None:
    """The look itself is repeated, and finds the lane empty: they are its own already."""
    async with (
        FaultyLine(url) as line,
        promoting(line.url, name, client) as work,
        running(work),
    ):
        with fail_after(8):
            await work.promoter.served()
        await work.hand_back(3)

        line.reset_after_request(scripts.TAKE.digest)
        work.promoter.ring()

        await eventually(lambda: len(work.brought) == 3)
        assert not line.is_armed


async def test_a_server_that_refuses_for_a_while_is_asked_again(
    own_server: RedisServer, name: str
) -> None:
    """Short of replicas: the look is a write, and that passes by itself."""
    async with (
        Redis.from_url(own_server.url, protocol=2) as client,
        promoting(own_server.url, name, client) as work,
    ):
        await work.hand_back(1)
        await client.config_set("min-replicas-to-write", 1)
        async with running(work):
            await eventually(lambda: work.promoter._look_back)
            assert not work.brought

            await client.config_set("min-replicas-to-write", 0)

            await eventually(lambda: len(work.brought) == 1)


async def test_it_ends_while_it_waits_for_room(
    url: str, name: str, client: Redis
) -> None:
    """Stopping closes the intake, which tells it."""
    async with promoting(url, name, client) as work:
        work.room = 0
        with fail_after(8):
            async with create_task_group() as tasks:
                tasks.start_soon(work.promoter.run)
                await asyncio.sleep(0)
                work.promoter.stop()
                work.make_room(1)
                await work.promoter.served()


async def test_a_bell_that_rings_after_the_stop_holds_nobody_up(
    url: str, name: str, client: Redis
) -> None:
    """Who waits for the lane's turn would wait for ever: nobody looks any more."""
    async with promoting(url, name, client) as work:
        async with running(work):
            pass

        work.promoter.ring()

        with fail_after(8):
            await work.promoter.served()


async def test_what_does_not_pass_by_itself_is_raised(
    url: str, name: str, client: Redis
) -> None:
    """Somebody put something else in the lane's place."""
    async with promoting(url, name, client) as work:
        await client.set(work.stream.keys.lane(GROUP), "something else")

        with fail_after(8), pytest.raises(WrongKeyTypeError):
            await work.promoter.run()


async def test_each_look_tells_the_servers_time(
    url: str, name: str, client: Redis
) -> None:
    """Expiry goes by it."""
    async with promoting(url, name, client) as work, running(work):
        await eventually(lambda: bool(work.times))
        seconds, _ = await client.time()

        assert abs(work.times[-1] - seconds) < 15
