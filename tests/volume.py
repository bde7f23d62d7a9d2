"""The processes of the volume test: each produces or consumes its share, and says what it saw.

    python -m tests.volume produce URL QUEUE FIRST COUNT
    python -m tests.volume consume URL QUEUE COUNT GROUP,GROUP

A consumer prints `ready`, and stops at SIGTERM. The last line of each is its report, as JSON.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from typing import TYPE_CHECKING

import psutil

from aioredismq import RedisMessageQueue

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 200
_LOOK_EVERY = 500


class Memory:
    """How much more memory this process has needed since the first quarter of its work."""

    def __init__(self, work: int) -> None:
        """Say how much there is to do, about."""
        self._quarter = work // 4
        self._process = psutil.Process()
        self._at_quarter = 0
        self._most = 0

    def done(self, count: int) -> None:
        """Look, now and then."""
        if count % _LOOK_EVERY and self._at_quarter:
            return
        if count >= self._quarter:
            now = self._process.memory_info().rss
            self._at_quarter = self._at_quarter or now
            self._most = max(self._most, now)

    @property
    def grown(self) -> int:
        """Bytes."""
        return self._most - self._at_quarter


def body(number: int) -> dict[str, object]:
    """Make a message of 200 bytes."""
    bare = len(json.dumps({"n": number, "pad": ""}, separators=(",", ":")))
    return {"n": number, "pad": "x" * (SIZE - bare)}


async def produce(url: str, name: str, first: int, count: int) -> None:
    """Store so many messages, numbered from `first`."""
    memory = Memory(count)

    def bodies() -> Iterator[dict[str, object]]:
        for number in range(count):
            memory.done(number)
            yield body(first + number)

    async with RedisMessageQueue(name, url, groups=()) as queue:
        ids = await queue.produce_many(bodies())
    report(produced=len(set(ids)), grown=memory.grown)


async def consume(url: str, name: str, count: int, groups: list[str]) -> None:
    """Count how often each of `count` messages is handled here, for each group."""
    queue = RedisMessageQueue(name, url)
    seen = {group: bytearray(count) for group in groups}
    memory = Memory(count * len(groups) // 3)
    handled = 0

    def register(times: bytearray, group: str) -> None:
        @queue.handler(group=group, concurrency=32)
        async def handler(message: dict[str, object]) -> None:
            nonlocal handled
            number = message["n"]
            assert isinstance(number, int)
            times[number] += 1
            handled += 1
            memory.done(handled)

    for group, times in seen.items():
        register(times, group)
    async with queue:
        print("ready")  # noqa: T201 -- what the test waits for
        await queue.run()
    report(
        handled=handled,
        grown=memory.grown,
        seen={group: base64.b64encode(times).decode() for group, times in seen.items()},
    )


def report(**what: object) -> None:
    """Say what it saw, as the last line."""
    print(json.dumps(what))  # noqa: T201 -- what the test reads


def main() -> None:
    """Do what the command line says."""
    kind, url, name, *rest = sys.argv[1:]
    if kind == "produce":
        first, count = map(int, rest)
        asyncio.run(produce(url, name, first, count))
    else:
        asyncio.run(consume(url, name, int(rest[0]), rest[1].split(",")))


if __name__ == "__main__":
    main()
