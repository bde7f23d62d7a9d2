from __future__ import annotations

import asyncio
import gc
import logging
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from aioredismq import (
    BacklogError,
    Connection,
    ConnectionLostError,
    MessageQueueError,
    NotInitializedError,
    ProducerConfig,
    PublishUncertainError,
    ServerFullError,
    ServerNotReadyError,
    WrongKeyTypeError,
)
from aioredismq import _batcher as room
from aioredismq import _scripts as scripts
from aioredismq._wire import pack
from aioredismq.testing import FaultyLine
from tests.sending import (
    memories,
    open_batcher,
    open_stream,
    plain,
    remembered,
    script_calls,
    stored,
)
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from aioredismq._batcher import Batcher
    from aioredismq.testing import RedisServer


@pytest.fixture
async def batcher(url: str, name: str) -> AsyncIterator[Batcher]:
    """A batcher as it is by default."""
    async with open_batcher(url, name) as opened:
        yield opened


@pytest.fixture
async def line(url: str) -> AsyncIterator[FaultyLine]:
    """A line to the server most tests share."""
    async with FaultyLine(url) as opened:
        yield opened


@pytest.fixture
async def own_client(own_server: RedisServer) -> AsyncIterator[Redis]:
    """A client of this test's own server."""
    async with Redis.from_url(own_server.url, protocol=2) as opened:
        yield opened


def send(batcher: Batcher, *bodies: object) -> list[asyncio.Task[str]]:
    """Send each in a task of its own, all in one turn of the loop."""
    return [asyncio.create_task(batcher.append(*plain(body))) for body in bodies]


async def send_all(batcher: Batcher, *bodies: object) -> list[str]:
    """Send several at once and give their ids, in order."""
    return await asyncio.gather(*send(batcher, *bodies))


async def errors_of(tasks: Sequence[asyncio.Task[str]]) -> list[BaseException]:
    """Wait for tasks that all fail."""
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    return [error for error in ended if isinstance(error, BaseException)]


async def doubts_of(
    tasks: Sequence[asyncio.Task[str]],
) -> list[PublishUncertainError]:
    """Wait for tasks that all fail for want of an answer."""
    ended = await errors_of(tasks)
    doubts = [error for error in ended if isinstance(error, PublishUncertainError)]
    assert len(doubts) == len(tasks)
    return doubts


# Gathering.


async def test_sends_of_one_turn_share_a_call(
    batcher: Batcher, name: str, client: Redis
) -> None:
    """The first goes at once, as it may be alone; the rest of its turn goes behind it."""
    await send_all(batcher, "teaches the script")
    before = await script_calls(client)

    ids = await send_all(batcher, *range(60))

    assert await script_calls(client) - before == 2
    assert list((await stored(client, name)).items())[1:] == [
        (message_id, str(body)) for body, message_id in enumerate(ids)
    ]


async def test_a_lone_send_waits_for_nobody(url: str, name: str) -> None:
    """It is on the wire before anything else runs: no timer, not even a turn of the loop."""
    async with open_stream(url, name) as stream:
        batcher = room.Batcher(stream.link, stream.keys, ProducerConfig())
        sending = batcher.append(*plain("alone"))

        future = sending.send(None)
        wire = stream.link._wire
        assert wire is not None
        under_way = wire.outstanding

        await batcher.close()
        sending.close()
    assert under_way == 1
    assert future is not None


async def test_sends_one_after_the_other_are_calls_of_their_own(
    batcher: Batcher, client: Redis
) -> None:
    """Each is stored before the next one is sent."""
    await send_all(batcher, "teaches the script")
    before = await script_calls(client)

    ids = [await batcher.append(*plain(body)) for body in range(10)]

    assert await script_calls(client) - before == 10
    assert ids == sorted(ids, key=by_time)


def by_time(message_id: str) -> tuple[int, int]:
    """Order ids as the stream does."""
    milliseconds, _, number = message_id.partition("-")
    return int(milliseconds), int(number)


