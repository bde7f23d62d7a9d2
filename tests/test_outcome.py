from __future__ import annotations

import asyncio
import logging
import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioredismq import (
    DecodeError,
    ExponentialBackoff,
    Failure,
    MessageQueueError,
    NoRetry,
    RejectMessage,
    RetryMessage,
)
from aioredismq._outcome import DeadLetter, Retry, decide, describe, is_failure

if TYPE_CHECKING:
    from aioredismq import RetryPolicy


class Says:
    """A policy that always says the same, whatever that is."""

    def __init__(self, answer: Any) -> None:
        """Say this, or raise it."""
        self.answer = answer
        self.asked: list[tuple[int, BaseException]] = []

    def delay(self, attempt: int, error: BaseException) -> float | None:
        """Say it, or raise it."""
        self.asked.append((attempt, error))
        if isinstance(self.answer, Exception):
            raise self.answer
        delay: float | None = self.answer
        return delay


# What becomes of a message.


@pytest.mark.parametrize(
    ("error", "attempt", "policy", "outcome"),
    [
        (ValueError("bad"), 1, Says(2.5), Retry(2.5, "bad")),
        (ValueError("bad"), 4, Says(0), Retry(0, "bad")),
        (ValueError("bad"), 5, Says(2.5), "attempts"),
        (ValueError("bad"), 6, Says(2.5), "attempts"),
        (ValueError("bad"), 1, NoRetry(), "attempts"),
        (MessageQueueError("bad"), 1, Says(1), Retry(1, "bad")),
        (RetryMessage("bad"), 1, Says(2.5), Retry(2.5, "bad")),
        (RetryMessage("bad", delay=9), 1, Says(2.5), Retry(9, "bad")),
        (RetryMessage("bad", delay=0), 1, Says(2.5), Retry(0, "bad")),
        (RetryMessage("bad", delay=9), 1, NoRetry(), Retry(9, "bad")),
        (RetryMessage("bad"), 1, NoRetry(), "attempts"),
        (RetryMessage("bad", delay=9), 5, Says(2.5), "attempts"),
        (RejectMessage("bad"), 1, Says(2.5), "rejected"),
        (DecodeError("bad"), 1, Says(2.5), "decode"),
        (KeyboardInterrupt("bad"), 1, Says(2.5), Retry(2.5, "bad")),
    ],
)
def test_what_was_raised_decides(
    error: BaseException, attempt: int, policy: RetryPolicy, outcome: Retry | str
) -> None:
    """Of five attempts: again, or for good with a reason, the words, and the error itself."""
    decided = decide(error, attempt, policy, max_attempts=5)

    if isinstance(outcome, Retry):
        assert decided == outcome
    else:
        assert isinstance(decided, DeadLetter)
        assert decided.failure == Failure(outcome, "bad", error)  # type: ignore[arg-type]  # of the table


def test_the_policy_is_told_what_failed() -> None:
    """Which attempt it was, and what was raised."""
    policy, error = Says(1), ValueError()

    decide(error, 3, policy, max_attempts=5)

    assert policy.asked == [(3, error)]


@given(
    attempt=st.integers(1, 10**6),
    max_attempts=st.integers(1, 10**6),
    asked=st.none() | st.floats(0, 1e9),
    initial=st.floats(0, 300),
)
def test_a_message_is_never_tried_more_often_than_allowed(
    attempt: int, max_attempts: int, asked: float | None, initial: float
) -> None:
    """Whatever handler and policy ask for; and before that it is tried again."""
    policy = ExponentialBackoff(initial=initial)

    decided = decide(RetryMessage("", delay=asked), attempt, policy, max_attempts)

    assert isinstance(decided, Retry if attempt < max_attempts else DeadLetter)


