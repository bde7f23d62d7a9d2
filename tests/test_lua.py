"""What the scripts of settling promise, on whatever server: the rules no client could keep alone.

Their callers are tested in the rooms' own tests; here it is about what is in Redis afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis

from aioredismq import ServerFullError, WrongKeyTypeError
from aioredismq import _scripts as scripts
from aioredismq._history import tried_again
from aioredismq._member import Member, Move
from aioredismq._message import Entry
from tests.looking import NOTHING, Left, dead_letters, deliver, left, opened_stream
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from aioredismq._member import Where
    from aioredismq._stream import Stream
    from aioredismq.testing import RedisServer

ONE, TWO, THREE = "one", "two", "three"
READER = "reader"


@pytest.fixture
async def stream(url: str, name: str) -> AsyncIterator[Stream]:
    """A stream with a group called `one`."""
    async with opened_stream(url, name, ONE) as opened:
        yield opened


@pytest.fixture
async def full_server(own_server: RedisServer) -> AsyncIterator[FullServer]:
    """A server of this test's own, and how to fill it up."""
    async with Redis.from_url(own_server.url, protocol=2) as client:
        yield FullServer(own_server.url, client)


class FullServer:
    """A server whose memory can be full."""

    def __init__(self, url: str, client: Redis) -> None:
        """It is not full yet."""
        self.url = url
        self.client = client

    async def fill_up(self) -> None:
        """Refuse every write that needs memory."""
        await self.client.config_set("maxmemory", 1)
        with pytest.raises(Exception, match="maxmemory"):
            await self.client.set("x", "x")

    async def make_room(self) -> None:
        """Refuse nothing."""
        await self.client.config_set("maxmemory", 0)


async def settle(
    stream: Stream, group: str, entries: Sequence[Entry], consumer: str = READER
) -> int:
    """Acknowledge entries as their consumer does; gives how many were pending."""
    answers: list[Any] = []
    command = Member(stream, group, consumer).settle_command(
        [entry.id for entry in entries], in_lane=entries[0].in_lane, whole=True
    )
    stream.link.submit(command, answers.append)
    await eventually(lambda: bool(answers))
    assert isinstance(answers[0], int)
    return answers[0]


async def read_as(client: Redis, name: str, group: str, count: int = 100) -> int:
    """Read what a group has not seen; gives how many that was."""
    reply = await client.xreadgroup(group, READER, {name: ">"}, count=count)
    return sum(len(rows) for _, rows in reply)


async def bodies(client: Redis, key: str) -> list[bytes]:
    """List the bodies in a stream."""
    return [fields[b"body"] for _, fields in await client.xrange(key)]


# Settling: what the last group has settled is taken off.


async def test_what_the_only_group_has_settled_is_gone(
    stream: Stream, name: str, client: Redis
) -> None:
    """At once, and nothing else is."""
    entries = await deliver(stream, client, ONE, READER, b"0", b"1", b"2")

    assert await settle(stream, ONE, entries[:2]) == 2

    assert await bodies(client, name) == [b"2"]
    assert (await client.xpending(name, ONE))["pending"] == 1


async def test_settling_again_changes_nothing(
    stream: Stream, name: str, client: Redis
) -> None:
    """Its answer was lost: the second time nothing was pending."""
    entries = await deliver(stream, client, ONE, READER, b"0", b"1")

    assert await settle(stream, ONE, entries[:1]) == 1
    assert await settle(stream, ONE, entries[:1]) == 0

    assert await bodies(client, name) == [b"1"]


async def test_a_message_goes_when_its_last_group_has_settled_it(
    stream: Stream, name: str, client: Redis
) -> None:
    """Whichever that is, and in whatever order each settles."""
    for group in (TWO, THREE):
        await stream.open_group(group, rules={})
    entries = await deliver(stream, client, ONE, READER, b"0", b"1", b"2", b"3")
    for group in (TWO, THREE):
        await read_as(client, name, group)

    await settle(stream, ONE, entries)
    await settle(stream, TWO, entries[2:])
    await settle(stream, THREE, entries[1:3])
    assert await bodies(client, name) == [b"0", b"1", b"3"]

    await settle(stream, THREE, [entries[0]])
    await settle(stream, TWO, entries[:2])
    assert await bodies(client, name) == [b"3"]

    await settle(stream, THREE, [entries[3]])
    assert await bodies(client, name) == []


