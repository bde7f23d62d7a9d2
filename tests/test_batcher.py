from __future__ import annotations

import asyncio
import gc
import secrets
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import MasterDownError, OutOfMemoryError, ResponseError

from aioredismq import (
    BacklogError,
    ConnectionLostError,
    MessageQueueError,
    NotInitializedError,
    PermissionDeniedError,
    ProducerConfig,
    PublishUncertainError,
    ServerFullError,
    ServerNotReadyError,
    WrongKeyTypeError,
)
from aioredismq import _batcher as room
from aioredismq import _scripts as scripts
from aioredismq._clock import elapsed
from aioredismq._keys import QueueKeys
from aioredismq._wire import pack
from aioredismq.testing import FaultyLine, RedisServer
from tests.sending import (
    be_hasty,
    be_patient,
    memories,
    open_batcher,
    open_stream,
    plain,
    remembered,
    script_calls,
    stored,
)
from tests.support import eventually, watched

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
    from pathlib import Path

    from aioredismq._batcher import Batcher


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
        tasks = send(batcher, *range(5))
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        be_patient(batcher)
        own_server.resume()

        sent = {
            await error.retry(): str(body)
            for body, error in enumerate(ended)
            if isinstance(error, PublishUncertainError)
        }

    refused = [error for error in ended if isinstance(error, BacklogError)]
    assert len(refused) + len(sent) == 5
    assert "0" in sent.values()
    assert isinstance(ended[4], BacklogError)
    assert str(ended[4]).endswith("for an answer for 0.15 s: Redis is away or slow")
    assert await stored(own_client, name) == sent


@pytest.mark.parametrize("way", ["append", "submit_all"])
async def test_waiting_for_room_and_for_the_answer_take_no_longer_than_a_send_may(
    own_server: RedisServer, name: str, way: str
) -> None:
    """What came to its turn late has the rest of its time, though another timer was armed."""

    async def send_one() -> None:
        if way == "append":
            await batcher.append(*plain("late"))
        else:
            await (await batcher.submit_all([plain("late")[0]]))

    async with (
        open_batcher(
            own_server.url, name, max_waiting=2, max_batch=1, produce_timeout=1
        ) as batcher,
        watched() as standstills,
    ):
        own_server.pause()
        first = send(batcher, "first")
        await asyncio.sleep(0.5)
        second = send(batcher, "second")
        await asyncio.sleep(0)
        started = time.monotonic()
        with pytest.raises(PublishUncertainError):
            await send_one()
        ended = time.monotonic()

        await doubts_of(first + second)
        own_server.resume()

    assert ended - started > 0.9
    assert standstills.passed(started, ended) < 1.25


