from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis

from aioredismq import (
    CommandRefusedError,
    Connection,
    QueueDeletedError,
    QueueMismatchError,
    RedisMessageQueue,
    RejectMessage,
    WrongKeyTypeError,
)
from aioredismq import _stream as room
from aioredismq._member import Member, Move
from aioredismq.testing import FaultyLine
from tests.looking import dead_letters, deliver, opened_stream
from tests.sending import open_stream
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aioredismq._message import Entry
    from aioredismq._stream import Generation, Stream
    from aioredismq.testing import RedisServer

GROUP = "billing"


@pytest.fixture
async def stream(url: str, name: str) -> AsyncIterator[Stream]:
    """A queue's stream, on which nothing was done."""
    async with open_stream(url, name) as opened:
        yield opened


async def fill(client: Redis, name: str, count: int) -> list[bytes]:
    """Store messages and give their ids."""
    return [await client.xadd(name, {"body": str(at)}) for at in range(count)]


async def read(client: Redis, name: str, group: str) -> list[bytes]:
    """Read what a group has not seen, and give the bodies."""
    reply = await client.xreadgroup(group, "reader", {name: ">"}, count=1000)
    return [fields[b"body"] for _, rows in reply for _, fields in rows]


# Opening a group.


async def test_opening_makes_the_stream_and_the_group(
    stream: Stream, name: str, client: Redis
) -> None:
    """So that what is produced from now on waits for it."""
    await stream.open_group(GROUP, rules={})

    await fill(client, name, 3)

    assert await read(client, name, GROUP) == [b"0", b"1", b"2"]


async def test_a_group_begins_with_what_is_stored(
    stream: Stream, name: str, client: Redis
) -> None:
    """Nothing that waits is missed."""
    await fill(client, name, 3)

    await stream.open_group(GROUP, rules={})

    assert await read(client, name, GROUP) == [b"0", b"1", b"2"]


async def test_a_latest_group_begins_with_what_comes(
    stream: Stream, name: str, client: Redis
) -> None:
    """What was there before it is not for it."""
    await fill(client, name, 3)

    await stream.open_group(GROUP, latest=True, rules={})
    await client.xadd(name, {"body": "new"})

    assert await read(client, name, GROUP) == [b"new"]


@pytest.mark.parametrize("maker", ["consumer", "producer"])
async def test_another_life_of_a_stream_repeats_no_id(
    stream: Stream, url: str, name: str, client: Redis, maker: str
) -> None:
    """It was deleted while entries were in hand: what is said of them must not meet others."""
    ids: list[str] = []
    async with RedisMessageQueue(name, url) as queue:
        for _ in range(50):
            await asyncio.sleep(
                0.002
            )  # no life is as short as the millisecond of an id
            ids.append(await queue.produce("x"))
            await client.delete(name)
            if maker == "consumer":
                await stream.open_group(GROUP, rules={})
            ids.append(await queue.produce("x"))

    order = [tuple(map(int, one.split("-"))) for one in ids]
    assert order == sorted(set(order))


async def test_another_life_of_a_lane_repeats_no_id(
    url: str, name: str, client: Redis
) -> None:
    """The same for what has come back to a group."""
    order: list[tuple[int, ...]] = []
    async with opened_stream(url, name, GROUP) as opened:
        lane = opened.keys.lane(GROUP)
        await deliver_back(opened, client)  # or the first would begin two lives at once
        for _ in range(50):
            await asyncio.sleep(0.002)
            for life in range(2):
                if life:
                    await client.delete(lane)
                await deliver_back(opened, client)
                entry_id, _ = (await client.xrange(lane))[-1]
                order.append(tuple(map(int, entry_id.split(b"-"))))

    assert order == sorted(set(order))


async def deliver_back(stream: Stream, client: Redis) -> None:
    """Let one message come back to the group."""
    [entry] = await deliver(stream, client, GROUP, "one", b"x")
    member = Member(stream, GROUP, "one")
    assert await member.move([Move(entry, "lane", entry.fields)]) == [True]


