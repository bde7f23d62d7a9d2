"""A FastAPI application that takes orders over HTTP and handles them in the background.

The consumers live in the lifespan: they start with the application, and when it is stopped they
finish what they have begun and hand the rest back.

Needs: pip install fastapi uvicorn; a Redis or Valkey server (REDIS_URL, else on this machine).
Run:   uvicorn examples.fastapi_app:app --port 8000
Try:   curl -d '{"id": 1, "total": 9.99}' -H 'content-type: application/json' localhost:8000/orders

Prints, after that:

    order 1: 9.99 charged
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from aioredismq import MessageQueueError, RedisMessageQueue

url = os.environ.get("REDIS_URL", "redis://localhost:6379/0")
orders = RedisMessageQueue("web-orders", url)


class Order(BaseModel):
    id: int
    total: float


@orders.handler(concurrency=32)
async def charge(order: Order) -> None:
    await asyncio.sleep(0.1)  # stands for the payment provider
    print(f"order {order.id}: {order.total:.2f} charged")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with orders.consuming():  # opens the queue, too
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/orders", status_code=202)
async def place(order: Order) -> dict[str, str]:
    return {"message": await orders.produce(order)}


@app.get("/health")
async def health(response: Response) -> dict[str, object]:
    state = orders.health()  # asks nobody: cheap enough for any probe
    response.status_code = 200 if state.healthy else 503
    return {"healthy": state.healthy, "problems": state.problems}


@app.exception_handler(MessageQueueError)
async def unavailable(request: Request, error: MessageQueueError) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status_code=503)
