from __future__ import annotations

import time
from typing import TYPE_CHECKING

from aioredismq._pauses import pauses

if TYPE_CHECKING:
    import pytest


def test_pauses_double_and_stay_short() -> None:
    """At once after a hiccup, and never longer than it may take to be back after an outage."""
    following = pauses()

    waits = [following() for _ in range(12)]

    longest = [0.05, 0.1, 0.2, 0.4, 0.8, *[1.0] * 7]
    for wait, limit in zip(waits, longest, strict=True):
        assert limit / 2 <= wait <= limit


def test_pauses_may_stay_shorter() -> None:
    """Where somebody waits for the end of each."""
    following = pauses(0.3)

    waits = [following() for _ in range(12)]

    assert all(0.15 <= wait <= 0.3 for wait in waits[3:])


def test_pauses_differ() -> None:
    """Or all clients of a server that comes back would ask it at once."""
    assert len({pauses()() for _ in range(20)}) > 10


def test_what_held_for_a_while_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next outage is another one; a failure soon after a success belongs to the last."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    following = pauses()
    for _ in range(5):
        following()

    now += 4.9
    assert following() > 0.4
    now += 5.1
    assert following() <= 0.05
