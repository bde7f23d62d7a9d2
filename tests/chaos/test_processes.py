"""Processes that are killed, stopped, or told to go: others take over, nobody is punished."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import statistics
import time
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis

from aioredismq import RedisMessageQueue
from aioredismq import _member as room_of_member
from aioredismq._member import Member
from tests.looking import dead_letters, left, opened_stream
from tests.programs import Program
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aioredismq.testing import RedisServer
    from tests.support import Client, Deployment

pytestmark = [pytest.mark.one_loop, pytest.mark.timeout(120)]

# Renewed every second, so that it outlives two in which a busy machine does not run its process.
LEASE = 3.0


class Crew:
    """Worker processes of one queue, and what all of them have said so far."""

    def __init__(self, stack: ExitStack, url: str, name: str) -> None:
        """Whatever is started ends with the stack."""
        self._stack = stack
        self.url = url
        self._name = name
        self.workers: list[Program] = []

    async def start(self, **settings: Any) -> Program:
        """Start a worker, and wait until it is about to consume.

        Args:
            settings: Of its handler; `works_as`: what it does with each message, instead of what
                that says; `gate`: a file without which it ends none.
        """
        settings = {"visibility_timeout": LEASE, "concurrency": 4, **settings}
        arguments = (self.url, self._name, json.dumps(settings))
        program = Program("-m", "tests.chaos.worker", *arguments, env={})
        worker = self._stack.enter_context(program)
        self.workers.append(worker)
        await eventually(lambda: bool(worker.lines))
        return worker

    async def keep_working(self, count: int, **settings: Any) -> None:
        """Replace each worker that has died, until cancelled."""
        while True:
            living = [one for one in self.workers if one.process.poll() is None]
            for _ in range(count - len(living)):
                await self.start(**settings)
            await asyncio.sleep(0.05)

    def said(self, what: str, *workers: Program) -> Counter[int]:
        """Count by message how often something was said, by all, or by these workers."""
        return Counter(
            int(line.split()[1])
            for worker in workers or self.workers
            for line in worker.lines
            if line.startswith(f"{what} ")
        )

    def attempts(self, *workers: Program) -> set[str]:
        """List which attempts there were."""
        return {
            line.split()[2]
            for worker in workers or self.workers
            for line in worker.lines
            if line.startswith("begin ")
        }


@pytest.fixture
def crew(deployment: Deployment, name: str) -> Iterator[Crew]:
    """Workers of a fresh queue."""
    with ExitStack() as stack:
        yield Crew(stack, deployment.url, name)


async def is_settled(client: Client, name: str) -> bool:
    """Say whether nothing is stored, pending or waiting any more, whoever is registered."""
    now = await left(client, name)
    return (now.stream, now.undelivered_lane, now.pending_lane, now.delayed) == (0,) * 4


# Killed.


@pytest.mark.parametrize(
    "place", ["stream", pytest.param("lane", marks=pytest.mark.long)]
)
async def test_what_a_killed_process_held_is_taken_over(
    name: str, look: Client, crew: Crew, place: str
) -> None:
    """Within the visibility timeout and a few seconds, by one that was idle; nobody produces."""
    fails = int(place == "lane")
    victim = await crew.start(works_as="hang")
    async with RedisMessageQueue(name, crew.url) as queue:
        await queue.produce_many([{"number": n, "fails": fails} for n in range(4)])
        await eventually(lambda: crew.said("begin").total() == 4 * (fails + 1))
        pending = await left(look, name)
        assert (pending.pending, pending.pending_lane) == (4 - 4 * fails, 4 * fails)
        survivor = await crew.start()

        victim.process.kill()
        killed = time.monotonic()
        await eventually(lambda: crew.said("end").total() == 4)

        # A renewal may have been due just then, and late.
        assert time.monotonic() - killed > LEASE / 6
        await eventually(lambda: is_settled(look, name))
        assert set(crew.said("end", survivor).values()) == {1}
        assert crew.attempts(survivor) == {str(fails + 1)}  # a delivery is no attempt
        assert await queue.dead_letters.count() == 0


async def test_a_process_killed_by_its_message_takes_nothing_with_it(
    name: str, look: Client, crew: Crew
) -> None:
    """The killer: once beside others, three times marked, then dead. All others are handled.

    One of them runs for longer than the time between two kills, and is not charged either.
    """
    working = asyncio.ensure_future(
        crew.keep_working(2, concurrency=8, visibility_timeout=1)
    )
    try:
        async with RedisMessageQueue(name, crew.url) as queue:
            await queue.produce({"number": 0, "seconds": 3})
            await queue.produce_many(
                [{"number": n, "seconds": 0.05} for n in range(1, 9)]
            )
            await queue.produce({"number": 99, "do": "kill"})
            await queue.produce_many([{"number": n} for n in range(9, 20)])

            await eventually(lambda: has_letters(look, name), 80)
            await eventually(lambda: set(crew.said("end")) == set(range(20)))
            await eventually(lambda: is_settled(look, name))
    finally:
        working.cancel()

    [letter] = await dead_letters(look, name)
    assert json.loads(letter[b"body"])["number"] == 99
    assert (letter[b"mq-reason"], letter[b"mq-crashes"]) == (b"crashed", b"3")
    assert crew.said("begin")[99] == 4
    dead = [one for one in crew.workers if one.process.poll() == -signal.SIGKILL]
    assert len(dead) == 4
    # Beside a kill they may have ended, and not been acknowledged yet; never more often.
    assert max(crew.said("begin").values()) <= 5


async def has_letters(look: Client, name: str) -> bool:
    """Say whether something has died."""
    return bool(await dead_letters(look, name))


@pytest.mark.long
@pytest.mark.parametrize("deed", ["exit", "kill"])
async def test_however_a_message_ends_its_process_it_runs_four_times(
    name: str, look: Client, crew: Crew, deed: str
) -> None:
    """`os._exit` and the system's killer: no handler, no `finally` comes in between."""
    working = asyncio.ensure_future(crew.keep_working(1, visibility_timeout=0.5))
    try:
        async with RedisMessageQueue(name, crew.url) as queue:
            await queue.produce({"number": 1, "do": deed})
            await eventually(lambda: has_letters(look, name), 60)
    finally:
        working.cancel()

    [letter] = await dead_letters(look, name)
    assert letter[b"mq-reason"] == b"crashed"
    assert letter[b"mq-attempt"] == b"0"
    assert crew.said("begin") == {1: 4}


