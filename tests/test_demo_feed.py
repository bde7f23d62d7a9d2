from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, cast

import pytest

from aioredismq._demo_feed import Feed, Source

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aioredismq._demo_crew import Worker


class _Told:
    """Stands in for a worker: keeps what it is told, and can be gone."""

    def __init__(self, *, takes_orders: bool = True) -> None:
        self.takes_orders = takes_orders
        self.orders: list[list[object]] = []

    async def tell(self, orders: bytes) -> None:
        self.orders += [json.loads(line) for line in orders.splitlines()]

    @property
    def numbers(self) -> list[int]:
        """What it is to send."""
        return [
            number
            for first, count, *_ in cast("list[tuple[int, int]]", self.orders)
            for number in range(first, first + count)
        ]


async def _run(feed: Feed, *producers: _Told) -> None:
    await feed.run(cast("Sequence[Worker]", producers))


def _source(path: Path, text: bytes) -> Source:
    path.write_bytes(text)
    return Source("orders.jsonl", os.open(path, os.O_RDONLY))


async def test_made_up_messages_are_shared_out_evenly() -> None:
    """Each number is ordered once, and nobody gets much more than the others."""
    feed, producers = Feed(10_001, None), [_Told() for _ in range(3)]
    assert feed.expected == 10_001

    await _run(feed, *producers)

    numbers = [number for producer in producers for number in producer.numbers]
    assert sorted(numbers) == list(range(10_001))
    assert max(len(p.numbers) for p in producers) <= 10_001 / 3 + 250
    assert (feed.ordered, feed.is_done) == (10_001, True)


async def test_a_producer_that_is_gone_gets_nothing() -> None:
    """The others send everything; without any it ends."""
    gone, there, feed = _Told(takes_orders=False), _Told(), Feed(1_000, None)

    await _run(feed, gone, there)

    assert (gone.numbers, there.numbers) == ([], list(range(1_000)))
    await _run(Feed(1_000, None), gone)
    assert gone.numbers == []


async def test_each_good_line_becomes_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bad line is named with its place and reason, and the rest goes on."""
    text = b'{"a": 1}\n\n{bad\n"two"\r\n\xff\n 3 '
    feed, producer = Feed(None, _source(tmp_path / "in", text)), _Told()
    assert feed.expected is None

    await _run(feed, producer)

    assert producer.orders == [[0, 1, {"a": 1}], [1, 1, "two"], [2, 1, 3]]
    assert (feed.ordered, feed.bad_lines, feed.expected) == (3, 2, 3)
    named = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[0] for line in named] == [
        "orders.jsonl:3",
        "orders.jsonl:5",
    ]
    assert "not JSON" in named[0]
    assert "not UTF-8" in named[1]


async def test_a_file_of_another_format_does_not_fill_the_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first bad lines are named, the others counted."""
    feed = Feed(None, _source(tmp_path / "in", b"<xml>\n" * 500))

    await _run(feed, _Told())

    named = capsys.readouterr().err.splitlines()
    assert len(named) == 21
    assert named[-1] == "… and 480 bad lines more"
    assert (feed.ordered, feed.bad_lines) == (0, 500)


@pytest.mark.parametrize("lines", [5, 50_000])
async def test_the_input_can_be_cut_short(tmp_path: Path, lines: int) -> None:
    """With a number of messages the rest of the input is left alone."""
    feed, producer = Feed(4, _source(tmp_path / "in", b"0\n" * lines)), _Told()

    await _run(feed, producer)

    assert (feed.ordered, len(producer.orders)) == (4, 4)


async def test_lines_that_come_one_by_one_are_shared_out_too() -> None:
    """Whose turn it is goes on from one block to the next."""
    reading, writing = os.pipe()
    feed, producers = Feed(None, Source("<stdin>", reading)), [_Told(), _Told()]
    os.write(writing, b"0\n1\n2\n")
    os.close(writing)

    await _run(feed, *producers)

    assert sorted(len(producer.orders) for producer in producers) == [1, 2]
    assert feed._turn == 3
    os.close(reading)
