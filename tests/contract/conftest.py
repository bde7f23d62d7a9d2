"""The promises, on each way to run Redis: a single server, behind Sentinel, and a Cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aioredismq import Connection, RedisMessageQueue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support import Deployment


_HERE = Path(__file__).parent


@pytest.fixture
async def connection(deployment: Deployment) -> AsyncIterator[Connection]:
    """One connection that the queues of a test share."""
    async with Connection(deployment.url) as opened:
        yield opened


@pytest.fixture
async def queue(name: str, connection: Connection) -> AsyncIterator[RedisMessageQueue]:
    """An open queue, removed afterwards."""
    async with RedisMessageQueue(name, connection) as opened:
        yield opened
        await opened.delete()


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Behind Sentinel and on a Cluster let one event loop do, unless one was asked for.

    What differs there is where connections lead; what differs between the loops is how they are
    read, and that is seen on a single server.
    """
    if config.getoption("--loop") != "both-where-it-matters":
        return
    spared = [
        item
        for item in items
        if item.path.parent == _HERE
        and "uvloop" in item.name
        and ("sentinel" in item.name or "cluster" in item.name)
    ]
    config.hook.pytest_deselected(items=spared)
    items[:] = [item for item in items if item not in set(spared)]
