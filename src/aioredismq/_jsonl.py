"""JSON Lines in and out: one value a line; a bad line is named and the rest goes on."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from base64 import b64encode
from codecs import BOM_UTF8
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

_BLOCK = 64 * 1024

# Far above any sensible message (Redis itself takes 512 MiB), and small enough that a file
# without line ends, such as a device, does not fill the memory.
MAX_LINE = 16 * 1024 * 1024

# Blocks read ahead of whoever handles them.
_BLOCKS_AHEAD = 4


class NotJSONError(ValueError):
    """A text that is not one JSON value; says why in a few words."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the input.

    Attributes:
        number: From 1, as editors count.
        text: Without its line end; None for one that was too long to be kept.
    """

    number: int
    text: bytes | None

    @property
    def is_blank(self) -> bool:
        """Whether there is nothing on it: no message, and no mistake either."""
        return self.text is not None and not self.text.strip()

    def value(self) -> object:
        """Decode it.

        Raises:
            NotJSONError: It is too long, or not one JSON value.
        """
        if self.text is None:
            raise NotJSONError(f"longer than {MAX_LINE >> 20} MiB")
        return parse(self.text)


class LineSplitter:
    """Cuts blocks of bytes into numbered lines."""

    def __init__(self, max_line: int = MAX_LINE) -> None:
        """Begin before line 1.

        Args:
            max_line: Bytes a line may have; the text of a longer one is dropped.
        """
        self._max_line = max_line
        self._number = 0
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, block: bytes) -> Iterator[Line]:
        """Take the next block and give the lines it completes."""
        first, *others = block.split(b"\n")
        self._keep(first)
        for other in others:
            yield self._cut()
            self._keep(other)

    def end(self) -> Iterator[Line]:
        """Give the last line, when it has no line end."""
        if self._size:
            yield self._cut()

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._max_line:
            self._parts.clear()
        elif part:
            self._parts.append(part)

    def _cut(self) -> Line:
        self._number += 1
        is_kept = self._size <= self._max_line
        text = b"".join(self._parts) if is_kept else None
        if text and self._number == 1:
            text = text.removeprefix(BOM_UTF8)  # some editors begin a file with it
        self._parts.clear()
        self._size = 0
        return Line(self._number, text)


async def read_lines(fd: int, max_line: int = MAX_LINE) -> AsyncIterator[list[Line]]:
    """Read a file, pipe or terminal to its end, in blocks of lines.

    A daemon thread reads, because nothing else serves all three: event loops do not watch
    regular files, a terminal made non-blocking is so for whoever writes to it too, and a thread
    of a pool that waits for a keyboard keeps the process from ending.

    Args:
        fd: Open file descriptor; stays open, and may be closed once the caller has left.
        max_line: As for `LineSplitter`.

    Raises:
        OSError: It cannot be read.
    """
    own = os.dup(fd)  # the caller's number is another file's once it is closed
    blocks: asyncio.Queue[bytes | OSError] = asyncio.Queue()
    room = threading.Semaphore(_BLOCKS_AHEAD)
    loop = asyncio.get_running_loop()

    def hand_over(block: bytes | OSError) -> None:
        loop.call_soon_threadsafe(blocks.put_nowait, block)

    left = threading.Event()
    threading.Thread(
        target=_read_blocks, args=(own, room, left, hand_over), daemon=True
    ).start()
    splitter = LineSplitter(max_line)
    try:
        while block := await blocks.get():
            if isinstance(block, OSError):
                raise block
            room.release()
            yield list(splitter.feed(block))
        yield list(splitter.end())
    finally:
        left.set()
        room.release()


def _read_blocks(
    fd: int,
    room: threading.Semaphore,
    left: threading.Event,
    hand_over: Callable[[bytes | OSError], None],
) -> None:
    """Read until the end (an empty block), an error, or until nobody wants it any more.

    Args:
        fd: Closed at the end.
        room: Acquired for each block.
        left: Set when nobody wants it any more.
        hand_over: Takes each block, or the error.
    """
    block: bytes | OSError = b"-"
    try:
        while isinstance(block, bytes) and block:
            room.acquire()
            if left.is_set():
                return
            try:
                block = os.read(fd, _BLOCK)
            except OSError as error:
                block = error
            hand_over(block)
    except RuntimeError:  # the event loop is closed
        return
    finally:
        os.close(fd)


def parse(text: bytes | str) -> object:
    """Decode one JSON value, strictly: what another program could not read is refused.

    Raises:
        NotJSONError: With the reason and, where there is one, the column.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode()
        value: object = _DECODER.decode(text)
        if "\\u" in text:
            render(value).encode()
    except NotJSONError:
        raise
    except (ValueError, RecursionError) as error:
        raise NotJSONError(_why(error)) from error
    return value


def _why(error: Exception) -> str:
    """Say in a few words what is wrong with a text."""
    match error:
        case json.JSONDecodeError():
            return f"not JSON: {error.msg}, column {error.colno}"
        case UnicodeDecodeError():
            return f"not UTF-8 at byte {error.start + 1}"
        case UnicodeEncodeError():
            return "has half of a surrogate pair"
        case RecursionError():
            return "nested too deeply"
        case _:  # a number of more digits than Python converts
            return f"not usable: {error}"


def render(value: object, *, ascii_only: bool = False) -> str:
    """Encode one value as one line, without its line end; bytes become `{"base64": …}`."""
    return json.dumps(value, ensure_ascii=ascii_only, default=_default)


def _default(value: object) -> object:
    """Show what JSON has no word for."""
    if isinstance(value, bytes):
        return {"base64": b64encode(value).decode()}
    return repr(value)


def _refuse(constant: str) -> NoReturn:
    """Refuse NaN and the infinities, which Python reads and JSON does not have."""
    raise NotJSONError(f"not JSON: {constant}")


_DECODER = json.JSONDecoder(parse_constant=_refuse)
