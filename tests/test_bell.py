from __future__ import annotations

import logging
import secrets
import time
from typing import TYPE_CHECKING

import anyio
import pytest

from aioredismq import PermissionDeniedError, _bell
from aioredismq._bell import Bell
from aioredismq.testing import FaultyLine
from tests.roads import Road
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis


class Listener:
    """Counts how often it was rung."""

    def __init__(self) -> None:
        """Silent so far."""
        self.times = 0

    def ring(self) -> None:
        """Count."""
        self.times += 1


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
async def bell(road: Road) -> AsyncIterator[Bell]:
    """A bell that listens."""
    made = Bell(road.open)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(made.listen)
        yield made
        tasks.cancel_scope.cancel()


async def heard_by(client: Redis, channel: str, expected: int) -> bool:
    """Say whether so many connections listen on a channel."""
    [(_, number)] = await client.pubsub_numsub(channel)
    return int(number) == expected


async def listening(bell: Bell, client: Redis, channel: str) -> Listener:
    """Listen on a channel, and wait until the server knows."""
    listener = Listener()
    bell.add(channel, listener.ring)
    await eventually(lambda: listener.times == 1)  # once for what came before
    assert await heard_by(client, channel, 1)
    return listener


async def test_nothing_is_opened_before_somebody_listens(
    bell: Bell, road: Road
) -> None:
    """A process that only produces needs no bell."""
    await anyio.sleep(0.02)

    assert road.attempts == 0


async def test_who_listens_is_rung(bell: Bell, client: Redis, name: str) -> None:
    """Once to begin with, as it may have rung before; then each time it rings."""
    listener = await listening(bell, client, name)

    await client.publish(name, "")
    await eventually(lambda: listener.times == 2)
    await client.publish(name, "")
    await eventually(lambda: listener.times == 3)


async def test_one_channel_may_have_several_listeners(
    bell: Bell, client: Redis, road: Road, name: str
) -> None:
    """And one connection serves all channels."""
    first = await listening(bell, client, name)
    second, other = Listener(), await listening(bell, client, f"{name}-other")
    bell.add(name, second.ring)

    await client.publish(name, "")

    await eventually(lambda: (first.times, second.times) == (2, 1))
    assert other.times == 1
    assert len(road.wires) == 1


async def test_who_leaves_is_not_rung_any_more(
    bell: Bell, client: Redis, name: str
) -> None:
    """The channel is left with the last one."""
    stays, leaves = await listening(bell, client, name), Listener()
    bell.add(name, leaves.ring)
    bell.remove(name, leaves.ring)
    await listening(bell, client, f"{name}-other")

    await client.publish(name, "")
    await eventually(lambda: stays.times == 2)
    assert leaves.times == 0

    bell.remove(name, stays.ring)
    await eventually(lambda: heard_by(client, name, 0))
    assert await heard_by(client, f"{name}-other", 1)


async def test_when_the_last_one_leaves_the_connection_is_given_up(
    bell: Bell, client: Redis, road: Road, name: str
) -> None:
    """And opened again for the next one."""
    listener = await listening(bell, client, name)

    bell.remove(name, listener.ring)

    await eventually(lambda: road.wires[0].is_lost)
    await listening(bell, client, name)
    assert len(road.wires) == 2


async def test_a_bell_that_lost_its_line_is_back_soon(
    bell: Bell, client: Redis, line: FaultyLine, name: str
) -> None:
    """All are rung then: it may have rung meanwhile."""
    first = await listening(bell, client, name)
    second = await listening(bell, client, f"{name}-other")

    line.drop()

    await eventually(lambda: (first.times, second.times) == (2, 2))
    await client.publish(name, "")
    await eventually(lambda: first.times == 3)


