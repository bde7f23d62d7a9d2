"""`Connection`: what many queues, producers and consumers share.

Commands of all who share it travel on one pipelined connection (in Cluster: one per queue, on the
node that has it). Each consumer has one more, blocked in its read, and one carries the bell.
"""

from __future__ import annotations

import asyncio
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from anyio import create_task_group

from ._about import ask_about, is_cluster_node, refuse_too_old
from ._bell import Bell
from ._errors import (
    ConfigurationError,
    ConnectionLostError,
    NotInitializedError,
    PoolTooSmallError,
    ServerError,
)
from ._host import insist, outlast
from ._lifetime import Lifetime
from ._link import Link
from ._lookout import Lookout
from ._opening import place_of, writer_of
from ._scripts import reply_error
from ._topology import OwnCluster, OwnServer, topology_for
from ._wire import Wire

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from typing import Self

    import redis.asyncio as redis
    from anyio.abc import TaskGroup
    from redis.asyncio.connection import AbstractConnection

    from ._failover import Place


class Connection:
    """The way to one Redis server, Sentinel service, or Cluster, shared by what is built on it.

    Queues open and close it as they come and go; `async with connection:` keeps it open in
    between. It belongs to one event loop and process.

    Args:
        target: A URL (`redis://`, `rediss://`, `unix://`,
            `redis+sentinel://host:port[,host:port]/service[/db]`), or a `redis.asyncio` client:
            its pool is used, within its limits, and it is never closed.
        max_connections: Connections open at once at most, for a URL. One for commands, one for
            the bell, and one per consumer are needed.
        connect_timeout: Seconds a connect may take.
        reply_timeout: Seconds without any reply, while one is due, after which the line counts
            as dead and is made again.
        cluster: Whether the URL's server is a node of a Cluster; None finds out.
    """

    def __init__(
        self,
        target: str | redis.Redis | redis.RedisCluster = "redis://localhost:6379/0",
        *,
        max_connections: int = 64,
        connect_timeout: float = 5.0,
        reply_timeout: float = 10.0,
        cluster: bool | None = None,
    ) -> None:
        """Check the arguments; nothing is opened."""
        _check_seconds("connect_timeout", connect_timeout)
        _check_seconds("reply_timeout", reply_timeout)
        _check_count("max_connections", max_connections)
        self._topology = topology_for(
            target,
            max_connections=max_connections,
            connect_timeout=connect_timeout,
            cluster=cluster,
        )
        if self._topology.sentinels is not None:
            self._topology.sentinels.on_move(self._move)
        self._may_be_cluster = cluster is None
        self._is_known = False
        self._connect_timeout = connect_timeout
        self._reply_timeout = reply_timeout
        self._readers: list[Callable[[], None]] = []
        self._links: dict[str, Link] = {}
        self._wires: dict[Wire, AbstractConnection] = {}
        self._spent: list[AbstractConnection] = []
        self._has_spent: asyncio.Event
        self.bell: Bell
        self._group: TaskGroup | None = None
        self._lifetime = Lifetime(
            self._live,
            begin=self._begin,
            is_needed=lambda: bool(self._readers),
            cut_off=self._cut_off,
        )

    # -- lifetime ------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Keep it open until the block is left."""
        await self.open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it unless a queue still uses it."""
        await self.close()

    async def open(self) -> None:
        """Count one user more; the first starts what keeps the connections.

        Raises:
            WrongLoopError: It is open on another loop, or in the parent process.
        """
        await self._lifetime.open()

    def _begin(self) -> None:
        """Bind to the running loop: locks and events belong to the first loop they wait on."""
        self._has_spent = asyncio.Event()
        self.bell = Bell(self._open_bell)

    async def close(self) -> None:
        """Count one user less; the last closes every connection.

        Raises:
            WrongLoopError: It is open on another loop, or in the parent process.

        Cancellation: it still closes, in the background.
        """
        await self._lifetime.close()

    async def _live(self, ready: Callable[[], None]) -> None:
        try:
            async with create_task_group() as group:
                self._group = group
                self._start(self.bell.listen)
                self._start(self._give_back)
                ready()
                await self._lifetime.until_closed()
                group.cancel_scope.cancel()
        finally:
            self._group = None
            self._links.clear()
            for wire in list(self._wires):
                wire.close()
            await self._clear_spent()

    def _start(self, run: Callable[[], Awaitable[None]]) -> None:
        assert self._group is not None  # while it is open
        scope, name = self._group.cancel_scope, f"aioredismq {run.__qualname__}"
        self._group.start_soon(outlast, run, scope, self._lifetime.cut_off, name=name)

    def _cut_off(self) -> None:
        for cut_off in list(self._readers):
            cut_off()

    def check(self) -> None:
        """Refuse use on another loop or after a fork.

        Raises:
            WrongLoopError: With which of the two it is.
            NotInitializedError: It is not open.
        """
        self._lifetime.check()

    # -- what it gives -------------------------------------------------------------------------

    async def link(self, key: str) -> Link:
        """Give the shared command connection to the server of `key`, connected.

        Raises:
            ConnectionLostError: It cannot be reached.
            AuthenticationError: It does not let this user in.
            UnsupportedServerError: It is too old.
            PoolTooSmallError: The pool has no connection for it.
        """
        self.check()
        async with self._lifetime.lock:
            if not self._is_known:
                await self._find_out(key)
            slot = key if self._topology.is_cluster else ""
            link = self._links.get(slot)
            if link is None:
                self._afford(links=len(self._links) + 1, readers=len(self._readers))
                link = Link(
                    lambda on_lost: self.reserve(key, on_lost=on_lost),
                    patience=self._reply_timeout,
                )
                await link.connect()
                if self._group is None:  # pragma: no cover -- closed while it connected
                    msg = "the connection was closed"
                    raise NotInitializedError(msg)
                self._links[slot] = link
                self._start(link.keep)
                if self._topology.sentinels is not None:
                    self._start(Lookout(self._topology.sentinels).keep)
            return link

    async def reserve(
        self,
        key: str,
        *,
        longest_block: float = 0.0,
        on_lost: Callable[[], None] | None = None,
        on_push: Callable[[list[Any]], None] | None = None,
    ) -> Wire:
        """Open a wire to the server of `key` for the caller alone; `close()` gives it back.

        Args:
            key: Any key of the queue.
            longest_block: Seconds its commands block at most, on top of the reply timeout.
            on_lost: Called when it ends.
            on_push: Called with each published message.

        Raises:
            ServerError: It cannot be opened.
            PoolTooSmallError: As many connections are open as may be.
        """
        await self._clear_spent()
        limit = self._topology.max_connections
        if len(self._wires) >= limit:
            raise PoolTooSmallError(limit, len(self._wires) + 1)
        connection = await self._topology.open(key)

        def lost() -> None:
            self._spent.append(self._wires.pop(wire))
            self._has_spent.set()
            if on_lost is not None:
                on_lost()

        try:
            wire = Wire(
                writer_of(connection),
                reply_timeout=self._reply_timeout + longest_block,
                on_lost=lost,
                on_push=on_push,
                reply_error=reply_error,
            )
        except BaseException:  # pragma: no cover -- it broke since the line above
            await self._topology.give_up(connection)
            raise
        self._wires[wire] = connection
        return wire

    def afford(self, readers: int) -> None:
        """Check that so many more consumers, each blocking a connection, can be served.

        Raises:
            PoolTooSmallError: They cannot; with the number that is needed.
        """
        readers += len(self._readers)
        self._afford(links=max(len(self._links), 1), readers=readers)

    def claim_reader(self, cut_off: Callable[[], None]) -> None:
        """Count one consumer, before it starts; `unclaim_reader` when it has ended.

        Args:
            cut_off: Called when somebody has cancelled the connection, which stays open until the
                consumer has ended.

        Raises:
            PoolTooSmallError: It cannot be served.
        """
        self.afford(1)
        self._readers.append(cut_off)

    def unclaim_reader(self, cut_off: Callable[[], None]) -> None:
        """Undo `claim_reader`."""
        self._readers.remove(cut_off)
        self._lifetime.left()

    @property
    def is_cluster(self) -> bool:
        """Whether two keys may live on two servers; known once it is open."""
        return self._topology.is_cluster

    @property
    def failures(self) -> list[ServerError]:
        """Why commands cannot be sent now; empty while they can."""
        return [
            link.failure for link in self._links.values() if link.failure is not None
        ]

    def __repr__(self) -> str:
        return f"Connection({self._topology})"

    # ------------------------------------------------------------------------------------------

    async def _open_bell(
        self, on_lost: Callable[[], None], on_push: Callable[[list[Any]], None]
    ) -> Wire:
        # Published messages reach every node of a Cluster: any key will do.
        return await self.reserve("bell", on_lost=on_lost, on_push=on_push)

    def _afford(self, *, links: int, readers: int) -> None:
        bell = 1 if readers else 0
        needed = self._topology.own_use + links + bell + readers
        if needed > self._topology.max_connections:
            raise PoolTooSmallError(self._topology.max_connections, needed)

    async def _find_out(self, key: str) -> None:
        """Ask the server what it is: once, before anything is built on it."""
        wire = await self.reserve(key)
        try:
            info = await ask_about(wire, within=self._reply_timeout)
        finally:
            wire.close()
        refuse_too_old(info)
        is_node = self._may_be_cluster and is_cluster_node(info)
        if is_node and isinstance(self._topology, OwnServer):
            self._topology = OwnCluster(
                self._topology.arguments, self._topology.max_connections
            )
        self._is_known = True

    def _move(self, place: Place, why: str) -> None:
        """End what leads elsewhere: until it is told, a former master takes what will be lost."""
        for wire, connection in list(self._wires.items()):
            if place_of(connection) != place:
                wire.close(ConnectionLostError(why))

    async def _give_back(self) -> None:
        """Give up what has ended as soon as it has: a lent pool has use for its place."""
        while True:
            await self._has_spent.wait()
            self._has_spent.clear()
            await self._clear_spent()

    async def _clear_spent(self) -> None:
        while self._spent:
            # A place that is not given back is lost.
            await insist(partial(self._topology.give_up, self._spent.pop()))


def _check_seconds(name: str, value: object) -> None:
    if not isinstance(value, int | float) or not 0 < value < inf:
        msg = f"{name} must be more than 0 seconds, got {value!r}"
        raise ConfigurationError(msg)


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or value < 1:
        msg = f"{name} must be at least 1, got {value!r}"
        raise ConfigurationError(msg)
