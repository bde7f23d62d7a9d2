"""How much to read ahead: what the handlers are measured to use in a short while. Pure rules.

A fixed pile hoards: others idle while messages wait behind a slow handler. None at all costs a
round trip per message. So: nothing for handlers of a second, hundreds for handlers of a
microsecond, bounded by count and by bytes.
"""

from __future__ import annotations

# Seconds of work that may wait here: far above a round trip, far below what anyone notices.
_WINDOW = 0.05
# Seconds over which messages are counted before the rate is believed.
_SAMPLE = 0.01
# Weight of the newest measurement; 0.2 forgets a burst after some ten measurements.
_WEIGHT = 0.2


class ReadAhead:
    """Measure how fast this consumer's handlers use messages, and say how many may wait.

    Two measures bound each other. `slots / time per handler` (Little's law) is right for handlers
    that wait, but far too high for those that keep the event loop busy; messages ended per second
    is right for those, but too low while there is little to do.
    """

    __slots__ = (
        "_done",
        "_most",
        "_most_bytes",
        "_rate",
        "_since",
        "_size",
        "_slots",
        "_spent",
    )

    def __init__(self, *, slots: int, most: int, most_bytes: int) -> None:
        """Nothing may wait until something was measured.

        Args:
            slots: Handlers that run at once.
            most: Messages that may wait, at most.
            most_bytes: Bytes that may wait, about at most.
        """
        self._slots = slots
        self._most = most
        self._most_bytes = most_bytes
        self._done = 0
        self._spent = 0.0
        self._since = 0.0
        self._rate = 0.0
        self._size = 0.0

    def ended(self, seconds: float, messages: int = 1) -> None:
        """Count a handler that has ended: how long it took, for how many messages."""
        self._done += messages
        self._spent += seconds

    def arrived(self, size: float) -> None:
        """Note the size of an entry that was read (bytes, a sample of a few will do)."""
        self._size += _WEIGHT * (size - self._size) if self._size else size

    def allowed(self, now: float, silent: float = 0.0) -> int:
        """Say how many messages may wait unstarted.

        Args:
            now: Seconds, monotonic.
            silent: Seconds for which handlers have been running and none has ended: what was
                measured before holds no longer than that.
        """
        if not self._done:
            self._since = now  # idle time says nothing about the handlers
        passed = now - self._since
        if passed >= _SAMPLE:
            by_slots = self._slots * self._done / max(self._spent, 1e-9)
            rate = min(by_slots, self._done / passed)
            self._rate += (rate - self._rate) * (_WEIGHT if self._rate else 1.0)
            self._done, self._spent, self._since = 0, 0.0, now
        rate = (
            self._rate if silent <= _SAMPLE else min(self._rate, self._slots / silent)
        )
        most = min(self._most, int(rate * _WINDOW))
        if self._size:
            most = min(most, int(self._most_bytes / max(self._size, 1.0)))
        return most
