from __future__ import annotations

import asyncio
import gc
import json
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis

from aioredismq import (
    ConfigurationError,
    Connection,
    ConnectionLostError,
    EncodeError,
    NotInitializedError,
    Producer,
    ProducerConfig,
    PublishManyError,
    PublishUncertainError,
    QueueMismatchError,
    RedisMessageQueue,
    ServerFullError,
    WrongKeyTypeError,
    WrongLoopError,
)
from aioredismq import _producer as room_of_producer
from aioredismq._codec import MOST_HEADERS
from aioredismq.testing import FaultyLine
from tests.sending import be_hasty, remembered, script_calls, stored
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from aioredismq.testing import RedisServer
    from tests.support import Deployment


@pytest.fixture
async def producer(url: str, name: str) -> AsyncIterator[Producer]:
    """A producer as it is by default."""
    async with Producer(RedisMessageQueue(name, url)) as opened:
        yield opened


def producer_with(url: str, name: str, **settings: Any) -> Producer:
    """Make a producer with these settings."""
    return Producer(RedisMessageQueue(name, url), ProducerConfig(**settings))


# One message.


async def test_a_body_becomes_an_id(
    producer: Producer, name: str, client: Redis
) -> None:
    """That of the entry that holds it."""
    message_id = await producer.produce({"sku": 1}, headers={"trace": "ab"})

    [(entry_id, fields)] = await client.xrange(name)
    assert entry_id.decode() == message_id
    assert fields == {b"body": b'{"sku":1}', b"trace": b"ab"}


async def test_it_works_on_each_way_to_run_redis(
    deployment: Deployment, name: str
) -> None:
    """One by one, many at once, and as one."""
    async with (
        deployment.client() as client,
        Producer(RedisMessageQueue(name, deployment.url)) as producer,
    ):
        ids = [await producer.produce(0)]
        ids += await asyncio.gather(*(producer.produce(at) for at in range(1, 100)))
        ids += await producer.produce_many(range(100, 300))

        written = await stored(client, name)
    assert [(each, json.loads(body)) for each, body in written.items()] == [
        (message_id, body) for body, message_id in enumerate(ids)
    ]


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (object(), None),
        ({1, 2}, None),
        (1, {"mq-id": "1"}),
        (1, {"body": "1"}),
        (1, {"trace": 1}),
        (1, {f"h{at}": "" for at in range(MOST_HEADERS + 1)}),
    ],
)
async def test_what_cannot_be_sent_is_refused_here(
    producer: Producer, name: str, client: Redis, body: object, headers: Any
) -> None:
    """Before anything is sent; those that are sent beside it are not harmed."""
    ended = await asyncio.gather(
        producer.produce("a"),
        producer.produce(body, headers=headers),
        producer.produce("b"),
        return_exceptions=True,
    )

    assert isinstance(ended[1], EncodeError)
    assert await stored(client, name) == {ended[0]: "a", ended[2]: "b"}


async def test_as_many_headers_as_are_allowed_arrive(
    producer: Producer, name: str, client: Redis
) -> None:
    """The script passes them on in one piece, and those of its neighbours."""
    headers = {f"h{at}": str(at) for at in range(MOST_HEADERS)}

    await asyncio.gather(*(producer.produce(at, headers=headers) for at in range(3)))

    for _, fields in await client.xrange(name):
        assert len(fields) == MOST_HEADERS + 1


async def test_a_message_may_wait_and_expire(
    producer: Producer, name: str, client: Redis
) -> None:
    """By the server's clock; it is stored beside the stream until it is due."""
    later = await producer.produce("later", delay=60)
    soon = await producer.produce("soon", expires=60)
    both = await producer.produce_many(["a", "b"], delay=60, expires=90)

    [(entry_id, fields)] = await client.xrange(name)
    seconds, _ = await client.time()
    assert entry_id.decode() == soon
    assert seconds + 50 < int(fields[b"mq-expires"]) / 1000 < seconds + 70
    due = dict(await client.zrange(f"{{{name}}}:delayed", 0, -1, withscores=True))
    assert {each.decode() for each in due} == {later, *both}
    assert all(seconds + 50 < each / 1000 < seconds + 70 for each in due.values())