async def test_opening_again_changes_nothing(
    stream: Stream, name: str, client: Redis
) -> None:
    """Neither where the group stands, nor which generation it is."""
    first = await stream.open_group(GROUP, rules={})
    await fill(client, name, 3)
    await read(client, name, GROUP)

    again = await stream.open_group(GROUP, rules={})
    latest = await stream.open_group(GROUP, latest=True, rules={})

    assert first == again == latest
    assert await read(client, name, GROUP) == []
    assert (await client.xpending(name, GROUP))["pending"] == 3


async def test_groups_have_generations_of_their_own(stream: Stream) -> None:
    """And share the queue's."""
    one = await stream.open_group("one", rules={})
    two = await stream.open_group("two", rules={})

    assert one.queue == two.queue
    assert one.group != two.group


async def test_without_a_group_only_the_rules_are_agreed_on(
    stream: Stream, name: str, client: Redis
) -> None:
    """As producers do."""
    generation = await stream.open_group(None, rules={"wire": "plain"})

    assert generation.group == ""
    assert not await client.exists(name)
    assert await client.hget(stream.keys.queue, "wire") == b"plain"


async def test_whoever_disagrees_is_told(stream: Stream, name: str) -> None:
    """With what is in force; nothing is made for him."""
    await stream.open_group(None, rules={"wire": "plain"})

    with pytest.raises(
        QueueMismatchError,
        match=r"in use with wire='plain', this process asks for 'orig",
    ):
        await stream.open_group(GROUP, rules={"wire": "original"})

    assert await stream.groups() == []


async def test_a_rule_nobody_had_yet_is_added(stream: Stream, client: Redis) -> None:
    """A later version may agree on more."""
    await stream.open_group(None, rules={"wire": "plain"})

    await stream.open_group(None, rules={"wire": "plain", "partitions": "4"})

    assert await client.hget(stream.keys.queue, "partitions") == b"4"


async def test_a_key_that_is_no_stream_is_left_alone(
    stream: Stream, name: str, client: Redis
) -> None:
    """It is somebody else's."""
    await client.set(name, "mine")

    with pytest.raises(WrongKeyTypeError):
        await stream.open_group(GROUP, rules={})

    assert await client.get(name) == b"mine"
    await client.delete(name)


async def test_a_known_group_opens_under_a_full_memory(
    own_server: RedisServer, name: str
) -> None:
    """The consumers that would make room must be able to start."""
    async with (
        Redis.from_url(own_server.url, protocol=2) as client,
        open_stream(own_server.url, name) as stream,
    ):
        first = await stream.open_group(GROUP, rules={"wire": "plain"})
        await client.config_set("maxmemory", 1)

        again = await stream.open_group(GROUP, rules={"wire": "plain"})

        assert again == first


async def test_a_new_group_opens_under_a_full_memory(
    own_server: RedisServer, name: str
) -> None:
    """It is a few bytes, and its consumers, or those of a lost group, are what makes room."""
    async with (
        Redis.from_url(own_server.url, protocol=2) as client,
        open_stream(own_server.url, name) as stream,
    ):
        await fill(client, name, 3)
        await client.config_set("maxmemory", 1)

        await stream.open_group(GROUP, rules={"wire": "plain"})

        assert await read(client, name, GROUP) == [b"0", b"1", b"2"]


async def test_a_full_server_can_be_drained_by_who_starts_now(
    own_server: RedisServer, name: str
) -> None:
    """Nothing at the start of a consumer is refused, nor what it does with its messages."""
    handled: list[int] = []
    async with Redis.from_url(own_server.url, protocol=2) as client:
        async with RedisMessageQueue(name, own_server.url) as queue:
            await queue.produce_many(range(100))
        await client.config_set("maxmemory", 1)

        async with RedisMessageQueue(name, own_server.url) as queue:

            @queue.handler
            async def handle(body: int) -> None:
                handled.append(body)
                if body % 10 == 0:
                    raise RejectMessage

            async with queue.consuming():
                await eventually(lambda: len(handled) == 100)

        assert await client.xlen(name) == 0
        assert len(await dead_letters(client, name)) == 10
    assert sorted(handled) == list(range(100))


# Deleting on purpose.


