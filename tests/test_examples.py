"""Each file of `examples/` does what its opening says, as a user would run it."""

from __future__ import annotations

import ast
import asyncio
import json
import re
import shlex
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import httpx
import pytest

from aioredismq import RedisMessageQueue
from aioredismq.testing import RedisServer
from tests.programs import ROOT, Program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Processes begin, on a machine that may be busy.
pytestmark = pytest.mark.timeout(240)

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# Seconds for what takes an application milliseconds.
PATIENCE = 30.0
APPS = {"fastapi_app": "web-orders", "aiohttp_app": "site-orders"}


@dataclass(frozen=True)
class Opening:
    """What an example says of itself."""

    text: str
    run: str
    """Its command line."""
    prints: list[str]
    """The lines it prints."""
    in_order: bool
    goes_on: bool
    """Whether it waits for a signal afterwards."""


def opening_of(name: str) -> Opening:
    """Read the docstring of an example."""
    source = (ROOT / "examples" / f"{name}.py").read_text()
    text = ast.get_docstring(ast.parse(source)) or ""
    run = re.search(r"^Run: +(.+)$", text, flags=re.MULTILINE)
    prints = re.search(r"^Prints.*?:\n\n(.*)", text, flags=re.MULTILINE | re.DOTALL)
    return Opening(
        text,
        run[1] if run else "",
        [line.strip() for line in prints[1].splitlines()] if prints else [],
        "in some order" not in text,
        "Ctrl-C" in text,
    )


def started(name: str, url: str) -> Program:
    """Make the program of an example, by the command line its opening gives."""
    # A port that is taken would be somebody else's: 0 is any free one.
    words = shlex.split(re.sub(r"\b80\d0$|(?<=PORT=)\d+", "0", opening_of(name).run))
    env = {"REDIS_URL": url}
    while "=" in words[0]:
        variable, _, value = words.pop(0).partition("=")
        env[variable] = value
    program, *arguments = words
    first = [] if program == "python" else ["-m", program]
    return Program(*first, *arguments, env=env)


@pytest.fixture(scope="module")
def clean_server(server_path: Path | None) -> Iterator[RedisServer]:
    """A server where nobody else has queues: examples give theirs plain names."""
    with RedisServer(server_path) as running:
        yield running


@pytest.fixture
def clean(clean_server: RedisServer) -> RedisServer:
    """The same, emptied for this test."""
    clean_server.command("FLUSHALL")
    return clean_server


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_says_what_it_is(path: Path) -> None:
    """What it shows, what it needs, how to run it, what it prints, before anything else."""
    opening = opening_of(path.stem)

    assert re.match(r"[A-Z].+\.\n", opening.text)
    assert re.search(r"^Needs: .+\S", opening.text, flags=re.MULTILINE)
    assert f"examples/{path.stem}" in opening.run.replace(".", "/", 1)
    assert opening.prints


def test_every_example_is_run() -> None:
    """By one of the tests below."""
    alone = {"batch", "fan_out", "producer", "quickstart"}

    assert {path.stem for path in EXAMPLES} == alone | {"worker"} | APPS.keys()


@pytest.mark.parametrize("name", ["batch", "fan_out", "producer", "quickstart"])
def test_it_prints_what_it_says(name: str, clean: RedisServer) -> None:
    """Line by line; Ctrl-C ends without a traceback what would go on, and nothing is left."""
    opening = opening_of(name)

    with started(name, clean.url) as program:
        if opening.goes_on:
            program.wait_for_lines(len(opening.prints))
            program.send(signal.SIGINT)
        code = program.end()

    assert code == 0
    assert_lines(program.lines, opening)
    assert not [line for line in program.errors if "KeyboardInterrupt" in line]
    if opening.goes_on:
        for queue in queues_of(clean):
            assert_settled(clean, queue)
            assert clean.command("XLEN", queue) == 0


