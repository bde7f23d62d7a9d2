from __future__ import annotations

import asyncio
import math
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from anyio import fail_after
from redis.asyncio import Redis

from aioredismq import (
    ConfigurationError,
    Connection,
    Consumer,
    ConsumerConfig,
    DeadLetter,
    ExponentialBackoff,
    Message,
    NotInitializedError,
    RedisMessageQueue,
    RejectMessage,
    RetryMessage,
    ServerError,
    WrongKeyTypeError,
)
from aioredismq import _dead_letters as room_of_dead_letters
from aioredismq import _promoter as room_of_promoter
from aioredismq import _scripts as scripts
from aioredismq.testing import FaultyLine
from tests.looking import Handled, Messages, left
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from aioredismq.testing import RedisServer

pytestmark = pytest.mark.one_loop

AT_ONCE = ExponentialBackoff(initial=0)


@asynccontextmanager
async def consuming(
    queue: RedisMessageQueue, handler: Callable[..., object], group: str | None = None
) -> AsyncIterator[None]:
    """Run a handler in the block; two attempts, at once."""
    config = ConsumerConfig(group=group, max_attempts=2, retry=AT_ONCE)
    async with Consumer(queue, handler, config):
        yield


async def die(
    queue: RedisMessageQueue,
    *bodies: object,
    error: Exception | None = None,
    group: str | None = None,
) -> list[str]:
    """Let messages become dead letters by this error; returns their own ids, in order."""
    before = await queue.dead_letters.count()
    async with consuming(queue, Handled(error=error or LookupError("gone")), group):
        await queue.produce_many(bodies)
        limit = before + len(bodies)

        async def are_dead() -> bool:
            return await queue.dead_letters.count() >= limit

        await eventually(are_dead)
    letters = (await queue.dead_letters.list(limit=None))[before:]
    return [one.id for one in sorted(letters, key=lambda one: str(one.body))]


# Looking.


async def test_a_letter_tells_all_that_is_known_of_a_death(url: str, name: str) -> None:
    """Body, headers, why, in what, after how many attempts, and when it began and ended."""
    async with RedisMessageQueue(name, url) as queue:
        async with consuming(queue, Handled(error=LookupError("no such customer"))):
            sent = await queue.produce({"order": 7}, headers={"tenant": "blue"})
            await eventually(lambda: has_letters(queue, 1))

        [letter] = await queue.dead_letters.list()

        assert letter.message_id == sent
        assert (letter.body, letter.headers) == ({"order": 7}, {"tenant": "blue"})
        assert (letter.reason, letter.detail) == ("attempts", "no such customer")
        assert letter.error_type == "LookupError"
        assert letter.traceback.endswith("LookupError: no such customer\n")
        assert (letter.group, letter.attempts) == (f"{name}_group", 2)
        assert letter.crashes == 0
        assert letter.produced_at is not None
        assert letter.produced_at <= letter.died_at
        assert abs(letter.died_at - datetime.now(UTC)) < timedelta(seconds=30)
        assert letter.fields[b"body"] == b'{"order":7}'


async def has_letters(queue: RedisMessageQueue, count: int) -> bool:
    """Say whether there are so many."""
    return await queue.dead_letters.count() == count