async def test_a_destroyed_group_is_gone_with_all_it_had(
    stream: Stream, name: str, client: Redis
) -> None:
    """Its lane and its delayed retries too; nothing of another group is touched."""
    for group in (GROUP, "mail"):
        await stream.open_group(group, rules={})
        await come_back(stream, client, group)
    others = stream.keys.of_lane("mail")

    assert await stream.destroy_group(GROUP)

    assert [group.name for group in await stream.groups()] == ["mail"]
    assert not await client.exists(*stream.keys.of_lane(GROUP))
    assert await client.exists(*others) == len(others)
    fields = await client.hkeys(stream.keys.queue)
    assert not [field for field in fields if field.endswith(b":" + GROUP.encode())]


async def come_back(stream: Stream, client: Redis, group: str) -> list[Entry]:
    """Let something wait in a group's lane and something among its delayed retries."""
    entries = await deliver(stream, client, group, "one", b"at once", b"later")
    moves = [
        Move(entries[0], "lane", entries[0].fields),
        Move(entries[1], "later", entries[1].fields, 60.0),
    ]
    await Member(stream, group, "one").move(moves)
    return entries


async def test_destroying_what_is_not_there_says_so(
    stream: Stream, name: str, client: Redis
) -> None:
    """Neither without the group, nor without the stream."""
    assert not await stream.destroy_group(GROUP)
    await stream.open_group("mail", rules={})
    assert not await stream.destroy_group(GROUP)

    assert [group.name for group in await stream.groups()] == ["mail"]


async def was_deleted(stream: Stream, known: Generation) -> bool:
    """Say whether the life of a queue or of a group was ended on purpose."""
    try:
        await stream.generation(known, GROUP)
    except QueueDeletedError:
        return True
    return False


async def test_a_destroyed_groups_consumers_find_its_tombstone(
    stream: Stream, client: Redis
) -> None:
    """For a while; those of another group, or of the group made again, do not."""
    ended = await stream.open_group(GROUP, rules={})
    other = await stream.open_group("mail", rules={})
    assert not await was_deleted(stream, ended)

    await stream.destroy_group(GROUP)
    again = await stream.open_group(GROUP, rules={})

    assert await was_deleted(stream, ended)
    assert not await was_deleted(stream, other)
    assert not await was_deleted(stream, again)
    assert 0 < await client.pttl(stream.keys.gone) <= 600_000


async def test_what_only_a_destroyed_group_held_back_goes(
    stream: Stream, name: str, client: Redis
) -> None:
    """Every group that is left has settled it, and nobody would ever take it off."""
    for group in (GROUP, "mail"):
        await stream.open_group(group, rules={})
    ids = await fill(client, name, 4)
    await read(client, name, "mail")
    await settle(stream, "mail", ids[:3])
    assert await client.xlen(name) == 4

    await stream.destroy_group(GROUP)

    assert [entry_id for entry_id, _ in await client.xrange(name)] == ids[3:]


async def settle(stream: Stream, group: str, ids: list[bytes]) -> None:
    """Acknowledge as a consumer does."""
    member = Member(stream, group, "reader")
    answers: list[Any] = []
    stream.link.submit(
        member.settle_command(ids, in_lane=False, whole=True), answers.append
    )
    await eventually(lambda: bool(answers))
    assert answers == [len(ids)]


async def test_a_deleted_queue_is_gone_with_all_it_had(
    stream: Stream, name: str, client: Redis
) -> None:
    """Stream, lanes, delayed retries, dead letters, rules; of another queue nothing."""
    await client.xadd(f"{name}-other", {"body": "x"})
    for group in (GROUP, "mail"):
        await stream.open_group(group, rules={})
        [entry, *_] = await deliver(stream, client, group, "one", b"dead")
        await Member(stream, group, "one").move([Move(entry, "dead", entry.fields)])
        await come_back(stream, client, group)

    assert await stream.delete()

    keys = {key async for key in client.scan_iter(f"*{name}*", count=1000)}
    assert keys == {stream.keys.gone.encode(), f"{name}-other".encode()}
    assert 0 < await client.pttl(stream.keys.gone) <= 600_000
    await client.delete(f"{name}-other")


