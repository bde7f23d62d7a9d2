from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from aioredismq._demo import DemoOptions, run_demo
from aioredismq._demo_feed import Source
from tests.programs import complaints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Self, TypeAlias

    from aioredismq.testing import RedisServer

    _Capture = pytest.CaptureFixture[str]
    _Start: TypeAlias = "Callable[..., _Demo]"

# Five processes begin, on a machine that may be busy.
pytestmark = pytest.mark.timeout(120)

_ENDLESS = ("--messages", "1000000000", "--patience", "60")


@pytest.fixture
def client(url: str) -> Iterator[Redis]:
    """A plain client of the server; the demo brings its own event loop."""
    with Redis.from_url(url, protocol=2) as opened:
        yield opened


@pytest.fixture
def start() -> Iterator[_Start]:
    """Starts the demo as a user does, and tidies up behind it."""
    with ExitStack() as stack:
        yield lambda *options: stack.enter_context(_Demo(*options))


def _options(url: str, **changes: Any) -> DemoOptions:
    given: dict[str, Any] = {
        "messages": 300,
        "producers": 2,
        "consumers": 2,
        "concurrency": 16,
        "rate": 0.0,
        "fail": 0.0,
        "patience": 60.0,
        "url": url,
        "port": None,
        "queue": None,
        "source": None,
        "report": None,
    }
    return DemoOptions(**{**given, **changes})


def test_every_message_is_counted(url: str, tmp_path: Path, capsys: _Capture) -> None:
    """The whole run between processes; dead letters are part of the sum."""
    report = tmp_path / "report.json"

    code = run_demo(_options(url, messages=2_000, fail=0.05, report=report))

    told = capsys.readouterr().out
    counted = json.loads(report.read_text())
    assert code == 0, told
    assert (counted["produced"], counted["lost"], counted["duplicates"]) == (
        2_000,
        0,
        0,
    )
    assert counted["handled"] + counted["dead"] == 2_000
    assert 50 < counted["dead"] < 150
    assert counted["on_server"] == {
        "length": 0,
        "returned": 0,
        "pending": 0,
        "dead": counted["dead"],
    }
    assert counted["latency"]["p50"] > 0
    assert {worker["state"] for worker in counted["workers"]} == {"done"}
    assert "All 2000 messages are accounted for" in told


def test_it_runs_on_real_input(url: str, tmp_path: Path, capsys: _Capture) -> None:
    """Each line is a message; a bad one is named and the rest goes on."""
    path = tmp_path / "orders.jsonl"
    path.write_text('{"id": 1}\n{bad\n"text"\n')
    fd = os.open(path, os.O_RDONLY)

    code = run_demo(_options(url, messages=None, source=Source("orders.jsonl", fd)))

    os.close(fd)
    told = capsys.readouterr()
    assert code == 0
    assert re.search(r"handled +2 ", told.out)
    assert told.err.startswith("orders.jsonl:2: not JSON")


def test_a_users_server_is_left_as_it_was(
    start: _Start, url: str, name: str, client: Redis
) -> None:
    """Only what expires by itself is left of the queue, and nothing else is touched."""
    client.set(f"{name}-other", 1)

    demo = start("--url", url, "--queue", name, "--messages", "50")

    assert demo.wait() == 0
    assert client.get(f"{name}-other") == b"1"
    left = [*client.keys(f"{{{name}}}:*"), *client.keys(name)]
    assert [key for key in left if client.ttl(key) < 0] == []


def test_a_queue_that_is_there_is_refused(
    start: _Start, url: str, name: str, client: Redis
) -> None:
    """Its consumers would take somebody's messages: it stays as it is."""
    client.xadd(name, {"body": "1"})

    demo = start("--url", url, "--queue", name)

    assert demo.wait() == 2
    assert demo.complaints() == [
        f"aioredismq: queue '{name}' is there already: the demo makes and removes its "
        "queue, so name another or none"
    ]
    assert client.xlen(name) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order(
    start: _Start, url: str, name: str, client: Redis, number: signal.Signals
) -> None:
    """The summary so far, no traceback, nobody left, and the queue is removed."""
    demo = start("--url", url, "--queue", name, *_ENDLESS)
    demo.wait_until_running()
    workers = demo.workers()

    demo.process.send_signal(number)

    assert demo.wait() == 128 + number
    told = demo.output()
    assert re.search(r"lost +0\n", told)
    assert f"Stopped by {number.name}" in told
    assert demo.complaints() == []
    assert len(workers) == 4
    assert not workers & _all_processes().keys()
    assert not client.exists(name)


def test_a_killed_consumer_is_made_up_for(start: _Start, url: str) -> None:
    """The others take over what it held; that it failed is told, and makes it code 1."""
    demo = start("--url", url, "--rate", "2000", "--messages", "8000")
    demo.wait_until_running()

    os.kill(demo.workers("_demo-consumer").pop(), signal.SIGKILL)

    assert demo.wait() == 1
    told = demo.output()
    assert "All 8000 messages are accounted for, although 1 process(es) failed" in told
    assert re.search(r"handled +8000 ", told)


