from __future__ import annotations

import logging
import secrets
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from aioredismq import _lookout
from aioredismq._address import arguments
from aioredismq._lookout import Lookout
from aioredismq._sentinels import Sentinels
from aioredismq.testing import FaultyLine, SentinelSet
from tests.services import Service, service
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from aioredismq.testing import RedisServer


@pytest.fixture
def watched(sentinel: SentinelSet, own_server: RedisServer) -> Iterator[Service]:
    """A service with a master of its own."""
    with service(sentinel, own_server) as made:
        yield made


class Heard:
    """The masters that were told of, by port, and when the last one was."""

    def __init__(self) -> None:
        """None yet."""
        self.ports: list[int] = []
        self.at = 0.0

    def note(self, port: int) -> None:
        """Remember one."""
        self.ports.append(port)
        self.at = time.monotonic()


@asynccontextmanager
async def lookout(
    watched: Service, *urls: str, patience: float = 2.0, **more: Any
) -> AsyncIterator[Heard]:
    """Look out for the length of the block, by these sentinels in this order."""
    places = [{**arguments(url, patience), **more} for url in urls]
    sentinels = Sentinels(watched.name, places, patience)
    heard = Heard()
    sentinels.on_master(lambda master: heard.note(master.port))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Lookout(sentinels).keep)
        await eventually(lambda: len(heard.ports) == 1)
        yield heard
        tasks.cancel_scope.cancel()


async def test_a_handover_is_known_when_it_is_announced(
    watched: Service, server: RedisServer, own_server: RedisServer
) -> None:
    """Not at the next question, which is seconds away."""
    async with lookout(watched, watched.sentinels[0].url) as heard:
        await watched.hand_over(server)
        announced = time.monotonic()
        await eventually(lambda: len(heard.ports) == 2, limit=2)

    assert heard.ports == [own_server.port, server.port]
    assert heard.at - announced < 1


async def test_the_one_that_leads_the_failover_tells_of_the_promotion(
    server_path: Path | None,
) -> None:
    """The switch it announces when all replicas have followed, and one may be hanging."""
    with SentinelSet(server_path, replicas=2, sentinels=1) as alone:
        _, replica, hanging = alone.nodes
        hanging.command("CONFIG", "SET", "replica-priority", 0)
        [leader] = alone.sentinels
        await eventually(lambda: is_never_promoted(leader, alone.service, hanging))
        hanging.pause()
        led = Service([leader], alone.nodes[0])
        led.name = alone.service
        async with lookout(led, leader.url) as heard:
            leader.command("SENTINEL", "FAILOVER", alone.service)

            await eventually(lambda: len(heard.ports) == 2, limit=3)

            about = leader.command("SENTINEL", "MASTER", alone.service)
            assert "failover_in_progress" in str(about)
        assert heard.ports[-1] == replica.port
        hanging.resume()


def is_never_promoted(leader: RedisServer, service: str, replica: RedisServer) -> bool:
    """Say whether a sentinel has heard that a replica is not to be promoted."""
    told = leader.command("SENTINEL", "REPLICAS", service)
    assert isinstance(told, list)
    known = [dict(zip(each[::2], each[1::2], strict=True)) for each in told]
    priorities = {int(each["port"]): each["slave-priority"] for each in known}
    return priorities.get(replica.port) == "0"


async def test_it_moves_on_when_a_sentinel_dies(
    watched: Service, server: RedisServer
) -> None:
    """And hears from the next one; what was announced between them is asked for."""
    first, second = watched.sentinels[:2]
    async with (
        FaultyLine(first.url) as line,
        lookout(watched, line.url, second.url) as heard,
    ):
        line.cut()
        await watched.hand_over(server)

        await eventually(lambda: heard.ports[-1] == server.port, limit=2)


async def test_it_goes_from_one_to_the_other_as_they_die(
    watched: Service, server: RedisServer, own_server: RedisServer
) -> None:
    """However often."""
    first, second = watched.sentinels[:2]
    async with (
        FaultyLine(first.url) as one,
        FaultyLine(second.url) as other,
        lookout(watched, one.url, other.url) as heard,
    ):
        for master, dying, living in (
            (server, one, other),
            (own_server, other, one),
        ):
            living.heal()
            dying.cut()
            await eventually(lambda line=living: line.open_connections == 1)
            await watched.hand_over(master)
            await eventually(lambda port=master.port: heard.ports[-1] == port, limit=2)


