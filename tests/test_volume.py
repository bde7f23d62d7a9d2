"""Three processes produce, three consume: each of 100 000 messages is where it belongs."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import time
from collections import Counter
from contextlib import ExitStack
from typing import Any

import pytest
from redis.asyncio import Redis

from aioredismq import RedisMessageQueue
from tests.looking import NOTHING, dead_letters, left
from tests.programs import Program, complaints

MESSAGES = 100_000
PROCESSES = 3
LIMIT = 150.0
MOST_GROWN = 10_000_000


def program(*arguments: object) -> Program:
    """Make one of the processes."""
    return Program("-m", "tests.volume", *map(str, arguments), env={})


def report_of(process: Program) -> dict[str, Any]:
    """Wait for the end of a process, and read what it saw."""
    assert process.end(LIMIT) == 0
    assert complaints(process.errors) == []
    answer: dict[str, Any] = json.loads(process.lines[-1])
    return answer


async def make_groups(url: str, name: str, groups: list[str]) -> None:
    """Let every group be there before the first message."""
    async with RedisMessageQueue(name, url, groups=tuple(groups)):
        pass


async def drained(url: str, name: str, groups: list[str], limit: float) -> bool:
    """Wait until every group has settled everything."""
    end = time.monotonic() + limit
    async with Redis.from_url(url, protocol=2) as client:
        while time.monotonic() < end:
            if await client.xlen(name) == 0:
                now = [await left(client, name, group) for group in groups]
                if not any(one.pending or one.pending_lane for one in now):
                    return True
            await asyncio.sleep(0.05)
    return False


async def look(url: str, name: str, groups: list[str]) -> list[object]:
    """Give what is left of each group, and the dead letters; remove the queue."""
    async with Redis.from_url(url, protocol=2) as client:
        seen: list[object] = [await left(client, name, group) for group in groups]
        seen.append(await dead_letters(client, name))
    async with RedisMessageQueue(name, url) as queue:
        await queue.delete()
    return seen


@pytest.mark.timeout(300)
@pytest.mark.parametrize("groups", [["one"], ["billing", "shipping"]], ids=len)
def test_every_message_is_handled_once_per_group(
    url: str, name: str, groups: list[str]
) -> None:
    """Nothing is lost or doubled or left behind, and no process grows with what it handled."""
    pytest.importorskip("psutil", reason="psutil measures memory")
    begun = time.monotonic()
    asyncio.run(make_groups(url, name, groups))
    shares = [
        (MESSAGES * at // PROCESSES, MESSAGES * (at + 1) // PROCESSES)
        for at in range(PROCESSES)
    ]

    with ExitStack() as stack:
        consumers = [
            stack.enter_context(
                program("consume", url, name, MESSAGES, ",".join(groups))
            )
            for _ in range(PROCESSES)
        ]
        for consumer in consumers:
            consumer.wait_for_lines(1)
        producers = [
            stack.enter_context(program("produce", url, name, first, end - first))
            for first, end in shares
        ]
        produced = [report_of(producer) for producer in producers]
        assert asyncio.run(drained(url, name, groups, LIMIT))
        for consumer in consumers:
            consumer.send(signal.SIGTERM)
        consumed = [report_of(consumer) for consumer in consumers]
    took = time.monotonic() - begun

    assert took < LIMIT
    assert sum(one["produced"] for one in produced) == MESSAGES
    for group in groups:
        shares_of_group = [base64.b64decode(one["seen"][group]) for one in consumed]
        times = Counter(map(sum, zip(*shares_of_group, strict=True)))
        assert times == {1: MESSAGES}
    assert asyncio.run(look(url, name, groups)) == [NOTHING] * len(groups) + [[]]
    grown = [one["grown"] for one in produced + consumed]
    assert max(grown) < MOST_GROWN, grown
    print(  # noqa: T201 -- shown by `pytest -s`: how long, and how much more memory
        f"\n{MESSAGES} messages, {len(groups)} group(s): {took:.1f} s, "
        f"grown by {[f'{one / 1e6:.1f}' for one in grown]} MB, "
        f"handled by each: {[one['handled'] for one in consumed]}"
    )
