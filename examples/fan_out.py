"""Two groups on one queue: each gets every order, at its own pace.

A message stays stored until both have handled it. So the groups are named where the queue is
made: otherwise what is sent before the first consumer of a group has ever run would not wait
for it.

Needs: a Redis or Valkey server; REDIS_URL says where, else it is looked for on this machine.
Run:   python examples/fan_out.py

Prints (in some order), and then waits for more until Ctrl-C:

    billing: order 1 charged
    billing: order 2 charged
    mail: order 1 confirmed
    mail: order 2 confirmed
"""

import asyncio
import os

from aioredismq import RedisMessageQueue

url = os.environ.get("REDIS_URL", "redis://localhost:6379/0")
orders = RedisMessageQueue("all-orders", url, groups=("billing", "mail"))


@orders.handler(group="billing")
async def charge(order: dict[str, int]) -> None:
    print(f"billing: order {order['id']} charged")


@orders.handler(group="mail", concurrency=4)
async def confirm(order: dict[str, int]) -> None:
    await asyncio.sleep(0.05)  # stands for the mail server
    print(f"mail: order {order['id']} confirmed")


async def main() -> None:
    async with orders:
        await orders.produce_many({"id": n} for n in (1, 2))
        await orders.run()  # both groups, until Ctrl-C


asyncio.run(main())
