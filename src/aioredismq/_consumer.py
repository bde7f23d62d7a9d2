"""`Consumer`: the lifetime of one handler on one group: start, drain, or end with a reason."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from typing import TYPE_CHECKING, Any

from anyio import CancelScope, create_task_group, move_on_after

from ._assembly import Assembly
from ._config import ConsumerConfig
from ._errors import MessageQueueError, NotInitializedError, ServerError
from ._handler import bind
from ._host import Host, outlast
from ._message import Message  # noqa: TC001 -- `_pulled` is bound by its annotation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType
    from typing import Self

    from ._channel import Channel, OnChannel

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
        queue: OnChannel,
        handler: Callable[..., Any] | None,
        config: ConsumerConfig | None = None,
    ) -> None:
        """Check the handler; nothing is opened."""
        self._channel = queue.channel
        self._config = config or ConsumerConfig()
        self._pulls = handler is None
        self._binding = bind(
            _pulled if handler is None else handler, loads=self._config.loads
        )
        self.group: str = self._channel.group_name(self._config.group)
        label = self._config.consumer_name or f"{socket.gethostname()}-{os.getpid()}"
        # Unique per incarnation: two processes must never share a list of pending messages.
        self.name: str = f"{label}-{secrets.token_hex(4)}"
        self._host = Host(f"aioredismq consumer {self.name}", self._live)
        self._stop_requested: asyncio.Event | None = None
        self._fatal: BaseException | None = None
        self._assembly: Assembly | None = None
        self._is_claimed = False
        self._drain: CancelScope | None = None
        self._is_hurried = False

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
        self._channel.connection.claim_reader(self._cut_off)
        self._is_claimed = True
        try:
            await self._host.start()
        except BaseException:
            try:
                await self._outlast()
            finally:
                self._unclaim()
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

        Raises:
            MessageQueueError: A handler of its own would wait for itself: `request_stop()`.

        Cancellation: the drain goes on; `cancel()` hurries it.
        """
        self.check_may_wait()
        self.request_stop()
        await self._host.ended()

    def check_may_wait(self) -> None:
        """Refuse to let a handler wait for the end of its own consumer, which waits for it.

        A task that a handler has made is not seen: it may go on when the handler has ended.

        Raises:
            MessageQueueError: It is called in one.
        """
        if self._assembly is not None and self._assembly.is_asked_by_handler:
            msg = (
                f"a handler or callback of consumer {self.name} cannot wait for the end of that "
                "consumer, which waits for it: close or stop it in another task"
            )
            raise MessageQueueError(msg)

    def request_stop(self) -> None:
        """Begin to drain; `ended()` tells when it is over."""
        if self._stop_requested is not None:
            self._stop_requested.set()

    async def stop_from_user_task(self) -> None:
        """Drain; a cancellation meanwhile hurries it, and is passed on when it has ended."""
        self.check_may_wait()
        self.request_stop()
        await self._outlast()

    async def _outlast(self) -> None:
        """Wait for the end, however often the caller is cancelled; that is passed on.

        A shield would not do: `task.cancel()` gets through it. What it would interrupt is short,
        and has a limit: handing back, the last acknowledgements, and removing the name.
        """
        cancelled: asyncio.CancelledError | None = None
        while self._host.is_running:
            try:
                with CancelScope(shield=True):
                    await self._host.ended()
            except asyncio.CancelledError as error:
                cancelled = error
                self.cancel()
        if cancelled is not None:
            raise cancelled

    def cancel(self) -> None:
        """Drain no longer: cancel running handlers now and hand their messages back."""
        self.request_stop()
        self._is_hurried = True
        if self._drain is not None:
            self._drain.cancel()

    @property
    def is_running(self) -> bool:
        """Whether it has started and not ended."""
        return self._host.is_running

    @property
    def has_ended(self) -> bool:
        """Whether it was started and runs no more."""
        return self._stop_requested is not None and not self._host.is_running

    @property
    def error(self) -> BaseException | None:
        """What ended it, or is about to; None while it runs and after a drain."""
        return self._fatal

    @property
    def held(self) -> int:
        """Messages read and not settled."""
        return 0 if self._assembly is None else len(self._assembly.held)

    @property
    def failed(self) -> int:
        """Messages that have failed for good since it started, put aside or dropped."""
        return 0 if self._assembly is None else self._assembly.failed

    async def __aiter__(self) -> AsyncIterator[Message]:
        """Pull messages until it is stopped; each must be settled."""
        if not self._pulls or self._assembly is None or self._assembly.puller is None:
            msg = "messages are pulled from a started consumer that has no handler"
            raise NotInitializedError(msg)
        puller = self._assembly.puller
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
                assembly = self._assembly = Assembly(
                    stream,
                    self._channel,
                    self._binding,
                    self._config,
                    consumer=self.name,
                    pulls=self._pulls,
                    fail=self._fail,
                    cut_off=self._cut_off,
                    is_cancelled=lambda: self._host.is_cancelled,
                )
                await self._run(assembly, ready)
            finally:
                with CancelScope(shield=True):
                    await self._channel.close()
        finally:
            self._unclaim()
        if self._fatal is not None:
            raise self._fatal

    async def _run(self, assembly: Assembly, ready: Callable[[], None]) -> None:
        if (
            self._stop_requested is None
        ):  # pragma: no cover -- set before the host starts
            return
        try:
            await assembly.open()
            async with create_task_group() as tasks:
                try:
                    assembly.start(tasks)
                    ready()
                    await self._stop_requested.wait()
                    with CancelScope() as self._drain:
                        if not self._is_hurried:
                            await assembly.drain(self._config.shutdown_timeout)
                finally:
                    await self._end(assembly)
                    tasks.cancel_scope.cancel()
        finally:
            assembly.close()

    async def _end(self, assembly: Assembly) -> None:
        problem: object = None
        try:
            with move_on_after(_LAST_GRACE, shield=True) as grace:
                await outlast(assembly.end, grace)
            if grace.cancelled_caught:
                problem = assembly.unfinished
        except ServerError as error:
            # What ended it, if anything did, is what is raised; this is only the consequence.
            problem = error
        if problem is not None:
            logger.warning(
                "consumer %s could not take its leave, what it holds is left to be taken over: %s",
                self.name,
                problem,
            )

    def _unclaim(self) -> None:
        if self._is_claimed:
            self._is_claimed = False
            self._channel.connection.unclaim_reader(self._cut_off)

    def _fail(self, error: BaseException) -> None:
        """End with this error: called by whichever task cannot go on."""
        if self._fatal is None:
            self._fatal = error
            logger.error("consumer %s of %s ends: %s", self.name, self.group, error)
        self.request_stop()

    def _cut_off(self) -> None:
        """End, as somebody has cancelled what it needs: it would be deaf, and look alive."""
        if not self._host.is_cancelled:  # else it ends by that
            self._fail(MessageQueueError("one of its tasks was cancelled by others"))

    @property
    def config(self) -> ConsumerConfig:
        """How it reads, runs and settles."""
        return self._config

    @property
    def channel(self) -> Channel:
        """The queue it consumes."""
        return self._channel


async def _pulled(message: Message) -> None:
    """Stand in for the handler of a consumer that is pulled from."""
