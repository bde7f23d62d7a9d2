"""Host tasks: lifetimes that are entered in one task and left in another.

A task group must be left by the task that entered it, and a user's `task.cancel()` must not reach
a blocked read. So whatever lives longer than one call is owned by a task of its own. This room
holds the only `create_task` of the package.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from anyio import CancelScope

from ._errors import WrongLoopError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Host:
    """Run one body in a task of its own, from `start()` to `join()`.

    The body is called with `ready`, which it calls once it has entered what it owns. An error
    before that is raised by `start()`, a later one by `join()`.
    """

    def __init__(
        self, name: str, body: Callable[[Callable[[], None]], Awaitable[None]]
    ) -> None:
        """Nothing runs before `start()`."""
        self._name = name
        self._body = body
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._started = False

    @property
    def is_running(self) -> bool:
        """Whether the body has begun and has not ended."""
        return self._task is not None and not self._task.done()

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody has cancelled it: `asyncio.run` does so with every task at its end."""
        return self._task is not None and self._task.cancelling() > 0

    @property
    def was_ready(self) -> bool:
        """Whether `start()` has returned, or is about to."""
        return self._started

    @property
    def error(self) -> BaseException | None:
        """What the body ended with, if it has ended with an error."""
        if self._task is None or not self._task.done() or self._task.cancelled():
            return None
        return self._task.exception()

    async def start(self) -> None:
        """Start the body and wait until it is ready.

        Cancellation: the body is cancelled and waited for; nothing is left running. A second
        one does not wait. An error in the body's clean-up is in `error` and nowhere else.
        """
        self._task = asyncio.create_task(self._run(), name=self._name)
        try:
            await self._ready.wait()
        except BaseException:
            self._task.add_done_callback(lambda _: self.error)  # see `ended`
            self.cancel()
            with CancelScope(shield=True):
                await self.ended()
            raise
        if self._task.done():
            self._task.result()

    async def _run(self) -> None:
        try:
            await self._body(self._is_ready)
        finally:
            self._ready.set()

    def _is_ready(self) -> None:
        self._started = True
        self._ready.set()

    def cancel(self) -> None:
        """Ask the body to end now. It may still take the time its own clean-up is allowed."""
        if self._task is not None:
            self._task.cancel()

    async def join(self) -> None:
        """Wait for the end of the body and raise what it ended with.

        Cancellation: the body goes on; join again, or `cancel()` it.
        """
        await self.ended()
        if self._task is not None and not self._task.cancelled():
            self._task.result()

    async def ended(self) -> None:
        """Wait for the end of the body, whatever it ends with; `error` tells.

        Raises:
            WrongLoopError: It runs on another loop, or in the parent process, and would never
                be seen to end here.
        """
        if self._task is None:
            return
        if not self._task.done():
            await self._wait_for(self._task)
        # Whoever waited looks at `error` when he likes: asyncio need not report it as never seen.
        _ = self.error

    async def _wait_for(self, task: asyncio.Task[None]) -> None:
        if task.get_loop() is not asyncio.get_running_loop():
            msg = (
                f"{self._name} runs on another event loop, or in the process this one was "
                "forked from: only there can it be stopped"
            )
            raise WrongLoopError(msg)
        await asyncio.wait({task})


async def outlast(
    run: Callable[[], Awaitable[None]],
    scope: CancelScope,
    cut_off: Callable[[], None] = lambda: None,
) -> None:
    """Run what only its owner may end: again, when somebody else has cancelled it.

    `asyncio.run` ends by cancelling every task there is, and waits for all of them. What a consumer
    holds can be handed back then, if what that takes goes on until its host has ended it.

    Args:
        run: May begin anew after a cancellation, at any await.
        scope: By which the owner cancels.
        cut_off: Called when somebody else has. It sees to it that the owner ends: who cancels one
            task after the other, and waits for each, would wait for ever.
    """
    while True:
        try:
            return await run()
        except asyncio.CancelledError:
            if scope.cancel_called:
                raise
            cut_off()


async def insist(clean_up: Callable[[], Awaitable[object]]) -> None:
    """Run something short to its end, however often it is cancelled; that is passed on then.

    A shield alone would not do: `task.cancel()` gets through it.

    Args:
        clean_up: May begin anew, at any await.
    """
    cancelled: asyncio.CancelledError | None = None
    with CancelScope(shield=True):
        while True:
            try:
                await clean_up()
                break
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        raise cancelled
