"""How long from `produce` to the handler at given rates, and what an idle consumer sends.

Producer and consumer share one process and its event loop; the server is another process. Each
message is produced by a task of its own, at its due time, whether the former ones have
arrived or not. Its latency runs from there to the first line of its handler; when the process
is late by more than the event loop's clock is coarse (2 ms), it runs from the due time, so that
a queue that holds everything up is not spared the wait it causes. "unhandled" did not arrive
within the time that producing took, or 2 s.

Commands of an idle consumer are those that MONITOR sees a client send, over --idle-seconds,
after it has settled for 2 s at most; what a script calls is not counted, the call of the script
is. On a server given by --url nothing else should be going on.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from hdrh.histogram import HdrHistogram
from redis.asyncio import Redis

import _naive
from _harness import (
    Options,
    Report,
    Spread,
    Table,
    above_zero,
    as_json,
    at_least,
    make_body,
    make_parser,
    run,
    take_turns,
    tell,
)
from aioredismq import Connection, Consumer, ConsumerConfig, RedisMessageQueue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable
    from contextlib import AbstractAsyncContextManager

PERCENTILES = (50.0, 90.0, 99.0, 99.9, 100.0)
IDLE_TARGET = 1.0

_GROUP = "benchmark"

# asyncio's timers fire up to a millisecond late (epoll counts milliseconds): that is not the
# queue's doing. More than that is.
_COARSE = 0.002

_SETTLE = 2.0

# In microseconds, to three digits: up to ten minutes.
_LONGEST = 600_000_000


class LatencyOptions(Options):
    """What this benchmark can be told."""

    rates: list[int]
    seconds: float
    idle_seconds: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement of one thing at one rate."""

    latencies: HdrHistogram
    """In microseconds."""
    unhandled: int


class Arrivals:
    """Counts and times what a handler gets."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.latencies = HdrHistogram(1, _LONGEST, 3)
        self._arrived = 0
        self._changed = asyncio.Event()

    async def handler(self, body: dict[str, Any]) -> None:
        """Handle a message that says when it was produced."""
        microseconds = (time.perf_counter() - body["produced"]) * 1e6
        self.latencies.record_value(max(1, round(microseconds)))
        self._arrived += 1
        self._changed.set()

    async def wait_for(self, messages: int, within: float) -> int:
        """Wait until so many have arrived; say how many have not by then."""
        try:
            async with asyncio.timeout(within):
                while self._arrived < messages:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass
        return messages - self._arrived


class Produce(Protocol):
    """Sends one message."""

    def __call__(self, body: object, /) -> Awaitable[object]:
        """Return when it is stored."""
        ...


class Open(Protocol):
    """Opens a new queue, consumed by the handler of `arrivals`."""

    def __call__(
        self, url: str, arrivals: Arrivals
    ) -> AbstractAsyncContextManager[Produce]:
        """Give what produces to it."""
        ...


@asynccontextmanager
async def ours(url: str, arrivals: Arrivals) -> AsyncIterator[Produce]:
    """Open a queue of this library."""
    name = f"benchmark-{secrets.token_hex(4)}"
    config = ConsumerConfig(group=_GROUP, concurrency=64)
    async with (
        Connection(url) as connection,
        RedisMessageQueue(name, connection, groups=(_GROUP,)) as queue,
    ):
        try:
            async with Consumer(queue, arrivals.handler, config):
                yield queue.produce
        finally:
            await queue.delete()


@asynccontextmanager
async def naive(url: str, arrivals: Arrivals) -> AsyncIterator[Produce]:
    """Open a stream, consumed by the naive loop of redis-py."""
    name = f"benchmark-{secrets.token_hex(4)}"
    async with _naive.connect(url) as client:
        await client.xgroup_create(name, _GROUP, "0", mkstream=True)
        consuming = asyncio.create_task(
            _naive.consume(client, name, _GROUP, arrivals.handler)
        )
        try:
            yield partial(_naive.produce, client, name)
        finally:
            consuming.cancel()
            await asyncio.wait([consuming])
            await client.delete(name)


CONTESTANTS: dict[str, Open] = {"aioredismq": ours, "redis-py": naive}


async def at_rate(
    share: float, *, contestant: Open, url: str, rate: int, seconds: float, size: int
) -> Sample:
    """Produce at a rate and time what arrives."""
    arrivals = Arrivals()
    messages = max(1, round(rate * seconds * share))
    note = make_body(size)["note"]
    async with contestant(url, arrivals) as produce:
        await produce({"produced": time.perf_counter(), "note": note})
        await arrivals.wait_for(1, within=_SETTLE)
        arrivals.latencies.reset()
        start = time.perf_counter()
        async with asyncio.TaskGroup() as producing:
            for number in range(messages):
                due = start + number / rate
                if (early := due - time.perf_counter()) > 0:
                    await asyncio.sleep(early)
                now = time.perf_counter()
                produced = now if now - due < _COARSE else due
                producing.create_task(
                    _await(produce({"produced": produced, "note": note}))
                )
        within = max(_SETTLE, seconds)
        unhandled = await arrivals.wait_for(messages + 1, within)
    return Sample(arrivals.latencies, unhandled)


async def _await(something: Awaitable[object]) -> None:
    """Be the coroutine that a task needs."""
    await something


async def count_idle_commands(
    url: str, contestant: Open, seconds: float
) -> Counter[str]:
    """Count what clients send while a consumer has nothing to do, by the command's name."""
    commands: Counter[str] = Counter()
    async with contestant(url, Arrivals()):
        await asyncio.sleep(min(_SETTLE, seconds))
        async with (
            Redis.from_url(url, socket_timeout=None) as client,
            client.monitor() as seen,
        ):
            try:
                async with asyncio.timeout(seconds):
                    async for command in seen.listen():
                        if command["client_type"] != "lua":
                            commands[command["command"].split()[0].upper()] += 1
            except TimeoutError:
                pass
    return commands


