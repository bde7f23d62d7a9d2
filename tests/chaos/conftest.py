"""Fixtures of the fault tests."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from aioredismq.testing import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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
        self.lines.append(record.getMessage())


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What this package warns about."""
    handler = _Warnings()
    logger = logging.getLogger("aioredismq")
    logger.addHandler(handler)
    yield handler.lines
    logger.removeHandler(handler)