# Slow, stopped, blocked.


async def test_a_slow_handler_keeps_its_message(
    name: str, look: Client, crew: Crew
) -> None:
    """Two visibility timeouts long, with idle processes that would take it over."""
    for _ in range(2):
        await crew.start()
    async with RedisMessageQueue(name, crew.url) as queue:
        await queue.produce_many(
            [{"number": n, "seconds": 2 * LEASE, "fails": n % 2} for n in range(4)]
        )

        await eventually(lambda: crew.said("end").total() == 4)
        await eventually(lambda: is_settled(look, name))

    assert crew.said("begin") == {0: 1, 1: 2, 2: 1, 3: 2}
    assert not any("is lost" in line for one in crew.workers for line in one.errors)


@pytest.mark.parametrize(
    "deed",
    [
        pytest.param("end", marks=pytest.mark.long),
        pytest.param("retry", marks=pytest.mark.long),
        "reject",
    ],
)
async def test_a_process_that_wakes_up_late_may_only_acknowledge(
    name: str, look: Client, crew: Crew, deed: str, tmp_path: Path
) -> None:
    """It was stopped, its message was taken over and still runs there, and it goes on.

    Its success counts: nobody runs the message again although the second process is killed. Its
    retry and its dead letter change nothing: the second process settles the message.
    """
    first_may_end, second_may_end = tmp_path / "first", tmp_path / "second"
    stopped = await crew.start(concurrency=1, works_as=deed, gate=str(first_may_end))
    async with RedisMessageQueue(name, crew.url) as queue:
        await queue.produce({"number": 1})
        await eventually(lambda: crew.said("begin").total() == 1)
        stopped.send(signal.SIGSTOP)
        works_as = {"works_as": "hang"} if deed == "end" else {}
        second = await crew.start(**works_as, gate=str(second_may_end))
        await queue.produce({"number": 2})
        await eventually(lambda: crew.said("begin", second)[1] == 1)

        # It ends in the moment it wakes up, and has not been told what became of its lease.
        first_may_end.touch()
        stopped.send(signal.SIGCONT)

        await eventually(lambda: "event loop was blocked" in "".join(stopped.errors))
        if deed == "end":
            await eventually(lambda: crew.said("end", stopped) == {1: 1})
            await eventually(lambda: is_gone(look, name, 1))
            second.process.kill()
            await crew.start()
            await eventually(lambda: 2 in crew.said("end"))
        else:
            await eventually(lambda: "failed in attempt 1" in "".join(stopped.errors))
            second_may_end.touch()
        await eventually(lambda: is_settled(look, name))

        assert crew.said("begin")[1] == 2
        assert await queue.dead_letters.count() == 0


