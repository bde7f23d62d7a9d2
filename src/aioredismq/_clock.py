"""The server's clock, as far as this process knows it; and one that goes on in our sleep."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# Linux and macOS stop the clock of event loops while the machine sleeps; the server goes on.
_SLEEPLESS: int | None = getattr(
    time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None)
)

# Seconds by which an answer may be late without looking as if the clock had been set.
_STEP = 1.0


def elapsed() -> float:
    """Tell seconds of a clock that is never set and never stops, from an unknown beginning."""
    return time.monotonic() if _SLEEPLESS is None else time.clock_gettime(_SLEEPLESS)


class ServerClock:
    """Tell the server's time between looks at it: ids and due times are its, not ours."""

    __slots__ = ("_ahead", "_set_ahead")

    def __init__(self, set_ahead: Callable[[], None] = lambda: None) -> None:
        """Nothing is known before the first look.

        Args:
            set_ahead: Told when it goes ahead of what it should show: somebody has set it, or the
                server is another one.
        """
        self._ahead: float | None = None
        self._set_ahead = set_ahead

    def set(self, server_time: float) -> None:
        """Note what the server's clock shows now, in seconds since the epoch."""
        before, self._ahead = self._ahead, server_time - time.monotonic()
        if before is not None and self._ahead - before > _STEP:
            self._set_ahead()

    def now(self) -> float | None:
        """Seconds since the epoch by the server's clock; None before the first look."""
        return None if self._ahead is None else time.monotonic() + self._ahead
