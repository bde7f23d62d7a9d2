from __future__ import annotations

import logging
import re
import secrets
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from aioredismq import ServerError, _lookout, _sentinels
from aioredismq._address import arguments
from aioredismq._lookout import Lookout
from aioredismq._sentinels import Sentinels
from aioredismq.testing import FaultyLine, SentinelSet
from tests.programs import ROOT
from tests.services import Service, listeners, service
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
    """Where to be, by port, and since when."""

    def __init__(self) -> None:
        """None yet."""
        self.ports: list[int] = []
        self.times: list[float] = []

    def note(self, port: int) -> None:
        """Remember one."""
        self.ports.append(port)
        self.times.append(time.monotonic())


@asynccontextmanager
async def lookout(
    watched: Service, *urls: str, patience: float = 2.0, **more: Any
) -> AsyncIterator[Heard]:
    """Look out for the length of the block, by these sentinels in this order."""
    places = [{**arguments(url, patience), **more} for url in urls]
    sentinels = Sentinels(watched.name, places, patience)
    heard = Heard()
    sentinels.on_move(lambda place, _: heard.note(place[1]))
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
        await eventually(lambda: len(heard.ports) == 2, limit=2)

    assert heard.ports == [own_server.port, server.port]


async def test_the_one_that_leads_the_failover_tells_of_the_promotion(
    server_path: Path | None,
) -> None:
    """The switch it announces when all replicas have followed, and one may be hanging."""
    with SentinelSet(server_path, replicas=2, sentinels=1) as alone:
        _, replica, hanging = alone.nodes
        hanging.command("CONFIG", "SET", "replica-priority", 0)
        [leader] = alone.sentinels
        await eventually(
            lambda: is_never_promoted(leader, alone.service, hanging), limit=25
        )
        hanging.pause()
        led = Service([leader], alone.nodes[0])
        led.name = alone.service
        async with lookout(led, leader.url) as heard:
            leader.command("SENTINEL", "FAILOVER", alone.service)

            await eventually(lambda: len(heard.ports) == 3, limit=8)

            about = leader.command("SENTINEL", "MASTER", alone.service)
            assert "failover_in_progress" in str(about)
        assert heard.ports[1:] == [replica.port] * 2
        hanging.resume()


@asynccontextmanager
async def failing_over(own: SentinelSet) -> AsyncIterator[tuple[Heard, RedisServer]]:
    """Begin a failover, led by the last sentinel, whose replica stands still for the block."""
    master, replica = own.nodes
    asked = Service(own.sentinels, master)
    asked.name = own.service
    async with lookout(asked, *(each.url for each in own.sentinels)) as heard:
        await eventually(lambda: all(listeners(each) for each in own.sentinels))
        replica.pause()
        try:
            own.sentinels[-1].command("SENTINEL", "FAILOVER", own.service)
            await eventually(
                lambda: heard.ports[:2] == [master.port, replica.port], limit=4
            )
            yield heard, replica
        finally:
            replica.resume()


@pytest.mark.one_loop
async def test_a_failover_is_known_before_its_replica_is_promoted(
    own_set: SentinelSet,
) -> None:
    """Whichever sentinel leads it, and it is the only one to tell."""
    async with failing_over(own_set) as (heard, replica):
        replica.resume()

        await eventually(lambda: len(heard.ports) == 3)

    assert heard.ports[1:] == [replica.port] * 2


@pytest.mark.one_loop
async def test_a_failover_that_is_aborted_is_known(own_set: SentinelSet) -> None:
    """By the sentinel that has led it."""
    for each in own_set.sentinels:
        each.command("SENTINEL", "SET", own_set.service, "failover-timeout", 500)
    async with failing_over(own_set) as (heard, replica):
        await eventually(lambda: len(heard.ports) == 3)

    assert heard.ports[1:] == [replica.port, own_set.nodes[0].port]
    assert heard.times[2] - heard.times[1] < _sentinels._PATIENCE


