"""Where a key lives, and how a connection to that server is opened and given up.

One class per way to reach Redis: an address of ours, Sentinel, Cluster, or a client that belongs
to the caller. redis-py does the work each time.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import redis.asyncio as redis
from redis.asyncio.cluster import ClusterNode
from redis.exceptions import NoPermissionError, RedisError

from ._address import arguments, host_and_port, shown, without_password
from ._errors import (
    AuthenticationError,
    ConfigurationError,
    ConnectionLostError,
    MessageQueueError,
    ServerError,
)
from ._host import insist
from ._lent import LentCluster, LentPool
from ._opening import connected, disconnect, new_connection, node_of, translated
from ._sentinels import Master, Sentinels

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis.asyncio.connection import AbstractConnection


class Topology(Protocol):
    """A way to reach the server that has a key."""

    max_connections: int
    """Connections that may be open at once."""
    own_use: int
    """Of these, what the caller of a lent client needs for itself."""
    is_cluster: bool
    """Whether two keys may live on two servers."""

    @property
    def sentinels(self) -> Sentinels | None:
        """Those who tell when another server becomes the master."""
        ...

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
    sentinels = None

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
        service, _, database = parts.path.strip("/").partition("/")
        if not service or not hosts:
            msg = (
                "a Sentinel URL must be redis+sentinel://host:port[,host:port]/service[/db], "
                f"got {without_password(url)!r}"
            )
            raise ConfigurationError(msg)
        places = [host_and_port(host, 26379) for host in hosts.split(",")]
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        scheme = "rediss" if parts.scheme.startswith("rediss") else "redis"
        asked = arguments(f"{scheme}://localhost", connect_timeout)
        for name in ("username", "password"):
            if f"sentinel_{name}" in options:
                asked[name] = options.pop(f"sentinel_{name}")
        self.sentinels = Sentinels(
            service,
            [{**asked, "host": host, "port": port} for host, port in places],
            connect_timeout,
        )
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
        """Ask one sentinel after the other until one leads to a master.

        While a failover has begun, only the replica that was selected will do, once it is one.
        """
        del key
        if self.sentinels.selected is not None:
            return await self._open_selected(Master(*self.sentinels.selected, None))
        failures: list[MessageQueueError] = []
        for address in list(self.sentinels.addresses):
            try:
                connection = await self._open_by(address)
            except ServerError as error:
                failures.append(error)
            else:
                self.sentinels.prefer(address)
                return connection
        reasons = "; ".join(str(error) for error in failures)
        msg = (
            f"no sentinel leads to the master of {self.sentinels.service!r}: {reasons}"
        )
        refused = any(isinstance(error, AuthenticationError) for error in failures)
        raise (AuthenticationError if refused else ConnectionLostError)(msg)

    async def _open_selected(self, replica: Master) -> AbstractConnection:
        """Connect to what is to be the master, while it is waited for at all."""
        msg = f"{replica} is to be the master and is not yet"
        try:
            async with asyncio.timeout(self.sentinels.longest_wait(inf)):
                return await self._open_at(replica, msg)
        except TimeoutError:
            raise ConnectionLostError(msg) from None

    async def _open_by(self, address: dict[str, Any]) -> AbstractConnection:
        async with self.sentinels.line(address) as line:
            master = await self.sentinels.ask(line, address)
        msg = f"sentinel {shown(address)} names {master}, which is no master now"
        return await self._open_at(master, msg)

    async def _open_at(self, master: Master, refusal: str) -> AbstractConnection:
        server = {**self._server, "host": master.host, "port": master.port}
        connection = await connected(server, str(master))
        try:
            is_master = await self._is_master(connection, str(master))
        except BaseException:
            await disconnect(connection)
            raise
        # The sentinel has not heard yet, or another one told meanwhile.
        if not is_master or self.sentinels.has_handed_over(master.place):
            await disconnect(connection)
            raise ConnectionLostError(refusal)
        return connection

    async def _is_master(self, connection: AbstractConnection, name: str) -> bool:
        """Ask the server itself: a sentinel may not have heard yet."""
        try:
            async with asyncio.timeout(self._server["socket_connect_timeout"]):
                await connection.send_command("ROLE")
                role = await connection.read_response()
        except NoPermissionError:
            return True
        except Exception as error:
            raise translated(error, name) from error
        return bool(role[0] == b"master")

    async def give_up(self, connection: AbstractConnection) -> None:
        """Close it."""
        await disconnect(connection)

    def __str__(self) -> str:
        hosts = ",".join(shown(address) for address in self.sentinels.addresses)
        return f"sentinels {hosts} (service {self.sentinels.service!r})"


async def _close(client: redis.RedisCluster, asked: Iterable[ClusterNode]) -> None:
    """Close all that was opened for a question, whatever becomes of it.

    redis-py raises when the end of a connection takes too long, and leaves those it began with; so
    it does where its own way out was cut off.
    """
    for close in (
        client.aclose,
        *(node.disconnect for node in (*client.get_nodes(), *asked)),
    ):
        with suppress(RedisError, OSError, RuntimeError):
            await close()


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
    sentinels = None

    def __init__(self, address: dict[str, Any], max_connections: int) -> None:
        """Take the address of any node."""
        self.arguments = address
        self.max_connections = max_connections
        # Asked besides what became known: nodes that come back under new addresses, as in
        # Kubernetes, are found by the name alone.
        self._first = address.get("host", "localhost"), int(address.get("port", 6379))
        self._nodes: list[tuple[str, int]] = []
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
            startup_nodes=[
                ClusterNode(host, port)
                for host, port in dict.fromkeys((*self._nodes, self._first))
            ],
            socket_timeout=self.arguments["socket_connect_timeout"],
            ssl=issubclass(
                self.arguments.get("connection_class", redis.Connection),
                redis.SSLConnection,
            ),
            **shared,
        )
        asked = list(client.nodes_manager.startup_nodes.values())
        try:
            await client.initialize()
            node = node_of(client, key)
            # Every node that is known is one that can be asked when the others are gone.
            self._nodes = [
                (known.host, int(known.port)) for known in client.get_nodes()
            ]
        except Exception as error:
            raise translated(error, f"the cluster of {self}") from error
        finally:
            await insist(partial(_close, client, asked))
        return node.host, int(node.port)

    async def give_up(self, connection: AbstractConnection) -> None:
        """Close it."""
        await disconnect(connection)

    def __str__(self) -> str:
        return shown(self.arguments)