async def test_a_bell_whose_server_is_away_asks_seldom_and_says_little(
    bell: Bell,
    client: Redis,
    line: FaultyLine,
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing depends on it: no word above DEBUG."""
    listener = await listening(bell, client, name)
    caplog.set_level(logging.DEBUG, "aioredismq")
    before = line.attempts

    line.cut()
    await anyio.sleep(1.0)
    attempts = line.attempts - before
    await eventually(lambda: line.attempts - before >= 2)
    line.heal()
    await eventually(lambda: listener.times == 2)

    assert attempts <= 8
    assert len(caplog.records) <= 10
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}


@pytest.fixture
async def user(client: Redis, road: Road) -> AsyncIterator[str]:
    """Who listens: a user that may do everything but listen."""
    road.user = f"u{secrets.token_hex(4)}"
    await client.execute_command(
        "ACL", "SETUSER", road.user, "on", "nopass", "resetchannels", "+@all"
    )
    yield road.user
    await client.execute_command("ACL", "DELUSER", road.user)


async def test_a_channel_that_is_denied_is_said_once_and_asked_for_again(
    user: str,
    bell: Bell,
    client: Redis,
    name: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Until it is allowed: listeners have a slow pulse, so nothing is lost meanwhile."""
    monkeypatch.setattr(_bell, "_CHECK", 0.03)
    listener = Listener()
    bell.add(name, listener.ring)
    await eventually(lambda: len(caplog.records) == 1)
    await anyio.sleep(0.1)
    assert listener.times == 0

    await client.execute_command("ACL", "SETUSER", user, f"&{name}")

    await eventually(lambda: listener.times == 1)
    [said] = caplog.records
    assert said.levelname == "WARNING"
    assert said.message.startswith(f"no bell on {name}, falling back on the slow pulse")


async def test_a_channel_that_is_denied_takes_no_other_along(
    user: str, bell: Bell, client: Redis, name: str
) -> None:
    """Of several queues, one may be closed to this user."""
    await client.execute_command("ACL", "SETUSER", user, f"&{name}")
    denied = Listener()
    bell.add(f"{name}-denied", denied.ring)

    listener = await listening(bell, client, name)

    await client.publish(name, "")
    await eventually(lambda: listener.times == 2)
    assert denied.times == 0


async def test_a_user_who_is_not_let_in_is_tried_rarely(
    bell: Bell,
    road: Road,
    client: Redis,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And it is said."""
    monkeypatch.setattr(_bell, "_CHECK", 0.2)
    road.error = PermissionDeniedError("NOPERM")
    listener = Listener()
    began = time.monotonic()
    bell.add(name, listener.ring)
    await eventually(lambda: road.attempts >= 1)
    await anyio.sleep(0.1)
    assert road.attempts <= 1 + (time.monotonic() - began) / 0.2

    road.error = None

    await eventually(lambda: listener.times == 1)
    assert "falling back on the slow pulse" in caplog.text


async def test_a_line_that_went_silent_is_found_out(
    bell: Bell,
    road: Road,
    line: FaultyLine,
    client: Redis,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing else travels on it that would be missed: it is asked once a while."""
    monkeypatch.setattr(_bell, "_CHECK", 0.05)
    road.reply_timeout = 1.0
    listener = await listening(bell, client, name)
    await anyio.sleep(0.15)
    assert len(road.wires) == 1  # while it answers it is left alone

    line.black_hole()
    await eventually(lambda: road.wires[0].is_lost)
    line.heal()

    await eventually(lambda: listener.times == 2)


async def test_whether_the_line_is_alive_need_not_be_allowed(
    bell: Bell,
    road: Road,
    user: str,
    client: Redis,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A refusal, too, is an answer."""
    monkeypatch.setattr(_bell, "_CHECK", 0.03)
    await client.execute_command("ACL", "SETUSER", user, f"&{name}", "-ping")
    listener = await listening(bell, client, name)
    await anyio.sleep(0.1)

    await client.publish(name, "")

    await eventually(lambda: listener.times == 2)
    assert len(road.wires) == 1
