"""`python -m aioredismq demo`: the main job, between processes, with a summary that was counted."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import deque
from contextlib import closing
from dataclasses import dataclass
from secrets import token_hex
from typing import TYPE_CHECKING

import anyio

from ._connection import Connection
from ._demo_crew import Crew
from ._demo_display import Snapshot, choose_display
from ._demo_feed import Feed
from ._demo_latency import merge
from ._demo_server import chosen_server, is_used, look_at, remove
from ._demo_summary import Summary
from ._demo_tally import Figures, Tally
from ._errors import ConfigurationError, MessageQueueError
from ._queue import RedisMessageQueue
from ._terminal import complain, until_signal, write

if TYPE_CHECKING:
    from pathlib import Path

    from ._demo_display import Display
    from ._demo_feed import Source
    from ._demo_server import Leftovers, Server

# How often what the workers recorded is read: the end of a run is seen that late.
_LOOK_EVERY = 0.05

# Seconds over which the rate is taken: long enough to be steady, short enough to show a change.
_RATE_WINDOW = 2.0

# Seconds the server gets to answer the last questions.
_LAST_QUESTIONS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What the user chose; `demo --help` explains each."""

    messages: int | None
    producers: int
    consumers: int
    concurrency: int
    rate: float
    fail: float
    patience: float
    url: str | None
    port: int | None
    queue: str | None
    source: Source | None
    report: Path | None


def run_demo(options: DemoOptions) -> int:
    """Run it; returns the exit code.

    Raises:
        MessageQueueError: There is no server, or it refuses.
        OSError: Nobody reads the output any more, or the input cannot be read.
    """
    with chosen_server(options.url, options.port) as server:
        summary = asyncio.run(_Run(options, server).run())
    write(summary.text())
    if options.report is not None:
        _write_report(options.report, summary)
    return summary.exit_code


def _write_report(path: Path, summary: Summary) -> None:
    try:
        path.write_text(summary.report() + "\n")
    except OSError as error:
        error.filename = str(path)  # a failed write does not know it
        raise


