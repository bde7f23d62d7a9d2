"""The child processes of the demo: started, watched and never left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

import anyio

from ._demo_tally import RecordFile
from ._terminal import complain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from anyio.abc import TaskGroup

# Lines of a worker's standard error that are passed on: the first at once, and the last, as a
# traceback has its cause there.
_FIRST_NOTES = 5
_LAST_NOTES = 5

# Seconds a worker has to go after it was told to. While the server answers it takes milliseconds.
_PATIENCE = 5.0
_LAST_PATIENCE = 3.0


class Worker:
    """One child process, seen from the parent."""

    def __init__(self, role: Literal["producer", "consumer"], number: int) -> None:
        """Describe it; nothing is started yet."""
        self.role = role
        self.name = f"{role} {number}"
        self.records = RecordFile()
        self.latency = ""
        self.is_ready = False
        self.exit_code: int | None = None
        self._process: asyncio.subprocess.Process | None = None

    @property
    def is_alive(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self.exit_code is None

    @property
    def state(self) -> str:
        """What it is doing, in a word or two."""
        if self.exit_code is None:
            return "running" if self.is_ready else "starting"
        if self.exit_code < 0:
            return f"killed ({signal.Signals(-self.exit_code).name})"
        return f"failed ({self.exit_code})" if self.exit_code else "done"

    async def start(self, url: str, options: Sequence[str]) -> None:
        """Start it, by this interpreter, in a session of its own: Ctrl-C is for the parent."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", __package__, f"_demo-{self.role}"),
            *("--record-fd", str(self.records.fd), *options),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=[self.records.fd],
            start_new_session=True,
            # Not an argument: those are there for every user of the machine to read.
            env={**os.environ, "REDIS_URL": url},
        )

    async def watch(self, changed: Callable[[], None]) -> None:
        """Listen to it until it has ended.

        Args:
            changed: Called when it is ready, and when it has ended.
        """
        process = self._process
        assert process is not None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._listen, process.stdout, changed)
            tasks.start_soon(self._pass_on, process.stderr)
        self.exit_code = await process.wait()
        changed()

    @property
    def takes_orders(self) -> bool:
        """Whether its standard input is open; a killed one's closes before its end is known."""
        stdin = None if self._process is None else self._process.stdin
        return self.is_alive and stdin is not None and not stdin.is_closing()

    async def tell(self, orders: bytes) -> None:
        """Write to its standard input; when it is gone, so are the orders."""
        stdin = None if self._process is None else self._process.stdin
        if stdin is None or stdin.is_closing():
            return
        with suppress(OSError):
            stdin.write(orders)
            await stdin.drain()

    def dismiss(self) -> None:
        """Tell it to finish what it has and leave."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def end(self, how: signal.Signals) -> None:
        """Send it a signal, if it is still there."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(how)

    async def _listen(
        self, output: asyncio.StreamReader | None, changed: Callable[[], None]
    ) -> None:
        assert output is not None
        async for line in output:
            said = json.loads(line)
            self.latency = said.get("latency", self.latency)
            if said.get("ready") and not self.is_ready:
                self.is_ready = True
                changed()

    async def _pass_on(self, errors: asyncio.StreamReader | None) -> None:
        assert errors is not None
        count = 0
        last: deque[str] = deque(maxlen=_LAST_NOTES)
        async for line in errors:
            note = f"{self.name}: {line.decode(errors='replace').rstrip()}"
            count += 1
            if count <= _FIRST_NOTES:
                complain(note)
            else:
                last.append(note)
        if count > _FIRST_NOTES + _LAST_NOTES:
            complain(f"{self.name}: … {count - _FIRST_NOTES - _LAST_NOTES} lines …")
        for note in last:
            complain(note)


class Crew:
    """All workers of a run. Leaving its `async with` leaves none of them behind."""

    def __init__(self, producers: int, consumers: int) -> None:
        """Describe them; nothing is started yet."""
        self.producers = [Worker("producer", n + 1) for n in range(producers)]
        self.consumers = [Worker("consumer", n + 1) for n in range(consumers)]
        self.workers = [*self.producers, *self.consumers]
        self._changed = asyncio.Event()
        self._tasks: TaskGroup

    async def __aenter__(self) -> Self:
        """Open the group of tasks that watch the workers."""
        self._tasks = await anyio.create_task_group().__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """End and await whoever is left, then close the files they have written."""
        with anyio.CancelScope(shield=True):
            for worker in self.workers:
                worker.dismiss()
            for how in (signal.SIGTERM, signal.SIGKILL):
                for worker in self.workers:
                    worker.end(how)
                with anyio.move_on_after(_LAST_PATIENCE):
                    await self._until_gone(self.workers)
        for worker in self.workers:
            worker.records.close()
        return await self._tasks.__aexit__(exc_type, exc, traceback)

    async def start(
        self, url: str, producer: Sequence[str], consumer: Sequence[str]
    ) -> None:
        """Start them all and wait until each is ready or has ended."""
        for worker in self.workers:
            is_producer = worker.role == "producer"
            await worker.start(url, producer if is_producer else consumer)
            self._tasks.start_soon(worker.watch, self._changed.set)
        while any(worker.state == "starting" for worker in self.workers):
            await self.wait_for_change()

    async def wait_for_change(self) -> None:
        """Wait until a worker is ready or has ended."""
        await self._changed.wait()
        self._changed.clear()

    async def dismiss(self, workers: Sequence[Worker]) -> None:
        """Let these finish what they have; who has not gone in 5 seconds is killed."""
        for worker in workers:
            worker.dismiss()
        with anyio.move_on_after(_PATIENCE):
            await self._until_gone(workers)
        for worker in workers:
            worker.end(signal.SIGKILL)
        await self._until_gone(workers)

    async def _until_gone(self, workers: Sequence[Worker]) -> None:
        while any(worker.is_alive for worker in workers):
            await self.wait_for_change()
