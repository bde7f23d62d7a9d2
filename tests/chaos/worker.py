"""A worker process to be killed, stopped and told to go.

    python -m tests.chaos.worker URL QUEUE '{"visibility_timeout": 1.5}'

Each message says what becomes of it; each step is printed as it happens.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aioredismq import (
    ExponentialBackoff,
    Message,
    RedisMessageQueue,
    RejectMessage,
    RetryMessage,
)
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def end(message: Message) -> None:
    """Take `seconds`, none if not said, wait until this worker may end any, and succeed."""
    await asyncio.sleep(message.body.get("seconds", 0))
    if MAY_END is not None:
        await eventually(MAY_END.exists, 3600)


async def hang(message: Message) -> None:
    """Take for ever."""
    await asyncio.sleep(3600)


async def exit(message: Message) -> None:  # noqa: A001 -- what the message says
    """End the process as a bug in an extension module may."""
    await end(message)
    os._exit(1)


async def kill(message: Message) -> None:
    """End the process as the system does when memory runs out."""
    await end(message)
    os.kill(os.getpid(), signal.SIGKILL)


async def block(message: Message) -> None:
    """Let nothing else of the process run for `seconds`."""
    time.sleep(message.body["seconds"])  # noqa: ASYNC251 -- what must not be done


async def extend(message: Message) -> None:
    """Ask about the lease, renew it, and ask again."""
    await end(message)
    before = message.lease_remaining
    say("extended", message, await message.extend(), message.lease_remaining > before)


async def retry(message: Message) -> None:
    """Take `seconds`, and ask for another attempt."""
    await end(message)
    raise RetryMessage("once more", delay=0)


async def reject(message: Message) -> None:
    """Take `seconds`, and give up."""
    await end(message)
    raise RejectMessage("no")


DEEDS: dict[str, Callable[[Message], Awaitable[None]]] = {
    deed.__name__: deed
    for deed in (end, hang, exit, kill, block, extend, retry, reject)
}


def say(what: str, message: Message, *more: object) -> None:
    """Print a step of a message: one write, so that no line is ever cut in two."""
    words = (what, message.body["number"], *more)
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def handle(message: Message) -> None:
    """Do what the message says, or what this worker does instead."""
    say("begin", message, message.attempt)
    deed = message.body.get("do", "end")
    if message.body.get("fails", 0) >= message.attempt:
        deed = "retry"
    elif WORKS_AS is not None:
        deed = WORKS_AS
    try:
        await DEEDS[deed](message)
    except asyncio.CancelledError:
        say("cancelled", message)
        raise
    say("end", message)


async def work(url: str, name: str, settings: dict[str, Any]) -> None:
    """Consume until a signal comes."""
    queue = RedisMessageQueue(name, url)
    queue.handler(retry=ExponentialBackoff(initial=0), **settings)(handle)
    os.write(1, b"ready\n")
    await queue.run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    options = json.loads(sys.argv[3])
    WORKS_AS: str | None = options.pop("works_as", None)
    gate = options.pop("gate", None)
    MAY_END = None if gate is None else Path(gate)
    asyncio.run(work(sys.argv[1], sys.argv[2], options))
