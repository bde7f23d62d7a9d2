"""A queue compared with a model of it: random sequences of whatever can happen to a message."""

from __future__ import annotations

import asyncio
import itertools
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from aioredismq import ExponentialBackoff, RedisMessageQueue
from aioredismq import _history as history
from aioredismq._held import Held
from aioredismq._member import Member
from aioredismq._message import Entry
from aioredismq._outcome import Ack, DeadLetter, Failure, Release, Retry, decide
from aioredismq._settler import Settler

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from aioredismq._outcome import Outcome

pytestmark = pytest.mark.timeout(600)

MAX_ATTEMPTS, MAX_CRASHES = 3, 3
NAMES = ("ann", "bob", "cid")
AT_ONCE = ExponentialBackoff(initial=0)
FAR_AWAY = 1e11  # server time

Place: TypeAlias = Literal[
    "stream", "later", "lane", "held", "abandoned", "dead", "gone"
]


@dataclass(slots=True)
class Known:
    """What the model knows of a message."""

    place: Place
    attempts: int = 0
    crashes: int = 0
    marked: bool = False
    holder: str = ""
    in_lane: bool = False
    reason: str = ""


@dataclass(slots=True)
class Worker:
    """A consumer of the group, by hand: nothing happens by itself."""

    member: Member
    settler: Settler
    sending: asyncio.Task[None]
    entries: dict[str, Entry] = field(default_factory=dict)


