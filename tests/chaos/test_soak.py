"""Random faults for as long as one likes: nothing is lost, and nothing grows.

Some seconds by default; `nox -s soak` takes ten minutes, `--soak SECONDS` as long as it says.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from anyio.to_thread import run_sync
from redis.asyncio import Redis
from redis.exceptions import RedisError

from aioredismq import Message  # noqa: TC001 -- the handler's annotation is resolved
from aioredismq._keys import QueueKeys
from aioredismq.testing import FaultyLine
from tests.chaos.ledger import judge
from tests.chaos.load import CONCURRENCY, Load, under_load
from tests.looking import NOTHING, left
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aioredismq.testing import RedisServer

pytestmark = [pytest.mark.one_loop, pytest.mark.timeout(0)]

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

    def __init__(self, url: str, name: str, consumer_url: str, seed: int) -> None:
        """As any load."""
        super().__init__(url, name, consumer_url, seed)
        self.duplicates = 0
        self.handled = 0
        self.dead = 0
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
        for kept in (ledger.accepted, ledger.refused, ledger.handled, ledger.rejected):
            kept.clear()


class Faults:
    """What can happen to a server and to the lines to it."""

    def __init__(
        self, server: RedisServer, line: FaultyLine, name: str, seed: int
    ) -> None:
        """The same seed does the same things."""
        self._server = server
        self._line = line
        self._name = name
        self._chance = random.Random(seed)
        self.count = 0
        self.may_repeat = 0
        """Those after which somebody else may have what still runs: leases were lost."""

    async def happen(self) -> None:
        """Let one of them happen, and be over."""
        self.count += 1
        fault: Callable[[], Awaitable[None]] = self._chance.choice(
            [
                self._drop,
                self._drop,
                self._cut,
                self._silence,
                self._lose_replies,
                self._slow,
                self._kill,
                self._pause,
                self._fill,
                self._forget_scripts,
                self._kill_clients,
                self._destroy_group,
            ]
        )
        self.may_repeat += fault in (self._destroy_group, self._silence)
        await fault()
        await asyncio.sleep(self._chance.random() * 0.6)

    async def _for_a_while(self, longest: float) -> None:
        await asyncio.sleep(self._chance.random() * longest)
        self._line.heal()

    async def _drop(self) -> None:
        self._line.drop()

    async def _cut(self) -> None:
        self._line.cut()
        await self._for_a_while(0.5)

    async def _silence(self) -> None:
        self._line.black_hole()
        await self._for_a_while(1.5)

    async def _slow(self) -> None:
        self._line.delay(0.05)
        await self._for_a_while(0.5)

    async def _lose_replies(self) -> None:
        for command in (b"EVALSHA", b"XREADGROUP"):
            self._line.reset_after_request(command)
            await asyncio.sleep(0.1)
        self._line.heal()

    async def _kill(self) -> None:
        await run_sync(self._server.kill)
        await self._for_a_while(0.5)
        await run_sync(self._server.start)
        await eventually(self._is_loaded, 10)

    async def _is_loaded(self) -> bool:
        about = await run_sync(self._server.command, "INFO", "persistence")
        return "loading:0" in str(about)

    async def _pause(self) -> None:
        await run_sync(self._server.pause)
        await self._for_a_while(1.0)
        await run_sync(self._server.resume)

    async def _fill(self) -> None:
        await self._say("CONFIG", "SET", "maxmemory", "1")
        await self._for_a_while(0.5)
        await self._say("CONFIG", "SET", "maxmemory", "0")

    async def _forget_scripts(self) -> None:
        await self._say("SCRIPT", "FLUSH")

    async def _kill_clients(self) -> None:
        await self._say("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    async def _destroy_group(self) -> None:
        await self._say("XGROUP", "DESTROY", self._name, f"{self._name}_group")

    async def _say(self, *words: str) -> None:
        with suppress(RedisError):
            await run_sync(self._server.command, *words)


async def look(server: RedisServer, name: str) -> Look:
    """Look at what could grow. Every key must have an owner here, or a TTL."""
    psutil = pytest.importorskip("psutil", reason="psutil measures memory")
    keys_of = QueueKeys(name)
    group = f"{name}_group"
    owned = {name, keys_of.queue, keys_of.dead, keys_of.lane(group)}
    # Written when a group was gone, until its next look.
    owned.add(keys_of.settled(group))
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
            keys=frozenset(
                key.split(":sent:")[0] for key in keys - {keys_of.settled(group)}
            ),
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
    async with FaultyLine(durable_server.url) as line:
        faults = Faults(durable_server, line, name, seed)
        async with under_load(
            durable_server.url, name, consumer_url=line.url, seed=seed, kind=Restless
        ) as load:
            assert isinstance(load, Restless)
            while not looks or time.monotonic() < end:
                over = time.monotonic() + ROUND
                load.go_on()
                while time.monotonic() < over:
                    await faults.happen()
                await load.quiet(15)
                async with Redis.from_url(durable_server.url, protocol=2) as client:
                    await load.take_stock(client)
                looks.append(await look(durable_server, name))
            load.go_on()

    async with Redis.from_url(durable_server.url, protocol=2) as client:
        assert await left(client, name) == NOTHING
    assert load.handled > 100 * len(looks)
    assert load.duplicates <= faults.may_repeat * 2 * (CONCURRENCY + 1)
    print(  # noqa: T201 -- `pytest -rP` shows it
        f"{faults.count} faults, {load.handled} handled, {load.dead} dead, "
        f"{load.duplicates} duplicates"
    )
    first, last = looks[len(looks) // 3], looks[-1]
    assert last.resident - first.resident < 20
    assert max(one.connections for one in looks) <= 2 * 3 + 4
    assert max(one.names for one in looks) <= 2
    assert len({one.keys for one in looks[1:]} | {last.keys}) <= 2