@pytest.mark.parametrize(
    ("times", "rule"),
    [
        ({"delay": -1}, "delay must be 0 s or more"),
        ({"delay": 1, "at": 2}, "delay and at exclude each other"),
        ({"expires": 0}, r"expires must be 0\.001 s or more"),
        ({"expires": 1e-6}, r"expires must be 0\.001 s or more.*got 1e-06"),
    ],
)
async def test_a_time_that_breaks_a_rule_is_refused(
    producer: Producer, name: str, client: Redis, times: Any, rule: str
) -> None:
    """Before anything is sent."""
    with pytest.raises(ConfigurationError, match=rule):
        await producer.produce(1, **times)
    with pytest.raises(ConfigurationError, match=rule):
        await producer.produce_many([1], **times)

    assert await client.xlen(name) == 0


async def test_another_encoder_is_used(url: str, name: str, client: Redis) -> None:
    """For JSON; bytes and text travel as they are."""
    async with producer_with(url, name, dumps=lambda body: f"<{body}>") as producer:
        await producer.produce(1)
        await producer.produce("text")

    assert list((await stored(client, name)).values()) == ["<1>", "text"]


# Many messages.


def numbers(count: int) -> Iterator[int]:
    """Give numbers one by one."""
    yield from range(count)


async def numbers_in_time(count: int) -> AsyncIterator[int]:
    """Give numbers one by one, as something else allows it."""
    for number in range(count):
        if number % 50 == 0:
            await asyncio.sleep(0)
        yield number


@pytest.mark.parametrize(
    "give",
    [lambda count: list(range(count)), range, numbers, numbers_in_time],
    ids=["list", "range", "generator", "async generator"],
)
async def test_many_bodies_become_ids_in_order(
    url: str, name: str, client: Redis, give: Callable[[int], Any]
) -> None:
    """Whatever gives them, a piece at a time."""
    async with producer_with(url, name, max_batch=30) as producer:
        ids = await producer.produce_many(give(200), headers={"trace": "ab"})

    entries = await client.xrange(name)
    assert [entry_id.decode() for entry_id, _ in entries] == ids
    assert [fields[b"body"] for _, fields in entries] == [
        b"%d" % at for at in range(200)
    ]
    assert {fields[b"trace"] for _, fields in entries} == {b"ab"}


async def test_no_bodies_become_no_ids(producer: Producer) -> None:
    """And nothing is said to the server."""
    assert await producer.produce_many([]) == []


@pytest.mark.parametrize(
    ("bodies", "kind"),
    [
        ("order", "str"),
        (b"order", "bytes"),
        (bytearray(b"order"), "bytearray"),
        ({"sku": 1}, "dict"),
        (3, "int"),
        (None, "NoneType"),
    ],
)
async def test_a_single_body_given_by_mistake_is_refused(
    producer: Producer, name: str, client: Redis, bodies: Any, kind: str
) -> None:
    """It would be sent in pieces."""
    with pytest.raises(ConfigurationError, match=f"^produce_many takes .* {kind}"):
        await producer.produce_many(bodies)

    assert await client.xlen(name) == 0


async def test_chunks_keep_the_bounds_of_batches(
    url: str, name: str, client: Redis
) -> None:
    """Of messages and of bytes; an oversized body travels alone."""
    sizes = [10, 10, 10, 10, 50, 50, 5, 300, 5, 5]
    async with producer_with(url, name, max_batch=3, max_batch_bytes=170) as producer:
        await producer.produce_many("x" * size for size in sizes)

        written = await stored(client, name)
        batches = (await remembered(client, name)).values()

    # A text body has a content type: 42 bytes of names and type beside its own.
    assert [[len(written[each]) for each in ids] for ids in batches] == [
        *([10, 10, 10], [10, 50], [50, 5], [300], [5, 5])
    ]


async def test_the_bytes_of_an_original_entry_are_counted(
    url: str, name: str, client: Redis
) -> None:
    """Its body is the name of its field."""
    queue = RedisMessageQueue(name, url, wire="original")
    async with Producer(queue, ProducerConfig(max_batch_bytes=200)) as producer:
        await producer.produce_many("x" * 100 for _ in range(4))
        await asyncio.gather(*(producer.produce("x" * 100) for _ in range(4)))

        batches = (await remembered(client, name)).values()

    assert [len(ids) for ids in batches] == [1] * 8


async def test_several_chunks_are_on_their_way_at_once(
    own_server: RedisServer, name: str
) -> None:
    """And no more: what gives the bodies is not emptied into memory."""
    taken: list[int] = []

    def bodies() -> Iterator[int]:
        for number in range(10_000):
            taken.append(number)
            yield number

    async with producer_with(own_server.url, name, max_batch=10) as producer:
        own_server.pause()
        task = asyncio.create_task(producer.produce_many(bodies()))
        await eventually(lambda: len(taken) >= 40)
        await asyncio.sleep(0.02)
        taken_while_nothing_is_answered = len(taken)
        own_server.resume()

        assert len(await task) == 10_000
    assert 40 <= taken_while_nothing_is_answered <= 60


