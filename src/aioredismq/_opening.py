"""How a connection of redis-py is opened, checked and given up, and its errors become ours.

The only room that looks inside redis-py: it has no public way to share one connection among many
callers, and reading its replies one by one costs three times as much.
"""

from __future__ import annotations

import asyncio
from socket import gaierror
from typing import TYPE_CHECKING, Any

import redis.asyncio as redis
from redis.exceptions import (
    AuthenticationError as RedisAuthenticationError,
)
from redis.exceptions import (
    AuthorizationError,
    InvalidResponse,
    NoPermissionError,
    RedisError,
    ResponseError,
)

from ._errors import (
    AuthenticationError,
    ConfigurationError,
    ConnectionLostError,
    MessageQueueError,
    PermissionDeniedError,
    UnsupportedServerError,
    server_error,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis.asyncio.cluster import ClusterNode
    from redis.asyncio.connection import AbstractConnection


def translated(error: Exception, address: str) -> MessageQueueError:
    """Make ours of an error raised while connecting, whatever it is.

    It need not be redis-py's own: in the moment a connection breaks, asyncio and uvloop have
    raised RuntimeError, TypeError and AttributeError (redis-py #4287), and a cluster's are under
    another root. What hides behind the last one decides.
    """
    if isinstance(error, MessageQueueError):
        return error
    for cause in _causes(error):
        told = server_error(str(cause))
        if isinstance(
            cause, RedisAuthenticationError | AuthorizationError
        ) or isinstance(told, AuthenticationError):
            return AuthenticationError(f"Redis at {address} refuses this user: {cause}")
        if isinstance(cause, NoPermissionError):
            return PermissionDeniedError(
                f"Redis at {address} denies this user: {cause}"
            )
        if isinstance(cause, InvalidResponse):
            return UnsupportedServerError(
                f"the peer at {address} does not speak the Redis protocol: {cause}"
            )
        if type(cause) is ResponseError:  # its subclasses pass by themselves
            refusal = type(told)(f"Redis at {address} refuses to serve: {cause}")
            refusal.code = told.code
            return refusal
    return ConnectionLostError(f"cannot reach Redis at {address}: {_plainly(error)}")


def _plainly(error: Exception) -> str:
    """Say why a server cannot be reached, where the usual words only say it in numbers."""
    for cause in _causes(error):
        if isinstance(cause, ConnectionRefusedError):
            return "nothing listens there (connection refused)"
        if isinstance(cause, gaierror):
            return f"the host is not known ({cause.strerror})"
    return str(error) or "it did not answer in time"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def new_connection(address: dict[str, Any]) -> AbstractConnection:
    """Make a connection, not open yet.

    Raises:
        ConfigurationError: There is an option redis-py does not know.
    """
    rest = dict(address)
    kind: type[AbstractConnection] = rest.pop("connection_class", redis.Connection)
    try:
        return kind(**rest)
    except TypeError as error:
        msg = f"the URL has an option redis-py does not know: {error}"
        raise ConfigurationError(msg) from error


async def connected(address: dict[str, Any], name: str) -> AbstractConnection:
    """Open a connection of ours; its timeout counts for the greeting too.

    Args:
        address: The arguments of redis-py's connection.
        name: The address for an error message.

    Raises:
        ServerError: What `translated` makes of it.
    """
    connection = new_connection(address)
    try:
        async with asyncio.timeout(address["socket_connect_timeout"]):
            await connection.connect()  # type: ignore[no-untyped-call]  # so in redis-py
    except Exception as error:
        await disconnect(connection)
        raise translated(error, name) from error
    except BaseException:
        await disconnect(connection)
        raise
    return connection


async def refresh(connection: AbstractConnection) -> None:
    """Make a connection anew that has ended while it lay in its pool.

    redis-py looks for that itself, but not under RESP3 (8.1, #4252).
    """
    reader: asyncio.StreamReader | None = getattr(connection, "_reader", None)
    if reader is None or reader.at_eof() or writer_of(connection).is_closing():
        await disconnect(connection)
        await connection.connect()  # type: ignore[no-untyped-call]  # so in redis-py


async def disconnect(connection: AbstractConnection) -> None:
    """Close a connection, whatever state it is in."""
    try:
        await connection.disconnect(nowait=True)
    except (RedisError, OSError, RuntimeError):
        # It is gone either way. redis-py raises when the end takes too long, uvloop when it has
        # ended already.
        return


def place_of(connection: AbstractConnection) -> tuple[str, int]:
    """Tell host and port of a connection; of one by a socket file, nothing."""
    return getattr(connection, "host", ""), int(getattr(connection, "port", 0))


def writer_of(connection: AbstractConnection) -> asyncio.StreamWriter:
    """Find the stream a connected connection writes to.

    Raises:
        ConnectionLostError: It is not connected any more.
    """
    writer: asyncio.StreamWriter | None = getattr(connection, "_writer", None)
    if writer is None:
        msg = "the connection was lost before it could be used"
        raise ConnectionLostError(msg)
    return writer


def node_of(client: redis.RedisCluster, key: str) -> ClusterNode:
    """Find the node that has a key, as far as the client knows.

    Raises:
        ConnectionLostError: It does not.
    """
    node: ClusterNode | None = client.get_node_from_key(key)
    if node is None:  # pragma: no cover -- redis-py answers None for replicas only
        msg = f"the cluster does not say which node has {key!r}"
        raise ConnectionLostError(msg)
    return node
