from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioredismq._read_ahead import ReadAhead


def measured(
    ahead: ReadAhead, *, takes: float, rate: float, rounds: int = 30, start: float = 0.0
) -> int:
    """Let handlers of so many seconds end at so many a second, and ask for the last answer."""
    answer, now = ahead.allowed(start), start
    for _ in range(rounds):
        count = max(1, int(rate * 0.02))
        for _ in range(count):
            ahead.ended(takes)
        now += count / rate
        answer = ahead.allowed(now)
    return answer


def test_nothing_is_read_ahead_before_anything_was_measured() -> None:
    """What the handlers take is not known yet, and hoarding is worse than a round trip."""
    ahead = ReadAhead(slots=16, most=512, most_bytes=1_000_000)

    assert ahead.allowed(0.0) == 0
    assert ahead.allowed(3600.0) == 0


def test_slow_handlers_get_nothing_ahead() -> None:
    """Behind a handler of a second, whatever waits could be somebody else's."""
    ahead = ReadAhead(slots=1, most=512, most_bytes=1_000_000)

    assert measured(ahead, takes=1.0, rate=1.0) == 0


def test_fast_handlers_get_hundreds_ahead() -> None:
    """A round trip for each of 100 000 messages a second would be most of the work."""
    ahead = ReadAhead(slots=64, most=512, most_bytes=1_000_000)

    assert measured(ahead, takes=0.000_01, rate=100_000.0) == 512


def test_what_is_read_ahead_is_some_50_ms_of_work() -> None:
    """Sixteen handlers of 16 ms each use a thousand a second: 50 of them in that time."""
    ahead = ReadAhead(slots=16, most=512, most_bytes=1_000_000)

    assert measured(ahead, takes=0.016, rate=1000.0) == pytest.approx(50, abs=2)


def test_handlers_that_keep_the_loop_busy_are_counted_by_what_ends() -> None:
    """Sixteen slots that each compute for 10 ms end 100 a second, not 1600: one loop runs them."""
    ahead = ReadAhead(slots=16, most=512, most_bytes=1_000_000)

    assert measured(ahead, takes=0.01, rate=100.0) == pytest.approx(5, abs=1)


def test_a_burst_ends_when_the_handlers_become_slow() -> None:
    """The newest measurements count most, so a slow spell is known within a second."""
    ahead = ReadAhead(slots=1, most=512, most_bytes=1_000_000)

    assert measured(ahead, takes=0.0001, rate=10_000.0) > 400
    assert measured(ahead, takes=0.1, rate=10.0, rounds=30, start=10.0) <= 1


def test_idle_time_says_nothing_about_the_handlers() -> None:
    """An hour without a message does not make fast handlers slow."""
    ahead = ReadAhead(slots=16, most=512, most_bytes=1_000_000)
    before = measured(ahead, takes=0.016, rate=1000.0)

    later = ahead.allowed(3600.0)

    assert later == before


def test_while_nothing_ends_the_pace_is_taken_to_be_over() -> None:
    """Handlers that have run for a second and not ended use one a second each, at most."""
    ahead = ReadAhead(slots=16, most=512, most_bytes=1_000_000)
    measured(ahead, takes=0.000_01, rate=100_000.0)

    assert ahead.allowed(10.0, silent=0.0) == 512
    assert ahead.allowed(10.0, silent=0.1) == 8
    assert ahead.allowed(10.0, silent=1.0) == 0


def test_large_messages_bound_it_by_their_bytes() -> None:
    """512 messages of a megabyte would be half a gigabyte of nothing but waiting."""
    ahead = ReadAhead(slots=64, most=512, most_bytes=8_000_000)
    for _ in range(50):
        ahead.arrived(1_000_000)

    assert measured(ahead, takes=0.000_01, rate=100_000.0) == 8


def test_a_batch_counts_as_all_its_messages() -> None:
    """Ten calls a second of a hundred messages each use a thousand a second."""
    ahead = ReadAhead(slots=1, most=512, most_bytes=1_000_000)
    answer, now = ahead.allowed(0.0), 0.0
    for _ in range(30):
        ahead.ended(0.1, 100)
        now += 0.1
        answer = ahead.allowed(now)

    assert answer == pytest.approx(50, abs=2)


@given(
    slots=st.integers(1, 1000),
    most=st.integers(0, 1000),
    most_bytes=st.integers(1, 10_000_000),
    steps=st.lists(
        st.tuples(
            st.floats(0, 10), st.integers(0, 200), st.floats(0, 1e7), st.floats(0, 5)
        ),
        max_size=30,
    ),
)
def test_no_measurement_takes_it_out_of_its_bounds(
    slots: int,
    most: int,
    most_bytes: int,
    steps: list[tuple[float, int, float, float]],
) -> None:
    """Whatever the clock and the handlers do: never below nothing, never above the bound."""
    ahead = ReadAhead(slots=slots, most=most, most_bytes=most_bytes)
    now = 0.0
    for takes, count, size, passed in steps:
        ahead.arrived(size)
        if count:
            ahead.ended(takes, count)
        now += passed

        assert 0 <= ahead.allowed(now) <= most