async def test_many_at_once_do_not_get_in_each_others_way(
    producer: Producer, name: str, client: Redis
) -> None:
    """Each gets its own ids, in order."""
    many = [[f"{task}.{at}" for at in range(150)] for task in range(5)]

    *several, lone = await asyncio.gather(
        *(producer.produce_many(bodies) for bodies in many),
        *(producer.produce("alone") for _ in range(1)),
    )

    written = await stored(client, name)
    for bodies, ids in zip(many, several, strict=True):
        assert [written[message_id] for message_id in ids] == bodies
    assert written[str(lone)] == "alone"
    assert len(written) == 751


# Many messages from a source that pauses.


class Slow:
    """A source that gives what it is told to, and waits in between."""

    def __init__(self) -> None:
        """Nothing to give yet."""
        self._coming: asyncio.Queue[int | None] = asyncio.Queue()
        self.interruptions: list[BaseException] = []

    def give(self, *bodies: int | None) -> None:
        """Let it give these; None is its end."""
        for body in bodies:
            self._coming.put_nowait(body)

    async def __aiter__(self) -> AsyncIterator[int]:
        """Give them one by one."""
        try:
            while (body := await self._coming.get()) is not None:
                yield body
        except BaseException as error:
            self.interruptions.append(error)
            raise


async def test_what_a_source_has_given_is_sent_when_it_pauses(
    producer: Producer, name: str, client: Redis
) -> None:
    """Again and again, in order; the source does not notice."""
    source = Slow()
    sending = asyncio.create_task(producer.produce_many(source))
    for bodies in ([0], [1, 2, 3], range(4, 200), [200]):
        source.give(*bodies)
        await until_stored(client, name, bodies[-1] + 1)
    source.give(201, None)

    ids = await sending

    assert list((await stored(client, name)).items()) == [
        (message_id, str(body)) for body, message_id in enumerate(ids)
    ]
    assert len(ids) == 202
    assert not source.interruptions


