"""`RedisMessageQueue`: one noun, three verbs. A thin face over `Producer` and `Consumer`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar, overload

from anyio import CancelScope

from . import _running as running
from ._address import with_port
from ._channel import Channel, connection_for
from ._config import ConsumerOptions, QueueOptions, consumer_config, split_options
from ._consumer import Consumer
from ._dead_letters import DeadLetters
from ._errors import ConfigurationError, NotInitializedError
from ._message import Entry, Record
from ._producer import Producer

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable, Mapping
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime
    from types import TracebackType
    from typing import Self

    import redis.asyncio as redis
    from typing_extensions import Unpack

    from ._config import ConsumerConfig
    from ._connection import Connection
    from ._stream import GroupInfo, Stream

_Handler = TypeVar("_Handler", bound="Callable[..., Any]")


class RedisMessageQueue:
    """A message queue in a Redis stream: it is initialized, produces, and consumes.

    Args:
        name: The queue's name, which is also its stream's key.
        connection: A URL, a `redis.asyncio` client (it stays yours and is never closed), or a
            `Connection`; queues on one client or `Connection` share it.
        port: In place of the URL's port.
        options: The fields of `QueueConfig` and `ProducerConfig`.

    Raises:
        ConfigurationError: With the rule that is broken. Nothing is opened before `initialize()`.
    """

    def __init__(
        self,
        name: str,
        connection: str
        | Connection
        | redis.Redis
        | redis.RedisCluster = "redis://localhost:6379/0",
        port: int | None = None,
        **options: Unpack[QueueOptions],
    ) -> None:
        """Check everything; no I/O, and no event loop is needed."""
        queue_config, producer_config = split_options(options)
        if port is not None:
            if not isinstance(connection, str):
                msg = "port goes with a URL or a host name, not with a client or Connection"
                raise ConfigurationError(msg)
            connection = with_port(connection, port)
        self.channel: Channel = Channel(name, connection_for(connection), queue_config)
        self._producer = Producer(self, producer_config)
        self._handlers: list[tuple[Callable[..., Any], ConsumerConfig]] = []
        self.consumers: list[Consumer] = []
        """Consumers started by `consume`, `consuming` and `run`, the ended ones included until
        the next start."""
        self._stream: Stream | None = None
        self._initializing: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None
        self._dead_letters = DeadLetters(
            self._require_stream,
            lambda row: self.channel.record(Entry(row[0], row[1], in_lane=False)),
            self._consume_dead_letters,
        )

    @property
    def name(self) -> str:
        """The queue's name."""
        return self.channel.keys.name

    # -- initialize ----------------------------------------------------------------------------

    @property
    def is_initialized(self) -> bool:
        """Whether it is open."""
        return self._stream is not None

    async def __aenter__(self) -> Self:
        """Initialize."""
        await self.initialize()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        await self.close()

    async def initialize(self) -> None:
        """Connect, and make the stream and its groups unless they are there.

        Groups: those named by `groups=`, else those of the registered handlers, else the default
        one where there is no group yet. Doing it again changes nothing.

        Raises:
            ConnectionLostError: Redis cannot be reached.
            AuthenticationError: User or password.
            PermissionDeniedError: The user may not do what is needed.
            WrongKeyTypeError: The key holds something else.
            UnsupportedServerError: The server is too old.
            QueueMismatchError: The queue is in use by other rules.
            WrongLoopError: It is open on another event loop, or in the parent process.

        Cancellation: nothing is left open.
        """
        if self._stream is not None:
            self.channel.connection.check()
            return
        loop = asyncio.get_running_loop()
        if self._initializing is None or self._initializing[0] is not loop:
            self._initializing = (loop, asyncio.Lock())
        async with self._initializing[1]:
            if self._stream is None:
                self._stream = await self._open()

    async def _open(self) -> Stream:
        stream = await self.channel.open()
        try:
            await self._make_groups(stream)
            await self._producer.open()
        except BaseException:
            with CancelScope(shield=True):
                await self.channel.close()
            raise
        return stream

    async def _make_groups(self, stream: Stream) -> None:
        named, rules = self.channel.config.groups, self.channel.rules
        starts = {
            self.channel.group_name(config.group): config.start == "latest"
            for _, config in self._handlers
        }
        for group in starts if named is None else named:
            await stream.open_group(group, latest=starts.get(group, False), rules=rules)
            self.channel.groups.add(group)
        if named is None and not starts:
            # Where others have made theirs, one that nobody consumes would only hold back.
            default = self.channel.group_name(None)
            await stream.open_group(default, how="first", rules=rules)

    async def close(self) -> None:
        """Drain what still consumes, wait for what was sent, and disconnect, if it is open.

        Raises:
            WrongLoopError: It is open on another event loop, or in the parent process.
            MessageQueueError: A handler of its own would wait for itself.

        Cancellation: hurries the drain, waits no longer for what was sent, and disconnects.
        """
        if self._stream is None:
            return
        self.channel.connection.check()
        crew = running.Crew(self.consumers).check_may_wait()
        self._stream = None
        try:
            await crew.stop()
        finally:
            try:
                await self._producer.close()
            finally:
                with CancelScope(shield=True):
                    await self.channel.close()

    # -- produce -------------------------------------------------------------------------------

    async def produce(
        self,
        body: object,
        *,
        headers: Mapping[str, str] | None = None,
        delay: float | None = None,
        at: datetime | float | None = None,
        expires: float | None = None,
    ) -> str:
        """Send one message and return its id once Redis has stored it.

        Args:
            body: Any JSON value, a dataclass, a pydantic or msgspec model; `bytes` and `str`
                travel as they are.
            headers: Text beside the body; names beginning with `mq-` are reserved.
            delay: Seconds until it may be handled, by the server's clock.
            at: When it may be handled: seconds since the epoch, or a `datetime` with a zone.
            expires: Seconds after which it is not handled any more; see `expired` of
                `ConsumerConfig`.

        Raises:
            NotInitializedError: The queue is not open.
            EncodeError: The body or a header cannot be sent; nothing was.
            BacklogError: Redis is away and too many sends are waiting; nothing was sent.
            PublishUncertainError: In doubt (no answer in time, a lost line); `retry()` is safe.
            ServerError: Redis refuses it, or was away all the time; it is not stored.

        Cancellation: the message may or may not be stored; nothing else is affected.
        """
        return await self._producer.produce(
            body, headers=headers, delay=delay, at=at, expires=expires
        )

    async def produce_many(
        self,
        bodies: Iterable[object] | AsyncIterable[object],
        *,
        headers: Mapping[str, str] | None = None,
        delay: float | None = None,
        at: datetime | float | None = None,
        expires: float | None = None,
    ) -> list[str]:
        """Send many messages in chunks and return their ids in order.

        Args:
            bodies: Any iterable or asynchronous iterable; it is not held in memory as a whole.
                When an asynchronous one pauses, what it has given is sent.
            headers: For each of them.
            delay: For each of them, as `produce`.
            at: For each of them, as `produce`.
            expires: For each of them, as `produce`.

        Raises:
            NotInitializedError: The queue is not open.
            PublishManyError: It stopped in the middle; the error says which are stored.

        Cancellation: what is under way may or may not be stored.
        """
        return await self._producer.produce_many(
            bodies, headers=headers, delay=delay, at=at, expires=expires
        )

    # -- consume -------------------------------------------------------------------------------

    @overload
    def handler(self, function: _Handler, /) -> _Handler: ...

    @overload
    def handler(
        self, /, **options: Unpack[ConsumerOptions]
    ) -> Callable[[_Handler], _Handler]: ...

    def handler(
        self, function: _Handler | None = None, /, **options: Unpack[ConsumerOptions]
    ) -> _Handler | Callable[[_Handler], _Handler]:
        """Register a handler for `consuming()` and `run()`; a decorator, with or without options.

        Args:
            function: The handler. Its parameters decide what it gets.
            options: The fields of `ConsumerConfig`.

        Raises:
            HandlerSignatureError: It asks for what it cannot get.
            ConfigurationError: An option breaks its rule.
        """
        config = consumer_config(options)

        def register(handler: _Handler) -> _Handler:
            Consumer(self, handler, config)  # refuses here what could not run later
            self._handlers.append((handler, config))
            return handler

        return register if function is None else register(function)

    async def consume(
        self, callback: Callable[..., Any], /, **options: Unpack[ConsumerOptions]
    ) -> None:
        """Call `callback` with each message, until cancelled; success acknowledges.

        Args:
            callback: The handler. Its parameters decide what it gets.
            options: The fields of `ConsumerConfig`.

        Raises:
            HandlerSignatureError: The callback asks for what it cannot get.
            MessageQueueError: What ended it and cannot be mended.

        Cancellation: the normal way to stop. It drains: running handlers get `shutdown_timeout`
        to finish, the rest goes back to the group. A second cancellation hurries.
        """
        self._require_stream()
        await self._run_here(Consumer(self, callback, consumer_config(options)))

    async def _consume_dead_letters(
        self, callback: Callable[..., Any], config: ConsumerConfig
    ) -> None:
        channel = self.channel.of_dead_letters()
        await self._run_here(Consumer(channel, callback, config))

    async def _run_here(self, consumer: Consumer) -> None:
        self._remember([consumer])
        await consumer.start()
        try:
            await consumer.wait()
        finally:
            await consumer.stop_from_user_task()

    def consuming(self) -> AbstractAsyncContextManager[None]:
        """Run the registered handlers in the background of a block; see `aioredismq.consuming`."""
        return running.consuming(self)

    async def run(self) -> None:
        """Run the registered handlers until SIGINT or SIGTERM; see `aioredismq.run`."""
        await running.run(self)

    def make_consumers(self) -> list[Consumer]:
        """Make a consumer for each registered handler; `consuming` and `run` start them."""
        made = [Consumer(self, handler, config) for handler, config in self._handlers]
        self._remember(made)
        return made

    def _remember(self, consumers: list[Consumer]) -> None:
        self.consumers = [
            item for item in self.consumers if not item.has_ended
        ] + consumers

    # -- looking in ----------------------------------------------------------------------------

    async def records(
        self, *, after: str | None = None, limit: int | None = None
    ) -> list[Record]:
        """List what is stored, oldest first: what no group, or not every group, has settled.

        Args:
            after: Id to begin behind, to page through a long queue.
            limit: Records at most; None for all.

        Raises:
            ServerError: Redis was away, or refuses.
        """
        if limit is not None and limit < 0:
            msg = f"limit must be 0 or more, got {limit!r}"
            raise ConfigurationError(msg)
        entries = await self._require_stream().records(after, limit)
        return [self.channel.record(entry) for entry in entries]

    @property
    def dead_letters(self) -> DeadLetters:
        """What failed for good: list, redrive, discard."""
        return self._dead_letters

    async def groups(self) -> list[GroupInfo]:
        """List the consumer groups with their consumers, pending messages and lag."""
        return await self._require_stream().groups()

    async def destroy_group(self, group: str) -> bool:
        """Remove a group with everything it has not handled; its consumers end with an error.

        Returns:
            Whether it was there.
        """
        self.channel.groups.discard(group)
        return await self._require_stream().destroy_group(group)

    async def delete(self) -> bool:
        """Remove the queue: stream, groups, retries, dead letters. Consumers end with an error.

        Returns:
            Whether anything was there.
        """
        return await self._require_stream().delete()

    def health(self) -> running.Health:
        """Say whether it works, without asking the server: for liveness and readiness probes."""
        problems = [
            f"consumer of group {consumer.group!r} has ended: {consumer.error}"
            for consumer in self.consumers
            if consumer.error is not None
        ]
        if self._stream is None:
            problems.append("not initialized")
        problems += [str(failure) for failure in self.channel.connection.failures]
        return running.Health(not problems, tuple(problems))

    def _require_stream(self) -> Stream:
        if self._stream is None:
            msg = (
                f"queue {self.name!r} is not initialized: `await queue.initialize()`, or use "
                "`async with queue:`"
            )
            raise NotInitializedError(msg)
        self.channel.connection.check()
        return self._stream

    def __repr__(self) -> str:
        return f"RedisMessageQueue({self.name!r}, {self.channel.connection!r})"
