"""When a failed message is tried again, and when no more. Pure rules."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Protocol

from ._errors import ConfigurationError, is_finite


class RetryPolicy(Protocol):
    """Says how long a failed message waits before its next attempt."""

    def delay(self, attempt: int, error: BaseException) -> float | None:
        """Seconds to wait, or None to give up.

        Args:
            attempt: The attempt that has just failed, from 1.
            error: What the handler raised.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ExponentialBackoff:
    """Wait longer after each failure: `initial`, doubled each time, up to `maximum`.

    The wait is drawn evenly between 0 and that value (full jitter), so that messages that failed
    together do not come back together.

    Source: M. Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).
    """

    initial: float = 1.0
    """Seconds after the first failure, at most: long enough for what was restarted to be back.
    0 tries again at once."""
    multiplier: float = 2.0
    """Factor from one attempt to the next."""
    maximum: float = 300.0
    """Seconds no wait exceeds."""
    jitter: bool = True
    """False waits the full value each time."""

    def __post_init__(self) -> None:
        """Refuse what cannot be waited."""
        for name, least in (("initial", 0), ("multiplier", 1), ("maximum", 0)):
            value = getattr(self, name)
            if not is_finite(value, least=least):
                msg = f"{name} must be {least} or more, and finite, got {value!r}"
                raise ConfigurationError(msg)
        if self.maximum < self.initial:
            msg = (
                f"maximum must not be below initial ({self.initial!r} s), "
                f"got {self.maximum!r}"
            )
            raise ConfigurationError(msg)

    def delay(self, attempt: int, error: BaseException) -> float:
        """Seconds to wait after `attempt` has failed, whatever the error was."""
        del error
        try:
            # As floats: whole numbers would grow without end instead of overflowing.
            longest = self.initial * float(self.multiplier) ** (attempt - 1)
        except OverflowError:
            longest = self.maximum if self.initial else 0.0
        longest = min(longest, self.maximum)
        return random.uniform(0, longest) if self.jitter else longest


@dataclass(frozen=True, slots=True)
class NoRetry:
    """Give up after the first failure."""

    def delay(self, attempt: int, error: BaseException) -> None:
        """Never wait: the message has failed for good."""
        del attempt, error
