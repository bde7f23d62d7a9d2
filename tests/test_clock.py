from __future__ import annotations

import time
from typing import TYPE_CHECKING

from aioredismq import _clock as room_of_clock
from aioredismq._clock import ServerClock, elapsed

if TYPE_CHECKING:
    import pytest


def test_what_has_elapsed_counts_the_sleep_of_the_machine() -> None:
    """As far as the system can tell; what an event loop shows is never ahead of it."""
    loop_began, began = time.monotonic(), elapsed()

    passed, loop_passed = elapsed() - began, time.monotonic() - loop_began

    assert 0 <= passed <= loop_passed + 0.001
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    if boot is not None:  # Linux
        assert abs(elapsed() - time.clock_gettime(boot)) < 1


def test_nothing_is_known_before_the_first_look() -> None:
    """Our own clock is no stand-in: it may be wrong by hours."""
    assert ServerClock().now() is None


def test_it_goes_on_from_what_the_server_showed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between two looks the time that passed here is added."""
    here = [50.0]
    monkeypatch.setattr(room_of_clock, "elapsed", lambda: here[0])
    clock = ServerClock()

    clock.set(1_000_000.0)
    here[0] += 2.5

    assert clock.now() == 1_000_002.5


def test_a_later_look_counts() -> None:
    """Also when the server's clock was set back meanwhile."""
    clock = ServerClock()
    clock.set(2_000_000.0)

    clock.set(1_000_000.0)

    now = clock.now()
    assert now is not None
    assert 1_000_000.0 <= now < 1_000_005.0


def test_a_change_of_our_own_clock_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody sets the wall clock of this machine a year ahead."""
    clock = ServerClock()
    clock.set(1_000_000.0)

    monkeypatch.setattr(time, "time", lambda: 4e9)

    now = clock.now()
    assert now is not None
    assert now < 1_000_005.0


def test_a_clock_that_is_set_ahead_is_told() -> None:
    """Not the first look, no answer that was a little late, and not one that is set back."""
    told: list[float] = []
    now = 1_000_000.0
    clock = ServerClock(set_ahead=lambda: told.append(now))

    for now in (1_000_000.0, 999_999.5, 1_000_000.0, 1_000_030.0, 900_000.0):
        clock.set(now)

    assert told == [1_000_030.0]