class _Run:
    """One run, from the first process to the last count."""

    def __init__(self, options: DemoOptions, server: Server) -> None:
        self._options = options
        self._server = server
        self._name = options.queue or f"aioredismq-demo-{token_hex(4)}"
        self._feed = Feed(options.messages, options.source)
        self._tally = Tally()
        self._figures = Figures()
        self._crew: Crew
        self._connection = Connection(server.url)
        self._queue = RedisMessageQueue(self._name, self._connection)
        self._is_open = self._is_ours = False
        self._leftovers: Leftovers | None = None
        self._trouble = ""
        self._began = self._progressed = time.monotonic()
        self._rates = deque([(self._began, 0)])

    async def run(self) -> Summary:
        """Run until all is handled, it is no use, or a signal comes; then count."""
        options = self._options
        async with Crew(options.producers, options.consumers) as self._crew:
            try:
                with closing(choose_display()) as display:
                    number = await until_signal(lambda: self._work(display))
            finally:
                impatient = await until_signal(self._wind_up)
        return self._summary(number or impatient)

    # -- while it runs -------------------------------------------------------------------------

    async def _work(self, display: Display) -> None:
        """Open the queue, start everybody, and watch until it is over."""
        options = self._options
        await self._connection.open()
        self._is_open = True
        if options.queue is not None and await is_used(self._connection, self._name):
            msg = (
                f"queue {self._name!r} is there already: the demo makes and removes its "
                "queue, so name another or none"
            )
            raise ConfigurationError(msg)
        self._is_ours = True  # from here on something may have been made
        try:
            await self._queue.initialize()
        except MessageQueueError:
            self._is_ours = False
            raise
        common = ("--queue", self._name)
        await self._crew.start(
            self._server.url,
            producer=(*common, "--rate", str(options.rate / options.producers)),
            consumer=(
                *common,
                *(
                    "--concurrency",
                    str(options.concurrency),
                    "--fail",
                    str(options.fail),
                ),
            ),
        )
        self._began = self._progressed = time.monotonic()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._feed_producers)
            await self._watch(display)
            tasks.cancel_scope.cancel()

    async def _feed_producers(self) -> None:
        await self._feed.run(self._crew.producers)
        for producer in self._crew.producers:
            producer.dismiss()

    async def _watch(self, display: Display) -> None:
        """Count and show, until everything is handled or it is no use to wait."""
        shown = 0.0
        while not self._is_over():
            now = time.monotonic()
            if now - shown >= display.every:
                display.show(self._snapshot())
                shown = now
            with anyio.move_on_after(_LOOK_EVERY):
                await self._crew.wait_for_change()
            self._read_records()
        display.show(self._snapshot())

    def _is_over(self) -> bool:
        if not any(consumer.is_alive for consumer in self._crew.consumers):
            self._trouble = "no consumer is left"
            return True
        if not self._figures.waiting:
            if any(producer.is_alive for producer in self._crew.producers):
                return False
            if not self._feed.is_done:
                self._trouble = "no producer is left"
            return True
        if time.monotonic() - self._progressed > self._options.patience:
            self._trouble = f"no progress for {self._options.patience:g} s"
            return True
        return False

    def _read_records(self) -> None:
        """Count what the processes have recorded since the last time."""
        for producer in self._crew.producers:
            self._tally.produced(producer.records.read_new())
        for consumer in self._crew.consumers:
            self._tally.settled(consumer.records.read_new())
        figures = self._tally.figures()
        if figures != self._figures:
            self._figures = figures
            self._progressed = time.monotonic()

    def _snapshot(self) -> Snapshot:
        now = time.monotonic()
        self._rates.append((now, self._figures.handled))
        while now - self._rates[0][0] > _RATE_WINDOW and len(self._rates) > 2:
            self._rates.popleft()
        since, before = self._rates[0]
        return Snapshot(
            elapsed=now - self._began,
            expected=self._feed.expected,
            figures=self._figures,
            rate=(self._figures.handled - before) / (now - since) if now > since else 0,
            latency=merge(consumer.latency for consumer in self._crew.consumers),
            workers=self._workers(),
        )

    # -- at its end ----------------------------------------------------------------------------

    async def _wind_up(self) -> None:
        """Let everybody finish, ask the server what is left, and remove the queue."""
        crew = self._crew
        for producer in crew.producers:
            producer.end(signal.SIGTERM)
        try:
            if not self._trouble:  # else nobody needs the other
                await crew.dismiss(crew.producers)
            await crew.dismiss(crew.workers)
        finally:
            self._read_records()
            if self._is_open:
                await self._leave_server()

    async def _leave_server(self) -> None:
        with anyio.move_on_after(_LAST_QUESTIONS, shield=True):
            try:
                if self._is_ours:
                    left = await look_at(self._connection, self._name)
                    self._leftovers = left
                    self._tally.found(left.waiting_numbers, left.dead_numbers)
                    self._figures = self._tally.figures()
                    await remove(self._connection, self._name)
            except MessageQueueError as error:
                complain(f"the queue is left as it is: {error}")
            finally:
                await self._queue.close()
                await self._connection.close()

    def _workers(self) -> list[tuple[str, str, int]]:
        return [
            (worker.name, worker.state, worker.records.count)
            for worker in self._crew.workers
        ]

    def _summary(self, signal_number: int | None) -> Summary:
        workers = self._crew.workers
        return Summary(
            queue=self._name,
            server=self._server.label,
            ordered=self._feed.ordered,
            bad_lines=self._feed.bad_lines,
            figures=self._figures,
            leftovers=self._leftovers,
            seconds=self._progressed - self._began,
            latency=merge(worker.latency for worker in self._crew.consumers),
            workers=self._workers(),
            failed_workers=sum(bool(worker.exit_code) for worker in workers),
            trouble=self._trouble,
            signal_number=signal_number,
        )
