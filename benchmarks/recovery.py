"""How long it takes until work goes on after a kill or a restart, and how late due messages are.

Kill: a worker process holds --messages in running handlers and is killed (SIGKILL) while another
consumer is idle. Counted from the kill to the end of the last of their handlers; what was held
is found when its lease has run out, so the visibility timeout is part of it.

Restart: a server of its own, with every write on disk, is killed while a producer and a consumer
work, and started again a second later. Counted from its first answer to the first message that
was produced after it and handled.

Due: --due messages are produced by one connection with delays spread over --seconds, and consumed
by another. Lateness runs from the moment asked for, counted from the call of `produce`, to the
first line of the handler. On a server given by --url nothing else should be going on.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import random
import secrets
import sys
import time
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from _harness import (
    Options,
    Report,
    Spread,
    Table,
    above_zero,
    as_json,
    at_least,
    make_parser,
    run,
    take_turns,
)
from aioredismq import (
    Connection,
    Consumer,
    ConsumerConfig,
    MessageQueueError,
    RedisMessageQueue,
)
from aioredismq.testing import RedisServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

AFTER_LEASE_TARGET = 5.0
RESTART_TARGET = 2.0
LATENESS_TARGET = 100.0

_GROUP = "benchmark"
_DOWN = 1.0
# Longer than anybody waits for anything here.
_LIMIT = 60.0
# How long the idle consumer has been there before: it claims nothing in its first moments.
_SETTLED = 2.0


class RecoveryOptions(Options):
    """What this benchmark can be told."""

    visibility: float
    messages: int
    due: int
    seconds: float


class Handled:
    """Remembers when each message was handled."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.times: dict[Any, float] = {}
        self._changed = asyncio.Event()

    async def __call__(self, body: Any) -> None:
        """Handle one message."""
        self.times.setdefault(body, time.perf_counter())
        self._changed.set()

    async def until(self, is_true: Callable[[], bool]) -> None:
        """Wait for something about the times.

        Raises:
            TimeoutError: It did not come true: the figure is void.
        """
        async with asyncio.timeout(_LIMIT):
            while not is_true():
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def new_queue(url: str) -> AsyncIterator[RedisMessageQueue]:
    """Open a fresh queue, and delete it afterwards."""
    name = f"benchmark-{secrets.token_hex(4)}"
    connection = Connection(url, reply_timeout=1.0, connect_timeout=1.0)
    async with RedisMessageQueue(name, connection, groups=(_GROUP,)) as queue:
        try:
            yield queue
        finally:
            await queue.delete()


# -- kill --------------------------------------------------------------------------------------


def hold(url: str, name: str, config: ConsumerConfig) -> None:
    """Be the worker that is killed: take messages and never end them."""

    async def handler(_: object) -> None:
        await asyncio.sleep(3600)

    async def work() -> None:
        async with (
            RedisMessageQueue(name, url, groups=(_GROUP,)) as queue,
            Consumer(queue, handler, config) as consumer,
        ):
            await consumer.wait()

    asyncio.run(work())


async def after_a_kill(
    share: float, *, url: str, visibility: float, messages: int
) -> list[float]:
    """Seconds from a kill to the last of what was held."""
    del share
    config = ConsumerConfig(
        group=_GROUP, visibility_timeout=visibility, concurrency=messages
    )
    handled = Handled()
    async with new_queue(url) as queue:
        await queue.produce_many(range(messages))
        worker = multiprocessing.get_context("spawn").Process(
            target=hold, args=(url, queue.name, config)
        )
        await asyncio.to_thread(worker.start)
        try:
            await _until_held(queue, messages)
            async with Consumer(queue, handled, config):
                await asyncio.sleep(max(_SETTLED, visibility / 3))
                killed = time.perf_counter()
                worker.kill()
                await handled.until(lambda: len(handled.times) == messages)
        finally:
            worker.kill()
            await asyncio.to_thread(worker.join)
    return [max(handled.times.values()) - killed]


async def _until_held(queue: RedisMessageQueue, messages: int) -> None:
    for _ in range(int(_LIMIT / 0.01)):
        [group] = await queue.groups()
        if group.pending == messages:
            return
        await asyncio.sleep(0.01)
    msg = "the worker has not taken all its messages: the figure is void"
    raise RuntimeError(msg)


# -- restart -----------------------------------------------------------------------------------


async def after_a_restart(share: float, *, program: Path | None) -> list[float]:
    """Seconds from the first answer of a restarted server to the first new message handled."""
    del share
    handled = Handled()
    sent: dict[int, float] = {}
    args = ("--appendfsync", "always")
    with RedisServer(program, persistence=True, args=args) as server:
        async with (
            new_queue(server.url) as queue,
            Consumer(queue, handled, ConsumerConfig(group=_GROUP)),
        ):
            producing = asyncio.create_task(_produce(queue, sent))
            await handled.until(lambda: len(handled.times) > 10)
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(_DOWN)
            await asyncio.to_thread(server.start)
            answered = time.perf_counter()
            await handled.until(
                lambda: any(sent.get(body, 0) > answered for body in handled.times)
            )
            resumed = min(
                at for body, at in handled.times.items() if sent[body] > answered
            )
            producing.cancel()
            await asyncio.wait([producing])
    return [resumed - answered]


