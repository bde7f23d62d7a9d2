from __future__ import annotations

import io
import os
import signal
import sys
from typing import TYPE_CHECKING

import anyio
import pytest

from aioredismq._terminal import (
    complain,
    silence_output,
    until_signal,
    write,
    write_json,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _become(monkeypatch: pytest.MonkeyPatch, encoding: str) -> io.BytesIO:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    return raw


@pytest.mark.parametrize(
    ("encoding", "written"),
    [("utf-8", '"5 µs"\n'.encode()), ("ascii", b'"5 \\u00b5s"\n')],
)
def test_json_is_readable_where_the_terminal_allows_it(
    monkeypatch: pytest.MonkeyPatch, encoding: str, written: bytes
) -> None:
    """A character the terminal does not have is escaped; it stays valid JSON."""
    raw = _become(monkeypatch, encoding)

    write_json("5 µs")

    assert raw.getvalue() == written


def test_words_are_written_on_any_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words with a character the terminal does not have are no reason to fail."""
    raw = _become(monkeypatch, "ascii")

    write("5 µs")

    assert raw.getvalue() == b"5 \\xb5s\n"


def test_closed_streams_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program started with its output closed has none, and goes on."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)

    write("nobody hears this")
    write_json("nor this")
    complain("nor this")
    silence_output()


def test_nothing_more_is_written_once_silenced(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left in the buffer of a closed pipe goes nowhere, without a complaint."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        os.close(reading)
        output.write("left over")

        silence_output()

        output.flush()


async def test_what_ends_by_itself_was_not_stopped() -> None:
    """Without a signal there is no number."""
    assert await until_signal(anyio.lowlevel.checkpoint) is None


@pytest.fixture
def heeds_signals() -> Iterator[None]:
    """Be a program that ignores no signal, also where the tests run in a shell's background."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in ENDING}
    yield
    for number, action in before.items():
        signal.signal(number, action)


@pytest.mark.parametrize("number", ENDING)
async def test_a_signal_cancels_and_is_told(
    number: signal.Signals, heeds_signals: None
) -> None:
    """The first one cancels; a second one on the way out changes nothing."""
    tidied = False

    async def work() -> None:
        nonlocal tidied
        try:
            signal.raise_signal(number)
            await anyio.sleep_forever()
        finally:
            signal.raise_signal(signal.SIGTERM)
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
            tidied = True

    assert await until_signal(work) == number
    assert tidied


async def test_what_is_to_be_ignored_stays_ignored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under `nohup` the closing terminal ends nothing."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:

        async def work() -> None:
            signal.raise_signal(signal.SIGHUP)
            await anyio.sleep(0.01)

        assert await until_signal(work) is None
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_an_error_passes_through() -> None:
    """What the work raises is not wrapped."""

    async def work() -> None:
        raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is"):
        await until_signal(work)
