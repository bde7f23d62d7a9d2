from __future__ import annotations

import asyncio
import math
import time
from contextlib import asynccontextmanager
from contextvars import Context, ContextVar
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
from anyio import create_task_group, fail_after

from aioredismq._dispatcher import Dispatcher
from aioredismq._held import Held
from aioredismq._message import Entry
from aioredismq._read_ahead import ReadAhead
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence


def entries(count: int, size: int = 10) -> list[Entry]:
    """Make entries, numbered from 0."""
    return [
        Entry(b"%d-0" % at, [b"body", b"x" * size], in_lane=False)
        for at in range(count)
    ]


def number(entry: Entry) -> int:
    """Say which of them it is."""
    return int(entry.id.partition(b"-")[0])


class Work:
    """What the workers run: it remembers, and may be held up."""

    def __init__(self) -> None:
        """Let everything through until `close()`."""
        self.portions: list[list[int]] = []
        self.running = 0
        self.most_at_once = 0
        self.open = asyncio.Event()
        self.open.set()

    @property
    def numbers(self) -> list[int]:
        """What was started, in order."""
        return [one for portion in self.portions for one in portion]

    async def __call__(self, portion: list[Entry]) -> None:
        """Run one portion."""
        self.portions.append([number(entry) for entry in portion])
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        try:
            await self.open.wait()
        finally:
            self.running -= 1


async def always() -> None:
    """Leases are sound."""


def sound() -> Held:
    """Hold nothing anybody else could have."""
    held = Held()
    held.sound_until = math.inf
    return held


def make(
    run: Callable[[list[Entry]], Awaitable[None]],
    *,
    concurrency: int = 1,
    portion: int = 1,
    most: int = 512,
    most_at_once: int = 512,
    give_back: Callable[[Sequence[Entry]], None] = lambda entries: None,
    held: Held | None = None,
    until_sound: Callable[[], Awaitable[None]] = always,
) -> Dispatcher:
    """Make a dispatcher."""
    return Dispatcher(
        concurrency=concurrency,
        portion=portion,
        run=run,
        read_ahead=ReadAhead(slots=concurrency, most=most, most_bytes=8_000_000),
        most_at_once=most_at_once,
        give_back=give_back,
        held=sound() if held is None else held,
        until_sound=until_sound,
    )


@asynccontextmanager
async def working(dispatcher: Dispatcher, workers: int = 1) -> AsyncIterator[None]:
    """Let so many workers run in the block."""
    async with create_task_group() as tasks:
        for _ in range(workers):
            tasks.start_soon(dispatcher.work, tasks)
        yield
        tasks.cancel_scope.cancel()


async def test_every_entry_is_run_once_in_order() -> None:
    """One worker takes them as they came."""
    work = Work()
    dispatcher = make(work)

    async with working(dispatcher):
        dispatcher.offer(entries(100))
        await eventually(lambda: dispatcher.handled == 100)

    assert work.numbers == list(range(100))
    assert (dispatcher.running, dispatcher.waiting) == (0, 0)


async def test_as_many_run_at_once_as_there_are_workers() -> None:
    """Each woken worker wakes the next before it starts, so all of them get to work."""
    work = Work()
    work.open.clear()
    dispatcher = make(work, concurrency=5)

    async with working(dispatcher, 5):
        dispatcher.offer(entries(20))
        await eventually(lambda: work.running == 5)
        work.open.set()
        await eventually(lambda: dispatcher.handled == 20)

    assert work.most_at_once == 5
    assert sorted(work.numbers) == list(range(20))


@pytest.mark.parametrize("pieces", [1, 3, 20])
async def test_no_wake_up_is_lost_between_offers(pieces: int) -> None:
    """However the entries come in, idle workers are woken for them."""
    work = Work()
    dispatcher = make(work, concurrency=4)

    async with working(dispatcher, 4):
        for entry in entries(60):
            dispatcher.offer([entry])
            if number(entry) % pieces == 0:
                await asyncio.sleep(0)
        await eventually(lambda: dispatcher.handled == 60)

    assert sorted(work.numbers) == list(range(60))


async def test_a_worker_takes_a_portion_and_waits_for_no_more() -> None:
    """A batch is what is there, up to its size."""
    work = Work()
    dispatcher = make(work, portion=10)

    async with working(dispatcher):
        dispatcher.offer(entries(25))
        await eventually(lambda: dispatcher.handled == 25)

    assert [len(portion) for portion in work.portions] == [10, 10, 5]


