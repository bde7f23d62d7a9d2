from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
import textwrap
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import redis.asyncio as redis
from redis.asyncio.sentinel import Sentinel

from aioredismq import (
    ConfigurationError,
    Connection,
    ConnectionLostError,
    NotInitializedError,
    PoolTooSmallError,
    WrongLoopError,
    _sentinels,
)
from aioredismq.testing import FaultyLine
from tests.services import listeners, service
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from redis.asyncio import Redis

    from aioredismq._link import Link
    from aioredismq.testing import ClusterNodes, RedisServer, SentinelSet
    from tests.services import Service
    from tests.support import Deployment


@pytest.fixture
def label() -> str:
    """What the connections of one test call themselves."""
    return f"c{secrets.token_hex(4)}"


@pytest.fixture
def named(url: str, label: str) -> str:
    """The server's URL for connections with that name."""
    return f"{url}?client_name={label}"


class Seen:
    """The connections of one name, as the server lists them."""

    def __init__(self, client: Redis, label: str) -> None:
        """Look with this client."""
        self._client = client
        self._label = label

    async def numbers(self) -> list[str]:
        """List them."""
        known = await self._client.client_list()
        return [each["id"] for each in known if each["name"] == self._label]

    async def are(self, expected: int) -> bool:
        """Say whether there are so many."""
        return len(await self.numbers()) == expected


@pytest.fixture
def seen(client: Redis, label: str) -> Seen:
    """The connections of this test on the server."""
    return Seen(client, label)


@pytest.fixture
async def connection(named: str, seen: Seen) -> AsyncIterator[Connection]:
    """An open connection that leaves nothing on the server."""
    async with Connection(named) as opened:
        yield opened
    await eventually(lambda: seen.are(0))


# What it is given.


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"connect_timeout": 0}, "connect_timeout must be more than 0 seconds, got 0"),
        ({"connect_timeout": "5"}, "connect_timeout must be more than 0 seconds"),
        (
            {"reply_timeout": -1.5},
            r"reply_timeout must be more than 0 seconds, got -1\.5",
        ),
        ({"reply_timeout": float("nan")}, "reply_timeout must be more than 0 seconds"),
        ({"reply_timeout": float("inf")}, "reply_timeout must be more than 0 seconds"),
        ({"max_connections": 0}, "max_connections must be at least 1, got 0"),
        ({"max_connections": 2.5}, "max_connections must be at least 1"),
    ],
)
def test_a_setting_that_breaks_its_rule_is_refused(
    options: dict[str, Any], rule: str
) -> None:
    """With the rule and the offender, before anything is opened."""
    with pytest.raises(ConfigurationError, match=rule):
        Connection("redis://h", **options)


# Its life.


async def test_nothing_is_opened_before_it_is_needed(named: str, seen: Seen) -> None:
    """Being open means that it may connect."""
    async with Connection(named):
        await eventually(lambda: seen.are(0))


async def test_what_is_not_open_gives_nothing(named: str) -> None:
    """It says what to do."""
    connection = Connection(named)

    with pytest.raises(NotInitializedError, match="initialize a queue"):
        await connection.link("key")


async def test_it_closes_with_its_last_user(named: str, seen: Seen) -> None:
    """However many there are, in whatever order they leave."""
    connection = Connection(named)
    await connection.open()
    await connection.open()
    await connection.link("key")

    await connection.close()
    await eventually(lambda: seen.are(1))
    await connection.close()

    await eventually(lambda: seen.are(0))


async def test_closing_once_too_often_is_harmless(named: str, seen: Seen) -> None:
    """It counts its users right afterwards."""
    connection = Connection(named)
    async with connection:
        await connection.link("key")
    await connection.close()

    async with connection:
        await connection.link("key")
        await eventually(lambda: seen.are(1))

    await eventually(lambda: seen.are(0))


async def test_it_can_be_opened_again(named: str) -> None:
    """What came before is forgotten."""
    connection = Connection(named)
    for _ in range(3):
        async with connection:
            link = await connection.link("key")
            assert await link.call("PING") == b"PONG"

    assert not link.is_up


