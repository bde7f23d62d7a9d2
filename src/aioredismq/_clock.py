"""The server's clock, as far as this process knows it."""

from __future__ import annotations

import time


class ServerClock:
    """Tell the server's time between looks at it: ids and due times are its, not ours."""

    __slots__ = ("_ahead",)

    def __init__(self) -> None:
        """Nothing is known before the first look."""
        self._ahead: float | None = None

    def set(self, server_time: float) -> None:
        """Note what the server's clock shows now, in seconds since the epoch."""
        self._ahead = server_time - time.monotonic()

    def now(self) -> float | None:
        """Seconds since the epoch by the server's clock; None before the first look."""
        return None if self._ahead is None else time.monotonic() + self._ahead
