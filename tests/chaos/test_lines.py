"""Lines that are cut, silent, slow, or lose a reply: no loss, no duplicate without a cause."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from aioredismq.testing import FaultyLine
from tests.chaos.ledger import judge
from tests.chaos.load import CONCURRENCY, VISIBILITY, under_load

if TYPE_CHECKING:
    from tests.support import Client

pytestmark = [pytest.mark.one_loop, pytest.mark.timeout(120)]


async def test_cut_lines_lose_and_repeat_nothing(
    url: str, name: str, client: Client, seed: int
) -> None:
    """Every connection is reset again and again, in the middle of whatever it does."""
    async with FaultyLine(url) as line, under_load(line.url, name, seed=seed) as load:
        for _ in range(8):
            await load.a_moment()
            line.drop()
            await load.flows(load.chance.randint(1, 40))

    verdict = await judge(load.ledger, client, name)
    assert verdict.holds(duplicates=0), verdict


@pytest.mark.parametrize(
    "command", [b"XREADGROUP", b"EVALSHA", b"CLIENT"], ids=bytes.decode
)
async def test_a_lost_reply_is_neither_lost_work_nor_done_twice(
    url: str, name: str, client: Client, command: bytes, seed: int
) -> None:
    """The request was carried out and its answer never came: sends, reads and acks alike."""
    async with FaultyLine(url) as line, under_load(line.url, name, seed=seed) as load:
        for cut_off in (False, True, True, False, True, False):
            await load.a_moment()
            if cut_off:
                line.truncate_reply(load.chance.randint(0, 60), command)
            else:
                line.reset_after_request(command)
            await load.flows(20)

    verdict = await judge(load.ledger, client, name)
    assert verdict.holds(duplicates=0), verdict


async def test_a_half_open_line_is_noticed_and_its_late_requests_do_no_harm(
    url: str, name: str, client: Client, seed: int
) -> None:
    """Nothing answers for longer than the lease; what was sent meanwhile arrives much later.

    The other consumer may take over what the silent one holds, so that much may be done twice.
    """
    async with (
        FaultyLine(url) as line,
        under_load(url, name, consumer_url=line.url, seed=seed) as load,
    ):
        await load.a_moment()
        line.black_hole()
        silent = load.consumers[1].held
        await asyncio.sleep(VISIBILITY)
        await load.a_moment(2 * VISIBILITY)
        await load.flows(20)
        line.heal()
        await load.flows(20)

    verdict = await judge(load.ledger, client, name)
    # And what had arrived, and not been read, just then.
    assert verdict.holds(duplicates=silent + CONCURRENCY + 1), verdict


async def test_sends_over_a_silent_line_are_stored_once(
    url: str, name: str, client: Client, seed: int
) -> None:
    """Replies stop, requests arrive; senders ask again over new lines."""
    async with FaultyLine(url) as line, under_load(line.url, name, seed=seed) as load:
        await load.a_moment()
        line.black_hole(only="replies")
        await asyncio.sleep(2)
        await load.a_moment(4)
        line.heal()
        await load.flows(20)

    verdict = await judge(load.ledger, client, name)
    # What arrives late may meet handlers whose leases have run out.
    assert verdict.holds(duplicates=2 * (CONCURRENCY + 1)), verdict


async def test_a_slow_line_costs_nothing_but_time(
    url: str, name: str, client: Client, seed: int
) -> None:
    """Up to a tenth of a second each way: everything still arrives once."""
    async with FaultyLine(url) as line, under_load(line.url, name, seed=seed) as load:
        line.delay(0.05 + load.chance.random() / 20)
        await load.flows()
        line.heal()
        await load.flows(20)

    verdict = await judge(load.ledger, client, name)
    assert verdict.holds(duplicates=0), verdict