async def test_a_batch_has_at_most_max_batch_messages(
    url: str, name: str, client: Redis
) -> None:
    """Larger ones are slower: the next could not be on its way while the answer comes back."""
    async with open_batcher(url, name, max_batch=8) as batcher:
        await send_all(batcher, *range(50))

        sizes = [len(ids) for ids in (await remembered(client, name)).values()]

    assert sum(sizes) == 50
    assert max(sizes) == 8


async def test_a_batch_has_at_most_max_batch_bytes(
    url: str, name: str, client: Redis
) -> None:
    """However many messages that is."""
    async with open_batcher(url, name, max_batch_bytes=100) as batcher:
        await send_all(batcher, *("x" * (10 + at) for at in range(40)))

        written = await stored(client, name)
        batches = (await remembered(client, name)).values()

    assert all(sum(len(written[each]) for each in ids) <= 100 for ids in batches)
    assert len(batches) < 20


async def test_an_oversized_message_travels_alone(
    url: str, name: str, client: Redis
) -> None:
    """It neither joins those before it nor lets others join it."""
    big = "x" * 101
    async with open_batcher(url, name, max_batch_bytes=100) as batcher:
        await send_all(batcher, "first", "before", big, "behind")

        written = await stored(client, name)
        batches = (await remembered(client, name)).values()

    assert [[written[each] for each in ids] for ids in batches] == [
        ["first"],
        ["before"],
        [big],
        ["behind"],
    ]


async def test_what_is_sent_first_is_stored_first(
    batcher: Batcher, name: str, client: Redis
) -> None:
    """Over many batches on their way at once; each gets its own id."""
    ids = await send_all(batcher, *range(1000))

    assert list((await stored(client, name)).items()) == [
        (message_id, str(body)) for body, message_id in enumerate(ids)
    ]


async def test_many_tasks_at_once_get_their_own_ids(
    batcher: Batcher, name: str, client: Redis
) -> None:
    """256 of them, each sending one message after the other."""

    async def work(task: int) -> dict[str, str]:
        return {
            await batcher.append(*plain(f"{task}.{at}")): f"{task}.{at}"
            for at in range(8)
        }

    sent = await asyncio.gather(*(work(task) for task in range(256)))

    assert await stored(client, name) == {
        message_id: body for ids in sent for message_id, body in ids.items()
    }
    assert all(list(ids) == sorted(ids, key=by_time) for ids in sent)


async def test_several_may_be_sent_as_one(
    batcher: Batcher, name: str, client: Redis
) -> None:
    """Behind what was sent before, and alone."""
    first, second = send(batcher, "first", "second")
    await asyncio.sleep(0)
    several = await batcher.submit_all([plain(body)[0] for body in "abc"])

    ids = [await first, await second, *await several]

    assert await stored(client, name) == dict(
        zip(ids, ["first", "second", "a", "b", "c"], strict=True)
    )
    assert list((await remembered(client, name)).values())[-1] == ids[2:]


# Room.


async def test_a_send_beyond_the_bound_waits_for_room(
    own_server: RedisServer, name: str, own_client: Redis
) -> None:
    """It is sent once others are answered; nothing is lost, and order is kept."""
    async with open_batcher(own_server.url, name, max_waiting=5) as batcher:
        own_server.pause()
        tasks = send(batcher, *range(20))
        await asyncio.sleep(0.05)
        waiting = len([task for task in tasks if not task.done()])
        sent = batcher._backlog._count
        own_server.resume()

        ids = await asyncio.gather(*tasks)

    assert (waiting, sent) == (20, 5)
    assert await stored(own_client, name) == {
        message_id: str(body) for body, message_id in enumerate(ids)
    }


async def test_bytes_are_bounded_too(
    own_server: RedisServer, name: str, own_client: Redis
) -> None:
    """A message larger than the bound goes when nothing else is under way."""
    bodies = ["x" * 40, "y" * 40, "z" * 40, "!" * 101, "small"]
    async with open_batcher(own_server.url, name, max_waiting_bytes=100) as batcher:
        own_server.pause()
        tasks = send(batcher, *bodies)
        await asyncio.sleep(0.05)
        sent = batcher._backlog._size
        own_server.resume()

        await asyncio.gather(*tasks)

    assert sent == 80
    assert list((await stored(own_client, name)).values()) == bodies