async def test_those_who_waited_share_their_deadlines_with_nobody_else(
    own_server: RedisServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who came at once has all of his time; those who waited about as long go together."""
    async with open_batcher(own_server.url, name, produce_timeout=100) as batcher:
        now = batcher._loop.time()
        deadlines = [now + 10, now + 14, now + 50, now + 52]

        async def let_in(count: int, size: int) -> float:
            batcher._backlog.add(count, size)
            return deadlines.pop(0)

        monkeypatch.setattr(batcher._backlog, "is_full", lambda size: size == 2)
        monkeypatch.setattr(batcher, "_wait_for_room", let_in)
        own_server.pause()
        tasks = send(batcher, "x", "l1", "l2", "l3", "y", "z", "l4")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        ends = [
            (batch.count, round(batch.deadline - now, -1))
            for batch in batcher._unresolved.values()
        ]
        timer = batcher._timer
        own_server.resume()
        await asyncio.gather(*tasks)

    assert ends == [(1, 100), (2, 10), (1, 50), (2, 100), (1, 50)]
    assert timer is not None
    assert timer.when() - now == pytest.approx(10, abs=0.01)


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
        for _ in range(3):  # the tasks wake up; no answer could arrive meanwhile
            await asyncio.sleep(0)

        assert all(task.done() for task in tasks)
        ids = [task.result() for task in tasks]
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

        async with asyncio.timeout(8):
            await batcher.close()
            errors = await errors_of(tasks)
        own_server.resume()
    first, between, last = map(type, errors)
    assert (first, last) == (PublishUncertainError, BacklogError)
    assert between in (PublishUncertainError, BacklogError)


async def test_closing_waits_for_nobody_who_has_left(
    url: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last in line was cancelled in the moment he was let in."""
    async with open_stream(url, name) as stream:
        config = ProducerConfig(max_waiting=1)
        batcher = room.Batcher(stream.link, stream.keys, config)
        first, last = send(batcher, "first", "last")
        let_in = batcher._backlog.remove

        def let_in_and_cancel(count: int, size: int) -> None:
            let_in(count, size)
            last.cancel()

        monkeypatch.setattr(batcher._backlog, "remove", let_in_and_cancel)
        async with asyncio.timeout(8):
            await asyncio.gather(batcher.close(), first)

    assert last.cancelled()


async def test_a_producer_that_never_sent_can_be_closed(url: str, name: str) -> None:
    """At once, and again."""
    async with open_stream(url, name) as stream:
        batcher = room.Batcher(stream.link, stream.keys, ProducerConfig())

        async with asyncio.timeout(8):
            await batcher.close()


# Refusals.


async def set_memory(client: Redis, limit: int) -> None:
    """Fill the server up (1), or make room again (0)."""
    await client.config_set("maxmemory", limit)


async def test_each_caller_of_a_refused_batch_gets_an_error_of_its_own(
    batcher: Batcher, name: str, client: Redis
) -> None:
    """One instance raised in many tasks would gather the tracebacks of them all."""
    await client.delete(name)
    await client.set(name, "not a stream")

    errors = await errors_of(send(batcher, *range(10)))

    assert {type(error) for error in errors} == {WrongKeyTypeError}
    assert len({id(error) for error in errors}) == 10
    await client.delete(name)


async def test_cancelled_callers_of_a_refused_batch_hear_nothing(
    batcher: Batcher, name: str, client: Redis
) -> None:
    """The others do."""
    await client.set(name, "not a stream")
    tasks = send(batcher, *range(10))
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()

    errors = await errors_of(tasks)

    assert [type(error) for error in errors] == [
        *(asyncio.CancelledError, WrongKeyTypeError) * 5
    ]
    await client.delete(name)


@pytest.mark.parametrize("position", range(4))
async def test_what_a_full_server_refuses_is_stored_by_sending_it_anew(
    own_server: RedisServer, name: str, own_client: Redis, position: int
) -> None:
    """Whichever of a run of batches it is; the others are stored, and none of them twice.

    All are under way at once, and the server is full for one of them only.
    """
    batches = [[f"{number}.{at}" for at in range(3)] for number in range(4)]
    async with (
        open_stream(own_server.url, name) as stream,
        open_batcher(own_server.url, f"{name}-other") as other,
    ):
        await other.append(*plain("teaches the script"))
        batcher = room.Batcher(stream.link, stream.keys, ProducerConfig())
        under_way = []
        for number, bodies in enumerate(batches):
            if number == position:
                stream.link.submit(pack("CONFIG", "SET", "maxmemory", 1), ignore)
            under_way.append(
                await batcher.submit_all([plain(each)[0] for each in bodies])
            )
            stream.link.submit(pack("CONFIG", "SET", "maxmemory", 0), ignore)
        answers = await asyncio.gather(*under_way, return_exceptions=True)

        assert isinstance(answers[position], ServerFullError)
        again = await batcher.submit_all([plain(each)[0] for each in batches[position]])
        answers[position] = await again

        expected: dict[str, str] = {}
        for ids, bodies in zip(answers, batches, strict=True):
            assert not isinstance(ids, BaseException)
            expected |= dict(zip(ids, bodies, strict=True))
        assert await stored(own_client, name) == expected
        await batcher.close()


def ignore(_reply: object) -> None:
    """Take a reply nobody asks for."""


async def test_a_server_that_forgets_its_scripts_is_taught_them_again(
    batcher: Batcher, name: str, client: Redis
) -> None:
    """Nobody notices: neither a lone send nor many batches under way."""
    ids = []
    for _ in range(3):
        await client.script_flush()
        ids.append(await batcher.append(*plain("alone")))
        await client.script_flush()
        ids += await send_all(batcher, *range(200))

    assert list(await stored(client, name)) == sorted(ids, key=by_time)
    assert len(ids) == 603


async def test_a_server_that_is_not_ready_is_waited_for(
    own_server: RedisServer, name: str, own_client: Redis
) -> None:
    """A replica refuses writes until it is promoted."""
    async with open_batcher(own_server.url, name) as batcher:
        await own_client.execute_command("REPLICAOF", "127.0.0.1", "1")
        tasks = send(batcher, *range(3))
        await asyncio.sleep(0.15)
        are_waiting = not any(task.done() for task in tasks)
        await own_client.execute_command("REPLICAOF", "NO", "ONE")

        ids = await asyncio.gather(*tasks)

    assert are_waiting
    assert list(await stored(own_client, name)) == ids


async def test_a_busy_server_is_waited_for(
    own_server: RedisServer, name: str, own_client: Redis
) -> None:
    """Somebody's endless script keeps it from everything, until that is killed."""
    await own_client.config_set("lua-time-limit", 1)
    async with (
        open_batcher(own_server.url, name) as batcher,
        Redis.from_url(own_server.url, protocol=2) as somebody,
    ):
        endless = asyncio.create_task(somebody.eval("while true do end", 0))
        await eventually(lambda: is_busy(own_client))
        tasks = send(batcher, *range(3))
        await eventually(lambda: any(is_refused(batcher)))
        await own_client.script_kill()

        ids = await asyncio.gather(*tasks)

        with pytest.raises(ResponseError):
            await endless
    assert list(await stored(own_client, name)) == ids


async def is_busy(client: Redis) -> bool:
    """Say whether a server refuses everything because of a script."""
    try:
        await client.ping()
    except ResponseError as error:
        return "BUSY" in str(error)
    return False


def is_refused(batcher: Batcher) -> list[bool]:
    """Say of each batch whether the server was not ready for it."""
    return [batch.refusal is not None for batch in batcher._unresolved.values()]


async def test_a_server_that_is_never_ready_leaves_no_doubt(
    own_server: RedisServer, name: str, own_client: Redis
) -> None:
    """Each of its answers said that nothing was done."""
    async with open_batcher(own_server.url, name, produce_timeout=0.2) as batcher:
        await own_client.execute_command("REPLICAOF", "127.0.0.1", "1")

        with pytest.raises(ServerNotReadyError, match="READONLY"):
            await batcher.append(*plain("refused"))

        be_patient(batcher)
        await own_client.execute_command("REPLICAOF", "NO", "ONE")
        await batcher.append(*plain("taken"))
    assert list((await stored(own_client, name)).values()) == ["taken"]


async def step_down(client: Redis) -> None:
    """Let a server refuse everything for a while (MASTERDOWN): it follows one it cannot reach."""
    await client.config_set("replica-serve-stale-data", "no")
    await client.replicaof("127.0.0.1", 1)


async def step_up(client: Redis) -> None:
    """Let it take everything again."""
    await client.replicaof("NO", "ONE")


async def test_one_asks_for_all_when_a_server_is_not_ready(
    own_server: RedisServer, name: str, own_client: Redis
) -> None:
    """The oldest, again and again; once it passes the others go too, in order."""
    async with open_batcher(own_server.url, name, max_batch=1) as batcher:
        await batcher.append(*plain("teaches the script"))
        await step_down(own_client)
        before = await script_calls(own_client)
        tasks = send(batcher, "oldest")
        await eventually(lambda: any(is_refused(batcher)))
        began = time.monotonic()
        for at in range(50):
            tasks += send(batcher, at)
            await asyncio.sleep(0.01)
        asked = await script_calls(own_client) - before
        longest_pauses = (time.monotonic() - began) / 0.4
        refused = is_refused(batcher)
        await step_up(own_client)

        ids = await asyncio.gather(*tasks)

    assert 2 <= asked <= 6 + 2 * longest_pauses
    assert refused == [True] + [False] * 50
    assert list(await stored(own_client, name))[1:] == ids


async def test_who_waits_behind_the_one_that_asks_is_told_why(
    own_server: RedisServer, name: str, own_client: Redis
) -> None:
    """It was not even sent: there is no doubt. When the oldest is given up the next one asks."""
    async with open_batcher(
        own_server.url, name, max_batch=1, produce_timeout=1
    ) as batcher:
        await step_down(own_client)
        tasks = send(batcher, "oldest")
        await eventually(lambda: any(is_refused(batcher)))
        for at in range(10):
            tasks += send(batcher, at)
        errors = await errors_of(tasks)
        be_patient(batcher)
        late = send(batcher, "late")
        await asyncio.sleep(0.1)
        await step_up(own_client)

        ids = await asyncio.gather(*late)

    told = [error for error in errors if isinstance(error, ServerNotReadyError)]
    assert len(told) >= 10  # one may just have been asking
    assert all(str(error).startswith("MASTERDOWN") for error in told)
    assert list(await stored(own_client, name)) == ids


async def test_a_server_that_is_ready_and_full_says_so_to_all(
    own_server: RedisServer, name: str, own_client: Redis
) -> None:
    """What the one that asks is answered ends the waiting, whatever it is."""
    async with open_batcher(own_server.url, name, max_batch=1) as batcher:
        await step_down(own_client)
        tasks = send(batcher, "oldest")
        await eventually(lambda: any(is_refused(batcher)))
        tasks += send(batcher, *range(10))
        await set_memory(own_client, 1)
        await step_up(own_client)

        errors = await errors_of(tasks)

    assert [type(error) for error in errors] == [ServerFullError] * 11


async def test_a_new_connection_is_asked_by_one_first(
    own_server: RedisServer, name: str, own_client: Redis
) -> None:
    """A server that refuses is not sent everything that waits by each connection."""
    async with (
        FaultyLine(own_server.url) as line,
        open_batcher(line.url, name, max_batch=1) as batcher,
    ):
        await batcher.append(*plain("teaches the script"))
        line.cut()
        await eventually(lambda: not batcher._link.is_up)
        tasks = send(batcher, *range(30))
        await own_client.execute_command("REPLICAOF", "127.0.0.1", "1")  # READONLY
        before, attempts = await script_calls(own_client), line.attempts
        line.heal()
        await eventually(lambda: any(is_refused(batcher)))
        await asyncio.sleep(0.5)
        calls = await script_calls(own_client) - before
        connections = line.attempts - attempts
        doubts = [batch.in_doubt for batch in batcher._unresolved.values()]
        await step_up(own_client)

        ids = await asyncio.gather(*tasks)

    assert 1 <= calls <= connections
    assert doubts == [False] * 30
    assert list(await stored(own_client, name))[1:] == ids


async def test_the_one_that_asks_may_lose_its_line(
    own_server: RedisServer, name: str, own_client: Redis
) -> None:
    """Or stay without an answer until it is given up: another asks on the next line."""
    async with (
        FaultyLine(own_server.url) as line,
        open_batcher(line.url, name, max_batch=1) as batcher,
    ):
        await batcher.append(*plain("teaches the script"))
        await step_down(own_client)
        be_hasty(batcher, 1.5)
        tasks = send(batcher, "oldest")
        await eventually(lambda: any(is_refused(batcher)))
        line.black_hole()
        await eventually(lambda: batcher._probe is not None)  # it has asked again
        be_patient(batcher)
        tasks += send(batcher, *range(10))
        [doubt] = await doubts_of(tasks[:1])
        await step_up(own_client)
        line.drop()
        line.heal()

        ids = await asyncio.gather(doubt.retry(), *tasks[1:])

    assert list(await stored(own_client, name))[1:] == ids


# Lost lines.


async def test_without_a_connection_nothing_is_sent(
    line: FaultyLine, name: str, client: Redis
) -> None:
    """It is told as what it is after `produce_timeout`, and is not stored later."""
    async with open_batcher(line.url, name, produce_timeout=0.1) as batcher:
        line.cut()
        await eventually(lambda: not batcher._link.is_up)

        with pytest.raises(ConnectionLostError):
            await batcher.append(*plain("lost"))

        be_patient(batcher)
        line.heal()
        await batcher.append(*plain("sent"))
    assert list((await stored(client, name)).values()) == ["sent"]


async def test_an_outage_shorter_than_the_timeout_goes_unnoticed(
    line: FaultyLine, name: str, client: Redis
) -> None:
    """What was produced meanwhile is sent once the connection is there again, in order."""
    async with open_batcher(line.url, name) as batcher:
        line.cut()
        await eventually(lambda: not batcher._link.is_up)
        tasks = send(batcher, *range(200))
        await asyncio.sleep(0)
        line.heal()

        ids = await asyncio.gather(*tasks)

    assert await stored(client, name) == {
        message_id: str(body) for body, message_id in enumerate(ids)
    }


async def test_what_is_under_way_is_not_sent_again(
    own_server: RedisServer, name: str, own_client: Redis
) -> None:
    """Each of many that were refused for a while asks for all to be sent again."""
    async with open_batcher(own_server.url, name) as batcher:
        await batcher.append(*plain("teaches the script"))
        before = await script_calls(own_client)
        own_server.pause()
        tasks = send(batcher, *range(10))
        await asyncio.sleep(0)
        for _ in range(3):
            batcher._ask()
        own_server.resume()

        await asyncio.gather(*tasks)
        await batcher._link.call("PING")

        assert await script_calls(own_client) - before == 2


@pytest.mark.parametrize("lost", range(5))
async def test_a_batch_whose_answer_was_lost_is_stored_once(
    line: FaultyLine, name: str, client: Redis, lost: int
) -> None:
    """Whichever of several under way: it is sent again and answered as the first time."""
    bodies = [f"batch {number}" for number in range(5)]
    async with open_batcher(line.url, name, max_batch=1) as batcher:
        await batcher.append(*plain("teaches the script"))
        line.reset_after_request(bodies[lost].encode())

        ids = await send_all(batcher, *bodies)

        assert not line.is_armed
    written = await stored(client, name)
    assert [written[message_id] for message_id in ids] == bodies
    assert len(written) == 6


async def test_a_line_that_breaks_all_the_time_loses_nothing(
    line: FaultyLine, name: str, client: Redis
) -> None:
    """In whatever part of a request or reply it breaks."""

    async def work(task: int) -> list[str]:
        return [await batcher.append(*plain(f"{task}.{at}")) for at in range(20)]

    async with open_batcher(line.url, name) as batcher:
        working = asyncio.gather(*(work(task) for task in range(8)))
        for at in range(1, 5):
            if at % 2:
                line.reset_after_request(b"EVAL")
            else:
                line.truncate_reply(at, b"EVAL")
            await eventually(lambda: not line.is_armed or working.done())
        line.heal()

        ids = [each for several in await working for each in several]

    written = await stored(client, name)
    assert [written[each] for each in ids] == [
        f"{task}.{at}" for task in range(8) for at in range(20)
    ]
    assert len(written) == 160


# Doubt.


async def test_no_answer_in_time_is_told_as_doubt(
    own_server: RedisServer, name: str
) -> None:
    """Not as an error that says it is not stored."""
    async with open_batcher(own_server.url, name, produce_timeout=0.1) as batcher:
        own_server.pause()

        with pytest.raises(PublishUncertainError, match=r"no answer within 0.1 s"):
            await batcher.append(*plain("doubt"))

        own_server.resume()


@pytest.fixture
async def doubtful(
    own_server: RedisServer, name: str
) -> AsyncIterator[tuple[Batcher, list[PublishUncertainError]]]:
    """A batcher, and a send for each body 0 to 9 that was not answered in time.

    The server was paused for longer than `produce_timeout`, and goes on now.
    """
    async with open_batcher(own_server.url, name) as batcher:
        await batcher.append(*plain("teaches the script"))
        be_hasty(batcher)
        own_server.pause()
        doubts = await doubts_of(send(batcher, *range(10)))
        be_patient(batcher)
        own_server.resume()
        yield batcher, doubts


async def test_retrying_stores_each_once(
    doubtful: tuple[Batcher, list[PublishUncertainError]], name: str, own_client: Redis
) -> None:
    """Each caller gets the id of its own message, however often it asks."""
    _, doubts = doubtful

    ids = [await doubt.retry() for doubt in doubts]

    assert [await doubt.retry() for doubt in reversed(doubts)] == ids[::-1]
    written = await stored(own_client, name)
    assert [written[message_id] for message_id in ids] == [str(at) for at in range(10)]
    assert len(written) == 11


async def test_all_may_retry_at_once(
    doubtful: tuple[Batcher, list[PublishUncertainError]], name: str, own_client: Redis
) -> None:
    """And several times each: their batches are sent again once for all of them."""
    _, doubts = doubtful

    ids = await asyncio.gather(*(doubt.retry() for doubt in doubts * 3))

    written = await stored(own_client, name)
    assert [written[message_id] for message_id in ids] == [
        str(at) for at in range(10)
    ] * 3
    assert len(written) == 11


async def test_a_retry_waits_for_the_answer_that_is_still_to_come(
    own_server: RedisServer, name: str, own_client: Redis
) -> None:
    """Nothing is sent again while the first is on its way: only one of them could answer."""
    async with open_batcher(own_server.url, name) as batcher:
        await batcher.append(*plain("teaches the script"))
        before = await script_calls(own_client)
        be_hasty(batcher)
        own_server.pause()
        doubts = await doubts_of(send(batcher, *range(10)))
        be_patient(batcher)
        tasks = [asyncio.create_task(doubt.retry()) for doubt in doubts]
        await asyncio.sleep(0)
        own_server.resume()

        ids = await asyncio.gather(*tasks)

        assert await script_calls(own_client) - before == 2
    written = await stored(own_client, name)
    assert [written[message_id] for message_id in ids] == [str(at) for at in range(10)]


async def test_an_answer_that_came_late_is_not_asked_for_again(
    doubtful: tuple[Batcher, list[PublishUncertainError]], name: str, own_client: Redis
) -> None:
    """It is known by the time of the retry."""
    batcher, doubts = doubtful
    await batcher._link.call("PING")  # what was sent before is answered before
    before = await script_calls(own_client)

    ids = await asyncio.gather(*(doubt.retry() for doubt in doubts))

    assert await script_calls(own_client) == before
    written = await stored(own_client, name)
    assert [written[message_id] for message_id in ids] == [str(at) for at in range(10)]


async def test_a_retry_without_an_answer_may_be_retried(
    own_server: RedisServer, name: str, own_client: Redis
) -> None:
    """As often as it takes."""
    async with open_batcher(own_server.url, name, produce_timeout=0.05) as batcher:
        own_server.pause()
        doubts = await doubts_of(send(batcher, "a", "b"))
        for _ in range(2):
            tasks = [asyncio.create_task(doubt.retry()) for doubt in doubts]
            doubts = await doubts_of(tasks)
        be_patient(batcher)
        own_server.resume()

        ids = [await doubt.retry() for doubt in doubts]

    assert list((await stored(own_client, name)).items()) == [
        (ids[0], "a"),
        (ids[1], "b"),
    ]


async def test_a_retry_that_is_cancelled_harms_no_other(
    line: FaultyLine, name: str, client: Redis
) -> None:
    """Those who share its batch get their answer; it may be asked for again."""
    async with open_batcher(line.url, name, produce_timeout=0.1) as batcher:
        line.black_hole()
        doubts = await doubts_of(send(batcher, *range(5)))
        be_patient(batcher)
        tasks = [asyncio.create_task(doubt.retry()) for doubt in doubts]
        await asyncio.sleep(0)
        tasks[3].cancel()
        line.heal()

        ended = await asyncio.gather(*tasks, return_exceptions=True)

        assert isinstance(ended[3], asyncio.CancelledError)
        ended[3] = await doubts[3].retry()
    assert list((await stored(client, name)).items()) == [
        (message_id, str(body)) for body, message_id in enumerate(ended)
    ]


async def test_what_never_arrived_is_stored_by_its_retry(
    line: FaultyLine, name: str, client: Redis
) -> None:
    """The request was lost with its line, and not only the answer."""
    async with open_batcher(line.url, name, produce_timeout=0.1) as batcher:
        line.black_hole()
        doubts = await doubts_of(send(batcher, *range(5)))
        be_patient(batcher)
        line.drop()
        line.heal()
        before = await stored(client, name)

        ids = await asyncio.gather(*(doubt.retry() for doubt in doubts))

    assert not before
    assert await stored(client, name) == {
        message_id: str(body) for body, message_id in enumerate(ids)
    }


async def test_a_retry_may_be_refused(
    own_server: RedisServer, name: str, own_client: Redis
) -> None:
    """It stays in doubt, as what was sent at first may still arrive; it may be retried again."""
    async with (
        FaultyLine(own_server.url) as line,
        open_batcher(line.url, name) as batcher,
    ):
        await batcher.append(*plain("teaches the script"))
        be_hasty(batcher)
        line.black_hole()
        [doubt] = await doubts_of(send(batcher, "doubt"))
        be_patient(batcher)
        line.drop()
        line.heal()
        await set_memory(own_client, 1)
        for _ in range(2):
            with pytest.raises(PublishUncertainError, match="was refused") as raised:
                await doubt.retry()
            assert isinstance(raised.value.__cause__, ServerFullError)
            doubt = raised.value
        await set_memory(own_client, 0)

        message_id = await doubt.retry()

    assert (await stored(own_client, name))[message_id] == "doubt"
    assert await own_client.xlen(name) == 2


async def test_a_refusal_that_came_late_changes_nothing(
    own_server: RedisServer, name: str, own_client: Redis
) -> None:
    """The callers were told of their doubt by then; it is stored by its retry, once."""
    async with open_batcher(own_server.url, name) as batcher:
        await batcher.append(*plain("teaches the script"))
        await set_memory(own_client, 1)
        be_hasty(batcher)
        own_server.pause()
        tasks = send(batcher, *range(4))
        await asyncio.sleep(0)
        tasks[1].cancel()
        tasks[3].cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        be_patient(batcher)
        own_server.resume()
        await batcher._link.call("PING")  # what was sent before is answered before
        before = await stored(own_client, name)
        await set_memory(own_client, 0)

        doubts = [each for each in ended if isinstance(each, PublishUncertainError)]
        ids = [await doubt.retry() for doubt in doubts]

    written = await stored(own_client, name)
    assert len(before) == 1
    assert [written[message_id] for message_id in ids] == ["0", "2"]


async def test_a_retry_that_comes_too_late_is_refused(
    line: FaultyLine, name: str
) -> None:
    """The server may have forgotten the number, and would store it twice."""
    async with open_batcher(line.url, name, produce_timeout=0.1) as batcher:
        line.black_hole()
        [doubt] = await doubts_of(send(batcher, "late"))
        grow_old(batcher, 301)

        with pytest.raises(MessageQueueError, match="too late to retry") as raised:
            await doubt.retry()

    assert not isinstance(raised.value, PublishUncertainError)


async def test_a_retry_after_the_end_says_so(
    own_server: RedisServer, name: str
) -> None:
    """It neither waits for ever nor sends on a connection that is not its own any more."""
    async with open_batcher(own_server.url, name, produce_timeout=0.05) as batcher:
        own_server.pause()
        [doubt] = await doubts_of(send(batcher, "doubt"))
    own_server.resume()

    async with asyncio.timeout(8):
        with pytest.raises(NotInitializedError, match="the producer is closed"):
            await doubt.retry()


# What arrives late.


def noted(batcher: Batcher) -> list[bytes]:
    """Keep a copy of everything a batcher writes from now on."""
    copies: list[bytes] = []
    submit = batcher._link.submit

    def note_and_submit(command: bytes, on_reply: Callable[[object], None]) -> None:
        copies.append(command)
        submit(command, on_reply)

    batcher._link.submit = note_and_submit  # type: ignore[method-assign]  # as a tap on the line
    return copies


async def arrive(server: RedisServer, command: bytes) -> None:
    """Let what was held up on a line that was given up arrive now."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(command)
    await reader.readline()
    writer.close()
    await writer.wait_closed()


@asynccontextmanager
async def held_up(
    server: RedisServer, name: str
) -> AsyncIterator[tuple[Batcher, FaultyLine, asyncio.Task[str], bytes]]:
    """A batcher, its line, which is silent, a send that is on it, and what it wrote."""
    async with FaultyLine(server.url) as line, open_batcher(line.url, name) as batcher:
        await batcher.append(*plain("teaches the script"))
        copies = noted(batcher)
        line.black_hole()
        [task] = send(batcher, "once")
        await asyncio.sleep(0)
        yield batcher, line, task, copies[0]


async def test_an_original_that_arrives_after_the_end_is_known(
    own_server: RedisServer, name: str, own_client: Redis
) -> None:
    """A closed producer is remembered for as long as one may be late."""
    async with held_up(own_server, name) as (_, line, task, original):
        line.drop()
        line.heal()
        message_id = await task

    await arrive(own_server, original)

    [memory] = await memories(own_client, name)
    assert 500_000 < await own_client.pttl(memory) <= 600_000
    assert list((await stored(own_client, name)).items())[1:] == [(message_id, "once")]


async def test_where_no_line_was_lost_nothing_is_left_behind(
    url: str, name: str, client: Redis
) -> None:
    """Everything was answered, so nothing can be late."""
    async with open_batcher(url, name) as batcher:
        await send_all(batcher, *range(100))
        before = await memories(client, name)

    await eventually(lambda: is_forgotten(client, name))
    assert len(before) == 1


async def is_forgotten(client: Redis, name: str) -> bool:
    """Say whether no producer is remembered."""
    return not await memories(client, name)


@pytest.mark.parametrize("arrives", ["before", "after"])
async def test_what_was_lost_and_then_refused_is_in_doubt(
    own_server: RedisServer, name: str, own_client: Redis, arrives: str
) -> None:
    """What was sent first may arrive when there is room again; its retry stores it once."""
    async with held_up(own_server, name) as (_, line, task, original):
        await set_memory(own_client, 1)
        line.drop()
        line.heal()
        [doubt] = await doubts_of([task])
        await set_memory(own_client, 0)
        if arrives == "before":
            await arrive(own_server, original)
        message_id = await doubt.retry()
        if arrives == "after":
            await arrive(own_server, original)

    assert isinstance(doubt.__cause__, ServerFullError)
    assert str(doubt).startswith("the line was lost, then it was refused (OOM ")
    assert list((await stored(own_client, name)).items())[1:] == [(message_id, "once")]


def grow_old(batcher: Batcher, seconds: float) -> None:
    """Let so much time pass for what is not answered."""
    uncertain = batcher._memory._uncertain.values()
    for batch in {*batcher._unresolved.values(), *uncertain}:
        if batch.first_sent is not None:
            batch.first_sent -= seconds


async def test_what_may_be_forgotten_is_not_sent_again(
    own_server: RedisServer, name: str, own_client: Redis
) -> None:
    """As when the process was stopped for long: it would be stored a second time."""
    async with held_up(own_server, name) as (batcher, line, task, original):
        await arrive(own_server, original)
        line.cut()
        await eventually(lambda: not batcher._link.is_up)
        grow_old(batcher, 451)
        [memory] = await memories(own_client, name)
        await own_client.delete(memory)
        line.heal()

        [doubt] = await doubts_of([task])
        await batcher.append(*plain("after"))
        with pytest.raises(MessageQueueError, match="too late to retry"):
            await doubt.retry()

    assert list((await stored(own_client, name)).values())[1:] == ["once", "after"]


async def test_a_machine_that_slept_sends_nothing_again_that_may_be_forgotten(
    own_server: RedisServer,
    name: str,
    own_client: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A laptop was closed for hours: the clock of its event loop has not noticed."""
    async with held_up(own_server, name) as (batcher, line, task, original):
        await arrive(own_server, original)
        line.cut()
        await eventually(lambda: not batcher._link.is_up)
        monkeypatch.setattr(
            room, "elapsed", lambda: elapsed() + 8 * 3600, raising=False
        )
        [memory] = await memories(own_client, name)
        await own_client.delete(memory)
        line.heal()

        await doubts_of([task])

    assert list((await stored(own_client, name)).values())[1:] == ["once"]


# What the server remembers.


@pytest.mark.parametrize(("longest", "seconds"), [(10, 600), (150, 600), (1000, 4000)])
async def test_the_server_remembers_for_longer_than_a_send_may_take(
    url: str, name: str, client: Redis, longest: float, seconds: float
) -> None:
    """What is sent again at the last moment must still be known."""
    async with open_batcher(url, name, produce_timeout=longest) as batcher:
        await batcher.append(*plain(1))

        [memory] = await memories(client, name)
        assert 0.9 * seconds < await client.pttl(memory) / 1000 <= seconds


async def test_ten_thousand_sends_leave_little_behind(
    batcher: Batcher, name: str, client: Redis
) -> None:
    """One key per producer, with an end of its own, and a bounded number of fields."""
    for _ in range(10_000):
        await batcher.append([b"body", b""], 0)

    [memory] = await memories(client, name)
    assert await client.hlen(memory) <= 20
    assert 500_000 < await client.pttl(memory) <= 600_000
    assert await client.xlen(name) == 10_000


async def test_many_batches_under_way_leave_little_behind(
    batcher: Batcher, name: str, client: Redis
) -> None:
    """As many numbers as were not answered, and some for the step."""
    for _ in range(20):
        await send_all(batcher, *range(500))

    assert len(await remembered(client, name)) <= 20 + 500 // 64


async def test_a_doubt_is_remembered_while_somebody_may_retry_it(
    line: FaultyLine, name: str, client: Redis
) -> None:
    """However much is sent meanwhile: it was stored, and only its answer was lost."""
    async with open_batcher(line.url, name, produce_timeout=0.1) as batcher:
        line.black_hole("replies")
        doubts = await doubts_of(send(batcher, *range(10)))
        be_patient(batcher)
        line.drop()
        line.heal()
        for _ in range(100):
            await batcher.append(*plain("meanwhile"))

        ids = await asyncio.gather(*(doubt.retry() for doubt in doubts))

    written = await stored(client, name)
    assert [written[message_id] for message_id in ids] == [str(at) for at in range(10)]
    assert len(written) == 110


async def test_a_doubt_that_grows_old_while_it_is_retried_is_stored_once(
    line: FaultyLine, name: str, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sent meanwhile does not let its number be forgotten."""
    async with open_batcher(line.url, name, produce_timeout=0.1) as batcher:
        line.black_hole("replies")
        [doubt] = await doubts_of(send(batcher, "doubt"))
        be_patient(batcher)
        line.cut()
        await eventually(lambda: not batcher._link.is_up)
        retrying = asyncio.create_task(doubt.retry())
        await asyncio.sleep(0)
        grow_old(batcher, 400)
        monkeypatch.setattr("aioredismq._memory._STEP", 1)
        meanwhile = send(batcher, *range(200))
        await asyncio.sleep(0)
        line.heal()

        message_id = await retrying
        await asyncio.gather(*meanwhile)

    written = await stored(client, name)
    assert written[message_id] == "doubt"
    assert len(written) == 201


async def test_a_doubt_nobody_can_retry_is_forgotten(
    line: FaultyLine, name: str, client: Redis
) -> None:
    """Its error is gone, so its number need not be kept."""
    async with open_batcher(line.url, name, produce_timeout=0.05) as batcher:
        line.black_hole()
        await errors_of(send(batcher, "doubt"))
        be_patient(batcher)
        line.drop()
        line.heal()
        await batcher.append(*plain("the line is there again"))
        gc.collect()
        for _ in range(100):
            await batcher.append(*plain("meanwhile"))

        assert len(await remembered(client, name)) <= 20


async def test_an_error_that_is_kept_does_not_make_the_server_remember_for_ever(
    line: FaultyLine, name: str, client: Redis
) -> None:
    """Once it is too old to be retried, what was sent since may be forgotten."""
    async with open_batcher(line.url, name, produce_timeout=0.05) as batcher:
        line.black_hole()
        kept = await errors_of(send(batcher, "doubt"))
        be_patient(batcher)
        line.drop()
        line.heal()
        grow_old(batcher, 400)
        for _ in range(100):
            await batcher.append(*plain("meanwhile"))

        assert len(await remembered(client, name)) <= 20
    assert kept


async def test_memory_is_renewed_now_and_then(
    batcher: Batcher, name: str, client: Redis
) -> None:
    """Not by each send, which would be a call more, but long before it ends."""
    await batcher.append(*plain(1))
    [memory] = await memories(client, name)
    await client.pexpire(memory, 200_000)

    await batcher.append(*plain(2))
    soon = await client.pttl(memory)
    batcher._memory._renewed -= 60
    await batcher.append(*plain(3))
    later = await client.pttl(memory)

    assert soon <= 200_000
    assert later > 500_000


async def test_a_renewal_that_was_refused_is_made_up_for(
    batcher: Batcher, name: str, client: Redis
) -> None:
    """A server that has forgotten its scripts has not renewed anything."""
    await batcher.append(*plain(1))
    [memory] = await memories(client, name)
    await client.pexpire(memory, 200_000)
    await client.script_flush()
    batcher._memory._renewed -= 60

    await batcher.append(*plain(2))

    assert await client.pttl(memory) > 500_000


# All of it.


@pytest.fixture(scope="module")
def rough_server(server_path: Path | None) -> Iterator[RedisServer]:
    """A server that is filled up and forgets its scripts, for one test's many runs."""
    with RedisServer(server_path) as running:
        yield running


SERVER: dict[str, Callable[[Redis], Awaitable[object]]] = {
    "fill up": lambda client: set_memory(client, 1),
    "make room": lambda client: set_memory(client, 0),
    "forget scripts": lambda client: client.script_flush(),
    "step down": step_down,
    "step up": step_up,
}


class Sender:
    """Send through everything that can happen, and keep account of what was said of it."""

    def __init__(self, line: FaultyLine, batcher: Batcher, client: Redis) -> None:
        """Nothing has been sent."""
        self._line = line
        self._batcher = batcher
        self._client = client
        self._bodies = 0
        self._sent: dict[str, asyncio.Task[str]] = {}
        self.accepted: dict[str, str] = {}
        self.refused: list[str] = []

    async def step(self, what: str, count: int) -> None:
        """Do one thing."""
        match what:
            case "send":
                bodies = [str(self._bodies + at) for at in range(count)]
                self._bodies += count
                tasks = send(self._batcher, *bodies)
                self._sent |= dict(zip(bodies, tasks, strict=True))
            case "cancel":
                for body in list(self._sent)[count : count + 1]:
                    self._sent[body].cancel()
            case "lose an answer":
                self._line.reset_after_request(b"EVAL")
            case "drop the line":
                self._line.drop()
            case "go silent":
                self._line.black_hole()
                await asyncio.sleep(0.06)
                self._line.drop()
                self._line.heal()
            case _:
                with suppress(MasterDownError):  # 6.2 forgets no scripts then
                    await SERVER[what](self._client)
        await asyncio.sleep(0.002)

    async def end(self) -> None:
        """Wait for every answer, and find out what is in doubt."""
        be_patient(self._batcher)
        self._line.heal()
        await step_up(self._client)
        await set_memory(self._client, 0)
        for body, task in self._sent.items():
            try:
                self.accepted[await task] = body
            except PublishUncertainError as doubt:
                self.accepted[await doubt.retry()] = body
            except (ServerFullError, ServerNotReadyError, ConnectionLostError):
                self.refused.append(body)
            except asyncio.CancelledError:
                pass


@settings(max_examples=15, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(
                (
                    *("send", "send", "send", "cancel", "lose an answer"),
                    *("drop the line", "go silent", *SERVER),
                )
            ),
            st.integers(1, 12),
        ),
        min_size=1,
        max_size=25,
    )
)
async def test_whatever_happens_what_is_accepted_is_stored_once(
    rough_server: RedisServer, steps: list[tuple[str, int]]
) -> None:
    """And what is refused is not stored; a cancelled send may be."""
    name = f"rough-{secrets.token_hex(4)}"
    rough_server.command("REPLICAOF", "NO", "ONE")  # whatever the last run left behind
    rough_server.command("CONFIG", "SET", "maxmemory", 0)
    async with (
        Redis.from_url(rough_server.url, protocol=2) as client,
        FaultyLine(rough_server.url) as line,
        open_batcher(line.url, name, produce_timeout=0.05, max_batch=5) as batcher,
    ):
        sender = Sender(line, batcher, client)
        for step in steps:
            await sender.step(*step)
        await sender.end()
        await batcher.append(*plain("last"))

        written = await stored(client, name)
    bodies = list(written.values())
    assert len(set(bodies)) == len(bodies)
    assert sender.accepted.items() <= written.items()
    assert not set(sender.refused) & set(bodies)


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