@pytest.mark.one_loop
async def test_a_failover_whose_leader_dies_is_given_up(
    own_set: SentinelSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as any other: the others are asked."""
    monkeypatch.setattr(_sentinels, "_PATIENCE", 0.6)
    async with failing_over(own_set) as (heard, replica):
        own_set.sentinels[-1].kill()

        await eventually(lambda: len(heard.ports) == 3, limit=4)

    assert heard.ports[1:] == [replica.port, own_set.nodes[0].port]


@pytest.mark.one_loop
async def test_a_failover_that_does_not_come_is_given_up(
    own_set: SentinelSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some time in which the replica was not promoted, and nothing else was said."""
    monkeypatch.setattr(_sentinels, "_PATIENCE", 0.6)
    async with failing_over(own_set) as (heard, replica):
        await eventually(lambda: len(heard.ports) == 3, limit=4)

    assert heard.ports[1:] == [replica.port, own_set.nodes[0].port]
    assert heard.times[2] - heard.times[1] >= 0.59


def is_never_promoted(leader: RedisServer, service: str, replica: RedisServer) -> bool:
    """Say whether a sentinel has heard that a replica is not to be promoted."""
    told = leader.command("SENTINEL", "REPLICAS", service)
    assert isinstance(told, list)
    known = [dict(zip(each[::2], each[1::2], strict=True)) for each in told]
    priorities = {int(each["port"]): each["slave-priority"] for each in known}
    return priorities.get(replica.port) == "0"


async def test_a_sentinel_that_dies_is_not_missed(
    watched: Service, server: RedisServer
) -> None:
    """The others are listened to all along."""
    first, second = watched.sentinels[:2]
    async with (
        FaultyLine(first.url) as line,
        lookout(watched, line.url, second.url) as heard,
    ):
        line.cut()
        await watched.hand_over(server)

        await eventually(lambda: heard.ports[-1] == server.port, limit=4)


async def test_sentinels_that_die_by_turns_are_listened_to_again(
    watched: Service, server: RedisServer, own_server: RedisServer
) -> None:
    """However often; each is asked when it is back."""
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
            await eventually(lambda port=master.port: heard.ports[-1] == port, limit=4)


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

        await eventually(lambda: heard.ports[-1] == server.port, limit=4)


async def test_a_sentinel_that_does_not_know_leads_nobody_back(
    sentinel: SentinelSet,
    server: RedisServer,
    own_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It does not know the service, or the last failover; its line is kept, and it is asked."""
    asked_in_vain = 0
    ask = Sentinels.ask

    async def count(self: Sentinels, *arguments: Any) -> Any:
        nonlocal asked_in_vain
        try:
            return await ask(self, *arguments)
        except ServerError:
            asked_in_vain += 1
            raise

    monkeypatch.setattr(Sentinels, "ask", count)
    late = sentinel.sentinels[1]
    with service(sentinel, own_server, by=slice(1)) as watched:
        async with (
            FaultyLine(late.url) as line,
            lookout(watched, watched.sentinels[0].url, line.url) as heard,
        ):
            await eventually(lambda: asked_in_vain > 0)
            await watched.hand_over(server)
            await eventually(lambda: heard.ports[-1] == server.port)
            watched.watch(late, own_server)
            before = asked_in_vain
            await eventually(lambda: asked_in_vain > before)
            await watched.hand_over(own_server)
            await eventually(lambda: heard.ports[-1] == own_server.port, limit=4)

            assert heard.ports == [own_server.port, server.port, own_server.port]
            assert line.attempts == 1
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
        await eventually(lambda: heard.ports[-1] == server.port, limit=4)

    [said] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert said.getMessage().startswith(
        f"sentinel 127.0.0.1:{line.port} does not tell of failovers and is asked every 0.1 s: "
    )


async def test_who_may_not_hear_that_one_begins_hears_that_it_is_over(
    watched: Service,
    server: RedisServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As at once as before; what that means is said once."""
    user, first = f"u{secrets.token_hex(4)}", watched.sentinels[0]
    channels = ("resetchannels", "&+switch-master", "&+promoted-slave")
    first.command("ACL", "SETUSER", user, "on", "nopass", "+@all", *channels)
    async with (
        FaultyLine(first.url) as line,
        lookout(watched, line.url, username=user, password=user) as heard,
    ):
        attempts = line.attempts
        line.drop()
        await eventually(lambda: line.attempts > attempts)
        await eventually(lambda: line.open_connections == 1)
        await watched.hand_over(server)
        await eventually(lambda: heard.ports[-1] == server.port, limit=4)

    first.command("ACL", "DELUSER", user)
    [said] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert said.getMessage().startswith(
        f"sentinel 127.0.0.1:{line.port} tells of failovers only when they are over, "
        "and a planned one may lose messages: "
    )


async def test_the_permissions_in_the_documents_suffice(
    watched: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """On the Sentinels, to hear everything."""
    page = (ROOT / "docs" / "running_in_production.md").read_text()
    [rules] = re.findall(r"on the Sentinels needs `(.*)`", page)
    user, first = f"u{secrets.token_hex(4)}", watched.sentinels[0]
    none = ("on", "nopass", "resetchannels", "-@all")
    first.command("ACL", "SETUSER", user, *none, *rules.split())
    async with lookout(watched, first.url, username=user, password=user):
        await eventually(lambda: listeners(first, user))

    first.command("ACL", "DELUSER", user)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


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
            await eventually(lambda: heard.ports[-1] == server.port, limit=4)
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
        await eventually(lambda: line.attempts - before >= 2)
        await watched.hand_over(server)
        line.heal()
        await eventually(lambda: heard.ports[-1] == server.port, limit=4)

    assert attempts <= 8
    levels = {each.levelname for each in caplog.records if "lookout" in each.message}
    assert levels == {"DEBUG"}


async def test_when_it_ends_its_line_is_closed(watched: Service) -> None:
    """Nothing of it is left on the sentinel."""
    async with FaultyLine(watched.sentinels[0].url) as line:
        async with lookout(watched, line.url):
            assert line.open_connections == 1

        await eventually(lambda: line.open_connections == 0)