async def test_without_room_for_too_long_a_send_is_refused(
    own_server: RedisServer, name: str, own_client: Redis
) -> None:
    """It was not sent, so producing it again is safe; the others are not harmed."""
    async with open_batcher(
        own_server.url, name, max_waiting=1, produce_timeout=0.15
    ) as batcher:
        own_server.pause()
        tasks = send(batcher, *range(3))
        with pytest.raises(BacklogError, match=r"^1 sends \(1 bytes\) have waited"):
            await tasks[2]
        doubts = await doubts_of(tasks[:2])
        own_server.resume()

        ids = [await doubt.retry() for doubt in doubts]

    assert await stored(own_client, name) == {ids[0]: "0", ids[1]: "1"}


# Ends of tasks.


async def test_a_cancelled_send_leaves_its_batch_unharmed(
    own_server: RedisServer, name: str, own_client: Redis
) -> None:
    """The others get their own ids; it may be stored or not."""
    async with open_batcher(own_server.url, name) as batcher:
        own_server.pause()
        tasks = send(batcher, *range(20))
        await asyncio.sleep(0.02)
        for task in tasks[::3]:
            task.cancel()
        own_server.resume()

        ended = await asyncio.gather(*tasks, return_exceptions=True)

        written = await stored(own_client, name)
        after = await batcher.append(*plain("after"))
    for body, message_id in enumerate(ended):
        if body % 3 == 0:
            assert isinstance(message_id, asyncio.CancelledError)
        else:
            assert isinstance(message_id, str)
            assert written[message_id] == str(body)
    assert (await stored(own_client, name))[after] == "after"