def test_the_worker_handles_what_the_producer_sends(clean: RedisServer) -> None:
    """Two processes; what is sent before the worker first ran waits for it, SIGTERM drains."""
    opening = opening_of("worker")

    with started("producer", clean.url) as producer:
        assert producer.end() == 0
    with started("worker", clean.url) as worker:
        worker.wait_for_lines(len(opening.prints) - 1)
        worker.send(signal.SIGTERM)
        code = worker.end()

    assert code == 0
    assert worker.lines[-1] == "drained"
    assert_lines(worker.lines, opening)
    assert_settled(clean, "shop-orders")
    assert clean.command("XLEN", "shop-orders") == 0


def test_several_workers_share_the_orders(clean: RedisServer) -> None:
    """Each order is handled by one of them."""
    opening = opening_of("worker")
    with started("worker", clean.url) as first, started("worker", clean.url) as second:
        for _ in range(2):
            with started("producer", clean.url) as producer:
                assert producer.end() == 0
        want = 2 * (len(opening.prints) - 1)
        first.wait_until(lambda: len(first.lines) + len(second.lines) >= want)
        for worker in (first, second):
            worker.send(signal.SIGTERM)
        assert [first.end(), second.end()] == [0, 0]

    handled = sorted(first.lines + second.lines)
    assert handled == sorted(2 * opening.prints[:-1] + 2 * ["drained"])
    assert_settled(clean, "shop-orders")


@pytest.mark.parametrize("name", APPS)
def test_the_application_answers_as_it_says(name: str, clean: RedisServer) -> None:
    """The order of its opening goes in over HTTP and comes out of the handler."""
    opening = opening_of(name)
    body = re.search(r"-d '(.+?)'", opening.text)
    assert body

    with application(name, clean.url) as (program, address):
        answer = httpx.post(
            f"{address}/orders", json=json.loads(body[1]), timeout=PATIENCE
        )
        health = httpx.get(f"{address}/health", timeout=PATIENCE)
        program.wait_until(lambda: opening.prints[0] in program.lines)

    assert answer.status_code == 202
    assert re.fullmatch(r"\d+-\d+", answer.json()["message"])
    assert health.json() == {"healthy": True, "problems": []}


@pytest.mark.parametrize("name", APPS)
def test_the_application_says_when_it_cannot(name: str, clean: RedisServer) -> None:
    """A queue deleted behind its back ends the consumer, and the probe finds out."""
    with application(name, clean.url) as (program, address):
        assert asyncio.run(delete(clean.url, APPS[name]))
        ask = partial(httpx.get, f"{address}/health", timeout=PATIENCE)
        program.wait_until(lambda: ask().status_code == 503)
        health = ask().json()

    assert not health["healthy"]
    assert "was deleted" in health["problems"][0]


@pytest.mark.parametrize("name", APPS)
def test_the_application_stops_under_load(name: str, clean: RedisServer) -> None:
    """SIGTERM in the middle: nothing pending, no name left, no order lost, none handled twice."""
    queue = APPS[name]
    load = Load()

    with (
        ThreadPoolExecutor() as clients,
        application(name, clean.url) as (program, address),
    ):
        working = [clients.submit(load.run, address) for _ in range(8)]
        program.wait_until(lambda: bool(load.accepted) and is_busy(clean, queue))
        backlog = asyncio.run(send_many(clean.url, queue))
        program.wait_until(lambda: bool(set(backlog) & set(handled_by(program))))
        program.send(signal.SIGTERM)
        code = program.end()
        for client in working:
            client.result()

    handled = handled_by(program)
    stored = stored_in(clean, queue)
    assert code in {0, -signal.SIGTERM}  # uvicorn ends by the signal it was sent
    # The server may complain of requests it cut off; we may not.
    assert not [line for line in program.errors if "aioredismq/_" in line]
    assert_settled(clean, queue)
    assert len(handled) == len(set(handled))
    assert not set(handled) & set(stored)
    assert stored
    assert {*backlog, *load.accepted} <= set(handled) | set(stored)

    assert sorted(asyncio.run(take(clean.url, queue, len(stored)))) == sorted(stored)


