from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from anyio import create_task_group, fail_after
from redis.asyncio import Redis

from aioredismq._held import Held
from aioredismq._member import Member
from aioredismq._message import Entry
from aioredismq._outcome import Ack, DeadLetter, Failure, Release, Retry
from aioredismq._settler import Settler
from tests.looking import Left, dead_letters, deliver, left, opened_stream
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aioredismq import ServerError
    from aioredismq._stream import Stream
    from aioredismq.testing import RedisServer

GROUP = "billing"
CONSUMER = "one"
HERE = (CONSUMER.encode(),)


class Settling:
    """A settler at work, and what it tells."""

    def __init__(self, stream: Stream, *, failover: bool = True) -> None:
        """It sends nothing before something is settled."""
        self.stream = stream
        self.held = Held()
        self.failed: list[tuple[Entry, Failure]] = []
        self.fatal: list[ServerError] = []
        self.came_back = 0
        self.settler = Settler(
            Member(stream, GROUP, CONSUMER),
            held=self.held,
            failover=failover,
            keeps_failures=False,
            failed=lambda entry, failure: self.failed.append((entry, failure)),
            fatal=self.fatal.append,
            came_back=self._count,
        )

    def _count(self) -> None:
        self.came_back += 1

    async def hold(self, client: Redis, *bodies: bytes) -> list[Entry]:
        """Read new messages, which are then held."""
        entries = await deliver(self.stream, client, GROUP, CONSUMER, *bodies)
        self.held.add(entries)
        return entries

    async def hold_from_lane(self, count: int) -> list[Entry]:
        """Take what has come back, which is then held."""
        taken = await Member(self.stream, GROUP, CONSUMER).take(count)
        self.held.add(taken.entries)
        return taken.entries

    async def flushed(self) -> None:
        """Wait until everything is answered."""
        with fail_after(8):
            await self.settler.flushed()


@asynccontextmanager
async def settling(
    url: str, name: str, *, failover: bool = True
) -> AsyncIterator[Settling]:
    """Run a settler on a fresh queue."""
    async with opened_stream(url, name, GROUP) as stream:
        work = Settling(stream, failover=failover)
        async with create_task_group() as tasks:
            tasks.start_soon(work.settler.run)
            yield work
            tasks.cancel_scope.cancel()
        work.settler.close()


def raised() -> Exception:
    """Make an error that has a traceback."""

    def fail() -> None:
        raise LookupError("no such customer")

    with pytest.raises(LookupError) as caught:
        fail()
    return caught.value


async def calls(client: Redis, command: str) -> int:
    """Count how often a command was called, those inside scripts included."""
    stats = await client.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])


# Success.


async def test_an_acknowledged_entry_is_settled_and_gone(
    url: str, name: str, client: Redis
) -> None:
    """Its only group has handled it, so it leaves the stream."""
    async with settling(url, name) as work:
        entries = await work.hold(client, b"1", b"2")

        for entry in entries:
            work.settler.ack(entry)
        await work.flushed()

        assert await left(client, name, GROUP) == Left(names=HERE)
        assert len(work.held) == 0


async def test_the_acknowledgements_of_a_turn_travel_together(
    url: str, name: str, client: Redis
) -> None:
    """A hundred handlers that end at once are one command."""
    async with settling(url, name) as work:
        entries = await work.hold(client, *[b"x"] * 100)
        before = await calls(client, "xack")

        for entry in entries:
            work.settler.ack(entry)
        await work.flushed()

        assert await calls(client, "xack") == before + 1


async def test_acknowledgements_gather_while_one_is_under_way(
    url: str, name: str, client: Redis
) -> None:
    """The next call takes all that came meanwhile, without a timer."""
    async with settling(url, name) as work:
        first, *entries = await work.hold(client, *[b"x"] * 51)
        work.settler.ack(
            first
        )  # a server that does not know the script yet asks for it
        await work.flushed()
        before = await calls(client, "xack")

        work.settler.ack(entries[0])
        await asyncio.sleep(0)  # written in this turn; the answer takes another
        for entry in entries[1:]:
            work.settler.ack(entry)
        await work.flushed()

        assert await calls(client, "xack") == before + 2
        assert (await left(client, name, GROUP)).pending == 0


