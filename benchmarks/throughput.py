"""How many messages per second: this library, a naive redis-py loop, and the bare floor.

The bare floors (benchmarks/_floor.py) have no JSON, no identities, no time limits: hiredis over
an asyncio transport and nothing else. Ratios are of the rates of one round. This library and the
naive loop encode and decode each message with the standard library's JSON. Client and server µs
are processor time per message. Of --messages, loops that do one at a time get a tenth.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import sys
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import _floor
import _naive
from _harness import (
    Options,
    Report,
    Sample,
    Spread,
    Stopwatch,
    Table,
    as_json,
    at_least,
    compact_json,
    make_body,
    make_parser,
    run,
    take_turns,
)
from aioredismq import Connection, Consumer, ConsumerConfig, RedisMessageQueue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from redis.asyncio import Redis

TASKS = 256
CONCURRENCY = 64
MANY = 1000

# What "one at a time" and the naive loops get of --messages, to take a similar time.
_SLOW = 0.1

_GROUP = "benchmark"


class ThroughputOptions(Options):
    """What this benchmark can be told."""

    messages: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """A row whose rate is divided by another row's."""

    of: str
    by: str
    target: float | None = None


# The targets are those of the first release; None: shown for orientation.
COMPARISONS = (
    Comparison("produce, 256 tasks", "bare produce, 256 tasks", 0.25),
    Comparison("produce, 256 tasks", "bare produce, 256 tasks, with JSON"),
    Comparison("produce, 256 tasks", "redis-py produce, one at a time"),
    Comparison("produce, one at a time", "bare produce, one at a time", 0.65),
    Comparison("produce, one at a time", "bare produce, one at a time, with JSON"),
    Comparison("produce, one at a time", "redis-py produce, one at a time"),
    Comparison("drain, 64 handlers", "bare drain", 0.15),
    Comparison("drain, 64 handlers", "bare drain, deleting nothing", 0.15),
    Comparison("drain, 64 handlers", "redis-py drain"),
    Comparison("produce_many of 1000", "redis-py pipeline of 1000", 1.3),
)


