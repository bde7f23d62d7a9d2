from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioredismq import ConfigurationError, ExponentialBackoff, NoRetry, RetryPolicy

ERROR = ValueError("what a handler raised")

attempts = st.integers(min_value=1, max_value=10**9)
initials = st.floats(min_value=0, max_value=1e6)


@st.composite
def backoffs(draw: st.DrawFn, *, jitter: bool) -> ExponentialBackoff:
    """Draw one that is allowed."""
    initial = draw(initials)
    return ExponentialBackoff(
        initial=initial,
        multiplier=draw(st.floats(1, 1e6) | st.integers(1, 10**6)),
        maximum=draw(st.floats(initial, 1e9)),
        jitter=jitter,
    )


@given(backoff=backoffs(jitter=False), attempt=attempts)
def test_the_wait_grows_up_to_its_maximum(
    backoff: ExponentialBackoff, attempt: int
) -> None:
    """It begins with `initial`, never shrinks, and never exceeds `maximum`."""
    first, this, following = (
        backoff.delay(number, ERROR) for number in (1, attempt, attempt + 1)
    )

    assert first == backoff.initial
    assert first <= this <= following <= backoff.maximum


@given(backoff=backoffs(jitter=True), attempt=attempts)
def test_jitter_only_shortens(backoff: ExponentialBackoff, attempt: int) -> None:
    """The wait is drawn between nothing and the full value."""
    full = ExponentialBackoff(
        initial=backoff.initial,
        multiplier=backoff.multiplier,
        maximum=backoff.maximum,
        jitter=False,
    )

    assert 0 <= backoff.delay(attempt, ERROR) <= full.delay(attempt, ERROR)


def test_jitter_spreads_what_failed_together() -> None:
    """Two messages that failed at the same time do not come back at the same time."""
    backoff = ExponentialBackoff(initial=10)

    waits = {backoff.delay(3, ERROR) for _ in range(100)}

    assert len(waits) > 90
    assert min(waits) < 10
    assert max(waits) > 30


@given(attempt=attempts)
def test_nothing_is_waited_when_nothing_is_to_be(attempt: int) -> None:
    """However often: a factor that has grown beyond all numbers makes nothing of nothing."""
    assert ExponentialBackoff(initial=0).delay(attempt, ERROR) == 0


def test_the_default_waits_a_second_doubled_up_to_five_minutes() -> None:
    """With full jitter: anything up to that."""
    default = ExponentialBackoff()

    longest = [
        ExponentialBackoff(jitter=False).delay(attempt, ERROR)
        for attempt in (1, 2, 3, 9, 10, 1000)
    ]

    assert longest == [1, 2, 4, 256, 300, 300]
    assert all(0 <= default.delay(3, ERROR) <= 4 for _ in range(100))


@pytest.mark.parametrize(
    ("attempt", "wait"), [(1, 1), (2, 3), (3, 9), (4, 10), (5, 10)]
)
def test_each_wait_is_a_multiple_of_the_last(attempt: int, wait: float) -> None:
    """The multiplier is the factor from one attempt to the next."""
    backoff = ExponentialBackoff(initial=1, multiplier=3, maximum=10, jitter=False)

    assert backoff.delay(attempt, ERROR) == wait


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"initial": -1}, "initial must be 0 or more, and finite, got -1"),
        ({"initial": math.nan}, "initial must be 0 or more, and finite, got nan"),
        ({"initial": math.inf}, "initial must be 0 or more, and finite, got inf"),
        ({"initial": "1"}, "initial must be 0 or more, and finite, got '1'"),
        ({"multiplier": 0.5}, "multiplier must be 1 or more, and finite, got 0.5"),
        ({"multiplier": None}, "multiplier must be 1 or more, and finite, got None"),
        ({"maximum": math.inf}, "maximum must be 0 or more, and finite, got inf"),
        ({"maximum": True}, "maximum must be 0 or more, and finite, got True"),
        (
            {"initial": 5, "maximum": 4},
            r"maximum must not be below initial \(5 s\), got 4",
        ),
    ],
)
def test_what_cannot_be_waited_is_refused(settings: dict[str, Any], text: str) -> None:
    """At construction, with the rule and the offender."""
    with pytest.raises(ConfigurationError, match=f"^{text}$"):
        ExponentialBackoff(**settings)


def test_no_retry_gives_up_at_once() -> None:
    """None from a policy means that waiting is over."""
    policy: RetryPolicy = NoRetry()

    assert policy.delay(1, ERROR) is None
