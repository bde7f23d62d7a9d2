from __future__ import annotations

import asyncio
import logging
import re
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from anyio import create_task_group, fail_after

from aioredismq import ServerError
from aioredismq import _lease as room_of_lease
from aioredismq._clock import elapsed
from aioredismq._held import Held
from aioredismq._lease import Lease
from aioredismq._member import Member
from aioredismq._message import Entry
from aioredismq.testing import FaultyLine
from tests.looking import deliver, opened_stream
from tests.sending import script_calls
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from aioredismq._stream import Stream

pytestmark = pytest.mark.one_loop

GROUP = "billing"
ONE = "one"
# Renewed every third of it.
VISIBILITY = 0.9


@pytest.fixture(autouse=True)
def _no_least_grace(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let tests be quick: one renewal period of these short leases is enough for them."""
    if request.function is not test_short_leases_leave_the_others_time_to_connect:
        monkeypatch.setattr(room_of_lease, "_LEAST_GRACE", 0.0)


class Leasing:
    """The leases of one consumer, and what they tell."""

    def __init__(self, stream: Stream, client: Redis, visibility: float) -> None:
        """Nothing is renewed before `run()`."""
        self.stream = stream
        self.client = client
        self.held = Held(visibility)
        self.lost: list[tuple[bytes, bool]] = []
        self.settling: set[bytes] = set()
        self.runs = True
        self.member = Member(stream, GROUP, ONE)
        self.lease = Lease(
            self.member,
            held=self.held,
            visibility_timeout=visibility,
            lost=self._note_lost,
            is_settling=lambda entry_id, in_lane: (
                entry_id in self.settling and not in_lane
            ),
        )

    def _note_lost(self, entry_id: bytes, in_lane: bool) -> bool:
        self.lost.append((entry_id, in_lane))
        return self.runs

    async def hold(self, count: int = 1) -> list[Entry]:
        """Read new messages, which are then held."""
        entries = await deliver(self.stream, self.client, GROUP, ONE, *[b"x"] * count)
        self.held.add(entries)
        return entries

    async def age(self, *entries: Entry, seconds: float = 60.0) -> None:
        """Let entries look to the server as if nobody had renewed them for a while."""
        await self.client.xclaim(
            self.stream.keys.stream, GROUP, ONE, 0, [one.id for one in entries],
            idle=int(seconds * 1000), justid=True,
        )  # fmt: skip

    async def steal(self, entry: Entry) -> None:
        """Let somebody else take an entry over."""
        await self.client.xclaim(self.stream.keys.stream, GROUP, "thief", 0, [entry.id])

    async def oldest(self) -> float:
        """Seconds since the last renewal of whatever was renewed least lately."""
        pending = await self.client.xpending_range(
            self.stream.keys.stream, GROUP, "-", "+", 1000, ONE
        )
        return max(one["time_since_delivered"] for one in pending) / 1000

    async def is_renewed(self) -> bool:
        """Say whether everything pending was renewed lately."""
        return await self.oldest() < 5


@asynccontextmanager
async def leasing(
    url: str, name: str, client: Redis, visibility: float = VISIBILITY
) -> AsyncIterator[Leasing]:
    """Set up the leases of a consumer of a fresh queue."""
    async with opened_stream(url, name, GROUP) as stream:
        work = Leasing(stream, client, visibility)
        try:
            yield work
        finally:
            work.lease.close()


@asynccontextmanager
async def renewing(work: Leasing) -> AsyncIterator[None]:
    """Renew in the background of the block."""
    async with create_task_group() as tasks:
        tasks.start_soon(work.lease.run)
        yield
        tasks.cancel_scope.cancel()


# Renewing.


async def test_what_is_held_is_renewed_again_and_again(
    url: str, name: str, client: Redis
) -> None:
    """Every third of the visibility timeout, running or waiting."""
    async with leasing(url, name, client) as work, renewing(work):
        entries = await work.hold(3)

        for _ in range(2):
            await work.age(*entries)
            await eventually(work.is_renewed, VISIBILITY)

        assert not work.lost


async def test_what_is_settled_is_renewed_no_more(
    url: str, name: str, client: Redis
) -> None:
    """Own entries that nobody here holds are left to age, and to be recovered."""
    async with leasing(url, name, client) as work, renewing(work):
        kept, dropped = await work.hold(2)
        work.held.drop([dropped.id], in_lane=False)

        await work.age(kept, dropped)
        renewed = work.held.renewed_at(kept.id, in_lane=False)
        await eventually(
            lambda: work.held.renewed_at(kept.id, in_lane=False) != renewed, VISIBILITY
        )

        assert await work.oldest() > 50
        assert not work.lost


async def test_very_many_are_renewed_in_chunks(
    url: str, name: str, client: Redis
) -> None:
    """No call holds the server for long; one that is lost is found among them."""
    async with leasing(url, name, client, 30.0) as work:
        entries = await work.hold(450)
        await work.age(*entries)
        await work.steal(entries[300])
        before = await script_calls(client)

        await work.lease._renew_all()

        assert await script_calls(client) - before == 3
        assert await work.is_renewed()
        assert work.lost == [(entries[300].id, False)]


async def test_entries_of_the_lane_are_renewed_too(
    url: str, name: str, client: Redis
) -> None:
    """A retry may run for as long as a first attempt."""
    async with leasing(url, name, client) as work, renewing(work):
        lane = work.stream.keys.lane(GROUP)
        await client.xadd(lane, {b"body": b"x", b"mq-id": b"1-0"})
        [entry] = (await work.member.take(1)).entries
        work.held.add([entry])
        await client.xclaim(lane, GROUP, ONE, 0, [entry.id], idle=60_000, justid=True)

        async def renewed() -> bool:
            [about] = await client.xpending_range(lane, GROUP, "-", "+", 10)
            return bool(about["time_since_delivered"] < 5000)

        await eventually(renewed, VISIBILITY)


async def test_an_outage_ends_nothing_and_everything_is_renewed_after_it(
    url: str, name: str, client: Redis
) -> None:
    """Renewals go on being tried, and come first when the line is there again."""
    async with FaultyLine(url) as line, leasing(line.url, name, client) as work:
        entries = await work.hold(2)
        async with renewing(work):
            line.cut()
            await asyncio.sleep(VISIBILITY)
            await work.age(*entries)
            line.heal()

            await eventually(work.is_renewed)


# Losing.


async def test_a_lost_lease_is_told_once(
    url: str, name: str, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Its handler may run for long: the log says it once, not at each renewal."""
    async with leasing(url, name, client) as work:
        entry, kept = await work.hold(2)
        await work.steal(entry)

        for _ in range(3):
            await work.lease._renew_all()

        assert work.lost == [(entry.id, False)]
        [record] = [one for one in caplog.records if "is lost" in one.message]
        assert record.levelno == logging.WARNING
        assert entry.id.decode() in record.message
        assert work.lease.remaining(kept) > 0


async def test_with_the_group_every_lease_is_gone(
    url: str, name: str, client: Redis
) -> None:
    """Nobody else has them before it is made again: what waits and what runs goes on until then."""
    async with leasing(url, name, client) as work:
        entries = await work.hold(2)
        await client.xgroup_destroy(name, GROUP)

        assert not await work.lease.extend(entries[0])
        await work.lease._renew_all()
        assert not work.lost

        await work.stream.open_group(GROUP, how="again", rules={})
        await work.lease._renew_all()

        assert [entry_id for entry_id, _ in work.lost] == [one.id for one in entries]


async def test_what_waits_is_lost_without_a_word(
    url: str, name: str, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not started: nothing is done twice that anybody should be warned of."""
    async with leasing(url, name, client) as work:
        work.runs = False
        [entry] = await work.hold()
        await work.steal(entry)

        await work.lease._renew_all()

        assert work.lost == [(entry.id, False)]
        assert not [one for one in caplog.records if "is lost" in one.message]


async def test_a_lost_lease_that_comes_back_is_a_lease_again(
    url: str, name: str, client: Redis
) -> None:
    """The thief has died, and this consumer has taken its own message over."""
    async with leasing(url, name, client) as work:
        [entry] = await work.hold()
        await work.steal(entry)
        await work.lease._renew_all()
        assert work.lease.remaining(entry) == 0

        await client.xclaim(name, GROUP, ONE, 0, [entry.id])
        assert work.held.add([entry]) == []

        assert work.lease.remaining(entry) > 0
        await work.steal(entry)
        await work.lease._renew_all()
        assert work.lost == 2 * [(entry.id, False)]


async def test_leases_are_sound_until_they_would_have_run_out(
    url: str, name: str, client: Redis
) -> None:
    """Whoever waits then gets them renewed at once."""
    async with leasing(url, name, client) as work:
        assert work.held.sound_until > elapsed()
        with fail_after(8):
            await work.lease.until_sound()
        work.held.sound_until = elapsed() - 1
        work.lease._due = elapsed() + 60

        async with renewing(work):
            with fail_after(8):
                await work.lease.until_sound()

        left = work.held.sound_until - elapsed()
        assert 0 < left <= VISIBILITY


async def test_what_comes_late_during_a_renewal_is_renewed_before_leases_are_sound(
    url: str, name: str, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waited while the process stood still, and is read after the first answer."""
    async with leasing(url, name, client) as work:
        await work.hold()
        [late] = await deliver(work.stream, client, GROUP, ONE, b"late")
        await work.steal(late)
        coming = [late]
        renew = work.member.renew

        async def and_then_it_comes(ids: list[bytes], *, in_lane: bool) -> list[bytes]:
            lost = await renew(ids, in_lane=in_lane)
            if coming:
                work.held.note_asked(elapsed() - VISIBILITY - 1)
                work.held.add([coming.pop()])
            return lost

        monkeypatch.setattr(work.member, "renew", and_then_it_comes)
        await work.lease._renew_all()

        assert work.lost == [(late.id, False)]
        assert work.held.sound_until > elapsed()


async def test_what_was_long_on_its_way_is_sound_for_the_rest_of_its_lease(
    url: str, name: str, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renewal that had begun before it came has not renewed it."""
    async with leasing(url, name, client, 60.0) as work:
        await work.hold()
        asked = elapsed() - 30
        renew = work.member.renew

        async def and_then_it_comes(ids: list[bytes], *, in_lane: bool) -> list[bytes]:
            work.held.note_asked(asked)
            return await renew(ids, in_lane=in_lane)

        monkeypatch.setattr(work.member, "renew", and_then_it_comes)
        await work.lease._renew_all()
        assert work.held.sound_until == asked + 60
        monkeypatch.setattr(work.member, "renew", renew)
        await work.lease._renew_all()

        assert work.held.sound_until > asked + 80


async def test_what_was_settled_while_the_server_was_asked_is_not_lost(
    url: str, name: str, client: Redis
) -> None:
    """The acknowledgement overtook the renewal."""
    async with leasing(url, name, client) as work:
        [entry] = await work.hold()
        await client.xack(name, GROUP, entry.id)
        asking = asyncio.ensure_future(work.lease.renew([entry.id], in_lane=False))
        await asyncio.sleep(0)
        work.held.drop([entry.id], in_lane=False)

        assert await asking == []
        assert not work.lost


async def test_what_is_being_settled_is_not_lost_but_settled(
    url: str, name: str, client: Redis
) -> None:
    """Its acknowledgement was carried out, and only the answer was lost: nobody else has it."""
    async with leasing(url, name, client) as work:
        acknowledged, stolen = await work.hold(2)
        work.settling.add(acknowledged.id)
        await client.xack(name, GROUP, acknowledged.id)
        await work.steal(stolen)

        await work.lease._renew_all()

        assert work.lost == [(stolen.id, False)]


async def test_nobody_waits_for_leases_that_are_renewed_no_more(
    url: str, name: str, client: Redis
) -> None:
    """The consumer has ended: who pulls from it would wait for ever."""
    async with opened_stream(url, name, GROUP) as stream:
        work = Leasing(stream, client, VISIBILITY)
        work.held.sound_until = elapsed() - 1
        waiting = asyncio.ensure_future(work.lease.until_sound())
        await asyncio.sleep(0)
        assert not waiting.done()

        work.lease.close()

        with fail_after(8):
            await waiting


async def test_the_same_id_of_the_lane_is_another_lease(
    url: str, name: str, client: Redis
) -> None:
    """Two streams may give out one id."""
    async with leasing(url, name, client) as work:
        [entry] = await work.hold()
        twin = Entry(entry.id, [b"body", b"x"], in_lane=True)
        work.held.add([twin])
        lane = work.stream.keys.lane(GROUP)
        await client.xgroup_create(lane, GROUP, mkstream=True)

        await work.lease._renew_all()

        assert work.lost == [(entry.id, True)]
        assert work.lease.remaining(twin) == 0
        assert work.lease.remaining(entry) > 0


# What a message asks.


async def test_what_remains_is_counted_from_the_last_renewal(
    url: str, name: str, client: Redis
) -> None:
    """From before the server was asked: it never says too much."""
    async with leasing(url, name, client, 300.0) as work:
        [entry] = await work.hold()
        assert 290 < work.lease.remaining(entry) <= 300
        work.held.renewed([entry.id], elapsed() - 200, in_lane=False)
        assert 90 < work.lease.remaining(entry) <= 100

        assert await work.lease.extend(entry)

        assert 290 < work.lease.remaining(entry) <= 300


async def test_extending_is_seen_by_the_server(
    url: str, name: str, client: Redis
) -> None:
    """Before work that blocks the event loop for long."""
    async with leasing(url, name, client, 30.0) as work:
        [entry] = await work.hold()
        await work.age(entry)

        assert await work.lease.extend(entry)

        assert await work.is_renewed()


async def test_extending_finds_out_that_it_is_lost(
    url: str, name: str, client: Redis
) -> None:
    """The handler is told, as at any renewal."""
    async with leasing(url, name, client, 30.0) as work:
        [entry] = await work.hold()
        await work.steal(entry)

        assert not await work.lease.extend(entry)

        assert work.lost == [(entry.id, False)]
        assert work.lease.remaining(entry) == 0


async def test_what_is_not_held_has_no_lease(
    url: str, name: str, client: Redis
) -> None:
    """It is settled."""
    async with leasing(url, name, client, 30.0) as work:
        [entry] = await work.hold()
        work.held.drop([entry.id], in_lane=False)

        assert work.lease.remaining(entry) == 0
        assert not await work.lease.extend(entry)
        assert not work.lost


async def test_extending_during_an_outage_says_so(
    url: str, name: str, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease lasts as long as it did."""
    async with FaultyLine(url) as line, leasing(line.url, name, client, 30.0) as work:
        [entry] = await work.hold()
        monkeypatch.setattr(work.member.link, "_patience", 0.1)
        line.cut()

        with pytest.raises(ServerError):
            await work.lease.extend(entry)

        assert work.lease.remaining(entry) > 0
        assert not work.lost
        line.heal()
        await eventually(lambda: work.member.link.is_up)


# When others may be claimed from.


async def test_nothing_is_claimed_in_the_first_renewal_period(
    url: str, name: str, client: Redis
) -> None:
    """The others may come back from the same outage."""
    async with leasing(url, name, client) as work, renewing(work):
        begun = work.lease._sound_since
        assert not work.lease.may_claim()

        await eventually(work.lease.may_claim)

        assert elapsed() - begun >= VISIBILITY / 3


async def test_short_leases_leave_the_others_time_to_connect(
    url: str, name: str, client: Redis
) -> None:
    """Who pauses for a second before it tries again is not robbed by who came first."""
    async with leasing(url, name, client, 0.5) as work, renewing(work):
        begun = elapsed()

        await eventually(work.lease.may_claim)

        assert elapsed() - begun >= 1.4


async def test_a_server_that_kept_everybody_waiting_counts_as_an_outage(
    url: str, name: str, client: Redis
) -> None:
    """It was loading, or stopped for a moment: the others were not answered either."""
    async with FaultyLine(url) as line, leasing(line.url, name, client, 3.0) as work:
        await work.hold()
        await work.lease._renew_all()
        work.lease._sound_since -= 10
        assert work.lease.may_claim()

        line.delay(1.1)
        await work.lease._renew_all()

        assert not work.lease.may_claim()


async def test_after_each_connect_one_period_is_left_to_all(
    url: str, name: str, client: Redis
) -> None:
    """Every lease looks abandoned then, also to its owner."""
    async with (
        FaultyLine(url) as line,
        leasing(line.url, name, client) as work,
        renewing(work),
    ):
        await eventually(work.lease.may_claim)

        line.drop()

        await eventually(lambda: not work.lease.may_claim())
        await eventually(lambda: work.member.link.is_up)
        assert not work.lease.may_claim()
        await eventually(work.lease.may_claim)


async def test_a_doubt_leaves_one_period_to_all_and_renews(
    url: str, name: str, client: Redis
) -> None:
    """The server's clock was set ahead: every lease looks older than it is."""
    async with leasing(url, name, client) as work, renewing(work):
        await eventually(work.lease.may_claim)
        [entry] = await work.hold()
        await work.age(entry)

        work.lease.doubt()

        assert not work.lease.may_claim()
        await eventually(lambda: work.lease._due > elapsed())
        await eventually(work.lease.may_claim)
        [pending] = await client.xpending_range(name, GROUP, "-", "+", 1)
        assert pending["time_since_delivered"] < 5_000


async def test_who_cannot_renew_does_not_claim(
    url: str, name: str, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server refuses; what it refuses to us, it refuses to the others."""
    async with leasing(url, name, client) as work, renewing(work):
        await work.hold()
        await eventually(work.lease.may_claim)

        async def refuse(*_: object, **__: object) -> list[bytes]:
            raise ServerError("MISCONF not now")

        monkeypatch.setattr(work.member, "renew", refuse)

        await eventually(lambda: not work.lease.may_claim())
        monkeypatch.undo()
        await eventually(work.lease.may_claim)


async def test_who_does_not_come_round_to_renewing_does_not_claim(
    url: str, name: str, client: Redis
) -> None:
    """Nothing runs: overdue is enough."""
    async with leasing(url, name, client, 30.0) as work:
        work.lease._sound_since = elapsed() - 100

        assert work.lease.may_claim()
        work.lease._due = elapsed() - 2

        assert not work.lease.may_claim()


async def test_a_blocked_event_loop_is_warned_about_with_its_length(
    url: str, name: str, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is renewed and nothing claimed, and whoever reads the log learns why."""
    async with leasing(url, name, client, 1.2) as work, renewing(work):
        await eventually(work.lease.may_claim)

        begun = time.monotonic()
        time.sleep(1.6)  # noqa: ASYNC251 -- what is warned about

        await eventually(lambda: "event loop was blocked" in caplog.text)
        assert not work.lease.may_claim()
        took = time.monotonic() - begun
        lengths = re.findall(r"blocked for ([\d.]+) s", caplog.text)
        assert any(1.1 <= float(length) <= took for length in lengths)


async def test_a_short_stall_is_not_worth_a_word(
    url: str,
    name: str,
    client: Redis,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Garbage collection, a large JSON: every process has those."""
    monkeypatch.setattr(room_of_lease, "_TICK", 0.05)
    monkeypatch.setattr(room_of_lease, "_STALLED", 20.0)  # as on a busy machine
    async with leasing(url, name, client, 300.0) as work, renewing(work):
        await asyncio.sleep(0.06)

        time.sleep(0.3)  # noqa: ASYNC251 -- what is let pass

        await asyncio.sleep(0.2)
        assert "blocked" not in caplog.text


async def test_a_closed_one_listens_to_no_connection(
    url: str, name: str, client: Redis
) -> None:
    """The connection lives on with other consumers."""
    async with opened_stream(url, name, GROUP) as stream:
        work = Leasing(stream, client, 30.0)
        listening = len(stream.link._on_up)

        work.lease.close()

        assert len(stream.link._on_up) == listening - 1
