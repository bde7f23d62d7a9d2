"""What all commands share: words on the terminal, and the signals that stop them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import anyio

from ._jsonl import render

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# What a terminal, a supervisor and a closing window send to end a program.
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class UsageError(Exception):
    """The command line asks for what cannot be done; the text is one line and says why."""


def write(text: str) -> None:
    """Write a line to standard output, at once.

    Raises:
        OSError: Nobody reads it any more (`BrokenPipeError`), or the disk is full.
    """
    if sys.stdout is None:  # started with it closed
        return
    try:
        sys.stdout.write(f"{text}\n")
    except UnicodeEncodeError:
        sys.stdout.write(f"{text.encode('ascii', 'backslashreplace').decode()}\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """Write a line to standard error, as far as there is one."""
    with suppress(OSError, AttributeError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def write_json(value: object) -> None:
    """Write a value as one line of JSON, readable by people where the terminal allows it.

    Raises:
        OSError: As `write`.
    """
    text = render(value)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = render(value, ascii_only=True)
    write(text)


def silence_output() -> None:
    """Let nothing more be written, as nobody reads it.

    Without this the interpreter writes what is left when it ends, and complains.
    """
    with suppress(OSError, AttributeError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def without_secrets(url: str) -> str:
    """Name a server without its user and password."""
    try:
        parts = urlsplit(url)
    except ValueError:  # it is refused, with its reason, when it is used
        return "the given server"
    address = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{address}{parts.path}"


async def until_signal(do: Callable[[], Awaitable[object]]) -> int | None:
    """Run something until it ends, or a signal cancels it.

    Meanwhile further signals change nothing, so what `do` does on its way out must have a time
    limit. A signal the program was started to ignore (`nohup`) stays ignored.

    Returns:
        The number of the signal, None when there was none.
    """
    caught: list[int] = []
    scope = anyio.CancelScope()

    def end(number: int) -> None:
        caught.append(number)
        scope.cancel()

    loop = asyncio.get_running_loop()
    heard = [number for number in _ENDING if signal.getsignal(number) != signal.SIG_IGN]
    for number in heard:
        loop.add_signal_handler(number, end, number)
    try:
        with scope:
            await do()
    finally:
        for number in heard:
            loop.remove_signal_handler(number)
    return caught[0] if caught else None