async def test_a_great_many_acknowledgements_go_in_portions(
    url: str, name: str, client: Redis
) -> None:
    """No call holds the server for long."""
    async with settling(url, name) as work:
        entries = await work.hold(client, *[b"x"] * 600)
        before = await calls(client, "xack")

        for entry in entries:
            work.settler.ack(entry)
        await work.flushed()

        assert await calls(client, "xack") == before + 3
        assert await left(client, name, GROUP) == Left(names=HERE)


async def test_an_entry_stays_until_every_group_has_settled_it(
    url: str, name: str, client: Redis
) -> None:
    """Another group that has not seen it keeps it in the stream."""
    async with settling(url, name) as work:
        await client.xgroup_create(name, "shipping", "0")
        [entry] = await work.hold(client, b"1")

        work.settler.settle(entry, Ack())
        await work.flushed()

        assert (await left(client, name, GROUP)).pending == 0
        assert await client.xlen(name) == 1


async def test_a_busy_stream_does_not_keep_the_lanes_acknowledgements_waiting(
    url: str, name: str, client: Redis
) -> None:
    """Both get through, however many messages end in each turn of the loop."""
    async with settling(url, name) as work:
        [entry] = await work.hold(client, b"1")
        work.settler.settle(entry, Release())
        await work.flushed()
        [back] = await work.hold_from_lane(1)

        with fail_after(8):
            work.settler.ack(Entry(b"1-0", [], in_lane=False))
            work.settler.ack(back)
            while work.held.has(back.id, in_lane=True):
                work.settler.ack(Entry(b"1-0", [], in_lane=False))
                await asyncio.sleep(0)
        await work.flushed()

        assert (await left(client, name, GROUP)).pending_lane == 0


# Everything else.


async def test_a_released_entry_is_in_the_lane_untried(
    url: str, name: str, client: Redis
) -> None:
    """It keeps its id, its fields and its attempts, and waits for whoever has room."""
    async with settling(url, name) as work:
        [entry] = await work.hold(client, b"1")

        work.settler.settle(entry, Release())
        await work.flushed()

        assert await left(client, name, GROUP) == Left(names=HERE, undelivered_lane=1)
        [back] = await work.hold_from_lane(5)
        fields = dict(zip(back.fields[::2], back.fields[1::2], strict=True))
        assert fields[b"body"] == b"1"
        assert (fields[b"mq-id"], fields[b"mq-attempt"]) == (entry.id, b"0")
        assert not work.failed
        assert work.came_back == 1


async def test_a_retry_counts_an_attempt(url: str, name: str, client: Redis) -> None:
    """Again and again, under the same id."""
    async with settling(url, name) as work:
        [entry] = await work.hold(client, b"1")
        at = entry
        for attempt in (1, 2, 3):
            work.settler.settle(at, Retry(0.0, f"failure {attempt}"))
            await work.flushed()
            [at] = await work.hold_from_lane(5)
            fields = dict(zip(at.fields[::2], at.fields[1::2], strict=True))
            assert fields[b"mq-attempt"] == b"%d" % attempt
            assert fields[b"mq-id"] == entry.id
            assert fields[b"mq-detail"] == b"failure %d" % attempt

        assert (await left(client, name, GROUP)).stream == 0


async def test_a_delayed_retry_waits_where_nobody_reads(
    url: str, name: str, client: Redis
) -> None:
    """It holds no slot and is pending nowhere."""
    async with settling(url, name) as work:
        [entry] = await work.hold(client, b"1")

        work.settler.settle(entry, Retry(60.0, "busy"))
        await work.flushed()

        assert await left(client, name, GROUP) == Left(names=HERE, delayed=1)
        assert work.came_back == 1


async def test_a_dead_letter_has_its_reason(url: str, name: str, client: Redis) -> None:
    """Body, id, group, attempt, reason, detail, error type and traceback are with it."""
    async with settling(url, name) as work:
        [entry] = await work.hold(client, b"1")
        failure = Failure("attempts", "no such customer", raised())

        work.settler.settle(entry, DeadLetter(failure))
        await work.flushed()

        [letter] = await dead_letters(client, name)
        assert letter.pop(b"mq-traceback").endswith(b"LookupError: no such customer\n")
        assert {
            name: value for name, value in letter.items() if name in {
                b"body", b"mq-id", b"mq-group", b"mq-reason", b"mq-detail",
                b"mq-error-type", b"mq-attempt",
            }
        } == {
            b"body": b"1",
            b"mq-id": entry.id,
            b"mq-group": b"billing",
            b"mq-reason": b"attempts",
            b"mq-detail": b"no such customer",
            b"mq-error-type": b"LookupError",
            b"mq-attempt": b"1",
        }  # fmt: skip
        assert work.failed == [(entry, failure)]
        assert work.came_back == 0
        assert await left(client, name, GROUP) == Left(names=HERE)


