"""The command line: its parser, and the one place where an error becomes one line."""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ._cli_commands import consume, groups, produce, produce_lines, records
from ._demo import DemoOptions, run_demo
from ._demo_feed import Source
from ._demo_worker import run_consumer, run_producer
from ._errors import ConfigurationError, MessageQueueError
from ._jsonl import NotJSONError, parse
from ._terminal import UsageError, complain, silence_output, until_signal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

_PROGRAM = "aioredismq"
_LOCAL = "redis://localhost:6379/0"
_MESSAGES = 100_000
_STDIN = 0


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
        is_worker = bool(words) and words[0] in _WORKERS
        options = (_worker_parser() if is_worker else parser()).parse_args(words)
        code: int = options.run(options)
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
    complain(f"{_PROGRAM}: {' '.join(str(error).split())}")
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
            messages=_MESSAGES if messages is None and source is None else messages,
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
        return Source("<stdin>", _STDIN)
    try:
        fd = os.open(name, os.O_RDONLY)
        os.read(fd, 0)  # a folder opens, and cannot be read
    except OSError as error:
        msg = f"cannot read {name}: {error.strerror}"
        raise UsageError(msg) from error
    return Source(name, fd)


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
        return _run(lambda: produce_lines(options.queue, url, _STDIN))
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
    url: str = options.url or os.environ.get("REDIS_URL") or _LOCAL
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


# -- the parser ----------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage, of many lines, is what --help is for."""

    def error(self, message: str) -> NoReturn:
        """Leave with code 2."""
        complain(f"{_PROGRAM}: {message} (see `{self.prog} --help`)")
        self.exit(2)


def _whole(text: str, *, least: int, most: float = math.inf) -> int:
    """Read a whole number."""
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        limit = f"at least {least}" if most == math.inf else f"from {least} to {most:g}"
        msg = f"must be a whole number, {limit}, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return value


def _number(text: str, *, most: float = math.inf, positive: bool = False) -> float:
    """Read a number that is not negative."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= most or value == math.inf or (positive and not value):
        limit = "more than 0" if positive else "0 or more"
        limit = f"from 0 to {most:g}" if most != math.inf else limit
        msg = f"must be a number, {limit}, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return value


_count = partial(_whole, least=1)
_port = partial(_whole, least=1, most=65_535)
_share = partial(_number, most=1)
_seconds = partial(_number, positive=True)


def parser() -> argparse.ArgumentParser:
    """Make the parser of the whole command line."""
    top = _Parser(
        prog=_PROGRAM, description="An asyncio message queue on Redis Streams."
    )
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_queue_commands(commands)
    return top


def _add_demo(commands: argparse._SubParsersAction[_Parser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="run producers and consumers in processes of their own, and count",
        description="Run producers and consumers in processes of their own over one queue, "
        "show how they do, and count at the end what became of every message. Without --url "
        "and REDIS_URL a server is started for the run: redis-server or valkey-server from "
        "PATH, else the one of the extra `embedded`.",
        epilog="Exit codes: 0 every message is accounted for; 1 something was lost or left, or "
        "a process failed; 2 the command line is wrong; 130 Ctrl-C (after the summary so far).",
    )
    add = demo.add_argument
    add(
        "--messages",
        type=_count,
        metavar="N",
        help=f"messages to send (default: {_MESSAGES}; with --input: all of it)",
    )
    add(
        "--producers",
        type=_count,
        default=3,
        metavar="N",
        help="producer processes (default: %(default)s)",
    )
    add(
        "--consumers",
        type=_count,
        default=3,
        metavar="N",
        help="consumer processes (default: %(default)s)",
    )
    add(
        "--concurrency",
        type=_count,
        default=64,
        metavar="N",
        help="messages one consumer process handles at once (default: %(default)s)",
    )
    add(
        "--rate",
        type=_number,
        default=0.0,
        metavar="N",
        help="messages per second of all producers together, to see latencies without a "
        "backlog (default: 0, as many as possible)",
    )
    add(
        "--fail",
        type=_share,
        default=0.0,
        metavar="SHARE",
        help="share of the messages, 0 to 1, whose handler raises each time, so that they "
        "become dead letters (default: 0)",
    )
    add(
        "--input",
        metavar="FILE.jsonl",
        help="send each line of this file, one JSON value each, instead of made-up messages; "
        "`-` reads standard input; a bad line is named and the rest goes on",
    )
    add(
        "--report",
        type=Path,
        metavar="FILE.json",
        help="also write the summary to this file (default: none)",
    )
    add(
        "--patience",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="seconds without any progress after which it gives up (default: %(default)g)",
    )
    add(
        "--queue",
        metavar="NAME",
        help="queue to make and remove; must not be there yet (default: aioredismq-demo- and "
        "a random number)",
    )
    _add_url(demo, "none: start a server")
    add(
        "--port",
        type=_port,
        metavar="N",
        help="port of the server that is started (default: a free one)",
    )
    demo.set_defaults(run=_demo)


def _add_url(command: _Parser, default: str) -> None:
    command.add_argument(
        "--url",
        help=f"server to use, as {_LOCAL} (default: the environment's REDIS_URL, else "
        f"{default})",
    )


def _add_queue_commands(commands: argparse._SubParsersAction[_Parser]) -> None:
    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str
    ) -> _Parser:
        made = commands.add_parser(name, help=text, description=f"{text.capitalize()}.")
        made.add_argument("queue", metavar="QUEUE", help="name of the queue")
        _add_url(made, _LOCAL)
        made.set_defaults(run=run)
        return made

    made = command(
        "produce", _produce, "send a message, or one for each line, and print ids"
    )
    made.add_argument(
        "body",
        metavar="JSON",
        help="the body; `-` reads one from each line of standard input",
    )
    made = command(
        "consume", _consume, "take messages and print their bodies, a line each"
    )
    made.add_argument(
        "--group",
        metavar="NAME",
        help="consumer group, made if need be (default: QUEUE_group)",
    )
    made.add_argument(
        "--count",
        type=_count,
        metavar="N",
        help="messages after which it ends (default: none, it goes on until Ctrl-C)",
    )
    command("groups", _groups, "list the consumer groups, as JSON, a line each")
    made = command("records", _records, "list what is stored, as JSON, a line each")
    made.add_argument(
        "--after",
        metavar="ID",
        help="id to begin behind (default: none, the oldest first)",
    )
    made.add_argument(
        "--limit", type=_count, metavar="N", help="messages at most (default: all)"
    )


_WORKERS = {"_demo-producer": _demo_producer, "_demo-consumer": _demo_consumer}


def _worker_parser() -> argparse.ArgumentParser:
    """Make the parser of what only the demo starts: nothing a user should be offered."""
    worker = _Parser(prog=_PROGRAM)
    worker.add_argument("role", choices=_WORKERS)
    worker.add_argument("--queue", required=True)
    worker.add_argument("--record-fd", type=int, required=True)
    worker.add_argument("--rate", type=float, default=0.0)
    worker.add_argument("--concurrency", type=int, default=1)
    worker.add_argument("--fail", type=float, default=0.0)
    worker.set_defaults(run=lambda options: _WORKERS[options.role](options), url=None)
    return worker
