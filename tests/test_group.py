from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aioredismq import QueueDeletedError, RedisMessageQueue
from aioredismq._group import Group
from aioredismq._held import Held
from aioredismq._member import Member
from tests.looking import deliver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from aioredismq._stream import Stream

NAME, ONE = "billing", "one"


@pytest.fixture
async def queue(url: str, name: str) -> AsyncIterator[RedisMessageQueue]:
    """A queue with a group that is not the one under test."""
    async with RedisMessageQueue(name, url, groups=["another"]) as opened:
        yield opened
        await opened.delete()


class Reading:
    """A group, the consumer that reads from it, and what it holds."""

    def __init__(
        self, queue: RedisMessageQueue, *, name: str = NAME, latest: bool = False
    ) -> None:
        """It is not there yet."""
        self.stream: Stream = queue._require_stream()
        self.member = Member(self.stream, name, ONE)
        self.held = Held()
        self.times: list[float] = []
        self.group = Group(
            self.stream,
            queue.channel,
            self.member,
            self.held,
            latest=latest,
            set_clock=self.times.append,
        )


async def _undelivered(client: Redis, reading: Reading) -> int:
    found = await client.xreadgroup(NAME, "two", {reading.stream.keys.stream: ">"})
    return sum(len(rows) for _, rows in found)


@pytest.mark.parametrize(("latest", "expected"), [(False, 2), (True, 0)])
async def test_a_new_one_begins_where_it_is_to(
    queue: RedisMessageQueue, client: Redis, latest: bool, expected: int
) -> None:
    """With what is stored, or behind it."""
    await queue.produce_many(range(2))
    reading = Reading(queue, latest=latest)

    await reading.group.open()

    assert await _undelivered(client, reading) == expected


async def test_one_that_is_lost_is_made_again_with_what_is_held(
    queue: RedisMessageQueue, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """It stays with who holds it, and that is said once."""
    reading = Reading(queue)
    await reading.group.open()
    stream = reading.stream
    held = await deliver(stream, client, NAME, ONE, b"1")
    reading.held.add(held)
    await client.xgroup_destroy(stream.keys.stream, NAME)

    await reading.group.mend()
    await reading.group.mend()

    pending = await client.xpending_range(stream.keys.stream, NAME, "-", "+", 10)
    assert [(one["message_id"], one["consumer"]) for one in pending] == [
        (held[0].id, ONE.encode())
    ]
    said = f"group {NAME} of {queue.name} was gone: made again"
    assert [record.getMessage() for record in caplog.records] == [said]


async def test_after_the_loss_of_all_others_make_it_too(
    queue: RedisMessageQueue, client: Redis
) -> None:
    """Whatever is read by a consumer of this process is to be there, named or not."""
    one, two = Reading(queue), Reading(queue, name="shipping")
    await one.group.open()
    await two.group.open()
    await client.delete(*await client.keys(f"*{queue.name}*"))

    await one.group.mend()

    names = {group.name for group in await queue.groups()}
    assert names == {NAME, "shipping", "another"}


@pytest.mark.parametrize("how", ["mend", "follow"])
@pytest.mark.parametrize("what", ["group", "queue"])
async def test_what_was_deleted_on_purpose_is_not_made_again(
    queue: RedisMessageQueue, what: str, how: str
) -> None:
    """Whether it is missed by a read, or the bell tells."""
    reading = Reading(queue)
    await reading.group.open()
    await reading.group.follow()

    if what == "group":
        await queue.destroy_group(NAME)
    else:
        await queue.delete()

    with pytest.raises(QueueDeletedError):
        await getattr(reading.group, how)()


async def test_a_life_that_others_began_is_followed(
    queue: RedisMessageQueue, client: Redis
) -> None:
    """All was lost; they were first to notice. When that life is ended, ours is, too."""
    reading, others = Reading(queue), Reading(queue)
    await reading.group.open()
    await client.delete(*await client.keys(f"*{queue.name}*"))
    await others.group.open()
    await reading.group.follow()

    await queue.destroy_group(NAME)

    with pytest.raises(QueueDeletedError):
        await reading.group.follow()


async def test_what_is_not_open_yet_has_no_life_to_follow(
    queue: RedisMessageQueue,
) -> None:
    """The bell may ring that early."""
    reading = Reading(queue)

    await reading.group.follow()

    assert [one.name for one in await queue.groups()] == ["another"]


async def test_copies_of_the_originals_failures_are_said(
    url: str, name: str, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """They are left as they are: the failures themselves are pending, and are handled."""
    await client.xadd(f"failover_{name}", {'{"n":1}': "0.5"})
    async with RedisMessageQueue(name, url, wire="original", groups=["other"]) as queue:
        await Reading(queue).group.open()
        await queue.delete()
    await client.delete(f"failover_{name}")

    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"failover_{name} has copies of earlier failures, 1 of them")


async def test_the_servers_time_is_known_from_the_start(
    queue: RedisMessageQueue, client: Redis
) -> None:
    """Nothing can be called expired without it."""
    reading = Reading(queue)
    before = await _time(client)

    await reading.group.open()
    await reading.group.mend()

    after = await _time(client)
    assert [before <= told <= after for told in reading.times] == [True, True]


async def _time(client: Redis) -> float:
    """Give the server's time, in whole milliseconds as scripts see it."""
    seconds, microseconds = await client.time()
    return float(seconds) + microseconds // 1000 / 1000
