"""One server as a child process."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry

from ._errors import ServerStartError
from ._find import default_server
from ._reaper import Reaper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self


HOST = "127.0.0.1"

# Below the ports the system gives to outgoing connections (Linux from 32768, macOS from 49152),
# so that a client cannot be given the port of a server that is just restarting; the upper half
# is what a cluster node's bus needs besides: its port + 10000.
_PORTS = range(12_000, 22_000)
_BUS_OFFSET = 10_000

_PORT_LOOKS = 100
_PORT_TRIES = 20
_START_LIMIT = 20.0
_STOP_LIMIT = 5.0
_POLL = 0.005
_ANSWER_LIMIT = 5.0
# While starting: who does not answer at once is not up yet, or is somebody else.
_FIRST_ANSWER_LIMIT = 0.2


class RedisServer:
    """A Redis or Valkey server as a child process, on a loopback port.

    Use it as a context manager, or call `start()` and `stop()`. It runs in a session of its own
    (a Ctrl-C in the terminal is not for it) and ends with this process, however that ends. All
    methods block for some milliseconds; from an event loop call them in a thread.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        port: int | None = None,
        persistence: bool = False,
        password: str | None = None,
        args: Sequence[str] = (),
        directory: str | Path | None = None,
    ) -> None:
        """Describe the server; nothing is started or looked for yet.

        Args:
            path: The program; None for the first of `find_servers()`.
            port: Where it listens; None for a free port, kept over restarts.
            persistence: Whether it keeps its data over `kill()` and `restart()`: an append-only
                file, fsynced every second. Off, as tests want speed.
            password: What clients must say; it becomes part of `url`.
            args: More of the server's own options, such as `("--maxmemory", "10mb")`.
            directory: Where data and log lie, kept afterwards; None for a temporary one that
                goes with the server.
        """
        self._given_path = path
        self._port = port
        self._is_port_free_to_choose = port is None
        self._persistence = persistence
        self._password = password
        self._args = tuple(args)
        self._given_directory = None if directory is None else Path(directory)
        self._directory: Path | None = None
        self._reaper: Reaper | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._kept: socket.socket | None = None

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop it."""
        self.stop()

    def __repr__(self) -> str:
        state = "running" if self.is_running else "not running"
        return f"<RedisServer {self._port or 'without a port'}, {state}>"

    @property
    def port(self) -> int:
        """Where it listens; with no port given, known once it has been started."""
        if self._port is None:
            raise ServerStartError("the server has no port yet: call start() first")
        return self._port

    @property
    def url(self) -> str:
        """What a client connects to, as `redis://127.0.0.1:12345/0`."""
        user = "" if self._password is None else f":{quote(self._password, safe='')}@"
        return f"redis://{user}{HOST}:{self.port}/0"

    @property
    def is_running(self) -> bool:
        """Whether the process is alive; a paused one is."""
        return self._process is not None and self._process.poll() is None

    @property
    def directory(self) -> Path:
        """Where its data and its log `server.log` lie; exists once it has been started."""
        directory = self._directory or self._given_directory
        if directory is None:
            raise ServerStartError(
                "the server has no directory yet: call start() first"
            )
        return directory

    def start(self) -> None:
        """Start it and wait until it answers; does nothing when it is running.

        Raises:
            NoServerFoundError: There is no server program on this machine.
            ServerStartError: It ended at once or did not answer within 20 seconds; the text has
                the end of its log.
        """
        if self.is_running:
            return
        path = Path(self._given_path) if self._given_path else default_server()
        try:
            for _ in range(_PORT_TRIES):
                if self._port is None:
                    self._port = free_port()
                if self._start_once(path):
                    self._is_port_free_to_choose = False
                    self._release_port()
                    return
                self._port = None  # somebody took it between our look and the server's
        except BaseException:
            self.stop()
            raise
        self.stop()
        raise ServerStartError(f"found no free port in {_PORT_TRIES} tries")

    def stop(self) -> None:
        """End it for good, and remove its directory unless that was given; may be repeated."""
        if self._given_directory is None:
            self.kill()  # there is nothing to be saved
        else:
            self._terminate()
        if self._reaper is not None:
            self._reaper.dismiss()
            self._reaper = None
        if self._given_directory is None and self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
        self._directory = None
        self._release_port()

    def kill(self) -> None:
        """End it as a crash does (SIGKILL); `start()` brings it back on the same port."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Shut it down in order and start it again on the same port.

        Its data is there again with `persistence=True`.
        """
        self._terminate()
        self.start()

    def pause(self) -> None:
        """Stop the process (SIGSTOP): connections stay open, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on."""
        self._signal(signal.SIGCONT)

    def command(self, *words: str | bytes | float) -> object:
        """Send one command on a connection of its own.

        Returns:
            The reply as the protocol has it: str, int, None or a list of these.

        Raises:
            redis.RedisError: The server refused it, or did not answer within 5 seconds.
        """
        return self._ask(words, _ANSWER_LIMIT)

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of its log; empty when there is none."""
        return "\n".join(self._log(since=0).splitlines()[-lines:])

    def _ask(self, words: Sequence[str | bytes | float], limit: float) -> object:
        """Send one command and wait `limit` seconds for the reply."""
        with redis.Redis(
            host=HOST,
            port=self.port,
            password=self._password,
            protocol=2,
            decode_responses=True,
            socket_timeout=limit,
            retry=Retry(NoBackoff(), 0),
        ) as client:
            client.response_callbacks.clear()
            reply: object = client.execute_command(*words)
            return reply

    def _command_line(self) -> list[str]:
        """List the options, the caller's last, as the last one wins."""
        secret = [] if self._password is None else ["--requirepass", self._password]
        return [
            *("--port", str(self.port), "--bind", HOST, "--dir", str(self.directory)),
            *("--appendonly", "yes" if self._persistence else "no", "--save", ""),
            *secret,
            *self._args,
        ]

    def _start_once(self, path: Path) -> bool:
        """Start the process on the chosen port; False when that port turned out to be taken."""
        self._prepare_directory()
        log = self.directory / "server.log"
        seen = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            try:
                self._process = subprocess.Popen(  # noqa: S603 -- the caller's program
                    [path, *self._command_line()],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            except OSError as error:
                raise ServerStartError(
                    f"cannot start {path}: {error.strerror}"
                ) from error
        assert self._reaper is not None  # made together with the directory
        self._reaper.watch(self._process.pid)
        return self._is_up(path, self._process, seen)

    def _prepare_directory(self) -> None:
        """Make the directory, and have somebody to clean up should we be killed."""
        if self._directory is not None:
            return
        if self._given_directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="aioredismq-"))
            self._reaper = Reaper(self._directory)
        else:
            self._directory = self._given_directory.resolve()
            self._directory.mkdir(parents=True, exist_ok=True)
            self._reaper = Reaper(None)

    def _is_up(self, path: Path, process: subprocess.Popen[bytes], seen: int) -> bool:
        """Wait until it answers; False when its port is taken and may be chosen anew."""
        end = time.monotonic() + _START_LIMIT
        while not self._answers(process.pid, seen):
            if process.poll() is not None:
                self._forget()
                said = self._log(since=seen)
                if self._is_port_free_to_choose and "Address already in use" in said:
                    return False
                last = said.strip().splitlines()[-5:] or ["(it said nothing)"]
                raise ServerStartError(
                    f"{path} ended with status {process.returncode}: "
                    + " / ".join(last)
                )
            if time.monotonic() > end:
                raise ServerStartError(
                    f"{path} did not answer on port {self.port} within {_START_LIMIT:g} s: "
                    f"{self.log_tail(5)}"
                )
            time.sleep(_POLL)
        return True

    def _answers(self, process_group: int, seen: int) -> bool:
        """Say whether our own process is the one that answers on the port, and is ready."""
        try:
            about = str(self._ask(("INFO", "server"), _FIRST_ANSWER_LIMIT))
        except (redis.AuthenticationError, NoPermissionError):
            # Closed to us by the caller's options, or somebody else's: ours says when it is ready.
            return "Ready to accept connections" in self._log(since=seen)
        except (redis.RedisError, OSError):
            return False
        number = about.partition("process_id:")[2].split(maxsplit=1)
        try:
            return bool(number) and os.getsid(int(number[0])) == process_group
        except OSError:  # a server elsewhere, whose process is none of this machine's
            return False

    def _log(self, since: int) -> str:
        """Read the log from a position on."""
        directory = self._directory or self._given_directory
        path = None if directory is None else directory / "server.log"
        if path is None or not path.exists():
            return ""
        return path.read_bytes()[since:].decode(errors="replace")

    def _terminate(self) -> None:
        """Ask the process to end in order; it has 5 seconds to save what it keeps."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        """End the process and wait for it; afterwards there is none."""
        process = self._process
        if process is None:
            return
        self._signal(how)
        if how is not signal.SIGKILL:
            self._signal(signal.SIGCONT)  # a paused one cannot end
        try:
            process.wait(_STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            process.wait()
        self._forget()
        self._keep_port()

    def _keep_port(self) -> None:
        """Let nobody choose the port until we start again: bind it, and do not listen."""
        if (
            sys.platform == "linux" and self._kept is None
        ):  # elsewhere we could not either
            self._kept = socket.socket()
            self._kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                self._kept.bind((HOST, self.port))

    def _release_port(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _forget(self) -> None:
        """Note that the process has ended."""
        self._process = None
        assert self._reaper is not None  # made before the process
        self._reaper.forget()

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to the server and whatever it has started; not to one that has ended."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)


def free_port() -> int:
    """Find a port nobody listens on, whose cluster bus port is free too.

    Another process may take it before it is used: whoever listens must be ready to try again.

    Raises:
        ServerStartError: All that were looked at are taken.
    """
    # Not the seeded generator: two test runs with one seed would fight for the same ports.
    for port in random.SystemRandom().sample(_PORTS, _PORT_LOOKS):
        try:
            for wanted in (port, port + _BUS_OFFSET):
                with socket.socket() as listener:
                    listener.bind((HOST, wanted))
        except OSError:
            continue
        return port
    raise ServerStartError(f"no free port between {_PORTS.start} and {_PORTS.stop}")


def wait_until(what: str, is_true: Callable[[], bool], limit: float = 20.0) -> None:
    """Wait for a condition of some servers; a server that does not answer yet is no answer.

    Raises:
        ServerStartError: It was not true within `limit` seconds.
    """
    end = time.monotonic() + limit
    while True:
        with suppress(redis.RedisError):
            if is_true():
                return
        if time.monotonic() > end:
            raise ServerStartError(f"waited {limit:g} s in vain for {what}")
        time.sleep(_POLL * 4)
