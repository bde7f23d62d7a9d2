from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import pytest
import redis.asyncio as redis
from redis.asyncio.sentinel import Sentinel

from aioredismq import ConnectionLostError
from aioredismq._failover import Failover
from aioredismq._lent import LentCluster, LentPool, sentinels_of
from aioredismq._opening import place_of, writer_of
from aioredismq.testing import FaultyLine
from tests.services import service
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from aioredismq.testing import ClusterNodes, RedisServer, SentinelSet
    from tests.support import Client


def way_by(client: Client) -> LentPool | LentCluster:
    """Reach Redis by the client."""
    if isinstance(client, redis.RedisCluster):
        return LentCluster(client, 8.0)
    return LentPool(client, 8.0)


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
    way = way_by(lent)

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
        way = way_by(client)
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
            way = way_by(client)
            for _ in range(3):
                with pytest.raises(ConnectionLostError, match="cannot reach Redis"):
                    await way.open("key")
            line.heal()

            await way.give_up(await way.open("key"))


async def test_a_pool_that_was_reset_takes_nothing_back(url: str) -> None:
    """The caller may do with it what he likes."""
    async with redis.Redis.from_url(url, protocol=2) as client:
        way = way_by(client)
        connection = await way.open("key")

        client.connection_pool.reset()

        await way.give_up(connection)
        assert await client.ping()


async def test_a_lent_cluster_leads_to_the_server_of_the_key(
    cluster: ClusterNodes, name: str
) -> None:
    """Whichever of its nodes that is."""
    async with redis.RedisCluster.from_url(cluster.url) as client:
        way = way_by(client)
        for key in (f"{name}-{number}" for number in range(4)):
            connection = await way.open(key)
            await connection.send_command("SET", key, "here")
            await connection.read_response()
            await way.give_up(connection)

            assert await client.getdel(key) == b"here"


@pytest.fixture
def user(cluster: ClusterNodes) -> Iterator[str]:
    """A user of every node of the cluster, who may not ask whether a key exists."""
    label = f"u{secrets.token_hex(4)}"
    for node in cluster.nodes:
        node.command("ACL", "SETUSER", label, "on", ">right", "~*", "+@all", "-exists")
    yield label
    for node in cluster.nodes:
        node.command("ACL", "DELUSER", label)


async def test_a_lent_cluster_need_not_have_every_permission(
    cluster: ClusterNodes, user: str
) -> None:
    """The command that makes it look for moved keys may be denied."""
    url = cluster.url.replace("redis://", f"redis://{user}:right@")
    async with redis.RedisCluster.from_url(url) as client:
        way = way_by(client)

        connection = await way.open("key")

        await way.give_up(connection)


# Its Sentinels.


@pytest.mark.parametrize("kind", ["a server", "replicas", "another address"])
async def test_where_no_handover_can_be_followed_nobody_is_asked(kind: str) -> None:
    """A pool of no Sentinel, one for reading, and one that leads elsewhere than they say."""
    forced = "10.0.0.1" if kind == "another address" else None
    asked = Sentinel([("h", 1)], force_master_ip=forced)
    match kind:
        case "a server":
            client = redis.Redis(host="h")
        case "replicas":
            client = asked.slave_for("service")
        case _:
            client = asked.master_for("service")

    assert sentinels_of(client.connection_pool, 2.0) is None


async def test_sentinels_are_reached_as_the_client_reaches_them() -> None:
    """With user, password and TLS; everything else is ours."""
    asked = Sentinel(
        [("a", 1), ("b", 2)],
        sentinel_kwargs={
            "username": "me",
            "password": "s3cr3t",
            "ssl": True,
            "ssl_ca_certs": "/ca.pem",
            "socket_timeout": 0.1,
            "decode_responses": True,
        },
        password="the servers'",  # noqa: S106 -- none
    )

    found = sentinels_of(asked.master_for("service").connection_pool, 2.0)

    assert found is not None
    assert found.service == "service"
    assert [(each["host"], each["port"]) for each in found.addresses] == [
        ("a", 1),
        ("b", 2),
    ]
    for each in found.addresses:
        assert (each["username"], each["password"]) == ("me", "s3cr3t")
        assert each["connection_class"] is redis.SSLConnection
        assert each["ssl_ca_certs"] == "/ca.pem"
        assert each["socket_connect_timeout"] == 2.0
        assert each["socket_timeout"] is None
        assert not each["decode_responses"]


async def test_a_pool_leads_nobody_to_a_master_whose_failover_has_begun(
    sentinel: SentinelSet, server: RedisServer, own_server: RedisServer
) -> None:
    """It knows of no other yet; it does when the sentinels tell."""
    with service(sentinel, own_server, by=slice(1)) as watched:
        [leader] = watched.sentinels
        asked = Sentinel([("127.0.0.1", leader.port)])
        client = asked.master_for(watched.name, max_connections=1)
        way = LentPool(client, 8.0)
        assert way.sentinels is not None
        address = way.sentinels.addresses[0]
        async with way.sentinels.line(address) as line:
            await way.sentinels.ask(line, address)
        begun = Failover(("127.0.0.1", server.port), ("127.0.0.1", own_server.port))
        way.sentinels.begin(begun, address)

        with pytest.raises(ConnectionLostError, match="which has handed over"):
            await way.open("key")
        await watched.hand_over(server)
        connection = await way.open("key")

        assert place_of(connection) == ("127.0.0.1", server.port)
        await way.give_up(connection)
        await client.aclose()
        await asked.aclose()


async def test_a_pool_leads_nobody_back_after_a_handover(
    sentinel: SentinelSet, server: RedisServer, own_server: RedisServer
) -> None:
    """Neither by a connection it has kept, nor by a sentinel that has not heard."""
    with service(sentinel, own_server, by=slice(1)) as watched:
        [known] = watched.sentinels
        asked = Sentinel([("127.0.0.1", known.port)])
        client = asked.master_for(watched.name, max_connections=1)
        await client.ping()
        [kept] = client.connection_pool._available_connections
        way = LentPool(client, 8.0)
        assert way.sentinels is not None
        address = way.sentinels.addresses[0]
        async with way.sentinels.line(address) as line:
            await way.sentinels.ask(line, address)
            await watched.hand_over(server)
            await way.sentinels.ask(line, address)
        assert place_of(kept) == ("127.0.0.1", own_server.port)

        with pytest.raises(ConnectionLostError, match="which has handed over"):
            await way.open("key")
        connection = await way.open("key")

        assert place_of(connection) == ("127.0.0.1", server.port)
        await way.give_up(connection)
        await client.aclose()
        await asked.aclose()
