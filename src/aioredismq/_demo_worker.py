"""What runs in the child processes of the demo: one producer or one consumer each.

The parent speaks through standard input: orders for a producer, and its end means "finish what
you have and leave". A worker answers on standard output, one JSON object a line, and records what
it has done in a file (`RecordFile`). When the parent is killed, both pipes end, and so does it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import TYPE_CHECKING

import anyio

from ._demo_latency import Latency
from ._demo_tally import Recorder
from ._errors import PublishUncertainError, RetryMessage
from ._jsonl import MAX_LINE, read_lines
from ._message import Message  # noqa: TC001 -- the handler's annotation is resolved
from ._queue import RedisMessageQueue
from ._retry import ExponentialBackoff
from ._terminal import until_signal, write_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from ._outcome import Failure

NUMBER = "demo-number"
SENT = "demo-sent"

# Tasks of one producer that await `produce` at once. Their sends share round trips.
_SENDERS = 128

# Who watches the demo, and kills a consumer, wants to see its messages taken over: well below the
# patience of the parent, far above what a handler here takes.
_VISIBILITY_TIMEOUT = 3.0

# Who asks for failures waits for their last attempts: 0.15 s at most, instead of 15 s.
_RETRY = ExponentialBackoff(initial=0.01)

_STDIN = 0
_REPORT_EVERY = 0.5

# A send without an answer is repeated under its first identity, so that it is stored once.
_SEND_AGAIN = 3


def order_range(first: int, count: int) -> bytes:
    """Order a producer to make up so many messages, numbered from `first`."""
    return b"[%d,%d]\n" % (first, count)


def order_body(number: int, body: bytes) -> bytes:
    """Order a producer to send this JSON text (without line ends) as a message."""
    return b"[%d,1,%b]\n" % (number, body.strip())


def made_up_body(number: int) -> dict[str, object]:
    """Make a body of about 200 bytes."""
    return {
        "order": number,
        "customer": f"customer-{number % 997}",
        "total": number % 10_000 / 100,
        "items": [{"sku": f"sku-{number % 89:04}", "quantity": number % 7 + 1}],
        "note": "please leave it at the door, next to the other ninety-nine parcels",
        "express": number % 2 == 0,
    }


async def run_producer(name: str, url: str, record_fd: int, rate: float) -> None:
    """Send what the parent orders, until its orders end.

    Args:
        name: Queue.
        url: Server.
        record_fd: Where the number of each message is recorded once it is sent.
        rate: Messages a second; 0 for as many as possible.
    """
    recorder = Recorder(record_fd)
    waiting: asyncio.Queue[tuple[int, object] | None] = asyncio.Queue(2 * _SENDERS)
    async with RedisMessageQueue(name, url) as queue:

        async def send() -> None:
            while (order := await waiting.get()) is not None:
                number, body = order
                await _produce(queue, number, body)
                recorder.record(number)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(_SENDERS):
                tasks.create_task(send())
            reports = tasks.create_task(_report(None))
            # A signal ends the orders; what the senders have is still sent and recorded.
            await until_signal(lambda: _pass_orders(rate, waiting))
            for _ in range(_SENDERS):
                await waiting.put(None)
            reports.cancel()


async def _pass_orders(
    rate: float, waiting: asyncio.Queue[tuple[int, object] | None]
) -> None:
    """Hand orders to the senders, not faster than asked."""
    async for order in _paced(_orders(), rate):
        await waiting.put(order)


async def _produce(queue: RedisMessageQueue, number: int, body: object) -> None:
    """Send one message; an answer that does not come is asked for again."""
    headers = {NUMBER: str(number), SENT: str(time.monotonic_ns())}
    try:
        await queue.produce(body, headers=headers)
    except PublishUncertainError as error:
        for _ in range(_SEND_AGAIN - 1):
            try:
                await error.retry()
            except PublishUncertainError:
                continue
            return
        await error.retry()


async def _orders() -> AsyncIterator[Iterator[tuple[int, object]]]:
    """Read orders, some at a time."""
    async for lines in read_lines(_STDIN, 2 * MAX_LINE):
        for line in lines:
            first, count, *bodies = json.loads(line.text or b"[0,0]")
            if bodies:
                yield iter([(first, bodies[0])])
            else:
                numbers = range(first, first + count)
                yield ((number, made_up_body(number)) for number in numbers)


async def _paced(
    orders: AsyncIterator[Iterator[tuple[int, object]]], rate: float
) -> AsyncIterator[tuple[int, object]]:
    """Give one after the other, not faster than so many a second (0: at once)."""
    due = time.monotonic()
    async for some in orders:
        for order in some:
            if rate:
                due = max(due + 1 / rate, time.monotonic() - 1)
                await anyio.sleep(max(0.0, due - time.monotonic()))
            yield order


async def run_consumer(
    name: str, url: str, record_fd: int, concurrency: int, fail: float
) -> None:
    """Handle messages until the parent closes standard input.

    Args:
        name: Queue.
        url: Server.
        record_fd: Where the number of each message is recorded when it is handled, and its
            complement when it has become a dead letter.
        concurrency: Handlers at once.
        fail: Share of the messages whose handler raises, each time.
    """
    recorder, latency = Recorder(record_fd), Latency()
    if fail:  # what was asked for is not worth a warning each time
        logging.getLogger("aioredismq").setLevel(logging.ERROR)

    async def handle(body: object, message: Message) -> None:
        del body  # decoded: that is part of the work measured
        number = int(message.headers[NUMBER])
        if _is_doomed(number, fail):
            raise RetryMessage(f"message {number} was chosen to fail")
        latency.record(time.monotonic_ns() - int(message.headers[SENT]))
        recorder.record(number)

    async def note_dead(message: Message, failure: Failure) -> None:
        del failure
        recorder.record(~int(message.headers[NUMBER]))

    async with RedisMessageQueue(name, url) as queue:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_at_end_of_input, tasks.cancel_scope)
            tasks.start_soon(_report, latency)
            await queue.consume(
                handle,
                concurrency=concurrency,
                failover_callback=note_dead,
                retry=_RETRY,
                visibility_timeout=_VISIBILITY_TIMEOUT,
            )
        write_json({"latency": latency.encode()})


def _is_doomed(number: int, share: float) -> bool:
    """Choose a share of the messages, the same at each attempt, spread over all."""
    return number * 2_654_435_761 % 2**32 < share * 2**32  # Knuth's multiplicative hash


async def _cancel_at_end_of_input(scope: anyio.CancelScope) -> None:
    """Stop when the parent says so, or is gone."""
    async for _ in read_lines(_STDIN):
        pass
    scope.cancel()


async def _report(latency: Latency | None) -> None:
    """Tell the parent now and then what was measured.

    Raises:
        BrokenPipeError: It is gone: there is nobody to work for.
    """
    while True:
        write_json({"ready": True, "latency": latency.encode() if latency else ""})
        await anyio.sleep(_REPORT_EVERY)
