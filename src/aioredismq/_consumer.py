"""`Consumer`: the only place where the tasks of floor 7 meet; owns them, and drains."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from typing import TYPE_CHECKING, Any

from anyio import CancelScope, create_task_group, move_on_after

from ._config import ConsumerConfig
from ._dispatcher import Dispatcher
from ._errors import MessageQueueError, NotInitializedError, QueueDeletedError
from ._handler import bind
from ._held import Held
from ._host import Host
from ._invoker import Invoker
from ._outcome import Release
from ._promoter import Promoter
from ._puller import Puller
from ._read_ahead import ReadAhead
from ._reader import LONGEST_BLOCK, Reader
from ._reporter import Reporter
from ._settler import Settler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from types import TracebackType

    from anyio.abc import TaskGroup
    from typing_extensions import Self

    from ._channel import Channel
    from ._handler import Binding
    from ._message import Entry, Message
    from ._outcome import Failure
    from ._queue import RedisMessageQueue
    from ._stream import Generation, Stream

logger = logging.getLogger("aioredismq")

# Seconds for handing back and for the last acknowledgements, after the handlers have ended. Only
# a server that is away takes longer; what could not be said then is recovered by others.
_LAST_GRACE = 5.0


class Consumer:
    """Run a handler on the messages of one group, in the background, until stopped.

    Entering the block starts it; leaving drains: it stops reading, hands back what was not
    started, lets running handlers finish within `shutdown_timeout`, cancels the rest and hands
    that back too. It may be entered in one task and left in another.

    Args:
        queue: The queue to consume.
        handler: Called with each message; what it gets is decided by its parameters. None: pull,
            with `async for message in consumer:` and `async with message:`.
        config: How to read, run and settle.

    Raises:
        HandlerSignatureError: The handler asks for what it cannot get.
    """

    def __init__(
        self,
        queue: RedisMessageQueue | Channel,
        handler: Callable[..., Any] | None,
        config: ConsumerConfig | None = None,
    ) -> None:
        """Check the handler; nothing is opened."""
        self._channel = queue.channel
        self._config = config or ConsumerConfig()
        self._pulls = handler is None
        self._binding = bind(_pulled if handler is None else handler, loads=self._config.loads)
        self.group = self._channel.group_name(self._config.group)
        label = self._config.consumer_name or f"{socket.gethostname()}-{os.getpid()}"
        # Unique per incarnation: two processes must never share a list of pending messages.
        self.name = f"{label}-{secrets.token_hex(4)}"
        self._host = Host(f"aioredismq consumer {self.name}", self._live)
        self._stop_requested: asyncio.Event | None = None
        self._fatal: BaseException | None = None
        self._parts: _Parts | None = None

    # -- lifetime ------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Drain; raises what ended it before, if anything did."""
        await self.stop_from_user_task()
        if exc is None:
            await self.wait()

    async def start(self) -> None:
        """Connect, make the group unless it is there, and start consuming.

        Raises:
            PoolTooSmallError: The pool cannot give it a connection of its own.
            ServerError: Redis cannot be reached or refuses.
        """
        if self._stop_requested is not None:
            msg = "a consumer is started once: make another"
            raise MessageQueueError(msg)
        self._stop_requested = asyncio.Event()
        self._channel.connection.claim_reader()
        try:
            await self._host.start()
        except BaseException:
            self._channel.connection.unclaim_reader()
            raise

    async def wait(self) -> None:
        """Return when it has ended.

        Raises:
            MessageQueueError: What ended it, unless it was stopped.

        Cancellation: it goes on.
        """
        await self._host.join()

    async def ended(self) -> None:
        """Return when it has ended, whatever ended it."""
        await self._host.ended()

    async def stop(self) -> None:
        """Drain and return when it has ended. It does not raise what ended it; `wait` does.

        Cancellation: the drain goes on; `cancel()` hurries it.
        """
        if self._stop_requested is None:
            return
        self._stop_requested.set()
        await self._host.ended()

    async def stop_from_user_task(self) -> None:
        """Drain under a shield; a cancellation meanwhile hurries it and is passed on."""
        try:
            with CancelScope(shield=True):
                await self.stop()
        except asyncio.CancelledError:
            self.cancel()
            with CancelScope(shield=True):
                await self.stop()
            raise

    def cancel(self) -> None:
        """Drain no longer: cancel running handlers now and hand their messages back."""
        self._host.cancel()

    @property
    def is_running(self) -> bool:
        """Whether it has started and not ended."""
        return self._host.is_running

    @property
    def error(self) -> BaseException | None:
        """What ended it, or is about to; None while it runs and after a drain."""
        return self._fatal

    @property
    def held(self) -> int:
        """Messages read and not settled."""
        return 0 if self._parts is None else len(self._parts.held)

    async def __aiter__(self) -> AsyncIterator[Message]:
        """Pull messages until it is stopped; each must be settled."""
        if not self._pulls or self._parts is None or self._parts.puller is None:
            msg = "messages are pulled from a started consumer that has no handler"
            raise NotInitializedError(msg)
        puller = self._parts.puller
        while True:
            message = await puller.following()
            if message is None:
                break
            yield message
        if self._fatal is not None:
            raise self._fatal

    # -- in the host task ----------------------------------------------------------------------

    async def _live(self, ready: Callable[[], None]) -> None:
        try:
            stream = await self._channel.open()
            try:
                generation = await self._open_group(stream)
                self._parts = _Parts(self, stream, generation, self._binding, pulls=self._pulls)
                await self._run(self._parts, ready)
            finally:
                with CancelScope(shield=True):
                    await self._channel.close()
        finally:
            if self._host.was_ready:
                self._channel.connection.unclaim_reader()
        if self._fatal is not None:
            raise self._fatal

    async def _run(self, parts: _Parts, ready: Callable[[], None]) -> None:
        if self._stop_requested is None:  # pragma: no cover -- set before the host starts
            return
        async with create_task_group() as tasks:
            try:
                await parts.start(tasks)
                ready()
                await self._stop_requested.wait()
                await parts.drain(self._config.shutdown_timeout)
            finally:
                with move_on_after(_LAST_GRACE, shield=True):
                    await parts.end()
                parts.close()
                tasks.cancel_scope.cancel()

    def fail(self, error: BaseException) -> None:
        """End with this error: called by whichever task cannot go on."""
        if self._fatal is None:
            self._fatal = error
            logger.error("consumer %s of %s ends: %s", self.name, self.group, error)
        if self._stop_requested is not None:
            self._stop_requested.set()

    async def _open_group(self, stream: Stream) -> Generation:
        return await stream.open_group(
            self.group,
            latest=self._config.start == "latest",
            rules=self._channel.rules,
        )

    async def mend(self, stream: Stream, generation: Generation) -> Generation:
        """Make the group again; raises when it was deleted on purpose."""
        if await stream.was_deleted(generation):
            msg = (
                f"queue {self._channel.keys.name!r} or its group {self.group!r} was deleted "
                "while it was consumed"
            )
            raise QueueDeletedError(msg)
        again = await self._open_group(stream)
        logger.warning("group %s of %s was gone: made again", self.group, stream.keys.name)
        return again

    @property
    def channel(self) -> Channel:
        """The queue it consumes."""
        return self._channel

    @property
    def config(self) -> ConsumerConfig:
        """How it reads, runs and settles."""
        return self._config