async def test_there_is_room_for_what_the_workers_can_start() -> None:
    """Nothing is read ahead before the handlers were measured."""
    work = Work()
    work.open.clear()
    dispatcher = make(work, concurrency=3)

    async with working(dispatcher, 3):
        assert dispatcher.room() == 3
        dispatcher.offer(entries(2))
        await eventually(lambda: work.running == 2)
        assert dispatcher.room() == 1
        dispatcher.offer(entries(1))
        await eventually(lambda: work.running == 3)
        assert dispatcher.room() == 0
        work.open.set()


async def test_a_batch_handler_has_room_for_whole_batches() -> None:
    """Each free worker could take a full one."""
    dispatcher = make(Work(), concurrency=2, portion=50)

    assert dispatcher.room() == 100


async def test_no_read_asks_for_more_than_it_may_bring() -> None:
    """`count` bounds one read, whatever room there is."""
    dispatcher = make(Work(), concurrency=16, most_at_once=5)

    assert dispatcher.room() == 5


async def test_a_large_stock_is_not_topped_up_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A read for one more is worth its round trip only when little is left."""
    monkeypatch.setattr(ReadAhead, "allowed", lambda self, now, silent=0.0: 100)
    work = Work()
    work.open.clear()
    dispatcher = make(work)
    async with working(dispatcher):
        dispatcher.offer(entries(1))
        await eventually(lambda: work.running == 1)
        empty = dispatcher.room()
        dispatcher.offer(entries(80))
        well_stocked = dispatcher.room()
        while dispatcher.waiting > 70:  # the stock shrinks, as if it were being handled
            dispatcher._entries.pop()
        less = dispatcher.room()
        work.open.set()

    assert (empty, well_stocked, less) == (100, 0, 30)


async def test_who_waits_for_room_is_told_when_a_handler_ends() -> None:
    """The reader asks again as soon as there is something to ask for."""
    work = Work()
    work.open.clear()
    dispatcher = make(work)
    async with working(dispatcher):
        dispatcher.offer(entries(1))
        await eventually(lambda: work.running == 1)
        waiting = asyncio.ensure_future(dispatcher.wait_for_room())
        await asyncio.sleep(0)
        assert not waiting.done()

        work.open.set()

        with fail_after(8):
            await waiting
        assert dispatcher.room() >= 1


async def test_a_closed_dispatcher_gives_back_what_was_not_started() -> None:
    """It starts nothing more, has no room, and tells who waits for it."""
    work = Work()
    work.open.clear()
    dispatcher = make(work)
    async with working(dispatcher):
        dispatcher.offer(entries(5))
        await eventually(lambda: work.running == 1)

        unstarted = dispatcher.close()

        assert [number(entry) for entry in unstarted] == [1, 2, 3, 4]
        assert dispatcher.close() == []
        assert dispatcher.is_closed
        assert dispatcher.room() == 0
        with fail_after(8):
            await dispatcher.wait_for_room()
        work.open.set()
        with fail_after(8):
            await dispatcher.finished()
    assert work.numbers == [0]


async def test_finished_waits_for_the_handler_that_runs() -> None:
    """Draining means that what was started may end."""
    work = Work()
    work.open.clear()
    dispatcher = make(work)
    async with working(dispatcher):
        dispatcher.offer(entries(1))
        await eventually(lambda: work.running == 1)
        dispatcher.close()
        finished = asyncio.ensure_future(dispatcher.finished())
        await asyncio.sleep(0)
        assert not finished.done()

        work.open.set()

        with fail_after(8):
            await finished


async def test_an_idle_dispatcher_is_finished_once_it_is_closed() -> None:
    """There is nothing to wait for."""
    dispatcher = make(Work())

    dispatcher.close()

    with fail_after(8):
        await dispatcher.finished()


async def test_handlers_that_never_wait_leave_the_loop_its_turns() -> None:
    """Other tasks of the application run between them."""
    turns = 0
    seen: list[int] = []

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def instant(portion: list[Entry]) -> None:
        seen.append(turns)

    dispatcher = make(instant)
    async with create_task_group() as tasks:
        tasks.start_soon(dispatcher.work, tasks)
        tasks.start_soon(others)
        dispatcher.offer(entries(320))
        await eventually(lambda: len(seen) == 320)
        tasks.cancel_scope.cancel()

    assert len(set(seen)) >= 5


async def test_slow_handlers_that_never_wait_share_no_turn() -> None:
    """However many workers there are, nobody else waits for more than one of them."""
    in_this_turn = most = 0

    async def others() -> None:
        nonlocal in_this_turn
        while True:
            await asyncio.sleep(0)
            in_this_turn = 0

    async def blocks(portion: list[Entry]) -> None:
        nonlocal in_this_turn, most
        in_this_turn += 1
        most = max(most, in_this_turn)
        time.sleep(0.02)  # noqa: ASYNC251 -- what must not be done

    dispatcher = make(blocks, concurrency=10)
    async with working(dispatcher, 10), create_task_group() as tasks:
        tasks.start_soon(others)
        await turns(3)
        dispatcher.offer(entries(10))
        await eventually(lambda: dispatcher.handled == 10)
        tasks.cancel_scope.cancel()

    assert most == 1


async def test_what_a_handler_sets_in_its_context_the_next_does_not_see() -> None:
    """Neither a value it has set, nor one it has changed to what cannot be compared."""

    class Odd:
        def __eq__(self, other: object) -> bool:
            raise ValueError

        __hash__ = None  # type: ignore[assignment]

    mine: ContextVar[object] = ContextVar("mine", default=None)
    given: ContextVar[object] = ContextVar("given")
    given.set(application := Odd())
    seen: list[tuple[object, bool]] = []

    async def run(portion: list[Entry]) -> None:
        seen.append((mine.get(), given.get() is application))
        await asyncio.sleep(0)
        if len(seen) == 1:
            mine.set("the first one's")
        else:
            given.set(Odd())

    dispatcher = make(run)
    async with working(dispatcher):
        dispatcher.offer(entries(3))
        await eventually(lambda: dispatcher.handled == 3)

    assert seen == [(None, True)] * 3


async def test_who_reckons_with_decimals_keeps_his_worker() -> None:
    """Their context is made on first use: nothing a handler has changed."""
    workers: set[object] = set()

    async def run(portion: list[Entry]) -> None:
        workers.add(asyncio.current_task())
        assert Decimal(1) / 8 == Decimal("0.125")

    async def application() -> None:
        dispatcher = make(run)
        async with working(dispatcher):
            dispatcher.offer(entries(3))
            await eventually(lambda: dispatcher.handled == 3)

    await asyncio.create_task(application(), context=Context())  # nobody has yet

    assert len(workers) == 1


# What was read ahead in vain.


async def test_what_was_read_ahead_is_given_back_when_handlers_become_slow() -> None:
    """The pace it was read for is over: others may be idle. The oldest stay."""
    work = Work()
    back: list[Entry] = []
    dispatcher = make(work, give_back=back.extend)
    async with working(dispatcher):
        while not dispatcher.room() > 100:
            dispatcher.offer(entries(500))
            await eventually(lambda: not dispatcher.waiting)
        work.portions.clear()
        work.open.clear()

        dispatcher.offer(entries(100))
        await eventually(lambda: len(back) > 90)
        work.open.set()
        await eventually(lambda: not dispatcher.waiting)

    handled = work.numbers
    assert handled == list(range(len(handled)))
    assert sorted(handled + [number(entry) for entry in back]) == list(range(100))


async def test_a_closed_dispatcher_looks_for_no_surplus() -> None:
    """What waits was given back by closing."""
    work = Work()
    work.open.clear()
    back: list[Entry] = []
    dispatcher = make(work, give_back=back.extend)
    async with working(dispatcher):
        dispatcher.offer(entries(100))
        await eventually(lambda: work.running == 1)

        assert len(dispatcher.close()) == 99

        assert dispatcher._look_again is None or dispatcher._look_again.cancelled()
        work.open.set()
    assert not back


# Suspects.


async def test_a_suspect_goes_before_everything_that_waits() -> None:
    """And alone: nothing else starts in its first seconds; what runs already goes on."""
    work = Work()
    work.open.clear()
    dispatcher = make(work, concurrency=2)
    async with working(dispatcher, 2):
        [before, suspect, *rest] = entries(5)
        dispatcher.offer([before])
        await eventually(lambda: work.running == 1)
        assert dispatcher.has_free_worker
        running = asyncio.ensure_future(
            dispatcher.run_suspect(suspect, alone=60.0, longest=60.0)
        )
        await asyncio.sleep(0)
        dispatcher.offer(rest)
        await eventually(lambda: work.running == 2)
        assert not dispatcher.has_free_worker
        await turns(20)
        assert work.numbers == [0, 1]

        work.open.set()

        with fail_after(8):
            assert await running
        await eventually(lambda: dispatcher.handled == 5)
    assert work.numbers == [0, 1, 2, 3, 4]


async def test_what_waits_behind_a_suspect_starts_after_a_while() -> None:
    """A suspect may be innocent, and take an hour."""
    work = Work()
    work.open.clear()
    dispatcher = make(work, concurrency=3)
    async with working(dispatcher, 3):
        [suspect, *rest] = entries(3)
        running = asyncio.ensure_future(
            dispatcher.run_suspect(suspect, alone=0.05, longest=60.0)
        )
        await asyncio.sleep(0)
        dispatcher.offer(rest)

        await eventually(lambda: work.running == 3)

        assert not running.done()
        work.open.set()
        with fail_after(8):
            assert await running


async def test_the_next_suspect_may_start_although_one_still_runs() -> None:
    """After the longest time it is waited for; it is told apart by the answer."""
    work = Work()
    work.open.clear()
    dispatcher = make(work, concurrency=2)
    async with working(dispatcher, 2):
        first, second = entries(2)

        with fail_after(8):
            assert not await dispatcher.run_suspect(first, alone=0.01, longest=0.03)
            assert not await dispatcher.run_suspect(second, alone=0.01, longest=0.03)

        assert work.numbers == [0, 1]
        work.open.set()


async def test_a_worker_is_kept_free_although_more_waits() -> None:
    """It stays so from when its handler has ended; the others go on, and it too afterwards."""
    gate = asyncio.Semaphore(0)

    async def run(portion: list[Entry]) -> None:
        await gate.acquire()

    dispatcher = make(run, concurrency=2)
    async with working(dispatcher, 2):
        dispatcher.offer(entries(9))
        await eventually(lambda: dispatcher.running == 2)
        with dispatcher.one_kept_free():
            assert not await dispatcher.free_worker(0.01)

            gate.release()
            with fail_after(8):
                assert await dispatcher.free_worker(60.0)

            for _ in range(3):
                gate.release()
            await eventually(lambda: dispatcher.handled == 4)
            assert dispatcher.running == 1
        await eventually(lambda: dispatcher.running == 2)


async def test_nobody_waits_for_a_free_worker_of_a_closed_dispatcher() -> None:
    """There will be none."""
    work = Work()
    work.open.clear()
    dispatcher = make(work)
    async with working(dispatcher):
        dispatcher.offer(entries(1))
        await eventually(lambda: work.running == 1)
        waiting = asyncio.ensure_future(dispatcher.free_worker(60.0))
        await asyncio.sleep(0)

        dispatcher.close()

        with fail_after(8):
            assert not await waiting
        work.open.set()


async def test_a_suspect_that_was_not_started_is_given_back() -> None:
    """With the rest, when the intake is closed."""
    work = Work()
    dispatcher = make(work)
    [suspect, *rest] = entries(3)
    running = asyncio.ensure_future(
        dispatcher.run_suspect(suspect, alone=60.0, longest=60.0)
    )
    await asyncio.sleep(0)
    dispatcher.offer(rest)

    unstarted = dispatcher.close()

    with fail_after(8):
        await running
    assert sorted(number(entry) for entry in unstarted) == [0, 1, 2]
    assert not dispatcher.has_free_worker


async def turns(count: int) -> None:
    """Let the event loop turn so many times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_nothing_starts_before_leases_are_known_to_be_sound() -> None:
    """After a pause of the process somebody else may have what waits; that is dropped then."""
    work = Work()
    held, renewed = sound(), asyncio.Event()
    asked = 0

    async def until_sound() -> None:
        nonlocal asked
        asked += 1
        await renewed.wait()

    held.sound_until = 0.0
    dispatcher = make(work, concurrency=2, held=held, until_sound=until_sound)
    async with working(dispatcher, workers=2):
        dispatcher.offer(entries(4))
        await eventually(lambda: asked > 0)
        assert work.numbers == []

        assert dispatcher.drop(b"2-0", in_lane=False)
        assert not dispatcher.drop(b"2-0", in_lane=False)
        assert not dispatcher.drop(b"1-0", in_lane=True)
        held.sound_until = math.inf
        renewed.set()

        await eventually(lambda: len(work.numbers) == 3)
    assert work.numbers == [0, 1, 3]
