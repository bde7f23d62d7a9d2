from __future__ import annotations

import asyncio
import hashlib
import logging
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from aioredismq import (
    AuthenticationError,
    ConnectionLostError,
    ServerError,
    ServerNotReadyError,
    WrongKeyTypeError,
)
from aioredismq._errors import server_error
from aioredismq._link import Link
from aioredismq._scripts import Script
from aioredismq._wire import Wire, pack
from aioredismq.testing import FaultyLine, RedisServer
from tests.roads import Road
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from anyio.abc import TaskGroup
    from redis.asyncio import Redis

TEXT = b"return {KEYS[1], ARGV[1]}"
DIGEST = hashlib.sha1(TEXT, usedforsecurity=False).hexdigest()
HELLO = Script("hello", TEXT, DIGEST.encode())


@pytest.fixture
async def tasks() -> AsyncIterator[TaskGroup]:
    """What a test starts, and ends with it."""
    async with anyio.create_task_group() as group:
        yield group
        group.cancel_scope.cancel()


@pytest.fixture
async def line(url: str) -> AsyncIterator[FaultyLine]:
    """A line to the server most tests share."""
    async with FaultyLine(url) as opened:
        yield opened


@pytest.fixture
async def road(line: FaultyLine) -> AsyncIterator[Road]:
    """Wires over the line."""
    opened = Road(line.url)
    yield opened
    opened.close()


@pytest.fixture
async def link(road: Road, tasks: TaskGroup) -> Link:
    """A link over the line that is kept."""
    made = Link(road.open, patience=5.0)
    await made.connect()
    tasks.start_soon(made.keep)
    return made


async def ask(
    link: Link, *parts: bytes | str | float, patience: float | None = None
) -> Any:
    """Call, with a time limit of the test's own."""
    with anyio.fail_after(8):
        return await link.call(*parts, patience=patience)


# While it is up.


async def test_a_connected_link_is_up(link: Link) -> None:
    """And answers."""
    assert link.is_up
    assert link.failure is None
    assert await ask(link, "ECHO", 1) == b"1"


async def test_what_prevents_the_first_connect_is_told(road: Road) -> None:
    """It is the caller's to decide what follows from it: nothing is tried again."""
    road.error = ConnectionLostError("nobody there")
    link = Link(road.open, patience=5.0)

    with pytest.raises(ConnectionLostError, match="nobody there"):
        await link.connect()

    assert not link.is_up
    assert road.attempts == 1


async def test_a_submitted_command_is_answered_by_a_call_back(link: Link) -> None:
    """Once, with its reply or its error."""
    replies: list[Any] = []
    link.submit(pack("ECHO", 1), replies.append)
    link.submit(pack("NOSUCHCOMMAND"), replies.append)

    await eventually(lambda: len(replies) == 2)

    assert replies[0] == b"1"
    assert isinstance(replies[1], ServerError)


async def test_an_error_that_does_not_pass_is_raised_at_once(
    link: Link, name: str
) -> None:
    """Trying again would not help."""
    await ask(link, "SET", name, "text")

    with pytest.raises(WrongKeyTypeError):
        await ask(link, "XLEN", name)

    await ask(link, "DEL", name)


async def test_a_cancelled_call_leaves_the_link_in_order(link: Link) -> None:
    """Its reply is dropped; the next call gets its own."""
    with anyio.move_on_after(0.01):
        await link.call("BLPOP", "nothing", 0.1)

    assert await ask(link, "ECHO", "next") == b"next"


async def test_a_script_is_taught_to_a_server_that_does_not_know_it(
    link: Link, client: Redis, name: str
) -> None:
    """Also after it has forgotten."""
    for _ in range(2):
        await client.script_flush()

        with anyio.fail_after(8):
            reply = await link.run(HELLO, [name], ["you"])

        assert reply == [name.encode(), b"you"]
        assert await client.script_exists(DIGEST) == [True]


async def test_a_known_script_is_called_by_its_digest(
    link: Link, client: Redis
) -> None:
    """It is not sent again and again."""
    await link.run(HELLO, ["k"], ["you"])
    before = await calls(client, "eval")

    await link.run(HELLO, ["k"], ["you"])

    assert await calls(client, "eval") == before


async def calls(client: Redis, command: str) -> int:
    """Count the calls of a command on the server."""
    counted = (await client.info("commandstats")).get(f"cmdstat_{command}", {})
    return int(counted.get("calls", 0))


# Outages.


async def test_a_call_under_way_when_the_line_breaks_is_sent_again(
    link: Link, line: FaultyLine, client: Redis, name: str
) -> None:
    """And answered as soon as there is a connection, within two seconds."""
    async with anyio.create_task_group() as tasks:
        answers: list[Any] = []

        async def wait() -> None:
            answers.append(await link.call("BLPOP", name, 30))

        tasks.start_soon(wait)
        await eventually(lambda: is_blocked(client))

        line.drop()
        await eventually(lambda: not link.is_up)
        await client.rpush(name, "late")
        await eventually(lambda: bool(answers), limit=2)

    assert answers == [[name.encode(), b"late"]]


