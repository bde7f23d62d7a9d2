"""The servers the suite runs on, and how a test looks at them.

Everything but the rules runs on a real server, which the suite starts and ends itself: by default
the one an ordinary user of this machine would get, `--servers all` or `--servers redis-7,valkey`
for several. `AIOREDISMQ_TEST_URL` names a running one instead: never one whose data matters.
"""

from __future__ import annotations

import logging
import os
import secrets
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from redis.asyncio import Redis

from aioredismq.testing import ClusterNodes, RedisServer, SentinelSet, find_servers
from tests.support import PATIENCE, Deployment, choose_servers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.support import Client

_EXTERNAL = "AIOREDISMQ_TEST_URL"
_LOOPS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
}
_LOOP_MATTERS = {
    "test_bell",
    "test_connection",
    "test_consumer",
    "test_delivery",
    "test_dispatcher",
    "test_host",
    "test_lent",
    "test_link",
    "test_lookout",
    "test_opening",
    "test_puller",
    "test_reader",
    "test_running",
    "test_stopping",
    "test_topology",
    "test_wire",
}
_servers = pytest.StashKey[dict[str, "Path | None"]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the caller choose servers and event loops."""
    group = parser.getgroup("aioredismq")
    group.addoption(
        "--servers",
        metavar="all|NAME,...",
        help="run on all servers found, or on those whose names begin so, such as "
        "redis-7,valkey-9.1.2 (default: the first found)",
    )
    group.addoption(
        "--loop",
        choices=["all", "both-where-it-matters", *_LOOPS],
        default="both-where-it-matters",
        help="the event loop to run on (default: asyncio's, and uvloop too for what deals with "
        "transports, cancellation and the order of callbacks)",
    )
    group.addoption(
        "--long",
        action="store_true",
        help="run the fault tests that take long, too: `nox -s chaos`",
    )
    group.addoption(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="how many seeds the fault tests run with (default: 1)",
    )
    group.addoption(
        "--soak",
        type=float,
        default=8.0,
        metavar="SECONDS",
        help="how long the soak goes on (default: %(default)g)",
    )
    group.addoption(
        "--outage",
        type=float,
        default=15.0,
        metavar="SECONDS",
        help="how long a server is away in the long outages (default: %(default)g)",
    )


settings.register_profile("suite", max_examples=40, deadline=None)
settings.load_profile("suite")


def pytest_configure(config: pytest.Config) -> None:
    """Choose the servers; None as a program means that it is not ours to start."""
    asked = config.getoption("--servers")
    if os.environ.get(_EXTERNAL):
        if asked:
            raise pytest.UsageError(f"give --servers or {_EXTERNAL}, not both")
        config.stash[_servers] = {_EXTERNAL: None}
        return
    try:
        config.stash[_servers] = choose_servers(asked, find_servers())
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Leave out what takes long, unless it is asked for."""
    if config.getoption("--long"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what needs a server on each chosen one, and what is async on each loop."""
    if "server_path" in metafunc.fixturenames:
        chosen = metafunc.config.stash[_servers]
        metafunc.parametrize(
            "server_path", chosen.values(), ids=chosen, indirect=True, scope="session"
        )
    if "seed" in metafunc.fixturenames:
        seeds = range(1, metafunc.config.getoption("--seeds") + 1)
        metafunc.parametrize("seed", seeds, ids=[f"seed{seed}" for seed in seeds])
    if "anyio_backend" in metafunc.fixturenames:
        asked = metafunc.config.getoption("--loop")
        module = metafunc.module.__name__.rpartition(".")[2]
        if metafunc.definition.get_closest_marker("one_loop") and asked not in _LOOPS:
            asked = next(iter(_LOOPS))
        elif asked == "both-where-it-matters":
            asked = "all" if module in _LOOP_MATTERS else next(iter(_LOOPS))
        loops = {name: loop for name, loop in _LOOPS.items() if asked in ("all", name)}
        metafunc.parametrize(
            "anyio_backend", loops.values(), ids=loops, indirect=True, scope="session"
        )


@pytest.fixture(autouse=True)
def a_logger_nobody_has_turned_down() -> Iterator[None]:
    """Undo what a program under test has done to the package's logger, as its process would."""
    yield
    logging.getLogger("aioredismq").setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The event loop of an async test."""
    loop: tuple[str, dict[str, Any]] = request.param
    return loop


@pytest.fixture(scope="session")
def server_path(request: pytest.FixtureRequest) -> Path | None:
    """The program of the server under test; None leaves it to `RedisServer`."""
    path: Path | None = request.param
    return path


@pytest.fixture(scope="session")
def server(server_path: Path | None) -> Iterator[RedisServer]:
    """The server most tests share. Whoever kills, pauses or fills one takes `own_server`."""
    if os.environ.get(_EXTERNAL):
        pytest.skip(f"needs a server of ours, and {_EXTERNAL} is somebody else's")
    with RedisServer(server_path) as running:
        yield running


@pytest.fixture
def own_server(server_path: Path | None) -> Iterator[RedisServer]:
    """A server for this test alone, to be killed, paused, filled or reconfigured."""
    with RedisServer(server_path) as running:
        yield running


@pytest.fixture(scope="session")
def sentinel(server_path: Path | None) -> Iterator[SentinelSet]:
    """A master with a replica, watched by three Sentinels; nobody ends it."""
    with SentinelSet(server_path, down_after=PATIENCE) as running:
        yield running


@pytest.fixture
def own_set(server_path: Path | None) -> Iterator[SentinelSet]:
    """A set for this test alone, to fail over."""
    with SentinelSet(server_path) as running:
        yield running


@pytest.fixture(scope="session")
def cluster(server_path: Path | None) -> Iterator[ClusterNodes]:
    """A cluster of three masters with a replica each; nobody ends one."""
    with ClusterNodes(server_path, node_timeout=PATIENCE) as running:
        yield running


@pytest.fixture(scope="session")
def url(request: pytest.FixtureRequest, server_path: Path | None) -> str:
    """Where the server most tests share is reached."""
    external = os.environ.get(_EXTERNAL)
    if external:
        return external
    server: RedisServer = request.getfixturevalue("server")
    return server.url


@pytest.fixture(scope="session", params=["single", "sentinel", "cluster"])
def deployment(request: pytest.FixtureRequest, server_path: Path | None) -> Deployment:
    """Each way to run Redis, for the promises that must hold on all of them."""
    kind = request.param
    if kind == "single":
        return Deployment("single", request.getfixturevalue("url"))
    if os.environ.get(_EXTERNAL):
        pytest.skip(f"{_EXTERNAL} names a single server, and this needs a {kind}")
    if kind == "cluster":
        nodes: ClusterNodes = request.getfixturevalue("cluster")
        return Deployment("cluster", nodes.url)
    watched: SentinelSet = request.getfixturevalue("sentinel")
    return Deployment(
        "sentinel",
        watched.url,
        sentinels=tuple(watched.addresses),
        service=watched.service,
    )


@pytest.fixture
async def look(deployment: Deployment) -> AsyncIterator[Client]:
    """A plain client of the deployment, to look in from outside."""
    async with deployment.client() as client:
        yield client


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A queue name that no other test has, on whatever server."""
    return f"{request.function.__name__}-{secrets.token_hex(4)}"


@pytest.fixture
async def client(url: str) -> AsyncIterator[Redis]:
    """A plain redis-py client of the shared server, to look in from outside; answers bytes."""
    async with Redis.from_url(url, protocol=2) as opened:
        yield opened
