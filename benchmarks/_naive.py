"""What one writes with redis-py alone on the first day: the loops other figures stand beside.

One awaited XADD a message; XREADGROUP, the handler, one awaited XACK a message. It deletes
nothing (which spares it a command), recovers nothing, and retries nothing.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from redis.asyncio import BlockingConnectionPool, Redis

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

# Larger reads are kinder to the naive loop than the usual COUNT 1 or 10.
_READ_COUNT = 64
_BLOCK_MS = 5000


def connect(url: str) -> Redis:
    """Make a client whose blocking reads live longer than redis-py's own time limit."""
    return Redis.from_pool(
        BlockingConnectionPool.from_url(url, max_connections=16, socket_timeout=None)
    )


async def produce(client: Redis, stream: str, body: object) -> None:
    """Store one message."""
    await client.xadd(stream, {"body": json.dumps(body)})


async def produce_pipelined(
    client: Redis, stream: str, bodies: Sequence[object]
) -> None:
    """Store many with one pipeline: the fastest redis-py offers."""
    pipeline = client.pipeline(transaction=False)
    for body in bodies:
        pipeline.xadd(stream, {"body": json.dumps(body)})
    await pipeline.execute()


async def consume(
    client: Redis,
    stream: str,
    group: str,
    handler: Callable[[Any], Awaitable[None]],
    *,
    until_empty: bool = False,
) -> None:
    """Read, handle, acknowledge; for ever, or until a read brings nothing."""
    block = None if until_empty else _BLOCK_MS
    while True:
        reply: Any = await client.xreadgroup(
            group, "naive", {stream: ">"}, count=_READ_COUNT, block=block
        )
        if not reply and until_empty:
            return
        for _, entries in reply:
            for entry_id, fields in entries:
                await handler(json.loads(fields[b"body"]))
                await client.xack(stream, group, entry_id)
