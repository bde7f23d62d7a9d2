"""What becomes of a message once its handler has ended. Pure rules."""

from __future__ import annotations

import asyncio
import logging
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from ._clock import CENTURY
from ._errors import DecodeError, RejectMessage, RetryMessage, is_finite

if TYPE_CHECKING:
    from ._retry import RetryPolicy

logger = logging.getLogger("aioredismq")

Reason: TypeAlias = Literal["rejected", "attempts", "crashed", "decode", "expired"]

# A dead letter is read by people: the innermost frames say where it broke. A recursion error's
# whole traceback would be larger than most bodies.
_TRACEBACK_LIMIT = 4_000
_DETAIL_LIMIT = 2_000


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a message failed for good.

    Attributes:
        reason: `rejected` (the handler said so), `attempts` (it failed too often), `crashed`
            (processes died of it), `decode` (the entry is not what the handler asks for) or
            `expired` (it was not handled in time).
        detail: The words.
        error: What was raised.
    """

    reason: Reason
    detail: str
    error: BaseException | None = None

    @property
    def error_type(self) -> str:
        """Name of the error's class; empty when nothing was raised."""
        return "" if self.error is None else type(self.error).__qualname__

    @property
    def traceback(self) -> str:
        """The end of the error's traceback, at most 4000 characters."""
        if self.error is None:
            return ""
        return "".join(traceback.format_exception(self.error))[-_TRACEBACK_LIMIT:]


@dataclass(frozen=True, slots=True)
class Ack:
    """Handled: take it off."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Failed: again in `after` seconds, with one attempt more on its account."""

    after: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Failed for good: put it aside with its reason."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Release:
    """Not tried, or cut off by the shutdown: hand it back, attempts unchanged."""


Outcome: TypeAlias = Ack | Retry | DeadLetter | Release
Failed: TypeAlias = Retry | DeadLetter


# What a handler may let through and has not failed by, besides the end of its task.
_ENDINGS_OF_PROCESS = (KeyboardInterrupt, SystemExit, GeneratorExit)


def is_failure(error: BaseException) -> bool:
    """Say whether this is a failure of the handler, or ends more than the handler.

    Not every failure is an `Exception`: a panic in an extension written in Rust is none. And a task
    group raises what ends the process among others; a cancellation in one was of its own making.
    """
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(_ENDINGS_OF_PROCESS) is None
    return not isinstance(error, (asyncio.CancelledError, *_ENDINGS_OF_PROCESS))


def describe(error: BaseException) -> str:
    """The words of an error, or its class where it has none."""
    return _words(error) or type(error).__qualname__[:_DETAIL_LIMIT]


def _words(of: object) -> str:
    """Say it in words, which are not too many."""
    try:
        words = "" if of is None else str(of)
    except Exception:  # noqa: BLE001 -- a broken __str__ must not hide the failure
        words = ""
    return words[:_DETAIL_LIMIT]


def _asked(error: RetryMessage) -> float | None:
    """The delay a handler asks for. A class of the application's own may have set anything."""
    delay = error.delay
    if delay is None or is_finite(delay, least=0):
        return delay
    logger.error("%r asks for %r seconds; the retry policy is asked", error, delay)
    return None


def decide(
    error: BaseException, attempt: int, policy: RetryPolicy, max_attempts: int
) -> Failed:
    """Say what becomes of a message whose handler raised.

    Args:
        error: What the handler raised.
        attempt: The attempt that has just failed, from 1.
        policy: Says how long to wait, or that waiting is over.
        max_attempts: Attempts a message gets in all.
    """
    match error:
        case RejectMessage():
            return DeadLetter(Failure("rejected", _words(error.detail), error))
        case DecodeError():
            return DeadLetter(Failure("decode", describe(error), error))
        case RetryMessage():
            detail, asked = _words(error.detail), _asked(error)
        case _:
            detail, asked = describe(error), None
    if attempt >= max_attempts:
        return DeadLetter(Failure("attempts", detail, error))
    delay = _wait(policy, attempt, error) if asked is None else asked
    if delay is None:
        return DeadLetter(Failure("attempts", detail, error))
    return Retry(min(delay, CENTURY), detail)


def _wait(policy: RetryPolicy, attempt: int, error: BaseException) -> float | None:
    """Ask the policy. One that fails, or says what cannot be waited, makes no message wait."""
    try:
        delay = policy.delay(attempt, error)
    except Exception:
        logger.exception("%r failed; the message is tried again at once", policy)
        return 0.0
    if delay is None or is_finite(delay, least=0):
        return delay
    logger.error(
        "%r says %r seconds; the message is tried again at once", policy, delay
    )
    return 0.0
