"""Fixtures of the fault tests."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from aioredismq.testing import RedisServer
from tests.programs import complaints

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


# What is tried behind Sentinel and in a Cluster, too, when there is not much time.
_EVERYWHERE = {"test_what_a_killed_process_held_is_taken_over"}


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Let most of what processes go through do on a single server, unless there is time."""
    if config.getoption("--long"):
        return
    spared = {
        item
        for item in items
        if item.path.name == "test_processes.py"
        and ("sentinel" in item.name or "cluster" in item.name)
        and getattr(item, "originalname", "") not in _EVERYWHERE
    }
    config.hook.pytest_deselected(items=list(spared))
    items[:] = [item for item in items if item not in spared]


@pytest.fixture
def durable_server(server_path: Path | None) -> Iterator[RedisServer]:
    """A server for one test, which keeps every write through a kill."""
    with RedisServer(
        server_path, persistence=True, args=("--appendfsync", "always")
    ) as server:
        yield server


@pytest.fixture
def outage(request: pytest.FixtureRequest) -> float:
    """Seconds for which a server is away in a long outage."""
    seconds: float = request.config.getoption("--outage")
    return seconds


class _Warnings(logging.Handler):
    """Counts what is logged for people: warnings and above."""

    def __init__(self) -> None:
        """Nothing yet."""
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Count one."""
        self.lines += complaints([record.getMessage()])


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What this package warns about."""
    handler = _Warnings()
    logger = logging.getLogger("aioredismq")
    logger.addHandler(handler)
    yield handler.lines
    logger.removeHandler(handler)
