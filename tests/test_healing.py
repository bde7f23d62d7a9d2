"""A group that somebody has removed by hand is made again where it was, on whatever server.

What it had settled does not come again, also where another group still needs it; what it had
pending is pending: whoever holds it settles it, and what nobody holds any more is taken over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from anyio import create_task_group
from redis.asyncio import Redis

from aioredismq import (
    Connection,
    Consumer,
    ConsumerConfig,
    RedisMessageQueue,
    RejectMessage,
)
from aioredismq._keys import QueueKeys
from aioredismq._member import Member, Move
from aioredismq._message import Entry
from aioredismq._stream import Stream
from tests.looking import Handled, deliver, left, opened_stream
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from aioredismq._stream import Generation
    from aioredismq.testing import RedisServer

GROUP, SLOW = "billing", "slow"
ONE, TWO = "one", "two"
FAR_AWAY = 1e11

pytestmark = pytest.mark.one_loop

both = pytest.mark.parametrize("latest", [False, True], ids=["earliest", "latest"])


@pytest.fixture
async def stream(url: str, name: str) -> AsyncIterator[Stream]:
    """A queue with one group, which has read nothing and so needs everything."""
    async with opened_stream(url, name, SLOW) as opened:
        yield opened


class Healing:
    """A group, and how a test removes it and lets it be made again."""

    def __init__(self, stream: Stream, client: Redis, *, latest: bool) -> None:
        """It is not there yet."""
        self.stream = stream
        self.client = client
        self.latest = latest
        self.one = Member(stream, GROUP, ONE)
        self.two = Member(stream, GROUP, TWO)
        self._known: Generation | None = None

    async def begin(self) -> None:
        """Make it for the first time."""
        self._known = await self.stream.open_group(GROUP, latest=self.latest, rules={})

    async def destroy(self) -> None:
        """Remove it by hand."""
        assert await self.client.xgroup_destroy(self.stream.keys.stream, GROUP)

    async def mend(
        self,
        held: Sequence[Entry] = (),
        consumer: str = ONE,
        beside: Sequence[str] = (),
    ) -> bool:
        """Make it again, as a consumer that holds some; says whether it was gone."""
        mended = await self.stream.open_group(
            GROUP,
            latest=self.latest,
            how="again",
            known=self._known,
            consumer=consumer,
            held=[entry.id for entry in held],
            beside=beside,
            rules={},
        )
        return mended.made

    async def produce(self, count: int) -> list[bytes]:
        """Store some, and give their ids."""
        name = self.stream.keys.stream
        return [await self.client.xadd(name, {"body": "x"}) for _ in range(count)]

    async def deliver(self, count: int, consumer: str = ONE) -> list[Entry]:
        """Store some, and let a consumer have them."""
        return await deliver(self.stream, self.client, GROUP, consumer, *[b"x"] * count)

    async def settle(self, entries: Sequence[Entry], group: str = GROUP) -> int:
        """Acknowledge as a consumer does; gives how many were pending."""
        answers: list[Any] = []
        command = Member(self.stream, group, ONE).settle_command(
            [entry.id for entry in entries], in_lane=False, whole=True
        )
        self.stream.link.submit(command, answers.append)
        await eventually(lambda: bool(answers))
        assert isinstance(answers[0], int), answers
        return answers[0]

    async def look(self) -> None:
        """Look as a consumer does now and then."""
        await self.two.recover(visibility_timeout=0, take_until=None)

    async def comes(self) -> list[bytes]:
        """Read all that comes, and give the ids."""
        name = self.stream.keys.stream
        reply = await self.client.xreadgroup(GROUP, TWO, {name: ">"}, count=10_000)
        return [entry_id for _, rows in reply for entry_id, _ in rows]

    async def pending(self) -> list[tuple[bytes, bytes]]:
        """List what is pending, with its consumers."""
        rows = await self.client.xpending_range(
            self.stream.keys.stream, GROUP, "-", "+", 10_000
        )
        return [(row["message_id"], row["consumer"]) for row in rows]

    async def noted(self) -> bool:
        """Say whether something is noted besides the place."""
        return bool(await self.client.exists(self.stream.keys.settled(GROUP)))


@pytest.fixture
async def work(stream: Stream, client: Redis, latest: bool) -> Healing:
    """A group beside the slow one."""
    healing = Healing(stream, client, latest=latest)
    await healing.begin()
    return healing


# Where it begins again.


@both
async def test_what_was_produced_for_a_new_group_comes_though_it_was_lost_at_once(
    work: Healing,
) -> None:
    """Nobody has looked at it yet; where it began is known since it was made."""
    ids = await work.produce(3)
    await work.destroy()

    assert await work.mend()

    assert await work.comes() == ids


async def test_a_latest_group_does_not_get_what_was_there_before_it(
    stream: Stream, client: Redis
) -> None:
    """Neither at first nor when it is made again."""
    work = Healing(stream, client, latest=True)
    await work.produce(3)
    await work.begin()
    await work.destroy()

    await work.mend()

    assert await work.comes() == []


@both
async def test_what_it_has_settled_does_not_come_again(work: Healing) -> None:
    """Another group still needs it, so it is still there; what is new comes."""
    await work.settle(await work.deliver(5))
    await work.settle(await work.deliver(5))
    new = await work.produce(2)
    await work.destroy()

    await work.mend()

    assert await work.comes() == new
    assert await work.client.xlen(work.stream.keys.stream) == 12


@both
async def test_what_is_settled_before_and_after_a_look_does_not_come_again(
    work: Healing,
) -> None:
    """A look writes the place down anew, and what was noted until then is in it."""
    entries = await work.deliver(9)
    await work.settle(entries[:2])
    assert await work.noted()
    await work.look()
    assert not await work.noted()
    await work.settle(entries[4:6])
    await work.destroy()

    await work.mend(held=[*entries[2:4], *entries[6:]])

    assert await work.comes() == []
    held = [*entries[2:4], *entries[6:]]
    assert await work.pending() == [(entry.id, b"one") for entry in held]


@both
async def test_what_is_settled_while_it_is_gone_does_not_come_again(
    work: Healing,
) -> None:
    """Handlers end meanwhile."""
    entries = await work.deliver(4)
    await work.look()
    await work.destroy()
    assert await work.settle(entries[:3]) == 0

    await work.mend(held=entries[3:])

    assert await work.comes() == []
    assert await work.pending() == [(entries[3].id, b"one")]


@both
async def test_what_all_had_settled_before_it_was_made_again_goes(
    work: Healing,
) -> None:
    """The other group was faster; nobody would ever take it off."""
    entries = await work.deliver(4)
    name = work.stream.keys.stream
    await work.client.xreadgroup(SLOW, ONE, {name: ">"}, count=4)
    await work.settle(entries[:3], SLOW)
    await work.destroy()
    await work.settle(entries)

    await work.mend()

    assert await work.comes() == []
    assert [entry_id for entry_id, _ in await work.client.xrange(name)] == [
        entries[3].id
    ]


@both
async def test_much_that_was_settled_is_written_down_in_between(work: Healing) -> None:
    """What is noted stays small, without anybody looking."""
    settled = 0
    first = await work.deliver(1)
    sizes = []
    while settled < 6000:
        entries = await work.deliver(250)
        await work.settle(entries)
        settled += len(entries)
        sizes.append(await work.client.strlen(work.stream.keys.settled(GROUP)))
    await work.destroy()

    await work.mend()

    assert 0 in sizes
    assert max(sizes) < 70_000
    assert await work.comes() == []
    assert await work.pending() == [(first[0].id, b"nobody")]


@both
async def test_only_so_much_that_is_pending_is_remembered(work: Healing) -> None:
    """From the thousandth on all comes again: nothing is lost."""
    entries = await work.deliver(1100)
    await work.look()
    await work.settle([entries[0], *entries[1050:]])
    await work.destroy()

    await work.mend()

    assert await work.comes() == [entry.id for entry in entries[1000:]]
    pending = [entry_id for entry_id, name in await work.pending() if name == b"nobody"]
    assert pending == [entry.id for entry in entries[1:1000]]


@both
async def test_a_stream_that_went_back_is_seen_again_only_by_who_may(
    work: Healing,
) -> None:
    """A copy from earlier was restored: what of it was settled since, nobody knows."""
    name = work.stream.keys.stream
    await work.client.xadd(name, {"body": "x"}, id="99999999999999-0")
    await work.comes()
    await work.look()
    await work.client.delete(name)
    ids = await work.produce(2)

    await work.mend()

    assert await work.comes() == ([] if work.latest else ids)


@both
async def test_after_the_loss_of_everything_what_was_produced_since_comes(
    work: Healing,
) -> None:
    """Producers may be first; also when another group has been mended before."""
    await work.settle(await work.deliver(3))
    await lose_all(work.client, work.stream.keys.name)
    ids = await work.produce(2)
    await work.stream.open_group(SLOW, how="again", known=work._known, rules={})

    await work.mend()

    assert await work.comes() == ids


RUBBISH = [
    b"",
    b"words",
    b"\xc1",
    b"\x94\xa1x\xc3\x90\x90",
    b"\x94\xa31-1\xc3\x91\xa1x\x90",
]


@both
@pytest.mark.parametrize("rubbish", RUBBISH)
async def test_where_its_place_is_rubbish_it_begins_as_a_new_one(
    work: Healing, rubbish: bytes
) -> None:
    """Somebody has written something else there: better all again than never any more."""
    ids = [entry.id for entry in await work.deliver(2)]
    await work.client.hset(work.stream.keys.queue, f"place:{GROUP}", rubbish)
    await work.destroy()

    assert await work.mend()

    assert await work.comes() == ([] if work.latest else ids)


@pytest.mark.parametrize("latest", [False])
async def test_rubbish_among_what_is_noted_counts_for_nothing(work: Healing) -> None:
    """What is noted beside it counts."""
    one, two = await work.deliver(2)
    await work.settle([one])
    await work.client.append(work.stream.keys.settled(GROUP), "x-1! 7 words \xff ")
    await work.settle([two])
    await work.destroy()

    assert await work.mend()

    assert (await work.comes(), await work.pending()) == ([], [])


@pytest.mark.parametrize("latest", [False])
async def test_where_the_notes_are_something_else_it_is_made_all_the_same(
    work: Healing,
) -> None:
    """They are made anew, too."""
    [one] = await work.deliver(1)
    await work.client.delete(work.stream.keys.settled(GROUP))
    await work.client.lpush(work.stream.keys.settled(GROUP), "rubbish")
    await work.settle([one])
    await work.destroy()

    assert await work.mend()

    assert not await work.noted()


@pytest.mark.parametrize("latest", [False])
@pytest.mark.parametrize("rubbish", [b"", b"words", b"-1", b"(", b"5"])
async def test_where_a_look_is_to_begin_may_be_rubbish(
    work: Healing, rubbish: bytes
) -> None:
    """It begins at the beginning then, instead of never any more."""
    [abandoned] = await work.deliver(1, TWO)
    for name in ("cursor", "lane-cursor"):
        await work.client.hset(work.stream.keys.queue, f"{name}:{GROUP}", rubbish)

    found = await work.one.recover(visibility_timeout=0, take_until=FAR_AWAY)

    assert found.entry is not None
    assert found.entry.id == abandoned.id


# The groups beside it.


async def test_groups_that_are_lost_together_come_back_together(
    url: str, name: str, client: Redis
) -> None:
    """Or what one of them settles first would be taken off before the others could see it."""
    groups = (GROUP, SLOW)
    handled, slow = Handled(), Handled()
    async with RedisMessageQueue(name, url, groups=groups) as queue:
        async with Consumer(queue, handled, ConsumerConfig(group=GROUP)):
            await queue.produce(0)
            await handled.until(1)
            await lose_all(client, name)
            await queue.produce(1)
            await handled.until(2)

        async with Consumer(queue, slow, ConsumerConfig(group=SLOW)):
            await slow.until(1)
        assert slow.bodies == [1]
        await queue.delete()


async def test_a_group_beside_it_begins_where_it_was(
    stream: Stream, client: Redis
) -> None:
    """At the beginning of a stream that is new; else its own consumers know where."""
    name = stream.keys.stream
    work = Healing(stream, client, latest=False)
    await work.begin()
    await work.settle(await work.deliver(3))
    await client.xreadgroup(SLOW, ONE, {name: ">"}, count=1)
    await Member(stream, SLOW, ONE).recover(visibility_timeout=0, take_until=None)
    await work.destroy()
    await client.xgroup_destroy(name, SLOW)
    assert await work.mend(beside=[SLOW])
    assert await group_names(client, name) == {GROUP}

    await client.delete(name)
    assert await work.mend(beside=[SLOW])

    assert await group_names(client, name) == {GROUP, SLOW}


@pytest.mark.parametrize("how_far", ["it has settled some", "this one has read some"])
async def test_where_the_stream_is_left_a_group_beside_it_knows_better(
    stream: Stream, client: Redis, how_far: str
) -> None:
    """All groups were removed by hand: what it has settled, or has in hand, would come again."""
    name = stream.keys.stream
    work = Healing(stream, client, latest=False)
    await work.begin()
    if how_far == "it has settled some":
        await work.produce(3)
        [[_, rows]] = await client.xreadgroup(SLOW, ONE, {name: ">"}, count=3)
        await work.settle([Entry(row[0], [], in_lane=False) for row in rows], SLOW)
    else:
        await work.deliver(3)
        await client.xreadgroup(SLOW, ONE, {name: ">"}, count=3)
        await work.look()
    await work.destroy()
    await client.xgroup_destroy(name, SLOW)

    assert await work.mend(beside=[SLOW])

    assert await group_names(client, name) == {GROUP}


async def test_a_group_that_was_destroyed_on_purpose_stays_away(
    stream: Stream, client: Redis
) -> None:
    """Though somebody still names it, as long as anything is known."""
    name = stream.keys.stream
    work = Healing(stream, client, latest=False)
    await work.begin()
    await stream.destroy_group(SLOW)
    await client.delete(name)

    await work.mend(beside=[SLOW])

    assert await group_names(client, name) == {GROUP}


async def test_a_group_that_is_there_is_not_made_beside_it(
    stream: Stream, client: Redis
) -> None:
    """One of two was lost, and a third was never made: that is not for others to do."""
    work = Healing(stream, client, latest=False)
    await work.begin()
    await work.destroy()

    await work.mend(beside=[SLOW, "third"])

    assert await group_names(client, stream.keys.stream) == {GROUP, SLOW}


# What was pending.


@both
async def test_what_others_hold_is_nobodys_until_they_say_so(work: Healing) -> None:
    """Who makes it again knows only what is his; they say so with the next renewal."""
    mine, theirs = await work.deliver(2), await work.deliver(2, TWO)
    last = await work.deliver(1)
    await work.destroy()

    await work.mend(held=[*mine, *last])

    assert await work.pending() == [
        *[(entry.id, b"one") for entry in mine],
        *[(entry.id, b"nobody") for entry in theirs],
        (last[0].id, b"one"),
    ]
    ids = [entry.id for entry in theirs]
    assert await work.two.renew(ids, in_lane=False) == []
    assert [owner for _, owner in await work.pending()] == [
        b"one", b"one", b"two", b"two", b"one",
    ]  # fmt: skip
    assert await work.one.renew(ids, in_lane=False) == ids
    assert await work.comes() == []


@both
async def test_who_finds_it_made_again_has_what_is_his(work: Healing) -> None:
    """Every consumer that notices asks for it; only one makes it."""
    theirs, last = await work.deliver(2, TWO), await work.deliver(1)
    await work.destroy()

    assert await work.mend(held=last)
    assert not await work.mend(held=theirs, consumer=TWO)

    assert [owner for _, owner in await work.pending()] == [b"two", b"two", b"one"]


@both
async def test_what_nobody_holds_any_more_is_taken_over(work: Healing) -> None:
    """Its process died before or while the group was gone; what it cost stays known."""
    lost, killer, last = await work.deliver(3, TWO)
    name = work.stream.keys.stream
    await work.client.xclaim(
        name, GROUP, TWO, 0, [killer.id], retrycount=1002, justid=True
    )
    await work.look()
    await work.settle([last])
    await work.destroy()
    await work.mend()

    found = [
        await work.one.recover(visibility_timeout=0, take_until=FAR_AWAY)
        for _ in range(2)
    ]

    taken = [one.entry and (one.entry.id, one.entry.crashes) for one in found]
    assert taken == [(lost.id, 0), (killer.id, 3)]


@both
async def test_nobodys_name_goes_with_what_was_under_it(work: Healing) -> None:
    """Its holders have acknowledged it; the next that ends takes the name along."""
    entries = await work.deliver(2, TWO)
    await work.look()
    await work.destroy()
    await work.mend()
    assert await work.one.forget()
    assert (await left(work.client, work.stream.keys.name, GROUP)).names == (b"nobody",)

    await work.settle(entries)

    assert await work.one.forget()
    assert (await left(work.client, work.stream.keys.name, GROUP)).names == ()


@both
async def test_what_was_deleted_meanwhile_is_not_pending_again(work: Healing) -> None:
    """6.2 would keep it for ever."""
    entries = await work.deliver(2)
    await work.look()
    await work.destroy()
    await work.client.xdel(work.stream.keys.stream, entries[0].id)

    await work.mend()

    assert await work.pending() == [(entries[1].id, b"nobody")]


@both
async def test_what_fails_for_good_or_is_handed_back_does_not_come_again(
    work: Healing,
) -> None:
    """It is settled as far as the stream is concerned."""
    dead, back = await work.deliver(2)
    moves = [Move(dead, "dead", dead.fields), Move(back, "lane", back.fields)]
    assert await work.one.move(moves) == [True, True]
    await work.destroy()

    await work.mend()

    assert await work.comes() == []
    assert await work.pending() == []


# What it costs, and what is left.


async def test_with_one_group_nothing_is_noted(
    url: str, name: str, client: Redis
) -> None:
    """What it settles is taken off."""
    async with opened_stream(url, name, GROUP) as stream:
        work = Healing(stream, client, latest=False)

        await work.settle(await work.deliver(3))

        assert not await work.noted()
        assert await client.xlen(name) == 0


@both
async def test_what_others_have_settled_already_is_not_noted(work: Healing) -> None:
    """It is taken off."""
    entries = await work.deliver(3)
    name = work.stream.keys.stream
    await work.client.xreadgroup(SLOW, ONE, {name: ">"}, count=3)
    await work.settle(entries, SLOW)
    await work.settle(entries)

    assert not await work.noted()
    assert await work.client.xlen(name) == 0


@both
@pytest.mark.parametrize("what", ["group", "queue"])
async def test_nothing_is_noted_of_what_was_deleted_on_purpose(
    work: Healing, what: str
) -> None:
    """Its handlers may still end."""
    one, two = await work.deliver(2)
    await work.settle([one])
    assert await work.noted()

    if what == "group":
        await work.stream.destroy_group(GROUP)
    else:
        await work.stream.delete()
    assert await work.settle([two]) == 0

    assert not await work.noted()


async def test_an_idle_group_writes_nothing_down_again(
    own_server: RedisServer, name: str
) -> None:
    """A look that finds all as it was leaves the file and the replicas in peace."""
    async with (
        Redis.from_url(own_server.url, protocol=2) as client,
        opened_stream(own_server.url, name, SLOW) as stream,
    ):
        work = Healing(stream, client, latest=False)
        await work.begin()
        await work.deliver(3)
        await work.look()
        before = await client.hget(stream.keys.queue, f"place:{GROUP}")
        dirty = (await client.info("persistence"))["rdb_changes_since_last_save"]

        await work.look()

        after = (await client.info("persistence"))["rdb_changes_since_last_save"]
        assert before == await client.hget(stream.keys.queue, f"place:{GROUP}")
        assert after - dirty <= 1  # how long its visibility timeout is


@both
async def test_it_is_mended_under_a_full_memory(
    own_server: RedisServer, name: str, latest: bool
) -> None:
    """Its consumers are what makes room."""
    async with (
        Redis.from_url(own_server.url, protocol=2) as client,
        opened_stream(own_server.url, name, SLOW) as stream,
    ):
        work = Healing(stream, client, latest=latest)
        await work.begin()
        settled, held = await work.deliver(2)
        await client.config_set("maxmemory", 1)
        await work.settle([settled])
        await client.config_set("maxmemory", 0)  # 6.2 refuses to destroy one otherwise
        await work.destroy()
        await client.config_set("maxmemory", 1)

        assert await work.mend(held=[held])

        assert await work.pending() == [(held.id, b"one")]
        await client.config_set("maxmemory", 0)


async def test_dead_letters_that_have_failed_again_stay_and_do_not_come_again(
    url: str, name: str, client: Redis
) -> None:
    """A sweep leaves them alone, too."""
    handled = Handled(error=RejectMessage("no"))
    async with RedisMessageQueue(name, url) as queue:
        async with Consumer(queue, handled):
            await queue.produce_many(range(3))
            await handled.until(3)
            await eventually(lambda: is_there(queue, 3))
        again = Handled(error=RejectMessage("no"))
        letters = queue.dead_letters
        async with create_task_group() as tasks:
            tasks.start_soon(letters.consume, again)
            await again.until(3)
            key = f"{{{name}}}:dead"
            group = await only_group(client, key)

            async def is_quiet() -> bool:
                return not (await client.xpending(key, group))["pending"]

            await eventually(is_quiet)
            await client.xgroup_destroy(key, group)
            await eventually(lambda: has_group(client, key))
            await client.xadd(key, {"body": "4", "mq-group": f"{name}_group"})
            await again.until(4)
            tasks.cancel_scope.cancel()
        assert len(again.bodies) == 4
        assert await sweep(url, name) == 0
        assert await letters.count() == 4
        await queue.delete()


async def sweep(url: str, name: str) -> int:
    """Sweep the dead letters as a consumer of them does; gives how many went."""
    connection = Connection(url)
    async with connection:
        keys = QueueKeys(name).for_dead_letters()
        return await Stream(await connection.link(name), keys).sweep()


async def lose_all(client: Redis, name: str) -> None:
    """Delete all that a queue has, as a server does that comes back empty."""
    await client.delete(*[key async for key in client.scan_iter(f"*{name}*")])


async def group_names(client: Redis, key: str) -> set[str]:
    """Name the groups of a stream."""
    return {about["name"].decode() for about in await client.xinfo_groups(key)}


async def is_there(queue: RedisMessageQueue, count: int) -> bool:
    """Say whether there are so many dead letters."""
    return await queue.dead_letters.count() == count


async def only_group(client: Redis, key: str) -> bytes:
    """Name the group of a stream."""
    [group] = await client.xinfo_groups(key)
    found: bytes = group["name"]
    return found


async def has_group(client: Redis, key: str) -> bool:
    """Say whether a stream has a group."""
    return bool(await client.xinfo_groups(key))
