"""The suite's own tools: what they promise, every other test leans on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from tests.support import Deployment, choose_servers, eventually, watched

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from aioredismq.testing import RedisServer

FOUND = {
    "valkey-9.1.2": Path("/embedded"),
    "redis-8.6.3": Path("/new"),
    "redis-8.0.2": Path("/older"),
    "redis-7.0.15": Path("/old"),
}


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        (None, ["valkey-9.1.2"]),
        ("all", list(FOUND)),
        ("redis-8", ["redis-8.6.3", "redis-8.0.2"]),
        ("redis-7.0.15,valkey", ["redis-7.0.15", "valkey-9.1.2"]),
    ],
)
def test_servers_are_chosen_by_how_their_names_begin(
    asked: str | None, chosen: list[str]
) -> None:
    """In the order asked for; without asking, the one an ordinary user would get."""
    assert choose_servers(asked, FOUND) == {name: FOUND[name] for name in chosen}


@pytest.mark.parametrize("asked", ["redis-9", "redis-8.6.3,keydb", "redis-7,", ""])
def test_a_server_that_is_asked_for_and_absent_is_an_error(asked: str) -> None:
    """With what there is."""
    with pytest.raises(ValueError, match=r"there are: valkey-9\.1\.2, redis-8\.6\.3"):
        choose_servers(asked, FOUND)


def test_all_of_no_servers_is_an_error() -> None:
    """A run over every server that ran on none would look like success."""
    with pytest.raises(ValueError, match="there are: none"):
        choose_servers("all", {})


def test_without_any_server_the_rules_are_still_tested() -> None:
    """Whoever needs a server is told by its start what to install."""
    assert choose_servers(None, {}) == {"no server": None}


async def test_what_comes_true_is_waited_for() -> None:
    """Plain conditions and awaitable ones alike."""
    plain = iter([False, False, True])
    awaited = iter([False, True])

    async def is_true() -> bool:
        return next(awaited)

    await eventually(lambda: next(plain))
    await eventually(is_true)


async def test_what_stays_false_fails_and_is_named() -> None:
    """The condition itself is the message."""
    with pytest.raises(AssertionError, match=r"not true after 0\.01 s: .*1 > 2"):
        await eventually(lambda: 1 > 2, limit=0.01)


async def test_a_moment_in_which_nothing_runs_is_not_waited_out() -> None:
    """What is waited for could not come true in it, and may right afterwards."""
    comes_true = iter([False, False, False, True])

    def is_true() -> bool:
        time.sleep(0.3)
        return next(comes_true)

    await eventually(is_true, limit=0.5)


async def test_standstills_are_taken_off_a_time() -> None:
    """As much of each as lies in it; what passed while the process ran counts."""
    async with watched() as standstills:
        begun = time.monotonic()
        await anyio.sleep(0.1)
        stands = time.monotonic()
        time.sleep(0.5)  # noqa: ASYNC251 -- what a busy machine does
        goes_on = time.monotonic()
        assert standstills.passed(stands, goes_on) < 0.1

    assert goes_on - stands >= 0.5
    assert 0.09 < standstills.passed(begun, goes_on) <= goes_on - begun - 0.45
    assert standstills.passed(stands + 0.1, stands + 0.3) < 0.01
    assert standstills.passed(begun, begun + 0.05) == pytest.approx(0.05)


async def test_a_plain_client_looks_in_from_outside(
    client: Redis, server: RedisServer, name: str
) -> None:
    """It sees what others write, as bytes."""
    server.command("SET", name, "value")

    assert await client.get(name) == b"value"


async def test_every_deployment_has_a_plain_client(
    deployment: Deployment, name: str
) -> None:
    """It reaches the key wherever it lies."""
    async with deployment.client() as client:
        assert await client.set(name, "value")
        assert await client.get(name) == b"value"


def test_a_name_says_whose_it_is(name: str) -> None:
    """A key that is left over tells which test it came from."""
    assert name.startswith("test_a_name_says_whose_it_is-")
