from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import pytest
from anyio import create_task_group, fail_after

from aioredismq import QueueDeletedError, WrongKeyTypeError
from aioredismq import _member as room_of_member
from aioredismq import _recoverer as room_of_recoverer
from aioredismq import _stream as room_of_stream
from aioredismq._held import Held
from aioredismq._member import Member, Recovered
from aioredismq._outcome import DeadLetter
from aioredismq._recoverer import Recoverer
from aioredismq.testing import FaultyLine
from tests.looking import deliver, left, opened_stream
from tests.sending import script_calls
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from redis.asyncio import Redis

    from aioredismq._message import Entry
    from aioredismq._outcome import Outcome
    from aioredismq._stream import Stream

pytestmark = pytest.mark.one_loop

GROUP = "billing"
ONE, GONE = "one", "gone"
# It looks a quarter of this after the start, at the latest.
VISIBILITY = 0.5
MARK = 1000


class Asking(Member):
    """A member that says when it has been answered, before anybody has read the answer."""

    def __init__(self, *names: Any) -> None:
        """Say it to nobody."""
        super().__init__(*names)
        self.answered: Callable[[], None] = lambda: None

    async def recover(self, **asked: Any) -> Recovered:
        """Ask, and say so."""
        found = await super().recover(**asked)
        self.answered()
        return found


class Recovering:
    """A recoverer, and whatever its consumer is told."""

    def __init__(
        self, stream: Stream, client: Redis, visibility: float = VISIBILITY
    ) -> None:
        """A worker is free, claiming is allowed, and suspects end at once."""
        self.stream = stream
        self.client = client
        self.suspects: list[Entry] = []
        self.longest: list[float] = []
        self.settled: list[tuple[Entry, Outcome]] = []
        self.mended = 0
        self.may_claim = self.is_free = self.suspect_ends = True
        self.ahead: float | None = 0.0
        """How far the server's clock is thought to be ahead; None for not known yet."""
        self.mend_error: Exception | None = None
        self.gate: asyncio.Event | None = None
        """When set, a suspect runs until it is."""
        self.held = Held()
        self.member = Asking(stream, GROUP, ONE)
        self.recoverer = Recoverer(
            self.member,
            visibility_timeout=visibility,
            max_crashes=3,
            retention=None,
            held=self.held,
            may_claim=lambda: self.may_claim,
            server_time=lambda: (
                None if self.ahead is None else time.time() + self.ahead
            ),
            one_kept_free=nullcontext,
            free_worker=self._free_worker,
            run_suspect=self._run,
            settle=lambda entry, outcome: self.settled.append((entry, outcome)),
            mend=self._mend,
        )

    async def _run(self, entry: Entry, longest: float) -> bool:
        self.suspects.append(entry)
        self.longest.append(longest)
        if self.gate is not None:
            await self.gate.wait()
        if self.suspect_ends:
            key = self._key(in_lane=entry.in_lane)
            await self.client.xack(key, GROUP, entry.id)
            self.held.drop([entry.id], in_lane=entry.in_lane)
        return self.suspect_ends

    async def _free_worker(self, within: float) -> bool:
        if not self.is_free:
            await asyncio.sleep(within)
        return self.is_free

    async def _mend(self) -> None:
        self.mended += 1
        if self.mend_error is not None:
            raise self.mend_error
        await self.stream.open_group(GROUP, how="again", rules={})

    def _key(self, *, in_lane: bool) -> str:
        keys = self.stream.keys
        return keys.lane(GROUP) if in_lane else keys.stream

    async def abandon(self, count: int = 1, *, deliveries: int = 1) -> list[Entry]:
        """Leave messages with a consumer that is gone."""
        entries = await deliver(self.stream, self.client, GROUP, GONE, *[b"x"] * count)
        await self.client.xclaim(
            self.stream.keys.stream, GROUP, GONE, 0, [one.id for one in entries],
            idle=60_000, retrycount=deliveries, justid=True,
        )  # fmt: skip
        return entries

    async def looks(self, count: int) -> None:
        """Wait until it has looked so many times more."""
        begun = await script_calls(self.client)

        async def has_looked() -> bool:
            return await script_calls(self.client) >= begun + count

        await eventually(has_looked)


@asynccontextmanager
async def recovering(
    url: str, name: str, client: Redis, visibility: float = VISIBILITY
) -> AsyncIterator[Recovering]:
    """Set up a recoverer of a fresh queue; it does not run yet."""
    async with opened_stream(url, name, GROUP) as stream:
        yield Recovering(stream, client, visibility)