def test_a_killed_producer_is_reported(start: _Start, url: str) -> None:
    """What it was to send was not sent, and what it could not record is told apart."""
    # Four seconds of work after the first line, however late the kill comes.
    demo = start("--url", url, "--rate", "2000", "--messages", "10000")
    demo.wait_until_running()

    os.kill(demo.workers("_demo-producer").pop(), signal.SIGKILL)

    assert demo.wait() == 1
    told = demo.output()
    assert re.search(r"\d+ were not sent", told)
    assert re.search(r"lost +0\n", told)


def test_without_consumers_it_does_not_wait(start: _Start, url: str) -> None:
    """When all are gone it says so at once, and what is left in the queue."""
    demo = start("--url", url, *_ENDLESS)
    demo.wait_until_running()

    for pid in demo.workers("_demo-consumer"):
        os.kill(pid, signal.SIGKILL)

    assert demo.wait() == 1
    assert "Not good: no consumer is left; 2 process(es) failed" in demo.output()


def test_it_gives_up_when_nothing_moves(start: _Start, url: str) -> None:
    """A consumer that hangs is not waited for for ever."""
    demo = start(*("--url", url, "--consumers", "1", "--patience", "4"), *_ENDLESS[:2])
    demo.wait_until_running()

    [pid] = demo.workers("_demo-consumer")
    os.kill(pid, signal.SIGSTOP)
    for producer in demo.workers("_demo-producer"):
        os.kill(producer, signal.SIGKILL)

    assert demo.wait() == 1
    assert "no progress for 4 s" in demo.output()
    assert pid not in _all_processes()


def test_a_killed_demo_leaves_nobody_behind(start: _Start, url: str) -> None:
    """Its workers notice, whatever ended it."""
    demo = start("--url", url, *_ENDLESS)
    demo.wait_until_running()
    workers = demo.workers()

    demo.process.kill()

    demo.wait()
    assert len(workers) == 4
    _wait_for_the_end_of(workers)


def test_a_closed_output_ends_it(start: _Start, url: str) -> None:
    """`… | head -1` ends it without a word, and nobody is left."""
    demo = start("--url", url, *_ENDLESS)
    demo.wait_until_running()
    workers = demo.workers()

    demo.process.stdout.close()

    assert demo.wait() == 1
    assert demo.complaints() == []
    assert not workers & _all_processes().keys()


def test_a_server_that_goes_away_is_told(
    start: _Start, own_server: RedisServer
) -> None:
    """It ends, with what was counted; what only the server knows is unknown."""
    demo = start("--url", own_server.url, *_ENDLESS[:2], "--patience", "4")
    demo.wait_until_running()

    own_server.kill()

    assert demo.wait() == 1
    assert "it did not answer" in demo.output()


def test_standard_input_can_be_slow(start: _Start, url: str) -> None:
    """While more may come and nothing waits, patience has no meaning."""
    demo = start("--url", url, "--input", "-", "--patience", "3")
    demo.wait_until_running("sent 0")

    for line, pause in (("1\n", 3.5), ("{bad\n", 0.0), ("2\n", 3.5)):
        time.sleep(pause)  # what it may not lose patience in
        demo.process.stdin.write(line)
        demo.process.stdin.flush()
    demo.process.stdin.close()

    assert demo.wait() == 0
    assert re.search(r"handled +2 ", demo.output())
    assert "<stdin>:2: not JSON" in demo.complaints()[0]


class _Demo:
    """The demo as a user starts it, with two producers and two consumers."""

    def __init__(self, *options: str) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "REDIS_URL"}
        processes = ("--producers", "2", "--consumers", "2")
        # A test run in the background may ignore Ctrl-C, and so would what it starts.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, "-m", "aioredismq", "demo", *processes, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        signal.signal(signal.SIGINT, before)
        self._seen: list[str] = []

    def __enter__(self) -> Self:
        """It runs already."""
        return self

    def __exit__(self, *failure: object) -> None:
        """End it and its processes, a stopped one too, if the test did not."""
        if self.process.poll() is None:
            for pid in self.workers():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            with suppress(BrokenPipeError):
                pipe.close()

    def wait_until_running(self, words: str = "handled [1-9]") -> None:
        """Read its lines until one has these words."""
        for line in self.process.stdout:
            self._seen.append(line)
            if re.search(words, line):
                return
        raise AssertionError(self._seen, self.process.stderr.read())

    def workers(self, role: str = "_demo-") -> set[int]:
        """Its processes of a role; all by default."""
        return {
            pid
            for pid, (parent, words) in _all_processes().items()
            if parent == self.process.pid and role in words
        }

    def wait(self) -> int:
        """Wait until it has ended, and give its exit code."""
        return self.process.wait(90)

    def output(self) -> str:
        """Give what it has written, once it has ended."""
        return "".join([*self._seen, *self.process.stdout])

    def complaints(self) -> list[str]:
        """Give what it has complained of, once it has ended."""
        return complaints(self.process.stderr.read().splitlines())


def _all_processes() -> dict[int, tuple[int, str]]:
    """Give parent and command line of each live process."""
    listed = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,ppid=,stat=,args="],  # noqa: S607 -- whole lines
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split(None, 3) for line in listed.stdout.splitlines()]
    return {
        int(pid): (int(parent), words)
        for pid, parent, state, words in rows
        if not state.startswith("Z")
    }


def _wait_for_the_end_of(pids: set[int]) -> None:
    end = time.monotonic() + 60
    while pids & _all_processes().keys():
        assert time.monotonic() < end
        time.sleep(0.05)
