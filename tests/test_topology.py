from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import redis.asyncio as redis
from redis.asyncio.sentinel import Sentinel

from aioredismq import (
    AuthenticationError,
    CommandRefusedError,
    ConfigurationError,
    Connection,
    ConnectionLostError,
)
from aioredismq._opening import writer_of
from aioredismq._topology import (
    LentCluster,
    LentPool,
    OwnCluster,
    OwnSentinel,
    OwnServer,
    Topology,
    topology_for,
)
from aioredismq.testing import FaultyLine, RedisServer
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from redis.asyncio.connection import AbstractConnection

    from aioredismq.testing import ClusterNodes, SentinelSet
    from tests.support import Client, Deployment


def topology(target: Any, *, cluster: bool | None = None) -> Topology:
    """Choose the way to a target."""
    return topology_for(target, max_connections=7, connect_timeout=2.0, cluster=cluster)


async def say(connection: AbstractConnection, *words: object) -> Any:
    """Send one command and read its reply."""
    await connection.send_command(*words)
    return await connection.read_response()


# Which way.


@pytest.mark.parametrize(
    ("url", "cluster", "expected"),
    [
        ("redis://h:7000", None, OwnServer),
        ("redis://h:7000", False, OwnServer),
        ("redis://h:7000", True, OwnCluster),
        ("h", None, OwnServer),
        ("unix:///run/redis.sock", None, OwnServer),
        ("redis+sentinel://h/s", None, OwnSentinel),
        ("rediss+sentinel://h/s", None, OwnSentinel),
    ],
)
def test_a_url_is_a_server_a_cluster_or_a_sentinel(
    url: str, cluster: bool | None, expected: type
) -> None:
    """As its scheme and the caller say."""
    chosen = topology(url, cluster=cluster)

    assert type(chosen) is expected
    assert chosen.max_connections == 7
    assert chosen.own_use == 0


async def test_a_client_that_is_given_keeps_its_limits() -> None:
    """Of its connections the caller needs one himself."""
    pool = redis.BlockingConnectionPool(max_connections=3)
    chosen = topology(redis.Redis(connection_pool=pool))
    spread = topology(redis.RedisCluster("h", max_connections=4))

    assert isinstance(chosen, LentPool)
    assert (chosen.max_connections, chosen.own_use) == (3, 1)
    assert isinstance(spread, LentCluster)
    assert (spread.max_connections, spread.own_use) == (4, 1)


@pytest.mark.parametrize("target", [None, 6379, b"redis://h", object()])
def test_what_is_no_way_to_redis_is_refused(target: object) -> None:
    """By its type."""
    with pytest.raises(ConfigurationError, match=type(target).__name__):
        topology(target)


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("redis+sentinel://me:s3cr3t@h", "service"),
        ("redis+sentinel://me:s3cr3t@/s", "must be"),
        ("redis+sentinel://me:s3cr3t@h:port/s", "not host:port"),
        ("redis+sentinel://me:s3cr3t@h/s/orders", "database"),
        ("redis+sentinel://me:s3cr3t@h/s?clientname=x", "clientname"),
        ("redis://me:s3cr3t@h?clientname=x", "clientname"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_at_once(url: str, rule: str) -> None:
    """Not at the first connect, and without its password."""
    with pytest.raises(ConfigurationError, match=rule) as caught:
        Connection(url)

    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://me:s3cr3t@h:7000/1", "Connection(h:7000)"),
        ("unix:///run/redis.sock", "Connection(/run/redis.sock)"),
        (
            "redis+sentinel://me:s3cr3t@a:1,b/s?sentinel_password=s3cr3t",
            "Connection(sentinels a:1,b:26379 (service 's'))",
        ),
    ],
)
def test_where_it_leads_is_shown_without_passwords(url: str, expected: str) -> None:
    """In logs and tracebacks."""
    assert repr(Connection(url)) == expected


# Ways of ours.


async def test_a_socket_file_is_a_way_too(
    server_path: Path | None, tmp_path: Path
) -> None:
    """For a server on the same machine."""
    path = tmp_path / "redis.sock"
    with RedisServer(server_path, args=("--unixsocket", str(path))):
        way = topology(f"unix://{path}?db=2")

        connection = await way.open("key")

        assert await say(connection, "SET", "key", "here") == b"OK"
        await way.give_up(connection)