async def test_a_queue_whose_stream_was_deleted_by_hand_is_deleted_too(
    stream: Stream, name: str, client: Redis
) -> None:
    """Its groups are known without it, and nothing of them stays behind."""
    await stream.open_group(GROUP, rules={})
    await come_back(stream, client, GROUP)
    await client.delete(name)

    assert await stream.delete()

    keys = {key async for key in client.scan_iter(f"*{name}*", count=1000)}
    assert keys == {stream.keys.gone.encode()}


async def test_deleting_what_is_not_there_says_so(
    url: str, name: str, client: Redis
) -> None:
    """Once it is deleted, for example."""
    async with open_stream(url, name) as stream:
        assert await stream.delete()  # the rules were there
        assert not await stream.delete()


async def test_a_deleted_queues_consumers_find_its_tombstone(stream: Stream) -> None:
    """Those of the queue made again at once do not."""
    ended = await stream.open_group(GROUP, rules={})

    await stream.delete()
    again = await stream.open_group(GROUP, rules={})

    assert await was_deleted(stream, ended)
    assert not await was_deleted(stream, again)


async def test_what_was_deleted_is_not_made_again_by_who_knew_it(
    stream: Stream, name: str, client: Redis
) -> None:
    """Looking for the tombstone and making the group are one step."""
    ended = await stream.open_group(GROUP, rules={})
    await stream.delete()

    with pytest.raises(QueueDeletedError):
        await stream.open_group(GROUP, how="again", known=ended, rules={})

    assert not await client.exists(name, stream.keys.queue)


async def test_a_life_that_was_lost_goes_on_when_it_is_made_again(
    stream: Stream, client: Redis
) -> None:
    """So that a later deletion is meant for whoever has known it, mended by him or by others."""
    known = await stream.open_group(GROUP, rules={})
    await client.delete(stream.keys.stream, stream.keys.queue)

    again = await stream.open_group(GROUP, how="again", known=known, rules={})

    assert again == known
    assert (again.made, await stream.generation(known, GROUP)) == (True, known)


async def test_a_life_that_others_began_meanwhile_is_told(
    stream: Stream, client: Redis
) -> None:
    """Somebody new was first after a loss; without anything there, the known one stands."""
    known = await stream.open_group(GROUP, rules={})
    await client.delete(stream.keys.stream, stream.keys.queue)
    assert await stream.generation(known, GROUP) == known

    new = await stream.open_group(GROUP, rules={})

    assert new != known
    assert await stream.generation(known, GROUP) == new


@pytest.mark.parametrize("what", ["group", "queue"])
async def test_deleting_rings_the_bell(
    stream: Stream, client: Redis, what: str
) -> None:
    """So that live consumers look for the tombstone at once."""
    await stream.open_group(GROUP, rules={})
    async with client.pubsub() as listening:
        await listening.subscribe(stream.keys.bell)
        assert (await listening.get_message(timeout=5))["type"] == "subscribe"

        await (stream.destroy_group(GROUP) if what == "group" else stream.delete())

        assert (await listening.get_message(timeout=5))["type"] == "message"


async def test_deleting_works_under_a_full_memory(
    own_server: RedisServer, name: str
) -> None:
    """It makes room."""
    async with (
        Redis.from_url(own_server.url, protocol=2) as client,
        open_stream(own_server.url, name) as stream,
    ):
        one = await stream.open_group(GROUP, rules={})
        await stream.open_group("mail", rules={})
        await fill(client, name, 3)
        await client.config_set("maxmemory", 1)

        assert await stream.destroy_group(GROUP)
        assert await stream.delete()

        assert await was_deleted(stream, one)
        assert not await client.exists(name)


# Looking in.


async def test_groups_are_listed_as_they_stand(
    stream: Stream, name: str, client: Redis
) -> None:
    """What Redis knows of them; a lag it does not count is unknown, not 0."""
    await stream.open_group(GROUP, rules={})
    ids = await fill(client, name, 5)
    await client.xreadgroup(GROUP, "one", {name: ">"}, count=2)
    await client.xreadgroup(GROUP, "two", {name: ">"}, count=1)

    [group] = await stream.groups()

    assert (group.name, group.consumers, group.pending) == (GROUP, 2, 3)
    assert group.last_delivered_id == ids[2].decode()
    [raw] = await client.xinfo_groups(name)
    assert group.lag == raw.get("lag")
    assert group.lag in (2, None)


