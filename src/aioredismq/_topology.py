"""Where a key lives, and how a connection to that server is opened and given up.

One class per way to reach Redis: an address of ours, Sentinel, Cluster, or a client that belongs
to the caller. redis-py does the work each time.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import redis.asyncio as redis
from redis.asyncio.cluster import ClusterNode
from redis.exceptions import NoPermissionError

from ._address import arguments, host_and_port, shown, without_password
from ._errors import (
    AuthenticationError,
    ConfigurationError,
    ConnectionLostError,
    MessageQueueError,
    PermissionDeniedError,
    ServerError,
)
from ._opening import connected, disconnect, new_connection, refresh, translated

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio.connection import AbstractConnection


class Topology(Protocol):
    """A way to reach the server that has a key."""

    max_connections: int
    """Connections that may be open at once."""
    own_use: int
    """Of these, what the caller of a lent client needs for itself."""
    is_cluster: bool
    """Whether two keys may live on two servers."""

    async def open(self, key: str) -> AbstractConnection:
        """Open a connection to the server that has `key` now.

        Bounded: the connect timeout counts for each host that has to be asked.

        Raises:
            ConnectionLostError: It cannot be reached, or does not answer.
            AuthenticationError: It does not let this user in.
            UnsupportedServerError: It does not speak the Redis protocol.
        """
        ...

    async def give_up(self, connection: AbstractConnection) -> None:
        """Close a connection and forget it."""
        ...

    def __str__(self) -> str:
        """Address for an error message, without password."""
        ...


def topology_for(
    target: str | redis.Redis | redis.RedisCluster,
    *,
    max_connections: int,
    connect_timeout: float,
    cluster: bool | None,
) -> Topology:
    """Choose the way by what the caller has given.

    Raises:
        ConfigurationError: The URL cannot be used; with the reason.
    """
    if isinstance(target, redis.RedisCluster):
        return LentCluster(target, connect_timeout)
    if isinstance(target, redis.Redis):
        return LentPool(target, connect_timeout)
    if not isinstance(target, str):
        msg = (
            "connection must be a URL, a redis.asyncio client or a Connection, "
            f"got {type(target).__name__}"
        )
        raise ConfigurationError(msg)
    if target.startswith(("redis+sentinel://", "rediss+sentinel://")):
        return OwnSentinel(target, max_connections, connect_timeout)
    address = arguments(target, connect_timeout)
    new_connection(address)  # refuses an option it does not know
    if cluster:
        return OwnCluster(address, max_connections)
    return OwnServer(address, max_connections)


class OwnServer:
    """One server, by its address."""

    own_use = 0
    is_cluster = False

    def __init__(self, address: dict[str, Any], max_connections: int) -> None:
        """Take the arguments of redis-py's connection."""
        self.arguments = address
        self.max_connections = max_connections

    async def open(self, key: str) -> AbstractConnection:
        """Open a connection; every key is here."""
        del key
        return await connected(self.arguments, str(self))

    async def give_up(self, connection: AbstractConnection) -> None:
        """Close it."""
        await disconnect(connection)

    def __str__(self) -> str:
        return shown(self.arguments)


class OwnSentinel:
    """The master of a service, asked of the sentinels at each connect.

    URL: `redis+sentinel://[user:password@]host:port[,host:port…]/service[/db]`; user, password
    and options are the servers', those of the sentinels are the options `sentinel_username` and
    `sentinel_password`. `rediss+sentinel://`: both speak TLS.
    """

    own_use = 0
    is_cluster = False

    def __init__(self, url: str, max_connections: int, connect_timeout: float) -> None:
        """Read the URL."""
        self.max_connections = max_connections
        parts = urlsplit(url)
        credentials, _, hosts = parts.netloc.rpartition("@")
        self.service, _, database = parts.path.strip("/").partition("/")
        if not self.service or not hosts:
            msg = (
                "a Sentinel URL must be redis+sentinel://host:port[,host:port]/service[/db], "
                f"got {without_password(url)!r}"
            )
            raise ConfigurationError(msg)
        self.addresses = [host_and_port(host, 26379) for host in hosts.split(",")]
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        scheme = "rediss" if parts.scheme.startswith("rediss") else "redis"
        self._sentinel = arguments(f"{scheme}://localhost", connect_timeout)
        for name in ("username", "password"):
            if f"sentinel_{name}" in options:
                self._sentinel[name] = options.pop(f"sentinel_{name}")
        user, _, password = credentials.partition(":")
        self._server = arguments(
            f"{scheme}://localhost/{database}?{urlencode(options)}", connect_timeout
        )
        new_connection(self._server)  # refuses an option it does not know
        if user:
            self._server["username"] = unquote(user)
        if password:
            self._server["password"] = unquote(password)

    async def open(self, key: str) -> AbstractConnection:
        """Ask one sentinel after the other until one leads to a master."""
        del key
        failures: list[MessageQueueError] = []
        for address in list(self.addresses):
            try:
                connection = await self._open_by(*address)
            except ServerError as error:
                failures.append(error)
            else:
                # The one that knew is asked first from now on.
                self.addresses.remove(address)
                self.addresses.insert(0, address)
                return connection
        reasons = "; ".join(str(error) for error in failures)
        msg = f"no sentinel leads to the master of {self.service!r}: {reasons}"
        refused = any(isinstance(error, AuthenticationError) for error in failures)
        raise (AuthenticationError if refused else ConnectionLostError)(msg)

    async def _open_by(self, host: str, port: int) -> AbstractConnection:
        asked = f"sentinel {host}:{port}"
        sentinel = await connected(
            {**self._sentinel, "host": host, "port": port}, asked
        )
        try:
            place = await self._ask(
                sentinel, asked, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service
            )
        finally:
            await disconnect(sentinel)
        if place is None:
            msg = f"{asked} knows no service {self.service!r}"
            raise ConnectionLostError(msg)
        name = f"{place[0].decode()}:{place[1].decode()}"
        server = {**self._server, "host": place[0].decode(), "port": int(place[1])}
        connection = await connected(server, name)
        try:
            is_master = await self._is_master(connection, name)
        except BaseException:
            await disconnect(connection)
            raise
        if not is_master:
            await disconnect(connection)
            msg = f"{asked} names {name}, which is no master now"
            raise ConnectionLostError(msg)
        return connection

    async def _is_master(self, connection: AbstractConnection, name: str) -> bool:
        """Ask the server itself: a sentinel may not have heard yet."""
        try:
            role = await self._ask(connection, name, "ROLE")
        except PermissionDeniedError:
            return True
        return bool(role[0] == b"master")

    async def _ask(self, connection: AbstractConnection, name: str, *words: str) -> Any:
        try:
            async with asyncio.timeout(self._server["socket_connect_timeout"]):
                await connection.send_command(*words)
                return await connection.read_response()
        except Exception as error:
            raise translated(error, name) from error

    async def give_up(self, connection: AbstractConnection) -> None:
        """Close it."""
        await disconnect(connection)

    def __str__(self) -> str:
        hosts = ",".join(f"{host}:{port}" for host, port in self.addresses)
        return f"sentinels {hosts} (service {self.service!r})"


