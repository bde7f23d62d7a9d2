"""Send orders from a process of its own; `worker.py` handles them in another.

Needs: a Redis or Valkey server; REDIS_URL says where, else it is looked for on this machine.
Run:   python examples/producer.py

Prints:

    5 orders sent
"""

import asyncio
import os

from aioredismq import RedisMessageQueue

url = os.environ.get("REDIS_URL", "redis://localhost:6379/0")
orders = RedisMessageQueue("shop-orders", url)


async def main() -> None:
    async with orders:  # also makes the worker's group, so that none need run yet
        ids = await orders.produce_many(
            ({"id": n, "total": n * 10.0} for n in range(1, 6)),
            headers={"shop": "Lisbon"},
        )
    print(f"{len(ids)} orders sent")


asyncio.run(main())
