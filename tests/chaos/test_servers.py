"""Servers that are killed, paused or tampered with: consumers mend it by themselves."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import pytest
from anyio import create_task_group, fail_after
from anyio.to_thread import run_sync
from redis.asyncio import Redis

from aioredismq import QueueDeletedError
from aioredismq._keys import QueueKeys
from aioredismq.testing import FaultyLine
from tests.chaos import tampering
from tests.chaos.ledger import judge
from tests.chaos.load import CONCURRENCY, CONFIG, VISIBILITY, Load, under_load

if TYPE_CHECKING:
    from aioredismq.testing import RedisServer
    from tests.support import Client, Deployment

pytestmark = [pytest.mark.one_loop, pytest.mark.timeout(120)]


async def test_a_killed_server_that_comes_back_has_lost_nothing(
    durable_server: RedisServer, name: str, seed: int
) -> None:
    """SIGKILL under load, twice, with every write on disk: nothing is lost or repeated."""
    async with under_load(durable_server.url, name, seed=seed) as load:
        for longest in (0.5, 2 * VISIBILITY):
            await load.a_moment()
            await run_sync(durable_server.kill)
            await load.a_moment(longest)
            await run_sync(durable_server.start)
            await load.flows()

    async with Redis.from_url(durable_server.url) as client:
        verdict = await judge(load.ledger, client, name)
    assert verdict.holds(duplicates=0), verdict


async def test_a_paused_server_is_waited_for(
    durable_server: RedisServer, name: str, seed: int
) -> None:
    """For longer than a reply may take, or a lease, too: leases are renewed before all else."""
    async with under_load(durable_server.url, name, seed=seed) as load:
        await load.a_moment()
        await run_sync(durable_server.pause)
        await asyncio.sleep(1)
        await load.a_moment(2 * VISIBILITY)
        await run_sync(durable_server.resume)
        await load.flows()

    async with Redis.from_url(durable_server.url) as client:
        verdict = await judge(load.ledger, client, name)
    assert verdict.holds(duplicates=0), verdict


async def until_it_flows(load: Load) -> float:
    """Wait until something is handled: in seconds, without those in which nobody was run here."""
    before = load.ledger.handled.total()
    took = 0.0
    while load.ledger.handled.total() == before and took < 30:
        looked = time.monotonic()
        await asyncio.sleep(0.01)
        took += min(time.monotonic() - looked, 0.05)
    return took


@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", ["killed", "paused", "silent"])
async def test_a_long_outage_is_sat_out(
    durable_server: RedisServer, name: str, how: str, outage: float, logged: list[str]
) -> None:
    """For many leases nobody answers (`--outage SECONDS`); then work goes on within 2 s.

    Nothing ends and nothing has to be started again; the log has a line now and then.
    """
    async with AsyncExitStack() as stack:
        url = durable_server.url
        if how == "silent":
            line = await stack.enter_async_context(FaultyLine(url))
            url, begin, end = line.url, line.black_hole, line.heal
        elif how == "killed":
            begin, end = durable_server.kill, durable_server.start
        else:
            begin, end = durable_server.pause, durable_server.resume
        load = await stack.enter_async_context(under_load(url, name))
        await run_sync(begin) if how != "silent" else begin()
        await asyncio.sleep(outage / 2)
        said = len(logged)
        await asyncio.sleep(outage / 2)
        said = len(logged) - said
        await run_sync(end) if how != "silent" else end()
        took = await until_it_flows(load)
        await load.flows()

    print(f"went on after {took:.2f} s; {said} lines logged")  # noqa: T201 -- as the verdict
    assert took < 4  # 2 s, and some for a busy machine
    assert said <= outage
    async with Redis.from_url(durable_server.url) as client:
        verdict = await judge(load.ledger, client, name)
    assert verdict.holds(duplicates=0), verdict


@pytest.mark.parametrize(
    ("tamper", "most_repeated"),
    [
        (tampering.flush_scripts, 0),
        (tampering.kill_clients, 0),
        (tampering.destroy_group, 3 * 2 * (CONCURRENCY + 1)),
        (tampering.delete_stream, 3 * 2 * (CONCURRENCY + 1)),
        (tampering.flush_all, 3 * 2 * (CONCURRENCY + 1)),
    ],
)
async def test_tampering_is_mended_by_itself(
    deployment: Deployment,
    look: Client,
    name: str,
    seed: int,
    tamper: tampering.Tamper,
    most_repeated: int,
) -> None:
    """Scripts, connections, the group, the stream, everything: gone while in use, three times.

    What DEL and FLUSHALL take away is gone; nothing else is, and only what was held is repeated.
    """
    async with under_load(deployment.url, name, seed=seed) as load:
        for _ in range(3):
            await load.a_moment()
            load.ledger.taken |= await tamper(look, name)
            await load.flows()

    verdict = await judge(load.ledger, look, name)
    assert verdict.holds(most_repeated), verdict
    assert verdict.taken < 200


@pytest.mark.parametrize("start", ["earliest", "latest"])
@pytest.mark.parametrize(
    "tamper",
    [tampering.destroy_group, tampering.delete_stream, tampering.flush_all],
)
async def test_tampering_beside_a_group_that_is_behind_repeats_only_what_was_held(
    deployment: Deployment,
    look: Client,
    name: str,
    seed: int,
    tamper: tampering.Tamper,
    start: Literal["earliest", "latest"],
) -> None:
    """What was settled is still stored for the other group, and does not come again."""
    config = replace(CONFIG, start=start)
    async with under_load(deployment.url, name, seed=seed, config=config) as load:
        for _ in range(3):
            await tampering.fall_behind(look, name, "behind")
            await load.flows(200)
            await load.a_moment()
            load.ledger.taken |= await tamper(look, name)
            await load.flows()
        await load.settles(30)
        handled = load.ledger.handled.total()
        await load.queue.destroy_group("behind")

    verdict = await judge(load.ledger, look, name)
    assert handled > 600
    assert verdict.holds(3 * 2 * (CONCURRENCY + 1)), verdict


@pytest.mark.parametrize("group", [None, "behind"])
async def test_what_is_deleted_on_purpose_under_load_stays_away(
    deployment: Deployment, look: Client, name: str, seed: int, group: str | None
) -> None:
    """The queue, or its only group that works; all consumers end, and nothing comes again."""
    load = Load(deployment.url, name, deployment.url, seed)
    async with load.queue, load.other, create_task_group() as tasks:
        for consumer in load.consumers:
            await consumer.start()
        for _ in range(4):
            tasks.start_soon(load.produce)
        if group is not None:
            await tampering.fall_behind(look, name, group)
        await load.flows(200)

        if group is None:
            await load.queue.delete()
        else:
            await load.queue.destroy_group(f"{name}_group")

        for consumer in load.consumers:
            with fail_after(60), pytest.raises(QueueDeletedError):
                await consumer.wait()
        tasks.cancel_scope.cancel()

    groups = [about["name"] for about in await look.xinfo_groups(name)]
    assert groups == ([] if group is None else [group.encode()])
    duplicates = load.ledger.handled.total() - len(load.ledger.handled)
    assert duplicates == 0
    assert not await look.exists(QueueKeys(name).settled(f"{name}_group"))