async def test_a_message_another_group_has_not_read_stays(
    stream: Stream, name: str, client: Redis
) -> None:
    """Though nothing is pending for it."""
    await stream.open_group(TWO, rules={})
    entries = await deliver(stream, client, ONE, READER, b"0", b"1", b"2")
    await read_as(client, name, TWO, count=1)

    await settle(stream, ONE, entries)
    assert await bodies(client, name) == [b"0", b"1", b"2"]

    await settle(stream, TWO, entries[:1])
    assert await bodies(client, name) == [b"1", b"2"]
    assert await read_as(client, name, TWO) == 2


async def test_a_group_made_meanwhile_misses_nothing_unsettled(
    stream: Stream, name: str, client: Redis
) -> None:
    """Whoever thought that his was the only one does not delete what it has not seen."""
    entries = await deliver(stream, client, ONE, READER, b"0", b"1", b"2")
    await settle(stream, ONE, entries[:1])
    await client.xgroup_create(name, TWO, id="0")

    await settle(stream, ONE, entries[1:])

    assert await read_as(client, name, TWO) == 2


async def test_a_group_of_what_comes_holds_nothing_back(
    stream: Stream, name: str, client: Redis
) -> None:
    """What was stored before it is not for it."""
    entries = await deliver(stream, client, ONE, READER, b"0", b"1")
    await stream.open_group(TWO, latest=True, rules={})

    await settle(stream, ONE, entries)

    assert await bodies(client, name) == []


async def test_ids_of_one_millisecond_are_told_apart(
    stream: Stream, name: str, client: Redis
) -> None:
    """Most messages of a busy queue share theirs; numbers do not compare as text does."""
    await client.delete(name)
    for number in range(1, 13):
        await client.xadd(name, {"body": str(number)}, id=f"5-{number}")
    for group in (ONE, TWO):
        await client.xgroup_create(name, group, "0")
    await client.xreadgroup(ONE, READER, {name: ">"}, count=12)
    await client.xreadgroup(TWO, READER, {name: ">"}, count=9)
    for group, read in ((ONE, 12), (TWO, 9)):
        ids = [f"5-{number}" for number in range(1, read + 1)]
        await client.eval(scripts.SETTLE.text.decode(), 1, name, group, *ids)

    assert await bodies(client, name) == [b"10", b"11", b"12"]


async def test_a_former_owner_may_acknowledge(
    stream: Stream, name: str, client: Redis
) -> None:
    """Who did the work is right to say so, lease or not; for its next owner it is gone."""
    [entry] = await deliver(stream, client, ONE, READER, b"0")
    await client.xclaim(name, ONE, "next", 0, [entry.id])

    assert await settle(stream, ONE, [entry]) == 1

    assert await bodies(client, name) == []
    assert (await client.xpending(name, ONE))["pending"] == 0


async def test_settling_what_is_gone_makes_nothing(
    stream: Stream, name: str, client: Redis
) -> None:
    """The stream, or the group, was deleted meanwhile."""
    entries = await deliver(stream, client, ONE, READER, b"0", b"1")
    await client.xgroup_destroy(name, ONE)
    assert await settle(stream, ONE, entries[:1]) == 0
    assert await bodies(client, name) == [b"0", b"1"]

    await client.delete(name)
    assert await settle(stream, ONE, entries) == 0
    assert not await client.exists(name)


async def test_what_is_settled_in_the_lane_goes_from_the_lane(
    stream: Stream, name: str, client: Redis
) -> None:
    """It is the lane of one group, so nobody else is asked."""
    await stream.open_group(TWO, rules={})
    entries = await deliver(stream, client, ONE, READER, b"0", b"1")
    member = Member(stream, ONE, READER)
    await member.move([Move(entry, "lane", entry.fields) for entry in entries])
    back = (await member.take(10)).entries

    assert await settle(stream, ONE, back[:1]) == 1

    lane = stream.keys.lane(ONE)
    assert await bodies(client, lane) == [b"1"]
    assert await bodies(client, name) == [b"0", b"1"]


async def test_settling_works_under_a_full_memory(
    full_server: FullServer, name: str
) -> None:
    """It is what makes room, with one group and with several."""
    async with opened_stream(full_server.url, name, ONE) as stream:
        client = full_server.client
        first = await deliver(stream, client, ONE, READER, b"0", b"1")
        await full_server.fill_up()
        await settle(stream, ONE, first)
        assert await bodies(client, name) == []

        await full_server.make_room()
        await stream.open_group(TWO, rules={})
        then = await deliver(stream, client, ONE, READER, b"2", b"3")
        await read_as(client, name, TWO)
        await full_server.fill_up()
        await settle(stream, ONE, then)
        await settle(stream, TWO, then)
        assert await bodies(client, name) == []


