from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioredismq import BacklogError, ProducerConfig
from aioredismq._backlog import Backlog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def backlog(count: int = 100, size: int = 10_000, timeout: float = 5.0) -> Backlog:
    """Make one with these bounds."""
    return Backlog(
        ProducerConfig(
            max_waiting=count, max_waiting_bytes=size, produce_timeout=timeout
        )
    )


async def turn_of_the_loop() -> None:
    """Let every task that can go on do so; each may have woken another."""
    for _ in range(5):
        await asyncio.sleep(0)


class Line:
    """Tasks that wait for room and then take it, as sends do."""

    def __init__(self, room: Backlog) -> None:
        """Nobody waits yet."""
        self._room = room
        self.tasks: list[asyncio.Task[None]] = []
        self.let_in: list[int] = []

    async def join(self, size: int = 1) -> asyncio.Task[None]:
        """Let one more wait, with a message of so many bytes."""
        task = asyncio.create_task(self._wait(len(self.tasks), size))
        self.tasks.append(task)
        await turn_of_the_loop()
        return task

    async def _wait(self, number: int, size: int) -> None:
        await self._room.enter(1, size)
        self.let_in.append(number)


@pytest.fixture
async def lines() -> AsyncIterator[list[Line]]:
    """Lines whose tasks end with the test."""
    made: list[Line] = []
    yield made
    for line in made:
        for task in line.tasks:
            task.cancel()
        await asyncio.gather(*line.tasks, return_exceptions=True)


@given(
    count=st.integers(1, 5),
    size=st.integers(1, 100),
    sizes=st.lists(st.integers(0, 150), max_size=12),
)
def test_what_is_let_in_stays_within_the_bounds(
    count: int, size: int, sizes: list[int]
) -> None:
    """Of messages and of bytes; one beyond all bounds may go when nothing else is under way."""
    room = backlog(count, size)
    under_way: list[int] = []

    for message in sizes:
        if not room.is_full(message):
            room.add(1, message)
            under_way.append(message)

    assert len(under_way) <= count
    assert len(under_way) == 1 or sum(under_way) <= size
    assert not sizes or under_way


def test_what_is_answered_makes_room() -> None:
    """As much as it took."""
    room = backlog(2, 10)
    room.add(1, 4)
    room.add(1, 6)

    assert room.is_full(0)
    room.remove(1, 6)
    assert not room.is_full(6)
    assert room.is_full(7)


async def test_those_in_line_are_let_in_in_their_order(lines: list[Line]) -> None:
    """As many as there is room for."""
    room = backlog(2)
    room.add(2, 2)
    lines.append(line := Line(room))
    for _ in range(4):
        await line.join()

    room.remove(1, 1)
    await turn_of_the_loop()
    assert line.let_in == [0]

    room.remove(2, 2)
    await turn_of_the_loop()
    assert line.let_in == [0, 1, 2]


async def test_whoever_comes_later_stands_behind(lines: list[Line]) -> None:
    """A large message is not overtaken for ever by small ones that would fit."""
    room = backlog(size=10)
    room.add(1, 5)
    room.add(1, 5)
    lines.append(line := Line(room))
    await line.join(size=9)
    room.remove(1, 5)
    await turn_of_the_loop()

    assert room.is_full(1)
    await line.join(size=1)
    assert not line.let_in

    room.remove(1, 5)
    await turn_of_the_loop()
    assert line.let_in == [0, 1]


async def test_who_leaves_makes_way_for_those_behind(lines: list[Line]) -> None:
    """They may fit where he did not."""
    room = backlog(size=10)
    room.add(1, 5)
    lines.append(line := Line(room))
    first = await line.join(size=9)
    await line.join(size=1)

    first.cancel()
    await turn_of_the_loop()

    assert line.let_in == [1]


async def test_who_does_not_fit_keeps_his_place(lines: list[Line]) -> None:
    """There is room for a message, but not for its bytes."""
    room = backlog(size=10)
    room.add(1, 5)
    room.add(1, 5)
    lines.append(line := Line(room))
    await line.join(size=9)
    await line.join(size=9)

    room.remove(1, 5)
    await turn_of_the_loop()
    room.remove(1, 5)
    await turn_of_the_loop()
    assert line.let_in == [0]

    room.remove(1, 9)
    await turn_of_the_loop()
    assert line.let_in == [0, 1]


async def test_a_turn_that_is_not_taken_is_the_next_ones(lines: list[Line]) -> None:
    """He was cancelled in the moment he was let in, and nothing else would wake those behind."""
    room = backlog(1)
    room.add(1, 1)
    lines.append(line := Line(room))
    first = await line.join()
    await line.join()

    room.remove(1, 1)
    first.cancel()
    await turn_of_the_loop()

    assert line.let_in == [1]


async def test_who_leaves_the_line_is_forgotten(lines: list[Line]) -> None:
    """Cancelled before it was his turn; those behind move up."""
    room = backlog(1)
    room.add(1, 1)
    lines.append(line := Line(room))
    first = await line.join()
    await line.join()

    first.cancel()
    await turn_of_the_loop()
    assert not line.let_in

    room.remove(1, 1)
    await turn_of_the_loop()
    assert line.let_in == [1]


async def test_a_cancelled_turn_that_comes_up_is_passed_over(lines: list[Line]) -> None:
    """It was never counted, so nothing is to be given back."""
    room = backlog(1)
    room.add(1, 1)
    lines.append(line := Line(room))
    first = await line.join()
    await line.join()
    await line.join()

    first.cancel()
    room.remove(1, 1)
    await turn_of_the_loop()

    assert line.let_in == [1]
    assert room.is_full(1)


async def test_a_cancelled_turn_gives_its_room_back() -> None:
    """All of it."""
    room = backlog(1)
    room.add(1, 1)
    task = asyncio.create_task(room.enter(1, 1))
    await turn_of_the_loop()

    room.remove(1, 1)
    assert room.is_full(1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert not room.is_full(1)


async def test_who_is_let_in_has_the_rest_of_the_time() -> None:
    """Waiting for room and waiting for the answer have one end."""
    room = backlog(1, timeout=5)
    room.add(1, 1)
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(room.enter(1, 1))
    started = loop.time()
    await turn_of_the_loop()
    waits_since = loop.time()
    await asyncio.sleep(0.02)

    room.remove(1, 1)

    assert started <= await task - 5 <= waits_since


async def test_who_is_let_in_with_no_time_left_is_refused() -> None:
    """Nothing was sent, which could not be said a moment later; his room is the next one's."""
    room = backlog(1, timeout=0.05)
    room.add(1, 1)
    task = asyncio.create_task(room.enter(1, 1))
    await asyncio.sleep(0)
    time.sleep(0.06)  # noqa: ASYNC251 -- the loop is late, as on a busy machine

    room.remove(1, 1)

    with pytest.raises(BacklogError):
        await task
    assert not room.is_full(1)


async def test_waiting_has_an_end() -> None:
    """After `produce_timeout`, with what stands in the way; then nobody is in line any more."""
    room = backlog(2, timeout=0.02)
    room.add(1, 5)
    room.add(1, 7)

    with pytest.raises(
        BacklogError,
        match=r"^2 sends \(12 bytes\) have waited for an answer for 0.02 s: Redis is away",
    ):
        await room.enter(1, 1)

    room.remove(2, 12)
    assert not room.is_full(1)
