"""Whatever can break, at random and repeatably."""

from __future__ import annotations

import asyncio
import random
import re
from contextlib import suppress
from typing import TYPE_CHECKING

from anyio.to_thread import run_sync
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.chaos import tampering
from tests.chaos.load import CONCURRENCY
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aioredismq.testing import FaultyLine, RedisServer
    from tests.chaos.load import Load


class Faults:
    """What can happen to a server and to the lines to it."""

    def __init__(
        self, server: RedisServer, line: FaultyLine, load: Load, seed: int
    ) -> None:
        """The same seed does the same things. What the server loses itself is written down."""
        self._server = server
        self._line = line
        self._load = load
        self._name = load.queue.name
        self._chance = random.Random(seed)
        self.count = 0
        self.may_repeat = 0
        """Messages that were held when a fault took leases away: somebody else may have them."""

    async def happen(self) -> None:
        """Let one of them happen, and be over."""
        self.count += 1
        takes_leases: list[Callable[[], Awaitable[None]]] = [
            self._silence,
            self._destroy_group,
            self._delete_stream,
            self._flush_all,
        ]
        fault = self._chance.choice(
            [
                *takes_leases,
                self._drop,
                self._drop,
                self._cut,
                self._lose_replies,
                self._slow,
                self._kill,
                self._pause,
                self._fill,
                self._take_replicas,
                self._make_read_only,
                self._forget_scripts,
                self._kill_clients,
            ]
        )
        if fault in takes_leases:
            self.may_repeat += self._load.held + 2 * (CONCURRENCY + 1)
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
        await eventually(self._is_loaded)

    async def _is_loaded(self) -> bool:
        about = await run_sync(self._server.command, "INFO", "persistence")
        return re.search(r"\bloading:0", str(about)) is not None

    async def _pause(self) -> None:
        await run_sync(self._server.pause)
        await self._for_a_while(1.0)
        await run_sync(self._server.resume)

    async def _fill(self) -> None:
        await self._say("CONFIG", "SET", "maxmemory", "1")
        await self._for_a_while(0.5)
        await self._say("CONFIG", "SET", "maxmemory", "0")

    async def _take_replicas(self) -> None:
        await self._say("CONFIG", "SET", "min-replicas-to-write", "1")
        await self._for_a_while(0.5)
        await self._say("CONFIG", "SET", "min-replicas-to-write", "0")

    async def _make_read_only(self) -> None:
        await self._say("REPLICAOF", "127.0.0.1", "1")
        await self._for_a_while(0.5)
        await self._say("REPLICAOF", "NO", "ONE")

    async def _forget_scripts(self) -> None:
        await self._tamper(tampering.flush_scripts)

    async def _kill_clients(self) -> None:
        await self._tamper(tampering.kill_clients)

    async def _destroy_group(self) -> None:
        await self._tamper(tampering.destroy_group)

    async def _delete_stream(self) -> None:
        await self._tamper(tampering.delete_stream)

    async def _flush_all(self) -> None:
        await self._tamper(tampering.flush_all)

    async def _tamper(self, how: tampering.Tamper) -> None:
        async with Redis.from_url(self._server.url, protocol=2) as client:
            self._load.ledger.taken |= await how(client, self._name)

    async def _say(self, *words: str) -> None:
        with suppress(RedisError):
            await run_sync(self._server.command, *words)