@pytest.mark.parametrize("answer", [ZeroDivisionError(), math.nan, math.inf, -1, "1"])
def test_a_broken_policy_makes_no_message_wait(
    answer: object, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, and the message neither waits for ever nor takes the consumer with it."""
    policy = Says(answer)

    with caplog.at_level(logging.ERROR):
        decided = decide(ValueError("bad"), 1, policy, max_attempts=5)

    assert decided == Retry(0.0, "bad")
    assert repr(policy) in caplog.text


def test_what_is_raised_may_be_a_class_of_the_applications() -> None:
    """Exceptions need not call the `__init__` of what they derive from."""

    class NoStockError(RetryMessage):
        def __init__(self, item: int) -> None:
            self.item = item

    class GoneError(RejectMessage):
        def __init__(self, item: int) -> None:
            self.item = item

    assert decide(NoStockError(7), 1, Says(2.5), 5) == Retry(2.5, "")
    rejected = decide(GoneError(7), 1, Says(2.5), 5)
    assert isinstance(rejected, DeadLetter)
    assert (rejected.failure.reason, rejected.failure.detail) == ("rejected", "")


@pytest.mark.parametrize(
    ("detail", "words"),
    [(5, "5"), (None, ""), (ValueError("a"), "a"), ("x" * 9_000, "x" * 2_000)],
)
def test_whatever_such_a_class_has_for_words_is_said(detail: Any, words: str) -> None:
    """Nobody has looked at them before."""
    retry, reject = RetryMessage(delay=1), RejectMessage()
    retry.detail = reject.detail = detail

    assert decide(retry, 1, Says(2.5), 5) == Retry(1, words)
    rejected = decide(reject, 1, Says(2.5), 5)
    assert isinstance(rejected, DeadLetter)
    assert rejected.failure.detail == words


@pytest.mark.parametrize("delay", ["5", timedelta(seconds=5), math.nan, math.inf, -1])
def test_a_delay_that_cannot_be_waited_leaves_it_to_the_policy(
    delay: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A class of the application's own may have set anything."""
    error = RetryMessage("full")
    error.delay = delay

    assert decide(error, 1, Says(2.5), 5) == Retry(2.5, "full")
    assert repr(delay) in caplog.text


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError(), True),
        (BaseException("a panic"), True),
        (asyncio.CancelledError(), False),
        (SystemExit(3), False),
        (KeyboardInterrupt(), False),
        (GeneratorExit(), False),
        (ExceptionGroup("", [ValueError()]), True),
        (BaseExceptionGroup("", [BaseException("a panic")]), True),
        (BaseExceptionGroup("", [asyncio.CancelledError(), ValueError()]), True),
        (BaseExceptionGroup("", [SystemExit(3)]), False),
        (
            BaseExceptionGroup(
                "", [OSError(), BaseExceptionGroup("", [KeyboardInterrupt()])]
            ),
            False,
        ),
    ],
    ids=repr,
)
def test_what_ends_more_than_the_handler_is_no_failure_of_it(
    error: BaseException, expected: bool
) -> None:
    """Also where a task group has raised it."""
    assert is_failure(error) is expected


@pytest.mark.parametrize("asked", [1e306, 10**400])
def test_nobody_waits_longer_than_a_century(asked: float) -> None:
    """What cannot be told in milliseconds must not end the consumer that has to tell it."""
    for error, policy in (
        (RetryMessage(delay=asked), NoRetry()),
        (OSError(), Says(asked)),
    ):
        decided = decide(error, 1, policy, max_attempts=5)

        assert isinstance(decided, Retry)
        assert decided.after == 100 * 365 * 86400


def test_long_words_are_cut() -> None:
    """A dead letter is read by people."""
    policy = NoRetry()

    for error in (ValueError("x" * 10**5), RejectMessage("x" * 10**5)):
        decided = decide(error, 1, policy, max_attempts=5)
        assert isinstance(decided, DeadLetter)
        assert decided.failure.detail == "x" * 2000


@pytest.mark.parametrize("signal", [RejectMessage, RetryMessage])
def test_an_error_may_be_passed_as_the_words(signal: Any) -> None:
    """As in `raise RejectMessage(error)`: its words are what is meant."""
    decided = decide(signal(KeyError("sku")), 1, NoRetry(), max_attempts=1)

    assert isinstance(decided, DeadLetter)
    assert decided.failure.detail == "'sku'"


# The words.


class Mute(Exception):  # noqa: N818 -- of a test
    """Cannot say what it is."""

    def __str__(self) -> str:
        """Fail, as a badly written one does."""
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("no such order"), "no such order"),
        (ValueError(), "ValueError"),
        (KeyError("sku"), "'sku'"),
        (Mute(), "Mute"),
        (ExceptionGroup("both", [ValueError("a")]), "both (1 sub-exception)"),
    ],
)
def test_an_error_is_described_by_its_words(error: Exception, words: str) -> None:
    """Or by its class, where it has none or cannot say them."""
    assert describe(error) == words


def test_a_failure_names_its_error() -> None:
    """Its class and where it was raised; nothing where nothing was raised."""
    with pytest.raises(Mute) as caught:
        raise Mute

    failure = Failure("attempts", "bad", caught.value)
    by_hand = Failure("rejected", "")

    assert failure.error_type == "Mute"
    assert "raise Mute" in failure.traceback
    assert (by_hand.error_type, by_hand.traceback) == ("", "")


def test_a_failure_keeps_the_innermost_of_a_long_traceback() -> None:
    """That is where it broke, and a recursion's whole traceback is larger than most bodies."""

    def deep(level: int) -> int:
        return level if level < 0 else 1 + deep(level - 1) if level else 1 // 0

    with pytest.raises(ZeroDivisionError) as caught:
        deep(300)
    failure = Failure("attempts", "bad", caught.value)

    assert len(failure.traceback) <= 4000
    assert failure.traceback.endswith("integer division or modulo by zero\n")