async def is_blocked(client: Redis) -> bool:
    """Say whether somebody waits in a blocking command."""
    return int((await client.info("clients"))["blocked_clients"]) > 0


async def test_a_call_whose_reply_was_lost_is_made_twice(
    link: Link, line: FaultyLine, name: str
) -> None:
    """Which is why only what may be done twice is called."""
    line.reset_after_request(containing=b"INCR")

    assert await ask(link, "INCR", name) == 2

    await ask(link, "DEL", name)


async def test_a_call_waits_for_the_connection(link: Link, line: FaultyLine) -> None:
    """For as long as its patience lasts."""
    line.cut()
    await eventually(lambda: not link.is_up)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, link, "PING")
        await anyio.sleep(0.1)
        line.heal()


async def test_a_call_ends_with_its_patience(link: Link, line: FaultyLine) -> None:
    """Saying why there is no connection."""
    line.cut()
    await eventually(lambda: not link.is_up)
    clock = asyncio.get_running_loop().time  # its timers go by what it shows
    began = clock()

    with pytest.raises(ConnectionLostError, match=r"reset|hung|lost"):
        await ask(link, "PING", patience=0.2)

    assert 0.19 <= clock() - began < 4  # its own patience is 5 s
    assert link.failure is not None


async def test_a_call_without_patience_is_made_once(
    link: Link, line: FaultyLine
) -> None:
    """If the line breaks under it, that is its answer."""
    calling = asyncio.ensure_future(link.call("BLPOP", "nothing", 5, patience=0))
    await anyio.sleep(0.02)

    line.drop()

    with pytest.raises(ConnectionLostError, match="reset"):
        await asyncio.wait_for(calling, 8)


async def test_nothing_is_submitted_to_a_link_that_is_down(
    link: Link, line: FaultyLine
) -> None:
    """The caller keeps it and sends it later."""
    line.cut()
    await eventually(lambda: not link.is_up)

    with pytest.raises(ConnectionLostError):
        link.submit(pack("PING"), lambda _: None)


async def test_what_was_submitted_is_told_of_the_loss(
    link: Link, line: FaultyLine
) -> None:
    """It may or may not have been done."""
    replies: list[Any] = []
    link.submit(pack("BLPOP", "nothing", 0), replies.append)

    line.drop()

    await eventually(lambda: len(replies) == 1)
    assert isinstance(replies[0], ConnectionLostError)


async def test_who_waits_for_the_connection_is_called_back(
    link: Link, line: FaultyLine
) -> None:
    """Each time it is there again, until he asks no more."""
    ups: list[int] = []

    def count() -> None:
        ups.append(1)

    link.on_up(count)
    for times in (1, 2):
        line.drop()
        await eventually(lambda expected=times: len(ups) == expected)  # type: ignore[misc]

    link.forget(count)
    line.drop()
    await eventually(lambda: not link.is_up)
    await eventually(lambda: link.is_up)
    assert len(ups) == 2


async def test_a_connection_that_broke_in_the_moment_it_was_made_is_made_again(
    road: Road, tasks: TaskGroup
) -> None:
    """Nobody waits for the loss of what was lost already."""

    async def broken(on_lost: Callable[[], None]) -> Wire:
        wire = await road.open(on_lost)
        if len(road.wires) == 1:
            wire.close()
        return wire

    link = Link(broken, patience=5.0)
    await link.connect()
    tasks.start_soon(link.keep)

    assert await ask(link, "PING") == b"PONG"
    assert len(road.wires) == 2


async def test_a_password_that_is_refused_is_not_waited_for(
    link: Link, road: Road, line: FaultyLine
) -> None:
    """Callers are told at once, however long they would wait for a server that is away."""
    road.error = AuthenticationError("WRONGPASS invalid username-password pair")
    line.drop()
    await eventually(lambda: isinstance(link.failure, AuthenticationError))

    with pytest.raises(AuthenticationError):
        await ask(link, "PING", patience=60)


async def test_who_waits_already_is_told_of_a_refused_password(
    link: Link, road: Road, line: FaultyLine
) -> None:
    """As soon as it is refused."""
    line.cut()
    await eventually(lambda: not link.is_up)
    waiting = asyncio.ensure_future(link.call("PING", patience=60))
    await anyio.sleep(0.05)
    assert not waiting.done()

    road.error = AuthenticationError("WRONGPASS invalid username-password pair")

    with pytest.raises(AuthenticationError):
        await asyncio.wait_for(waiting, 8)