async def test_closing_ends_what_is_reserved(named: str, seen: Seen) -> None:
    """And everything else that is open."""
    async with Connection(named) as connection:
        await connection.link("key")
        wire = await connection.reserve("key")
        waiting = wire.call("BLPOP", "nothing", 0)
        connection.bell.add("channel", lambda: None)
        await eventually(lambda: seen.are(3))

    with pytest.raises(ConnectionLostError):
        await waiting
    await eventually(lambda: seen.are(0))


async def test_a_close_that_is_cancelled_closes_all_the_same(
    named: str, seen: Seen
) -> None:
    """In the background; and whoever opens it next waits for that."""
    connection = Connection(named)
    await connection.open()
    await connection.link("key")

    closing = asyncio.ensure_future(connection.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing

    async with connection:
        link = await connection.link("key")
        assert await link.call("PING") == b"PONG"
        await eventually(lambda: seen.are(1))
    await eventually(lambda: seen.are(0))


async def test_an_open_that_overtakes_a_close_gets_a_connection_that_lives(
    named: str, seen: Seen
) -> None:
    """The last one leaves in the moment the next one comes."""
    connection = Connection(named)
    await connection.open()
    await connection.link("key")

    await asyncio.gather(connection.close(), connection.open())

    link = await connection.link("key")
    assert await link.call("PING") == b"PONG"
    await connection.close()
    await eventually(lambda: seen.are(0))


async def test_whoever_opens_it_waits_for_the_end_of_what_was(url: str) -> None:
    """The old connections are given back before new ones are made."""
    pool = redis.BlockingConnectionPool.from_url(url, max_connections=3)
    async with redis.Redis.from_pool(pool) as client:
        connection = Connection(client)
        await connection.open()
        await connection.link("key")
        async with pool._condition:  # nothing can be given back meanwhile
            with anyio.move_on_after(0.01):
                await connection.close()
            opening = asyncio.ensure_future(connection.open())
            await asyncio.sleep(0.01)
            assert not opening.done()

        await opening

        assert await (await connection.link("key")).call("PING") == b"PONG"
        await connection.close()


async def test_who_gives_up_connecting_leaves_it_usable(
    url: str, label: str, seen: Seen
) -> None:
    """Whether it hangs in the connect or in the first question."""
    async with (
        FaultyLine(url) as line,
        Connection(f"{line.url}?client_name={label}") as connection,
    ):
        line.black_hole(only="replies")
        with anyio.move_on_after(0.05):
            await connection.link("key")
        line.heal()

        link = await connection.link("key")

        assert await link.call("PING") == b"PONG"
        await eventually(lambda: seen.are(1))


# What it gives.


async def test_all_keys_of_one_server_share_a_link(
    connection: Connection, seen: Seen
) -> None:
    """Also when they ask at the same moment."""
    links = await asyncio.gather(*(connection.link(f"key{n}") for n in range(5)))

    assert len(set(links)) == 1
    await eventually(lambda: seen.are(1))


async def test_it_finds_out_what_it_leads_to(deployment: Deployment, name: str) -> None:
    """In a Cluster each key has a link to the node that has it."""
    async with Connection(deployment.url) as connection:
        keys = [f"{name}-{number}" for number in range(4)]

        links = [await connection.link(key) for key in keys]

        for link, key in zip(links, keys, strict=True):
            assert await link.call("SET", key, "here") == b"OK"
            assert await link.call("DEL", key) == 1
        is_cluster = deployment.kind == "cluster"
        assert connection.is_cluster is is_cluster
        assert len(set(links)) == (4 if is_cluster else 1)


@pytest.fixture
def modest(cluster: ClusterNodes) -> Iterator[Callable[..., str]]:
    """Make a user who may not do some things, on every node of the cluster."""
    made: list[str] = []

    def make(*rules: str) -> str:
        made.append(f"u{secrets.token_hex(4)}")
        for node in cluster.nodes:
            node.command(
                "ACL", "SETUSER", made[-1], "on", "nopass", "~*", "+@all", *rules
            )
        return cluster.url.replace("redis://", f"redis://{made[-1]}:any@")

    yield make
    for node in cluster.nodes:
        for user in made:
            node.command("ACL", "DELUSER", user)


async def test_a_cluster_that_may_not_be_asked_is_known_by_its_slots(
    modest: Callable[..., str], name: str
) -> None:
    """Managed servers deny INFO; slots, everyone must be allowed to see."""
    async with Connection(modest("-info")) as connection:
        for key in (f"{name}-{number}" for number in range(4)):
            link = await connection.link(key)
            assert await link.call("EXISTS", key, patience=4.0) == 0

        assert connection.is_cluster


async def test_what_the_caller_says_is_not_asked(
    modest: Callable[..., str], name: str
) -> None:
    """He may know better."""
    async with Connection(modest("-info"), cluster=True) as connection:
        assert await (await connection.link(name)).call("EXISTS", name) == 0
        assert connection.is_cluster


async def test_a_server_that_tells_nothing_is_taken_as_it_is(
    server: RedisServer, name: str
) -> None:
    """What is missing shows when it is needed."""
    user = f"u{secrets.token_hex(4)}"
    server.command(
        "ACL", "SETUSER", user, "on", "nopass", "~*", "+@all", "-info", "-cluster"
    )
    url = server.url.replace("redis://", f"redis://{user}:any@")

    async with Connection(url) as connection:
        assert await (await connection.link(name)).call("EXISTS", name) == 0

    server.command("ACL", "DELUSER", user)


async def test_a_reserved_wire_is_the_callers_alone(
    connection: Connection, seen: Seen
) -> None:
    """A blocking command on it keeps nobody waiting; closing it gives it back."""
    link = await connection.link("key")
    wire = await connection.reserve("key", longest_block=1.0)
    waiting = wire.call("BLPOP", "nothing", 0)

    assert await link.call("PING") == b"PONG"
    await eventually(lambda: seen.are(2))

    wire.close()
    with pytest.raises(ConnectionLostError):
        await waiting
    await eventually(lambda: seen.are(1))


async def test_a_reserved_wire_allows_for_how_long_its_commands_block(
    named: str, client: Redis, name: str
) -> None:
    """On top of the time an answer may take."""
    async with Connection(named, reply_timeout=1.0) as connection:
        wire = await connection.reserve(name, longest_block=20.0)
        waiting = wire.call("BLPOP", name, 0)
        await anyio.sleep(1.3)
        await client.rpush(name, 1)

        assert await waiting == [name.encode(), b"1"]


async def test_the_bell_rings_wherever_it_is_rung(
    deployment: Deployment, name: str
) -> None:
    """In a Cluster, on any node."""
    rung = asyncio.Event()
    async with deployment.client() as client, Connection(deployment.url) as connection:
        await connection.link(name)
        connection.bell.add(name, rung.set)
        await asyncio.wait_for(rung.wait(), 8)  # it listens from now on
        rung.clear()

        anywhere = {}
        if isinstance(client, redis.RedisCluster):
            anywhere["target_nodes"] = "random"
        with anyio.fail_after(8):
            while not rung.is_set():
                await client.execute_command("PUBLISH", name, "", **anywhere)
                # Nodes that met a moment ago may still drop one.
                with anyio.move_on_after(1):
                    await rung.wait()


async def test_why_nothing_can_be_sent_is_told(url: str) -> None:
    """For as long as that is so."""
    async with FaultyLine(url) as line, Connection(line.url) as connection:
        link = await connection.link("key")
        assert connection.failures == []

        line.cut()
        await eventually(lambda: not link.is_up)
        assert [type(failure) for failure in connection.failures] == [
            ConnectionLostError
        ]

        line.heal()
        await eventually(lambda: link.is_up)
        assert connection.failures == []


async def test_every_connection_that_is_killed_is_made_again(
    connection: Connection, seen: Seen, client: Redis
) -> None:
    """The one for commands, and the one for the bell, within two seconds."""
    rung: list[int] = []
    link = await connection.link("key")
    connection.bell.add("channel", lambda: rung.append(1))
    await eventually(lambda: rung == [1])

    for number in await seen.numbers():
        await client.client_kill_filter(_id=number)

    async with asyncio.timeout(8):
        assert await link.call("PING") == b"PONG"
    await eventually(lambda: rung == [1, 1])
    await eventually(lambda: seen.are(2))


# How many there may be.


def nothing() -> None:
    """Do nothing about a connection that was cancelled."""


@pytest.mark.parametrize(("readers", "needed"), [(1, 3), (2, 4), (10, 12)])
async def test_a_pool_too_small_is_refused_with_the_number_that_is_needed(
    url: str, readers: int, needed: int
) -> None:
    """One for commands, one for the bell, and one for each consumer."""
    async with Connection(url, max_connections=needed - 1) as connection:
        with pytest.raises(
            PoolTooSmallError, match=f"max_connections={needed}"
        ) as caught:
            connection.afford(readers)

    assert (caught.value.available, caught.value.needed) == (needed - 1, needed)
    async with Connection(url, max_connections=needed) as connection:
        connection.afford(readers)


async def test_consumers_are_counted_as_they_come_and_go(url: str) -> None:
    """Of all queues together."""
    async with Connection(url, max_connections=4) as connection:
        connection.claim_reader(nothing)
        connection.claim_reader(nothing)
        with pytest.raises(PoolTooSmallError, match="at least 5"):
            connection.claim_reader(nothing)

        connection.unclaim_reader(nothing)
        connection.claim_reader(nothing)


async def test_who_only_produces_needs_one(url: str) -> None:
    """No bell, no blocked read."""
    async with Connection(url, max_connections=1) as connection:
        assert await (await connection.link("key")).call("PING") == b"PONG"


async def test_a_lent_pool_keeps_one_for_its_owner(url: str) -> None:
    """Or his own commands would fail, at random."""
    async with redis.Redis.from_url(url, max_connections=3) as client:
        with pytest.raises(PoolTooSmallError, match="at least 4"):
            Connection(client).afford(1)
    async with redis.Redis.from_url(url, max_connections=1) as client:
        async with Connection(client) as connection:
            with pytest.raises(PoolTooSmallError, match="at least 2"):
                await connection.link("key")
        assert await client.ping()


async def test_each_queue_of_a_cluster_is_counted(cluster: ClusterNodes) -> None:
    """Each has a link of its own, which the bell and the readers must not be out of."""
    async with Connection(cluster.url, max_connections=4) as connection:
        await connection.link("a")
        connection.claim_reader(nothing)
        await connection.link("b")

        with pytest.raises(PoolTooSmallError, match="at least 5"):
            await connection.link("c")

        assert await (await connection.link("b")).call("EXISTS", "b") == 0


async def test_no_more_are_opened_than_may_be(named: str, seen: Seen) -> None:
    """Whoever asks beyond it is told; a place that is given back can be had again."""
    async with Connection(named, max_connections=2) as connection:
        wires = [await connection.reserve("key") for _ in range(2)]
        with pytest.raises(PoolTooSmallError, match="at least 3"):
            await connection.reserve("key")

        wires[0].close()
        await connection.reserve("key")

        await eventually(lambda: seen.are(2))


async def test_a_place_in_a_lent_pool_is_given_back_at_once(url: str) -> None:
    """Its owner need not wait until we need one again."""
    pool = redis.BlockingConnectionPool.from_url(url, max_connections=2, timeout=2)
    async with redis.Redis.from_pool(pool) as client, Connection(client) as connection:
        wires = [await connection.reserve("key") for _ in range(2)]

        for wire in wires:
            wire.close()

        assert await asyncio.gather(client.ping(), client.ping()) == [True, True]


async def test_a_connection_that_cannot_be_used_gives_its_place_back(url: str) -> None:
    """However often it is tried."""
    async with FaultyLine(url) as line:
        pool = redis.BlockingConnectionPool.from_url(
            line.url, max_connections=2, timeout=2
        )
        async with redis.Redis.from_pool(pool) as client:
            connection = Connection(client, connect_timeout=0.2)
            async with connection:
                line.black_hole()
                for _ in range(3):
                    with pytest.raises(ConnectionLostError):
                        await connection.link("key")
                line.heal()

                link = await connection.link("key")

                assert await link.call("PING") == b"PONG"
                assert await client.ping()


# Loops and forks.


async def elsewhere(run: Callable[[], Any]) -> Any:
    """Run a coroutine on another loop, in another thread."""
    return await anyio.to_thread.run_sync(lambda: asyncio.run(run()))


async def test_a_second_loop_is_told(connection: Connection) -> None:
    """Whatever is tried on it; the first one goes on."""
    link = await connection.link("key")

    for call in (connection.open, connection.close, lambda: connection.link("key")):
        with pytest.raises(WrongLoopError, match=r"another event loop.*one queue"):
            await elsewhere(call)

    assert await link.call("PING") == b"PONG"


async def test_once_it_is_closed_another_loop_may_have_it(named: str) -> None:
    """Tests do so: one loop after the other."""
    connection = Connection(named)

    async def use() -> Any:
        async with connection:
            return await (await connection.link("key")).call("PING")

    assert await use() == b"PONG"
    assert await elsewhere(use) == b"PONG"
    assert await use() == b"PONG"


FORK = """
import asyncio, os, sys
from aioredismq import Connection

connection = Connection(sys.argv[1])

def tell(call):
    try:
        asyncio.run(asyncio.wait_for(call(), 2))
    except Exception as error:
        print(type(error).__name__, error, flush=True)

async def main():
    async with connection:
        link = await connection.link("key")
        child = os.fork()
        if child == 0:
            for call in (connection.open, connection.close, lambda: connection.link("key")):
                tell(call)
            os._exit(0)
        os.waitpid(child, 0)
        print("parent", await link.call("PING"), flush=True)

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
async def test_a_fork_is_told(url: str) -> None:
    """Whatever the child tries; the parent goes on."""
    ran = await anyio.to_thread.run_sync(
        lambda: subprocess.run(
            [sys.executable, "-c", textwrap.dedent(FORK), url],
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )
    )

    *child, parent = ran.stdout.splitlines()
    assert len(child) == 3, ran.stderr
    for line in child:
        assert line.startswith("WrongLoopError this process was forked")
    assert parent == "parent b'PONG'"


# Behind Sentinel.


@pytest.fixture
def handing_over(sentinel: SentinelSet, own_server: RedisServer) -> Iterator[Service]:
    """A service whose master may hand over and live."""
    with service(sentinel, own_server) as made:
        yield made


async def test_everything_leaves_a_master_that_has_handed_over(
    handing_over: Service,
    server: RedisServer,
    own_server: RedisServer,
    label: str,
    seen: Seen,
    client: Redis,
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Within a second, although it answers as before; what was asked there is asked again."""
    rung: list[int] = []
    url = f"{handing_over.url}/0?client_name={label}"
    async with Connection(url) as connection:
        link = await connection.link("key")
        connection.bell.add("channel", lambda: rung.append(1))
        wire = await connection.reserve("key", longest_block=5.0)
        blocked = wire.call("BLPOP", "nothing", 0)
        await eventually(lambda: rung == [1])
        assert own_server.command("CLIENT", "LIST").count(f"name={label}") == 3  # type: ignore[attr-defined]

        asked = asyncio.create_task(link.call("BLPOP", name, 0, patience=9.0))

        await handing_over.hand_over(server)

        with pytest.raises(
            ConnectionLostError, match=f"master is .*:{server.port} now"
        ):
            await asyncio.wait_for(blocked, 5)
        await eventually(lambda: len(rung) == 2, limit=5)
        await client.rpush(name, "there")
        assert await asyncio.wait_for(asked, 5) == [name.encode(), b"there"]
        assert label not in own_server.command("CLIENT", "LIST")  # type: ignore[operator]
        await eventually(lambda: seen.are(2))
    await eventually(lambda: seen.are(0))
    assert f"the master is 127.0.0.1:{server.port} now; connecting again" in caplog.text


@asynccontextmanager
async def failing_over(
    own: SentinelSet, label: str
) -> AsyncIterator[tuple[Link, RedisServer]]:
    """Use a connection while a failover has begun whose replica stands still for the block."""
    master, replica = own.nodes
    async with Connection(
        f"{own.url}?client_name={label}", connect_timeout=1.5
    ) as connection:
        link = await connection.link("key")
        await eventually(lambda: all(listeners(each) for each in own.sentinels))
        replica.pause()
        try:
            own.sentinels[-1].command("SENTINEL", "FAILOVER", own.service)
            await eventually(
                lambda: label not in str(master.command("CLIENT", "LIST")), limit=4
            )
            yield link, replica
        finally:
            replica.resume()


@pytest.mark.one_loop
async def test_a_master_is_left_before_the_other_one_is_promoted(
    own_set: SentinelSet, label: str
) -> None:
    """What is asked meanwhile waits, and is answered by the new master alone."""
    async with failing_over(own_set, label) as (link, replica):
        asked = asyncio.create_task(link.call("INCR", "calls", patience=15.0))
        await anyio.sleep(0.2)
        assert not asked.done()
        assert "is to be the master" in str(link.failure)

        replica.resume()

        assert await asyncio.wait_for(asked, 15) == 1
    assert own_set.nodes[0].command("GET", "calls") is None
    assert replica.command("GET", "calls") == "1"


@pytest.mark.one_loop
async def test_a_failover_that_is_aborted_leads_back(
    own_set: SentinelSet, label: str
) -> None:
    """To the master that was left: what was asked meanwhile is answered there."""
    for each in own_set.sentinels:
        each.command("SENTINEL", "SET", own_set.service, "failover-timeout", 300)
    async with failing_over(own_set, label) as (link, _):
        assert await asyncio.wait_for(link.call("INCR", "calls"), 8) == 1

    assert own_set.nodes[0].command("GET", "calls") == "1"


@pytest.mark.one_loop
async def test_a_failover_that_does_not_come_leads_back(
    own_set: SentinelSet, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the replica stands still, and although nobody has aborted it."""
    monkeypatch.setattr(_sentinels, "_PATIENCE", 0.5)
    async with failing_over(own_set, label) as (link, _):
        assert await asyncio.wait_for(link.call("INCR", "calls"), 8) == 1

    assert own_set.nodes[0].command("GET", "calls") == "1"


async def test_the_sentinels_are_listened_to_while_it_is_in_use(
    handing_over: Service,
) -> None:
    """Not before it is needed, by a line to each however many queues there are, and no longer."""
    async with FaultyLine(handing_over.sentinels[0].url) as line:
        url = f"redis+sentinel://127.0.0.1:{line.port}/{handing_over.name}"
        async with Connection(url) as connection:
            await anyio.sleep(0.05)
            assert line.attempts == 0

            for key in ("a", "b"):
                await connection.link(key)
            await eventually(lambda: line.open_connections == 1)

        await eventually(lambda: line.open_connections == 0)


async def test_a_lent_client_of_sentinels_follows_too(
    handing_over: Service,
    server: RedisServer,
    own_server: RedisServer,
    label: str,
    seen: Seen,
) -> None:
    """Its pool asks for the master at each connect only."""
    places = [("127.0.0.1", each.port) for each in handing_over.sentinels]
    asked = Sentinel(places)
    client = asked.master_for(handing_over.name, client_name=label)
    async with Connection(client) as connection:
        link = await connection.link("key")
        assert label in own_server.command("CLIENT", "LIST")  # type: ignore[operator]

        await handing_over.hand_over(server)

        await eventually(lambda: seen.are(1), limit=5)
        assert await link.call("PING") == b"PONG"
        assert label not in own_server.command("CLIENT", "LIST")  # type: ignore[operator]
    await client.aclose()
    await asked.aclose()
