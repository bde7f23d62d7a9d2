"""`Channel`: a queue's name, rules and connection; what its producers and consumers share."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Protocol

from ._codec import decoder, open_envelope, open_original
from ._connection import Connection
from ._errors import DecodeError
from ._keys import QueueKeys
from ._message import Record
from ._stream import Stream

if TYPE_CHECKING:
    from typing import Self

    import redis.asyncio as redis

    from ._config import QueueConfig
    from ._message import Entry

# Queues built on one ready client, or on several that share a pool, share one `Connection`, so that
# what they need is counted together. A `Connection` keeps its pool, so the id stays its own
# meanwhile.
_lent: weakref.WeakValueDictionary[int, Connection] = weakref.WeakValueDictionary()


def connection_for(
    target: str | Connection | redis.Redis | redis.RedisCluster,
) -> Connection:
    """Give the `Connection` for what a caller names.

    Raises:
        ConfigurationError: It is none of these, or the URL cannot be used.
    """
    if isinstance(target, Connection):
        return target
    if isinstance(target, str):
        return Connection(target)
    lent = id(getattr(target, "connection_pool", target))
    connection = _lent.get(lent)
    if connection is None:
        connection = _lent[lent] = Connection(target)
    return connection


class OnChannel(Protocol):
    """What producers and consumers are made for: a queue, or its channel."""

    @property
    def channel(self) -> Channel:
        """The queue's name, rules and connection."""
        ...


class Channel:
    """One queue on one connection. Each user opens and closes it."""

    def __init__(self, name: str, connection: Connection, config: QueueConfig) -> None:
        """Check the name; nothing is opened."""
        self.keys: QueueKeys = QueueKeys(name)
        self.connection: Connection = connection
        self.config: QueueConfig = config
        self.is_of_dead_letters: bool = False
        self.groups: set[str] = set()
        """Names of the groups that are to be there, whoever consumes them."""

    def of_dead_letters(self) -> Channel:
        """Give the channel on which the dead letters of this queue are consumed."""
        channel = Channel(self.keys.name, self.connection, self.config)
        channel.keys = self.keys.for_dead_letters()
        channel.is_of_dead_letters = True
        return channel

    @property
    def channel(self) -> Self:
        """Itself: producers and consumers take a queue or its channel."""
        return self

    @property
    def rules(self) -> dict[str, str]:
        """What all users of the queue must agree on, as it is stored."""
        return {"wire": self.config.wire}

    def group_name(self, group: str | None) -> str:
        """Name of a group; None is the default one."""
        return group or f"{self.keys.stream}_group"

    def record(self, entry: Entry) -> Record:
        """Take a stored entry apart; a body that cannot be decoded is shown as it is."""
        original = self.config.wire == "original"
        envelope = (open_original if original else open_envelope)(entry.fields)
        body: object
        try:
            body = decoder(None)(envelope)
        except DecodeError:
            body = envelope.raw
        pairs = zip(entry.fields[::2], entry.fields[1::2], strict=False)
        return Record(entry.id.decode(), body, envelope.headers, dict(pairs))

    async def open(self) -> Stream:
        """Connect and agree on the rules; `close()` undoes it.

        Raises:
            ServerError: Redis cannot be reached or refuses.
            QueueMismatchError: The queue is in use by other rules.
        """
        await self.connection.open()
        try:
            stream = Stream(await self.connection.link(self.keys.stream), self.keys)
            await stream.open_group(None, rules=self.rules)
        except BaseException:
            await self.connection.close()
            raise
        return stream

    async def close(self) -> None:
        """Give the connection back; the last user closes it."""
        await self.connection.close()