@contextmanager
def application(name: str, url: str) -> Iterator[tuple[Program, str]]:
    """Run an application on a free port; gives the program and its address."""
    with started(name, url) as program:
        port: list[str] = []

        def is_up() -> bool:
            said = "\n".join([*program.lines, *program.errors])
            port[:] = re.findall(r"[Rr]unning on http://[\d.]+:(\d+)", said)
            return bool(port)

        program.wait_until(is_up, 90)
        yield program, f"http://127.0.0.1:{port[0]}"


@dataclass
class Load:
    """Clients that post orders, each with a number of its own, until nobody answers."""

    accepted: list[int] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)

    def run(self, address: str) -> None:
        """Be one client."""
        with httpx.Client(timeout=PATIENCE) as client:
            while True:
                number = next(self._numbers)
                try:
                    answer = client.post(
                        f"{address}/orders", json={"id": number, "total": 1.0}
                    )
                except httpx.TransportError:
                    return
                if answer.status_code != 202:
                    return
                self.accepted.append(number)


async def send_many(url: str, queue: str) -> list[int]:
    """Send more than an application handles in some seconds; gives their numbers."""
    numbers = list(range(1_000_000, 1_002_000))
    async with RedisMessageQueue(queue, url) as other:
        await other.produce_many({"id": number, "total": 1.0} for number in numbers)
    return numbers


async def take(url: str, queue: str, count: int) -> list[int]:
    """Handle what is stored, as another consumer would; gives the numbers."""
    taken: list[int] = []
    enough = asyncio.Event()
    async with RedisMessageQueue(queue, url) as other:

        @other.handler
        async def note(order: dict[str, float]) -> None:
            taken.append(int(order["id"]))
            if len(taken) >= count:
                enough.set()

        async with other.consuming(), asyncio.timeout(PATIENCE):
            await enough.wait()
    return taken


async def delete(url: str, queue: str) -> bool:
    """Delete a queue on purpose, as another process would."""
    async with RedisMessageQueue(queue, url) as other:
        return await other.delete()


def assert_lines(lines: list[str], opening: Opening) -> None:
    """Compare what was printed with what the opening says."""
    if opening.in_order:
        assert lines == opening.prints
    else:
        assert sorted(lines) == sorted(opening.prints)


def handled_by(program: Program) -> list[int]:
    """List the orders an application says it has handled."""
    return [
        int(found[1])
        for line in list(program.lines)
        if (found := re.match(r"order (\d+): ", line))
    ]


def queues_of(server: RedisServer) -> list[str]:
    """List the queues on a server, by their streams."""
    keys: list[str] = server.command("KEYS", "*")  # type: ignore[assignment]
    return [key for key in keys if "{" not in key]


def streams_of(server: RedisServer, queue: str) -> list[str]:
    """List what a queue stores messages in: its stream, and the lanes of its groups."""
    lanes: list[str] = server.command("KEYS", f"{{{queue}}}:lane:*")  # type: ignore[assignment]
    return [queue, *lanes]


def groups_of(server: RedisServer, stream: str) -> list[dict[str, object]]:
    """List the groups of a stream as Redis tells them."""
    rows: list[list[object]] = server.command("XINFO", "GROUPS", stream)  # type: ignore[assignment]
    return [dict(zip(map(str, row[::2]), row[1::2], strict=True)) for row in rows]


def is_busy(server: RedisServer, queue: str) -> bool:
    """Say whether messages are being handled."""
    return any(group["pending"] for group in groups_of(server, queue))


def assert_settled(server: RedisServer, queue: str) -> None:
    """Nothing is pending, and no consumer has left its name."""
    for stream in streams_of(server, queue):
        for group in groups_of(server, stream):
            assert (stream, group["name"], group["pending"], group["consumers"]) == (
                stream,
                group["name"],
                0,
                0,
            )


def stored_in(server: RedisServer, queue: str) -> list[int]:
    """List the orders that wait in a queue."""
    found = []
    for stream in streams_of(server, queue):
        rows: list[tuple[str, list[str]]] = server.command("XRANGE", stream, "-", "+")  # type: ignore[assignment]
        for _, fields in rows:
            body = dict(zip(fields[::2], fields[1::2], strict=True))["body"]
            found.append(json.loads(body)["id"])
    return found
