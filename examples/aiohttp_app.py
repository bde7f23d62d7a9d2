"""An aiohttp application that takes orders over HTTP and handles them in the background.

The consumers live in `cleanup_ctx`: they start with the application, and when it is stopped they
finish what they have begun and hand the rest back.

Needs: pip install aiohttp; a Redis or Valkey server (REDIS_URL, else on this machine).
Run:   PORT=8080 python examples/aiohttp_app.py
Try:   curl -d '{"id": 1, "total": 9.99}' localhost:8080/orders

Prints, after that:

    order 1: 9.99 charged
"""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

from aiohttp import web

from aioredismq import MessageQueueError, RedisMessageQueue

url = os.environ.get("REDIS_URL", "redis://localhost:6379/0")
orders = RedisMessageQueue("site-orders", url)


@dataclass
class Order:
    id: int
    total: float


@orders.handler(concurrency=32)
async def charge(order: Order) -> None:
    await asyncio.sleep(0.1)  # stands for the payment provider
    print(f"order {order.id}: {order.total:.2f} charged")


async def background(app: web.Application) -> AsyncIterator[None]:
    async with orders.consuming():  # opens the queue, too
        yield


routes = web.RouteTableDef()


@routes.post("/orders")
async def place(request: web.Request) -> web.Response:
    try:
        message_id = await orders.produce(await request.json())
    except MessageQueueError as error:
        return web.json_response({"detail": str(error)}, status=503)
    return web.json_response({"message": message_id}, status=202)


@routes.get("/health")
async def health(request: web.Request) -> web.Response:
    state = orders.health()  # asks nobody: cheap enough for any probe
    return web.json_response(
        {"healthy": state.healthy, "problems": state.problems},
        status=200 if state.healthy else 503,
    )


app = web.Application()
app.add_routes(routes)
app.cleanup_ctx.append(background)

if __name__ == "__main__":
    # A request whose body is still to come would hold up the end for a minute: for so long aiohttp
    # waits for it, and meanwhile messages are taken.
    web.run_app(
        app,
        host="127.0.0.1",
        port=int(os.environ.get("PORT", "8080")),
        shutdown_timeout=5,
    )
