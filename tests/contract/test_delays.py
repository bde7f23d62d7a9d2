from __future__ import annotations

import asyncio
import statistics
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from aioredismq import (
    Connection,
    Consumer,
    ConsumerConfig,
    Message,
    RedisMessageQueue,
    RetryMessage,
)
from tests.looking import NOTHING, Handled, Messages, left
from tests.support import eventually

if TYPE_CHECKING:
    from tests.support import Client, Deployment

# The server counts whole milliseconds, and what it sends takes its time.
ROUNDING = 0.002


async def test_a_delayed_message_is_handled_when_it_is_due(
    name: str, connection: Connection, look: Client
) -> None:
    """By every group, under the id it was given; what is not delayed goes before it."""
    began: dict[str, dict[str, float]] = {"one": {}, "two": {}}
    ids: dict[str, str] = {}

    async def one(message: Message) -> None:
        began["one"][message.body] = time.time()
        ids[message.body] = message.id

    async def two(body: str) -> None:
        began["two"][body] = time.time()

    async with RedisMessageQueue(name, connection, groups=("one", "two")) as queue:
        now = time.time()
        due = {"at": now + 0.2, "moment": now + 0.3, "past": now}
        soon = datetime.now(UTC) + timedelta(seconds=0.3)
        sent = {
            "moment": await queue.produce("moment", at=soon),
            "at": await queue.produce("at", at=due["at"]),
        }
        # Of these the last, however long the others have taken.
        due["delay"] = time.time() + 0.4
        sent["delay"] = await queue.produce("delay", delay=0.4)
        sent["past"] = await queue.produce("past", at=now - 60)
        assert await look.xlen(name) == 1
        async with (
            Consumer(queue, one, ConsumerConfig(group="one")),
            Consumer(queue, two, ConsumerConfig(group="two")),
        ):
            await eventually(lambda: all(len(seen) == 4 for seen in began.values()))

        assert ids == sent
        for seen in began.values():
            assert list(seen) == ["past", "at", "moment", "delay"]
            late = [seen[body] - due[body] for body in ("delay", "at", "moment")]
            assert -ROUNDING < min(late) <= max(late) < 10
        assert await left(look, name, "one") == await left(look, name, "two") == NOTHING
        await queue.delete()


async def test_due_messages_start_in_time(
    queue: RedisMessageQueue, deployment: Deployment
) -> None:
    """Within 100 ms, also when a consumer that sleeps until later must be told by another.

    Counted from when it was stored, and a timer of this process has gone off.
    """
    began: dict[float, float] = {}
    could: dict[float, float] = {}

    async def handler(due: float) -> None:
        began[due] = time.time()

    async def send(due: float) -> None:
        await other.produce(due, at=due)
        await asyncio.sleep(due - time.time())
        could[due] = time.time()

    async with (
        Connection(deployment.url) as another,
        RedisMessageQueue(queue.name, another) as other,
        Consumer(queue, handler),
    ):
        await queue.produce(0, delay=60)
        begun = time.time()
        dues = [begun + 0.1 + number * 0.01 for number in range(50)]
        # The later ones first: each that is sent then is due before all that were known.
        await asyncio.gather(*map(send, reversed(dues)))
        await eventually(lambda: len(began) == 50)

    assert min(began[due] - due for due in dues) > -ROUNDING
    late = [began[due] - could[due] for due in dues]
    assert statistics.median(late) < 0.1
    assert max(late) < 10


async def test_a_delayed_retry_is_its_groups_own(
    name: str, connection: Connection, look: Client
) -> None:
    """While it waits it is not in the stream, and no other group sees it, then or later."""
    failed: list[float] = []
    again: list[float] = []

    async def busy(message: Message) -> None:
        if message.attempt == 1:
            failed.append(time.time())
            raise RetryMessage("busy", delay=4)
        again.append(time.time())

    fine, others = Messages(), Messages()
    async with RedisMessageQueue(name, connection, groups=("busy", "fine")) as queue:
        async with (
            Consumer(queue, busy, ConsumerConfig(group="busy")),
            Consumer(queue, fine, ConsumerConfig(group="fine")),
        ):
            await queue.produce("hello")

            async def waits() -> bool:
                return (await left(look, name, "busy")).delayed == 1

            await eventually(waits)
            await fine.until(1)
            assert await look.xlen(name) == 0
            # A group that is made meanwhile, too.
            async with Consumer(queue, others, ConsumerConfig(group="others")):
                await eventually(lambda: bool(again))
        assert len(fine.seen) == len(again) == 1
        assert not others.seen
        assert 4 - ROUNDING < again[0] - failed[0] < 20
        assert await left(look, name, "busy") == await left(look, name, "fine")
        assert await left(look, name, "busy") == NOTHING
        await queue.delete()


async def test_what_has_expired_is_not_handled(
    name: str, connection: Connection, look: Client
) -> None:
    """Neither by a handler nor in a batch, nor is it pulled; each group has its letter, or none."""
    groups = ("handler", "batch", "pulled", "dropped")
    one, dropped = Handled(), Handled()
    batch: list[object] = []
    pulled: list[object] = []

    async def by_batch(messages: list[Message]) -> None:
        batch.extend(message.body for message in messages)

    async def pull(consumer: Consumer) -> None:
        async for message in consumer:
            async with message:
                pulled.append(message.body)

    async with RedisMessageQueue(name, connection, groups=groups) as queue:
        await queue.produce("late", expires=0.02)
        await queue.produce("late when it is due", delay=0.1, expires=0.05)
        await queue.produce("in time", expires=60)
        await asyncio.sleep(0.03)
        async with (
            Consumer(queue, one, ConsumerConfig(group="handler")),
            Consumer(queue, by_batch, ConsumerConfig(group="batch", batch_size=10)),
            Consumer(queue, None, ConsumerConfig(group="pulled")) as pulling,
            Consumer(queue, dropped, ConsumerConfig(group="dropped", expired="drop")),
        ):
            task = asyncio.ensure_future(pull(pulling))

            async def is_settled() -> bool:
                lefts = [await left(look, name, group) for group in groups]
                is_left = any(now.stream or now.pending for now in lefts)
                return not is_left and await queue.dead_letters.count() == 6

            await eventually(is_settled)
        await task

        assert one.bodies == batch == pulled == dropped.bodies == ["in time"]
        letters = await queue.dead_letters.list(reason="expired")
        assert sorted((one.group, one.body) for one in letters) == sorted(
            (group, body)
            for group in groups[:3]
            for body in ("late", "late when it is due")
        )
        assert {one.attempts for one in letters} == {0}
        await queue.delete()
