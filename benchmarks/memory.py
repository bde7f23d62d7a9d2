"""How memory grows with the messages a process produces or consumes, and what the server keeps.

Each measurement is a new process that produces all messages, then a new one that consumes
them. Growth is the largest resident set after the first quarter of the messages above the one
at the end of that quarter: what is needed for the work as such is there by then. The server's
share is MEMORY USAGE of all keys of the queue per message, when all are stored and when all have
been consumed (the naive loop deletes nothing). The naive loops get a tenth of the messages, to
take a similar time.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import secrets
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil
from redis.asyncio import Redis

import _naive
from _harness import (
    Options,
    Report,
    Spread,
    Table,
    as_json,
    at_least,
    loop_factory,
    make_body,
    make_parser,
    run,
    take_turns,
)
from aioredismq import Consumer, ConsumerConfig, RedisMessageQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

TASKS = 256
GROWTH_TARGET = 10.0

_GROUP = "benchmark"
_SLOW = 0.1
_MEGABYTE = 1_000_000


class MemoryOptions(Options):
    """What this benchmark can be told."""

    messages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a process has to do."""

    url: str
    queue: str
    messages: int
    size: int


@dataclass(frozen=True, slots=True)
class Process:
    """The resident set of a process, in megabytes."""

    quarter: float
    """When a quarter of the messages was through."""
    largest: float
    """The largest from then on."""

    @property
    def growth(self) -> float:
        """What came on top after the first quarter."""
        return self.largest - self.quarter


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement of one thing."""

    producer: Process
    consumer: Process
    stored: float
    """Bytes per message in the server."""
    left: float
    """Bytes per message in the server, when they have been consumed."""


class Watcher:
    """Looks at this process's memory as messages pass."""

    def __init__(self, messages: int) -> None:
        """Say how many messages there will be."""
        self._messages = messages
        self._passed = 0
        self._next = self._quarter = max(1, messages // 4)
        self._step = max(1, messages // 100)
        self._sizes: list[float] = []
        self._process = psutil.Process()
        self.all_passed = asyncio.Event()

    def pass_one(self) -> None:
        """Note a message; look at each hundredth of them, from the first quarter on."""
        self._passed += 1
        if self._passed >= self._next:
            self._next += self._step
            self.look()
        if self._passed == self._messages:
            self.all_passed.set()

    def look(self) -> None:
        """Take a look."""
        self._sizes.append(self._process.memory_info().rss / _MEGABYTE)

    def result(self) -> Process:
        """Summarize; the last look is now.

        Raises:
            RuntimeError: Not all messages have passed.
        """
        if self._passed != self._messages:
            msg = f"{self._passed} messages instead of {self._messages}: the figure is void"
            raise RuntimeError(msg)
        self.look()
        return Process(self._sizes[0], max(self._sizes))


async def produce(job: Job) -> Process:
    """Produce from 256 tasks with this library."""
    watcher = Watcher(job.messages)
    numbers = iter(range(job.messages))
    async with RedisMessageQueue(job.queue, job.url, groups=(_GROUP,)) as queue:

        async def one_of_many() -> None:
            for number in numbers:
                await queue.produce(make_body(job.size, number))
                watcher.pass_one()

        async with asyncio.TaskGroup() as tasks:
            for _ in range(TASKS):
                tasks.create_task(one_of_many())
        return watcher.result()


async def consume(job: Job) -> Process:
    """Consume with 64 handlers of this library."""
    watcher = Watcher(job.messages)
    config = ConsumerConfig(group=_GROUP, concurrency=64)

    async def handler(body: dict[str, Any]) -> None:
        watcher.pass_one()

    async with (
        RedisMessageQueue(job.queue, job.url, groups=(_GROUP,)) as queue,
        Consumer(queue, handler, config),
    ):
        await watcher.all_passed.wait()
    return watcher.result()


async def produce_naively(job: Job) -> Process:
    """Produce with redis-py, one after the other."""
    watcher = Watcher(job.messages)
    async with _naive.connect(job.url) as client:
        await client.xgroup_create(job.queue, _GROUP, "0", mkstream=True)
        for number in range(job.messages):
            await _naive.produce(client, job.queue, make_body(job.size, number))
            watcher.pass_one()
    return watcher.result()


async def consume_naively(job: Job) -> Process:
    """Consume with redis-py."""
    watcher = Watcher(job.messages)

    async def handler(body: object) -> None:
        watcher.pass_one()

    async with _naive.connect(job.url) as client:
        await _naive.consume(client, job.queue, _GROUP, handler, until_empty=True)
    return watcher.result()


def work(
    worker: Callable[[Job], Coroutine[Any, Any, Process]], job: Job, uvloop: bool
) -> Process:
    """Be the main function of a process."""
    with asyncio.Runner(loop_factory=loop_factory(uvloop=uvloop)) as runner:
        return runner.run(worker(job))


WORKERS = {
    "aioredismq": (produce, consume, 1.0),
    "redis-py": (produce_naively, consume_naively, _SLOW),
}


async def in_processes(
    share: float, *, url: str, options: MemoryOptions, name: str
) -> Sample:
    """Produce in one process, consume in another, ask the server after each."""
    producer, consumer, part = WORKERS[name]
    job = Job(
        url=url,
        queue=f"benchmark-{secrets.token_hex(4)}",
        messages=max(4, round(options.messages * part * share)),
        size=options.size,
    )
    loop = asyncio.get_running_loop()
    context = multiprocessing.get_context("spawn")
    async with Redis.from_url(url) as client:
        with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
            produced = await loop.run_in_executor(
                pool, work, producer, job, options.uvloop
            )
            stored = await _stored_bytes(client, job.queue)
            consumed = await loop.run_in_executor(
                pool, work, consumer, job, options.uvloop
            )
            left = await _stored_bytes(client, job.queue)
    async with RedisMessageQueue(job.queue, url) as queue:
        await queue.delete()
    return Sample(produced, consumed, stored / job.messages, left / job.messages)


async def _stored_bytes(client: Redis, queue: str) -> int:
    """Add up what the stream and the queue's other keys take."""
    keys = [key async for key in client.scan_iter(f"*{queue}*")]
    sizes: list[int | None] = [
        await client.memory_usage(key, samples=0) for key in keys
    ]
    return sum(size or 0 for size in sizes)  # None: gone meanwhile


async def measure(url: str, options: MemoryOptions) -> Report:
    """Measure both."""
    measures = {
        name: partial(in_processes, url=url, options=options, name=name)
        for name in WORKERS
    }
    samples = await take_turns(measures, rounds=options.rounds, warm_up=False)
    return report(samples, options)


def report(samples: dict[str, list[Sample]], options: MemoryOptions) -> Report:
    """Make the table and the figures behind it."""
    table = Table(
        f"Memory, {options.messages:,} messages of {options.size} bytes, {options.rounds} rounds",
        ("", "resident MB", "growth MB", "min … max", "target"),
    )
    results: dict[str, Any] = {}
    for name, taken in samples.items():
        producer = [sample.producer for sample in taken]
        consumer = [sample.consumer for sample in taken]
        stored = [sample.stored for sample in taken]
        left = [sample.left for sample in taken]
        results[name] = {
            "producer": _process_results(producer),
            "consumer": _process_results(consumer),
            "server_bytes_stored": as_json(Spread.of(stored), stored),
            "server_bytes_left": as_json(Spread.of(left), left),
        }
        table.rows.append(
            _row(f"{name}, producer", producer, has_target=name == "aioredismq")
        )
        table.rows.append(
            _row(f"{name}, consumer", consumer, has_target=name == "aioredismq")
        )
        table.notes.append(
            f"server, {name}: {Spread.of(stored).median:.0f} bytes per message stored, "
            f"{Spread.of(left).median:.0f} when consumed"
        )
    return Report(table, {"memory": results})


def _process_results(processes: list[Process]) -> dict[str, Any]:
    """Give the figures of a process, in megabytes."""
    largest = [process.largest for process in processes]
    growths = [process.growth for process in processes]
    return {
        "resident_mb": as_json(Spread.of(largest), largest),
        "growth_mb": as_json(Spread.of(growths), growths),
    }


def _row(name: str, processes: list[Process], *, has_target: bool) -> tuple[str, ...]:
    """Make the row of a process."""
    resident = Spread.of([process.largest for process in processes])
    growth = Spread.of([process.growth for process in processes])
    target = ""
    if has_target:
        is_met = growth.high < GROWTH_TARGET  # in every round
        target = f"< {GROWTH_TARGET:g} {'met' if is_met else 'MISSED'}"
    spread = f"{growth.low:.2f} … {growth.high:.2f}"
    return (name, f"{resident.median:.1f}", f"{growth.median:.2f}", spread, target)


def main() -> int:
    """Be the command."""
    assert __doc__ is not None
    parser = make_parser("memory", __doc__)
    parser.add_argument(
        "--messages",
        type=at_least(4),
        default=100_000,
        help="messages of one measurement (default: %(default)s)",
    )
    options = parser.parse_args(namespace=MemoryOptions())
    return run(options, lambda url: measure(url, options))


if __name__ == "__main__":
    sys.exit(main())
