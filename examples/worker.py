"""Handle the orders that `producer.py` sends, in a process of its own, until it is told to stop.

Start as many of these as you like: they share the orders. SIGTERM and Ctrl-C drain: what has
begun is finished, and what was not begun goes to another worker. Order 3 fails once on purpose.

Needs: a Redis or Valkey server; REDIS_URL says where, else it is looked for on this machine.
Run:   python examples/worker.py

Prints, once producer.py has run (in some order; the failure is logged besides), and the last line
after Ctrl-C:

    order 1 from Lisbon: 10.00 charged in attempt 1
    order 2 from Lisbon: 20.00 charged in attempt 1
    order 4 from Lisbon: 40.00 charged in attempt 1
    order 5 from Lisbon: 50.00 charged in attempt 1
    order 3 from Lisbon: 30.00 charged in attempt 2
    drained
"""

import asyncio
import os
from dataclasses import dataclass

from aioredismq import Message, RedisMessageQueue

url = os.environ.get("REDIS_URL", "redis://localhost:6379/0")
orders = RedisMessageQueue("shop-orders", url)


@dataclass
class Order:
    id: int
    total: float


@orders.handler(concurrency=8, max_attempts=3, shutdown_timeout=20.0)
async def charge(order: Order, message: Message) -> None:
    await asyncio.sleep(0.05)  # stands for the payment provider
    if order.id == 3 and message.attempt == 1:
        raise TimeoutError("the payment provider did not answer")
    print(
        f"order {order.id} from {message.headers['shop']}: {order.total:.2f} charged "
        f"in attempt {message.attempt}"
    )


asyncio.run(orders.run())
print("drained")