@pytest.fixture
def own_way(deployment: Deployment) -> Topology:
    """A way of ours to each kind of deployment."""
    return topology(deployment.url, cluster=deployment.kind == "cluster")


async def test_a_connection_leads_to_the_server_of_the_key(
    own_way: Topology, deployment: Deployment, name: str
) -> None:
    """Where it can be written, whichever of the servers that is."""
    for key in (f"{name}-{number}" for number in range(4)):
        connection = await own_way.open(key)
        assert await say(connection, "SET", key, "here") == b"OK"
        await own_way.give_up(connection)

        async with deployment.client() as client:
            assert await client.get(key) == b"here"
            await client.delete(key)


async def test_a_connection_that_was_given_up_is_closed(
    own_way: Topology, deployment: Deployment
) -> None:
    """The server forgets it at once."""
    label = f"c{secrets.token_hex(4)}"
    connection = await own_way.open("key")
    await say(connection, "CLIENT", "SETNAME", label)

    await own_way.give_up(connection)

    async with deployment.client() as client:
        await eventually(lambda: is_gone(client, label))


async def is_gone(client: Client, label: str) -> bool:
    """Say whether no server has a connection of that name."""
    if isinstance(client, redis.RedisCluster):
        lists = await client.client_list(target_nodes=redis.RedisCluster.PRIMARIES)
        known = [each for one in lists.values() for each in one]
    else:
        known = await client.client_list()
    return all(each["name"] != label for each in known)


async def test_the_first_node_need_not_be_the_one(cluster: ClusterNodes) -> None:
    """Any node tells where a key lives, and what it told is asked when it is gone."""
    way = topology(cluster.url, cluster=True)
    assert isinstance(way, OwnCluster)
    await way.give_up(await way.open("key"))

    way._nodes.insert(0, ("127.0.0.1", 1))
    for key in ("a", "b", "c"):
        connection = await way.open(key)
        assert await say(connection, "EXISTS", key) == 0
        await way.give_up(connection)


async def test_a_node_that_is_gone_is_looked_for_anew(cluster: ClusterNodes) -> None:
    """What was known of the key a moment ago does not count any more."""
    way = topology(cluster.url, cluster=True)
    assert isinstance(way, OwnCluster)
    way._lately["key"] = ("127.0.0.1", 1, time.monotonic())

    with pytest.raises(ConnectionLostError, match=r"127\.0\.0\.1:1"):
        await way.open("key")

    await way.give_up(await way.open("key"))


async def test_a_single_server_is_no_cluster(url: str) -> None:
    """Said to be one by mistake, it says so itself."""
    with pytest.raises(CommandRefusedError, match="cluster"):
        await topology(url, cluster=True).open("key")


@pytest.fixture
def user(cluster: ClusterNodes) -> Iterator[str]:
    """A user of every node of the cluster; the password is `right`."""
    label = f"u{secrets.token_hex(4)}"
    for node in cluster.nodes:
        node.command("ACL", "SETUSER", label, "on", ">right", "~*", "+@all")
    yield label
    for node in cluster.nodes:
        node.command("ACL", "DELUSER", label)


async def test_a_user_is_let_into_every_node_of_a_cluster(
    cluster: ClusterNodes, user: str
) -> None:
    """Those that are asked, and the one that has the key."""
    url = cluster.url.replace("redis://", f"redis://{user}:right@")
    way = topology(url, cluster=True)

    connection = await way.open("key")

    assert await say(connection, "ACL", "WHOAMI") == user.encode()
    await way.give_up(connection)


async def test_a_wrong_password_of_a_cluster_is_called_so(
    cluster: ClusterNodes, user: str
) -> None:
    """Not a cluster that cannot be reached, which would be tried again."""
    url = cluster.url.replace("redis://", f"redis://{user}:wrong@")

    with pytest.raises(AuthenticationError, match="refuses this user"):
        await topology(url, cluster=True).open("key")


# Sentinel.


def watched(sentinel: SentinelSet, before: str = "", behind: str = "") -> str:
    """Write the set's URL with more in front of its hosts, and behind it."""
    return sentinel.url.replace("://", f"://{before}") + behind


