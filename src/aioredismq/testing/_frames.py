"""Where values of the Redis protocol end, in bytes that arrive in pieces."""

from __future__ import annotations


class Frames:
    """Count the values in one direction of a connection: requests, or replies.

    It keeps positions, not data. RESP2 and RESP3; an inline command and whatever is not the
    protocol at all counts line by line.
    """

    def __init__(self) -> None:
        """Begin between two values."""
        self._line = b""
        self._bulk = 0
        self._missing: list[int] = []

    def ends(self, data: bytes) -> list[int]:
        """Say at which positions of `data`, the next piece, a value has ended."""
        found = []
        at = 0
        while at < len(data):
            if self._bulk:
                step = min(self._bulk, len(data) - at)
                self._bulk -= step
                at += step
                is_whole = not self._bulk
            else:
                newline = data.find(b"\n", at)
                if newline < 0:
                    self._line += data[at:]
                    break
                line, self._line = self._line + data[at:newline], b""
                at = newline + 1
                is_whole = self._read(line.rstrip())
            if is_whole and self._completes():
                found.append(at)
        return found

    def _read(self, line: bytes) -> bool:
        """Take a line in; says whether it is a value of its own."""
        try:
            length = int(line[1:])
        except ValueError:
            return bool(line)  # an empty line between commands is nothing
        match line[:1]:
            case b"$" | b"=" | b"!" if length >= 0:
                self._bulk = length + 2
                return False
            case b"*" | b"~" | b">" if length > 0:
                self._missing.append(length)
                return False
            case b"%" if length > 0:
                self._missing.append(2 * length)
                return False
            case b"|":
                self._missing.append(2 * length + 1)  # and the value it is about
                return False
            case _:
                return True

    def _completes(self) -> bool:
        """Count a value; says whether nothing around it is still open."""
        while self._missing:
            self._missing[-1] -= 1
            if self._missing[-1]:
                return False
            self._missing.pop()
        return True
