"""Fixtures of the fault tests."""

from __future__ import annotations

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