async def test_a_process_that_wakes_up_late_starts_nothing_others_have(
    name: str, look: Client, crew: Crew
) -> None:
    """It had read ahead, and others have handled that meanwhile: it begins none of it."""
    stopped = await crew.start()
    async with RedisMessageQueue(name, crew.url) as queue:
        # Enough to be busy with for some seconds, however late it is stopped.
        await queue.produce_many([{"number": n, "seconds": 0.01} for n in range(4000)])
        await eventually(lambda: crew.said("end").total() > 100)
        stopped.send(signal.SIGSTOP)
        held = (await left(look, name)).pending
        second = await crew.start(concurrency=64)
        await eventually(lambda: is_settled(look, name), 60)
        begun = crew.said("begin", stopped)

        stopped.send(signal.SIGCONT)

        await eventually(lambda: "event loop was blocked" in "".join(stopped.errors))
        await queue.produce_many([{"number": n} for n in range(4000, 4040)])
        await eventually(lambda: len(crew.said("end")) == 4040)
        await eventually(lambda: is_settled(look, name))

    assert held > 8
    assert max(crew.said("begin", stopped).values()) == 1
    others = crew.said("begin", second)
    assert not [
        n for n in crew.said("begin", stopped) if n not in begun and n in others
    ]


async def test_a_process_that_gets_its_message_back_does_not_run_it_twice(
    name: str, look: Client, crew: Crew, tmp_path: Path
) -> None:
    """Whoever had taken it over was killed; the first handler still runs, and settles it."""
    may_end = tmp_path / "may end"
    first = await crew.start(gate=str(may_end))
    async with RedisMessageQueue(name, crew.url) as queue:
        await queue.produce({"number": 1})
        await eventually(lambda: crew.said("begin").total() == 1)
        first.send(signal.SIGSTOP)
        second = await crew.start(works_as="hang")
        await eventually(lambda: crew.said("begin", second)[1] == 1)
        first.send(signal.SIGCONT)
        await eventually(lambda: "is lost" in "".join(first.errors))

        second.process.kill()
        await eventually(lambda: "took over entry" in "".join(first.errors))
        may_end.touch()
        await eventually(lambda: crew.said("end", first) == {1: 1})
        await eventually(lambda: is_settled(look, name))

        assert await queue.dead_letters.count() == 0
    assert crew.said("begin") == {1: 2}


async def is_gone(look: Client, name: str, number: int) -> bool:
    """Say whether a message is stored in the stream no more."""
    entries = await look.xrange(name)
    return all(json.loads(fields[b"body"])["number"] != number for _, fields in entries)


async def test_a_lost_lease_cancels_a_handler_that_wants_it(
    name: str, look: Client, crew: Crew
) -> None:
    """Its message is another's now: it stops, and changes nothing."""
    stopped = await crew.start(works_as="hang", on_lost_lease="cancel", concurrency=1)
    async with RedisMessageQueue(name, crew.url) as queue:
        await queue.produce({"number": 1})
        await eventually(lambda: crew.said("begin").total() == 1)
        stopped.send(signal.SIGSTOP)
        second = await crew.start()
        await eventually(lambda: crew.said("end", second) == {1: 1})

        stopped.send(signal.SIGCONT)

        await eventually(lambda: crew.said("cancelled", stopped) == {1: 1})
        await eventually(lambda: is_settled(look, name))
        await queue.produce({"number": 2})
        await eventually(lambda: crew.said("begin")[2] == 1)
        assert crew.said("begin")[1] == 2
        assert any("is lost" in line for line in stopped.errors)


async def test_a_blocked_event_loop_is_warned_about_in_its_log(
    name: str, crew: Crew
) -> None:
    """With its length; a message that renews its lease before has that long."""
    worker = await crew.start()
    async with RedisMessageQueue(name, crew.url) as queue:
        await queue.produce({"number": 1, "do": "extend", "seconds": 0.2})
        await eventually(lambda: crew.said("end") == {1: 1})
        await queue.produce({"number": 2, "do": "block", "seconds": 1.7})

        await eventually(lambda: "blocked for" in "".join(worker.errors))

    # Of a moment before, and of more when the machine was busy.
    [length] = re.findall(r"blocked for ([\d.]+) s", "".join(worker.errors))[-1:]
    assert float(length) > 1
    assert "extended 1 True True" in worker.lines


# Told to go.