async def test_groups_are_listed_over_the_newer_protocol_too(
    url: str, name: str
) -> None:
    """Of a client that speaks RESP3, where they come as maps."""
    async with (
        Redis.from_url(url, protocol=3) as client,
        open_stream(Connection(client), name) as stream,
    ):
        await stream.open_group(GROUP, rules={})

        [group] = await stream.groups()

    assert (group.name, group.consumers, group.pending) == (GROUP, 0, 0)


async def test_a_queue_without_a_stream_has_no_groups(stream: Stream) -> None:
    """It is no error to ask."""
    assert await stream.groups() == []


async def test_a_key_that_is_no_stream_has_no_groups_to_list(
    stream: Stream, name: str, client: Redis
) -> None:
    """And says so."""
    await client.set(name, "mine")

    with pytest.raises(WrongKeyTypeError):
        await stream.groups()

    await client.delete(name)


@pytest.mark.parametrize(
    ("after", "limit", "bodies"),
    [
        (None, None, range(7)),
        (None, 0, range(0)),
        (None, 1, range(1)),
        (None, 3, range(3)),
        (None, 4, range(4)),
        (None, 100, range(7)),
        (2, None, range(3, 7)),
        (2, 2, range(3, 5)),
        (6, None, range(0)),
    ],
)
async def test_records_are_listed_in_pages(
    stream: Stream,
    name: str,
    client: Redis,
    monkeypatch: pytest.MonkeyPatch,
    after: int | None,
    limit: int | None,
    bodies: range,
) -> None:
    """All of them, or as many as are asked for, behind an id."""
    monkeypatch.setattr(room, "_PAGE", 3)
    ids = await fill(client, name, 7)

    listed = await stream.records(None if after is None else ids[after].decode(), limit)

    assert [entry.fields for entry in listed] == [
        [b"body", b"%d" % at] for at in bodies
    ]
    assert [entry.id for entry in listed] == [ids[at] for at in bodies]


async def test_a_page_that_ends_with_the_stream_asks_for_no_more(
    stream: Stream, name: str, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six are two full pages, and then it is known that there is nothing."""
    monkeypatch.setattr(room, "_PAGE", 3)
    await fill(client, name, 6)

    assert len(await stream.records(None, None)) == 6
    assert len(await stream.records(None, 6)) == 6


async def test_an_id_that_is_none_is_refused(
    stream: Stream, name: str, client: Redis
) -> None:
    """With what Redis says of it."""
    await fill(client, name, 1)

    with pytest.raises(CommandRefusedError, match="Invalid stream ID"):
        await stream.records("yesterday", None)


async def test_copies_of_failures_are_counted(
    stream: Stream, name: str, client: Redis
) -> None:
    """Which the JavaScript library has made; most queues have none."""
    assert await stream.failover_copies() == 0
    await client.xadd(f"failover_{name}", {"x": "1"})
    assert await stream.failover_copies() == 1
    await client.delete(f"failover_{name}")


# Over a bad line.


@pytest.mark.parametrize("what", ["open", "destroy", "delete", "list"])
async def test_an_operation_whose_answer_was_lost_is_done_again(
    url: str, name: str, client: Redis, what: str
) -> None:
    """It says then what is there; nobody notices otherwise."""
    async with FaultyLine(url) as line, open_stream(line.url, name) as stream:
        await stream.open_group("mail", rules={})
        await fill(client, name, 3)
        line.reset_after_request()

        if what == "open":
            await stream.open_group(GROUP, rules={})
        elif what == "destroy":
            await stream.destroy_group("mail")
        elif what == "delete":
            await stream.delete()
        else:
            assert len(await stream.records(None, None)) == 3

        assert not line.is_armed
        names = [group.name for group in await stream.groups()]
    assert names == {"open": [GROUP, "mail"], "list": ["mail"]}.get(what, [])
