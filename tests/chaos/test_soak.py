"""Random faults for as long as one likes: nothing is lost, and nothing grows.

Some seconds by default; `nox -s soak` takes ten minutes, `--soak SECONDS` as long as it says.
"""

from __future__ import annotations

import gc
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from redis.asyncio import Redis

from aioredismq import Message  # noqa: TC001 -- the handler's annotation is resolved
from aioredismq.testing import FaultyLine
from tests.chaos.faults import Faults
from tests.chaos.ledger import judge
from tests.chaos.load import Load, under_load
from tests.looking import NOTHING, left

if TYPE_CHECKING:
    from aioredismq import ConsumerConfig
    from aioredismq.testing import RedisServer

pytestmark = [pytest.mark.one_loop, pytest.mark.timeout(0)]

# What an idle queue owns beside its stream, the last one after a group was gone and until its next
# look; each sender has one more key, with a TTL.
QUEUE_KEYS = (
    "{{{0}}}:queue",
    "{{{0}}}:dead",
    "{{{0}}}:lane:{0}_group",
    "{{{0}}}:settled:{0}_group",
)
SENDERS = 2

# The work between two looks; each look waits until everything accepted is settled.
ROUND = 4.0


@dataclass(frozen=True, slots=True)
class Look:
    """What could grow, when all is settled."""

    resident: float
    """MB of this process."""
    connections: int
    names: int
    keys: frozenset[str]
    """Without what differs between producers."""


class Restless(Load):
    """A load that can take a breath, and forgets what is over."""

    def __init__(
        self, url: str, name: str, consumer_url: str, seed: int, config: ConsumerConfig
    ) -> None:
        """As any load."""
        super().__init__(url, name, consumer_url, seed, config)
        self.duplicates = 0
        self.handled = 0
        self.dead = 0
        self.taken = 0
        self._settled = -1

    async def _handle(self, body: int, message: Message) -> None:
        if body <= self._settled:
            self.duplicates += 1
            return
        await super()._handle(body, message)

    async def take_stock(self, client: Redis) -> None:
        """When all is settled, judge it, and forget it; its dead letters are discarded."""
        ledger = self.ledger
        verdict = await judge(ledger, client, self.queue.name)
        assert verdict.lost == verdict.unwanted == 0, verdict
        assert await self.queue.dead_letters.discard(all=True) >= verdict.dead
        self.duplicates += verdict.duplicates
        self.handled += verdict.handled
        self.dead += verdict.dead
        self._settled = max([self._settled, *ledger.accepted, *ledger.refused])
        self.taken += verdict.taken
        for kept in (ledger.accepted, ledger.refused, ledger.rejected, ledger.taken):
            kept.clear()
        ledger.handled.clear()


async def look(server: RedisServer, name: str) -> Look:
    """Look at what could grow. Every key must have an owner here, or a TTL."""
    psutil = pytest.importorskip("psutil", reason="psutil measures memory")
    owned = {name, *[key.format(name) for key in QUEUE_KEYS]}
    async with Redis.from_url(server.url, protocol=2) as client:
        keys = {key.decode() for key in await client.keys("*")}
        for key in keys - owned:
            assert await client.ttl(key) > 0, f"{key} has neither an owner nor a TTL"
        about = await left(client, name)
        assert (about.pending, about.pending_lane, about.delayed) == (0, 0, 0)
        gc.collect()
        return Look(
            resident=psutil.Process().memory_info().rss / 1e6,
            connections=len(await client.client_list()),
            names=len(set(about.names)),
            keys=frozenset(key.split(":sent:")[0] for key in keys),
        )


async def test_random_faults_lose_nothing_and_leave_nothing_behind(
    durable_server: RedisServer,
    name: str,
    seed: int,
    request: pytest.FixtureRequest,
) -> None:
    """Round after round of whatever can break; after each, all is settled and nothing has grown."""
    logging.getLogger("aioredismq").setLevel(
        logging.CRITICAL
    )  # pytest keeps every line
    end = time.monotonic() + request.config.getoption("--soak")
    looks: list[Look] = []
    async with (
        FaultyLine(durable_server.url) as line,
        under_load(
            durable_server.url, name, consumer_url=line.url, seed=seed, kind=Restless
        ) as load,
    ):
        assert isinstance(load, Restless)
        faults = Faults(durable_server, line, load, seed)
        while not looks or time.monotonic() < end:
            over = time.monotonic() + ROUND
            load.go_on()
            while time.monotonic() < over:
                await faults.happen()
            await load.quiet(30)
            async with Redis.from_url(durable_server.url, protocol=2) as client:
                await load.take_stock(client)
            looks.append(await look(durable_server, name))
        load.go_on()

    async with Redis.from_url(durable_server.url, protocol=2) as client:
        assert await left(client, name) == NOTHING
    assert load.handled > 100 * len(looks)
    assert load.duplicates <= faults.may_repeat
    print(  # noqa: T201 -- `pytest -rP` shows it
        f"{faults.count} faults, {load.handled} handled, {load.dead} dead, "
        f"{load.taken} taken away by the server, {load.duplicates} duplicates"
    )
    first, last = looks[len(looks) // 3], looks[-1]
    assert last.resident - first.resident < 20
    assert max(one.connections for one in looks) <= 2 * 3 + 4
    # The consumers, and nobody's: what was pending when a group was lost.
    assert max(one.names for one in looks) <= 3
    assert max(len(one.keys) for one in looks) <= len(QUEUE_KEYS) + SENDERS
