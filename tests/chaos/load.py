"""Producers and consumers at work while something breaks."""

from __future__ import annotations

import asyncio
import itertools
import random
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING

from anyio import create_task_group

from aioredismq import (
    BacklogError,
    Connection,
    ConnectionLostError,
    Consumer,
    ConsumerConfig,
    ExponentialBackoff,
    Message,
    PublishUncertainError,
    RedisMessageQueue,
    RejectMessage,
    RetryMessage,
    ServerError,
)
from tests.chaos.ledger import Ledger
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

# Short, so that a test sees several renewals, claims and time-outs.
VISIBILITY = 1.5
CONCURRENCY = 8
LONGEST_DELAY = 0.5
CONFIG = ConsumerConfig(
    concurrency=CONCURRENCY,
    visibility_timeout=VISIBILITY,
    retry=ExponentialBackoff(initial=0),
)


# What becomes of a message follows from its number, so that every fault meets all of it: some
# fail once and are tried again, some are given up, some are sent to be handled later.
def _fails_once(number: int) -> bool:
    return number % 13 == 5


def _is_given_up(number: int) -> bool:
    return number % 29 == 7


def _is_delayed(number: int) -> bool:
    return number % 17 == 3


class Load:
    """A queue under load: four producers and two consumers."""

    def __init__(
        self,
        url: str,
        name: str,
        consumer_url: str,
        seed: int,
        config: ConsumerConfig = CONFIG,
    ) -> None:
        """Producers and one consumer connect to `url`, the other consumer to `consumer_url`."""
        self.ledger = Ledger()
        self.queue = RedisMessageQueue(name, _connection(url), produce_timeout=3.0)
        self.other = RedisMessageQueue(name, _connection(consumer_url))
        self._config = config
        self.consumers = [self._consumer(queue) for queue in (self.queue, self.other)]
        self.chance = random.Random(seed)
        """Decides how long handlers take, and when and how the test breaks things."""
        self._numbers = itertools.count()
        self._stop = asyncio.Event()
        self._may_produce = asyncio.Event()
        self._may_produce.set()
        self.sending = 0
        """Sends whose outcome is not known yet."""

    def _consumer(self, queue: RedisMessageQueue) -> Consumer:
        return Consumer(queue, self._handle, self._config)

    async def open(self, stack: AsyncExitStack) -> None:
        """Open both queues and start both consumers, for the length of the stack."""
        for at, queue in enumerate((self.queue, self.other)):
            await _open(queue, stack)
            while True:
                try:
                    await self.consumers[at].start()
                    break
                except ConnectionLostError:
                    self.consumers[at] = self._consumer(queue)
            stack.push_async_exit(self.consumers[at])

    @property
    def held(self) -> int:
        """Messages read and not settled."""
        return sum(consumer.held for consumer in self.consumers)

    async def flows(self, messages: int = 40, limit: float = 30.0) -> None:
        """Wait until so many more messages have been handled."""
        before = self.ledger.handled.total()
        await eventually(
            lambda: self.ledger.handled.total() >= before + messages, limit
        )

    async def a_moment(self, longest: float = 0.05) -> None:
        """Wait, not as long each time: a fault meets whatever is under way just then."""
        await asyncio.sleep(self.chance.random() * longest)

    async def settles(self, limit: float) -> None:
        """Produce no more, and wait until all that was accepted is settled."""
        await self.quiet(limit)
        self._stop.set()
        self.go_on()

    async def quiet(self, limit: float) -> None:
        """Produce nothing until `go_on()`, and wait until all that was accepted is settled."""
        self._may_produce.clear()
        await eventually(lambda: not self.sending, limit)
        await eventually(self._is_settled, limit)
        # What was taken away, and sent again as no answer had come, may be due only now.
        await asyncio.sleep(LONGEST_DELAY)
        await eventually(self._is_settled, limit)

    async def _is_settled(self) -> bool:
        ledger = self.ledger
        if ledger.open or ledger.running or self.held:
            return False
        # A lost lease may have left something to be taken over.
        return await self._nothing_is_pending()

    async def _nothing_is_pending(self) -> bool:
        mine = f"{self.queue.name}_group"
        try:
            groups = [one for one in await self.queue.groups() if one.name == mine]
        except ConnectionLostError:
            return False
        return not any(one.pending or one.waiting for one in groups)

    def go_on(self) -> None:
        """Produce again."""
        self._may_produce.set()

    async def produce(self) -> None:
        """Be one producer, until `settles()`."""
        while True:
            await self._may_produce.wait()
            if self._stop.is_set():
                return
            self.sending += 1
            try:
                await self._send(next(self._numbers))
            finally:
                self.sending -= 1
            await asyncio.sleep(0.002)

    async def _send(self, number: int) -> None:
        try:
            late = self.chance.random() * LONGEST_DELAY
            delay = late if _is_delayed(number) else None
            await self.queue.produce(number, delay=delay)
            self.ledger.accepted.add(number)
        except PublishUncertainError as error:
            await _until_certain(error)
            self.ledger.accepted.add(number)
        except (BacklogError, ServerError):
            self.ledger.refused.add(number)
            await asyncio.sleep(0.05)

    async def _handle(self, body: int, message: Message) -> None:
        ledger = self.ledger
        ledger.running += 1
        try:
            await self.a_moment(0.01)
            if _is_given_up(body):
                ledger.rejected.add(body)
                raise RejectMessage("of no use")
            if _fails_once(body) and message.attempt == 1:
                raise RetryMessage("the first time")
            ledger.handled[body] += 1
        finally:
            ledger.running -= 1


