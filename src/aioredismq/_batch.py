"""Messages that travel together, and who waits for their ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence


class Batch:
    """One numbered batch. A plain class with slots: one is made per lone send."""

    __slots__ = (
        "__weakref__",
        "arguments",
        "count",
        "deadline",
        "first_sent",
        "has_times",
        "ids",
        "number",
        "size",
        "under_way",
        "waiters",
        "whole",
    )

    def __init__(self, number: int, deadline: float) -> None:
        self.number = number
        self.deadline = deadline
        self.arguments: list[bytes | str | int] = []
        self.count = 0
        self.size = 0
        self.first_sent: float | None = None
        self.ids: list[str] | None = None
        self.has_times = False
        self.under_way = False
        self.waiters: list[asyncio.Future[str]] = []
        self.whole: asyncio.Future[list[str]] | None = None

    def add(self, fields: Sequence[bytes], size: int, times: str = "") -> None:
        if times:
            self.has_times = True
            self.arguments.append(f"{len(fields)}:{times}")
        else:
            self.arguments.append(len(fields))
        self.arguments += fields
        self.count += 1
        self.size += size
