from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from redis import Redis
from redis.sentinel import Sentinel

from aioredismq.testing import RedisServer, SentinelSet, ServerStartError
from tests.support import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path


def test_the_sentinels_name_the_master(sentinel: SentinelSet) -> None:
    """A client that asks them gets a server that takes writes."""
    asked = Sentinel(sentinel.addresses)

    with closing(asked.master_for(sentinel.service)) as client:
        assert client.set("key", "value")
    assert len(asked.discover_slaves(sentinel.service)) == 1
    for each in asked.sentinels:
        each.close()


def test_the_url_has_all_sentinels_and_the_service(sentinel: SentinelSet) -> None:
    """It is what `Connection` takes."""
    ports = [port for _, port in sentinel.addresses]

    assert sentinel.url == (
        f"redis+sentinel://127.0.0.1:{ports[0]},127.0.0.1:{ports[1]},127.0.0.1:{ports[2]}"
        "/mymaster/0"
    )


def test_a_planned_failover_makes_the_replica_the_master(
    server_path: Path | None,
) -> None:
    """What was written is there, and the old master follows."""
    with SentinelSet(server_path, down_after=PATIENCE) as watched:
        before = watched.master
        # On one connection: it is its own writes that WAIT waits for.
        with closing(Redis.from_url(before.url)) as client:
            client.set("key", "kept")
            assert client.wait(1, 20_000) == 1

        watched.failover()

        after = watched.master
        assert after is not before
        assert after.command("GET", "key") == "kept"
        watched.sentinels[0].restart()
        assert watched.master is after, "a Sentinel forgot what it knew"


def test_a_set_that_does_not_come_up_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What had been started is ended again."""
    started: list[RedisServer] = []
    start = RedisServer.start

    def only_two(server: RedisServer) -> None:
        if len(started) == 2:
            raise ServerStartError("no more")
        start(server)
        started.append(server)

    monkeypatch.setattr(RedisServer, "start", only_two)

    with pytest.raises(ServerStartError, match="no more"):
        SentinelSet().start()

    assert [server.is_running for server in started] == [False, False]
