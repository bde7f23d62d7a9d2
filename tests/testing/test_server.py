from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from aioredismq.testing import RedisServer, ServerStartError, _server

if TYPE_CHECKING:
    from collections.abc import Iterator


ONCE = Retry(NoBackoff(), 0)


def pid_of(server: RedisServer) -> int:
    """Ask the server for its process number."""
    about = str(server.command("INFO", "server"))
    return int(about.partition("process_id:")[2].split(maxsplit=1)[0])


def is_listening(port: int) -> bool:
    """Say whether somebody takes connections on the port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_started_server_answers_at_its_url(server_path: Path | None) -> None:
    """The URL is all a client needs."""
    with RedisServer(server_path) as server:
        with closing(redis.Redis.from_url(server.url)) as client:
            assert client.ping()
        assert server.is_running
        assert repr(server) == f"<RedisServer {server.port}, running>"

    assert not server.is_running
    assert not is_listening(server.port)


def test_before_it_is_started_it_has_neither_port_nor_directory() -> None:
    """Both are found at the start; asking earlier says so."""
    server = RedisServer()

    with pytest.raises(ServerStartError, match=r"call start\(\) first"):
        _ = server.url
    with pytest.raises(ServerStartError, match=r"call start\(\) first"):
        _ = server.directory
    assert server.log_tail() == ""
    assert repr(server) == "<RedisServer without a port, not running>"


def test_starting_or_stopping_twice_is_once(own_server: RedisServer) -> None:
    """A fixture and a test may both do it."""
    before = pid_of(own_server)

    own_server.start()

    assert pid_of(own_server) == before
    own_server.stop()
    own_server.stop()


def test_two_servers_do_not_meet(own_server: RedisServer) -> None:
    """Each has its own port and its own data."""
    own_server.command("SET", "key", "mine")

    with RedisServer() as other:
        assert other.command("GET", "key") is None


def test_a_stopped_server_leaves_nothing_behind(own_server: RedisServer) -> None:
    """Neither process nor directory; and it can be started afresh on its port."""
    directory, port, pid = own_server.directory, own_server.port, pid_of(own_server)

    own_server.stop()

    assert not directory.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    own_server.start()
    assert own_server.port == port


def test_a_given_directory_is_kept_with_data_and_log(
    server_path: Path | None, tmp_path: Path
) -> None:
    """Stopping it in order writes down what it has, for the next server."""
    place = tmp_path / "data"
    with RedisServer(server_path, directory=place, persistence=True) as server:
        server.command("SET", "key", "kept")

    with RedisServer(server_path, directory=place, persistence=True) as server:
        assert server.command("GET", "key") == "kept"
    assert (place / "server.log").exists()


def test_a_killed_server_comes_back_empty_on_its_port(own_server: RedisServer) -> None:
    """Without persistence a crash loses everything."""
    own_server.command("SET", "key", "lost")
    port = own_server.port

    own_server.kill()

    assert not own_server.is_running
    assert not is_listening(port)
    own_server.start()
    assert (own_server.port, own_server.command("GET", "key")) == (port, None)


@pytest.mark.skipif(sys.platform != "linux", reason="others let nobody listen there")
def test_nobody_chooses_the_port_of_a_killed_server(own_server: RedisServer) -> None:
    """Whoever looks for a free one passes it over, for it is where the server comes back."""
    own_server.kill()

    with socket.socket() as another, pytest.raises(OSError, match="in use"):
        another.bind(("127.0.0.1", own_server.port))
    own_server.start()
    own_server.stop()
    with socket.socket() as another:
        another.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        another.bind(("127.0.0.1", own_server.port))


def test_persistence_survives_a_crash(server_path: Path | None) -> None:
    """The append-only file has what was fsynced before the kill."""
    with RedisServer(
        server_path, persistence=True, args=("--appendfsync", "always")
    ) as server:
        server.command("SET", "key", "kept")

        server.kill()
        server.start()

        assert server.command("GET", "key") == "kept"


def test_a_restart_in_order_keeps_what_is_persistent(server_path: Path | None) -> None:
    """An orderly end fsyncs, whatever the interval."""
    with RedisServer(server_path, persistence=True) as server:
        server.command("SET", "key", "kept")
        before = pid_of(server)

        server.restart()

        assert pid_of(server) != before
        assert server.command("GET", "key") == "kept"


def test_a_paused_server_takes_connections_and_does_not_answer(
    own_server: RedisServer,
) -> None:
    """As a machine that hangs: worse for a client than one that is gone."""
    own_server.pause()

    with closing(
        redis.Redis(port=own_server.port, socket_timeout=0.05, retry=ONCE)
    ) as client:
        with pytest.raises(redis.TimeoutError):
            client.ping()
        assert is_listening(own_server.port)
    own_server.resume()
    assert own_server.command("PING") == "PONG"


def test_a_paused_server_can_be_stopped(own_server: RedisServer) -> None:
    """A test that fails between pause and resume does not hang the suite."""
    own_server.pause()
    own_server.stop()

    assert not is_listening(own_server.port)


def test_a_paused_server_can_be_restarted(own_server: RedisServer) -> None:
    """Ending in order wakes it first."""
    own_server.pause()
    own_server.restart()

    assert own_server.command("PING") == "PONG"


def test_signals_to_a_server_that_is_gone_are_no_error(own_server: RedisServer) -> None:
    """Whoever cleans up need not know what has ended already."""
    own_server.kill()
    own_server.kill()
    own_server.pause()
    own_server.resume()


def test_a_password_is_asked_for_and_part_of_the_url(server_path: Path | None) -> None:
    """Whatever characters it has."""
    with RedisServer(server_path, password="p@ss/wörd:1") as server:  # noqa: S106
        with closing(redis.Redis.from_url(server.url)) as client:
            assert client.ping()
        with (
            closing(redis.Redis(port=server.port, retry=ONCE)) as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.ping()


def test_options_of_the_caller_reach_the_server(server_path: Path | None) -> None:
    """They come last, so they also replace ours; a password among them does not hinder."""
    options = ("--maxmemory", "10mb", "--requirepass", "theirs")
    with (
        RedisServer(server_path, args=options) as server,
        closing(redis.Redis(port=server.port, password="theirs")) as client,  # noqa: S106
    ):
        assert client.config_get("maxmemory")["maxmemory"] == str(10 * 1024 * 1024)


def test_a_wrong_option_is_reported_in_the_servers_words() -> None:
    """And nothing is left behind."""
    server = RedisServer(args=("--no-such-option", "1"))

    with pytest.raises(ServerStartError, match="no-such-option"):
        server.start()

    assert not server.is_running
    with pytest.raises(ServerStartError):
        _ = server.directory


def test_a_program_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    """With the system's reason."""
    missing = tmp_path / "redis-server"

    with pytest.raises(ServerStartError) as caught:
        RedisServer(missing).start()

    assert str(caught.value) == f"cannot start {missing}: No such file or directory"


