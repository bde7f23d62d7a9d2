"""One line after the other breaks: what depends on it is back within two seconds, quietly."""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest

from aioredismq import Message, RedisMessageQueue
from aioredismq._scripts import SETTLE
from aioredismq.testing import FaultyLine, RedisServer
from tests.looking import AT_ONCE
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from redis.asyncio import Redis

BACK_WITHIN = 2.0


class Worked:
    """A queue that consumes, and what it has handled."""

    def __init__(self, name: str, url: str) -> None:
        """Nothing is opened."""
        self.handled: list[tuple[object, int]] = []
        self.queue = RedisMessageQueue(name, url)
        self.queue.handler(retry=AT_ONCE)(self._handle)

    async def _handle(self, body: object, message: Message) -> None:
        """Remember a body with its attempt; what says so fails at first."""
        if str(body).startswith("again") and message.attempt == 1:
            raise ValueError("once more")
        self.handled.append((body, message.attempt))

    async def works(self, body: str) -> None:
        """Send a message, and see it handled soon."""
        sending = asyncio.ensure_future(self.queue.produce(body))
        await eventually(
            lambda: body in [seen for seen, _ in self.handled], BACK_WITHIN
        )
        await sending

    async def is_settled(self) -> bool:
        """Say whether nothing is stored or pending any more."""
        [group] = await self.queue.groups()
        return group.pending == 0 and not await self.queue.records()


@asynccontextmanager
async def working(name: str, url: str) -> AsyncIterator[Worked]:
    """Consume while the block breaks things; what it has sent is settled at the end."""
    worked = Worked(name, url)
    async with worked.queue:
        async with worked.queue.consuming():
            await worked.works("first")
            yield worked
            await eventually(worked.is_settled)
        await worked.queue.delete()


@pytest.fixture
async def line(url: str) -> AsyncIterator[FaultyLine]:
    """A line to the server most tests share."""
    async with FaultyLine(url) as opened:
        yield opened


def loud(caplog: pytest.LogCaptureFixture) -> list[str]:
    """List what was said above DEBUG, but for what is said of failed handlers."""
    return [
        record.message
        for record in caplog.records
        if record.name == "aioredismq"
        and record.levelno >= logging.INFO
        and "will be tried again" not in record.message
    ]


# Each connection in turn.

OF: dict[str, Callable[[dict[str, str]], bool]] = {
    "commands": lambda each: each["cmd"] not in ("xreadgroup", "subscribe"),
    "reads": lambda each: each["cmd"] == "xreadgroup",
    "the bell": lambda each: each["cmd"] == "subscribe",
}


@pytest.mark.parametrize("is_meant", OF.values(), ids=OF)
async def test_a_connection_that_is_killed_is_made_again(
    url: str,
    client: Redis,
    name: str,
    is_meant: Callable[[dict[str, str]], bool],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whichever it is, and also several times in a row; work goes on meanwhile."""
    caplog.set_level(logging.DEBUG, "aioredismq")
    label = f"c{secrets.token_hex(4)}"

    async def meant() -> list[str]:
        known = await client.client_list()
        return [
            each["id"] for each in known if each["name"] == label and is_meant(each)
        ]

    async with working(name, f"{url}?client_name={label}") as worked:
        for times in range(2):
            await eventually(lambda: is_there(meant))
            [number] = await meant()
            await client.client_kill_filter(_id=number)

            await worked.works(f"once {times}")
            await worked.works(f"again {times}")

    # The loss of the one all commands travel on is said; the others lose nothing worth a word.
    assert len(loud(caplog)) <= 6


async def is_there(find: Callable[[], object]) -> bool:
    """Say whether exactly one was found."""
    found = await find()  # type: ignore[misc]
    return len(found) == 1


# The server.


async def test_a_restarted_server_finds_everyone_back(
    server_path: Path | None, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Blocked reads, the bell and what is sent meanwhile, within two seconds of its return."""
    caplog.set_level(logging.DEBUG, "aioredismq")
    with RedisServer(server_path, persistence=True) as server:
        async with working(name, server.url) as worked:
            await anyio.to_thread.run_sync(server.kill)
            sending = asyncio.ensure_future(worked.queue.produce("meanwhile"))
            await anyio.sleep(0.5)
            await anyio.to_thread.run_sync(server.start)

            await worked.works("again")

            assert ("meanwhile", 1) in worked.handled
            await sending
    assert len(loud(caplog)) <= 4


async def test_a_server_that_forgot_everything_is_set_up_again(
    own_server: RedisServer, name: str
) -> None:
    """Without persistence, a restart takes the queue away; it is made again, and said."""
    async with working(name, own_server.url) as worked:
        await anyio.to_thread.run_sync(own_server.restart)

        await worked.works("again")


async def test_an_outage_costs_few_attempts_and_few_words(
    line: FaultyLine, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """However many connections look for the server, and whoever waits for it."""
    caplog.set_level(logging.DEBUG, "aioredismq")
    async with working(name, line.url) as worked:
        before, said = line.attempts, len(caplog.records)
        line.cut()
        sending = asyncio.gather(*(worked.queue.produce(f"x{n}") for n in range(50)))
        await anyio.sleep(1.5)
        attempts, words = line.attempts - before, len(caplog.records) - said
        line.heal()
        await sending
        await worked.works("again")

    assert attempts <= 30  # three connections, each at most ten times
    assert words <= 40  # at DEBUG
    assert len(loud(caplog)) <= 4


# A reply that is lost.


async def test_a_send_whose_reply_was_lost_is_stored_once(
    line: FaultyLine, name: str
) -> None:
    """It was stored, and is sent again; the server knows it."""
    async with working(name, line.url) as worked:
        line.reset_after_request(containing=b"precious")

        await worked.works("precious")

        assert not line.is_armed
        await eventually(worked.is_settled)
        assert [body for body, _ in worked.handled] == ["first", "precious"]


@pytest.mark.parametrize("size", [None, 1, 60], ids=["nothing", "one byte", "half"])
async def test_a_read_whose_reply_was_lost_is_found_again(
    line: FaultyLine, name: str, size: int | None
) -> None:
    """What it brought is pending and unseen: it is looked for at once, as a first attempt."""
    async with working(name, line.url) as worked:
        if size is None:
            line.reset_after_request(containing=b"XREADGROUP")
        else:
            line.truncate_reply(size, containing=b"XREADGROUP")
        await worked.works("unarmed")  # answers the read that was under way

        await worked.works("brought")

        assert not line.is_armed
        assert worked.handled == [("first", 1), ("unarmed", 1), ("brought", 1)]


async def test_an_acknowledgement_whose_reply_was_lost_is_given_again(
    line: FaultyLine, name: str
) -> None:
    """The message is handled once, and gone."""
    async with working(name, line.url) as worked:
        line.reset_after_request(containing=SETTLE.digest)

        await worked.works("settled")
        await eventually(worked.is_settled, BACK_WITHIN)

        assert not line.is_armed
        assert [body for body, _ in worked.handled] == ["first", "settled"]


async def test_a_retry_whose_reply_was_lost_is_made_once(
    line: FaultyLine, name: str
) -> None:
    """It was moved to the group's lane, and is moved again; that finds it gone."""
    async with working(name, line.url) as worked:
        line.reset_after_request(containing=b"once more")  # its detail travels with it

        await worked.works("again")

        assert not line.is_armed
        await eventually(worked.is_settled)
        assert worked.handled == [("first", 1), ("again", 2)]
