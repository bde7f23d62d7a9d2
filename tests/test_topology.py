from __future__ import annotations

import gc
import secrets
import time
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import redis.asyncio as redis
from anyio import fail_after
from redis.asyncio.cluster import NodesManager
from redis.exceptions import TimeoutError as RedisTimeoutError

from aioredismq import (
    AuthenticationError,
    CommandRefusedError,
    ConfigurationError,
    Connection,
    ConnectionLostError,
    _sentinels,
)
from aioredismq._failover import Failover
from aioredismq._lent import LentCluster, LentPool
from aioredismq._opening import place_of
from aioredismq._topology import (
    OwnCluster,
    OwnSentinel,
    OwnServer,
    Topology,
    topology_for,
)
from aioredismq.testing import FaultyLine, RedisServer
from tests.services import service
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from redis.asyncio.connection import AbstractConnection

    from aioredismq.testing import ClusterNodes, SentinelSet
    from tests.support import Client, Deployment


def topology(target: Any, *, cluster: bool | None = None) -> Topology:
    """Choose the way to a target."""
    return topology_for(target, max_connections=7, connect_timeout=8.0, cluster=cluster)


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


async def test_nodes_that_all_have_new_addresses_are_found_by_the_first_one(
    cluster: ClusterNodes,
) -> None:
    """Its name may lead to them when none of those that were known is left."""
    way = topology(cluster.url, cluster=True)
    assert isinstance(way, OwnCluster)
    await way.give_up(await way.open("a"))

    way._nodes = [("127.0.0.1", 1), ("127.0.0.1", 2)]

    connection = await way.open("b")
    assert await say(connection, "EXISTS", "b") == 0
    await way.give_up(connection)


async def test_a_node_that_is_gone_is_looked_for_anew(cluster: ClusterNodes) -> None:
    """What was known of the key a moment ago does not count any more."""
    way = topology(cluster.url, cluster=True)
    assert isinstance(way, OwnCluster)
    way._lately["key"] = ("127.0.0.1", 1, time.monotonic())

    with pytest.raises(ConnectionLostError, match=r"127\.0\.0\.1:1"):
        await way.open("key")

    await way.give_up(await way.open("key"))


