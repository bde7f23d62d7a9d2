"""Ways to Redis by a client that belongs to the caller: its settings, its limits, its Sentinels."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import redis.asyncio as redis
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import NoPermissionError

from ._address import ours, shown
from ._errors import ConnectionLostError
from ._opening import disconnect, node_of, place_of, refresh, translated
from ._sentinels import Sentinels

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio.connection import AbstractConnection


class LentPool:
    """A `redis.asyncio.Redis` of the caller's: its pool, its settings, its limits.

    Sentinel's `master_for` is one of these: its pool asks for the master at each connect.
    """

    own_use = 1
    is_cluster = False

    def __init__(self, client: redis.Redis, connect_timeout: float) -> None:
        """Use the client's pool; the client stays the caller's and is never closed."""
        self._pool = client.connection_pool
        self._timeout = connect_timeout
        self.max_connections = int(self._pool.max_connections)
        self.sentinels = sentinels_of(self._pool, connect_timeout)

    async def open(self, key: str) -> AbstractConnection:
        """Take a connection from the pool."""
        del key
        try:
            async with asyncio.timeout(self._timeout):
                connection: AbstractConnection = await self._pool.get_connection()  # type: ignore[no-untyped-call]  # so in redis-py
                try:
                    await refresh(connection)
                    self._refuse_former(connection)
                except BaseException:
                    await self.give_up(connection)
                    raise
        except Exception as error:
            raise translated(error, str(self)) from error
        return connection

    def _refuse_former(self, connection: AbstractConnection) -> None:
        """Refuse what led, or was kept in the pool, to a master that has handed over."""
        place = place_of(connection)
        if self.sentinels is not None and self.sentinels.has_handed_over(place):
            msg = f"the pool leads to {place[0]}:{place[1]}, which has handed over"
            raise ConnectionLostError(msg)

    async def give_up(self, connection: AbstractConnection) -> None:
        """Close it and give its place back to the pool, which opens a new one when asked."""
        await disconnect(connection)
        with suppress(KeyError):  # the caller has reset the pool meanwhile
            await self._pool.release(connection)

    def __str__(self) -> str:
        return shown(self._pool.connection_kwargs)


class LentCluster:
    """A `redis.asyncio.RedisCluster` of the caller's: its nodes, its settings, its limits."""

    own_use = 1
    is_cluster = True
    sentinels = None

    def __init__(self, client: redis.RedisCluster, connect_timeout: float) -> None:
        """Use the client's nodes; the client stays the caller's and is never closed."""
        self._client = client
        self._timeout = connect_timeout
        self._places: dict[AbstractConnection, Callable[[], None]] = {}
        self.max_connections = int(
            client.get_connection_kwargs().get("max_connections") or 100
        )

    async def open(self, key: str) -> AbstractConnection:
        """Find the key's node and take one of its connections."""
        try:
            async with asyncio.timeout(self._timeout * 2):
                # A command on the key makes redis-py follow a moved slot before we ask.
                with suppress(NoPermissionError):
                    await self._client.exists(key)
                node = node_of(self._client, key)
                connection = node.acquire_connection()
                try:
                    await connection.connect()  # type: ignore[no-untyped-call]  # so in redis-py
                    await refresh(connection)
                except BaseException:
                    await disconnect(connection)
                    node.release(connection)
                    raise
        except Exception as error:
            raise translated(error, str(self)) from error
        self._places[connection] = lambda: node.release(connection)
        return connection

    async def give_up(self, connection: AbstractConnection) -> None:
        """Close it and give its place back to its node."""
        await disconnect(connection)
        self._places.pop(connection)()

    def __str__(self) -> str:
        nodes = self._client.get_nodes()
        return str(nodes[0].name) if nodes else "the given cluster client"


def sentinels_of(pool: redis.ConnectionPool, timeout: float) -> Sentinels | None:
    """Find those that a pool of the caller's asks; None when it asks none for a master."""
    if not isinstance(pool, SentinelConnectionPool) or not pool.is_master:
        return None
    manager = pool.sentinel_manager
    if getattr(manager, "_force_master_ip", None) is not None:
        return None  # whom they name is not where the pool connects to
    pools = [client.connection_pool for client in manager.sentinels]
    return Sentinels(
        pool.service_name, [_address_in(each, timeout) for each in pools], timeout
    )


def _address_in(pool: redis.ConnectionPool, timeout: float) -> dict[str, Any]:
    """Take from a pool's arguments where it leads and who enters, and no more."""
    kept = {"host", "port", "username", "password", "credential_provider"}
    given = {
        name: value
        for name, value in pool.connection_kwargs.items()
        if name in kept or name.startswith("ssl_")
    }
    if issubclass(pool.connection_class, redis.SSLConnection):
        given["connection_class"] = pool.connection_class
    return ours(given, timeout)