async def test_a_thousand_at_once_are_settled(
    stream: Stream, name: str, client: Redis
) -> None:
    """With one group and with two."""
    for _ in range(1000):
        await client.xadd(name, {"body": "x"})
    entries = await deliver(stream, client, ONE, READER, *[b"x"] * 1000)
    await stream.open_group(TWO, rules={})
    await read_as(client, name, TWO, count=2000)

    assert await settle(stream, ONE, entries) == 1000
    assert await settle(stream, TWO, entries) == 1000

    assert await client.xlen(name) == 1000


# Moving: to the lane, to later, to the dead letters, or just off.


async def test_an_entry_moves_to_where_it_should(
    stream: Stream, name: str, client: Redis
) -> None:
    """A mix in one call: each to its place, with its fields; one that is kept stays."""
    entries = await deliver(
        stream, client, ONE, READER, b"lane", b"later", b"dead", b"keep", b"held"
    )
    member = Member(stream, ONE, READER)
    moves = [
        Move(entry, where, [*entry.fields, b"mq-id", entry.id], 60.0)
        for entry, where in zip(entries, TARGETS, strict=False)
    ]

    assert await member.move(moves) == [True] * 4

    lane, due, later = stream.keys.of_lane(ONE)
    assert await bodies(client, lane) == [b"lane"]
    assert await client.zcard(due) == await client.hlen(later) == 1
    [dead] = await dead_letters(client, name)
    assert dead == {b"body": b"dead", b"mq-id": entries[2].id}
    assert await bodies(client, name) == [b"keep", b"held"]
    assert (await client.xpending(name, ONE))["pending"] == 1


TARGETS: tuple[Where, ...] = ("lane", "later", "dead", "keep")


@pytest.mark.parametrize("where", TARGETS)
async def test_a_move_works_under_a_full_memory(
    full_server: FullServer, name: str, where: Where
) -> None:
    """Its first write acknowledges, and lets the rest pass; nothing is lost by it."""
    async with opened_stream(full_server.url, name, ONE) as stream:
        [entry] = await deliver(stream, full_server.client, ONE, READER, b"x")
        await full_server.fill_up()

        assert await Member(stream, ONE, READER).move(
            [Move(entry, where, entry.fields, 60.0)]
        ) == [True]

        at = await left(full_server.client, name, ONE)
        dead = len(await dead_letters(full_server.client, name))
    assert (at.undelivered_lane, at.delayed, dead, at.stream) == {
        "lane": (1, 0, 0, 0),
        "later": (0, 1, 0, 0),
        "dead": (0, 0, 1, 0),
        "keep": (0, 0, 0, 1),
    }[where]
    assert at.pending == 0


@pytest.mark.parametrize("where", ["lane", "later", "dead"])
async def test_what_moves_off_stays_for_the_other_groups(
    stream: Stream, name: str, client: Redis, where: Where
) -> None:
    """A failure of one group is no business of another's."""
    await stream.open_group(TWO, rules={})
    [entry] = await deliver(stream, client, ONE, READER, b"x")

    await Member(stream, ONE, READER).move([Move(entry, where, entry.fields, 60.0)])

    assert await bodies(client, name) == [b"x"]
    assert await read_as(client, name, TWO) == 1


async def test_what_fails_again_moves_from_the_lane(
    stream: Stream, name: str, client: Redis
) -> None:
    """Back into it, or out of it; then nothing is left of it there."""
    [entry] = await deliver(stream, client, ONE, READER, b"x")
    member = Member(stream, ONE, READER)
    await member.move([Move(entry, "lane", entry.fields)])

    for _ in range(3):
        [back] = (await member.take(10)).entries
        assert back.in_lane
        assert await member.move([Move(back, "lane", back.fields)]) == [True]
    [back] = (await member.take(10)).entries
    await member.move([Move(back, "dead", back.fields)])

    assert len(await dead_letters(client, name)) == 1
    assert await left(client, name, ONE) == Left(names=(READER.encode(),) * 2)