async def test_a_sentinel_that_is_away_is_passed_over(sentinel: SentinelSet) -> None:
    """The next one is asked, at once."""
    began = time.monotonic()
    way = topology(watched(sentinel, "127.0.0.1:1,127.0.0.1:2,"))

    connection = await way.open("key")

    assert (await say(connection, "ROLE"))[0] == b"master"
    assert time.monotonic() - began < 0.5
    await way.give_up(connection)


async def test_a_service_nobody_watches_is_named(sentinel: SentinelSet) -> None:
    """With the sentinels that were asked."""
    way = topology(sentinel.url.replace(sentinel.service, "nobody"))

    with pytest.raises(
        ConnectionLostError, match=r"of 'nobody': sentinel .* knows no service"
    ):
        await way.open("key")


async def test_a_server_that_is_no_master_is_not_taken_for_one(
    sentinel: SentinelSet,
) -> None:
    """A sentinel that has not heard of a failover yet names the old one."""
    [replica] = [node for node in sentinel.nodes if node is not sentinel.master]
    label = f"s{secrets.token_hex(4)}"
    for each in sentinel.sentinels:
        each.command("SENTINEL", "MONITOR", label, "127.0.0.1", replica.port, 3)

    way = topology(sentinel.url.replace(sentinel.service, label))

    with pytest.raises(ConnectionLostError, match="which is no master now"):
        await way.open("key")
    for each in sentinel.sentinels:
        each.command("SENTINEL", "REMOVE", label)


async def test_a_master_that_breaks_off_is_given_up(
    sentinel: SentinelSet, url: str
) -> None:
    """In the middle of being asked what it is; the next attempt finds it well."""
    label = f"s{secrets.token_hex(4)}"
    async with FaultyLine(url) as line:
        for each in sentinel.sentinels:
            await anyio.to_thread.run_sync(
                each.command, "SENTINEL", "MONITOR", label, "127.0.0.1", line.port, 3
            )
        way = topology(sentinel.url.replace(sentinel.service, label))
        way.addresses = way.addresses[:1]  # type: ignore[attr-defined]
        line.reset_after_request(containing=b"ROLE")

        with pytest.raises(ConnectionLostError, match=f":{line.port}"):
            await way.open("key")
        connection = await way.open("key")

        await way.give_up(connection)
        for each in sentinel.sentinels:
            await anyio.to_thread.run_sync(each.command, "SENTINEL", "REMOVE", label)


async def test_whether_it_is_the_master_need_not_be_told(sentinel: SentinelSet) -> None:
    """A user who may not ask is believed to be where he should be."""
    label = f"u{secrets.token_hex(4)}"
    sentinel.master.command("ACL", "SETUSER", label, "on", "nopass", "+@all", "-role")
    way = topology(watched(sentinel, f"{label}:any@"))

    connection = await way.open("key")

    await way.give_up(connection)
    sentinel.master.command("ACL", "DELUSER", label)


async def test_sentinels_and_servers_have_users_of_their_own(
    sentinel: SentinelSet,
) -> None:
    """Both are in the URL."""
    label = f"u{secrets.token_hex(4)}"
    guards = [*sentinel.sentinels, sentinel.master]
    for node in guards:
        node.command("ACL", "SETUSER", label, "on", ">p@ss", "~*", "+@all")
    asking = f"?sentinel_username={label}&sentinel_password="
    way = topology(watched(sentinel, f"{label}:p%40ss@", f"{asking}p%40ss"))

    connection = await way.open("key")

    assert await say(connection, "ACL", "WHOAMI") == label.encode()
    await way.give_up(connection)
    for wrong in (
        watched(sentinel, f"{label}:p%40ss@", f"{asking}wrong"),
        watched(sentinel, f"{label}:wrong@", f"{asking}p%40ss"),
    ):
        with pytest.raises(AuthenticationError, match="this user"):
            await topology(wrong).open("key")
    for node in guards:
        node.command("ACL", "DELUSER", label)


async def test_the_database_and_options_of_a_sentinel_url_are_the_servers(
    sentinel: SentinelSet,
) -> None:
    """As they are of any other URL."""
    way = topology(sentinel.url.removesuffix("0") + "3?client_name=me")

    connection = await way.open("key")

    told = await say(
        connection, "CLIENT", "LIST", "ID", await say(connection, "CLIENT", "ID")
    )
    assert b" name=me " in told
    assert b" db=3 " in told
    await way.give_up(connection)