@asynccontextmanager
async def under_load(
    url: str,
    name: str,
    *,
    consumer_url: str | None = None,
    seed: int = 1,
    limit: float = 30.0,
    kind: type[Load] = Load,
    config: ConsumerConfig = CONFIG,
) -> AsyncIterator[Load]:
    """Produce and consume while the block breaks things; leaving waits until all is settled.

    Args:
        url: Where producers, and one of two consumers, connect.
        name: The queue.
        consumer_url: Where the other consumer connects; None for `url` too.
        seed: Decides how long handlers take, and whatever the test draws from `load.chance`.
        limit: Seconds in which everything accepted must be handled after the block.
        kind: What kind of load it is.
        config: How both consumers read, run and recover.
    """
    load = kind(url, name, consumer_url or url, seed, config)
    async with AsyncExitStack() as stack, create_task_group() as tasks:
        await load.open(stack)
        for _ in range(4):
            tasks.start_soon(load.produce)
        await load.flows()
        yield load
        await load.settles(limit)


class Sends:
    """Sends of eight tasks by two connections, which nobody handles."""

    def __init__(self, queues: list[RedisMessageQueue], seed: int) -> None:
        """Nothing is sent yet."""
        self.ledger = Ledger()
        self.chance = random.Random(seed)
        """Decides the pauses between sends, and whatever the test draws from it."""
        self._queues = queues
        self._numbers = itertools.count()
        self._stop = asyncio.Event()

    async def send(self, number: int) -> None:
        """Be one sender, until `stop()`."""
        queue = self._queues[number % len(self._queues)]
        while not self._stop.is_set():
            body = next(self._numbers)
            try:
                await queue.produce(body)
                self.ledger.accepted.add(body)
            except PublishUncertainError as error:
                await _until_certain(error)
                self.ledger.accepted.add(body)
            except (BacklogError, ServerError):
                self.ledger.refused.add(body)
            await asyncio.sleep(self.chance.random() * 0.002)

    async def flows(self, messages: int, limit: float = 30.0) -> None:
        """Wait until so many more are accepted."""
        before = len(self.ledger.accepted)
        await eventually(lambda: len(self.ledger.accepted) >= before + messages, limit)

    def stop(self) -> None:
        """Send no more."""
        self._stop.set()


@asynccontextmanager
async def sending(
    target: str | Redis, name: str, *, seed: int = 1
) -> AsyncIterator[Sends]:
    """Send while the block breaks things; leaving waits until each send is known to be in or out.

    Args:
        target: Where the senders connect, as `Connection` takes it.
        name: The queue.
        seed: See `Sends.chance`.
    """
    one, other = (RedisMessageQueue(name, _connection(target)) for _ in range(2))
    sends = Sends([one, other], seed)
    async with AsyncExitStack() as stack, create_task_group() as tasks:
        for queue in (one, other):
            await _open(queue, stack)
        for number in range(8):
            tasks.start_soon(sends.send, number)
        await sends.flows(200)
        yield sends
        sends.stop()


async def _open(queue: RedisMessageQueue, stack: AsyncExitStack) -> None:
    """Open a queue; again, as a supervisor would, when a second was too short for an answer."""
    stack.push_async_callback(queue.close)
    while not queue.is_initialized:
        with suppress(ConnectionLostError):
            await queue.initialize()


def _connection(target: str | Redis) -> Connection:
    return Connection(target, reply_timeout=1.0, connect_timeout=1.0)


async def _until_certain(error: PublishUncertainError) -> None:
    """Ask until it is known what became of a send, as a careful application would."""
    while True:
        with suppress(PublishUncertainError):
            await error.retry()
            return