@asynccontextmanager
async def looking(work: Recovering) -> AsyncIterator[None]:
    """Let it look in the background of the block, and stop it in order."""
    with fail_after(20):
        async with create_task_group() as tasks:
            tasks.start_soon(work.recoverer.run)
            yield
            work.recoverer.stop()


async def test_what_is_abandoned_is_run_apart(
    url: str, name: str, client: Redis
) -> None:
    """One after the other, oldest first, without waiting for the next regular look."""
    async with recovering(url, name, client) as work:
        entries = await work.abandon(5)

        async with looking(work):
            await eventually(lambda: len(work.suspects) == 5)

        assert [one.id for one in work.suspects] == [one.id for one in entries]
        assert not work.settled


async def test_the_next_is_not_taken_before_this_one_may_be_followed(
    url: str, name: str, client: Redis
) -> None:
    """Whichever of two new suspects kills, both would be blamed."""
    async with recovering(url, name, client) as work:
        work.gate = asyncio.Event()
        await work.abandon(2)

        async with looking(work):
            await eventually(lambda: len(work.suspects) == 1)
            await asyncio.sleep(2 * VISIBILITY)
            assert len(work.suspects) == 1
            work.gate.set()
            await eventually(lambda: len(work.suspects) == 2)


async def test_suspects_that_run_together_are_not_marked(
    url: str, name: str, client: Redis
) -> None:
    """Nobody could tell which of the two a process has died of."""
    async with recovering(url, name, client) as work:
        work.suspect_ends = False
        entries = await work.abandon(2)

        async with looking(work):
            await eventually(lambda: len(work.suspects) == 2)

        pending = await client.xpending_range(name, GROUP, "-", "+", 10, ONE)
        assert [(one["message_id"], one["times_delivered"]) for one in pending] == [
            (entries[0].id, 500),
            (entries[1].id, 500),
        ]