# Seconds an answer of the cluster is shared: below the pauses between tries to connect, so that a
# slot that has moved costs one try more at most.
_LATELY = 0.5


class OwnCluster:
    """The node that has the key's slot, asked of the cluster at each connect.

    A topology that is kept is one that can be old, so it is asked for anew; but many consumers
    that start together, or find a node lost together, share one answer.
    """

    own_use = 0
    is_cluster = True

    def __init__(self, address: dict[str, Any], max_connections: int) -> None:
        """Take the address of any node."""
        self.arguments = address
        self.max_connections = max_connections
        self._nodes: list[tuple[str, int]] = [
            (address.get("host", "localhost"), int(address.get("port", 6379)))
        ]
        self._lately: dict[str, tuple[str, int, float]] = {}

    async def open(self, key: str) -> AbstractConnection:
        """Find the key's node and open a connection to it."""
        host, port, asked = self._lately.get(key, ("", 0, -_LATELY))
        if time.monotonic() - asked >= _LATELY:
            host, port = await self._node_of(key)
            self._lately[key] = (host, port, time.monotonic())
        node = {**self.arguments, "host": host, "port": port}
        try:
            return await connected(node, f"{host}:{port}")
        except BaseException:
            self._lately.pop(key, None)
            raise

    async def _node_of(self, key: str) -> tuple[str, int]:
        shared = {
            name: value
            for name, value in self.arguments.items()
            if name not in {"host", "port", "db", "socket_timeout", "connection_class"}
        }
        client = redis.RedisCluster(
            startup_nodes=[ClusterNode(host, port) for host, port in self._nodes],
            socket_timeout=self.arguments["socket_connect_timeout"],
            ssl=issubclass(
                self.arguments.get("connection_class", redis.Connection),
                redis.SSLConnection,
            ),
            **shared,
        )
        try:
            await client.initialize()
            node = _known(client.get_node_from_key(key), key)
            # Every node that is known is one that can be asked when the others are gone.
            self._nodes = [
                (known.host, int(known.port)) for known in client.get_nodes()
            ]
        except Exception as error:
            raise translated(error, f"the cluster of {self}") from error
        finally:
            await client.aclose()
        return node.host, int(node.port)

    async def give_up(self, connection: AbstractConnection) -> None:
        """Close it."""
        await disconnect(connection)

    def __str__(self) -> str:
        return shown(self.arguments)


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

    async def open(self, key: str) -> AbstractConnection:
        """Take a connection from the pool."""
        del key
        try:
            async with asyncio.timeout(self._timeout):
                connection: AbstractConnection = await self._pool.get_connection()  # type: ignore[no-untyped-call]  # so in redis-py
                try:
                    await refresh(connection)
                except BaseException:
                    await self.give_up(connection)
                    raise
        except Exception as error:
            raise translated(error, str(self)) from error
        return connection

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
                node = _known(self._client.get_node_from_key(key), key)
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


def _known(node: ClusterNode | None, key: str) -> ClusterNode:
    if node is None:  # pragma: no cover -- redis-py answers None for replicas only
        msg = f"the cluster does not say which node has {key!r}"
        raise ConnectionLostError(msg)
    return node