async def test_a_line_that_went_silent_is_found_out(
    watched: Service, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a question once a while: else nothing would be missed on it, ever."""
    monkeypatch.setattr(_lookout, "_PULSE", 0.1)
    first, second = watched.sentinels[:2]
    async with (
        FaultyLine(first.url) as line,
        lookout(watched, line.url, second.url, patience=0.3) as heard,
    ):
        line.black_hole()
        await watched.hand_over(server)

        await eventually(lambda: heard.ports[-1] == server.port, limit=2)


async def test_a_sentinel_that_does_not_know_the_last_failover_is_left(
    sentinel: SentinelSet, server: RedisServer, own_server: RedisServer
) -> None:
    """It would not know of the next one either."""
    late = sentinel.sentinels[1]
    with service(sentinel, own_server, by=slice(1)) as watched:
        async with (
            FaultyLine(watched.sentinels[0].url) as line,
            lookout(watched, line.url, late.url) as heard,
        ):
            await watched.hand_over(server)
            await eventually(lambda: heard.ports[-1] == server.port)
            watched.watch(late, own_server)

            line.drop()
            # By way of the late one, whom it asks meanwhile.
            attempts = line.attempts
            await eventually(lambda: line.attempts > attempts)
            await eventually(lambda: line.open_connections == 1)
            await watched.hand_over(own_server)
            await eventually(lambda: heard.ports[-1] == own_server.port, limit=2)

            assert len(heard.ports) == 3
        watched.forget(late)


@pytest.fixture
def modest(watched: Service) -> Iterator[str]:
    """A user of the first sentinel who may not listen."""
    user, first = f"u{secrets.token_hex(4)}", watched.sentinels[0]
    first.command("ACL", "SETUSER", user, "on", "nopass", "+@all", "-subscribe")
    yield user
    first.command("ACL", "DELUSER", user)


async def test_who_may_not_listen_asks(
    watched: Service,
    server: RedisServer,
    modest: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """More often, and it is said once."""
    monkeypatch.setattr(_lookout, "_DEAF_PULSE", 0.1)
    first = watched.sentinels[0]
    async with (
        FaultyLine(first.url) as line,
        lookout(watched, line.url, username=modest, password=modest) as heard,
    ):
        line.drop()
        await watched.hand_over(server)
        await eventually(lambda: heard.ports[-1] == server.port, limit=2)

    [said] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert said.getMessage().startswith(
        "a sentinel does not tell of failovers and is asked every 0.1 s: "
    )


async def test_it_asks_seldom_and_only_for_what_is_its_own(
    sentinel: SentinelSet,
    watched: Service,
    server: RedisServer,
    own_server: RedisServer,
) -> None:
    """What becomes of other services is announced on the same line."""
    questions = 0
    ask = Sentinels.ask

    async def count(self: Sentinels, *arguments: Any) -> Any:
        nonlocal questions
        questions += 1
        return await ask(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sentinels, "ask", count)
        async with lookout(watched, watched.sentinels[0].url) as heard:
            with service(sentinel, server) as other:
                await other.hand_over(own_server)
            await anyio.sleep(1.0)
            assert questions == 1
            await watched.hand_over(server)
            await eventually(lambda: heard.ports[-1] == server.port, limit=2)
            assert questions == 2


async def test_sentinels_that_are_away_are_not_pestered(
    watched: Service, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """And no word is said above DEBUG: the connections have theirs."""
    caplog.set_level(logging.DEBUG, "aioredismq")
    async with (
        FaultyLine(watched.sentinels[0].url) as line,
        lookout(watched, line.url) as heard,
    ):
        before = line.attempts
        line.cut()
        await anyio.sleep(1.0)
        attempts = line.attempts - before
        await watched.hand_over(server)
        line.heal()
        await eventually(lambda: heard.ports[-1] == server.port, limit=2)

    assert 2 <= attempts <= 8
    levels = {each.levelname for each in caplog.records if "lookout" in each.message}
    assert levels == {"DEBUG"}


async def test_when_it_ends_its_line_is_closed(watched: Service) -> None:
    """Nothing of it is left on the sentinel."""
    async with FaultyLine(watched.sentinels[0].url) as line:
        async with lookout(watched, line.url):
            assert line.open_connections == 1

        await eventually(lambda: line.open_connections == 0)