async def test_a_source_that_never_pauses_fills_its_chunks(
    producer: Producer, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it takes to give them."""
    monkeypatch.setattr(room_of_producer, "_PAUSE", 0.3)  # the machine may pause

    async def bodies() -> AsyncIterator[int]:
        for number in range(1000):
            await asyncio.sleep(0.0001)
            yield number

    await producer.produce("teaches the script")
    before = await script_calls(client)

    await producer.produce_many(bodies())

    assert await script_calls(client) - before <= 20  # 16, and some for a busy machine


async def test_a_pausing_source_may_be_cancelled(
    producer: Producer, name: str, client: Redis
) -> None:
    """It hears of it once; what it had given is stored, and nothing goes on sending."""
    source = Slow()
    sending = asyncio.create_task(producer.produce_many(source))
    source.give(0, 1)
    await until_stored(client, name, 2)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    await producer.produce(2)

    assert [type(error) for error in source.interruptions] == [asyncio.CancelledError]
    assert list((await stored(client, name)).values()) == ["0", "1", "2"]


async def test_a_pausing_source_waits_for_room_too(
    own_server: RedisServer, name: str
) -> None:
    """What it has given goes when there is some, while it still pauses."""
    async with (
        Redis.from_url(own_server.url, protocol=2) as client,
        producer_with(own_server.url, name, max_waiting=1) as producer,
    ):
        own_server.pause()
        first = asyncio.create_task(producer.produce("first"))
        await asyncio.sleep(0)
        source = Slow()
        source.give(1)
        sending = asyncio.create_task(producer.produce_many(source))
        await asyncio.sleep(0.05)
        own_server.resume()
        await until_stored(client, name, 2)

        source.give(None)
        await asyncio.gather(first, sending)

        assert list((await stored(client, name)).values()) == ["first", "1"]


async def test_not_too_much_of_a_pausing_source_is_under_way(
    own_server: RedisServer, name: str
) -> None:
    """As of one that does not pause: what else it gives is gathered."""
    async with (
        Redis.from_url(own_server.url, protocol=2) as client,
        producer_with(own_server.url, name) as producer,
    ):
        source = Slow()
        sending = asyncio.create_task(producer.produce_many(source))
        own_server.pause()
        for number in range(8):
            source.give(number)
            await asyncio.sleep(0.02)
        assert producer._batcher is not None
        under_way = len(producer._batcher._unresolved)
        own_server.resume()
        await until_stored(client, name, 8)
        source.give(None)

        assert len(await sending) == 8
    assert under_way == 4


@pytest.mark.parametrize("gives_more", [False, True])
async def test_what_failed_in_a_pause_is_told_with_the_next_body(
    own_server: RedisServer, name: str, *, gives_more: bool
) -> None:
    """Nothing more is sent, though a chunk is gathering already."""
    async with (
        Redis.from_url(own_server.url, protocol=2) as client,
        producer_with(own_server.url, name) as producer,
    ):
        source = Slow()
        sending = asyncio.create_task(producer.produce_many(source))
        source.give(0)
        await until_stored(client, name, 1)
        await client.config_set("maxmemory", 1)
        own_server.pause()
        source.give(1)
        assert producer._batcher is not None
        unresolved = producer._batcher._unresolved
        await eventually(lambda: bool(unresolved))
        if gives_more:
            source.give(2)
            await asyncio.sleep(0)
        own_server.resume()
        await eventually(lambda: not unresolved)
        await client.config_set("maxmemory", 0)
        await asyncio.sleep(0.05)
        source.give(3)

        with pytest.raises(PublishManyError) as raised:
            await sending

        assert isinstance(raised.value.__cause__, ServerFullError)
        assert len(raised.value.ids) == 3 + gives_more
        await assert_told_truly(client, name, raised.value)


# Many messages that stop in the middle.


def failing_numbers(count: int) -> Iterator[int]:
    """Give some numbers and fail."""
    yield from range(count)
    raise LookupError("no more")


async def failing_numbers_in_time(count: int) -> AsyncIterator[int]:
    """Give some numbers and fail."""
    for number in range(count):
        await asyncio.sleep(0)
        yield number
    raise LookupError("no more")


async def assert_told_truly(client: Redis, name: str, error: PublishManyError) -> None:
    """Compare what an error says is stored with what is."""
    written = {
        message_id: json.loads(body)
        for message_id, body in (await stored(client, name)).items()
    }
    told = {
        message_id: at
        for at, message_id in enumerate(error.ids)
        if message_id is not None
    }
    assert written == told
    assert error.stored == list(written)


@pytest.mark.parametrize("count", [0, 1, 10, 25, 30])
@pytest.mark.parametrize("give", [failing_numbers, failing_numbers_in_time])
async def test_what_gives_the_bodies_may_fail(
    url: str, name: str, client: Redis, give: Callable[[int], Any], count: int
) -> None:
    """Whole chunks before it are stored, and the error says which bodies those are."""
    async with producer_with(url, name, max_batch=10) as producer:
        with pytest.raises(PublishManyError) as raised:
            await producer.produce_many(give(count))

    error = raised.value
    assert isinstance(error.__cause__, LookupError)
    assert len(error.ids) == count
    assert len(error.stored) in {count // 10 * 10, max(0, count - 1) // 10 * 10}
    assert str(error) == f"{len(error.stored)} of {count} messages are stored: no more"
    await assert_told_truly(client, name, error)


@pytest.mark.parametrize("position", [0, 1, 10, 25])
async def test_a_body_that_cannot_be_sent_stops_it(
    url: str, name: str, client: Redis, position: int
) -> None:
    """It is the last of which the error speaks: those behind it were not looked at."""
    bodies: list[object] = list(range(30))
    bodies[position] = object()
    async with producer_with(url, name, max_batch=10) as producer:
        with pytest.raises(PublishManyError) as raised:
            await producer.produce_many(bodies)

    error = raised.value
    assert isinstance(error.__cause__, EncodeError)
    assert len(error.ids) == position + 1
    assert error.ids[position] is None
    assert not error.uncertain
    await assert_told_truly(client, name, error)


async def test_what_is_not_stored_can_be_sent_anew(
    url: str, name: str, client: Redis
) -> None:
    """As the error says: nothing is lost, and nothing sent twice."""
    bodies: list[object] = list(range(25))
    bodies[17] = object()
    async with producer_with(url, name, max_batch=5) as producer:
        with pytest.raises(PublishManyError) as raised:
            await producer.produce_many(bodies)
        bodies[17] = 17
        missing = [
            body
            for body, message_id in zip(bodies, raised.value.ids, strict=False)
            if message_id is None
        ]
        await producer.produce_many(missing + bodies[len(raised.value.ids) :])

    assert sorted(map(int, (await stored(client, name)).values())) == list(range(25))


async def until_stored(client: Redis, name: str, count: int) -> None:
    """Wait until so many messages are stored."""

    async def are_stored() -> bool:
        return int(await client.xlen(name)) >= count

    await eventually(are_stored)


async def test_a_full_server_stops_it(own_server: RedisServer, name: str) -> None:
    """What was stored before it was full is told, and what was not."""
    async with (
        Redis.from_url(own_server.url, protocol=2) as client,
        producer_with(own_server.url, name, max_batch=10) as producer,
    ):
        taken: list[int] = []

        async def bodies() -> AsyncIterator[int]:
            for number in range(200):
                if number == 95:
                    await until_stored(client, name, 95)
                    await client.config_set("maxmemory", 1)
                taken.append(number)
                yield number

        with pytest.raises(PublishManyError) as raised:
            await producer.produce_many(bodies())
        await client.config_set("maxmemory", 0)

        error = raised.value
        assert isinstance(error.__cause__, ServerFullError)
        assert len(error.stored) == 95
        assert len(error.ids) == len(taken) < 200
        assert not error.uncertain
        await assert_told_truly(client, name, error)


async def test_what_is_in_doubt_is_told(own_server: RedisServer, name: str) -> None:
    """By its position: it may be stored or not. Asked for again it is stored once."""
    async with (
        Redis.from_url(own_server.url, protocol=2) as client,
        producer_with(own_server.url, name, max_batch=10) as producer,
    ):

        async def bodies() -> AsyncIterator[int]:
            for number in range(45):
                if number == 30:
                    await until_stored(client, name, 30)
                    own_server.pause()
                    assert producer._batcher is not None
                    be_hasty(producer._batcher)
                yield number

        with pytest.raises(PublishManyError) as raised:
            await producer.produce_many(bodies())
        error = raised.value
        with pytest.raises(PublishManyError, match="15 messages are in doubt still"):
            await error.retry()
        own_server.resume()
        ids = await error.retry()

        there = await stored(client, name)
        assert [there[entry_id] for entry_id in ids if entry_id] == [
            str(number) for number in range(45)
        ]
        assert len(there) == 45
    assert isinstance(error.__cause__, PublishUncertainError)
    assert str(error).startswith("30 of 45 messages are stored: no answer within 0.1 s")
    assert "(15 more may be; `await error.retry()` finds out" in str(error)
    assert error.ids[30:] == [None] * 15
    assert error.uncertain == list(range(30, 45))
    assert len(error.stored) == 30


async def test_a_cancelled_produce_many_leaves_no_noise(
    own_server: RedisServer, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What was under way may be stored; nobody asks, and that is no error."""
    async with producer_with(
        own_server.url, name, max_batch=10, produce_timeout=0.1
    ) as producer:
        own_server.pause()
        task = asyncio.create_task(producer.produce_many(range(1000)))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    own_server.resume()
    gc.collect()
    await asyncio.sleep(0)

    assert not [record for record in caplog.records if record.name == "asyncio"]


# Opening and closing.


@pytest.mark.parametrize("is_used_before", [False, True])
async def test_a_producer_that_is_not_open_says_so(
    url: str, name: str, *, is_used_before: bool
) -> None:
    """With what to do."""
    producer = Producer(RedisMessageQueue(name, url))
    if is_used_before:
        async with producer:
            await producer.produce(1)

    with pytest.raises(NotInitializedError, match=r"await queue.initialize\(\)"):
        await producer.produce(1)
    with pytest.raises(NotInitializedError, match=r"await queue.initialize\(\)"):
        await producer.produce_many([1])


async def test_opening_and_closing_again_change_nothing(
    url: str, name: str, client: Redis
) -> None:
    """And it can be opened anew."""
    producer = Producer(RedisMessageQueue(name, url))
    for _ in range(2):
        await producer.open()
        await producer.open()
        await producer.produce(1)
        await producer.close()
        await producer.close()

    assert await client.xlen(name) == 2


async def test_closing_leaves_no_connection(url: str, name: str, client: Redis) -> None:
    """Of its own; nor anything but the stream, its rules, and a memory that ends."""
    before = len(await client.client_list())
    async with producer_with(url, name) as producer:
        await producer.produce_many(range(10))

    await eventually(lambda: count_connections(client, before))
    keys = {key async for key in client.scan_iter(f"*{name}*", count=1000)}
    lasting = {key for key in keys if await client.pttl(key) < 0}
    assert lasting == {name.encode(), f"{{{name}}}:queue".encode()}


async def count_connections(client: Redis, expected: int) -> bool:
    """Say whether there are as many connections as expected."""
    return len(await client.client_list()) == expected


async def test_closing_waits_for_what_was_sent(
    url: str, name: str, client: Redis
) -> None:
    """Everything is answered; none is told that the connection was lost."""
    producer = producer_with(url, name)
    await producer.open()
    tasks = [asyncio.create_task(producer.produce(at)) for at in range(500)]
    await asyncio.sleep(0)

    await producer.close()

    ids = await asyncio.gather(*tasks)
    assert list(await stored(client, name)) == ids


async def test_an_interrupted_close_still_disconnects(
    own_server: RedisServer, name: str
) -> None:
    """What was not answered is in doubt."""
    connection = Connection(own_server.url)
    producer = Producer(
        RedisMessageQueue(name, connection), ProducerConfig(produce_timeout=2)
    )
    await producer.open()
    own_server.pause()
    sending = asyncio.create_task(producer.produce(1))
    await asyncio.sleep(0)

    closing = asyncio.create_task(producer.close())
    await asyncio.sleep(0.02)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing

    with pytest.raises(NotInitializedError):
        connection.check()
    with pytest.raises(PublishUncertainError):
        await sending
    own_server.resume()


async def test_a_server_that_is_not_there_is_told_at_once(name: str) -> None:
    """Where it was looked for; nothing is left open."""
    producer = producer_with("redis://127.0.0.1:1/0", name)

    with pytest.raises(ConnectionLostError, match=r"127\.0\.0\.1:1"):
        await producer.open()

    with pytest.raises(NotInitializedError):
        await producer.produce(1)
    await producer.close()


async def test_a_queue_by_other_rules_is_told(url: str, name: str) -> None:
    """All its users must agree."""
    async with Producer(RedisMessageQueue(name, url)):
        pass

    with pytest.raises(QueueMismatchError, match="wire='plain'"):
        await Producer(RedisMessageQueue(name, url, wire="original")).open()


async def test_a_key_that_is_not_a_stream_is_told(
    url: str, name: str, client: Redis
) -> None:
    """It is somebody else's, and stays as it is: at once, or once it has become so."""
    async with producer_with(url, name) as producer:
        await client.set(name, "mine")
        with pytest.raises(WrongKeyTypeError):
            await producer.produce(1)
    with pytest.raises(WrongKeyTypeError, match="no queue: choose another name"):
        await producer_with(url, name).open()

    assert await client.get(name) == b"mine"
    await client.delete(name)


async def test_another_event_loop_is_refused(producer: Producer) -> None:
    """Its futures would wake the wrong one."""

    def elsewhere() -> None:
        with pytest.raises(WrongLoopError, match="opened on another event loop"):
            asyncio.run(producer.produce(1))

    await asyncio.to_thread(elsewhere)


async def test_two_producers_may_share_a_connection(
    url: str, name: str, client: Redis
) -> None:
    """Closing one leaves the other's open, and each has a memory of its own."""
    connection = Connection(url)
    queue = RedisMessageQueue(name, connection)
    async with Producer(queue) as first:
        async with Producer(queue) as second:
            await asyncio.gather(
                *(each.produce(at) for at in range(50) for each in (first, second))
            )
        await first.produce("after")

    assert await client.xlen(name) == 101


# What it costs.


async def test_a_thousand_bodies_are_few_calls(
    producer: Producer, client: Redis
) -> None:
    """One for each batch."""
    await producer.produce("teaches the script")
    before = await script_calls(client)

    await producer.produce_many(range(1000))

    assert await script_calls(client) - before == 16


async def test_a_lost_line_stops_nothing(url: str, name: str, client: Redis) -> None:
    """Batches whose answers were lost are sent again, and stored once."""
    async with FaultyLine(url) as line, producer_with(line.url, name) as producer:
        for at in (150, 350):
            line.reset_after_request(b"\r\n%d\r\n" % at)
            await producer.produce_many(range(500))

    written = list(map(int, (await stored(client, name)).values()))
    assert sorted(written) == sorted([*range(500), *range(500)])


async def test_what_redis_could_not_take_is_refused_here(
    producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would cut the connection that everybody shares."""
    monkeypatch.setattr("aioredismq._producer._LARGEST", 1000)

    with pytest.raises(EncodeError, match="at most 1000 bytes, got 1040"):
        await producer.produce(b"x" * 1000)  # and its content type
    await producer.produce(b"x" * 900)
