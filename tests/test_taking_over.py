"""Streams of the JavaScript library "Redis Message Queue" are taken over as they are."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import pytest

from aioredismq import Consumer, QueueMismatchError, RedisMessageQueue
from tests.looking import NOTHING, Handled, left

if TYPE_CHECKING:
    from tests.support import Client


async def as_the_original_left_it(client: Client, name: str) -> None:
    """Make what it makes: a marker, a handled entry, a failure and its copy, and a new entry."""
    group = f"{name}_group"
    marker = json.dumps({"queueInitialized": True, "queueName": name})
    await client.xadd(name, {marker: "0.1"})
    await client.xgroup_create(name, group, "0")
    await client.xadd(name, {json.dumps({"id": "handled"}): "0.2"})
    await client.xadd(name, {json.dumps({"id": "failed"}): "0.3"})
    read = await client.xreadgroup(group, "qconsumer", {name: ">"}, count=3)
    ids = [entry_id for entry_id, _ in read[0][1]]
    await client.xack(name, group, *ids[:2])
    await client.xadd(f"failover_{name}", {json.dumps({"id": "failed"}): "0.3"})
    await client.xadd(name, {json.dumps({"id": "new"}): "0.4"})


async def test_a_running_installation_is_taken_over(
    url: str, name: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """A stuck failure is handled once, the marker never, and the copy is only reported."""
    await as_the_original_left_it(client, name)
    handled = Handled()
    caplog.set_level(logging.WARNING, "aioredismq")

    queue = RedisMessageQueue(name, url, wire="original")
    queue.handler(visibility_timeout=0.5)(handled)
    async with queue.consuming():
        await handled.until(2)
        await queue.produce({"id": "ours"})
        await handled.until(3)
    remains = await left(client, name)

    assert sorted(body["id"] for body in handled.bodies) == ["failed", "new", "ours"]
    assert (remains.pending, remains.pending_lane) == (0, 0)
    assert await client.xlen(f"failover_{name}") == 1
    assert f"failover_{name} has copies of earlier failures, 1 of them" in caplog.text
    await client.delete(f"failover_{name}")


async def test_the_marker_is_not_pulled_either(
    url: str, name: str, client: Client
) -> None:
    """Who iterates gets messages only."""
    marker = json.dumps({"queueInitialized": True, "queueName": name})
    await client.xadd(name, {marker: "0.1"})
    await client.xadd(name, {json.dumps({"id": "new"}): "0.2"})

    queue = RedisMessageQueue(name, url, wire="original")
    async with queue, Consumer(queue, None) as consumer:
        async for message in consumer:
            async with message:
                assert message.body == {"id": "new"}
                break

    assert await left(client, name) == NOTHING


async def test_what_is_produced_is_as_the_original_writes_it(
    url: str, name: str, client: Client
) -> None:
    """The JSON text is the field's name, a random number its value."""
    async with RedisMessageQueue(name, url, wire="original") as queue:
        await queue.produce({"id": 1})
        [(_, fields)] = await client.xrange(name)

    [(text, value)] = fields.items()
    assert json.loads(text) == {"id": 1}
    assert 0 <= float(value) < 1


async def test_both_sides_must_agree_on_the_wire(url: str, name: str) -> None:
    """A process that would misread the other's entries is told so at start."""
    async with RedisMessageQueue(name, url, wire="original"):
        with pytest.raises(
            QueueMismatchError, match=r"wire='original'.*asks for 'plain'"
        ):
            await RedisMessageQueue(name, url).initialize()
