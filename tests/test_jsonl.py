from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioredismq._jsonl import (
    Line,
    LineSplitter,
    NotJSONError,
    parse,
    read_lines,
    render,
)

if TYPE_CHECKING:
    from pathlib import Path

_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def _split(text: bytes, *cuts: int, max_line: int = 1000) -> list[Line]:
    splitter = LineSplitter(max_line)
    lines: list[Line] = []
    for start, end in zip((0, *cuts), (*cuts, len(text)), strict=True):
        lines += splitter.feed(text[start:end])
    return [*lines, *splitter.end()]


@given(_VALUES)
def test_what_is_rendered_is_one_line_and_parses_to_the_same(value: object) -> None:
    """A value survives being written as a line and read again, readable or in ASCII."""
    for ascii_only in (False, True):
        line = render(value, ascii_only=ascii_only)

        assert "\n" not in line
        assert parse(line) == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{bad", "column 2"),
        ("", "column 1"),
        ("1 2", "Extra data"),
        ("NaN", "^not JSON: NaN$"),
        ("[-Infinity]", "^not JSON: -Infinity$"),
        ('"\\ud800"', "surrogate"),
        (b"\xff", "not UTF-8 at byte 1"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5_000, "not usable"),
    ],
)
def test_what_others_could_not_read_is_refused(text: str | bytes, why: str) -> None:
    """Each refusal is one line and names its reason."""
    with pytest.raises(NotJSONError, match=why) as refusal:
        parse(text)

    assert "\n" not in str(refusal.value)


def test_a_whole_surrogate_pair_is_a_character() -> None:
    """An escaped character beyond the first plane is accepted."""
    assert parse('"\\ud83d\\ude00"') == "😀"


def test_what_json_has_no_word_for_is_shown_all_the_same() -> None:
    """Bytes are shown in base64, anything else by its representation."""
    assert json.loads(render(b"\x00\xff")) == {"base64": "AP8="}
    assert json.loads(render({1j})) == "{1j}"


@given(
    st.lists(st.binary(max_size=5).filter(lambda part: b"\n" not in part)),
    st.lists(st.integers(0, 40)),
)
def test_lines_are_the_same_however_the_blocks_fall(
    parts: list[bytes], cuts: list[int]
) -> None:
    """Where a block ends does not matter, and every line keeps its number."""
    text = b"".join(part + b"\n" for part in parts)
    cuts = sorted(min(cut, len(text)) for cut in cuts)

    lines = _split(text, *cuts)

    assert [line.text for line in lines] == parts
    assert [line.number for line in lines] == list(range(1, len(parts) + 1))


def test_the_last_line_needs_no_line_end() -> None:
    """What stands behind the last line end is a line, and nothing is none."""
    assert _split(b"1\n2") == [Line(1, b"1"), Line(2, b"2")]
    assert _split(b"") == []


def test_a_mark_at_the_beginning_of_a_file_is_no_part_of_its_first_line() -> None:
    """The byte order mark some editors write is passed over, and only there."""
    first, second = _split(b"\xef\xbb\xbf1\n\xef\xbb\xbf2\n")

    assert first.value() == 1
    with pytest.raises(NotJSONError):
        second.value()


def test_too_long_a_line_is_dropped_and_the_next_one_read() -> None:
    """It has its number and its reason, and takes no memory."""
    long, short = _split(b"x" * 50 + b"\n2\n", 7, 13, max_line=10)

    assert long == Line(1, None)
    assert not long.is_blank
    with pytest.raises(NotJSONError, match="longer than 16 MiB"):
        long.value()
    assert short == Line(2, b"2")


def test_a_line_of_white_space_is_blank() -> None:
    """It is neither a message nor a mistake; a line end of another system counts as such."""
    assert [line.is_blank for line in _split(b"\r\n \t\n0\r\n")] == [True, True, False]


async def test_a_file_is_read_to_its_end(tmp_path: Path) -> None:
    """A regular file of several blocks arrives whole."""
    path = tmp_path / "numbers.jsonl"
    path.write_text("\n".join(map(str, range(40_000))))
    fd = os.open(path, os.O_RDONLY)

    values = [line.value() async for lines in read_lines(fd) for line in lines]

    os.close(fd)
    assert values == list(range(40_000))


async def test_a_line_is_there_before_the_next_is_written() -> None:
    """A pipe whose writer pauses gives what it has: nobody waits for a block to fill."""
    reading, writing = os.pipe()
    os.write(writing, b"1\n")
    source = read_lines(reading)

    assert await anext(source) == [Line(1, b"1")]

    os.write(writing, b"2\n")
    assert await anext(source) == [Line(2, b"2")]
    os.close(writing)
    assert [lines async for lines in source] == [[]]
    os.close(reading)


async def test_what_cannot_be_read_says_so(tmp_path: Path) -> None:
    """A folder opens, and reading it fails: that is raised, not swallowed by the thread."""
    fd = os.open(tmp_path, os.O_RDONLY)

    with pytest.raises(IsADirectoryError):
        async for _ in read_lines(fd):
            pass

    os.close(fd)


async def test_leaving_early_ends_the_thread(tmp_path: Path) -> None:
    """A reader that has seen enough does not leave a thread that waits for room."""
    path = tmp_path / "zeros"
    path.write_bytes(b"0\n" * 1_000_000)
    fd = os.open(path, os.O_RDONLY)
    before = threading.active_count()
    source = read_lines(fd)
    await anext(source)

    await source.aclose()  # type: ignore[attr-defined]

    for thread in threading.enumerate():
        if "_read_blocks" in thread.name:
            thread.join(30)
    os.close(fd)
    assert threading.active_count() <= before


async def test_a_file_that_is_closed_on_leaving_is_not_confused_with_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The system gives its number to another file at once, and the thread may be about to read."""
    reading, writing = os.pipe()
    os.write(writing, b"1\n")
    read, is_first = os.read, True
    about_to_read, may_read = threading.Event(), threading.Event()

    def pause_the_second(fd: int, size: int) -> bytes:
        nonlocal is_first
        if not is_first:
            about_to_read.set()
            may_read.wait(30)
        is_first = False
        return read(fd, size)

    monkeypatch.setattr("aioredismq._jsonl.os.read", pause_the_second)
    source = read_lines(reading)
    assert await anext(source) == [Line(1, b"1")]
    assert await anyio.to_thread.run_sync(about_to_read.wait, 30)
    await source.aclose()  # type: ignore[attr-defined]
    os.close(writing)
    other, others_end = os.pipe()
    os.dup2(other, reading)  # as the system may, once it is closed
    os.write(others_end, b"not yours")
    os.close(others_end)

    may_read.set()
    for thread in threading.enumerate():
        if "_read_blocks" in thread.name:
            thread.join(30)

    assert read(reading, 100) == b"not yours"
    os.close(reading)
    os.close(other)