async def test_a_cluster_that_was_asked_and_does_not_part_in_time_was_asked(
    cluster: ClusterNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine; what it has told is known, and nobody ends of it."""
    part = NodesManager.aclose

    async def part_late(asked: NodesManager, nodes: str = "nodes_cache") -> None:
        await part(asked, nodes)
        if nodes == "nodes_cache":
            raise RedisTimeoutError("Timed out closing connection after 1.0")

    monkeypatch.setattr(NodesManager, "aclose", part_late)
    way = topology(cluster.url, cluster=True)

    await way.give_up(await way.open("key"))
    gc.collect()  # which would complain of a connection that is left open


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
    way = topology(watched(sentinel, "127.0.0.1:1,127.0.0.1:2,"))

    with fail_after(7.9):  # less than a connect may take
        connection = await way.open("key")

    assert (await say(connection, "ROLE"))[0] == b"master"
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
        assert way.sentinels is not None
        del way.sentinels.addresses[1:]
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


# In a failover, and after it.


async def test_while_a_failover_has_begun_only_the_selected_replica_will_do(
    sentinel: SentinelSet, server: RedisServer, own_server: RedisServer
) -> None:
    """As soon as it is a master, whatever the sentinels say."""
    [replica] = [node for node in sentinel.nodes if node is not sentinel.master]
    with service(sentinel, own_server) as watched_one:
        way = topology(watched_one.url)
        assert way.sentinels is not None
        await way.give_up(await way.open("key"))
        former = ("127.0.0.1", own_server.port)
        leader = way.sentinels.addresses[0]

        way.sentinels.begin(Failover(("127.0.0.1", replica.port), former), leader)
        with pytest.raises(
            ConnectionLostError, match=f"{replica.port} is to be the master and is not"
        ):
            await way.open("key")
        way.sentinels.begin(Failover(("127.0.0.1", server.port), former), leader)
        connection = await way.open("key")

        assert place_of(connection) == ("127.0.0.1", server.port)
        await way.give_up(connection)


async def test_a_selected_replica_that_hangs_is_left_when_its_time_is_over(
    sentinel: SentinelSet,
    server: RedisServer,
    own_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not only when the time for connecting is."""
    monkeypatch.setattr(_sentinels, "_PATIENCE", 0.3)
    async with FaultyLine(server.url) as line:
        line.black_hole()
        with service(sentinel, own_server) as watched_one:
            way = topology(watched_one.url)
            assert way.sentinels is not None
            await way.give_up(await way.open("key"))
            former = ("127.0.0.1", own_server.port)
            begun = Failover(("127.0.0.1", line.port), former)
            way.sentinels.begin(begun, way.sentinels.addresses[0])
            began = time.monotonic()

            with pytest.raises(ConnectionLostError, match="is to be the master"):
                await way.open("key")
            # A timer may fire a millisecond early.
            sentinels = way.sentinels
            await eventually(lambda: sentinels.selected is None)
            connection = await way.open("key")

        assert time.monotonic() - began < 7.9
        assert place_of(connection) == former
        await way.give_up(connection)


async def test_what_was_to_be_the_master_is_given_up_with_the_failover(
    sentinel: SentinelSet,
    server: RedisServer,
    own_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also when it was just being connected to, and says that it is a master."""
    with service(sentinel, own_server) as watched_one:
        way = topology(watched_one.url)
        assert isinstance(way, OwnSentinel)
        await way.give_up(await way.open("key"))
        former = ("127.0.0.1", own_server.port)
        leader = way.sentinels.addresses[0]
        way.sentinels.begin(Failover(("127.0.0.1", server.port), former), leader)
        is_master = way._is_master

        async def abort(connection: AbstractConnection, name: str) -> bool:
            monkeypatch.undo()
            way.sentinels.abort(leader)
            return await is_master(connection, name)

        monkeypatch.setattr(way, "_is_master", abort)
        with pytest.raises(ConnectionLostError, match="is to be the master"):
            await way.open("key")
        connection = await way.open("key")

        assert place_of(connection) == former
        await way.give_up(connection)


async def test_a_sentinel_that_has_not_heard_leads_nobody_back(
    sentinel: SentinelSet, server: RedisServer, own_server: RedisServer
) -> None:
    """The former master goes on saying that it is one; the next sentinel is asked."""
    second = sentinel.sentinels[1]
    with service(sentinel, own_server, by=slice(1)) as watched_one:
        way = topology(watched_one.url)
        await watched_one.hand_over(server)
        await way.give_up(await way.open("key"))

        watched_one.watch(second, own_server)
        assert way.sentinels is not None
        known = way.sentinels.addresses[0]
        way.sentinels.addresses.insert(0, {**known, "port": second.port})
        connection = await way.open("key")

        assert place_of(connection) == ("127.0.0.1", server.port)
        assert way.sentinels.addresses[0] is known
        await way.give_up(connection)

        del way.sentinels.addresses[0]
        with pytest.raises(ConnectionLostError, match="has not heard"):
            await way.open("key")
        watched_one.forget(second)


async def test_a_master_that_hands_over_while_it_is_connected_to_is_given_up(
    sentinel: SentinelSet,
    server: RedisServer,
    own_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It still says that it is one, but a sentinel has told another connection better."""
    with service(sentinel, own_server) as watched_one:
        way = topology(watched_one.url)
        assert isinstance(way, OwnSentinel)
        is_master = way._is_master

        async def hand_over(connection: AbstractConnection, name: str) -> bool:
            monkeypatch.undo()
            await watched_one.hand_over(server)
            await way.give_up(await way.open("key"))
            return await is_master(connection, name)

        monkeypatch.setattr(way, "_is_master", hand_over)
        connection = await way.open("key")

        assert place_of(connection) == ("127.0.0.1", server.port)
        await way.give_up(connection)