async def test_a_password_that_is_right_again_lets_everyone_in(
    link: Link, road: Road, line: FaultyLine
) -> None:
    """Whatever prevented it in between; who waits is not troubled by what was."""
    road.error = AuthenticationError("WRONGPASS invalid username-password pair")
    line.drop()
    await eventually(lambda: isinstance(link.failure, AuthenticationError))
    road.error = ConnectionLostError("away")
    await eventually(lambda: isinstance(link.failure, ConnectionLostError))
    waiting = asyncio.ensure_future(link.call("PING", patience=60))
    await anyio.sleep(0.05)
    assert not waiting.done()

    road.error = None

    assert await asyncio.wait_for(waiting, 8) == b"PONG"


async def test_a_link_that_is_given_up_looks_for_the_server_again(
    link: Link, road: Road
) -> None:
    """It may live elsewhere now."""
    link.renew()

    assert await ask(link, "PING") == b"PONG"
    assert len(road.wires) == 2
    assert road.wires[0].is_lost


@pytest.mark.parametrize(
    ("text", "is_left"),
    [
        ("MOVED 3999 127.0.0.1:6381", True),
        ("READONLY You can't write against a read only replica.", True),
        ("ASK 3999 127.0.0.1:6381", False),
        ("TRYAGAIN Multiple keys request during rehashing of slot", False),
        ("LOADING Redis is loading the dataset in memory", False),
    ],
)
async def test_a_server_is_left_when_it_says_that_the_key_is_elsewhere(
    link: Link, road: Road, text: str, is_left: bool
) -> None:
    """Not while its slot is on the way: it says so when that is over."""
    assert link.follow(server_error(text)) is is_left

    assert road.wires[0].is_lost is is_left


async def test_renewing_what_is_down_changes_nothing(road: Road) -> None:
    """It is looked for already."""
    Link(road.open, patience=1.0).renew()

    assert road.attempts == 0


async def test_a_server_that_became_a_replica_is_left_for_its_master(
    own_server: RedisServer, tasks: TaskGroup
) -> None:
    """It says READONLY; the server is looked for until it is one that takes writes."""
    road = Road(own_server.url)
    link = Link(road.open, patience=5.0)
    await link.connect()
    tasks.start_soon(link.keep)
    await anyio.to_thread.run_sync(own_server.command, "REPLICAOF", "127.0.0.1", 1)

    async with anyio.create_task_group() as calls:
        calls.start_soon(ask, link, "SET", "key", "value")
        await eventually(lambda: len(road.wires) >= 2)
        await anyio.to_thread.run_sync(own_server.command, "REPLICAOF", "NO", "ONE")

    assert await ask(link, "GET", "key") == b"value"
    road.close()


async def test_a_server_that_is_busy_is_waited_for(
    own_server: RedisServer, tasks: TaskGroup
) -> None:
    """On the same connection: it is the right one. When patience ends, its error is told."""
    road = Road(own_server.url)
    link = Link(road.open, patience=5.0)
    await link.connect()
    tasks.start_soon(link.keep)
    await ask(link, "CONFIG", "SET", "lua-time-limit", 1)
    stuck = await road.open(lambda: None)
    stuck.call("EVAL", "while true do end", 0).add_done_callback(
        lambda done: done.exception()
    )

    with pytest.raises(ServerNotReadyError, match="BUSY"):
        await ask(link, "PING", patience=1.0)
    async with anyio.create_task_group() as calls:
        calls.start_soon(ask, link, "PING")
        await anyio.sleep(0.05)
        road.wires[0].call("SCRIPT", "KILL")

    assert len(road.wires) == 2
    road.close()


# How hard it tries.


async def test_an_outage_costs_few_attempts_and_few_words(
    link: Link, line: FaultyLine, caplog: pytest.LogCaptureFixture
) -> None:
    """One line when it begins, with the reason, and one when it is over."""
    caplog.set_level(logging.DEBUG, "aioredismq")
    before = line.attempts
    line.cut()
    await anyio.sleep(1.0)
    attempts = line.attempts - before
    await eventually(lambda: line.attempts - before >= 2)
    line.heal()
    await eventually(lambda: link.is_up)

    assert attempts <= 8
    lost, found = caplog.records
    assert lost.levelname == "WARNING"
    assert "the connection to Redis was lost" in lost.message
    assert lost.message.endswith("; connecting again")
    assert found.message == "connected to Redis again"


async def test_a_server_that_throws_everyone_out_is_asked_less_and_less(
    road: Road, tasks: TaskGroup, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection that breaks as soon as it is used is no end of the outage."""
    caplog.set_level(logging.DEBUG, "aioredismq")

    async def brief(on_lost: Callable[[], None]) -> Wire:
        wire = await road.open(on_lost)
        asyncio.get_running_loop().call_later(0.001, wire.close)
        return wire

    link = Link(brief, patience=5.0)
    await link.connect()
    tasks.start_soon(link.keep)
    await anyio.sleep(1.0)
    attempts = road.attempts
    await eventually(lambda: road.attempts >= 3)

    assert attempts <= 8
    assert len(caplog.records) <= 2 * road.attempts
