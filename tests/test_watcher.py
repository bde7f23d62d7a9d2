from __future__ import annotations

import asyncio

import pytest
from anyio import create_task_group, fail_after

from aioredismq import ConnectionLostError, PermissionDeniedError, QueueDeletedError
from aioredismq import _watcher as room
from aioredismq._watcher import Watcher
from tests.support import eventually


class Tombstone:
    """What the watcher asks: it counts, and raises what it is told to."""

    def __init__(self, *errors: Exception) -> None:
        """Raise these, one each time, and then nothing."""
        self.asked = 0
        self._errors = list(errors)

    async def __call__(self) -> None:
        """Look."""
        self.asked += 1
        if self._errors:
            raise self._errors.pop(0)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a look follow the last one at once, and nothing be found by the pulse."""
    monkeypatch.setattr(room, "_PULSE", (60.0, 60.0))
    monkeypatch.setattr(room, "_PAUSE", 0.01)


async def test_it_looks_when_the_bell_rings() -> None:
    """A deletion rings it."""
    tombstone = Tombstone(QueueDeletedError("gone"))
    watcher = Watcher(tombstone)

    watcher.ring()

    with fail_after(8), pytest.raises(QueueDeletedError, match="gone"):
        await watcher.run()


async def test_it_looks_from_time_to_time_anyway(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A bell may be lost."""
    monkeypatch.setattr(room, "_PULSE", (0.01, 0.02))

    with fail_after(8), pytest.raises(QueueDeletedError):
        await Watcher(Tombstone(QueueDeletedError("gone"))).run()


async def test_many_rings_are_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of retries in a second ring it, too."""
    monkeypatch.setattr(room, "_PAUSE", 1.0)
    tombstone = Tombstone()
    watcher = Watcher(tombstone)
    async with create_task_group() as tasks:
        tasks.start_soon(watcher.run)
        for _ in range(1000):
            watcher.ring()
            await asyncio.sleep(0)
        assert tombstone.asked == 1
        await eventually(lambda: tombstone.asked == 2)
        tasks.cancel_scope.cancel()


async def test_an_outage_is_waited_out() -> None:
    """It looks again at the next ring."""
    tombstone = Tombstone(ConnectionLostError("away"), QueueDeletedError("gone"))
    watcher = Watcher(tombstone)
    async with create_task_group() as tasks:
        tasks.start_soon(rings, watcher)

        with fail_after(8), pytest.raises(QueueDeletedError):
            await watcher.run()

        tasks.cancel_scope.cancel()


async def rings(watcher: Watcher) -> None:
    """Ring now and then."""
    while True:
        watcher.ring()
        await asyncio.sleep(0.01)


async def test_what_does_not_pass_by_itself_is_raised() -> None:
    """It would never find out."""
    watcher = Watcher(Tombstone(PermissionDeniedError("hmget")))
    watcher.ring()

    with fail_after(8), pytest.raises(PermissionDeniedError):
        await watcher.run()