async def test_a_cancelled_batch_leaves_no_noise(
    own_server: RedisServer, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody waits for its error any more, and that is no error."""
    async with open_batcher(own_server.url, name, produce_timeout=0.05) as batcher:
        own_server.pause()
        await batcher.submit_all([plain("nobody waits")[0]])
        await eventually(lambda: not batcher._unresolved)
        gc.collect()
        await asyncio.sleep(0)
        own_server.resume()

    assert not [item for item in caplog.records if item.name == "asyncio"]


async def test_closing_answers_everything_sent(
    url: str, name: str, client: Redis
) -> None:
    """What was sent, what gathers, and who stands in line; then nothing more is taken."""
    async with open_stream(url, name) as stream:
        config = ProducerConfig(max_waiting=10)
        batcher = room.Batcher(stream.link, stream.keys, config)
        tasks = send(batcher, *range(100))
        await asyncio.sleep(0)

        await batcher.close()
        async with asyncio.timeout(0.01):
            ids = await asyncio.gather(*tasks)

        with pytest.raises(NotInitializedError):
            await batcher.append(*plain("late"))
        with pytest.raises(NotInitializedError):
            await batcher.submit_all([plain("late")[0]])
    assert list(await stored(client, name)) == ids


async def test_closing_takes_no_longer_than_a_send_may(
    own_server: RedisServer, name: str
) -> None:
    """What is not answered by then is uncertain; who was in line is refused or uncertain too."""
    async with open_stream(own_server.url, name) as stream:
        config = ProducerConfig(max_waiting=1, produce_timeout=0.1)
        batcher = room.Batcher(stream.link, stream.keys, config)
        own_server.pause()
        tasks = send(batcher, *range(3))
        await asyncio.sleep(0)

        async with asyncio.timeout(1):
            await batcher.close()
            errors = await errors_of(tasks)
        own_server.resume()
    assert [type(error) for error in errors] == [
        PublishUncertainError,
        PublishUncertainError,
        BacklogError,
    ]


async def test_a_producer_that_never_sent_can_be_closed(url: str, name: str) -> None:
    """At once, and again."""
    async with open_stream(url, name) as stream:
        batcher = room.Batcher(stream.link, stream.keys, ProducerConfig())

        async with asyncio.timeout(1):
            await batcher.close()


# The script.


async def run_append(
    client: Redis,
    name: str,
    number: int,
    low: int,
    bodies: Sequence[str],
    *,
    renew: int = 0,
    memory_ms: int = 60_000,
) -> list[str]:
    """Run append.lua as a batcher would, for a producer called `p`."""
    arguments: list[bytes | str | int] = [number, low, memory_ms, renew, "bell"]
    for body in bodies:
        arguments += (2, "body", body)
    keys = [name, f"{{{name}}}:sent:p"]
    answer: bytes = await client.eval(
        scripts.APPEND.text.decode(), len(keys), *keys, *arguments
    )
    return answer.decode().split(" ")


class FaultyNetwork:
    """A producer on lines that lose, delay and reorder.

    What is written to a line that breaks is executed later, in any order, or never; the producer
    sends it again. It keeps the rule of the protocol: it never sends below the `low` it has said.
    """

    def __init__(self, client: Redis, name: str) -> None:
        """Nothing has been sent."""
        self._client = client
        self._name = name
        self._next = 1
        self._unresolved: set[int] = set()
        self._under_way: list[tuple[int, int]] = []
        self.answers: dict[int, list[str]] = {}
        self.given_up: set[int] = set()

    @property
    def low(self) -> int:
        """The lowest number that may be sent again."""
        return min(self._unresolved, default=self._next)

    def bodies(self, number: int) -> list[str]:
        """What a batch holds."""
        return [f"{number}.{at}" for at in range(number % 3 + 1)]

    async def step(self, what: str, which: int) -> None:
        """Do one thing; `which` chooses among those it can be done to."""
        unresolved = sorted(self._unresolved)
        if what == "send":
            self._unresolved.add(self._next)
            self._next += 1
            self._under_way.append((self._next - 1, self.low))
        elif what == "send again" and unresolved:
            number = unresolved[which % len(unresolved)]
            self._under_way.append((number, self.low))
        elif what == "give up" and unresolved:
            number = unresolved[which % len(unresolved)]
            self._unresolved.remove(number)
            self.given_up.add(number)
        elif what in ("answer", "lose the answer") and self._under_way:
            sent = self._under_way.pop(which % len(self._under_way))
            await self._execute(*sent, is_answered=what == "answer")

    async def _execute(self, number: int, low: int, *, is_answered: bool) -> None:
        bodies = self.bodies(number)
        if number not in self._unresolved:
            with suppress(ResponseError):  # STALE, which is as good
                ids = await run_append(self._client, self._name, number, low, bodies)
                assert self.answers.setdefault(number, ids) == ids
            return
        ids = await run_append(self._client, self._name, number, low, bodies)
        assert self.answers.setdefault(number, ids) == ids
        if is_answered:
            self._unresolved.discard(number)

    async def end(self) -> None:
        """Send what is unresolved until it is answered."""
        for number in sorted(self._unresolved):
            await self._execute(number, self.low, is_answered=True)


STEPS = (
    *("send", "send", "answer", "answer", "answer"),
    *("lose the answer", "send again", "give up"),
)
# Batch 3 is written late, and says a `low` from when batch 1 was not yet forgotten.
LATE = [
    *(("send", 0), ("send again", 0), ("send", 0), ("send", 0), ("answer", 0)),
    *(("give up", 1), ("send", 0), ("answer", 3), ("answer", 2), ("answer", 0)),
]


@settings(max_examples=100, deadline=None)
@example(steps=LATE)
@given(
    steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 9)), max_size=60)
)
async def test_in_whatever_order_batches_arrive_each_is_stored_once(
    url: str, steps: list[tuple[str, int]]
) -> None:
    """Late originals, resends, lost answers: what is accepted is stored once, never twice.

    What was given up may have been stored before, but is stored no more once `low` has passed it.
    """
    name = f"append-{secrets.token_hex(4)}"
    async with Redis.from_url(url, protocol=2) as client:
        network = FaultyNetwork(client, name)

        for step in steps:
            await network.step(*step)
        await network.end()

        bodies = list((await stored(client, name)).values())
    expected = [body for number in network.answers for body in network.bodies(number)]
    assert sorted(bodies) == sorted(expected)
