from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from aioredismq import ConnectionLostError, _cli
from aioredismq.__main__ import main
from aioredismq.testing import RedisServer

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    _Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _no_server_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine that runs the tests has set is not ours."""
    monkeypatch.delenv("REDIS_URL", raising=False)


def _complaint(capsys: _Capture) -> str:
    """Give the one line on standard error."""
    line, end = capsys.readouterr().err.split("\n")
    assert end == ""
    return line


def _fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(options: argparse.Namespace) -> int:
        del options
        raise error

    monkeypatch.setitem(_cli._COMMANDS, "groups", run)


def test_help_is_no_error(capsys: _Capture) -> None:
    """It goes to standard output."""
    assert main(["--help"]) == 0
    assert "demo" in capsys.readouterr().out


def test_broken_json_is_one_line(capsys: _Capture) -> None:
    """Typed at the command line, it says where, and how a text is written."""
    assert main(["produce", "orders", "{bad"]) == 2
    assert _complaint(capsys) == (
        "aioredismq: not JSON: Expecting property name enclosed in double quotes, column 2 "
        "(a text needs its quotes: '\"text\"')"
    )


def test_a_missing_input_is_one_line(tmp_path: Path, capsys: _Capture) -> None:
    """A file that is not there, and a folder, are found before anything is started."""
    for name in (str(tmp_path / "none.jsonl"), str(tmp_path)):
        assert main(["demo", "--input", name]) == 2
        assert _complaint(capsys).startswith(f"aioredismq: cannot read {name}: ")


def test_a_closed_standard_input_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: _Capture
) -> None:
    """`-` reads what is there; when nothing is, it says so."""
    monkeypatch.setattr("sys.stdin", None)

    for words in (["demo", "--input", "-"], ["produce", "orders", "-"]):
        assert main(words) == 2
        assert _complaint(capsys) == "aioredismq: standard input is closed"


def test_an_unwritable_report_is_one_line(tmp_path: Path, capsys: _Capture) -> None:
    """It is found before the run, not after it."""
    assert main(["demo", "--report", str(tmp_path / "none" / "report.json")]) == 2
    assert "report.json: No such file or directory" in _complaint(capsys)


@pytest.mark.parametrize(
    "words", [["demo"], ["groups", "q"], ["produce", "q", "1"], ["consume", "q"]]
)
def test_an_unreachable_server_is_one_line(words: list[str], capsys: _Capture) -> None:
    """It names the server."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]

        assert main([*words, "--url", f"redis://127.0.0.1:{port}"]) == 1

    assert f"127.0.0.1:{port}" in _complaint(capsys)


@pytest.mark.parametrize("words", [["demo"], ["records", "q"]])
def test_a_bad_url_is_one_line_without_its_password(
    words: list[str], capsys: _Capture
) -> None:
    """A wrong URL is a wrong command line, and its secret is not for the screen."""
    assert main([*words, "--url", "https://u:secret@localhost"]) == 2
    assert "secret" not in _complaint(capsys)


def test_a_wrong_password_is_one_line(
    server_path: Path | None, monkeypatch: pytest.MonkeyPatch, capsys: _Capture
) -> None:
    """It is told apart from a server that cannot be reached; the environment's URL is used."""
    with RedisServer(server_path, password="right") as server:  # noqa: S106 -- a test's
        monkeypatch.setenv("REDIS_URL", server.url.replace("right", "wrong"))

        assert main(["groups", "q"]) == 1
        assert "refuses this user" in _complaint(capsys)
        assert main(["demo"]) == 1
        assert "refuses this user" in _complaint(capsys)


def test_a_taken_port_is_one_line(server: RedisServer, capsys: _Capture) -> None:
    """The demo's own server is not started on another's port."""
    assert main(["demo", "--port", str(server.port)]) == 1
    assert _complaint(capsys) == (
        f"aioredismq: port {server.port} is taken: choose another --port, or none for a free "
        "one"
    )


def test_a_queue_that_is_not_there_is_not_made(
    url: str, name: str, capsys: _Capture
) -> None:
    """Looking at a mistyped name says so, each time."""
    for words in (["groups", name], ["records", name], ["groups", name]):
        assert main([*words, "--url", url]) == 2
        assert f"there is no queue '{name}' on redis://" in _complaint(capsys)


def test_ctrl_c_where_nothing_listens_to_it(
    monkeypatch: pytest.MonkeyPatch, capsys: _Capture
) -> None:
    """Before and after the part that can be stopped in order there is no traceback either."""
    _fail_with(monkeypatch, KeyboardInterrupt())

    assert main(["groups", "q"]) == 130
    assert capsys.readouterr().err == ""


def test_a_reader_that_has_seen_enough_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: _Capture
) -> None:
    """`… | head` ends it without a word."""
    monkeypatch.setattr(_cli, "silence_output", lambda: None)
    _fail_with(monkeypatch, BrokenPipeError())

    assert main(["groups", "q"]) == 1
    assert capsys.readouterr().err == ""


def test_the_first_cause_of_a_group_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: _Capture
) -> None:
    """What task groups wrap is unwrapped, and many lines become one."""
    cause = ConnectionLostError("gone\nfor good")
    group = BaseExceptionGroup("outer", [ExceptionGroup("inner", [cause])])
    _fail_with(monkeypatch, group)

    assert main(["groups", "q"]) == 1
    assert _complaint(capsys) == "aioredismq: gone for good"


def test_a_file_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: _Capture
) -> None:
    """The system's words come with the file they are about."""
    _fail_with(monkeypatch, OSError(28, "No space left on device", "report.json"))

    assert main(["groups", "q"]) == 1
    assert _complaint(capsys) == "aioredismq: report.json: No space left on device"


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody expected is not made into a line that hides it."""
    _fail_with(monkeypatch, ZeroDivisionError())

    with pytest.raises(ZeroDivisionError):
        main(["groups", "q"])