class Messages(RuleBasedStateMachine):
    """Produce, read, fail, crash, reclaim, redrive, delay: each message is in one known place."""

    url = ""

    def __init__(self) -> None:
        """Open a fresh queue."""
        super().__init__()
        self.runner = asyncio.Runner()
        self.known: dict[str, Known] = {}
        self.workers: dict[str, Worker] = {}
        self.incarnations = itertools.count()
        self.do(self._open())

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Let something asynchronous happen."""
        return self.runner.run(work)

    async def _open(self) -> None:
        name = f"model-{secrets.token_hex(6)}"
        self.client = Redis.from_url(self.url, protocol=2)
        self.queue = RedisMessageQueue(name, self.url)
        await self.queue.initialize()
        self.stream = self.queue._require_stream()
        self.keys = self.stream.keys
        self.group = f"{name}_group"

    def teardown(self) -> None:
        """Leave nothing on the server."""
        self.do(self._close())
        self.runner.close()

    async def _close(self) -> None:
        for worker in self.workers.values():
            self._dismiss(worker)
        await self.queue.delete()
        await self.queue.close()
        await self.client.delete(self.keys.gone)
        await self.client.aclose()

    @staticmethod
    def _dismiss(worker: Worker) -> None:
        worker.sending.cancel()
        worker.settler.close()

    def _those(self, place: Place, holder: str = "") -> list[str]:
        return [
            message
            for message, known in self.known.items()
            if known.place == place and holder in ("", known.holder)
        ]

    @initialize()
    def hire(self) -> None:
        """Let everybody start."""
        for name in NAMES:
            self.do(self._hire(name))

    async def _hire(self, name: str) -> None:
        member = Member(self.stream, self.group, f"{name}-{next(self.incarnations)}")
        settler = Settler(
            member,
            held=Held(),
            failover=True,
            keeps_failures=False,
            failed=lambda entry, failure: None,
            fatal=pytest.fail,
        )
        sending = asyncio.ensure_future(settler.run())
        self.workers[name] = Worker(member, settler, sending)

    # -- what can happen -----------------------------------------------------------------------

    @rule(count=st.integers(1, 4))
    def produce(self, count: int) -> None:
        """Send some."""
        for message in self.do(self.queue.produce_many(["x"] * count)):
            self.known[message] = Known("stream")

    @rule()
    def produce_for_later(self) -> None:
        """Send one that nobody sees before its time."""
        message = self.do(self.queue.produce("x", delay=3600))
        self.known[message] = Known("later")

    @precondition(lambda self: self._those("later"))
    @rule()
    def time_passes(self) -> None:
        """Let all that waits be due; whoever looks next moves it."""
        self.do(self._let_all_be_due())
        self.do(self._take("ann", 1000))

    async def _let_all_be_due(self) -> None:
        for key in (self.keys.delayed, self.keys.due(self.group)):
            for member in await self.client.zrange(key, 0, -1):
                await self.client.zadd(key, {member: 1})
        for message in self._those("later"):
            known = self.known[message]
            # A first attempt comes through the stream, for every group; a retry by the lane.
            known.place = "lane" if known.attempts else "stream"

    @rule(who=st.sampled_from(NAMES), count=st.integers(1, 3))
    def take(self, who: str, count: int) -> None:
        """Take what came back, as far as there is room: the lane goes before the stream."""
        self.do(self._take(who, count))

    async def _take(self, who: str, count: int) -> None:
        worker = self.workers[who]
        waiting = self._those("lane")
        taken = (await worker.member.take(count)).entries
        assert len(taken) == min(count, len(waiting))
        self._hold(who, taken, "lane")

    @rule(who=st.sampled_from(NAMES), count=st.integers(1, 3))
    def read(self, who: str, count: int) -> None:
        """Read new ones."""
        self.do(self._read(who, count))

    async def _read(self, who: str, count: int) -> None:
        member = self.workers[who].member
        waiting = self._those("stream")
        reply = await self.stream.link.call(
            "XREADGROUP", "GROUP", self.group, member.consumer, "COUNT", count,
            "STREAMS", self.keys.stream, ">",
        )  # fmt: skip
        entries = member.read_entries(reply)
        assert len(entries) == min(count, len(waiting))
        self._hold(who, entries, "stream")

    def _hold(self, who: str, entries: list[Entry], place: Place) -> None:
        for entry in entries:
            message = history.message_id(entry)
            known = self.known[message]
            assert (known.place, known.attempts) == (
                place,
                history.attempts_made(entry),
            )
            known.place, known.holder, known.in_lane = "held", who, entry.in_lane
            known.marked = False
            self.workers[who].entries[message] = entry

    @precondition(lambda self: self._those("held"))
    @rule(
        data=st.data(),
        how=st.sampled_from(["succeed", "fail", "reject", "later", "return"]),
    )
    def settle(self, data: st.DataObject, how: str) -> None:
        """Let a handler end, or hand its message back."""
        message = data.draw(st.sampled_from(self._those("held")))
        known = self.known[message]
        worker = self.workers[known.holder]
        entry = worker.entries.pop(message)
        outcome = self._outcome(how, known)
        self.do(self._say(worker, entry, outcome))
        self._expect(known, outcome)

    @staticmethod
    def _outcome(how: str, known: Known) -> Outcome:
        match how:
            case "succeed":
                return Ack()
            case "return":
                return Release()
            case "reject":
                return DeadLetter(Failure("rejected", "no"))
            case _:
                error = LookupError("gone")
                policy = ExponentialBackoff(initial=3600, maximum=3600, jitter=False)
                return decide(
                    error,
                    known.attempts + 1,
                    policy if how == "later" else AT_ONCE,
                    MAX_ATTEMPTS,
                )

    @staticmethod
    def _expect(known: Known, outcome: Outcome) -> None:
        match outcome:
            case Ack():
                known.place = "gone"
            case Release():
                known.place = "lane"
            case Retry(after):
                known.place = "later" if after else "lane"
                known.attempts += 1
            case DeadLetter(failure):
                known.place, known.reason = "dead", failure.reason
                known.attempts += failure.reason not in ("crashed", "expired")

    @staticmethod
    async def _say(worker: Worker, entry: Entry, outcome: Outcome) -> None:
        worker.settler.settle(entry, outcome)
        await worker.settler.flushed()

    @precondition(lambda self: self._those("held"))
    @rule(who=st.sampled_from(NAMES))
    def crash(self, who: str) -> None:
        """Let a process vanish, and another begin in its place; its leases run out."""
        self.do(self._crash(who))

    async def _crash(self, who: str) -> None:
        worker = self.workers[who]
        self._dismiss(worker)
        for message, entry in worker.entries.items():
            key = self.keys.lane(self.group) if entry.in_lane else self.keys.stream
            await self.client.xclaim(
                key, self.group, worker.member.consumer, 0, [entry.id],
                idle=60_000, justid=True,
            )  # fmt: skip
            self.known[message].place = "abandoned"
        await self._hire(who)

    @precondition(lambda self: self._those("abandoned"))
    @rule(who=st.sampled_from(NAMES))
    def reclaim(self, who: str) -> None:
        """Take one over that was abandoned: marked; what was marked has cost a process."""
        self.do(self._reclaim(who))

    async def _reclaim(self, who: str) -> None:
        worker = self.workers[who]
        entry = None
        while entry is None:  # the cursor may have to go round once
            found = await worker.member.recover(
                visibility_timeout=30, take_until=FAR_AWAY
            )
            entry = found.entry
        message = history.message_id(entry)
        known = self.known[message]
        assert known.place == "abandoned"
        known.crashes += known.marked
        assert entry.crashes == known.crashes
        if entry.crashes >= MAX_CRASHES:
            outcome = DeadLetter(Failure("crashed", "too often"))
            await self._say(worker, entry, outcome)
            self._expect(known, outcome)
            return
        known.place, known.holder, known.marked = "held", who, True
        worker.entries[message] = entry

    @precondition(lambda self: self._those("abandoned"))
    @rule(
        data=st.data(),
        how=st.sampled_from(["succeed", "fail", "reject", "later", "return"]),
    )
    def wake_up_late(self, data: st.DataObject, how: str) -> None:
        """Let a stopped process settle what was taken over meanwhile: only success counts."""
        message = data.draw(st.sampled_from(self._those("abandoned")))
        entry = self.do(self._stolen(message))
        known = self.known[message]
        outcome = self._outcome(how, known)
        self.do(self._say(self.workers["ann"], entry, outcome))
        if isinstance(outcome, Ack):
            known.place = "gone"

    async def _stolen(self, message: str) -> Entry:
        """Fetch an entry that somebody who is not its holder knows."""
        known = self.known[message]
        key = self.keys.lane(self.group) if known.in_lane else self.keys.stream
        for row in await self.stream.link.call("XRANGE", key, "-", "+"):
            entry = Entry(row[0], row[1], in_lane=known.in_lane)
            if history.message_id(entry) == message:
                return entry
        raise AssertionError(f"{message} is nowhere")

    @precondition(lambda self: self._those("dead"))
    @rule(keeps=st.booleans())
    def redrive(self, keeps: bool) -> None:
        """Bring everything back, with its attempts or without."""
        dead = self._those("dead")
        done = self.do(
            self.queue.dead_letters.redrive(all=True, reset_attempts=not keeps)
        )
        assert (done.count, done.missing, done.without_group) == (len(dead), (), ())
        for message in dead:
            known = self.known[message]
            known.place, known.marked = "lane", False
            if not keeps:
                known.attempts = known.crashes = 0

    # -- what must hold ------------------------------------------------------------------------

    @invariant()
    def each_is_where_it_should_be(self) -> None:
        """In Redis every message is in exactly the place the model says, as the model says."""
        found = self.do(self._look())
        expected = {
            message: known.place
            for message, known in self.known.items()
            if known.place != "gone"
        }
        assert found == expected

    async def _look(self) -> dict[str, Place]:
        found = [
            *await self._look_into(in_lane=False),
            *await self._look_into(in_lane=True),
            *await self._look_at_what_waits(),
            *await self._look_at_the_dead(),
        ]
        assert len(found) == len(dict(found)), f"somewhere twice: {found}"
        return dict(found)

    async def _look_into(self, *, in_lane: bool) -> list[tuple[str, Place]]:
        key = self.keys.lane(self.group) if in_lane else self.keys.stream
        pending = set()
        with suppress(ResponseError):  # nobody has looked into the lane yet
            rows = await self.client.xpending_range(key, self.group, "-", "+", 1000)
            pending = {row["message_id"] for row in rows}
        found: list[tuple[str, Place]] = []
        for row in await self.stream.link.call("XRANGE", key, "-", "+"):
            entry = Entry(row[0], row[1], in_lane=in_lane)
            message = history.message_id(entry)
            if entry.id not in pending:
                found.append((message, "lane" if in_lane else "stream"))
            elif self.known[message].place == "abandoned":
                found.append((message, "abandoned"))
            else:
                found.append((message, "held"))
        return found

    async def _look_at_what_waits(self) -> list[tuple[str, Place]]:
        members = await self.client.zrange(self.keys.delayed, 0, -1)
        assert await self.client.hlen(self.keys.delayed_fields) == len(members)
        waiting = [member.decode() for member in members]
        packed = await self.client.hvals(self.keys.later(self.group))
        assert await self.client.zcard(self.keys.due(self.group)) == len(packed)
        for one in packed:
            waiting += [
                message
                for message in self._those("later")
                if re.search(re.escape(message.encode()) + rb"(?!\d)", one)
            ]
        return [(message, "later") for message in waiting]

    async def _look_at_the_dead(self) -> list[tuple[str, Place]]:
        letters = await self.queue.dead_letters.list(limit=None)
        for letter in letters:
            known = self.known[letter.message_id]
            assert (letter.reason, letter.attempts, letter.crashes) == (
                known.reason,
                known.attempts,
                known.crashes,
            )
        return [(letter.message_id, "dead") for letter in letters]


@pytest.mark.parametrize("examples", [25, pytest.param(500, marks=pytest.mark.long)])
def test_a_queue_does_what_its_model_does(url: str, examples: int) -> None:
    """No message is ever lost, doubled, or charged with what it has not done."""
    Messages.url = url
    run_state_machine_as_test(
        Messages,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
