"""Long-lived workers: each takes an entry, runs the handler, and says what became of it."""

from __future__ import annotations

import asyncio
import decimal
from collections import deque
from contextlib import contextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING

from anyio import move_on_after

from ._clock import elapsed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from contextvars import Context

    from anyio.abc import TaskGroup

    from ._held import Held
    from ._message import Entry
    from ._read_ahead import ReadAhead

# A worker whose handlers never wait gives the event loop a turn after this many messages: about
# a tenth of a millisecond of the fastest ones.
_TURN = 32
# Seconds after which none starts in the same turn of the event loop: slow ones that never wait
# would keep it for as long as all of them together need, and leases would run out meanwhile.
_LONGEST_TURN = 0.01
# Seconds between looks at what waits: about the time handlers need to turn out to be slow.
_LOOK_AFTER = 0.25


class Dispatcher:
    """Share entries out to workers and say how many more there is room for.

    Workers are woken one by the other: one wake-up is pending at most, and a worker that finds
    more work wakes the next before it starts. A task per message would cost more than most
    handlers.
    """

    def __init__(
        self,
        *,
        concurrency: int,
        portion: int,
        run: Callable[[list[Entry]], Awaitable[None]],
        read_ahead: ReadAhead,
        most_at_once: int,
        give_back: Callable[[list[Entry]], None],
        held: Held,
        until_sound: Callable[[], Awaitable[None]],
    ) -> None:
        """Nothing runs before `work()`.

        Args:
            concurrency: Workers, that is handlers at once.
            portion: Entries a worker takes at once, at most; 1 unless the handler is a batch one.
            run: Runs the handler on entries and settles them. Raises nothing.
            read_ahead: Says how many may wait.
            most_at_once: Entries asked for in one read, at most.
            give_back: Takes what was read ahead for handlers that turned out to be slow.
            held: Knows until when nothing that waits can be somebody else's.
            until_sound: Returns when that is known again.
        """
        self._concurrency = concurrency
        self._portion = portion
        self._run = run
        self._read_ahead = read_ahead
        self._most_at_once = most_at_once
        self._give_back = give_back
        self._held = held
        self._until_sound = until_sound
        self._look_again: asyncio.TimerHandle | None = None
        self._last_change = 0.0
        self._turn_ends: float | None = None
        self._entries: deque[Entry] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._workers: set[asyncio.Task[None] | None] = set()
        self._running = 0
        self._waking = False
        self._suspect: Entry | None = None
        self._suspect_running: Entry | None = None
        self._suspect_ended = asyncio.Event()
        self._holding = False
        self._kept_free = 0
        self._closed = False
        self._room_again = asyncio.Event()
        self._ended = asyncio.Event()
        self.handled = 0
        """Entries whose handler has ended, since the start."""

    @property
    def running(self) -> int:
        """Handlers running now."""
        return self._running

    @property
    def waiting(self) -> int:
        """Entries read and not started."""
        return len(self._entries)

    @property
    def is_here(self) -> bool:
        """Whether it is asked by one of its workers: by a handler."""
        return asyncio.current_task() in self._workers

    @property
    def is_closed(self) -> bool:
        """Whether it starts nothing more."""
        return self._closed

    # -- intake --------------------------------------------------------------------------------

    def room(self) -> int:
        """Say how many entries to ask for now; 0 when it is not worth a read yet."""
        if self._closed:
            return 0
        free = (self._concurrency - self._running) * self._portion
        ahead = self._allowed()
        room = free + ahead - len(self._entries)
        # With much in stock a read for one more is not worth its round trip.
        if room < 1 or (len(self._entries) > free and room < ahead // 4):
            return 0
        return min(room, self._most_at_once)

    async def wait_for_room(self) -> None:
        """Return when there is room, or when the intake was closed."""
        while not self._closed and self.room() < 1:
            self._room_again.clear()
            await self._room_again.wait()

    def offer(self, entries: Sequence[Entry]) -> None:
        """Take entries in; they start as workers become free."""
        for entry in entries[:4]:
            self._read_ahead.arrived(sum(map(len, entry.fields)))
        self._entries.extend(entries)
        self._wake_one()
        if self._look_again is None:
            loop = asyncio.get_running_loop()
            self._look_again = loop.call_later(_LOOK_AFTER, self._look_for_surplus)

    def close(self) -> list[Entry]:
        """Start no more; returns what was not started."""
        self._closed = True
        if self._look_again is not None:
            self._look_again.cancel()
        unstarted = list(self._entries)
        self._entries.clear()
        if self._suspect is not None:
            unstarted.append(self._suspect)
            self._suspect = None
            self._suspect_ended.set()
        self._room_again.set()
        self._look_for_end()
        return unstarted

    def drop(self, entry_id: bytes, *, in_lane: bool) -> bool:
        """Start an entry no more: it is somebody else's. False when it does not wait here."""
        waiting = self._suspect
        if waiting is None or waiting.id != entry_id or waiting.in_lane is not in_lane:
            found = (
                e for e in self._entries if e.id == entry_id and e.in_lane is in_lane
            )
            waiting = next(found, None)
            if waiting is None:
                return False
            self._entries.remove(waiting)
        else:
            self._suspect = None
            self._suspect_ended.set()
        self._room_again.set()
        return True

    @property
    def has_free_worker(self) -> bool:
        """Whether an entry would start now."""
        return not self._closed and self._running < self._concurrency

    @contextmanager
    def one_kept_free(self) -> Iterator[None]:
        """Leave one worker without work in the block, from when it has ended its handler.

        With a backlog there is always more to start, and never a free worker by chance.
        """
        self._kept_free = 1
        try:
            yield
        finally:
            self._kept_free = 0
            if self._entries:
                self._wake_one()

    async def free_worker(self, within: float) -> bool:
        """Wait for a free worker, so many seconds at most, and say whether there is one."""
        with move_on_after(within):
            while not self._closed and not self.has_free_worker:
                self._room_again.clear()
                await self._room_again.wait()
        return self.has_free_worker

    async def run_suspect(self, entry: Entry, *, alone: float, longest: float) -> bool:
        """Run an entry its former process may have died of, and return when the next may start.

        Nothing else starts in its first `alone` seconds: what kills, kills at once, and then
        nothing else should be under way that has just begun. What runs already goes on.

        Args:
            entry: The suspect. It goes before everything that waits.
            alone: Seconds.
            longest: Seconds after which the next suspect may start although this one has not
                ended.

        Returns:
            Whether it has ended.
        """
        self._suspect = entry
        self._suspect_ended.clear()
        self._holding = True
        try:
            self._wake_one()
            with move_on_after(alone):
                await self._suspect_ended.wait()
        finally:
            self._holding = False
        if self._entries:
            self._wake_one()
        with move_on_after(max(0.0, longest - alone)):
            await self._suspect_ended.wait()
        return self._suspect_ended.is_set()

    async def finished(self) -> None:
        """Return when the intake is closed and every handler has ended."""
        await self._ended.wait()

    # -- workers -------------------------------------------------------------------------------

    async def work(self, tasks: TaskGroup) -> None:
        """Be one worker, until cancelled.

        What a handler has set in its context must not be seen by the next: then another worker, in
        the context this one began in, takes its place.

        Args:
            tasks: Where that one is started.
        """
        # Made on first use in each context: who reckons with decimals has changed nothing.
        decimal.getcontext()
        context = copy_context()
        task = asyncio.current_task()
        self._workers.add(task)
        try:
            await self._work_in(context)
        finally:
            self._workers.discard(task)
        context.run(tasks.start_soon, self.work, tasks)

    async def _work_in(self, context: Context) -> None:
        """Work until the context has changed."""
        since_turn = 0
        while not _has_left(context):
            if not self._has_work():
                since_turn = 0
                await self._wait_for_work()
            begun = elapsed()
            if not self._may_start(begun):
                await self._wait_to_start(begun)
                continue
            portion = self._take()
            if self._entries:
                self._wake_one()
            if not self._running:
                self._last_change = begun
            self._running += 1
            try:
                await self._run(portion)
            finally:
                self._end(portion, begun)
            since_turn += 1
            if since_turn >= _TURN:
                since_turn = 0
                await asyncio.sleep(0)

    def _may_start(self, now: float) -> bool:
        if self._turn_ends is None:
            self._turn_ends = now + _LONGEST_TURN
            # Called in the next turn, before the workers that leave this one to others.
            asyncio.get_running_loop().call_soon(self._end_turn)
        return now <= self._turn_ends and now <= self._held.sound_until

    async def _wait_to_start(self, now: float) -> None:
        if now > self._held.sound_until:
            await self._until_sound()
        else:
            await asyncio.sleep(0)

    def _end_turn(self) -> None:
        self._turn_ends = None

    async def _wait_for_work(self) -> None:
        while not self._has_work():
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle.append(future)
            try:
                await future
            finally:
                self._waking = False

    def _has_work(self) -> bool:
        if self._suspect is not None:
            return True
        free = self._concurrency - self._running
        return bool(self._entries) and not self._holding and free > self._kept_free

    def _end(self, portion: list[Entry], begun: float) -> None:
        now = self._last_change = elapsed()
        self._running -= 1
        self.handled += len(portion)
        self._read_ahead.ended(now - begun, len(portion))
        if portion[0] is self._suspect_running:
            self._suspect_running = None
            self._suspect_ended.set()
        if self._closed:
            self._look_for_end()
        elif not self._room_again.is_set():
            self._room_again.set()

    def _take(self) -> list[Entry]:
        if self._suspect is not None:
            entry = self._suspect_running = self._suspect
            self._suspect = None
            return [entry]
        if self._portion == 1:
            return [self._entries.popleft()]
        count = min(self._portion, len(self._entries))
        return [self._entries.popleft() for _ in range(count)]

    def _wake_one(self) -> None:
        if self._waking:
            return
        while self._idle:
            future = self._idle.popleft()
            if not future.done():
                self._waking = True
                future.set_result(None)
                return

    def _allowed(self) -> int:
        now = elapsed()
        silent = now - self._last_change if self._running else 0.0
        return self._read_ahead.allowed(now, silent)

    def _look_for_surplus(self) -> None:
        """Give back what was read ahead at a pace that is over: others may be idle."""
        self._look_again = None
        free = (self._concurrency - self._running) * self._portion
        ahead = self._allowed()
        if len(self._entries) > free + 2 * ahead:
            surplus = len(self._entries) - free - ahead
            self._give_back([self._entries.pop() for _ in range(surplus)][::-1])
        if self._entries:
            loop = asyncio.get_running_loop()
            self._look_again = loop.call_later(_LOOK_AFTER, self._look_for_surplus)

    def _look_for_end(self) -> None:
        if self._closed and not self._running:
            self._ended.set()


def _has_left(context: Context) -> bool:
    """Say whether anything is set otherwise than there; nothing set is one comparison."""
    try:
        return copy_context() != context
    except Exception:  # noqa: BLE001 -- values are compared, and need not be comparable
        return True
