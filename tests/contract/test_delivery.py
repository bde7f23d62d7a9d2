from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import anyio

from aioredismq import (
    Connection,
    Consumer,
    ConsumerConfig,
    Message,
    Producer,
    RedisMessageQueue,
)
from tests.looking import AT_ONCE, NOTHING, Handled, Messages, left
from tests.support import eventually

if TYPE_CHECKING:
    from tests.support import Client


async def test_what_is_produced_is_handled_once(
    queue: RedisMessageQueue, look: Client
) -> None:
    """Each message by one handler; then nothing is pending, and the stream is empty."""
    handled = Handled()
    async with Consumer(queue, handled):
        ids = await queue.produce_many({"n": n} for n in range(1000))
        await handled.until(1000)

    assert len(set(ids)) == 1000
    assert sorted(body["n"] for body in handled.bodies) == list(range(1000))
    assert await left(look, queue.name) == NOTHING


async def test_one_group_shares_the_messages(
    queue: RedisMessageQueue, look: Client
) -> None:
    """Consumers of one group get each message once between them."""
    one, other = Handled(takes=0.002), Handled(takes=0.002)
    config = ConsumerConfig(concurrency=4)
    async with Consumer(queue, one, config), Consumer(queue, other, config):
        await queue.produce_many(range(200))
        await eventually(lambda: len(one.bodies) + len(other.bodies) >= 200)

    assert sorted(one.bodies + other.bodies) == list(range(200))
    assert len(one.bodies) > 20
    assert len(other.bodies) > 20
    assert await left(look, queue.name) == NOTHING


async def test_every_group_gets_each_message(
    name: str, connection: Connection, look: Client
) -> None:
    """One to many: what both have handled leaves the stream, and not before."""
    async with RedisMessageQueue(
        name, connection, groups=("billing", "shipping")
    ) as queue:
        billing, shipping = Handled(), Handled()
        await queue.produce_many(range(300))
        async with Consumer(queue, billing, ConsumerConfig(group="billing")):
            await billing.until(300)
        assert await look.xlen(name) == 300
        async with Consumer(queue, shipping, ConsumerConfig(group="shipping")):
            await shipping.until(300)

        assert sorted(billing.bodies) == sorted(shipping.bodies) == list(range(300))
        assert await left(look, name, "billing") == NOTHING
        assert await left(look, name, "shipping") == NOTHING
        await queue.delete()


async def test_two_groups_at_once_leave_nothing_behind(
    name: str, connection: Connection, look: Client
) -> None:
    """Whichever of them settles a message last takes it off the stream."""
    async with RedisMessageQueue(
        name, connection, groups=("billing", "shipping")
    ) as queue:
        billing, shipping = Handled(), Handled()
        async with (
            Consumer(queue, billing, ConsumerConfig(group="billing")),
            Consumer(queue, shipping, ConsumerConfig(group="shipping")),
        ):
            await queue.produce_many(range(1000))
            await billing.until(1000)
            await shipping.until(1000)

        assert Counter(billing.bodies) == Counter(shipping.bodies)
        assert await left(look, name, "billing") == NOTHING
        assert await left(look, name, "shipping") == NOTHING
        await queue.delete()


async def test_a_group_made_while_another_drains_misses_nothing_unsettled(
    queue: RedisMessageQueue, look: Client
) -> None:
    """What the first has not begun when the second is there, the second gets, too."""
    first, second = Handled(takes=0.001), Handled()
    await queue.produce_many(range(2000))
    async with Consumer(queue, first):
        await first.until(300)
        first.gate = asyncio.Event()
        async with Consumer(queue, second, ConsumerConfig(group="late")):
            unsettled = set(range(2000)) - set(first.bodies)
            first.gate.set()
            await first.until(2000)
            await eventually(lambda: unsettled <= set(second.bodies))

    assert len(unsettled) > 500
    assert max(Counter(second.bodies).values()) == 1
    assert await left(look, queue.name) == NOTHING
    assert await left(look, queue.name, "late") == NOTHING


async def test_messages_are_handled_in_the_order_of_the_stream(
    queue: RedisMessageQueue,
) -> None:
    """While nothing fails, and one handler runs at a time."""
    handled = Handled()
    await queue.produce_many(range(500))
    async with Consumer(queue, handled, ConsumerConfig(concurrency=1)):
        await handled.until(500)

    assert handled.bodies == list(range(500))


async def test_a_body_comes_as_it_was_sent(queue: RedisMessageQueue) -> None:
    """JSON values as such, `bytes` and `str` as they are."""
    sent = [
        {"a": [1, None, "ü"]},
        [],
        "text",
        42,
        None,
        True,
        1.5,
        b"\x00\xff",
        "",
        b"",
    ]
    handled = Handled()
    async with Consumer(queue, handled, ConsumerConfig(concurrency=1)):
        await queue.produce_many(sent)
        await handled.until(len(sent))

    assert handled.bodies == sent
    assert [type(body) for body in handled.bodies] == [type(body) for body in sent]


