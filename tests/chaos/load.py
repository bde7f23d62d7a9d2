"""Producers and consumers at work while something breaks, and the ledger that judges them."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from anyio import create_task_group

from aioredismq import (
    BacklogError,
    Connection,
    Consumer,
    ConsumerConfig,
    ExponentialBackoff,
    PublishUncertainError,
    RedisMessageQueue,
    ServerError,
)
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# Short, so that a test sees several renewals, claims and time-outs.
VISIBILITY = 1.5
CONCURRENCY = 8
CONFIG = ConsumerConfig(
    concurrency=CONCURRENCY,
    visibility_timeout=VISIBILITY,
    retry=ExponentialBackoff(initial=0),
)


@dataclass(slots=True)
class Ledger:
    """What was accepted and what was handled: the only judge.

    Attributes:
        accepted: Bodies whose `produce` returned an id.
        refused: Bodies whose `produce` raised, so that nothing may be stored.
        handled: How often each body was handled with success.
        running: Handlers that run now.
    """

    accepted: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    handled: Counter[int] = field(default_factory=Counter)
    running: int = 0

    @property
    def lost(self) -> set[int]:
        """Accepted and never handled."""
        return self.accepted - self.handled.keys()

    @property
    def duplicates(self) -> int:
        """How many times too often something was handled."""
        return sum(self.handled.values()) - len(self.handled)

    @property
    def unwanted(self) -> set[int]:
        """Handled although its sender was told that it is not stored."""
        return self.refused & self.handled.keys()


class Load:
    """A queue under load: four producers and two consumers."""

    def __init__(self, url: str, name: str, consumer_url: str, seed: int) -> None:
        """Producers and one consumer connect to `url`, the other consumer to `consumer_url`."""
        self.ledger = Ledger()
        self.queue = RedisMessageQueue(name, _connection(url), produce_timeout=3.0)
        self.other = RedisMessageQueue(name, _connection(consumer_url))
        self.consumers = [
            Consumer(queue, self._handle, CONFIG) for queue in (self.queue, self.other)
        ]
        self._chance = random.Random(seed)
        self._numbers = itertools.count()
        self._stop = asyncio.Event()
        self._may_produce = asyncio.Event()
        self._may_produce.set()
        self.sending = 0
        """Sends whose outcome is not known yet."""

    async def flows(self, messages: int = 40, limit: float = 8.0) -> None:
        """Wait until so many more messages have been handled."""
        before = self.ledger.handled.total()
        await eventually(
            lambda: self.ledger.handled.total() >= before + messages, limit
        )

    async def settles(self, limit: float) -> None:
        """Produce no more, and wait until all that was accepted is handled and settled."""
        self._stop.set()
        ledger = self.ledger
        await eventually(lambda: not self.sending, limit)
        await eventually(lambda: not ledger.lost and not ledger.running, limit)
        await eventually(lambda: not any(item.held for item in self.consumers), limit)

    async def write_off(self) -> set[int]:
        """Name what the servers have taken away themselves, and count it no more as accepted.

        It was accepted before, and for longer than any recovery takes nobody has handled it.
        """
        accepted = set(self.ledger.accepted)
        await asyncio.sleep(3 * VISIBILITY)
        gone = accepted & self.ledger.lost
        self.ledger.accepted -= gone
        return gone

    def pause(self) -> None:
        """Produce nothing for now; what is under way goes on."""
        self._may_produce.clear()

    def go_on(self) -> None:
        """Produce again."""
        self._may_produce.set()

    async def produce(self) -> None:
        """Be one producer, until `settles()`."""
        while not self._stop.is_set():
            await self._may_produce.wait()
            self.sending += 1
            try:
                await self._send(next(self._numbers))
            finally:
                self.sending -= 1
            await asyncio.sleep(0.002)

    async def _send(self, number: int) -> None:
        try:
            await self.queue.produce(number)
            self.ledger.accepted.add(number)
        except PublishUncertainError as error:
            await _until_certain(error)
            self.ledger.accepted.add(number)
        except (BacklogError, ServerError):
            self.ledger.refused.add(number)
            await asyncio.sleep(0.05)

    async def _handle(self, body: int) -> None:
        ledger = self.ledger
        ledger.running += 1
        try:
            await asyncio.sleep(self._chance.random() * 0.01)
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
    limit: float = 20.0,
    kind: type[Load] = Load,
) -> AsyncIterator[Load]:
    """Produce and consume while the block breaks things; leaving waits until all is settled.

    Args:
        url: Where producers, and one of two consumers, connect.
        name: The queue.
        consumer_url: Where the other consumer connects; None for `url` too.
        seed: Decides how long handlers take.
        limit: Seconds in which everything accepted must be handled after the block.
        kind: What kind of load it is.
    """
    load = kind(url, name, consumer_url or url, seed)
    async with (
        load.queue,
        load.other,
        load.consumers[0],
        load.consumers[1],
        create_task_group() as tasks,
    ):
        for _ in range(4):
            tasks.start_soon(load.produce)
        await load.flows()
        yield load
        await load.settles(limit)


def _connection(url: str) -> Connection:
    return Connection(url, reply_timeout=1.0, connect_timeout=1.0)


async def _until_certain(error: PublishUncertainError) -> None:
    """Ask until it is known what became of a send, as a careful application would."""
    for _ in range(20):
        with suppress(PublishUncertainError):
            await error.retry()
            return
    raise error
