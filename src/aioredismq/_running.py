"""Several consumers as one: in the background of an application, or as a process of its own."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anyio import CancelScope, create_task_group, open_signal_receiver

from ._errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Self

    from ._consumer import Consumer
    from ._queue import RedisMessageQueue

logger = logging.getLogger("aioredismq")


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a queue works, for probes.

    Attributes:
        healthy: No problem is known.
        problems: Each in one line.
    """

    healthy: bool
    problems: tuple[str, ...]


class Crew:
    """The consumers of several queues, started together and drained together."""

    def __init__(self, consumers: list[Consumer]) -> None:
        """Nothing starts yet."""
        self._consumers = consumers

    async def start(self) -> None:
        """Start all, or none.

        Raises:
            PoolTooSmallError: A pool cannot serve them all; with the number it needs.
            ServerError: Redis cannot be reached or refuses.
        """
        wanted = Counter(consumer.channel.connection for consumer in self._consumers)
        for connection, readers in wanted.items():
            connection.afford(readers)
        try:
            for consumer in self._consumers:
                await consumer.start()
        except BaseException:
            await self.stop()
            raise

    def check_may_wait(self) -> Self:
        """Refuse to be stopped by a handler of one of them.

        Raises:
            MessageQueueError: It is called in one; nothing was stopped.
        """
        for consumer in self._consumers:
            consumer.check_may_wait()
        return self

    async def stop(self) -> None:
        """Drain all at once; a cancellation meanwhile hurries them, and is passed on afterwards."""
        cancelled: asyncio.CancelledError | None = None
        for consumer in self._consumers:
            consumer.request_stop()
        for consumer in self._consumers:
            try:
                await consumer.stop_from_user_task()
            except asyncio.CancelledError as error:
                cancelled = error
                self.cancel()
        if cancelled is not None:
            raise cancelled

    def cancel(self) -> None:
        """Drain no longer."""
        for consumer in self._consumers:
            consumer.cancel()

    async def wait(self) -> None:
        """Return when the first of them has ended."""
        async with create_task_group() as tasks:
            for consumer in self._consumers:
                tasks.start_soon(_until_ended, consumer, tasks.cancel_scope)

    def raise_fatal(self) -> None:
        """Raise what ended one of them, if anything did."""
        for consumer in self._consumers:
            if consumer.error is not None:
                raise consumer.error


async def _until_ended(consumer: Consumer, others: CancelScope) -> None:
    await consumer.ended()
    others.cancel()


@asynccontextmanager
async def consuming(*queues: RedisMessageQueue) -> AsyncIterator[None]:
    """Run the registered handlers of these queues in the background of the block.

    For lifespans, `cleanup_ctx` and fixtures: it may be entered in one task and left in another,
    and never touches signals. Leaving drains. What cannot be mended (password, permission, a
    deleted queue) is logged when it happens, shows in `health()`, and is raised on leaving.

    Raises:
        ConfigurationError: No queue has a handler.
        PoolTooSmallError: A pool is too small for all of them; nothing was started.
        ServerError: Redis cannot be reached or refuses; nothing is left running.
    """
    async with _started(queues):
        yield


async def run(*queues: RedisMessageQueue) -> None:
    """Run the registered handlers of these queues until SIGINT or SIGTERM.

    For a process of its own: the first signal drains within `shutdown_timeout`, a second one
    cancels what still runs. Returns once everything is handed back and said.

    Raises:
        ConfigurationError: No queue has a handler.
        MessageQueueError: What ended a consumer and cannot be mended.

    Cancellation: drains, as the first signal does.
    """
    async with _started(queues) as crew, create_task_group() as tasks:
        tasks.start_soon(_obey_signals, crew)
        await crew.wait()
        await crew.stop()  # the others; a second signal is still heard meanwhile
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def _started(queues: tuple[RedisMessageQueue, ...]) -> AsyncIterator[Crew]:
    opened: list[RedisMessageQueue] = []
    try:
        crew = _crew_of(queues)
        for queue in queues:
            if not queue.is_initialized:
                await queue.initialize()
                opened.append(queue)
        await crew.start()
        try:
            yield crew
        finally:
            await crew.stop()
        crew.raise_fatal()
    finally:
        with CancelScope(shield=True):
            for queue in reversed(opened):
                await queue.close()


def _crew_of(queues: tuple[RedisMessageQueue, ...]) -> Crew:
    consumers = [consumer for queue in queues for consumer in queue.make_consumers()]
    if not consumers:
        names = ", ".join(repr(queue.name) for queue in queues) or "no queue given"
        msg = f"nothing to run: no handler is registered ({names})"
        raise ConfigurationError(msg)
    return Crew(consumers)


async def _obey_signals(crew: Crew) -> None:
    """Drain at the first signal, cancel at the second."""
    try:
        with open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            logger.info("%s: draining; again to cancel", (await anext(signals)).name)
            async with create_task_group() as tasks:
                tasks.start_soon(crew.stop)
                async for number in signals:
                    logger.warning("%s again: cancelling", number.name)
                    crew.cancel()
    except (NotImplementedError, ValueError, RuntimeError) as error:
        # Not the main thread, or a platform without signal handlers: whoever runs us stops us by
        # cancelling.
        logger.debug("signals are not handled here: %s", error)