async def _produce(queue: RedisMessageQueue, sent: dict[int, float]) -> None:
    for number in range(1_000_000):
        sent[number] = time.perf_counter()
        with suppress(MessageQueueError):
            await queue.produce(number)
        await asyncio.sleep(0.005)


# -- due ---------------------------------------------------------------------------------------


async def of_due_messages(
    share: float, *, url: str, count: int, seconds: float
) -> list[float]:
    """How many seconds late each delayed message was handled."""
    handled = Handled()
    count = max(1, round(count * share))
    due: dict[int, float] = {}
    config = ConsumerConfig(group=_GROUP, concurrency=64)
    async with (
        new_queue(url) as queue,
        RedisMessageQueue(queue.name, url, groups=(_GROUP,)) as scheduling,
        Consumer(queue, handled, config),
    ):
        for number in range(count):
            delay = random.uniform(0.2, 0.2 + seconds)
            due[number] = time.perf_counter() + delay
            await scheduling.produce(number, delay=delay)
        await handled.until(lambda: len(handled.times) == count)
    return [handled.times[number] - at for number, at in due.items()]


# -- report ------------------------------------------------------------------------------------


async def measure(url: str, options: RecoveryOptions) -> Report:
    """Measure all three."""
    samples = await take_turns(
        {
            "kill": partial(
                after_a_kill,
                url=url,
                visibility=options.visibility,
                messages=options.messages,
            ),
            "restart": partial(after_a_restart, program=options.server),
            "due": partial(
                of_due_messages, url=url, count=options.due, seconds=options.seconds
            ),
        },
        rounds=options.rounds,
        warm_up=False,
    )
    return report(samples, options)


def report(samples: dict[str, list[list[float]]], options: RecoveryOptions) -> Report:
    """Make the table and the figures behind it."""
    table = Table(
        f"Until work goes on, {options.rounds} rounds",
        ("", "median", "low … high", "target"),
    )
    results: dict[str, Any] = {}
    for name, title, target in (
        (
            "kill",
            f"a worker with {options.messages} messages is killed, "
            f"visibility timeout {options.visibility:g} s",
            options.visibility + AFTER_LEASE_TARGET,
        ),
        ("restart", "the server is killed and started again", RESTART_TARGET),
    ):
        seconds = [one for one_round in samples[name] for one in one_round]
        spread = Spread.of(seconds)
        results[name] = {"seconds": as_json(spread, seconds), "target": target}
        table.rows.append(
            (
                title,
                f"{spread.median:.2f} s",
                f"{spread.low:.2f} … {spread.high:.2f}",
                f"{target:g} s {_verdict(spread.high, target)}",
            )
        )
    late = sorted(one * 1000 for one_round in samples["due"] for one in one_round)
    p50, p99 = (_percentile(late, percent) for percent in (50, 99))
    results["due"] = {
        "late_ms": {"p50": p50, "p99": p99, "longest": late[-1], "earliest": late[0]},
        "messages": len(late),
        "target": LATENESS_TARGET,
    }
    table.rows.append(
        (
            f"{len(late):,} due messages are late",
            f"{p50:.1f} ms",
            f"p99 {p99:.1f}, longest {late[-1]:.1f}",
            f"p99 {LATENESS_TARGET:g} ms {_verdict(p99, LATENESS_TARGET)}",
        )
    )
    return Report(table, results)


def _percentile(ordered: list[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def _verdict(value: float, target: float) -> str:
    """Say whether a target is met."""
    return "met" if value <= target else "MISSED"


def main() -> int:
    """Be the command."""
    assert __doc__ is not None
    parser = make_parser("recovery", __doc__)
    parser.add_argument(
        "--visibility",
        type=above_zero,
        default=3.0,
        help="visibility timeout of the workers, in seconds (default: %(default)g)",
    )
    parser.add_argument(
        "--messages",
        type=at_least(1),
        default=16,
        help="what the killed worker holds (default: %(default)s)",
    )
    parser.add_argument(
        "--due",
        type=at_least(1),
        default=500,
        help="delayed messages in a round (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=above_zero,
        default=3.0,
        help="over how long their times are spread (default: %(default)g)",
    )
    options = parser.parse_args(namespace=RecoveryOptions())
    logging.getLogger("aioredismq").setLevel(
        logging.CRITICAL
    )  # outages are what it makes
    return run(options, lambda url: measure(url, options))


if __name__ == "__main__":
    sys.exit(main())
