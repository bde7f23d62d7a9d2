"""How tests of sending open a batcher or a stream, and count what is said and stored."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aioredismq import Connection, ProducerConfig, QueueConfig
from aioredismq._batcher import Batcher
from aioredismq._channel import Channel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aioredismq._stream import Stream
    from tests.support import Client


@asynccontextmanager
async def open_stream(
    target: str | Connection, name: str, config: QueueConfig | None = None
) -> AsyncIterator[Stream]:
    """Open a queue's stream on a connection of its own, or on this one."""
    connection = Connection(target) if isinstance(target, str) else target
    channel = Channel(name, connection, config or QueueConfig())
    stream = await channel.open()
    try:
        yield stream
    finally:
        await channel.close()


@asynccontextmanager
async def open_batcher(
    target: str | Connection, name: str, **settings: Any
) -> AsyncIterator[Batcher]:
    """Open a batcher with these settings of `ProducerConfig`, and close it."""
    async with open_stream(target, name) as stream:
        batcher = Batcher(stream.link, stream.keys, ProducerConfig(**settings))
        try:
            yield batcher
        finally:
            await batcher.close()


def plain(body: object) -> tuple[list[bytes], int]:
    """Write a small message as `Batcher.append` takes it: its fields and its bytes."""
    text = str(body).encode()
    return [b"body", text], len(text)


async def stored(client: Client, name: str) -> dict[str, str]:
    """List what is in a stream: each id with its body, oldest first."""
    return {
        entry_id.decode(): fields[b"body"].decode()
        for entry_id, fields in await client.xrange(name)
    }


async def remembered(client: Client, name: str) -> dict[int, list[str]]:
    """List the batches a queue's producers are remembered for: number and ids, in order."""
    found: dict[int, list[str]] = {}
    for key in await memories(client, name):
        for number, ids in (await client.hgetall(key)).items():
            if number != b"low":
                found[int(number)] = ids.decode().split(" ")
    return dict(sorted(found.items()))


async def memories(client: Client, name: str) -> list[bytes]:
    """List the keys under which producers are remembered."""
    return [key async for key in client.scan_iter(f"{{{name}}}:sent:*", count=1000)]


async def script_calls(client: Client) -> int:
    """Count the scripts this server has been asked to run by their digest, refused ones too."""
    stats = await client.info("commandstats")
    about = stats.get("cmdstat_evalsha", {})
    return int(about.get("calls", 0)) + int(about.get("rejected_calls", 0))


def be_patient(batcher: Batcher) -> None:
    """Let everything from now on have the time a busy machine may need."""
    batcher._config = ProducerConfig()


def be_hasty(batcher: Batcher, seconds: float = 0.1) -> None:
    """Let everything from now on be given up soon."""
    batcher._config = ProducerConfig(produce_timeout=seconds)
    if batcher._timer is not None:  # armed for the first deadline, which was later
        batcher._timer.cancel()
        batcher._timer = None
