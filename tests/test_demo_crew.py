from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest

from aioredismq._demo_crew import Crew, Worker
from aioredismq._demo_worker import order_range
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence


async def _start(crew: Crew, url: str, name: str) -> None:
    await crew.start(
        url,
        producer=("--queue", name),
        consumer=("--queue", name, "--concurrency", "4"),
    )


def _pids(workers: Sequence[Worker]) -> list[int]:
    return [worker._process.pid for worker in workers if worker._process is not None]


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_crew_works_and_leaves(url: str, name: str) -> None:
    """Each is ready when `start` returns, does what it is told, and is done when dismissed."""
    async with Crew(1, 2) as crew:
        [producer] = crew.producers
        assert [worker.is_alive for worker in crew.workers] == [False] * 3
        await producer.tell(order_range(0, 100))
        await _start(crew, url, name)
        assert {worker.state for worker in crew.workers} == {"running"}

        await producer.tell(order_range(0, 100))
        await crew.dismiss(crew.producers)
        handled: list[int] = []

        def all_handled() -> bool:
            for consumer in crew.consumers:
                handled.extend(consumer.records.read_new())
            return sorted(handled) == list(range(100))

        await eventually(all_handled)
        await crew.dismiss(crew.consumers)

        assert sorted(producer.records.read_new()) == list(range(100))
        assert [worker.state for worker in crew.workers] == ["done"] * 3
        assert any(consumer.latency for consumer in crew.consumers)
        assert not producer.takes_orders


async def test_a_killed_worker_is_noticed(url: str, name: str) -> None:
    """Its end is a change, its state says how, and it takes no orders."""
    async with Crew(1, 0) as crew:
        await _start(crew, url, name)
        [producer] = crew.producers

        producer.end(signal.SIGKILL)
        await eventually(lambda: not producer.is_alive)

        assert (producer.exit_code, producer.state) == (-9, "killed (SIGKILL)")
        assert not producer.takes_orders
        await producer.tell(order_range(0, 1))
        producer.end(signal.SIGTERM)


async def test_what_a_worker_complains_of_is_passed_on(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker that cannot work has failed, and its reason is shown with its name."""
    async with Crew(0, 1) as crew:
        await _start(crew, "redis://127.0.0.1:1", name)

        assert crew.consumers[0].state == "failed (1)"

    assert capsys.readouterr().err.startswith(
        "consumer 1: aioredismq: cannot reach Redis"
    )


async def test_a_long_complaint_is_cut_in_the_middle(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its first and its last lines are shown: a traceback has its cause at the end."""
    errors = asyncio.StreamReader()
    errors.feed_data(b"".join(b"line %d\n" % n for n in range(30)))
    errors.feed_eof()

    worker = Worker("consumer", 1)

    await worker._pass_on(errors)

    worker.records.close()
    told = capsys.readouterr().err.splitlines()
    assert told[:5] == [f"consumer 1: line {n}" for n in range(5)]
    assert told[5] == "consumer 1: … 20 lines …"
    assert told[6:] == [f"consumer 1: line {n}" for n in range(25, 30)]


@pytest.mark.parametrize("stopped", [False, True])
async def test_nobody_is_left_behind(url: str, name: str, stopped: bool) -> None:
    """Leaving the block by an error ends them all, even one that does not react."""
    pids: list[int] = []

    with pytest.RaisesGroup(KeyError):
        async with Crew(1, 1) as crew:
            await _start(crew, url, name)
            pids = _pids(crew.workers)
            if stopped:
                os.kill(pids[0], signal.SIGSTOP)
            raise KeyError

    assert len(pids) == 2
    assert not any(map(_is_there, pids))