def test_a_program_that_says_nothing_and_ends_is_named() -> None:
    """With its status."""
    with pytest.raises(
        ServerStartError, match=r"true ended with status 0: \(it said nothing\)"
    ):
        RedisServer("/bin/true").start()


def test_a_program_that_never_answers_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And ended."""
    monkeypatch.setattr(_server, "_START_LIMIT", 0.2)
    program = tmp_path / "idle"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    server = RedisServer(program)

    with pytest.raises(
        ServerStartError, match=r"did not answer on port \d+ within 0\.2 s"
    ):
        server.start()

    assert not server.is_running


def test_a_server_that_takes_too_long_to_end_is_killed(
    monkeypatch: pytest.MonkeyPatch, own_server: RedisServer
) -> None:
    """Stopping has an end, too."""
    monkeypatch.setattr(_server, "_STOP_LIMIT", 0.0)

    own_server.restart()

    assert own_server.command("PING") == "PONG"


def test_a_server_whose_process_is_not_on_this_machine_is_not_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A forwarded port can lead anywhere."""

    def nobody(_pid: int) -> int:
        raise ProcessLookupError

    monkeypatch.setattr(_server, "_START_LIMIT", 0.2)
    monkeypatch.setattr(os, "getsid", nobody)

    with pytest.raises(ServerStartError, match="did not answer"):
        RedisServer().start()


def test_a_wrapper_that_stays_in_front_of_the_server_is_no_hindrance(
    server: RedisServer, tmp_path: Path
) -> None:
    """The whole group is the server: what answers is ours, and what is killed is all of it."""
    assert server._process is not None
    [real, *_] = server._process.args  # type: ignore[misc]
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(f'#!/bin/sh\n"{real}" "$@"\nexit 0\n')
    wrapper.chmod(0o755)

    with RedisServer(wrapper) as wrapped:
        pid = pid_of(wrapped)
        assert wrapped._process is not None
        assert pid != wrapped._process.pid

    _server.wait_until("its end to be noted", lambda: not Path(f"/proc/{pid}").exists())