async def test_many_that_end_at_once_are_run_at_once(
    url: str, name: str, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process may have held hundreds: none waits for a turn of its own."""
    monkeypatch.setitem(room_of_recoverer._SOON, "page", 60.0)
    async with recovering(url, name, client, visibility=6.0) as work:
        entries = await work.abandon(40)

        async with looking(work):
            await eventually(lambda: len(work.suspects) == 40)

        assert [one.id for one in work.suspects] == [one.id for one in entries]


@pytest.mark.parametrize(
    ("deliveries", "longest"), [(1, 4.0), (500, 30.0), (MARK, 30.0), (MARK + 1, 30.0)]
)
async def test_who_was_a_suspect_before_has_longer_for_itself(
    url: str,
    name: str,
    client: Redis,
    monkeypatch: pytest.MonkeyPatch,
    deliveries: int,
    longest: float,
) -> None:
    """Others were only beside when their process ended: the next may start after some seconds."""
    monkeypatch.setattr(room_of_recoverer, "_PAUSE", 0.2)
    async with recovering(url, name, client, visibility=30.0) as work:
        await work.abandon(deliveries=deliveries)

        async with looking(work):
            await eventually(lambda: len(work.suspects) == 1)

        assert work.longest == [longest]


async def test_who_was_a_suspect_before_waits_for_those_that_run(
    url: str, name: str, client: Redis
) -> None:
    """For a visibility timeout: they may take an hour."""
    async with recovering(url, name, client) as work:
        work.suspect_ends = False
        [innocent] = await work.abandon()
        async with looking(work):
            await eventually(lambda: len(work.suspects) == 1)
            began = time.monotonic()
            [suspect] = await work.abandon(deliveries=500)

            await eventually(lambda: len(work.suspects) == 2)

            assert time.monotonic() - began > VISIBILITY / 2
        assert [one.id for one in work.suspects] == [innocent.id, suspect.id]


@pytest.mark.parametrize(("deaths", "is_dead"), [(1, False), (2, False), (3, True)])
async def test_what_has_killed_too_often_is_not_run_again(
    url: str, name: str, client: Redis, deaths: int, is_dead: bool
) -> None:
    """It becomes a dead letter that says how many processes it has cost."""
    async with recovering(url, name, client) as work:
        # The mark of the former one: marked with all deaths before the last.
        [entry] = await work.abandon(deliveries=MARK + deaths - 1)

        async with looking(work):
            await eventually(lambda: bool(work.suspects or work.settled))

        if not is_dead:
            assert [one.crashes for one in work.suspects] == [deaths]
            assert not work.settled
            return
        assert not work.suspects
        [(settled, outcome)] = work.settled
        assert isinstance(outcome, DeadLetter)
        assert (settled.id, outcome.failure.reason) == (entry.id, "crashed")
        assert outcome.failure.detail.startswith("3 processes ended")


@pytest.mark.parametrize("what", ["may_claim", "is_free", "ahead"])
async def test_nothing_is_taken_over_when_it_must_not(
    url: str, name: str, client: Redis, what: str
) -> None:
    """Others could not renew yet, no worker is free, or the server's time is not known."""
    async with recovering(url, name, client) as work:
        setattr(work, what, None if what == "ahead" else False)
        await work.abandon()

        async with looking(work):
            await work.looks(3)
            assert not work.suspects
            setattr(work, what, 0.0 if what == "ahead" else True)
            await eventually(lambda: len(work.suspects) == 1)


async def test_it_looks_seldom_when_there_is_nothing(
    url: str, name: str, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look costs the server a command, however short the leases are."""
    monkeypatch.setattr(room_of_recoverer, "_LEAST_PAUSE", 0.2)
    async with recovering(url, name, client, 0.05) as work, looking(work):
        await work.looks(1)
        begun, before = time.monotonic(), await script_calls(client)

        await work.looks(10)

        looks = await script_calls(client) - before
        assert looks <= 1 + (time.monotonic() - begun) / 0.1


async def test_it_looks_when_the_lease_of_another_ends(
    url: str, name: str, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However seldom it looks otherwise."""
    monkeypatch.setattr(room_of_recoverer, "_PAUSE", 120.0)
    monkeypatch.setattr(room_of_recoverer, "_LEAST_PAUSE", 120.0)
    async with recovering(url, name, client) as work:
        [entry] = await deliver(work.stream, client, GROUP, GONE, b"x")
        await client.config_resetstat()

        async with looking(work):
            await eventually(lambda: len(work.suspects) == 1)

        assert work.suspects[0].id == entry.id
        assert await script_calls(client) <= 10


async def test_a_long_pending_list_is_looked_through_page_by_page(
    url: str, name: str, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quickly, but never at once."""
    monkeypatch.setattr(room_of_member, "_PAGE", 10)
    monkeypatch.setattr(room_of_recoverer, "_PAUSE", VISIBILITY / 4)
    async with recovering(url, name, client, visibility=30.0) as work:
        await deliver(work.stream, client, GROUP, "busy", *[b"x"] * 95)
        await client.config_resetstat()
        [entry] = await work.abandon()

        async with looking(work):
            await eventually(lambda: len(work.suspects) == 1)

        assert work.suspects[0].id == entry.id
        assert await script_calls(client) >= 10


async def test_a_group_that_is_gone_is_made_again(
    url: str, name: str, client: Redis
) -> None:
    """By whoever finds out first; here nobody reads."""
    async with recovering(url, name, client) as work, looking(work):
        await client.xgroup_destroy(name, GROUP)
        await eventually(lambda: work.mended == 1)

        await work.abandon()

        await eventually(lambda: len(work.suspects) == 1)


async def test_a_queue_that_was_deleted_on_purpose_ends_it(
    url: str, name: str, client: Redis
) -> None:
    """It is not healed back."""
    async with recovering(url, name, client) as work:
        work.mend_error = QueueDeletedError("on purpose")
        await client.xgroup_destroy(name, GROUP)

        with fail_after(8), pytest.raises(QueueDeletedError):
            await work.recoverer.run()


async def test_what_does_not_pass_by_itself_is_raised(
    url: str, name: str, client: Redis
) -> None:
    """Somebody put something else in the stream's place."""
    async with recovering(url, name, client) as work:
        await client.delete(name)
        await client.set(name, "something else")

        with fail_after(8), pytest.raises(WrongKeyTypeError):
            await work.recoverer.run()
        await client.delete(name)


async def test_it_goes_on_after_an_outage(url: str, name: str, client: Redis) -> None:
    """And asks little while there is nobody to ask."""
    async with (
        FaultyLine(url) as line,
        recovering(line.url, name, client) as work,
        looking(work),
    ):
        await work.looks(1)
        line.cut()
        await asyncio.sleep(0.3)
        await work.abandon()
        line.heal()
        await eventually(lambda: len(work.suspects) == 1)


async def test_what_a_look_whose_reply_was_lost_has_taken_is_found(
    url: str, name: str, client: Redis
) -> None:
    """The entry lies with this consumer, unseen: it ages, and another may never come."""
    async with FaultyLine(url) as line, recovering(line.url, name, client) as work:
        async with looking(work):
            await work.looks(1)  # whole, as the server did not know the script
        [entry] = await work.abandon()
        work = Recovering(work.stream, client)

        line.reset_after_request(room_of_member.scripts.RECOVER.digest)
        begun = time.monotonic()
        async with looking(work):
            await eventually(lambda: not line.is_armed)

            await eventually(lambda: len(work.suspects) == 1)

        assert time.monotonic() - begun >= VISIBILITY
        assert work.suspects[0].id == entry.id


async def test_what_is_held_here_is_not_abandoned(
    url: str, name: str, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """However old it looks, if it was lost, or is settled while the answer is on its way."""
    caplog.set_level(logging.INFO, "aioredismq")
    async with recovering(url, name, client) as work:
        old, lost, settled, gone = await work.abandon(4)
        work.held.add([old, lost, settled])
        work.held.lose(lost.id, in_lane=False)
        work.member.answered = lambda: work.held.drop([settled.id], in_lane=False)

        async with looking(work):
            await eventually(lambda: len(work.suspects) == 1)

        assert work.suspects[0].id == gone.id
        assert work.held.renewed_at(lost.id, in_lane=False) is not None
        assert work.held.ids(in_lane=False) == [old.id, lost.id]
        told = [line for line in caplog.messages if line.startswith("took over entry")]
        assert [line.split()[3].encode() for line in told] == [lost.id, gone.id]


async def test_it_stops_at_once(
    url: str, name: str, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it waits for its next look."""
    monkeypatch.setattr(room_of_recoverer, "_PAUSE", 60.0)
    async with recovering(url, name, client, visibility=240.0) as work, looking(work):
        await asyncio.sleep(0)


async def test_what_a_lost_group_has_held_back_is_swept_page_by_page(
    url: str, name: str, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody else has settled it; looks go on meanwhile."""
    monkeypatch.setattr(room_of_recoverer, "_RETIRE_EVERY", 0.0)
    monkeypatch.setattr(room_of_recoverer, "_NEXT_SWEPT", 0.01)
    monkeypatch.setattr(room_of_stream, "_PAGE", 10)
    async with recovering(url, name, client) as work:
        entries = await deliver(work.stream, client, GROUP, ONE, *[b"x"] * 45)
        await client.xack(name, GROUP, *[entry.id for entry in entries[5:]])

        async def is_swept() -> bool:
            return int(await client.xlen(name)) == 5

        async with looking(work):
            await eventually(is_swept)
            [entry] = await work.abandon()
            await eventually(lambda: entry.id in [one.id for one in work.suspects])


async def test_one_sweep_is_enough_for_all_consumers(
    url: str, name: str, client: Redis
) -> None:
    """It looks at all that is stored, which may be much."""
    async with recovering(url, name, client) as work:
        entries = await work.abandon(3)
        assert await work.stream.sweep_page("-", every=60) == ("", 0)
        await client.xack(name, GROUP, *[entry.id for entry in entries])

        assert await work.stream.sweep_page("-", every=60) == ("", 0)
        assert await work.stream.sweep_page("-") == ("", 3)


async def test_names_of_the_dead_are_removed_now_and_then(
    url: str,
    name: str,
    client: Redis,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Those that were used long ago and hold nothing."""
    monkeypatch.setattr(room_of_recoverer, "_RETIRE_EVERY", 0.0)
    monkeypatch.setattr(room_of_recoverer, "_RETIRE_AFTER", 0.0)
    caplog.set_level(logging.INFO, "aioredismq")
    async with recovering(url, name, client) as work:
        begun = time.monotonic()
        for consumer in (GONE, "holds"):
            [entry] = await deliver(work.stream, client, GROUP, consumer, b"x")
        await client.xack(name, GROUP, entry.id)
        work.may_claim = False

        async with looking(work):
            await eventually(lambda: "removed 1 unused" in caplog.text)

        # Four times the visibility timeout, at least: somebody may merely be slow.
        assert time.monotonic() - begun >= 4 * VISIBILITY
        assert (await left(client, name, GROUP)).names == (b"gone",)
