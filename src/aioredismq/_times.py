"""When a message is to be handled, and until when: as `produce` was asked, as the script takes it.

Pure. The server's clock decides: only what is relative leaves this process as it was asked.
"""

from __future__ import annotations

import math
from datetime import datetime

from ._clock import CENTURY
from ._errors import ConfigurationError


def written(
    delay: float | None, at: datetime | float | None, expires: float | None
) -> str:
    """Write `delay:at:life` in milliseconds, each empty when not asked; empty when none is.

    Args:
        delay: Seconds from now, by the server's clock.
        at: A moment: seconds since the epoch, or a `datetime` with a time zone.
        expires: Seconds from now after which the message is not handled any more.

    Raises:
        ConfigurationError: With the rule and the offender.
    """
    if delay is None and at is None and expires is None:
        return ""
    if delay is not None and at is not None:
        msg = "delay and at exclude each other: give one"
        raise ConfigurationError(msg)
    parts = (
        "" if delay is None else _milliseconds("delay", delay, least=0.0),
        "" if at is None else str(math.ceil(moment("at", at) * 1000)),
        "" if expires is None else _milliseconds("expires", expires, least=0.001),
    )
    return ":".join(parts)


def _milliseconds(name: str, seconds: object, *, least: float) -> str:
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not number or not least <= seconds <= CENTURY:  # type: ignore[operator]  # a number
        msg = f"{name} must be {least:g} s or more (a century at most), got {seconds!r}"
        raise ConfigurationError(msg)
    return str(math.ceil(seconds * 1000))  # type: ignore[operator]  # a number


def moment(name: str, when: object) -> float:
    """Give seconds since the epoch.

    Args:
        name: What the parameter is called, for an error message.
        when: Such seconds already, or a `datetime` with a time zone.

    Raises:
        ConfigurationError: With the rule and the offender.
    """
    if isinstance(when, datetime):
        if when.tzinfo is None:
            msg = f"{name} must have a time zone, got {when!r}"
            raise ConfigurationError(msg)
        return max(0.0, when.timestamp())
    number = isinstance(when, int | float) and not isinstance(when, bool)
    if not number or not 0 <= when < 1e11:  # type: ignore[operator]  # a number
        msg = (
            f"{name} must be seconds since the epoch or a datetime with a time zone, "
            f"got {when!r}"
        )
        raise ConfigurationError(msg)
    return float(when)  # type: ignore[arg-type]  # a number