def test_a_given_port_that_is_taken_is_an_error(taken_port: int) -> None:
    """Who asks for a port wants no other."""
    with pytest.raises(ServerStartError, match="Address already in use"):
        RedisServer(port=taken_port).start()


def test_another_server_on_the_port_is_not_taken_for_ours(server: RedisServer) -> None:
    """Though it answers, and it is left alone."""
    before = pid_of(server)

    with pytest.raises(ServerStartError):
        RedisServer(port=server.port).start()

    assert pid_of(server) == before


def test_a_port_lost_to_somebody_else_is_chosen_anew(
    monkeypatch: pytest.MonkeyPatch, taken_port: int
) -> None:
    """Between our look and the server's, another process may take it."""
    free = _server.free_port()
    ports = iter([taken_port, taken_port, free])
    monkeypatch.setattr(_server, "free_port", lambda: next(ports))

    with RedisServer() as server:
        assert server.port == free


def test_a_machine_whose_ports_are_always_lost_is_told(
    monkeypatch: pytest.MonkeyPatch, taken_port: int
) -> None:
    """Trying again has an end."""
    monkeypatch.setattr(_server, "free_port", lambda: taken_port)
    monkeypatch.setattr(_server, "_PORT_TRIES", 2)

    with pytest.raises(ServerStartError, match="found no free port in 2 tries"):
        RedisServer().start()


def test_no_port_to_choose_from_is_told(
    monkeypatch: pytest.MonkeyPatch, taken_port: int
) -> None:
    """With the range looked at."""
    monkeypatch.setattr(_server, "_PORTS", range(taken_port, taken_port + 1))
    monkeypatch.setattr(_server, "_PORT_LOOKS", 1)
    monkeypatch.setattr(_server, "_BUS_OFFSET", 0)

    with pytest.raises(ServerStartError, match="no free port"):
        _server.free_port()


def test_the_log_can_be_looked_at(own_server: RedisServer) -> None:
    """The end of it, as lines."""
    assert own_server.log_tail(1).count("\n") == 0
    assert "eady to accept connections" in own_server.log_tail()


def test_a_condition_that_never_holds_is_named() -> None:
    """So that whoever reads the failure knows what was waited for."""
    with pytest.raises(ServerStartError, match="in vain for the moon"):
        _server.wait_until("the moon", lambda: False, limit=0.01)


def test_a_server_that_does_not_answer_yet_is_waited_for() -> None:
    """An error while waiting is no answer."""
    answers = iter([redis.ConnectionError("not yet"), redis.TimeoutError("not yet")])

    def is_there() -> bool:
        for error in answers:
            raise error
        return True

    _server.wait_until("an answer", is_there)


def test_a_server_started_in_a_thread_outlives_the_thread(
    server_path: Path | None,
) -> None:
    """An application on an event loop starts it in a worker thread, which ends when idle."""
    server = RedisServer(server_path)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()

    time.sleep(
        0.05
    )  # what a signal at the thread's end would take; nothing to wait for

    assert server.command("PING") == "PONG"
    server.stop()


def test_a_ctrl_c_in_the_terminal_is_not_for_the_server(
    own_server: RedisServer,
) -> None:
    """It lives in a session of its own."""
    assert os.getsid(pid_of(own_server)) != os.getsid(0)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
@pytest.mark.parametrize("end", ["killed", "exits"])
def test_a_server_ends_with_its_parent(end: str, paused: bool) -> None:
    """However that ends, and the directory goes too."""
    script = (
        "import os, sys\n"
        "from aioredismq.testing import RedisServer\n"
        "server = RedisServer()\n"
        "server.start()\n"
        f"{paused} and server.pause()\n"
        "print(server.port, server.directory, flush=True)\n"
        "sys.stdin.read()\n"
        "os._exit(0)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        port, directory = parent.stdout.readline().decode().split()
        assert is_listening(int(port))

        if end == "killed":
            parent.send_signal(signal.SIGKILL)
        else:
            parent.stdin.close()
        parent.wait(60)

    _server.wait_until("the port to be free", lambda: not is_listening(int(port)), 60)
    _server.wait_until("the directory to go", lambda: not Path(directory).exists(), 60)
