"""The commands that look into a queue or use it, one function each. They return the exit code."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from ._config import ConsumerConfig
from ._connection import Connection
from ._consumer import Consumer
from ._errors import DecodeError
from ._jsonl import NotJSONError, read_lines
from ._queue import RedisMessageQueue
from ._terminal import UsageError, complain, without_secrets, write, write_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


# Records asked for at once when all are listed: the list of a long queue is never in memory.
_PAGE = 1000

# Messages `consume` reads at once.
_READ = 100


async def produce(queue: str, url: str, body: object) -> int:
    """Send one message and print its id."""
    async with _without_groups(queue, url) as producer:
        write(await producer.produce(body))
    return 0


async def produce_lines(queue: str, url: str, fd: int) -> int:
    """Send a message for each line and print their ids; a bad line is named, and makes it 1."""
    code = 0
    async with _without_groups(queue, url) as producer:
        async for lines in read_lines(fd):
            bodies = []
            for line in lines:
                if line.is_blank:
                    continue
                try:
                    bodies.append(line.value())
                except NotJSONError as error:
                    complain(f"<stdin>:{line.number}: {error}")
                    code = 1
            if bodies:
                write("\n".join(await producer.produce_many(bodies)))
    return code


async def consume(queue: str, url: str, group: str | None, count: int | None) -> int:
    """Print the bodies of messages, and acknowledge each once it is printed.

    Args:
        queue: Its name.
        url: Server.
        group: Whose messages; made if need be.
        count: Messages after which it ends; None for no end.
    """
    config = ConsumerConfig(
        group=group,
        concurrency=1,
        # Few at a time: what it has read and does not print goes back, to the end of the line.
        count=min(count or _READ, _READ),
        # What is not settled when it stops could not be printed: nothing to wait for.
        shutdown_timeout=0,
    )
    async with Consumer(RedisMessageQueue(queue, url), None, config) as consumer:
        left = count
        async for message in consumer:
            try:
                body = message.body
            except DecodeError as error:
                complain(f"{message.id} becomes a dead letter: {error}")
                message.reject(str(error))
            else:
                write_json(body)
                message.ack()
            left = None if left is None else left - 1
            if left == 0:
                break
    return 0


async def groups(queue: str, url: str) -> int:
    """Print the consumer groups of a queue."""
    async with _existing(queue, url) as there:
        for group in await there.groups():
            write_json(asdict(group))
    return 0


async def records(queue: str, url: str, after: str | None, limit: int | None) -> int:
    """Print what is stored in a queue, oldest first."""
    async with _existing(queue, url) as there:
        while limit is None or limit > 0:
            page = await there.records(after=after, limit=min(limit or _PAGE, _PAGE))
            for record in page:
                headers = dict(record.headers)
                write_json({"id": record.id, "headers": headers, "body": record.body})
            if len(page) < _PAGE:
                break
            after = page[-1].id
            limit = None if limit is None else limit - len(page)
    return 0


def _without_groups(queue: str, connection: str | Connection) -> RedisMessageQueue:
    """Name a queue without making its default group, which nobody may ever read."""
    return RedisMessageQueue(queue, connection, groups=())


@asynccontextmanager
async def _existing(queue: str, url: str) -> AsyncIterator[RedisMessageQueue]:
    """Open a queue to look at; looking at one that is not there must not make it.

    Raises:
        UsageError: It is not there.
    """
    named = _without_groups(queue, Connection(url))
    async with named.channel.connection as connection:
        link = await connection.link(queue)
        if not await link.call("EXISTS", queue):
            msg = f"there is no queue {queue!r} on {without_secrets(url)}"
            raise UsageError(msg)
        async with named:
            yield named
