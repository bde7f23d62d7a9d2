"""Services of their own on the shared Sentinels, and failovers that are only announced.

A Sentinel believes what another one publishes on a server it watches. So a service over two plain
servers hands over within a tenth of a second, whenever a test likes, and both go on as masters: as
after a planned failover, until the former one is told.
"""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING

from anyio.to_thread import run_sync

from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aioredismq.testing import RedisServer, SentinelSet


class Service:
    """One master, as some of the Sentinels know it."""

    def __init__(self, sentinels: Sequence[RedisServer], master: RedisServer) -> None:
        """Nobody watches it yet."""
        self.name = f"s{secrets.token_hex(4)}"
        self.sentinels = sentinels
        self.epoch = 0
        self._master = master

    @property
    def url(self) -> str:
        """What `Connection` takes."""
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels)
        return f"redis+sentinel://{hosts}/{self.name}"

    def watch(self, by: RedisServer, master: RedisServer) -> None:
        """Have a sentinel watch it, with whatever server as its master."""
        by.command("SENTINEL", "MONITOR", self.name, "127.0.0.1", master.port, 3)

    def forget(self, by: RedisServer) -> None:
        """Undo `watch`."""
        by.command("SENTINEL", "REMOVE", self.name)

    async def hand_over(self, to: RedisServer) -> None:
        """Have the sentinels hear that another server is the master, and wait until all have."""
        self.epoch += 1
        hello = (
            f"127.0.0.1,1,{secrets.token_hex(20)},{self.epoch},"
            f"{self.name},127.0.0.1,{to.port},{self.epoch}"
        )

        async def is_heard() -> bool:
            # Until each has subscribed, which takes it a moment.
            await run_sync(self._master.command, "PUBLISH", "__sentinel__:hello", hello)
            return {await run_sync(self._named, each) for each in self.sentinels} == {
                to.port
            }

        await eventually(is_heard)
        self._master = to

    def _named(self, sentinel: RedisServer) -> int:
        told = sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)
        assert isinstance(told, list)
        return int(told[1])


def listeners(sentinel: RedisServer, user: str = "default") -> int:
    """Count the lookouts that have subscribed to all they want to hear."""
    clients = str(sentinel.command("CLIENT", "LIST")).splitlines()
    return sum(" sub=5 " in each and f" user={user} " in each for each in clients)


@contextmanager
def service(
    sentinel: SentinelSet, master: RedisServer, by: slice = slice(None)
) -> Iterator[Service]:
    """Have the Sentinels, or some of them, watch a server for the length of the block."""
    made = Service(sentinel.sentinels[by], master)
    for each in made.sentinels:
        made.watch(each, master)
    yield made
    for each in made.sentinels:
        made.forget(each)
