"""The tasks of one consumer, wired to each other: the only place where floor 7 meets."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

from anyio import CancelScope, create_task_group, move_on_after

from ._clock import ServerClock
from ._dispatcher import Dispatcher
from ._errors import MessageQueueError
from ._group import Group
from ._held import Held
from ._host import outlast
from ._invoker import Invoker
from ._lease import Lease
from ._member import Member
from ._outcome import Release
from ._promoter import Promoter
from ._puller import Puller
from ._read_ahead import ReadAhead
from ._reader import LONGEST_BLOCK, Reader
from ._recoverer import Recoverer
from ._reporter import Reporter
from ._settler import Settler
from ._watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from anyio.abc import TaskGroup

    from ._channel import Channel
    from ._config import ConsumerConfig
    from ._handler import Binding
    from ._message import Entry
    from ._outcome import Failure
    from ._stream import Stream

logger = logging.getLogger("aioredismq")

# Seconds a suspect runs before anything else starts.
_ALONE = 2.0


class Assembly:
    """Build the tasks, start them, and take them down in order."""

    def __init__(
        self,
        stream: Stream,
        channel: Channel,
        binding: Binding,
        config: ConsumerConfig,
        *,
        consumer: str,
        pulls: bool,
        fail: Callable[[BaseException], None],
        cut_off: Callable[[], None],
        is_cancelled: Callable[[], bool],
    ) -> None:
        """Nothing runs before `start()`.

        Args:
            stream: The queue in Redis, open.
            channel: The queue.
            binding: The handler.
            config: How to read, run and settle.
            consumer: Name under which entries become pending.
            pulls: Whether messages are pulled instead of handled.
            fail: Ends the consumer with an error.
            cut_off: Ends it with one when somebody has cancelled a task of it, but not all.
            is_cancelled: Says whether it was cancelled, with all tasks there are.
        """
        self._stream = stream
        self._channel = channel
        self._config = config
        group = channel.group_name(config.group)
        self._member = member = Member(stream, group, consumer)
        self._fail = fail
        self._cut_off = cut_off
        self.held = Held(config.visibility_timeout)
        self._clock = ServerClock(set_ahead=lambda: self._lease.doubt())
        self._group = Group(
            stream,
            channel,
            member,
            self.held,
            latest=config.start == "latest",
            set_clock=self._clock.set,
        )
        self.failed = 0
        """Messages that have failed for good, since the start."""
        self._reporter = Reporter(config.failover_callback)
        self._settler = settler = Settler(
            member,
            held=self.held,
            failover=config.failover,
            keeps_failures=channel.is_of_dead_letters,
            failed=self._failed,
            fatal=fail,
            came_back=lambda: self._promoter.ring(),
        )
        self._lease = Lease(
            member,
            held=self.held,
            visibility_timeout=config.visibility_timeout,
            lost=self._lease_lost,
            is_settling=settler.is_settling,
        )
        self._invoker = invoker = Invoker(
            binding,
            config,
            queue=stream.keys.name,
            group=group,
            original=channel.config.wire == "original",
            ack=settler.ack,
            settle=settler.settle,
            leases=self._lease,
            # What expired as a message does not expire again as a dead letter.
            now=(lambda: None) if channel.is_of_dead_letters else self._clock.now,
            is_cancelled=is_cancelled,
        )
        self.puller = (
            Puller(
                unhandled=invoker.unhandled,
                make=invoker.message,
                decide=invoker.decide,
                settle=settler.settle,
                until_sound=self._lease.until_sound,
            )
            if pulls
            else None
        )
        self._dispatcher = _dispatcher(
            config,
            portion=config.batch_size if binding.is_batch else 1,
            run=invoker.run if self.puller is None else self.puller.run,
            give_back=self._give_back,
            held=self.held,
            until_sound=self._lease.until_sound,
        )
        self._promoter = Promoter(
            member,
            room=self._dispatcher.room,
            wait_for_room=self._wait_for_room,
            deliver=self._deliver_from_lane,
            held=self.held,
            set_clock=self._clock.set,
        )
        self._reader = Reader(
            member,
            open_wire=lambda: channel.connection.reserve(
                stream.keys.stream, longest_block=LONGEST_BLOCK
            ),
            room=self._dispatcher.room,
            wait_for_room=self._wait_for_room_after_lane,
            deliver=self._deliver,
            held=self.held,
            mend=self._group.mend,
        )
        self._recoverer = Recoverer(
            member,
            visibility_timeout=config.visibility_timeout,
            max_crashes=config.max_crashes,
            retention=config.dead_letter_retention,
            held=self.held,
            may_claim=self._lease.may_claim,
            server_time=self._clock.now,
            one_kept_free=self._dispatcher.one_kept_free,
            free_worker=self._dispatcher.free_worker,
            run_suspect=self._run_suspect,
            settle=settler.settle,
            mend=self._group.mend,
        )
        self._watcher = Watcher(self._group.follow)
        self._crew = CancelScope()
        # Set again while they run: one that is cancelled before its first turn says nothing.
        self._crew_ended = asyncio.Event()
        self._crew_ended.set()
        self._no_more_comes_back = asyncio.Event()
        self._no_more_comes_back.set()
        self._tasks: TaskGroup | None = None

    # -- lifetime ------------------------------------------------------------------------------

    async def open(self) -> None:
        """Make the group unless it is there.

        Raises:
            ServerError: Redis refuses, or is away.
        """
        await self._group.open()

    def start(self, tasks: TaskGroup) -> None:
        """Start every task."""
        self._tasks = tasks
        # What has failed is handed back and told even when it was cancelled with all there is.
        for run in (self._settler.run, self._reporter.run):
            lasting = partial(outlast, run, tasks.cancel_scope, self._cut_off)
            self._start(tasks, lasting, run.__qualname__)
        for run in (
            self._work,
            self._lease.run,
            self._reader.run,
            self._bring_back,
            self._watcher.run,
        ):
            self._start(tasks, run, run.__qualname__)
        self._channel.connection.bell.add(self._stream.keys.bell, self._ring)

    async def drain(self, shutdown_timeout: float) -> None:
        """Stop reading, hand back what was not started, let handlers finish.

        Args:
            shutdown_timeout: Seconds this may take.
        """
        self._stop_intake()
        with move_on_after(shutdown_timeout):
            await self._reader.stop()
            await self._dispatcher.finished()

    async def end(self) -> None:
        """Cancel what still runs, hand it back, say the last, and remove the name."""
        self._stop_intake()
        self._crew.cancel()
        await self._crew_ended.wait()
        await self._reader.stop()
        await self._no_more_comes_back.wait()
        await self._settler.flushed()
        if not await self._member.forget():
            await self._hand_back_unseen()
        await self._reporter.told()

    @property
    def is_asked_by_handler(self) -> bool:
        """Whether the current task is one its handlers, or the failover callback, run in."""
        return self._dispatcher.is_here or self._reporter.is_here

    @property
    def unfinished(self) -> str:
        """What the end waits for, for the log."""
        running = self._dispatcher.running
        if running:
            return f"{running} cancelled handlers have not ended"
        return "Redis, or the failover callback, has not answered"

    def close(self) -> None:
        """Listen to nobody any more."""
        self._settler.close()
        self._lease.close()
        if self._tasks is not None:
            self._channel.connection.bell.remove(self._stream.keys.bell, self._ring)

    async def _hand_back_unseen(self) -> None:
        """Hand back what came with a lost or cut off reply, and remove the name then."""
        for in_lane in (False, True):
            self._give_back(
                await self._member.own_pending(in_lane=in_lane, held=lambda _: False)
            )
        await self._settler.flushed()
        if not await self._member.forget():
            logger.warning(
                "consumer %s leaves pending messages behind", self._member.consumer
            )

    def _ring(self) -> None:
        self._promoter.ring()
        self._watcher.ring()

    def _stop_intake(self) -> None:
        self._recoverer.stop()
        self._promoter.stop()
        self._reader.request_stop()
        self._reporter.hold_up_nobody()
        self._give_back(self._dispatcher.close())
        if self.puller is not None:
            self.puller.end()

    # -- how they meet -------------------------------------------------------------------------

    def _give_back(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self._settler.settle(entry, Release())

    def _deliver(self, entries: Sequence[Entry]) -> None:
        entries = self.held.add(entries)
        if self._dispatcher.is_closed:
            self._give_back(entries)
        else:
            self._dispatcher.offer(entries)

    def _deliver_from_lane(self, entries: Sequence[Entry]) -> None:
        self._deliver(entries)
        if self._tasks is not None and self._reader.asked > self._dispatcher.room():
            run = self._reader.reconsider
            self._start(self._tasks, run, run.__qualname__)

    async def _run_suspect(self, entry: Entry, longest: float) -> bool:
        if self._dispatcher.is_closed:
            self._settler.settle(entry, Release())
            return True
        return await self._dispatcher.run_suspect(entry, alone=_ALONE, longest=longest)

    def _lease_lost(self, entry_id: bytes, in_lane: bool) -> bool:
        if self._dispatcher.drop(entry_id, in_lane=in_lane):
            self.held.drop((entry_id,), in_lane=in_lane)
            return False
        self._invoker.lease_lost(entry_id, in_lane)
        if self.puller is not None:
            self.puller.withdraw(entry_id, in_lane=in_lane)
        return True

    async def _wait_for_room(self) -> None:
        if not self._dispatcher.is_closed:
            await self._reporter.keeps_up()
        await self._dispatcher.wait_for_room()

    async def _wait_for_room_after_lane(self) -> None:
        """The lane goes before the stream, or a full stream would starve it."""
        await self._wait_for_room()
        await self._promoter.served()

    def _failed(self, entry: Entry, failure: Failure) -> None:
        self.failed += 1
        self._reporter.report(self._invoker.message(entry), failure)

    async def _work(self) -> None:
        self._crew_ended.clear()
        try:
            with self._crew:
                async with create_task_group() as workers:
                    for _ in range(self._config.concurrency):
                        workers.start_soon(self._dispatcher.work, workers)
        finally:
            self._crew_ended.set()
        if not self._crew.cancel_called:
            # Deaf would be worse than ended.
            msg = "a handler has cancelled the task it ran in, and then returned"
            self._fail(MessageQueueError(msg))

    async def _bring_back(self) -> None:
        """Run what brings entries beside the reader; what it brings at the end is handed back."""
        self._no_more_comes_back.clear()
        try:
            async with create_task_group() as tasks:
                for run in (self._promoter.run, self._recoverer.run):
                    self._start(tasks, run, run.__qualname__)
        finally:
            self._no_more_comes_back.set()

    def _start(
        self, tasks: TaskGroup, run: Callable[[], Awaitable[None]], name: str
    ) -> None:
        """Start a task, under a name that says in a dump of all tasks what it is."""
        tasks.start_soon(self._guard, run, name=f"aioredismq {name}")

    async def _guard(self, task: Callable[[], Awaitable[None]]) -> None:
        """Let no task take the others down: what it cannot mend ends the consumer in order."""
        try:
            await task()
        except asyncio.CancelledError:
            if self._tasks is None or self._tasks.cancel_scope.cancel_called:
                raise
            self._cut_off()
        except Exception as error:  # noqa: BLE001 -- told to whoever waits for the consumer
            self._fail(error)


def _dispatcher(
    config: ConsumerConfig,
    *,
    portion: int,
    run: Callable[[list[Entry]], Awaitable[None]],
    give_back: Callable[[Sequence[Entry]], None],
    held: Held,
    until_sound: Callable[[], Awaitable[None]],
) -> Dispatcher:
    ahead = config.max_read_ahead if config.count is None else config.count
    at_once = config.count or max(config.max_read_ahead, config.concurrency)
    return Dispatcher(
        concurrency=config.concurrency,
        portion=portion,
        run=run,
        read_ahead=ReadAhead(
            slots=config.concurrency, most=ahead, most_bytes=config.max_read_ahead_bytes
        ),
        most_at_once=at_once,
        give_back=give_back,
        held=held,
        until_sound=until_sound,
    )
