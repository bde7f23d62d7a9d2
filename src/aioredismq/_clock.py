"""The server's clock, as far as this process knows it; and one that goes on in our sleep."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# Redis keeps due times as doubles, exact to 2^53 ms; a century is further than anyone plans.
CENTURY = 100 * 365 * 86400.0

# Seconds by which an answer may be late without looking as if the clock had been set.
_STEP = 1.0


def _clock_that_never_stops() -> Callable[[], float]:
    for name in ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC"):
        if hasattr(time, name):
            return partial(time.clock_gettime, getattr(time, name))
    return time.perf_counter


elapsed: Callable[[], float] = _clock_that_never_stops()
"""Tells seconds from an unknown beginning, by a clock that is never set and never stops.

Linux and macOS stop those of event loops while the machine sleeps: leases, and what the server
remembers, run out all the same. A function of C, as it is asked for each message.
"""


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
        before, self._ahead = self._ahead, server_time - elapsed()
        if before is not None and self._ahead - before > _STEP:
            self._set_ahead()

    def now(self) -> float | None:
        """Seconds since the epoch by the server's clock; None before the first look."""
        return None if self._ahead is None else elapsed() + self._ahead