class Throughput:
    """Everything that is measured, each method once."""

    def __init__(
        self,
        url: str,
        options: ThroughputOptions,
        bare: _floor.BareConnection,
        naive: Redis,
        connection: Connection,
    ) -> None:
        """Take what is connected."""
        self._url = url
        self._messages = options.messages
        self._bare = bare
        self._naive = naive
        self._connection = connection
        self._body = make_body(options.size)
        self._payload = compact_json(self._body)

    def measures(self) -> dict[str, Callable[[float], Awaitable[Sample]]]:
        """List them, what is compared side by side."""
        return {
            "bare produce, 256 tasks": self.bare_coalesced,
            "produce, 256 tasks": self.ours_coalesced,
            "bare produce, 256 tasks, with JSON": self.bare_coalesced_json,
            "bare produce, one at a time": self.bare_one_at_a_time,
            "produce, one at a time": self.ours_one_at_a_time,
            "bare produce, one at a time, with JSON": self.bare_one_at_a_time_json,
            "redis-py produce, one at a time": self.naive_one_at_a_time,
            "bare drain": self.bare_drain,
            "drain, 64 handlers": self.ours_drain,
            "bare drain, deleting nothing": self.bare_drain_keeping,
            "redis-py drain": self.naive_drain,
            "redis-py pipeline of 1000": self.naive_pipeline,
            "produce_many of 1000": self.ours_many,
        }

    async def bare_coalesced(self, share: float) -> Sample:
        """Measure the floor of the next."""
        messages = self._count(share, TASKS)
        async with self._stream(stored=messages) as stream:
            command = _floor.pack_xadd(stream, self._payload)
            async with self._watch(messages) as watch:
                await _floor.produce_coalesced(
                    self._bare, command, messages=messages, tasks=TASKS
                )
        return watch.sample

    async def bare_coalesced_json(self, share: float) -> Sample:
        """Measure the floor with the standard library's JSON and a packing per message."""
        messages = self._count(share, TASKS)
        async with (
            self._stream(stored=messages) as stream,
            self._watch(messages) as watch,
        ):
            await _floor.produce_coalesced_json(
                self._bare, stream, self._body, messages=messages, tasks=TASKS
            )
        return watch.sample

    async def ours_coalesced(self, share: float) -> Sample:
        """Await `produce` in each of 256 tasks."""
        messages = self._count(share, TASKS)
        async with self._queue(stored=messages) as queue:

            async def produce() -> None:
                for _ in range(messages // TASKS):
                    await queue.produce(self._body)

            async with self._watch(messages) as watch:
                await asyncio.gather(*(produce() for _ in range(TASKS)))
        return watch.sample

    async def bare_one_at_a_time(self, share: float) -> Sample:
        """Measure the floor of the next."""
        messages = self._count(share * _SLOW)
        async with self._stream(stored=messages) as stream:
            command = _floor.pack_xadd(stream, self._payload)
            async with self._watch(messages) as watch:
                await _floor.produce_one_at_a_time(
                    self._bare, command, messages=messages
                )
        return watch.sample

    async def ours_one_at_a_time(self, share: float) -> Sample:
        """Await one `produce` after the other."""
        messages = self._count(share * _SLOW)
        async with (
            self._queue(stored=messages) as queue,
            self._watch(messages) as watch,
        ):
            for _ in range(messages):
                await queue.produce(self._body)
        return watch.sample

    async def bare_one_at_a_time_json(self, share: float) -> Sample:
        """Measure the floor with the standard library's JSON and a packing per message."""
        messages = self._count(share * _SLOW)
        async with (
            self._stream(stored=messages) as stream,
            self._watch(messages) as watch,
        ):
            await _floor.produce_one_at_a_time_json(
                self._bare, stream, self._body, messages=messages
            )
        return watch.sample

    async def naive_one_at_a_time(self, share: float) -> Sample:
        """Await one `xadd` of redis-py after the other."""
        messages = self._count(share * _SLOW)
        async with (
            self._stream(stored=messages) as stream,
            self._watch(messages) as watch,
        ):
            for _ in range(messages):
                await _naive.produce(self._naive, stream, self._body)
        return watch.sample

    async def bare_drain(self, share: float) -> Sample:
        """Measure the floor of the next, which deletes too."""
        return await self._bare_drain(share, delete=True)

    async def bare_drain_keeping(self, share: float) -> Sample:
        """Measure the floor without the server's work of deleting."""
        return await self._bare_drain(share, delete=False)

    async def ours_drain(self, share: float) -> Sample:
        """Consume with 64 handlers that do nothing, from the start until nothing is stored.

        The start is included: the connection of the reader, the check of the group.
        """
        messages = self._count(share)
        config = ConsumerConfig(concurrency=CONCURRENCY, group=_GROUP)
        handled = 0
        all_handled = asyncio.Event()

        async def handler(body: dict[str, Any]) -> None:
            nonlocal handled
            handled += 1
            if handled == messages:
                all_handled.set()

        async with self._queue(stored=0) as queue:
            await _floor.fill(self._bare, queue.name, [self._payload] * messages)
            async with self._watch(messages) as watch, Consumer(queue, handler, config):
                await all_handled.wait()
                while await self._bare.call("XLEN", queue.name):
                    pass
                watch.stop()
        _expect(handled, messages)
        return watch.sample

    async def naive_drain(self, share: float) -> Sample:
        """Read 64 with redis-py, handle and acknowledge one by one."""
        messages = self._count(share * _SLOW)
        handled = 0

        async def handler(body: object) -> None:
            nonlocal handled
            handled += 1

        async with (
            self._filled_stream(messages) as stream,
            self._watch(messages) as watch,
        ):
            await _naive.consume(self._naive, stream, _GROUP, handler, until_empty=True)
        _expect(handled, messages)
        return watch.sample

    async def naive_pipeline(self, share: float) -> Sample:
        """Send pipelines of 1000 with redis-py, one after the other."""
        messages = self._count(share, MANY)
        async with (
            self._stream(stored=messages) as stream,
            self._watch(messages) as watch,
        ):
            for _ in range(messages // MANY):
                await _naive.produce_pipelined(self._naive, stream, [self._body] * MANY)
        return watch.sample

    async def ours_many(self, share: float) -> Sample:
        """Await one `produce_many` of 1000 after the other."""
        messages = self._count(share, MANY)
        async with (
            self._queue(stored=messages) as queue,
            self._watch(messages) as watch,
        ):
            for _ in range(messages // MANY):
                await queue.produce_many([self._body] * MANY)
        return watch.sample

    async def _bare_drain(self, share: float, *, delete: bool) -> Sample:
        messages = self._count(share)
        async with self._filled_stream(messages) as stream:
            async with self._watch(messages) as watch:
                drained = await _floor.drain_overlapped(
                    self._bare, stream, _GROUP, delete=delete
                )
            _expect(drained, messages)
            [about] = await self._bare.call("XINFO", "GROUPS", stream)
            _expect(dict(zip(about[::2], about[1::2], strict=True))[b"pending"], 0)
        return watch.sample

    def _watch(self, messages: int) -> Stopwatch:
        return Stopwatch(messages, self._server_seconds)

    async def _server_seconds(self) -> float:
        """Ask the server for the processor time it has used."""
        said: bytes = await self._bare.call("INFO", "cpu")
        found = re.findall(rb"used_cpu_(?:sys|user):([0-9.]+)", said)
        return sum(map(float, found))

    def _count(self, share: float, multiple: int = 1) -> int:
        """Say how many messages a share is, rounded to a multiple, at least one of it."""
        return max(1, round(self._messages * share / multiple)) * multiple

    @asynccontextmanager
    async def _stream(self, *, stored: int | None) -> AsyncIterator[str]:
        """Lend a new stream's name, and see what is stored in the end, unless that is None."""
        name = f"benchmark-{secrets.token_hex(4)}"
        try:
            yield name
            if stored is not None:
                _expect(await self._bare.call("XLEN", name), stored)
        finally:
            await self._bare.call("DEL", name)

    @asynccontextmanager
    async def _filled_stream(self, messages: int) -> AsyncIterator[str]:
        """Lend a stream with a group and messages."""
        async with self._stream(stored=None) as name:
            await _floor.fill(self._bare, name, [self._payload] * messages)
            await self._bare.call("XGROUP", "CREATE", name, _GROUP, "0")
            yield name

    @asynccontextmanager
    async def _queue(self, *, stored: int) -> AsyncIterator[RedisMessageQueue]:
        """Lend a new queue of ours, and see what is stored in the end."""
        name = f"benchmark-{secrets.token_hex(4)}"
        async with RedisMessageQueue(name, self._connection, groups=(_GROUP,)) as queue:
            try:
                yield queue
                _expect(await self._bare.call("XLEN", name), stored)
            finally:
                await queue.delete()


def _expect(found: int, expected: int) -> None:
    """Refuse a figure whose messages are not all there.

    Raises:
        RuntimeError: They are not.
    """
    if found != expected:
        raise RuntimeError(
            f"{found} messages instead of {expected}: the figure is void"
        )


async def measure(url: str, options: ThroughputOptions) -> Report:
    """Connect, measure, compare."""
    bare = await _floor.BareConnection.open(url)
    try:
        async with _naive.connect(url) as naive, Connection(url) as connection:
            everything = Throughput(url, options, bare, naive, connection)
            samples = await take_turns(everything.measures(), rounds=options.rounds)
    finally:
        bare.close()
    return report(samples, options)


def report(samples: dict[str, list[Sample]], options: ThroughputOptions) -> Report:
    """Make the table and the figures behind it."""
    table = Table(
        f"Messages of {options.size} bytes per second, {options.rounds} rounds",
        (
            "",
            "per second",
            "min … max",
            "client µs",
            "server µs",
            "divided by",
            "ratio",
            "min … max",
            "target",
        ),
    )
    rates: dict[str, Any] = {}
    for name, taken in samples.items():
        rate = Spread.of([sample.rate for sample in taken])
        client = Spread.of([1e6 * sample.client / sample.messages for sample in taken])
        server = Spread.of([1e6 * sample.server / sample.messages for sample in taken])
        rates[name] = {
            "per_second": as_json(rate, [sample.rate for sample in taken]),
            "client_us": asdict(client),
            "server_us": asdict(server),
            "messages": taken[0].messages,
        }
        shown = (
            name,
            f"{rate.median:,.0f}",
            f"{rate.low:,.0f} … {rate.high:,.0f}",
            f"{client.median:.1f}",
            f"{server.median:.1f}",
        )
        compared = [_compare(one, samples) for one in COMPARISONS if one.of == name]
        table.rows.append((*shown, *(compared[0] if compared else [""] * 4)))
        table.rows.extend(("", "", "", "", "", *cells) for cells in compared[1:])
    ratios = [_ratio_as_json(one, samples) for one in COMPARISONS]
    return Report(table, {"rates": rates, "ratios": ratios})


def _ratios(comparison: Comparison, samples: dict[str, list[Sample]]) -> list[float]:
    """Divide round by round."""
    pairs = zip(samples[comparison.of], samples[comparison.by], strict=True)
    return [one.rate / other.rate for one, other in pairs]


def _compare(
    comparison: Comparison, samples: dict[str, list[Sample]]
) -> tuple[str, ...]:
    """Make the four cells of a comparison."""
    ratio = Spread.of(_ratios(comparison, samples))
    target = ""
    if comparison.target is not None:
        is_met = ratio.median >= comparison.target
        target = f"{comparison.target:g} {'met' if is_met else 'MISSED'}"
    spread = f"{ratio.low:.2f} … {ratio.high:.2f}"
    return (comparison.by, f"{ratio.median:.2f}", spread, target)


def _ratio_as_json(
    comparison: Comparison, samples: dict[str, list[Sample]]
) -> dict[str, Any]:
    """Give a comparison's figures."""
    ratios = _ratios(comparison, samples)
    return {**asdict(comparison), **as_json(Spread.of(ratios), ratios)}


def main() -> int:
    """Be the command."""
    assert __doc__ is not None
    parser = make_parser("throughput", __doc__)
    parser.add_argument(
        "--messages",
        type=at_least(1),
        default=100_000,
        help="messages of one measurement (default: %(default)s)",
    )
    options = parser.parse_args(namespace=ThroughputOptions())
    return run(options, lambda url: measure(url, options))


if __name__ == "__main__":
    sys.exit(main())