async def test_the_end_of_a_long_list_is_found(
    url: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Page by page, oldest first; a limit ends it sooner."""
    monkeypatch.setattr(room_of_dead_letters, "_PAGE", 4)
    async with RedisMessageQueue(name, url) as queue:
        await die(queue, *range(10))
        dead = queue.dead_letters

        letters = await dead.list(limit=None)

        assert len(letters) == await dead.count() == 10
        assert [one.id for one in letters] == sorted(one.id for one in letters)
        assert await dead.list(limit=5) == letters[:5]
        assert await dead.list(limit=0) == []


async def test_letters_are_chosen_by_reason_and_time(url: str, name: str) -> None:
    """Each by itself, and both together."""
    async with RedisMessageQueue(name, url) as queue:
        await die(queue, "old", error=RejectMessage("no"))
        await die(queue, "failed")
        [border] = [one.died_at for one in await queue.dead_letters.list()][1:]
        await asyncio.sleep(0.002)
        await die(queue, "new", error=RejectMessage("no"))
        dead = queue.dead_letters

        async def bodies(**choice: object) -> list[object]:
            return [one.body for one in await dead.list(**choice)]  # type: ignore[arg-type]

        assert await bodies(reason="rejected") == ["old", "new"]
        assert await bodies(since=border) == ["failed", "new"]
        assert await bodies(since=border.timestamp(), reason="rejected") == ["new"]
        assert await bodies(since=border + timedelta(days=1)) == []
        assert await bodies(reason="crashed") == []
        for nonsense in (math.nan, math.inf, -1, "yesterday", datetime(2026, 1, 1)):  # noqa: DTZ001
            with pytest.raises(ConfigurationError, match="since must"):
                await bodies(since=nonsense)


async def test_one_is_got_by_its_id(url: str, name: str) -> None:
    """None for one that is not there."""
    async with RedisMessageQueue(name, url) as queue:
        [letter_id] = await die(queue, "a")

        letter = await queue.dead_letters.get(letter_id)

        assert letter is not None
        assert letter.body == "a"
        assert await queue.dead_letters.get("1-1") is None


async def test_what_others_wrote_there_can_be_looked_at(
    url: str, name: str, client: Redis
) -> None:
    """By hand, with nonsense in our headers: shown as far as it goes."""
    async with RedisMessageQueue(name, url) as queue:
        nonsense = {
            b"body": b"{broken", b"mq-id": b"\xff-0", b"mq-attempt": b"many",
            b"mq-crashes": b"9" * 40, b"mq-detail": b"\xfe",
        }  # fmt: skip
        letter_id = await client.xadd(f"{{{name}}}:dead", nonsense)
        for told in (b"9" * 30 + b"-0", b"9" * 5000 + b"-0", "²-0", "1-²"):
            await client.xadd(f"{{{name}}}:dead", {b"mq-id": told})

        first, *others = await queue.dead_letters.list()

        assert (first.id, first.body) == (letter_id.decode(), b"{broken")
        assert (first.attempts, first.crashes, first.detail) == (0, 0, "\\xfe")
        assert (first.message_id, first.produced_at) == ("\\xff-0", None)
        assert [(one.produced_at, one.group) for one in others] == [(None, "")] * 4


async def test_before_the_queue_is_open_there_is_nothing_to_ask(name: str) -> None:
    """And it says so."""
    queue = RedisMessageQueue(name, "redis://127.0.0.1:1")

    with pytest.raises(NotInitializedError):
        await queue.dead_letters.count()


# Bringing back.


async def test_a_redriven_letter_goes_to_the_group_it_died_in(
    url: str, name: str, client: Redis
) -> None:
    """Not to the other, which has handled it; under its first id, as a first attempt."""
    async with RedisMessageQueue(name, url, groups=("a", "b")) as queue:
        others, again = Handled(), Messages()
        async with consuming(queue, others, "b"):
            [letter_id] = await die(queue, "x", group="a")
            [letter] = await queue.dead_letters.list()
            await others.until(1)

            done = await queue.dead_letters.redrive(letter_id)

            assert (done.count, done.missing, done.without_group) == (1, (), ())
            async with consuming(queue, again, "a"):
                await again.until(1)
        [message] = again.seen
        assert (message.id, message.attempt, message.body) == (
            letter.message_id,
            1,
            "x",
        )
        assert others.bodies == ["x"]
        assert await queue.dead_letters.count() == 0
        assert await left(client, name, "a") == await left(client, name, "b")


async def test_live_consumers_have_it_at_once(
    url: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bell rings: nobody waits for the next regular look."""
    monkeypatch.setattr(room_of_promoter, "_PULSE", (60.0, 60.0))
    async with RedisMessageQueue(name, url) as queue:
        handled = Handled()
        [letter_id] = await die(queue, "x")
        async with consuming(queue, handled):
            await queue.produce("first")
            await handled.until(1)

            await queue.dead_letters.redrive(letter_id)

            await handled.until(2)


async def test_attempts_go_on_when_they_are_not_to_begin_anew(
    url: str, name: str
) -> None:
    """One that had its last attempt is a dead letter again after one more."""
    async with RedisMessageQueue(name, url) as queue:
        [letter_id] = await die(queue, "x")

        await queue.dead_letters.redrive(letter_id, reset_attempts=False)

        failing = Messages(error=LookupError("still gone"))
        async with consuming(queue, failing):
            await eventually(lambda: has_letters(queue, 1))
        assert [one.attempt for one in failing.seen] == [3]
        [letter] = await queue.dead_letters.list()
        assert (letter.attempts, letter.detail) == (3, "still gone")


async def test_what_has_expired_is_wanted_when_it_is_redriven(
    url: str, name: str
) -> None:
    """Else it would expire again before anybody saw it."""
    async with RedisMessageQueue(name, url) as queue:
        handled = Handled()
        await queue.produce("x", expires=0.001)
        await asyncio.sleep(0.02)
        async with consuming(queue, handled):
            await eventually(lambda: has_letters(queue, 1))
            [letter] = await queue.dead_letters.list()
            assert (letter.reason, letter.attempts) == ("expired", 0)

            await queue.dead_letters.redrive(all=True)

            await handled.until(1)


async def test_all_or_those_with_a_reason_are_redriven(
    url: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also more than one page has."""
    monkeypatch.setattr(room_of_dead_letters, "_PAGE", 3)
    async with RedisMessageQueue(name, url) as queue:
        await die(queue, *range(5), error=RejectMessage("no"))
        await die(queue, *range(5, 12))

        by_reason = await queue.dead_letters.redrive(reason="rejected")
        rest = await queue.dead_letters.redrive(all=True)

        assert (by_reason.count, rest.count) == (5, 7)
        handled = Handled()
        async with consuming(queue, handled):
            await handled.until(12)
        assert sorted(handled.bodies) == list(range(12))


async def test_all_ends_although_each_dies_again(
    url: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are those that are there when it begins, not what a live consumer makes of them."""
    monkeypatch.setattr(room_of_dead_letters, "_PAGE", 2)
    async with RedisMessageQueue(name, url) as queue:
        await die(queue, *range(10))
        dead = queue.dead_letters
        redrive = dead._redrive

        async def until_dead_again(*args: Any, **options: Any) -> Any:
            answers = await redrive(*args, **options)
            await eventually(lambda: has_letters(queue, 10))
            return answers

        monkeypatch.setattr(dead, "_redrive", until_dead_again)
        rejecting = Handled(error=RejectMessage("still not"))
        async with consuming(queue, rejecting):
            with fail_after(20):
                done = await dead.redrive(all=True)

        assert done.count == 10
        assert sorted(rejecting.bodies) == list(range(10))


async def test_a_listing_ends_although_letters_come(
    url: str, name: str, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listing, redriving and discarding go through what is there when they begin."""
    monkeypatch.setattr(room_of_dead_letters, "_PAGE", 2)
    async with RedisMessageQueue(name, url) as queue:
        await die(queue, *range(4))
        found = 0

        with fail_after(8):
            async for _ in queue.dead_letters._each(None, None):
                found += 1
                await client.xadd(f"{{{name}}}:dead", {b"body": b"1"})

        assert found == 4
        assert await queue.dead_letters.count() == 8


async def test_a_letter_named_twice_is_brought_back_once(url: str, name: str) -> None:
    """And is not said to be missing."""
    async with RedisMessageQueue(name, url) as queue:
        [letter_id] = await die(queue, "x")

        done = await queue.dead_letters.redrive(letter_id, letter_id)

        assert (done.count, done.missing) == (1, ())


async def test_a_group_that_is_gone_is_said(url: str, name: str) -> None:
    """Its letters stay where they are; those of other groups come back."""
    async with RedisMessageQueue(name, url, groups=("a", "b")) as queue:
        [gone] = await die(queue, "x", group="a")
        async with consuming(queue, Handled(error=LookupError("too")), "b"):
            await eventually(lambda: has_letters(queue, 2))
        _, there = [one.id for one in await queue.dead_letters.list()]
        await queue.destroy_group("a")

        done = await queue.dead_letters.redrive(gone, there, "1-1")

        assert (done.count, done.missing, done.without_group) == (1, ("1-1",), (gone,))
        assert [one.id for one in await queue.dead_letters.list()] == [gone]


async def test_half_an_id_is_none(url: str, name: str, client: Redis) -> None:
    """It would bring back whatever died in that millisecond, and leave it where it was, too."""
    async with RedisMessageQueue(name, url) as queue:
        fields = {b"body": b"1", b"mq-group": f"{name}_group"}
        await client.xadd(f"{{{name}}}:dead", fields, id="1700000000000-1")

        done = await queue.dead_letters.redrive("1700000000000")

        assert (done.count, done.missing) == (0, ("1700000000000",))
        assert await queue.dead_letters.get("1700000000000") is None
        assert await client.xlen(f"{{{name}}}:lane:{name}_group") == 0


async def test_letters_others_wrote_hold_up_no_redrive(
    url: str, name: str, client: Redis
) -> None:
    """One with nothing to bring back, and one with more than a script can pass on."""
    async with RedisMessageQueue(name, url) as queue:
        group = {b"mq-group": f"{name}_group"}
        wide = {f"field {at}": "x" for at in range(5000)}
        for fields in ({}, {**wide, "body": "2"}, {"body": "3"}):
            await client.xadd(f"{{{name}}}:dead", {**group, **fields})

        done = await queue.dead_letters.redrive(all=True)

        brought = await client.xrange(f"{{{name}}}:lane:{name}_group")
        assert done.count == 3
        assert [fields[b"body"] for _, fields in brought] == [b"", b"2", b"3"]
        assert await queue.dead_letters.count() == 0


async def test_a_letter_nobody_of_ours_wrote_has_no_group(
    url: str, name: str, client: Redis
) -> None:
    """It cannot be brought back to anybody."""
    async with RedisMessageQueue(name, url) as queue:
        letter_id = await client.xadd(f"{{{name}}}:dead", {b"body": b"1"})

        done = await queue.dead_letters.redrive(all=True)

        assert done.without_group == (letter_id.decode(),)
        assert await queue.dead_letters.count() == 1


@pytest.mark.parametrize("when", ["request", "reply"])
async def test_a_redrive_whose_line_is_cut_leaves_a_letter_in_one_place(
    url: str, name: str, when: str
) -> None:
    """Before or after it was done: asked again, it is neither lost nor there twice, nor missed."""
    async with FaultyLine(url) as line:
        connection = Connection(line.url, reply_timeout=5)
        async with RedisMessageQueue(name, connection) as queue:
            letters = await die(queue, *range(5))
            await queue.dead_letters.redrive(letters[0])  # the server knows the script

            if when == "reply":
                line.reset_after_request(scripts.REDRIVE.digest)
            else:
                line.drop()
            done = await queue.dead_letters.redrive(*letters[1:])

            assert (done.count, done.missing) == (4, ())
            assert await queue.dead_letters.count() == 0
            handled = Handled()
            async with consuming(queue, handled):
                await handled.until(5)
            assert sorted(handled.bodies) == list(range(5))


async def test_what_a_redrive_remembers_ends_by_itself(
    url: str, name: str, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is small however many letters there are, and nothing is left for long."""
    monkeypatch.setattr(room_of_dead_letters, "_PAGE", 2)
    async with RedisMessageQueue(name, url) as queue:
        before = {key async for key in client.scan_iter(f"*{name}*:sent:*")}
        await die(queue, *range(9))

        assert (await queue.dead_letters.redrive(all=True)).count == 9
        assert (await queue.dead_letters.redrive("1-1")).missing == ("1-1",)

        keys = [key async for key in client.scan_iter(f"*{name}*:sent:*")]
        [key] = [
            key
            for key in set(keys) - before
            if await client.hkeys(key) == [b"number", b"answers"]
        ]
        assert 0 < await client.pttl(key) <= 600_000


async def test_a_redrive_the_server_refuses_leaves_the_letters(
    url: str, name: str, client: Redis
) -> None:
    """Whatever it refuses in the midst of it: the letter is still there, and only there."""
    async with RedisMessageQueue(name, url) as queue:
        letters = await die(queue, *range(3))
        lane = f"{{{name}}}:lane:{name}_group"
        await client.delete(lane)
        await client.set(lane, "something else")

        with pytest.raises(ServerError):
            await queue.dead_letters.redrive(*letters)

        assert await queue.dead_letters.count() == 3
        await client.delete(lane)
        assert (await queue.dead_letters.redrive(*letters)).count == 3


async def test_a_full_server_lets_letters_be_redriven(
    own_server: RedisServer, name: str
) -> None:
    """It needs no memory that the letters have not held."""
    async with (
        Redis.from_url(own_server.url, protocol=2) as client,
        RedisMessageQueue(name, own_server.url) as queue,
    ):
        await die(queue, *range(3))
        await client.config_set("maxmemory", 1)
        try:
            assert (await queue.dead_letters.redrive(all=True)).count == 3
        finally:
            await client.config_set("maxmemory", 0)
        assert await queue.dead_letters.count() == 0


async def test_a_delayed_message_that_died_says_when_it_was_produced(
    url: str, name: str
) -> None:
    """Its id does not tell; and it says so still when it died again after a redrive."""
    async with RedisMessageQueue(name, url) as queue:
        begun = sent = datetime.now(UTC)
        for error in (LookupError("gone"), RejectMessage("no")):
            async with consuming(queue, Handled(error=error)):
                if not isinstance(error, RejectMessage):
                    begun = datetime.now(UTC)
                    await queue.produce("x", delay=0.3)
                    sent = datetime.now(UTC)
                await eventually(lambda: has_letters(queue, 1))
            [letter] = await queue.dead_letters.list()
            await queue.dead_letters.redrive(all=True)

            assert letter.produced_at is not None
            a_moment = timedelta(milliseconds=50)
            assert begun - a_moment < letter.produced_at < sent + a_moment
            assert letter.died_at - letter.produced_at >= timedelta(seconds=0.29)


async def test_two_who_redrive_at_once_bring_each_back_once(
    url: str, name: str
) -> None:
    """Two operators press the same button."""
    async with RedisMessageQueue(name, url) as queue:
        await die(queue, *range(10))
        dead = queue.dead_letters

        done = await asyncio.gather(*[dead.redrive(all=True) for _ in range(3)])

        assert sum(one.count for one in done) == 10
        handled = Handled()
        async with consuming(queue, handled):
            await handled.until(10)
        assert sorted(handled.bodies) == list(range(10))


# Letting go.


async def test_letters_are_discarded_by_id_by_reason_or_all(
    url: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says how many there were."""
    monkeypatch.setattr(room_of_dead_letters, "_PAGE", 2)
    async with RedisMessageQueue(name, url) as queue:
        first, *_ = await die(queue, *range(3))
        await die(queue, 3, error=RejectMessage("no"))
        dead = queue.dead_letters

        assert await dead.discard(first, "1-1") == 1
        assert await dead.discard(reason="rejected") == 1
        assert await dead.discard(all=True) == 2
        assert await dead.discard(all=True) == 0
        assert await dead.count() == 0


@pytest.mark.parametrize("deed", ["redrive", "discard"])
@pytest.mark.parametrize(
    ("ids", "choice"),
    [
        ((), {}),
        (("1-1",), {"all": True}),
        (("1-1",), {"reason": "attempts"}),
        ((), {"reason": "attempts", "all": True}),
    ],
)
async def test_it_is_to_be_said_which(
    url: str, name: str, deed: str, ids: tuple[str, ...], choice: dict[str, object]
) -> None:
    """None by mistake, and not all by mistake either."""
    async with RedisMessageQueue(name, url) as queue:
        with pytest.raises(ConfigurationError, match="say which dead letters"):
            await getattr(queue.dead_letters, deed)(*ids, **choice)


async def test_what_is_no_id_is_refused(url: str, name: str) -> None:
    """A message's own id may be none of a letter's."""
    async with RedisMessageQueue(name, url) as queue:
        with pytest.raises(ConfigurationError, match="'oops' is not the id"):
            await queue.dead_letters.redrive("oops")


async def test_another_key_in_its_place_is_refused(
    url: str, name: str, client: Redis
) -> None:
    """Nothing is changed."""
    async with RedisMessageQueue(name, url) as queue:
        await client.set(f"{{{name}}}:dead", "something else")

        with pytest.raises(WrongKeyTypeError):
            await queue.dead_letters.redrive("1-1")


# Handling.


async def test_letters_can_be_handled(url: str, name: str, client: Redis) -> None:
    """Success removes a letter; one that fails stays a dead letter, and is not tried again."""
    seen: list[Message] = []

    async def mourn(message: Message) -> None:
        seen.append(message)
        if message.body == 1:
            raise LookupError("cannot be mended")

    async with RedisMessageQueue(name, url) as queue:
        await die(queue, *range(3))

        consuming_them = asyncio.ensure_future(queue.dead_letters.consume(mourn))
        await eventually(lambda: has_letters(queue, 1))
        consuming_them.cancel()
        with fail_after(8):
            await asyncio.wait([consuming_them])

        assert sorted(one.body for one in seen) == [0, 1, 2]
        [kept] = await queue.dead_letters.list()
        assert (kept.body, kept.reason, kept.detail) == (1, "attempts", "gone")
        done = await queue.dead_letters.redrive(kept.id)
        assert done.count == 1
        assert await client.exists(f"{{{name}}}:dead:dead") == 0


async def hold(
    queue: RedisMessageQueue, holding: int, **options: Any
) -> asyncio.Task[None]:
    """Consume letters with a handler that hangs, until so many are held."""
    handled = Handled()
    handled.gate = asyncio.Event()
    task = asyncio.ensure_future(queue.dead_letters.consume(handled, **options))
    await eventually(lambda: sum(one.held for one in queue.consumers) >= holding)
    await eventually(lambda: bool(handled.bodies))
    return task


async def end(task: asyncio.Task[None]) -> None:
    """Cancel it, and wait until it has ended."""
    task.cancel()
    with fail_after(8):
        await asyncio.wait([task])


async def keys_with_entries(client: Redis, name: str) -> dict[str, int]:
    """List the streams and sorted sets of a queue that hold something."""
    found = {}
    for key in [key async for key in client.scan_iter(f"*{name}*")]:
        kind = await client.type(key)
        size = {b"stream": client.xlen, b"zset": client.zcard}.get(kind)
        if size is not None and (entries := await size(key)):
            found[key.decode()] = entries
    return found


async def test_letters_that_are_handed_back_are_letters_as_before(
    url: str, name: str, client: Redis
) -> None:
    """Those that were held and those that were not: each is there once, with all it says."""
    async with RedisMessageQueue(name, url) as queue:
        await die(queue, *range(20))
        before = await queue.dead_letters.list()
        task = await hold(queue, 16, shutdown_timeout=0.01)

        await end(task)

        dead = queue.dead_letters
        assert await dead.count() == 20
        after = await dead.list(limit=None)
        assert sorted(map(known, after)) == sorted(map(known, before))
        assert await keys_with_entries(client, name) == {f"{{{name}}}:dead": 20}
        assert await dead.get(after[0].id) == after[0]
        assert (await dead.redrive(after[0].id, *[x.id for x in after[1:]])).count == 20


def known(letter: DeadLetter) -> tuple[object, ...]:
    """All of a letter but its own id, and what says when it died to who looks by hand."""
    said = dict(letter.fields)
    said.pop(b"mq-died", None)
    return (
        letter.message_id,
        letter.reason,
        letter.detail,
        letter.group,
        letter.attempts,
        letter.produced_at,
        letter.died_at,
        letter.body,
        sorted(said.items()),
    )


async def test_what_was_handed_back_is_consumed_again_and_handed_back_again(
    url: str, name: str, client: Redis
) -> None:
    """Its time of death stays; in the end it is handled, and gone."""
    async with RedisMessageQueue(name, url) as queue:
        await die(queue, "x")
        [first] = await queue.dead_letters.list()
        for _ in range(3):
            await end(await hold(queue, 1, shutdown_timeout=0.01))
        [letter] = await queue.dead_letters.list()
        assert known(letter) == known(first)
        assert await queue.dead_letters.list(since=first.died_at) == [letter]
        just_after = first.died_at + timedelta(milliseconds=1)
        assert await queue.dead_letters.list(since=just_after) == []

        handled = Messages()
        task = asyncio.ensure_future(queue.dead_letters.consume(handled))
        await eventually(lambda: has_letters(queue, 0))
        await end(task)

        assert [one.id for one in handled.seen] == [first.message_id]
        assert not await keys_with_entries(client, name)


async def test_what_was_redriven_or_discarded_while_it_was_held_does_not_come_back(
    url: str, name: str
) -> None:
    """Handing it back would make it twice, or again."""
    async with RedisMessageQueue(name, url) as queue:
        redriven, discarded, kept = await die(queue, *range(3))
        task = await hold(queue, 3, shutdown_timeout=0.01)
        await queue.dead_letters.redrive(redriven)
        await queue.dead_letters.discard(discarded)

        await end(task)

        [letter] = await queue.dead_letters.list()
        assert letter.body == 2
        assert letter.id != kept
        handled = Handled()
        async with consuming(queue, handled):
            await handled.until(1)
        assert handled.bodies == [0]


async def test_two_groups_of_letters_leave_each_letter_once(
    url: str, name: str
) -> None:
    """What one of them hands back is not there twice because the other has not seen it."""
    async with RedisMessageQueue(name, url) as queue:
        await die(queue, *range(5))
        await end(await hold(queue, 5, group="one", shutdown_timeout=0.01))
        await end(await hold(queue, 5, group="two", shutdown_timeout=0.01))

        first = await hold(queue, 5, group="one", shutdown_timeout=0.01)
        second = await hold(queue, 10, group="two", shutdown_timeout=0.01)
        assert await queue.dead_letters.count() == 5
        await end(first)
        await end(second)

        letters = await queue.dead_letters.list()
        assert sorted(one.body for one in letters) == list(range(5))


@pytest.mark.parametrize("is_batch", [False, True])
async def test_a_letter_whose_handler_wants_it_later_stays_a_letter(
    url: str, name: str, client: Redis, is_batch: bool
) -> None:
    """It is not tried again by itself, so nothing waits anywhere out of sight."""

    async def one_by_one(message: Message) -> None:
        raise RetryMessage("busy", delay=0.01)

    async def by_batch(messages: list[Message]) -> None:
        for message in messages:
            message.retry("busy", delay=0.01)

    async with RedisMessageQueue(name, url) as queue:
        await die(queue, *range(3))
        before = await queue.dead_letters.list()

        callback = by_batch if is_batch else one_by_one
        task = asyncio.ensure_future(queue.dead_letters.consume(callback))
        await eventually(lambda: sum(one.failed for one in queue.consumers) == 3)
        await end(task)

        assert await queue.dead_letters.list() == before
        assert await keys_with_entries(client, name) == {f"{{{name}}}:dead": 3}


async def test_what_a_crash_has_left_is_a_letter_until_it_is_handed_back_as_one(
    url: str, name: str, client: Redis
) -> None:
    """Held by a process that is gone, then taken over and cut off: there once all the time."""
    async with RedisMessageQueue(name, url) as queue:
        await die(queue, "x")
        [before] = await queue.dead_letters.list()
        dead = f"{{{name}}}:dead"
        await client.xgroup_create(dead, f"{dead}_group", "0")
        await client.xreadgroup(f"{dead}_group", "gone", {dead: ">"})
        assert await queue.dead_letters.list() == [before]

        await end(await hold(queue, 1, visibility_timeout=0.5, shutdown_timeout=0.01))

        [after] = await queue.dead_letters.list()
        assert known(after) == known(before)
        assert await keys_with_entries(client, name) == {dead: 1}
        await end(await hold(queue, 1, shutdown_timeout=0.01))
        assert await queue.dead_letters.count() == 1
