from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioredismq import ConfigurationError
from aioredismq._times import written

CENTURY = 100 * 365 * 86400.0


@pytest.mark.parametrize(
    ("delay", "at", "expires", "text"),
    [
        (None, None, None, ""),
        (0, None, None, "0::"),
        (1.5, None, None, "1500::"),
        (0.0001, None, None, "1::"),
        (None, 0, None, ":0:"),
        (None, 1_700_000_000.25, None, ":1700000000250:"),
        (None, None, 60, "::60000"),
        (2, None, 3, "2000::3000"),
        (None, 1, 3.0001, ":1000:3001"),
        (CENTURY, None, None, "3153600000000::"),
    ],
)
def test_what_was_asked_is_written_in_milliseconds(
    delay: float | None, at: float | None, expires: float | None, text: str
) -> None:
    """What was not asked stays empty, so that the server fills nothing in."""
    assert written(delay, at, expires) == text


def test_a_moment_is_the_same_in_every_time_zone() -> None:
    """It is an instant, not what a clock on a wall shows."""
    here = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    elsewhere = here.astimezone(timezone(timedelta(hours=-8)))

    assert written(None, here, None) == written(None, elsewhere, None)
    assert written(None, here, None) == f":{int(here.timestamp()) * 1000}:"


def test_a_moment_before_the_epoch_is_now() -> None:
    """It is over, as any other that has passed."""
    assert written(None, datetime(1960, 1, 1, tzinfo=UTC), None) == ":0:"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("delay", (-0.1, None, None)),
        ("delay", (math.nan, None, None)),
        ("delay", (math.inf, None, None)),
        ("delay", ("5", None, None)),
        ("delay", (True, None, None)),
        ("delay", (CENTURY + 1, None, None)),
        ("expires", (None, None, 0)),
        ("expires", (None, None, 0.0001)),
        ("expires", (None, None, -1)),
        ("expires", (None, None, math.nan)),
        ("at", (None, -1, None)),
        ("at", (None, 1e11, None)),
        ("at", (None, math.nan, None)),
        ("at", (None, "tomorrow", None)),
        ("at", (None, False, None)),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    name: str, arguments: tuple[float | None, float | None, float | None]
) -> None:
    """Milliseconds in place of seconds are found here, not in thirty years."""
    with pytest.raises(ConfigurationError, match=rf"^{name} must be .* got "):
        written(*arguments)


def test_a_moment_without_a_time_zone_is_refused() -> None:
    """It could be any of twenty-four."""
    naive = datetime(2030, 1, 1)  # noqa: DTZ001 -- the slip that is refused

    with pytest.raises(ConfigurationError, match="must have a time zone"):
        written(None, naive, None)


def test_delay_and_at_exclude_each_other() -> None:
    """There would be two answers to one question."""
    with pytest.raises(ConfigurationError, match="exclude each other"):
        written(1, 1, None)


@given(
    delay=st.none() | st.floats(0, CENTURY),
    expires=st.none() | st.floats(0.001, CENTURY),
)
def test_it_is_never_written_shorter_than_asked(
    delay: float | None, expires: float | None
) -> None:
    """Rounding goes up, by less than a millisecond, and leaves digits only."""
    text = written(delay, None, expires)

    if delay is None and expires is None:
        assert text == ""
        return
    for asked, part in zip((delay, expires), text.split(":")[::2], strict=True):
        if asked is None:
            assert part == ""
        else:
            assert part.isdigit()
            assert 0 <= int(part) - asked * 1000 < 1.001
