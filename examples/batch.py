"""A handler that takes many messages at once and settles each of them by itself.

It gets what is there, up to `batch_size`, and never waits for a batch to fill. What it does not
mark is acknowledged when it returns; had it raised, only what it had not marked would have failed.

Needs: a Redis or Valkey server; REDIS_URL says where, else it is looked for on this machine.
Run:   python examples/batch.py

Prints, and then waits for more until Ctrl-C (failures are logged besides):

    batch of 5: stored [21, 22, 23]
    given up: below absolute zero
    batch of 1: stored [25]
"""

import asyncio
import os

from aioredismq import Failure, Message, RedisMessageQueue

url = os.environ.get("REDIS_URL", "redis://localhost:6379/0")
readings = RedisMessageQueue("readings", url)


async def give_up(message: Message, failure: Failure) -> None:
    print(f"given up: {failure.detail}")


@readings.handler(batch_size=100, failover_callback=give_up)
async def store(messages: list[Message]) -> None:
    rows = []
    for message in messages:
        celsius = message.body["celsius"]
        if celsius < -273:
            message.reject("below absolute zero")  # never again: a dead letter
        elif celsius == 25 and message.attempt == 1:
            message.retry("the sensor was warming up", delay=0.2)
        else:
            rows.append(celsius)
    print(f"batch of {len(messages)}: stored {rows}")  # one INSERT for all of them


async def main() -> None:
    async with readings:
        await readings.produce_many({"celsius": c} for c in (21, 22, -300, 25, 23))
        await readings.run()  # until Ctrl-C


asyncio.run(main())
