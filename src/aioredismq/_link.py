"""The command connection to the server of one key, shared by all who send, made again when lost."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from ._errors import (
    AuthenticationError,
    ConnectionLostError,
    ServerError,
    ServerNotReadyError,
)
from ._pauses import pauses
from ._wire import pack

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ._scripts import Script
    from ._wire import Wire

logger = logging.getLogger("aioredismq")

# The server we talk to is not (or no longer) the one for this key: look where it is. ASK is not one
# of them: the slot is on its way, both nodes refuse most of what a queue says, and what tells that
# it has arrived is MOVED.
_ELSEWHERE = frozenset({"MOVED", "READONLY", "UNBLOCKED"})


class Link:
    """A wire to the server of one key that is opened again whenever it is lost.

    `submit` is for callers who keep what they sent until it is answered; `call` and `run` send
    again by themselves, so they are for operations that may be done twice.
    """

    def __init__(
        self,
        open_wire: Callable[[Callable[[], None]], Awaitable[Wire]],
        *,
        patience: float,
    ) -> None:
        """Nothing is opened before `connect()`.

        Args:
            open_wire: Opens a wire, given what to call when it ends.
            patience: Seconds `call` and `run` go on trying by default.
        """
        self._open_wire = open_wire
        self._patience = patience
        self._wire: Wire | None = None
        self._told = asyncio.Event()
        self._down = asyncio.Event()
        self._failure: ServerError | None = None
        self._on_up: list[Callable[[], None]] = []

    @property
    def is_up(self) -> bool:
        """Whether a command would be written now."""
        return self._wire is not None and not self._wire.is_lost

    @property
    def failure(self) -> ServerError | None:
        """Why there is no connection; None while there is one."""
        return None if self.is_up else self._failure

    def on_up(self, callback: Callable[[], None]) -> None:
        """Call back whenever the connection is there again."""
        self._on_up.append(callback)

    def forget(self, callback: Callable[[], None]) -> None:
        """Undo `on_up`."""
        self._on_up.remove(callback)

    async def connect(self) -> None:
        """Open the first wire; the error of a failure is the caller's.

        Raises:
            ServerError: It cannot be opened.
        """
        self._adopt(await self._open_wire(self._lost))

    async def keep(self) -> None:
        """Open the wire again whenever it is lost, until cancelled."""
        following = pauses()
        while True:
            await self._down.wait()
            logger.warning("%s; connecting again", self._failure)
            while not self.is_up:
                await asyncio.sleep(following())
                try:
                    wire = await self._open_wire(self._lost)
                except ServerError as error:
                    self._failure = error
                    if isinstance(error, AuthenticationError):
                        self._told.set()
                    else:
                        self._told.clear()
                else:
                    self._adopt(wire)
            logger.info("connected to Redis again")

    def renew(self, why: ServerError | None = None) -> None:
        """Drop the wire: its server is not the one for this key any more.

        Args:
            why: What it said.
        """
        if self._wire is not None:
            text = "the server is not the one for this key any more"
            self._wire.close(ConnectionLostError(f"{text}: {why}" if why else text))

    def follow(self, refusal: ServerError) -> bool:
        """Drop the wire if this is how a server says that the key is elsewhere; say whether."""
        is_elsewhere = refusal.code in _ELSEWHERE
        if is_elsewhere:
            self.renew(refusal)
        return is_elsewhere

    def submit(self, command: bytes, on_reply: Callable[[Any], None]) -> None:
        """Write a packed command now.

        Raises:
            ConnectionLostError: There is no connection; nothing was written.
        """
        if self._wire is None:
            msg = f"no connection to Redis: {self._failure}"
            raise ConnectionLostError(msg)
        self._wire.submit(command, on_reply)

    async def call(
        self, *parts: bytes | str | float, patience: float | None = None
    ) -> Any:
        """Send a command that may be sent twice until it is answered.

        Args:
            parts: The command.
            patience: Seconds to go on through outages; None for the link's own.

        Raises:
            ServerError: The last one when patience is over, or one that does not pass by itself.
        """
        return await self._persist(pack(*parts), patience)

    async def run(
        self,
        script: Script,
        keys: Sequence[str],
        arguments: Sequence[bytes | str | int],
        *,
        patience: float | None = None,
    ) -> Any:
        """Run a script that may be run twice until it is answered; see `call`."""
        try:
            return await self._persist(script.by_digest(keys, arguments), patience)
        except ServerError as error:
            if error.code != "NOSCRIPT":
                raise
        return await self._persist(script.whole(keys, arguments), patience)

    async def _persist(self, command: bytes, patience: float | None) -> Any:
        loop = asyncio.get_running_loop()
        end = loop.time() + (self._patience if patience is None else patience)
        following = pauses()
        while True:
            await self._wait_up(end - loop.time())
            try:
                return await self._once(command)
            except ServerNotReadyError as error:
                if loop.time() >= end:
                    raise
                self.follow(error)
                await asyncio.sleep(following())
            except ConnectionLostError:
                if loop.time() >= end:
                    raise

    def _once(self, command: bytes) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def on_reply(reply: Any) -> None:
            if future.done():
                return
            if isinstance(reply, Exception):
                future.set_exception(reply)
            else:
                future.set_result(reply)

        self.submit(command, on_reply)
        return future

    async def _wait_up(self, within: float) -> None:
        """Wait for the connection, unless waiting does not help."""
        try:
            async with asyncio.timeout(max(within, 0.0)):
                while not self.is_up:
                    if isinstance(self._failure, AuthenticationError):
                        raise self._failure.again()
                    await self._told.wait()
        except TimeoutError:
            cause = self._failure or ConnectionLostError(
                "there is no connection to Redis"
            )
            raise cause.again() from None

    def _adopt(self, wire: Wire) -> None:
        self._wire = wire
        if wire.is_lost:
            self._lost()
            return
        self._failure = None
        self._down.clear()
        self._told.set()
        for callback in list(self._on_up):
            callback()

    def _lost(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            self._failure = wire.error
        self._told.clear()
        self._down.set()