async def test_headers_travel_with_the_body(queue: RedisMessageQueue) -> None:
    """As they were given, and nothing else."""
    messages = Messages()
    async with Consumer(queue, messages):
        message_id = await queue.produce("hello", headers={"trace": "a b", "ü": ""})
        await messages.until(1)

    [message] = messages.seen
    assert message.id == message_id
    assert message.headers == {"trace": "a b", "ü": ""}
    assert (message.queue, message.group) == (queue.name, f"{queue.name}_group")


async def test_producers_of_one_queue_share_its_stream(
    queue: RedisMessageQueue, look: Client
) -> None:
    """A queue's own, and those made by hand; many tasks at once."""
    handled = Handled()
    async with Producer(queue) as other, Consumer(queue, handled):
        async with anyio.create_task_group() as tasks:
            for number in range(100):
                tasks.start_soon(queue.produce, number)
                tasks.start_soon(other.produce, 100 + number)
        await handled.until(200)

    assert sorted(handled.bodies) == list(range(200))
    assert await left(look, queue.name) == NOTHING


async def test_queues_of_one_connection_do_not_meet(
    name: str, connection: Connection, look: Client
) -> None:
    """Each has its own stream, whichever node of a Cluster has it."""
    names = [f"{name}-{number}" for number in range(6)]
    handled = {each: Handled() for each in names}
    queues = [RedisMessageQueue(each, connection) for each in names]
    for queue in queues:
        await queue.initialize()
    consumers = [Consumer(queue, handled[queue.name]) for queue in queues]
    for consumer in consumers:
        await consumer.start()
    for queue in queues:
        await queue.produce_many([queue.name] * 20)

    for each in names:
        await handled[each].until(20)
        assert handled[each].bodies == [each] * 20
    for consumer in consumers:
        await consumer.stop()
    for queue in queues:
        assert await left(look, queue.name) == NOTHING
        await queue.delete()
        await queue.close()


async def test_latest_sees_only_what_is_produced_from_then_on(
    queue: RedisMessageQueue,
) -> None:
    """A group that is there already goes on where it was."""
    handled = Handled()
    config = ConsumerConfig(group="news", start="latest", concurrency=1)
    await queue.produce("old")
    async with Consumer(queue, handled, config):
        await queue.produce("new")
        await handled.until(1)
    await queue.produce("while it was away")
    async with Consumer(queue, handled, config):
        await handled.until(2)

    assert handled.bodies == ["new", "while it was away"]


async def test_earliest_sees_everything_still_stored(queue: RedisMessageQueue) -> None:
    """The default: what was produced before anybody consumed is not lost."""
    handled = Handled()
    await queue.produce("old")
    async with Consumer(queue, handled, ConsumerConfig(group="history", concurrency=1)):
        await queue.produce("new")
        await handled.until(2)

    assert handled.bodies == ["old", "new"]


# How many at once.


async def test_concurrency_is_a_bound(queue: RedisMessageQueue) -> None:
    """And is used up while there is enough to do."""
    handled = Handled(takes=0.005)
    await queue.produce_many(range(60))
    async with Consumer(queue, handled, ConsumerConfig(concurrency=7)):
        await handled.until(60)

    assert handled.most_at_once == 7


async def test_a_slow_handler_leaves_the_rest_to_others(
    queue: RedisMessageQueue,
) -> None:
    """What waits behind it could be somebody else's: it holds one or two."""
    slow, quick = Handled(), Handled()
    slow.gate = asyncio.Event()
    one = ConsumerConfig(concurrency=1, shutdown_timeout=0)
    async with Consumer(queue, slow, one) as hoarder:
        await queue.produce_many(range(50))
        await slow.until(1)
        async with Consumer(queue, quick):
            await quick.until(48)
            assert 1 <= hoarder.held <= 2
            slow.gate.set()


async def test_count_bounds_what_is_read_ahead(queue: RedisMessageQueue) -> None:
    """Consuming goes on: it is how many a read brings at most."""
    handled = Handled(takes=0.001)
    await queue.produce_many(range(400))
    most = 0

    async def watching(body: int) -> None:
        nonlocal most
        assert consumer._assembly is not None
        most = max(most, consumer._assembly._dispatcher.waiting)
        await handled(body)

    config = ConsumerConfig(count=5, concurrency=2)
    consumer = Consumer(queue, watching, config)
    async with consumer:
        await handled.until(400)

    assert 1 <= most <= 5


async def test_a_retry_goes_before_a_full_stream(queue: RedisMessageQueue) -> None:
    """What failed is not put behind everything that was produced since."""
    order: list[Any] = []

    async def handler(body: int, message: Message) -> None:
        order.append((body, message.attempt))
        await anyio.sleep(0.001)
        if body == 0 and message.attempt < 3:
            raise ValueError("not yet")

    await queue.produce_many(range(1500))
    config = ConsumerConfig(concurrency=4, retry=AT_ONCE)
    async with Consumer(queue, handler, config):
        await eventually(lambda: (0, 3) in order)
        at = order.index((0, 3))

    assert at < 700
