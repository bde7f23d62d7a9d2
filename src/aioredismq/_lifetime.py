"""How long something lives that many share: the first user opens it, the last one closes it."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from ._errors import NotInitializedError, WrongLoopError
from ._host import Host

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


class Lifetime:
    """Count the users of a connection, and keep its body running while there are any.

    It belongs to one event loop and process, as what the body opens does.
    """

    lock: asyncio.Lock
    """Held while it opens or closes, and by whoever must not meet either."""

    def __init__(
        self,
        body: Callable[[Callable[[], None]], Awaitable[None]],
        *,
        begin: Callable[[], None],
        is_needed: Callable[[], bool],
        cut_off: Callable[[], None] = lambda: None,
    ) -> None:
        """Nothing runs before `open()`.

        Args:
            body: Runs in a task of its own; calls what it is given once it is ready, and ends
                when `until_closed()` returns.
            begin: Called on each event loop it is opened on, before it is.
            is_needed: Whether somebody who will close it has something to say over it.
            cut_off: Called when somebody has cancelled it while it is needed, for those who need
                it to end.
        """
        self._body = body
        self._on_begin = begin
        self._is_needed = is_needed
        self._cut_off = cut_off
        self._users = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._forks = 0
        self._closing: asyncio.Event
        self._is_ending = False
        self._host: Host | None = None

    async def open(self) -> None:
        """Count one user more; the first starts the body.

        Raises:
            WrongLoopError: It is open on another loop, or in the parent process.
        """
        if self._users:
            self.check()
        elif self._loop is not asyncio.get_running_loop():
            self._begin()
        self._users += 1
        try:
            async with self.lock:
                if self._host is not None and self._closing.is_set():
                    # Whoever closed it was overtaken by us, or cancelled.
                    await self._host.ended()
                    self._host = None
                if self._host is None:
                    self._closing.clear()
                    self._is_ending = False
                    host = Host("aioredismq connection", self._body)
                    await host.start()
                    self._host = host
        except BaseException:
            self._users -= 1
            raise

    def _begin(self) -> None:
        """Bind to the running loop: locks and events belong to the first loop they wait on."""
        self._loop = asyncio.get_running_loop()
        self._forks = _forks
        self.lock = asyncio.Lock()
        self._closing = asyncio.Event()
        self._host = None
        self._on_begin()

    async def close(self) -> None:
        """Count one user less; the last ends the body.

        Raises:
            WrongLoopError: It is open on another loop, or in the parent process.

        Cancellation: it still ends, in the background.
        """
        if not self._users:
            return
        self.check()
        self._users -= 1
        if self._users:
            return
        self._closing.set()
        async with self.lock:
            host = self._host
            if self._closing.is_set() and host is not None:
                await host.ended()
                self._host = None
                await host.join()

    async def until_closed(self) -> None:
        """Return when the last user has closed it: for the body.

        Cancellation: `asyncio.run` cancels every task at its end, and not every user has closed
        it then. It is raised when nobody needs it any more, who can say so with `left()`.
        """
        try:
            await self._closing.wait()
        except asyncio.CancelledError:
            # Whoever was cancelled while starting it waits for its end.
            was_started = self._host is not None
            if was_started and self._is_needed():
                self._is_ending = True
                self._cut_off()
                await self._closing.wait()
            raise

    def cut_off(self) -> None:
        """Cancel the body, as somebody else has cancelled a part of it; once is enough."""
        if self._host is not None and not self._host.is_cancelled:
            self._host.cancel()

    def left(self) -> None:
        """Say that somebody needs it no more."""
        if self._is_ending and not self._is_needed():
            self._closing.set()

    def check(self) -> None:
        """Refuse use on another loop or after a fork.

        Raises:
            WrongLoopError: With which of the two it is.
            NotInitializedError: It is not open.
        """
        if self._forks != _forks:
            msg = (
                "this process was forked after the connection was opened: make queues and "
                "connections in the process that uses them"
            )
            raise WrongLoopError(msg)
        if not self._users:
            msg = "the connection is not open: initialize a queue built on it first"
            raise NotInitializedError(msg)
        if self._loop is not asyncio.get_running_loop():
            msg = (
                "the connection was opened on another event loop: make one queue (and "
                "Connection) per loop"
            )
            raise WrongLoopError(msg)
