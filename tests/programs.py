"""Programs as a user starts them: in a process of their own, stopped by a signal."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import LONGEST_LOOK

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType
    from typing import IO, Self

ROOT = Path(__file__).parent.parent


def complaints(lines: Iterable[str]) -> list[str]:
    """Leave out what a consumer says when the machine has not run its process for a second.

    It is right then, and it is not what a test is about.
    """
    return [line for line in lines if "the event loop was blocked" not in line]


class Program:
    """A Python program whose output is read as it comes."""

    def __init__(self, *arguments: str | Path, env: Mapping[str, str]) -> None:
        """Say what follows `python`; nothing starts yet.

        Args:
            arguments: A file, or `-m` and a module, and what they take.
            env: What its environment has besides ours.
        """
        self._command = [sys.executable, *map(str, arguments)]
        self._env = {**os.environ, "PYTHONUNBUFFERED": "1", **env}
        self._process: subprocess.Popen[str] | None = None
        self._readers: list[threading.Thread] = []
        self.lines: list[str] = []
        """What it has printed."""
        self.errors: list[str] = []
        """What it has written to standard error."""

    def __enter__(self) -> Self:
        """Start it in the root of the project."""
        self._process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for stream, lines in (
            (self._process.stdout, self.lines),
            (self._process.stderr, self.errors),
        ):
            assert stream is not None
            reader = threading.Thread(target=_read, args=(stream, lines))
            reader.start()
            self._readers.append(reader)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it, if it has not ended; show its errors beside a failing test."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join()
        if exc is not None:
            exc.add_note("\n".join(["it printed:", *self.lines]))
            exc.add_note("\n".join(["and as errors:", *self.errors]))

    @property
    def process(self) -> subprocess.Popen[str]:
        """The running process."""
        assert self._process is not None
        return self._process

    def wait_until(self, is_true: Callable[[], bool], limit: float = 30.0) -> None:
        """Wait for something it does; fail when it ends before, or takes too long."""
        left = limit
        looked = time.monotonic()
        while not is_true():
            if self.process.poll() is not None:
                for reader in self._readers:
                    reader.join()
                if is_true():
                    return
                raise AssertionError(f"it ended with {self.process.returncode}")
            if left < 0:
                raise AssertionError(f"not within {limit:g} s")
            time.sleep(0.01)
            now = time.monotonic()
            left -= min(now - looked, LONGEST_LOOK)
            looked = now

    def wait_for_lines(self, count: int) -> None:
        """Wait until it has printed so many lines."""
        self.wait_until(lambda: len(self.lines) >= count)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def end(self, limit: float = 30.0) -> int:
        """Wait until it has ended by itself and all it printed is read; its exit code."""
        code = self.process.wait(limit)
        for reader in self._readers:
            reader.join()
        return code


def _read(stream: IO[str], lines: list[str]) -> None:
    with stream:
        lines.extend(line.rstrip("\n") for line in stream)