async def test_without_failover_what_fails_for_good_is_told_and_dropped(
    url: str, name: str, client: Redis
) -> None:
    """It is off the stream, and in no other place."""
    async with settling(url, name, failover=False) as work:
        [entry] = await work.hold(client, b"1")
        failure = Failure("rejected", "no")

        work.settler.settle(entry, DeadLetter(failure))
        await work.flushed()

        assert work.failed == [(entry, failure)]
        assert not await dead_letters(client, name)
        assert await left(client, name, GROUP) == Left(names=HERE)


async def test_many_moves_travel_together(url: str, name: str, client: Redis) -> None:
    """A thousand handed back at once are a few dozen calls, whatever they are."""
    async with settling(url, name) as work:
        entries = await work.hold(client, *[b"x"] * 1000)

        for entry in entries:
            work.settler.settle(entry, Release())
        await work.flushed()

        assert (await left(client, name, GROUP)).undelivered_lane == 1000
        assert len(work.held) == 0


async def test_what_somebody_else_took_over_is_left_alone(
    url: str, name: str, client: Redis
) -> None:
    """Neither retried nor put aside: it is the new owner's. It is counted as lost."""
    async with settling(url, name) as work:
        first, second = await work.hold(client, b"1", b"2")
        await client.xclaim(name, GROUP, "another", 0, [first.id, second.id])

        work.settler.settle(first, Retry(0.0, "late"))
        work.settler.settle(second, DeadLetter(Failure("rejected", "late")))
        await work.flushed()

        after = await left(client, name, GROUP)
        assert (after.pending, after.stream, after.undelivered_lane) == (2, 2, 0)
        assert not await dead_letters(client, name)
        assert work.settler.lost == 2
        assert not work.failed
        assert len(work.held) == 0


async def test_what_somebody_else_took_over_can_be_acknowledged(
    url: str, name: str, client: Redis
) -> None:
    """Who did the work is right to say so."""
    async with settling(url, name) as work:
        [entry] = await work.hold(client, b"1")
        await client.xclaim(name, GROUP, "another", 0, [entry.id])

        work.settler.ack(entry)
        await work.flushed()

        after = await left(client, name, GROUP)
        assert (after.pending, after.stream) == (0, 0)


# When the server does not take it at once.


async def test_what_could_not_be_sent_is_sent_later(
    url: str, name: str, client: Redis
) -> None:
    """A cut line loses neither an acknowledgement nor a move."""
    async with settling(url, name) as work:
        acked, retried, on_the_way = await work.hold(client, b"1", b"2", b"3")

        work.settler.ack(on_the_way)
        await asyncio.sleep(0)  # written, and not answered
        await client.client_kill_filter(_type="normal", skipme=True)
        await eventually(lambda: not work.stream.link.is_up)
        work.settler.ack(acked)
        work.settler.settle(retried, Retry(0.0, "busy"))
        await work.flushed()

        assert await left(client, name, GROUP) == Left(names=HERE, undelivered_lane=1)
        assert work.settler.lost == 0
        assert not work.fatal


async def test_a_server_that_forgot_the_scripts_is_taught_them(
    url: str, name: str, client: Redis
) -> None:
    """After a restart or a SCRIPT FLUSH."""
    async with settling(url, name) as work:
        acked, retried = await work.hold(client, b"1", b"2")
        await client.script_flush()

        work.settler.ack(acked)
        work.settler.settle(retried, Release())
        await work.flushed()

        assert await left(client, name, GROUP) == Left(names=HERE, undelivered_lane=1)
        assert not work.fatal


async def test_a_full_server_takes_everything_that_settles(
    own_server: RedisServer, name: str
) -> None:
    """Each script begins by freeing something: retries and dead letters need room, too."""
    async with (
        Redis.from_url(own_server.url, protocol=2) as client,
        settling(own_server.url, name) as work,
    ):
        entries = await work.hold(client, b"1", b"2", b"3", b"4")
        await client.config_set("maxmemory", 1)

        outcomes = [
            Ack(),
            Retry(0.0, "busy"),
            Retry(60.0, "busy"),
            DeadLetter(Failure("rejected", "no")),
        ]
        for entry, outcome in zip(entries, outcomes, strict=True):
            work.settler.settle(entry, outcome)
        await work.flushed()
        await client.config_set("maxmemory", 0)

        assert await left(client, name, GROUP) == Left(
            names=HERE, undelivered_lane=1, delayed=1
        )
        assert len(await dead_letters(client, name)) == 1


