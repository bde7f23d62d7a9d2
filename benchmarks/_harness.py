"""What every benchmark shares: options, a server, rounds, medians, one table and one JSON file.

Compared things take turns (A B C A B C …), so that what disturbs the machine disturbs all of
them; a ratio is made within each round, and its median is reported with the smallest and the
largest. One short round before the first warms everything up and is not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import redis

from aioredismq.testing import RedisServer, ServerStartError

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
    from types import TracebackType
    from typing import Self

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

RESULTS = Path(__file__).parent / "results"

# The share of a full measurement that the round before the first one does.
_WARM_UP = 0.1


class Options(argparse.Namespace):
    """What every benchmark can be told."""

    rounds: int
    size: int
    url: str | None
    server: Path | None
    pin: Literal["together", "apart"] | None
    uvloop: bool
    json: Path


class Measure(Protocol[T_co]):
    """One of the compared things."""

    def __call__(self, share: float, /) -> Awaitable[T_co]:
        """Measure once, with this share of the messages (1 for all)."""
        ...


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some rounds, with the smallest and the largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarize one value per round."""
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement of one thing."""

    messages: int
    seconds: float
    client: float
    """Seconds of processor time of this process, all threads."""
    server: float
    """Seconds of processor time of the server."""

    @property
    def rate(self) -> float:
        """Messages per second."""
        return self.messages / self.seconds


class Stopwatch:
    """Measures an `async with` block."""

    def __init__(
        self, messages: int, server_seconds: Callable[[], Awaitable[float]]
    ) -> None:
        """Describe what is measured.

        Args:
            messages: How many the block is about.
            server_seconds: Tells the processor time the server has used so far.
        """
        self._messages = messages
        self._server_seconds = server_seconds
        self._start = self._client = self._server = 0.0
        self._seconds: float | None = None
        self._sample: Sample | None = None

    async def __aenter__(self) -> Self:
        """Start."""
        self._server = await self._server_seconds()
        self._client = time.process_time()
        self._start = time.perf_counter()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop, unless `stop()` has."""
        self.stop()
        if exc is None and self._seconds is not None:
            server = await self._server_seconds() - self._server
            self._sample = Sample(self._messages, self._seconds, self._client, server)

    @property
    def sample(self) -> Sample:
        """What was measured, once the block has ended."""
        assert self._sample is not None
        return self._sample

    def stop(self) -> None:
        """Stop before the block ends; the first time counts."""
        if self._seconds is None:
            self._seconds = time.perf_counter() - self._start
            self._client = time.process_time() - self._client


@dataclass(frozen=True, slots=True)
class Table:
    """What is printed: a title, headings, rows of text, and lines below."""

    title: str
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Report:
    """What a benchmark found out."""

    table: Table
    results: dict[str, Any]
    """The figures behind the table, every round of them, for the JSON file."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and shows defaults in its help."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """End with one line instead of the whole usage."""
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def at_least(least: int) -> Callable[[str], int]:
    """Make an argparse type: a whole number, not below `least`."""

    def whole_number(text: str) -> int:
        if not re.fullmatch(r"[0-9_]+", text) or int(text) < least:
            msg = f"must be a whole number, at least {least}, got {text!r}"
            raise argparse.ArgumentTypeError(msg)
        return int(text)

    return whole_number


def above_zero(text: str) -> float:
    """Be an argparse type: a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def make_parser(
    name: str, description: str, *, rounds: int = 5
) -> argparse.ArgumentParser:
    """Make the parser of a benchmark, with the options that all of them have."""
    parser = _Parser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--rounds",
        type=at_least(1),
        default=rounds,
        help="how often each thing is measured, in turns (default: %(default)s)",
    )
    add(
        "--size",
        type=at_least(80),
        default=200,
        help="bytes of JSON in a message (default: %(default)s)",
    )
    add(
        "--url",
        help="a Redis server to use (default: one is started; on yours, streams named "
        "benchmark-… are made and deleted)",
    )
    add(
        "--server",
        type=Path,
        metavar="PROGRAM",
        help="the server program to start (default: the first one found)",
    )
    add(
        "--pin",
        choices=["together", "apart"],
        help="keep client and server on one core, or on two (Linux). Where waking another core "
        "takes long, as on many virtual machines, a round trip is shortest together: the "
        "hardest comparison for what is done one at a time (default: as the system likes)",
    )
    add(
        "--uvloop", action="store_true", help="use uvloop instead of asyncio's own loop"
    )
    add(
        "--json",
        type=Path,
        metavar="FILE",
        default=RESULTS / f"{name}.json",
        help=f"where the figures go (default: benchmarks/results/{name}.json)",
    )
    return parser


