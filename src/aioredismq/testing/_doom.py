"""The request whose reply is lost on purpose."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from ._frames import Frames

if TYPE_CHECKING:
    from collections.abc import Callable


class End(Enum):
    """Stands behind the last bytes that pass."""

    CLOSE = "close"
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to the reply of one request that is still to come."""

    containing: bytes
    passing: int
    end: End


class Doom:
    """Finds the request that is meant by what is armed, and ends the line at its reply."""

    def __init__(self, fault_of: Callable[[bytes], Fault | None]) -> None:
        self._fault_of = fault_of
        self._fault: Fault | None = None
        self._request_frames = Frames()
        self._reply_frames = Frames()
        self._request = b""
        self._outstanding = 0
        self._passed = 0
        self._is_over = False

    def requests(self, data: bytes) -> list[bytes | End]:
        """Look at what the client says; all of it goes on."""
        start = 0
        for end in self._request_frames.ends(data):
            request = self._request + data[start:end]
            self._request, start = b"", end
            if self._fault is None:
                self._outstanding += 1
                self._fault = self._fault_of(request)
        self._request += data[start:]
        return [data]

    def replies(self, data: bytes) -> list[bytes | End]:
        """Look at what the server says, and cut off what the client must not hear."""
        if self._is_over:
            return []
        start = 0
        for end in self._reply_frames.ends(data):
            if self._fault is not None and self._outstanding == 1:
                return self._end(self._fault, data, start, end - 1)
            # What is published on a subscribed connection is no reply to anything.
            self._outstanding = max(self._outstanding - 1, 0)
            start = end
        if self._fault is not None and self._outstanding == 1:
            return self._begin(self._fault, data, start)
        return [data]

    def _begin(self, fault: Fault, data: bytes, start: int) -> list[bytes | End]:
        """Let pass what may of a reply that has not arrived whole."""
        if start < len(data) and self._passed + len(data) - start >= fault.passing:
            return self._end(fault, data, start, len(data))
        self._passed += len(data) - start
        return [data]

    def _end(
        self, fault: Fault, data: bytes, start: int, stop: int
    ) -> list[bytes | End]:
        """Let the last bytes pass, `stop` at most; what follows is heard by nobody."""
        self._is_over = True
        last = min(start + fault.passing - self._passed, stop)
        return [data[:last], fault.end] if last else [fault.end]