async def test_a_batch_is_stored_in_its_order(name: str, client: Redis) -> None:
    """One id for each message."""
    ids = await run_append(client, name, 1, 0, ["a", "b", "c"])

    assert list((await stored(client, name)).items()) == list(
        zip(ids, ["a", "b", "c"], strict=True)
    )


async def test_a_known_batch_is_answered_as_the_first_time(
    own_server: RedisServer, name: str, own_client: Redis
) -> None:
    """However often it comes; a full memory does not keep it from being known."""
    first = await run_append(own_client, name, 1, 0, ["a", "b"])
    await run_append(own_client, name, 2, 0, ["c"])
    await set_memory(own_client, 1)

    again = await run_append(own_client, name, 1, 0, ["a", "b"])

    assert again == first
    assert list((await stored(own_client, name)).values()) == ["a", "b", "c"]


async def test_a_full_memory_refuses_all_of_a_batch(
    own_server: RedisServer, name: str, own_client: Redis
) -> None:
    """And its number stays unknown, so it is stored when it comes again."""
    await run_append(own_client, name, 1, 0, ["a"])
    await set_memory(own_client, 1)
    with pytest.raises((OutOfMemoryError, ResponseError), match="maxmemory"):
        await run_append(own_client, name, 2, 0, ["b", "c"])
    await set_memory(own_client, 0)
    await run_append(own_client, name, 3, 0, ["d"])

    await run_append(own_client, name, 2, 0, ["b", "c"])

    assert list((await stored(own_client, name)).values()) == ["a", "d", "b", "c"]