def run(
    options: Options, benchmark: Callable[[str], Coroutine[Any, Any, Report]]
) -> int:
    """Run a benchmark on a server, print its table, write its JSON file.

    Args:
        options: What the command line said.
        benchmark: Given the server's URL.

    Returns:
        The exit code: 0, or 1 when there is no server or the file cannot be written.
    """
    try:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        with options.json.open("a"):
            pass  # better refused now than after some minutes
        with ExitStack() as stack:
            url = options.url
            if url is None:
                url = stack.enter_context(RedisServer(options.server)).url
            about = _about(options, url)
            _pin(options, about["server"]["process"])
            with asyncio.Runner(
                loop_factory=loop_factory(uvloop=options.uvloop)
            ) as runner:
                report = runner.run(benchmark(url))
        _print(report.table)
        for note in report.table.notes:
            print(note)
        document = {"about": about, **report.results}
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    except (OSError, ServerStartError, redis.RedisError, ValueError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 1
    return 0


async def take_turns(
    measures: Mapping[str, Measure[T]], *, rounds: int, warm_up: bool = True
) -> dict[str, list[T]]:
    """Measure each thing once a round, in the given order, garbage collected before each.

    Returns:
        What each measured, one value a round.
    """
    measured: dict[str, list[T]] = {name: [] for name in measures}
    for number in range(0 if warm_up else 1, rounds + 1):
        for name, measure in measures.items():
            tell(
                f"round {number} of {rounds}: {name}"
                if number
                else f"warming up: {name}"
            )
            gc.collect()
            value = await measure(1.0 if number else _WARM_UP)
            if number:
                measured[name].append(value)
    tell("")
    return measured


def tell(progress: str) -> None:
    """Show on a terminal what is going on, in one line that the next one replaces."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[2K{progress[:78]}")
        sys.stderr.flush()


def make_body(size: int, number: int = 0) -> dict[str, object]:
    """Make an order whose compact JSON has `size` bytes."""
    body: dict[str, object] = {
        "id": 1_000_000 + number,
        "kind": "order",
        "total": 19.99,
        "paid": True,
        "note": "",
    }
    body["note"] = "x" * (size - len(compact_json(body)))
    return body


def compact_json(value: object) -> bytes:
    """Encode as this library does."""
    return json.dumps(value, separators=(",", ":")).encode()


def loop_factory(*, uvloop: bool) -> Callable[[], AbstractEventLoop] | None:
    """Choose the event loop; None for asyncio's own.

    Raises:
        ValueError: It is not installed.
    """
    if not uvloop:
        return None
    try:
        from uvloop import new_event_loop  # optional
    except ImportError:
        raise ValueError("--uvloop needs uvloop: pip install uvloop") from None
    return new_event_loop


def _about(options: Options, url: str) -> dict[str, Any]:
    """Say what ran, where, on what."""
    with redis.Redis.from_url(url) as client:
        info: Any = client.info("server")
    shown = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(options).items()
        if name not in {"url", "json"}
    }
    return {
        "command": _command(options),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(
            _git("status", "--porcelain", "--", "src", "benchmarks")
        ),
        "options": shown,
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "load_average": os.getloadavg()[0],
        },
        "server": {
            "name": info.get("server_name", "redis"),
            "version": info.get("valkey_version", info["redis_version"]),
            "started_here": options.url is None,
            "process": info["process_id"],
        },
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libraries": {
            name: _version(name)
            for name in ("aioredismq", "redis", "hiredis", "uvloop")
        },
    }


def _pin(options: Options, server: int) -> None:
    """Choose the cores of this process and of the server.

    Raises:
        ValueError: This cannot be done here.
    """
    if options.pin is None:
        return
    if not hasattr(os, "sched_setaffinity") or options.url is not None:
        raise ValueError("--pin needs Linux, and a server that is started here")
    cores = sorted(os.sched_getaffinity(0))
    if options.pin == "apart" and len(cores) < 2:
        raise ValueError("--pin apart needs two cores")
    os.sched_setaffinity(0, cores[:1])
    os.sched_setaffinity(server, cores[:1] if options.pin == "together" else cores[1:2])


def _command(options: Options) -> str:
    """Repeat the command line, without the URL, which may hold a password."""
    words = ["python", *sys.argv]
    return shlex.join(word.replace(options.url or "\n", "URL") for word in words)


def _version(distribution: str) -> str | None:
    """Find a library's version; None when it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _git(*words: str) -> str | None:
    """Ask git about this repository; None without git or a repository."""
    try:
        return subprocess.run(  # noqa: S603 -- fixed words
            ["git", *words],  # noqa: S607 -- the user's own git
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    """Name the processor."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    found = re.search(r"model name\s*: (.+)", text)
    return found[1] if found else platform.processor()


def _print(table: Table) -> None:
    """Print a table, by rich where it is installed."""
    try:
        from rich.console import Console  # optional
        from rich.table import Table as RichTable
    except ImportError:
        _print_plainly(table)
        return
    drawn = RichTable(title=table.title, title_justify="left")
    for number, heading in enumerate(table.headings):
        drawn.add_column(heading, justify="right" if number else "left")
    for row in table.rows:
        drawn.add_row(*row)
    # A table that goes to a file is not cut to the 80 columns rich assumes there.
    Console(width=None if sys.stdout.isatty() else 200).print(drawn)


def _print_plainly(table: Table) -> None:
    """Print a table with spaces."""
    lines = [table.headings, *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(table.title)
    for first, *rest in lines:
        cells = [first.ljust(widths[0])]
        cells += [
            cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)
        ]
        print("  ".join(cells).rstrip())


def as_json(spread: Spread, values: Sequence[float]) -> dict[str, Any]:
    """Give a spread and the rounds it comes from."""
    return {**asdict(spread), "rounds": list(values)}
