"""The command line: what each command does, and the one place where an error becomes one line."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

from ._cli_commands import consume, groups, produce, produce_lines, records
from ._cli_parser import LOCAL, MESSAGES, PROGRAM, WORKERS, parser, worker_parser
from ._demo import DemoOptions, run_demo
from ._demo_feed import Source
from ._demo_worker import run_consumer, run_producer
from ._errors import ConfigurationError, MessageQueueError
from ._jsonl import NotJSONError, parse
from ._terminal import UsageError, complain, silence_output, until_signal

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: What follows the program's name; None takes it from the command line.

    Returns:
        The exit code: 0 done; 1 it failed; 2 the command line is wrong; 128 + n ended by
        signal n (130: Ctrl-C).
    """
    try:
        words = sys.argv[1:] if arguments is None else arguments
        is_worker = bool(words) and words[0] in WORKERS
        options = (worker_parser() if is_worker else parser()).parse_args(words)
        code = _COMMANDS[options.command](options)
        if sys.stdout is not None:
            sys.stdout.flush()
    except SystemExit as ending:  # argparse: --help, or a wrong argument
        return ending.code if isinstance(ending.code, int) else 2
    except BaseException as error:
        known = _code_of(_first_of(error))
        if known is None:
            raise
        return known
    return code


def _first_of(error: BaseException) -> BaseException:
    """Find the first cause in what task groups have wrapped."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _code_of(error: BaseException) -> int | None:
    """Say an expected error in one line; None for one that is a mistake of ours."""
    match error:
        case KeyboardInterrupt():
            return 128 + signal.SIGINT
        case BrokenPipeError():  # the reader has seen enough, as `head` does
            silence_output()
            return 1
        case UsageError() | ConfigurationError():
            code = 2
        case MessageQueueError() | OSError():
            code = 1
        case _:
            return None
    words = str(error)
    if isinstance(error, OSError) and error.strerror:
        words = ": ".join(filter(None, (error.filename, error.strerror)))
    complain(f"{PROGRAM}: {' '.join(words.split())}")
    return code


# -- the commands --------------------------------------------------------------------------------


def _run(do: Callable[[], Awaitable[int]]) -> int:
    """Run a command until it ends or a signal cancels it; then 128 + its number."""
    code = 0

    async def keep_code() -> None:
        nonlocal code
        code = await do()

    number = asyncio.run(until_signal(keep_code))
    return code if number is None else 128 + number


def _demo(options: argparse.Namespace) -> int:
    source = None if options.input is None else _source(options.input)
    if options.report is not None:
        _check_writable(options.report)
    messages = options.messages
    return run_demo(
        DemoOptions(
            messages=MESSAGES if messages is None and source is None else messages,
            producers=options.producers,
            consumers=options.consumers,
            concurrency=options.concurrency,
            rate=options.rate,
            fail=options.fail,
            patience=options.patience,
            url=options.url or os.environ.get("REDIS_URL") or None,
            port=options.port,
            queue=options.queue,
            source=source,
            report=options.report,
        )
    )


def _source(name: str) -> Source:
    """Open the input."""
    if name == "-":
        return Source("<stdin>", _stdin())
    try:
        fd = os.open(name, os.O_RDONLY)
        os.read(fd, 0)  # a folder opens, and cannot be read
    except OSError as error:
        msg = f"cannot read {name}: {error.strerror}"
        raise UsageError(msg) from error
    return Source(name, fd)


def _stdin() -> int:
    """Give standard input, if there is one."""
    if sys.stdin is None:
        raise UsageError("standard input is closed")
    return sys.stdin.fileno()


def _check_writable(path: Path) -> None:
    """Find out before the run, not after it."""
    try:
        path.open("a").close()
    except OSError as error:
        msg = f"cannot write {path}: {error.strerror}"
        raise UsageError(msg) from error


def _produce(options: argparse.Namespace) -> int:
    url = _url(options)
    if options.body == "-":
        fd = _stdin()
        return _run(lambda: produce_lines(options.queue, url, fd))
    try:
        body = parse(options.body)
    except NotJSONError as error:
        msg = f"{error} (a text needs its quotes: '\"text\"')"
        raise UsageError(msg) from error
    return _run(lambda: produce(options.queue, url, body))


def _consume(options: argparse.Namespace) -> int:
    return _run(
        lambda: consume(options.queue, _url(options), options.group, options.count)
    )


def _groups(options: argparse.Namespace) -> int:
    return _run(lambda: groups(options.queue, _url(options)))


def _records(options: argparse.Namespace) -> int:
    return _run(
        lambda: records(options.queue, _url(options), options.after, options.limit)
    )


def _url(options: argparse.Namespace) -> str:
    url: str = options.url or os.environ.get("REDIS_URL") or LOCAL
    return url


def _demo_producer(options: argparse.Namespace) -> int:
    # It looks after its signals itself: what it has begun to send is to be recorded.
    asyncio.run(
        run_producer(options.queue, _url(options), options.record_fd, options.rate)
    )
    return 0


def _demo_consumer(options: argparse.Namespace) -> int:
    async def run() -> int:
        await run_consumer(
            options.queue,
            _url(options),
            options.record_fd,
            options.concurrency,
            options.fail,
        )
        return 0

    return _run(run)


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "demo": _demo,
    "produce": _produce,
    "consume": _consume,
    "groups": _groups,
    "records": _records,
    "_demo-producer": _demo_producer,
    "_demo-consumer": _demo_consumer,
}