async def measure(url: str, options: LatencyOptions) -> Report:
    """Measure every rate, then the idle ones."""
    measures = {
        f"{rate:,}/s {name}": partial(
            at_rate,
            contestant=contestant,
            url=url,
            rate=rate,
            seconds=options.seconds,
            size=options.size,
        )
        for rate in options.rates
        for name, contestant in CONTESTANTS.items()
    }
    samples = await take_turns(measures, rounds=options.rounds)
    idle = {}
    for name, contestant in CONTESTANTS.items():
        tell(f"idle for {options.idle_seconds:g} s: {name}")
        idle[name] = await count_idle_commands(url, contestant, options.idle_seconds)
    tell("")
    return report(samples, idle, options)


def report(
    samples: dict[str, list[Sample]],
    idle: dict[str, Counter[str]],
    options: LatencyOptions,
) -> Report:
    """Make the table and the figures behind it."""
    headings = [f"p{percentile:g} ms" for percentile in PERCENTILES[:-1]]
    table = Table(
        f"From produce to the handler, {options.size} bytes, {options.rounds} rounds together",
        ("", *headings, "longest ms", "p99 by round", "unhandled"),
    )
    latencies = {}
    for name, taken in samples.items():
        together = HdrHistogram(1, _LONGEST, 3)
        for sample in taken:
            together.add(sample.latencies)
        percentiles = _percentiles(together)
        by_round = [_percentiles(sample.latencies)["p99"] for sample in taken]
        p99 = Spread.of(by_round)
        unhandled = sum(sample.unhandled for sample in taken)
        latencies[name] = {
            "ms": percentiles,
            "p99_ms": as_json(p99, by_round),
            "handled": together.get_total_count(),
            "unhandled": unhandled,
        }
        shown = [f"{value:.2f}" for value in percentiles.values()]
        table.rows.append(
            (name, *shown, f"{p99.low:.2f} … {p99.high:.2f}", f"{unhandled:,}")
        )
    idle_results = {}
    for name, commands in idle.items():
        per_second = commands.total() / options.idle_seconds
        idle_results[name] = {"per_second": per_second, "commands": dict(commands)}
        verdict = f" (target: at most {IDLE_TARGET:g}, {_verdict(per_second)})"
        said = f"{per_second:.2f} commands/s{verdict if name == 'aioredismq' else ''}"
        table.notes.append(f"idle {name}: {said} {dict(commands)}")
    return Report(table, {"latencies": latencies, "idle": idle_results})


def _verdict(per_second: float) -> str:
    """Say whether the target is met."""
    return "met" if per_second <= IDLE_TARGET else "MISSED"


def _percentiles(histogram: HdrHistogram) -> dict[str, float]:
    """Read the percentiles, in milliseconds."""
    return {
        f"p{percentile:g}": histogram.get_value_at_percentile(percentile) / 1000
        for percentile in PERCENTILES
    }


def main() -> int:
    """Be the command."""
    assert __doc__ is not None
    parser = make_parser("latency", __doc__)
    parser.add_argument(
        "--rates",
        type=at_least(1),
        nargs="+",
        default=[100, 1000, 5000],
        metavar="RATE",
        help="messages per second (default: 100 1000 5000)",
    )
    parser.add_argument(
        "--seconds",
        type=above_zero,
        default=2.0,
        help="how long each rate is kept up in a round (default: %(default)g)",
    )
    parser.add_argument(
        "--idle-seconds",
        type=above_zero,
        default=20.0,
        help="how long the idle consumers are watched (default: %(default)g; what comes every "
        "five or ten seconds must have room to come)",
    )
    options = parser.parse_args(namespace=LatencyOptions())
    return run(options, lambda url: measure(url, options))


if __name__ == "__main__":
    sys.exit(main())
