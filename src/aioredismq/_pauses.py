"""How long to wait before what an outage prevents is tried again."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# Long enough not to burden a server that is starting, short enough to be back within 2 s of it.
_FIRST = 0.05
_LONGEST = 1.0
# What held so long was good: the next failure is a new outage. Sooner it goes on with the old
# one, or a server that takes everyone in and throws them out would be asked without a pause.
_STEADY = 5.0


def pauses(longest: float = _LONGEST) -> Callable[[], float]:
    """Seconds to wait before each further try: doubling, with jitter, never above 1 s.

    It begins anew by itself when it was not asked for 5 s.

    Args:
        longest: Another limit than 1 s.
    """
    pause = _FIRST
    asked = time.monotonic()

    def following() -> float:
        nonlocal pause, asked
        now = time.monotonic()
        if now - asked > _STEADY:
            pause = _FIRST
        asked = now
        this, pause = pause, min(pause * 2, longest)
        return random.uniform(this / 2, this)

    return following
