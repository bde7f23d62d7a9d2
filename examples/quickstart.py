"""The least there is: three messages sent, handled and acknowledged.

Needs: a Redis or Valkey server; REDIS_URL says where, else it is looked for on this machine.
Run:   python examples/quickstart.py

Prints, and then waits for more until Ctrl-C:

    order 1: 9.99 charged
    order 2: 20.00 charged
    order 3: 30.00 charged
"""

import asyncio
import os
from dataclasses import dataclass

from aioredismq import RedisMessageQueue

url = os.environ.get("REDIS_URL", "redis://localhost:6379/0")
orders = RedisMessageQueue("orders", url)  # connects later, in `async with`


@dataclass
class Order:
    id: int
    total: float


@orders.handler
async def charge(order: Order) -> None:
    print(f"order {order.id}: {order.total:.2f} charged")


async def main() -> None:
    async with orders:
        await orders.produce({"id": 1, "total": 9.99})
        await orders.produce_many(Order(n, n * 10) for n in (2, 3))
        await orders.run()  # until Ctrl-C


asyncio.run(main())
