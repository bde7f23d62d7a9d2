"""The parser of the command line: every option with its default and unit."""

from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path
from typing import NoReturn

from ._terminal import complain

PROGRAM = "aioredismq"
LOCAL = "redis://localhost:6379/0"
# Some seconds on two cores: long enough to be watched.
MESSAGES = 100_000
WORKERS = ("_demo-producer", "_demo-consumer")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage, of many lines, is what --help is for."""

    def error(self, message: str) -> NoReturn:
        """Leave with code 2."""
        complain(f"{PROGRAM}: {message} (see `{self.prog} --help`)")
        self.exit(2)


def _whole(text: str, *, least: int, most: int) -> int:
    """Read a whole number."""
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        msg = f"must be a whole number from {least} to {most}, got {text!r}"
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


_count = partial(_whole, least=1, most=1_000_000_000)
_processes = partial(_whole, least=1, most=100)
_port = partial(_whole, least=1, most=65_535)
_share = partial(_number, most=1)
_seconds = partial(_number, positive=True)


def parser() -> argparse.ArgumentParser:
    """Make the parser of the whole command line."""
    top = _Parser(
        prog=PROGRAM, description="An asyncio message queue on Redis Streams."
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
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
        help=f"messages to send (default: {MESSAGES}; with --input: all of it)",
    )
    add(
        "--producers",
        type=_processes,
        default=3,
        metavar="N",
        help="producer processes (default: %(default)s)",
    )
    add(
        "--consumers",
        type=_processes,
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


def _add_url(command: _Parser, default: str) -> None:
    command.add_argument(
        "--url",
        help=f"server to use, as {LOCAL} (default: the environment's REDIS_URL, else "
        f"{default})",
    )


def _add_queue_commands(commands: argparse._SubParsersAction[_Parser]) -> None:
    def command(name: str, text: str) -> _Parser:
        sentence = f"{text[0].upper()}{text[1:]}."
        made = commands.add_parser(name, help=text, description=sentence)
        made.add_argument("queue", metavar="QUEUE", help="name of the queue")
        _add_url(made, LOCAL)
        return made

    made = command("produce", "send a message, or one for each line, and print ids")
    made.add_argument(
        "body",
        metavar="JSON",
        help="the body; `-` reads one from each line of standard input",
    )
    made = command("consume", "take messages and print their bodies, a line each")
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
    command("groups", "list the consumer groups, as JSON, a line each")
    made = command("records", "list what is stored, as JSON, a line each")
    made.add_argument(
        "--after",
        metavar="ID",
        help="id to begin behind (default: none, the oldest first)",
    )
    made.add_argument(
        "--limit", type=_count, metavar="N", help="messages at most (default: all)"
    )


def worker_parser() -> argparse.ArgumentParser:
    """Make the parser of what only the demo starts: nothing a user should be offered."""
    worker = _Parser(prog=PROGRAM)
    worker.add_argument("command", choices=WORKERS)
    worker.add_argument("--queue", required=True)
    worker.add_argument("--record-fd", type=int, required=True)
    worker.add_argument("--rate", type=float, default=0.0)
    worker.add_argument("--concurrency", type=int, default=1)
    worker.add_argument("--fail", type=float, default=0.0)
    worker.set_defaults(url=None)
    return worker
