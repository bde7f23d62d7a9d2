"""What several tests need and no fixture can be."""

from __future__ import annotations

import inspect
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import anyio
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.sentinel import Sentinel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

Client: TypeAlias = "Redis | RedisCluster"

# Seconds of silence after which a server nobody has ended is taken for dead. A failover because
# the machine did not run it for one would take away what tests have sent.
PATIENCE = 20.0

# What one look counts for at most, with the pause behind it: a moment in which the whole process
# was not run at all is no time that anybody had.
LONGEST_LOOK = 0.25


@dataclass(frozen=True, slots=True)
class Deployment:
    """One way to run Redis, for the promises that must hold on each."""

    kind: Literal["single", "sentinel", "cluster"]
    url: str
    """What `Connection` takes."""
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str = ""

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """Open a plain redis-py client to look in from outside; it answers bytes, as sent."""
        watching: list[Redis] = []
        client: Client
        if self.kind == "single":
            client = Redis.from_url(self.url, protocol=2)
        elif self.kind == "cluster":
            client = RedisCluster.from_url(self.url, protocol=2)
        else:
            sentinel = Sentinel(list(self.sentinels), protocol=2)
            watching = sentinel.sentinels
            client = sentinel.master_for(self.service, protocol=2)
        try:
            yield client
        finally:
            for each in (client, *watching):
                await each.aclose()


async def eventually(
    is_true: Callable[[], bool | Awaitable[bool]], limit: float = 30.0
) -> None:
    """Wait until a condition holds; fail, naming it, when it does not within `limit` seconds."""
    left = limit
    while True:
        looked = time.monotonic()
        answer = is_true()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return
        if left < 0:
            what = inspect.getsource(is_true).strip()
            raise AssertionError(f"not true after {limit:g} s: {what}")
        await anyio.sleep(0.005)
        left -= min(time.monotonic() - looked, LONGEST_LOOK)


class Standstills:
    """When this process stood still, on a busy machine: a timer of its event loop came late."""

    def __init__(self, shortest: float) -> None:
        """None was seen yet; what is shorter than so many seconds is none."""
        self._shortest = shortest
        self._seen: list[tuple[float, float]] = []
        self._looked = time.monotonic()

    async def watch(self) -> None:
        """Look at the clock again and again, until cancelled."""
        while True:
            self._look()
            await anyio.sleep(0.005)

    def _look(self) -> None:
        before, self._looked = self._looked, time.monotonic()
        if self._looked - before > self._shortest:
            self._seen.append((before, self._looked))

    @property
    def any_seen(self) -> bool:
        """Whether there was one."""
        self._look()
        return bool(self._seen)

    def passed(self, since: float, until: float | None = None) -> float:
        """Seconds from one moment of `time.monotonic()` to another, without the standstills."""
        self._look()
        until = self._looked if until is None else until
        over = (min(end, until) - max(begin, since) for begin, end in self._seen)
        return until - since - sum(stood for stood in over if stood > 0)


@asynccontextmanager
async def watched(shortest: float = LONGEST_LOOK) -> AsyncIterator[Standstills]:
    """Note the standstills during the block, so that a time measured in it can be a bound."""
    standstills = Standstills(shortest)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(standstills.watch)
        yield standstills
        standstills._look()
        tasks.cancel_scope.cancel()


def choose_servers(asked: str | None, found: dict[str, Path]) -> dict[str, Path | None]:
    """Say which of the servers found the suite runs on.

    Args:
        asked: `all`, beginnings of names with commas between, or None for the first.
        found: Programs by name, the preferred one in front.

    Returns:
        Programs by name. Where there is none at all and none was asked for, a None stands in:
        the rules can still be tested, and each test that needs a server says what to install.

    Raises:
        ValueError: A server that was asked for is not there: to skip would look like success.
    """
    if asked is None:
        return dict([*found.items(), ("no server", None)][:1])
    if asked == "all":
        asked = ",".join(found)
    chosen: dict[str, Path | None] = {}
    for name in asked.split(","):
        fitting = {
            known: path
            for known, path in found.items()
            if name and known.startswith(name)
        }
        if not fitting:
            raise ValueError(
                f"no server {name!r} found; there are: {', '.join(found) or 'none'}"
            )
        chosen |= fitting
    return chosen
