"""Wires over plain TCP, for testing the rooms that are given a way to open them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aioredismq import ConnectionLostError
from aioredismq._wire import Wire, pack

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioredismq import ServerError


class Road:
    """Opens wires for what is tested, and counts them."""

    def __init__(self, url: str) -> None:
        """Nothing is opened yet."""
        self._port = int(url.rsplit(":", 1)[1].split("/")[0])
        self.wires: list[Wire] = []
        self.error: ServerError | None = None
        self.attempts = 0
        self.reply_timeout = 5.0
        self.user = "default"

    async def open(
        self,
        on_lost: Callable[[], None],
        on_push: Callable[[list[Any]], None] | None = None,
    ) -> Wire:
        """Open one that answers, or fail as the test says."""
        self.attempts += 1
        if self.error is not None:
            raise self.error
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(pack("AUTH", self.user, "any"))
            if not await reader.readline():
                raise ConnectionLostError("it hung up")
        except OSError as error:
            raise ConnectionLostError(str(error)) from error
        wire = Wire(
            writer, reply_timeout=self.reply_timeout, on_lost=on_lost, on_push=on_push
        )
        self.wires.append(wire)
        return wire

    def close(self) -> None:
        """Close all."""
        for wire in self.wires:
            wire.close()
