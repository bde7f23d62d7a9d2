from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from aioredismq import NotInitializedError
from aioredismq._lifetime import Lifetime
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Callable


class Shared:
    """What is shared, and how often it was opened and ended."""

    def __init__(self) -> None:
        """Nobody uses it."""
        self.begun = 0
        self.opened = 0
        self.ended = 0
        self.is_needed = False
        self.lifetime = Lifetime(
            self._live, begin=self._begin, is_needed=lambda: self.is_needed
        )

    def _begin(self) -> None:
        self.begun += 1

    async def _live(self, ready: Callable[[], None]) -> None:
        self.opened += 1
        ready()
        try:
            await self.lifetime.until_closed()
        finally:
            self.ended += 1


def cancel_ours() -> None:
    """Do as `asyncio.run` does at its end."""
    for task in asyncio.all_tasks():
        if task.get_name().startswith("aioredismq"):
            task.cancel()


async def test_the_first_opens_it_and_the_last_closes_it() -> None:
    """As often as it comes to that, on one event loop."""
    shared = Shared()
    for round_ in (1, 2):
        await shared.lifetime.open()
        await shared.lifetime.open()
        await shared.lifetime.close()
        assert (shared.begun, shared.opened, shared.ended) == (1, round_, round_ - 1)
        shared.lifetime.check()

        await shared.lifetime.close()

        assert (shared.opened, shared.ended) == (round_, round_)
        with pytest.raises(NotInitializedError):
            shared.lifetime.check()


def test_each_event_loop_begins_anew() -> None:
    """What belonged to the last one is of no use to the next."""
    shared = Shared()

    async def use() -> None:
        await shared.lifetime.open()
        await shared.lifetime.close()

    asyncio.run(use())
    asyncio.run(use())

    assert (shared.begun, shared.opened, shared.ended) == (2, 2, 2)


def test_the_end_of_the_program_ends_what_nobody_closes() -> None:
    """Nobody has anything to say over it: the program must not wait for ever."""
    shared = Shared()

    asyncio.run(shared.lifetime.open())

    assert shared.ended == 1


@pytest.mark.parametrize("users", [1, 2])
async def test_it_outlasts_the_end_of_the_program_for_those_who_need_it(
    users: int,
) -> None:
    """Until they say that they do not, or the last user has closed it."""
    shared = Shared()
    shared.is_needed = True
    for _ in range(users):
        await shared.lifetime.open()

    cancel_ours()
    for _ in range(5):
        await asyncio.sleep(0)
    assert shared.ended == 0
    shared.lifetime.left()
    assert shared.ended == 0

    if users == 1:
        await shared.lifetime.close()
    else:
        shared.is_needed = False
        shared.lifetime.left()
    await eventually(lambda: shared.ended == 1)


async def test_those_who_need_it_hear_that_it_was_cancelled() -> None:
    """Once: it waits for them, and whoever has cancelled it may wait for it."""
    heard = 0

    def hear() -> None:
        nonlocal heard
        heard += 1

    async def live(ready: Callable[[], None]) -> None:
        ready()
        await lifetime.until_closed()

    lifetime = Lifetime(live, begin=lambda: None, is_needed=lambda: True, cut_off=hear)
    lifetime.cut_off()  # nothing is there yet
    await lifetime.open()

    lifetime.cut_off()
    await eventually(lambda: heard == 1)
    lifetime.cut_off()
    for _ in range(5):
        await asyncio.sleep(0)

    assert heard == 1
    lifetime.check()
    await lifetime.close()


async def test_who_opens_it_after_all_that_has_a_new_one() -> None:
    """And the new one is not ended because somebody leaves it."""
    shared = Shared()
    shared.is_needed = True
    await shared.lifetime.open()
    cancel_ours()
    await asyncio.sleep(0)
    shared.is_needed = False
    shared.lifetime.left()

    await shared.lifetime.open()
    shared.lifetime.left()
    await asyncio.sleep(0)

    assert (shared.opened, shared.ended) == (2, 1)
    await shared.lifetime.close()
    await shared.lifetime.close()
    assert shared.ended == 2


async def test_who_is_cancelled_while_opening_it_leaves_nothing_open() -> None:
    """It does not wait for somebody who needs it: that is the one who was cancelled."""
    shared = Shared()
    shared.is_needed = True
    opening = asyncio.ensure_future(shared.lifetime.open())
    await asyncio.sleep(0)

    opening.cancel()

    with pytest.raises(asyncio.CancelledError):
        await opening
    assert shared.opened == shared.ended
    with pytest.raises(NotInitializedError):
        shared.lifetime.check()