async def test_a_server_that_refuses_for_a_while_is_asked_again(
    own_server: RedisServer, name: str
) -> None:
    """Short of replicas it takes not even an acknowledgement; that passes by itself."""
    async with (
        Redis.from_url(own_server.url, protocol=2) as client,
        settling(own_server.url, name) as work,
    ):
        acked, retried = await work.hold(client, b"1", b"2")
        await client.config_set("min-replicas-to-write", 1)
        work.settler.ack(acked)
        work.settler.settle(retried, Retry(0.0, "busy"))
        await eventually(lambda: not work.settler._acking)
        assert len(work.held) == 2

        await client.config_set("min-replicas-to-write", 0)
        await work.flushed()

        assert await left(client, name, GROUP) == Left(names=HERE, undelivered_lane=1)
        assert not work.fatal


async def test_moves_that_were_cut_off_are_sent_when_it_runs_again(
    url: str, name: str, client: Redis
) -> None:
    """Also those whose answer was still to come: they are there once."""
    async with opened_stream(url, name, GROUP) as stream:
        work = Settling(stream)
        entries = await work.hold(client, b"1", b"2", b"3")
        for turns in range(4):
            running = asyncio.ensure_future(work.settler.run())
            if turns < len(entries):
                work.settler.settle(entries[turns], Release())
            for _ in range(turns):
                await asyncio.sleep(0)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

        running = asyncio.ensure_future(work.settler.run())
        await work.flushed()

        assert len(work.held) == 0
        assert await left(client, name, GROUP) == Left(names=HERE, undelivered_lane=3)
        running.cancel()
        work.settler.close()


async def test_an_error_of_a_move_that_does_not_pass_is_told(
    url: str, name: str, client: Redis
) -> None:
    """Nobody waits for it any more: the entry stays pending, and others take it over."""
    async with settling(url, name) as work:
        [entry] = await work.hold(client, b"1")
        lane = work.stream.keys.lane(GROUP)
        await client.set(lane, "something else")

        work.settler.settle(entry, Release())

        await eventually(lambda: bool(work.fatal))
        assert "WRONGTYPE" in str(work.fatal[0])
        await work.flushed()
        assert len(work.held) == 1
        await client.delete(lane)


async def test_an_error_that_does_not_pass_is_told(
    url: str, name: str, client: Redis
) -> None:
    """Somebody put something else in the stream's place."""
    async with settling(url, name) as work:
        [entry] = await work.hold(client, b"1")
        await client.set(name, "something else")

        work.settler.ack(entry)

        await eventually(lambda: bool(work.fatal))
        assert "WRONGTYPE" in str(work.fatal[0])
        await work.flushed()
        assert len(work.held) == 1
        await client.delete(name)


async def test_it_knows_what_it_is_settling(url: str, name: str, client: Redis) -> None:
    """From the outcome to the answer, on its way or waiting, told apart by source."""
    async with settling(url, name) as work:
        handled, later, failed, last = await work.hold(client, b"1", b"2", b"3", b"4")
        known = work.settler.is_settling

        work.settler.ack(handled)
        assert known(handled.id, False)
        assert not known(handled.id, True)
        await asyncio.sleep(0)  # sent
        work.settler.ack(later)
        work.settler.settle(failed, Release())
        assert [known(one.id, False) for one in (handled, later, failed, last)] == [
            True,
            True,
            True,
            False,
        ]
        assert not known(failed.id, True)

        await work.flushed()
        assert not any(known(one.id, False) for one in (handled, later, failed))


async def test_a_stream_that_is_gone_needs_no_settling(
    url: str, name: str, client: Redis
) -> None:
    """After a flush, or DEL by hand, there is nothing left to acknowledge or to move."""
    async with settling(url, name) as work:
        acked, retried = await work.hold(client, b"1", b"2")
        await client.delete(name)

        work.settler.ack(acked)
        work.settler.settle(retried, Retry(0.0, "busy"))
        await work.flushed()

        assert len(work.held) == 0
        assert not work.fatal


async def test_nothing_settled_is_nothing_to_wait_for(
    url: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A consumer that did nothing stops at once."""
    with caplog.at_level(logging.WARNING):
        async with settling(url, name) as work:
            await work.flushed()

    assert not caplog.records
