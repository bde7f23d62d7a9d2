"""Masters that die or are replaced, behind Sentinel and in a Cluster: work goes on by itself.

Replication is asynchronous: what the old master accepted and had not passed on is gone with it.
That is counted apart, and named; everything else is handled.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pytest
from anyio.to_thread import run_sync

from aioredismq.testing import ClusterNodes, SentinelSet
from aioredismq.testing._server import wait_until
from tests.chaos.load import under_load
from tests.looking import NOTHING, left
from tests.support import Deployment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.one_loop, pytest.mark.long, pytest.mark.timeout(90)]

# What a master may have accepted and not passed on when it ended: some milliseconds' worth.
UNREPLICATED = 50


@dataclass(frozen=True, slots=True)
class Failing:
    """A deployment, what makes the master of a queue another server, and what mends the rest."""

    deployment: Deployment
    fail_over: Callable[[str], None]
    mend: Callable[[], None]


@pytest.fixture(params=["sentinel", "cluster", "planned"])
def failing(
    request: pytest.FixtureRequest, server_path: Path | None
) -> Iterator[Failing]:
    """A deployment for one test."""
    with ExitStack() as stack:
        if request.param == "cluster":
            nodes = stack.enter_context(ClusterNodes(server_path))
            yield Failing(
                Deployment("cluster", nodes.url),
                lambda name: nodes.master_of(name).kill(),
                partial(start_all, nodes),
            )
            return
        watched = stack.enter_context(SentinelSet(server_path))
        yield Failing(
            Deployment(
                "sentinel",
                watched.url,
                sentinels=tuple(watched.addresses),
                service=watched.service,
            ),
            lambda _: (
                hand_over(watched)
                if request.param == "planned"
                else watched.master.kill()
            ),
            lambda: None,
        )


def start_all(nodes: ClusterNodes) -> None:
    """Start what was killed: a client of redis-py does not find its way around it."""
    for node in nodes.nodes:
        node.start()


def hand_over(watched: SentinelSet) -> None:
    """Make a replica the master, and wait until the old one has been told, which takes seconds."""
    old = watched.master
    watched.failover()
    wait_until(
        "the old master to follow",
        lambda: str(old.command("ROLE")).startswith("['slave"),
    )


async def test_a_failover_is_survived(failing: Failing, name: str, seed: int) -> None:
    """Consumers find the new master, and make again what it lacks; sends are stored once."""
    async with under_load(failing.deployment.url, name, seed=seed, limit=30) as load:
        await run_sync(failing.fail_over, name)
        await load.flows(40, limit=20)
        gone = await load.write_off()

    assert len(gone) <= UNREPLICATED
    assert load.ledger.duplicates <= UNREPLICATED
    assert len(load.ledger.unwanted) == 0
    await run_sync(failing.mend)
    async with failing.deployment.client() as client:
        assert await left(client, name) == NOTHING
