"""Messages that travel together, and who waits for their ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from ._errors import ServerError


class Batch:
    """One numbered batch. A plain class with slots: one is made per lone send.

    Attributes:
        first_sent: When it was first written to a connection (the loop's clock).
        under_way: Written, and its answer has not come.
        in_doubt: An answer was lost, so it may be stored whatever is said later.
        refusal: What the server said last that passes by itself.
        late: Its deadline, when its messages have waited for room; None when they came at once.
        ids: The answer.
        waiters: For each message who waits for its id.
        whole: Who waits for all of them.
    """

    __slots__ = (
        "__weakref__",
        "arguments",
        "count",
        "deadline",
        "first_sent",
        "has_times",
        "ids",
        "in_doubt",
        "is_uncertain",
        "late",
        "number",
        "refusal",
        "size",
        "under_way",
        "waiters",
        "whole",
    )

    def __init__(self, number: int, deadline: float) -> None:
        """Nothing is in it yet; it is given up at the deadline (the loop's clock)."""
        self.number = number
        self.deadline = deadline
        self.arguments: list[bytes | str | int] = []
        self.count = 0
        self.size = 0
        self.first_sent: float | None = None
        self.in_doubt = False
        self.late: float | None = None
        self.refusal: ServerError | None = None
        self.ids: list[str] | None = None
        self.is_uncertain = False
        self.has_times = False
        self.under_way = False
        self.waiters: list[asyncio.Future[str]] = []
        self.whole: asyncio.Future[list[str]] | None = None

    def add(self, fields: Sequence[bytes], size: int, times: str = "") -> None:
        """Let a message of so many bytes travel with it; `times` as `delay:at:life` in ms."""
        if times:
            self.has_times = True
            self.arguments.append(f"{len(fields)}:{times}")
        else:
            self.arguments.append(len(fields))
        self.arguments += fields
        self.count += 1
        self.size += size