async def test_a_process_told_to_go_leaves_nothing_behind(
    name: str, look: Client, crew: Crew
) -> None:
    """Under load: it ends with 0 in time, and the other has what it had not started, at once."""
    # Quick at first, so that it reads ahead; then slow.
    quick = [{"number": n} for n in range(1000, 1500)]
    slow = [{"number": n, "seconds": 0.3} for n in range(80)]
    leaving = await crew.start(shutdown_timeout=30)
    async with RedisMessageQueue(name, crew.url) as queue:
        await queue.produce_many([*quick, *slow])
        await eventually(lambda: any(n < 80 for n in crew.said("begin")))

        leaving.send(signal.SIGTERM)
        told = time.monotonic()
        code = await asyncio.to_thread(leaving.end)

        assert (code, time.monotonic() - told < 20) == (0, True)
        now = await left(look, name)
        assert (now.pending, now.pending_lane, now.names) == (0, 0, ())
        begun = crew.said("begin", leaving)
        assert crew.said("end", leaving) == begun  # each that had begun has ended
        other = await crew.start(concurrency=40)
        await eventually(lambda: len(crew.said("begin")) == 580)
        await eventually(lambda: is_settled(look, name))
        await eventually(lambda: crew.said("end") == crew.said("begin"))
    assert crew.said("end").total() == 580  # once each
    assert crew.attempts(other) == {"1"}


async def test_what_does_not_end_in_time_is_cut_off_and_handed_back(
    name: str, look: Client, crew: Crew
) -> None:
    """No attempt is counted for it."""
    leaving = await crew.start(works_as="hang", shutdown_timeout=0.3)
    async with RedisMessageQueue(name, crew.url) as queue:
        await queue.produce_many([{"number": n} for n in range(6)])
        await eventually(lambda: crew.said("begin").total() == 4)

        leaving.send(signal.SIGTERM)
        code = await asyncio.to_thread(leaving.end)

        assert code == 0
        assert crew.said("cancelled").total() == 4
        assert (await left(look, name)).names == ()
        other = await crew.start()
        await eventually(lambda: crew.said("end", other).total() == 6)
        await eventually(lambda: is_settled(look, name))
        assert crew.attempts(other) == {"1"}


# Many.


@pytest.mark.long
async def test_ten_processes_share_a_group_and_outlive_three_kills(
    name: str, look: Client, crew: Crew
) -> None:
    """Each message is handled; twice only what the killed ones had under way."""
    await asyncio.gather(*[crew.start() for _ in range(10)])
    async with RedisMessageQueue(name, crew.url) as queue:
        sending = asyncio.ensure_future(
            queue.produce_many([{"number": n, "seconds": 0.02} for n in range(1500)])
        )
        for victim in crew.workers[:3]:
            await eventually(
                lambda victim=victim: crew.said("end", victim).total() > 20
            )
            victim.process.kill()
        await sending
        await eventually(lambda: len(crew.said("end")) == 1500)
        await eventually(lambda: is_settled(look, name))
        assert await queue.dead_letters.count() == 0

    assert crew.said("end").total() - 1500 <= 3 * 4
    living = crew.workers[3:]
    assert all(crew.said("end", one).total() > 20 for one in living)
    for one in living:
        one.send(signal.SIGTERM)
    codes = [await asyncio.to_thread(one.end) for one in living]
    assert codes == [0] * 7
    assert len((await left(look, name)).names) in range(3, 7)  # of the killed ones


@pytest.mark.parametrize(
    "count", [100_000, pytest.param(1_000_000, marks=pytest.mark.long)]
)
async def test_a_million_pending_entries_do_not_pin_the_server(
    own_server: RedisServer, name: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look takes a millisecond or two of its time, wherever the abandoned ones are."""
    fill = """
        for _ = 1, 10000 do redis.call('XADD', KEYS[1], '*', 'body', '1') end
        redis.call('XREADGROUP', 'GROUP', 'g', 'foreign', 'COUNT', 10000, 'STREAMS', KEYS[1], '>')
    """
    async with (
        Redis.from_url(own_server.url, protocol=2) as client,
        opened_stream(own_server.url, name, "g") as stream,
    ):
        for _ in range(count // 10_000):
            await client.eval(fill, 1, name)
        about = await client.xpending(name, "g")
        assert about["pending"] == count
        await client.xclaim(
            name, "g", "gone", 0, [about["max"]], idle=60_000, justid=True
        )
        member = Member(stream, "g", "one")
        monkeypatch.setattr(room_of_member, "_PACE", 0.0)
        await client.config_set("slowlog-max-len", count)
        await client.config_set("slowlog-log-slower-than", 0)
        found, looks = None, 0
        while found is None:
            looks += 1
            answer = await member.recover(visibility_timeout=30, take_until=1e11)
            found = answer.entry

        assert found.id == about["max"]
        assert looks == count // 500
        calls = await client.slowlog_get(count)
        took = [one["duration"] for one in calls if b"EVALSHA" in one["command"]]
        assert len(took) == looks
        # Of each alone: one in which the machine did not run the server says nothing.
        assert statistics.median(took) < 2000  # microseconds
        await client.flushall()
