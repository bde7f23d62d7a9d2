from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import pytest

from aioredismq import _cli_commands as commands
from aioredismq._terminal import UsageError

if TYPE_CHECKING:
    from redis.asyncio import Redis

    _Capture = pytest.CaptureFixture[str]


def _written(capsys: _Capture) -> list[object]:
    """Give the lines of standard output, as JSON."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


async def _produce_lines(queue: str, url: str, text: bytes) -> int:
    reading, writing = os.pipe()
    os.write(writing, text)
    os.close(writing)
    try:
        return await commands.produce_lines(queue, url, reading)
    finally:
        os.close(reading)


async def test_what_is_produced_is_listed_and_consumed(
    url: str, name: str, capsys: _Capture
) -> None:
    """The four commands together: an id, its record, the group's figures, the body."""
    await commands.produce(name, url, {"id": 1, "name": "Jörg"})
    message_id = capsys.readouterr().out.strip()

    await commands.records(name, url, None, None)
    await commands.groups(name, url)
    assert _written(capsys) == [
        {"id": message_id, "headers": {}, "body": {"id": 1, "name": "Jörg"}}
    ]

    await commands.consume(name, url, "billing", 1)
    assert _written(capsys) == [{"id": 1, "name": "Jörg"}]
    await commands.records(name, url, None, None)
    await commands.groups(name, url)
    [group] = _written(capsys)
    assert isinstance(group, dict)
    assert (group["name"], group["pending"]) == ("billing", 0)


async def test_producing_makes_no_group(url: str, name: str, client: Redis) -> None:
    """A group nobody reads would keep every message for ever."""
    await commands.produce(name, url, 1)

    assert await client.xinfo_groups(name) == []


async def test_each_line_is_produced_and_a_bad_one_named(
    url: str, name: str, capsys: _Capture
) -> None:
    """The rest goes on, in order, and the code says that something was left out."""
    code = await _produce_lines(name, url, b'1\n\n{bad\n"two"\n')

    told = capsys.readouterr()
    ids = told.out.splitlines()
    assert (code, len(ids)) == (1, 2)
    assert told.err.startswith("<stdin>:3: not JSON")
    await commands.records(name, url, None, None)
    assert _written(capsys) == [
        {"id": ids[0], "headers": {}, "body": 1},
        {"id": ids[1], "headers": {}, "body": "two"},
    ]
    assert await _produce_lines(name, url, b"3\n") == 0


async def test_records_can_be_paged(
    url: str, name: str, capsys: _Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long queue is read in pages; behind an id and up to a number."""
    monkeypatch.setattr(commands, "_PAGE", 3)
    await _produce_lines(name, url, b"".join(b"%d\n" % n for n in range(10)))
    ids = capsys.readouterr().out.splitlines()

    async def bodies(after: str | None, limit: int | None) -> list[int]:
        await commands.records(name, url, after, limit)
        return [
            json.loads(line)["body"] for line in capsys.readouterr().out.splitlines()
        ]

    assert await bodies(None, None) == list(range(10))
    assert await bodies(ids[3], 5) == [4, 5, 6, 7, 8]
    assert await bodies(ids[9], None) == []
    assert await bodies(None, 3) == [0, 1, 2]


async def test_looking_at_nothing_makes_nothing(
    url: str, name: str, client: Redis
) -> None:
    """A mistyped name is told, and leaves no key behind."""
    with pytest.raises(UsageError, match="there is no queue"):
        await commands.groups(name, url)

    assert await client.keys(f"*{name}*") == []


async def test_what_is_not_printed_stays(
    url: str, name: str, capsys: _Capture, client: Redis
) -> None:
    """Exactly as many as asked are taken; the rest is there for the next."""
    await _produce_lines(name, url, b"1\n2\n3\n")
    capsys.readouterr()

    await commands.consume(name, url, None, 2)
    assert _written(capsys) == [1, 2]

    assert (await client.xpending(name, f"{name}_group"))["pending"] == 0
    await commands.consume(name, url, None, 1)
    assert _written(capsys) == [3]


async def test_what_could_not_be_printed_is_not_acknowledged(
    url: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: _Capture
) -> None:
    """When the reader of the output is gone, the message goes back."""
    await commands.produce(name, url, 1)
    reading, writing = os.pipe()
    os.close(reading)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", os.fdopen(writing, "w"))
        with pytest.raises(BrokenPipeError):
            await commands.consume(name, url, None, None)
        with pytest.raises(BrokenPipeError):
            sys.stdout.close()
    capsys.readouterr()

    await commands.consume(name, url, None, 1)

    assert _written(capsys) == [1]


async def test_what_cannot_be_decoded_becomes_a_dead_letter(
    url: str, name: str, capsys: _Capture, client: Redis
) -> None:
    """It is named and put aside; it does not stop the others, and is not lost."""
    await client.xadd(name, {"body": "{bad"})
    await commands.produce(name, url, b"\x00\xff")
    capsys.readouterr()

    await commands.consume(name, url, None, 2)

    told = capsys.readouterr()
    assert json.loads(told.out) == {"base64": "AP8="}
    assert "becomes a dead letter" in told.err
    assert await client.xlen(f"{{{name}}}:dead") == 1
