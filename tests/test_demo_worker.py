from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import anyio
import pytest

from aioredismq import PublishUncertainError, RedisMessageQueue
from aioredismq import _demo_worker as worker
from aioredismq._demo_latency import merge
from aioredismq._demo_tally import RecordFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis.asyncio import Redis


@contextmanager
def _stdin(monkeypatch: pytest.MonkeyPatch, *orders: bytes) -> Iterator[int]:
    """Stand in for the parent's end of standard input, with some orders in it."""
    reading, writing = os.pipe()
    monkeypatch.setattr(worker, "_STDIN", reading)
    os.write(writing, b"".join(orders))
    yield writing
    os.close(reading)


@pytest.fixture
def records() -> Iterator[RecordFile]:
    """Where a worker records."""
    made = RecordFile()
    yield made
    made.close()


async def test_a_producer_sends_and_records_what_is_ordered(
    url: str,
    name: str,
    records: RecordFile,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Made-up messages and given ones, each with its number; it ends with its orders."""
    orders = worker.order_range(0, 500), worker.order_body(500, b' {"a": [1,\t2]}\r')
    with _stdin(monkeypatch, *orders) as parent:
        os.close(parent)
        await worker.run_producer(name, url, records.fd, rate=0)

    assert json.loads(capsys.readouterr().out.splitlines()[0])["ready"]
    assert sorted(records.read_new()) == list(range(501))
    async with RedisMessageQueue(name, url) as queue:
        stored = {int(r.headers[worker.NUMBER]): r.body for r in await queue.records()}
    assert stored[7] == worker.made_up_body(7)
    assert stored[500] == {"a": [1, 2]}


def test_a_made_up_message_has_the_size_of_a_real_one() -> None:
    """Some 200 bytes, as the benchmarks have."""
    for number in (0, 123_456):
        assert 180 <= len(json.dumps(worker.made_up_body(number))) <= 240


async def test_a_producer_keeps_its_rate(
    url: str, name: str, records: RecordFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a rate it is no faster."""
    with _stdin(monkeypatch, worker.order_range(0, 40)) as parent:
        os.close(parent)
        begin = time.monotonic()
        await worker.run_producer(name, url, records.fd, rate=200)

    assert time.monotonic() - begin >= 0.18
    assert len(records.read_new()) == 40


@pytest.mark.parametrize("failures", [0, 1, 2])
async def test_a_send_without_an_answer_is_asked_for_again(failures: int) -> None:
    """Under its first identity, some times: a server that is away for a moment loses nothing."""
    asked = 0

    async def again() -> list[str]:
        nonlocal asked
        asked += 1
        if asked <= failures:
            raise PublishUncertainError("still no answer", again)
        return ["1-0"]

    class Doubtful:
        async def produce(self, body: object, *, headers: object) -> str:
            raise PublishUncertainError(f"no answer to {body} {headers}", again)

    await worker._produce(cast("RedisMessageQueue", Doubtful()), 1, {})

    assert asked == failures + 1


async def test_a_producer_that_is_stopped_records_what_it_has_begun(
    url: str,
    name: str,
    records: RecordFile,
    monkeypatch: pytest.MonkeyPatch,
    client: Redis,
) -> None:
    """A signal ends its orders; what is sent is recorded, so that nothing is in doubt."""
    with _stdin(monkeypatch, worker.order_range(0, 1_000_000)) as parent:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run_producer, name, url, records.fd, 0)
            seen = 0
            while not seen:
                await anyio.sleep(0.01)
                seen = len(records.read_new())
            signal.raise_signal(signal.SIGTERM)
        os.close(parent)

    assert seen + len(records.read_new()) == await client.xlen(name)


async def test_a_consumer_records_what_it_handles_until_told_to_stop(
    url: str,
    name: str,
    records: RecordFile,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Handled ones by their number, dead letters by its complement; then its latencies."""
    with _stdin(monkeypatch, worker.order_range(0, 300)) as parent:
        os.close(parent)
        await worker.run_producer(name, url, records.fd, rate=0)
    records.read_new()
    capsys.readouterr()

    with _stdin(monkeypatch) as parent:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run_consumer, name, url, records.fd, 8, 0.1)
            seen: list[int] = []
            while len(seen) < 300:
                seen += records.read_new()
                await anyio.sleep(0.01)
            os.close(parent)

    handled = {number for number in seen if number >= 0}
    dead = {~number for number in seen if number < 0}
    assert handled | dead == set(range(300))
    assert 20 <= len(dead) <= 40
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert said[0] == {"ready": True, "latency": ""}
    latency = merge([said[-1]["latency"]])
    assert latency is not None
    assert 0 < latency["p50"] <= latency["max"]


async def test_a_producer_whose_parent_is_gone_leaves(
    url: str, name: str, records: RecordFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not work through the orders it has: nobody would count what they became."""
    reading, writing = os.pipe()
    os.close(reading)
    with (
        monkeypatch.context() as patch,
        _stdin(patch, worker.order_range(0, 10**9)) as parent,
    ):
        os.close(parent)
        patch.setattr(sys, "stdout", os.fdopen(writing, "w"))
        with pytest.RaisesGroup(BrokenPipeError):
            await worker.run_producer(name, url, records.fd, rate=0)
        with pytest.raises(BrokenPipeError):
            sys.stdout.close()