@pytest.mark.parametrize(
    ("moves", "rings"),
    [
        ([("lane", 0.0)], 1),
        ([("lane", 0.0), ("lane", 0.0)], 1),
        ([("later", 60.0)], 1),
        ([("later", 60.0), ("later", 30.0)], 1),
        ([("dead", 0.0)], 0),
        ([("keep", 0.0)], 0),
    ],
)
async def test_the_bell_rings_for_what_comes_earlier_than_expected(
    stream: Stream, client: Redis, moves: list[tuple[Where, float]], rings: int
) -> None:
    """Once for all of a call; never for what nobody waits for."""
    entries = await deliver(stream, client, ONE, READER, *[b"x"] * len(moves))
    async with client.pubsub() as listening:
        await listening.subscribe(stream.keys.bell)
        await listening.get_message(timeout=5)

        await Member(stream, ONE, READER).move(
            [
                Move(entry, where, entry.fields, delay)
                for entry, (where, delay) in zip(entries, moves, strict=True)
            ]
        )
        await client.publish(stream.keys.bell, "end")

        assert await count_until_end(listening) == rings


async def count_until_end(listening: Any) -> int:
    """Count the bells before the one this test has rung itself."""
    rung = 0
    while True:
        message = await listening.get_message(timeout=5)
        assert message is not None
        if message["data"] == b"end":
            return rung
        rung += 1


async def test_a_later_retry_than_the_first_does_not_ring(
    stream: Stream, client: Redis
) -> None:
    """Everybody wakes up before it anyway; an earlier one rings again."""
    entries = await deliver(stream, client, ONE, READER, b"0", b"1", b"2")
    member = Member(stream, ONE, READER)
    await member.move([Move(entries[0], "later", entries[0].fields, 30.0)])
    async with client.pubsub() as listening:
        await listening.subscribe(stream.keys.bell)
        await listening.get_message(timeout=5)

        await member.move([Move(entries[1], "later", entries[1].fields, 60.0)])
        await client.publish(stream.keys.bell, "end")
        later = await count_until_end(listening)
        await member.move([Move(entries[2], "later", entries[2].fields, 10.0)])
        await client.publish(stream.keys.bell, "end")
        earlier = await count_until_end(listening)

    assert (later, earlier) == (0, 1)


async def test_a_bell_that_may_not_be_rung_keeps_nothing_back(
    own_server: RedisServer, name: str
) -> None:
    """A user without channel rights: the slow pulse is the net."""
    own_server.command(
        *("ACL", "SETUSER", "narrow", "on", ">secret", "~*", "+@all", "resetchannels")
    )
    url = own_server.url.replace("://", "://narrow:secret@")
    async with (
        Redis.from_url(own_server.url, protocol=2) as client,
        opened_stream(url, name, ONE) as stream,
    ):
        [entry] = await deliver(stream, client, ONE, READER, b"x")
        member = Member(stream, ONE, READER)

        assert await member.move([Move(entry, "lane", entry.fields)]) == [True]
        assert len((await member.take(10)).entries) == 1
        assert await stream.destroy_group(ONE)


# Taking: what has come back.


async def come_back(
    stream: Stream, client: Redis, *waits: float | None, consumer: str = READER
) -> list[Entry]:
    """Let something come back for each: at once (None), or after so many seconds."""
    names = [b"%d" % at for at in range(len(waits))]
    entries = await deliver(stream, client, ONE, consumer, *names)
    await Member(stream, ONE, consumer).move(
        [
            Move(entry, "lane" if wait is None else "later", entry.fields, wait or 0.0)
            for entry, wait in zip(entries, waits, strict=True)
        ]
    )
    return entries


def body_of(entry: Entry) -> bytes:
    """Give the body of an entry with nothing else."""
    assert entry.fields[0] == b"body"
    return entry.fields[1]


async def test_what_is_due_is_taken_and_what_is_not_waits(
    stream: Stream, name: str, client: Redis
) -> None:
    """Each once, by whoever asks; the taker holds it at once."""
    await come_back(stream, client, 0.0, 60.0, 0.0, 120.0)
    member = Member(stream, ONE, "taker")

    taken = await member.take(10)
    nothing = await member.take(10)

    assert sorted(map(body_of, taken.entries)) == [b"0", b"2"]
    assert taken.next_due is not None
    assert 55 < taken.next_due <= 60
    assert not taken.more
    assert nothing.entries == []
    assert await left(client, name, ONE) == Left(
        names=(b"reader", b"taker"), pending_lane=2, delayed=2
    )