class _Parts:
    """The tasks of one consumer, wired to each other."""

    def __init__(
        self,
        consumer: Consumer,
        stream: Stream,
        generation: Generation,
        binding: Binding,
        *,
        pulls: bool,
    ) -> None:
        config, group, name = consumer.config, consumer.group, consumer.name
        self._consumer = consumer
        self._stream = stream
        self._generation = generation
        self.held = Held()
        self.reporter = Reporter(config.failover_callback)
        self.settler = Settler(
            stream,
            group=group,
            consumer=name,
            held=self.held,
            failover=config.failover,
            failed=self._failed,
            fatal=consumer.fail,
        )
        self.invoker = Invoker(
            binding,
            config,
            queue=stream.keys.name,
            group=group,
            original=consumer.channel.config.wire == "original",
            ack=self.settler.ack,
            settle=self.settler.settle,
        )
        self.puller = (
            Puller(
                make=self.invoker.message,
                decide=self.invoker.decide,
                settle=self.settler.settle,
            )
            if pulls
            else None
        )
        most = config.max_read_ahead if config.count is None else config.count
        self.dispatcher = Dispatcher(
            concurrency=config.concurrency,
            portion=config.batch_size if binding.is_batch else 1,
            run=self.invoker.run if self.puller is None else self.puller.run,
            read_ahead=ReadAhead(
                slots=config.concurrency, most=most, most_bytes=config.max_read_ahead_bytes
            ),
            most_at_once=max(1, most if config.count else max(most, config.concurrency)),
        )
        self.promoter = Promoter(
            stream,
            group=group,
            consumer=name,
            room=self.dispatcher.room,
            wait_for_room=self.dispatcher.wait_for_room,
            deliver=self._deliver_from_lane,
            held=lambda entry_id: self.held.has(entry_id, in_lane=True),
        )
        self.reader = Reader(
            stream,
            group=group,
            consumer=name,
            open_wire=lambda: consumer.channel.connection.reserve(
                stream.keys.stream, longest_block=LONGEST_BLOCK
            ),
            room=self.dispatcher.room,
            wait_for_room=self._wait_for_room,
            deliver=self._deliver,
            held=lambda entry_id: self.held.has(entry_id, in_lane=False),
            mend=self._mend,
        )
        self._crew = CancelScope()
        self._crew_ended = asyncio.Event()
        self._tasks: TaskGroup | None = None

    async def start(self, tasks: TaskGroup) -> None:
        """Start every task."""
        self._tasks = tasks
        tasks.start_soon(self._guard, self.settler.run)
        tasks.start_soon(self._guard, self.reporter.run)
        tasks.start_soon(self._guard, self._work)
        tasks.start_soon(self._guard, self.promoter.run)
        tasks.start_soon(self._guard, self.reader.run)
        self._consumer.channel.connection.bell.add(self._stream.keys.bell, self.promoter.ring)

    async def drain(self, shutdown_timeout: float) -> None:
        """Stop reading, hand back what was not started, let handlers finish."""
        self._stop_intake()
        with move_on_after(shutdown_timeout):
            await self.reader.stop()
            await self.dispatcher.finished()

    async def end(self) -> None:
        """Cancel what still runs, hand it back, say the last, and remove the name."""
        self._stop_intake()
        self._crew.cancel()
        await self._crew_ended.wait()
        await self.reader.stop()
        await self.settler.flushed()
        await self.reporter.told()
        if not await self._stream.forget_consumer(self._consumer.group, self._consumer.name):
            logger.warning("consumer %s leaves pending messages behind", self._consumer.name)

    def close(self) -> None:
        """Listen to nobody any more."""
        self.settler.close()
        if self._tasks is not None:
            self._consumer.channel.connection.bell.remove(
                self._stream.keys.bell, self.promoter.ring
            )

    def _stop_intake(self) -> None:
        self.promoter.stop()
        self.reader.request_stop()
        for entry in self.dispatcher.close():
            self.settler.settle(entry, Release())
        if self.puller is not None:
            self.puller.end()

    # -- how they meet -------------------------------------------------------------------------

    def _deliver(self, entries: Sequence[Entry]) -> None:
        self.held.add(entries)
        if self.dispatcher.is_closed:
            for entry in entries:
                self.settler.settle(entry, Release())
        else:
            self.dispatcher.offer(entries)

    def _deliver_from_lane(self, entries: Sequence[Entry]) -> None:
        self._deliver(entries)
        if self._tasks is not None and self.reader.asked > self.dispatcher.room():
            self._tasks.start_soon(self._guard, self.reader.reconsider)

    async def _wait_for_room(self) -> None:
        """The lane goes before the stream, or a full stream would starve it."""
        await self.dispatcher.wait_for_room()
        await self.promoter.served()

    def _failed(self, entry: Entry, failure: Failure) -> None:
        self.reporter.report(self.invoker.message(entry), failure)

    async def _mend(self) -> None:
        self._generation = await self._consumer.mend(self._stream, self._generation)

    async def _work(self) -> None:
        try:
            with self._crew:
                async with create_task_group() as workers:
                    for _ in range(self._consumer.config.concurrency):
                        workers.start_soon(self.dispatcher.work)
        finally:
            self._crew_ended.set()

    async def _guard(self, task: Callable[[], Awaitable[None]]) -> None:
        """Let no task take the others down: what it cannot mend ends the consumer in order."""
        try:
            await task()
        except Exception as error:  # noqa: BLE001 -- told to whoever waits for the consumer
            self._consumer.fail(error)


async def _pulled(message: Message) -> None:
    """Stand in for the handler of a consumer that is pulled from."""