@pytest.mark.parametrize("obstacle", ["-zadd", "delayed", "delayed_fields"])
async def test_what_a_delayed_message_is_refused_by_keeps_out_all_of_its_batch(
    own_server: RedisServer, name: str, own_client: Redis, obstacle: str
) -> None:
    """Those beside it are told they are not stored, and may be sent anew."""
    keys = QueueKeys(name)
    await own_client.execute_command("ACL", "SETUSER", "u", "on", ">p", "~*", "+@all")
    if obstacle.startswith("-"):
        await own_client.execute_command("ACL", "SETUSER", "u", obstacle)
    else:
        await own_client.set(getattr(keys, obstacle), "something else")
    url = own_server.url.replace("://", "://u:p@")
    async with open_batcher(url, name) as batcher:
        fields, size = plain("a")
        tasks = [
            asyncio.create_task(batcher.append(fields, size, times))
            for times in ("", "", "", "60000::")  # the first goes alone
        ]
        await asyncio.wait(tasks)

    errors = [type(error) for error in await errors_of(tasks)]
    assert len(errors) == 3
    assert set(errors) <= {PermissionDeniedError, WrongKeyTypeError}
    assert await own_client.xlen(name) == 1


async def test_a_number_below_low_is_refused(name: str, client: Redis) -> None:
    """Its sender has given it up: a late original must not write."""
    await run_append(client, name, 17, 16, ["a"])

    for number in (1, 15):
        with pytest.raises(ResponseError, match=f"STALE batch {number} was given up"):
            await run_append(client, name, number, 0, ["late"])
    await run_append(client, name, 16, 16, ["b"])

    assert list((await stored(client, name)).values()) == ["a", "b"]


async def test_only_what_is_below_low_is_forgotten(name: str, client: Redis) -> None:
    """All of it, however far it moves at once."""
    for number in range(1, 6):
        await run_append(client, name, number, 0, ["x"])
    await run_append(client, name, 6, 4, ["x"])
    some = set(await remembered(client, name))
    await run_append(client, name, 5000, 4990, ["x"])
    last = set(await remembered(client, name))

    assert (some, last) == ({4, 5, 6}, {5000})


async def test_a_memory_that_has_run_out_begins_anew(name: str, client: Redis) -> None:
    """A producer that was silent for longer than it lasts goes on with its numbers."""
    await run_append(client, name, 20, 16, ["a"], memory_ms=60_000)
    [memory] = await memories(client, name)
    await client.delete(memory)

    await run_append(client, name, 21, 16, ["b"], memory_ms=60_000)

    assert await client.hgetall(memory) == {
        b"low": b"16",
        b"21": list(await stored(client, name))[1].encode(),
    }
    assert 0 < await client.pttl(memory) <= 60_000


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