async def test_what_is_due_first_is_taken_first(stream: Stream, client: Redis) -> None:
    """As far as there is room; the rest stays where it is, and is due."""
    await come_back(stream, client, 0.02, 0.0, 0.01)
    lane, due, _ = stream.keys.of_lane(ONE)
    first = Member(stream, ONE, "first")

    async def are_due() -> bool:
        seconds, microseconds = await client.time()
        return (
            await client.zcount(due, "-inf", seconds * 1000 + microseconds // 1000) == 3
        )

    await eventually(are_due)
    taken = await first.take(2)

    assert list(map(body_of, taken.entries)) == [b"1", b"2"]
    assert taken.next_due == 0
    assert await client.zcard(due) == 1
    assert await client.xlen(lane) == 2


async def test_the_lane_comes_before_what_is_due(stream: Stream, client: Redis) -> None:
    """It has waited longer; and room that is used up leaves what is due alone."""
    await come_back(stream, client, None, 0.0, None)
    member = Member(stream, ONE, "taker")

    first = await member.take(2)
    second = await member.take(2)

    assert list(map(body_of, first.entries)) == [b"0", b"2"]
    assert first.next_due == 0
    assert list(map(body_of, second.entries)) == [b"1"]
    assert second.next_due is None


async def test_each_that_came_back_is_taken_by_one(
    stream: Stream, name: str, client: Redis
) -> None:
    """However many ask."""
    await come_back(stream, client, *[None] * 10, *[0.0] * 10)
    takers = [Member(stream, ONE, f"taker {at}") for at in range(4)]

    taken = [await taker.take(6) for taker in takers]

    assert [len(part.entries) for part in taken] == [6, 6, 6, 2]
    assert len({body_of(entry) for part in taken for entry in part.entries}) == 20


async def test_a_lane_without_its_group_is_given_one(
    stream: Stream, name: str, client: Redis
) -> None:
    """It begins with what is there: the lane is the group's alone."""
    await come_back(stream, client, None, None, 0.0)
    lane = stream.keys.lane(ONE)
    with_group = await Member(stream, ONE, "taker").take(1)
    await client.xgroup_destroy(lane, ONE)

    taken = await Member(stream, ONE, "taker").take(10)

    # What was held when the group was lost comes again: nobody else could bring it back.
    assert list(map(body_of, with_group.entries)) == [b"0"]
    assert list(map(body_of, taken.entries)) == [b"0", b"1", b"2"]


@pytest.mark.parametrize("waits", [(None,), (0.0,), (None, 0.0)])
async def test_taking_works_under_a_full_memory(
    full_server: FullServer, name: str, waits: tuple[float | None, ...]
) -> None:
    """With and without the lane's group: what comes back is what makes room."""
    async with opened_stream(full_server.url, name, ONE) as stream:
        for _ in range(2):
            await come_back(stream, full_server.client, *waits)
            await full_server.fill_up()

            taken = await Member(stream, ONE, "taker").take(10)

            assert len(taken.entries) == len(waits)
            await full_server.make_room()


async def test_a_delayed_message_moves_to_the_stream_when_it_is_due(
    stream: Stream, name: str, client: Redis
) -> None:
    """For every group, not only the one that asks; and it is no retry of anybody's."""
    await stream.open_group(TWO, rules={})
    keys = [name, f"{{{name}}}:sent:p", stream.keys.delayed, stream.keys.delayed_fields]
    await client.eval(
        *(scripts.APPEND.text.decode(), len(keys), *keys, 1, 0, 1000, 0, "bell"),
        *("2:60000::", "body", "x"),
    )
    member = Member(stream, ONE, READER)
    before = await member.take(10)
    [delayed] = await client.zrange(stream.keys.delayed, 0, 0)
    await client.zadd(stream.keys.delayed, {delayed: 1})

    taken = await member.take(10)

    assert before.next_due is not None
    assert 55 < before.next_due <= 60
    assert (taken.entries, taken.next_due) == ([], None)
    assert await read_as(client, name, ONE) == await read_as(client, name, TWO) == 1
    assert not await client.exists(stream.keys.delayed, stream.keys.delayed_fields)


@pytest.mark.parametrize("of_the_group", [True, False])
@pytest.mark.parametrize(
    "rubbish",
    [
        b"",
        b"plain words",
        b"\xc1",  # no code of msgpack
        b"\x90",  # no fields
        b"\x91\xa1a",  # a name without a value
        b"\x92\xa1a\x90",  # a list for a value
        b"\x92\xa1a\xc0",  # nothing for a value
        b"\x81\xa1a\xa1b",  # a map
        b"\x92\xa1a\xa1b\xc1",  # more behind it
        b"\xdc\x2e\xe0" + b"\xa1a" * 12_000,  # too many for a script to pass on
    ],
    ids=lambda rubbish: repr(rubbish[:8]),
)
async def test_rubbish_among_the_delayed_is_taken_as_a_body_and_holds_up_nothing(
    stream: Stream, client: Redis, rubbish: bytes, of_the_group: bool
) -> None:
    """It is found afterwards among the dead letters, as it is; and it is tried once."""
    keys = stream.keys
    key, due, fields = (
        keys.of_lane(ONE)
        if of_the_group
        else (keys.stream, keys.delayed, keys.delayed_fields)
    )
    for at, packed in enumerate((rubbish, b"\x92\xa4body\xa1x")):
        await client.hset(fields, str(at), packed)
        await client.zadd(due, {str(at): at + 1})

    await Member(stream, ONE, READER).take(10)

    assert await bodies(client, key) == [rubbish, b"x"]
    assert not await client.exists(due, fields)


async def test_a_lane_that_is_no_stream_is_told_as_it_is(
    stream: Stream, client: Redis
) -> None:
    """On every server: 6.2 would hide it behind an error of its own."""
    await client.set(stream.keys.lane(ONE), "somebody else's")

    with pytest.raises(WrongKeyTypeError):
        await Member(stream, ONE, READER).take(10)


# A name that is given up.


@pytest.mark.parametrize("in_lane", [False, True])
async def test_a_name_is_kept_while_it_holds_something(
    stream: Stream, name: str, client: Redis, *, in_lane: bool
) -> None:
    """In the stream or in the lane: removing it would lose what is pending under it."""
    entries = await deliver(stream, client, ONE, READER, b"x")
    member = Member(stream, ONE, READER)
    if in_lane:
        await member.move([Move(entry, "lane", entry.fields) for entry in entries])
        entries = (await member.take(1)).entries

    assert not await member.forget()
    assert (await left(client, name, ONE)).names
    await settle(stream, ONE, entries)
    assert await member.forget()

    assert await left(client, name, ONE) == NOTHING


async def test_a_name_is_given_up_under_a_full_memory(
    full_server: FullServer, name: str
) -> None:
    """6.2 refuses that by itself."""
    async with opened_stream(full_server.url, name, ONE) as stream:
        entries = await deliver(stream, full_server.client, ONE, READER, b"x")
        await settle(stream, ONE, entries)
        await full_server.fill_up()

        assert await Member(stream, ONE, READER).forget()

        assert await left(full_server.client, name, ONE) == NOTHING


async def test_giving_up_a_name_nobody_had_is_no_error(stream: Stream) -> None:
    """A consumer that ended before its first read."""
    assert await Member(stream, ONE, "nobody").forget()
    assert await Member(stream, "no group", "nobody").forget()


# Far too wide.


@pytest.mark.parametrize("where", ["lane", "later", "dead"])
async def test_an_entry_with_too_many_fields_is_not_lost(
    stream: Stream, name: str, client: Redis, where: Where
) -> None:
    """Somebody else has written it; a script cannot pass on so many words at once.

    Its body comes through, wherever it stands among them.
    """
    fields = {f"field {at}": "x" for at in range(5000)}
    await client.xadd(name, {**fields, "body": "x"})
    [[_, [row]]] = await client.xreadgroup(ONE, READER, {name: ">"})
    words = [part for pair in row[1].items() for part in pair]
    entry = Entry(row[0], words, in_lane=False)
    member = Member(stream, ONE, READER)

    await member.move([Move(entry, where, tried_again(entry, 1, "bad"), 0.0)])
    await member.take(10)

    key = stream.keys.dead if where == "dead" else stream.keys.lane(ONE)
    assert await bodies(client, key) == [b"x"]


async def test_a_full_memory_refuses_what_is_produced(
    full_server: FullServer, name: str
) -> None:
    """So that the tests above mean something."""
    async with opened_stream(full_server.url, name, ONE) as stream:
        await full_server.fill_up()
        with pytest.raises(ServerFullError):
            await stream.link.call("XADD", name, "*", "body", "x")
