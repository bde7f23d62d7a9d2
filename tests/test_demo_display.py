from __future__ import annotations

import io
import os
import pty
import select
import sys
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest

from aioredismq._demo_display import (
    LiveDisplay,
    PlainDisplay,
    Snapshot,
    choose_display,
    words_of_latency,
)
from aioredismq._demo_tally import Figures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Seconds after which nothing more will come.
_PATIENCE = 10.0

_CURSOR_IS_BACK = "\x1b[?25h"

_SNAPSHOT = Snapshot(
    elapsed=2.5,
    expected=100,
    figures=Figures(produced=60, handled=40, waiting=15, dead=5, duplicates=1),
    rate=16.4,
    latency={"p50": 0.000_12, "p99": 0.0123, "max": 1.5},
    workers=[("producer 1", "running", 60), ("consumer 1", "killed [SIGKILL]", 40)],
)


@contextmanager
def _terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[[str], str]]:
    """Make standard output a terminal; gives what it shows, up to some words and what follows.

    What is written there comes out piece by piece, a little later.
    """
    leader, follower = pty.openpty()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    with os.fdopen(follower, "w") as screen, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", screen)
        yield partial(_shown, leader)
    os.close(leader)


def _shown(leader: int, last: str) -> str:
    shown = b""
    while last.encode() not in shown and select.select([leader], [], [], _PATIENCE)[0]:
        shown += os.read(leader, 100_000)
    return shown.decode()


def test_a_plain_line_has_everything(capsys: pytest.CaptureFixture[str]) -> None:
    """One line says how far the run is, for files and pipes."""
    with closing(PlainDisplay()) as display:
        display.show(_SNAPSHOT)

    assert capsys.readouterr().out == (
        "   2.5 s  sent 60 of 100  handled 40  in flight 15  rate 16/s  "
        "latency p50 120 µs  p99 12.3 ms  max 1.50 s  dead letters 5  duplicates 1\n"
    )


def test_what_is_not_known_yet_is_not_shown() -> None:
    """While the input is read nobody knows the whole, and without trouble none is named."""
    cells = Snapshot(1.0, None, Figures(produced=3), 0.0, None).cells()

    assert cells["sent"] == "3"
    assert not {"latency", "dead letters", "duplicates"} & cells.keys()


def test_a_pipe_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no terminal gets no table, nor does a program without any output."""
    for output in (io.StringIO(), None):
        monkeypatch.setattr(sys, "stdout", output)

        assert isinstance(choose_display(), PlainDisplay)


def test_a_terminal_gets_a_live_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table has the figures and the processes, words in brackets included."""
    with _terminal(monkeypatch) as seen:
        with closing(choose_display()) as display:
            assert isinstance(display, LiveDisplay)
            display.show(_SNAPSHOT)
        shown = seen(_CURSOR_IS_BACK)

    for words in ("60 of 100", "16/s", "p99 12.3 ms", "consumer 1", "[SIGKILL]"):
        assert words in shown


def test_a_simple_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that cannot move its cursor is not asked to."""
    with _terminal(monkeypatch):
        monkeypatch.setenv("TERM", "dumb")

        assert isinstance(choose_display(), PlainDisplay)


def test_without_the_extra_a_terminal_gets_plain_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It works, and says what would make it nicer."""
    monkeypatch.setitem(sys.modules, "rich.live", None)
    with _terminal(monkeypatch) as seen:
        assert isinstance(choose_display(), PlainDisplay)
        advice = "pip install 'aioredismq[demo]'"
        assert advice in seen(advice)


def test_without_the_extra_latencies_say_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An empty field in the summary would look like a mistake."""
    assert words_of_latency(None) == "not measured"
    monkeypatch.setitem(sys.modules, "hdrh.histogram", None)

    assert "aioredismq[demo]" in words_of_latency(None)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.000_999, "999 µs"), (0.05, "50.0 ms"), (0.5, "500 ms"), (61.0, "61.00 s")],
)
def test_a_duration_has_the_unit_that_fits(seconds: float, words: str) -> None:
    """From microseconds to seconds, three digits are enough."""
    assert words_of_latency({"p50": seconds}) == f"p50 {words}"