# Ways of the caller's.


@pytest.fixture(
    params=["RESP2", "RESP3", "decoding", "blocking", "sentinel", "cluster"]
)
async def lent(
    request: pytest.FixtureRequest,
    url: str,
    sentinel: SentinelSet,
    cluster: ClusterNodes,
) -> AsyncIterator[Client]:
    """A client as an application has one, of three connections."""
    options: dict[str, Any] = {"max_connections": 3, "protocol": 2}
    client: Client
    watching: list[redis.Redis] = []
    match request.param:
        case "cluster":
            client = redis.RedisCluster.from_url(cluster.url, **options)
        case "sentinel":
            asked = Sentinel(sentinel.addresses, protocol=2)
            watching = asked.sentinels
            client = asked.master_for(sentinel.service, **options)
        case "blocking":
            pool = redis.BlockingConnectionPool.from_url(url, **options)
            client = redis.Redis.from_pool(pool)
        case "RESP3":
            client = redis.Redis.from_url(url, **{**options, "protocol": 3})
        case "decoding":
            client = redis.Redis.from_url(url, decode_responses=True, **options)
        case _:
            client = redis.Redis.from_url(url, **options)
    yield client
    for each in (client, *watching):
        await each.aclose()


async def test_a_place_in_a_lent_pool_is_given_back(lent: Client, name: str) -> None:
    """However often one is taken; and the client, who has as many as ever, stays open."""
    way = topology(lent)

    for _ in range(5):
        taken = [await way.open(name) for _ in range(3)]
        for connection in taken:
            await way.give_up(connection)

    assert await lent.set(name, 1)
    assert await lent.delete(name) == 1


async def test_a_lent_pool_that_is_exhausted_says_so(url: str) -> None:
    """In the words of the pool."""
    pool = redis.BlockingConnectionPool.from_url(url, max_connections=1, timeout=0.05)
    async with redis.Redis(connection_pool=pool) as client:
        way = topology(client)
        connection = await way.open("key")

        with pytest.raises(ConnectionLostError, match="No connection available"):
            await way.open("key")

        await way.give_up(connection)
        await pool.disconnect()


async def test_a_connection_that_ended_in_its_pool_and_cannot_be_made_anew(
    url: str,
) -> None:
    """Its place is given back all the same."""
    async with FaultyLine(url) as line:
        pool = redis.BlockingConnectionPool.from_url(
            line.url, max_connections=1, timeout=0.05, protocol=3
        )
        async with redis.Redis.from_pool(pool) as client:
            await client.ping()
            line.cut()
            [connection] = pool._available_connections
            await eventually(lambda: writer_of(connection).is_closing())
            way = topology(client)
            for _ in range(3):
                with pytest.raises(ConnectionLostError, match="cannot reach Redis"):
                    await way.open("key")
            line.heal()

            await way.give_up(await way.open("key"))


async def test_a_pool_that_was_reset_takes_nothing_back(url: str) -> None:
    """The caller may do with it what he likes."""
    async with redis.Redis.from_url(url, protocol=2) as client:
        way = topology(client)
        connection = await way.open("key")

        client.connection_pool.reset()

        await way.give_up(connection)
        assert await client.ping()


async def test_a_lent_cluster_leads_to_the_server_of_the_key(
    cluster: ClusterNodes, name: str
) -> None:
    """Whichever of its nodes that is."""
    async with redis.RedisCluster.from_url(cluster.url) as client:
        way = topology(client)
        for key in (f"{name}-{number}" for number in range(4)):
            connection = await way.open(key)
            await connection.send_command("SET", key, "here")
            await connection.read_response()
            await way.give_up(connection)

            assert await client.getdel(key) == b"here"


async def test_a_lent_cluster_need_not_have_every_permission(
    cluster: ClusterNodes, user: str
) -> None:
    """The command that makes it look for moved keys may be denied."""
    for node in cluster.nodes:
        node.command("ACL", "SETUSER", user, "-exists")
    url = cluster.url.replace("redis://", f"redis://{user}:right@")
    async with redis.RedisCluster.from_url(url) as client:
        way = topology(client)

        connection = await way.open("key")

        await way.give_up(connection)
